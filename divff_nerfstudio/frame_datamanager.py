"""Whole frames in place of rays, for methods that draw pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

import torch
import tyro
from nerfstudio.cameras.cameras import Cameras

from divff_nerfstudio.card import sent
from divff_nerfstudio.datamanager import DivFFDataManager, DivFFDataManagerConfig
from divff_nerfstudio.schema import Count


@dataclass
class FrameDataManagerConfig(DivFFDataManagerConfig):
    """Options of the data manager of whole frames."""

    _target: type = field(default_factory=lambda: FrameDataManager)
    """Target class to instantiate."""
    feature_pixels: Count = 2048
    """Pixels of each frame whose features are looked up; all where a frame has fewer."""
    contested_weight: tyro.conf.Suppress[float] = 0.0
    train_num_rays_per_batch: tyro.conf.Suppress[Optional[int]] = 1  # noqa: UP045
    eval_num_rays_per_batch: tyro.conf.Suppress[int] = 1
    windows: tyro.conf.Suppress[int] = 1
    window_overlap: tyro.conf.Suppress[float] = 0.1


class FrameDataManager(DivFFDataManager):
    """Gives whole frames in place of rays: all of the training split in turn, in an order that depends on the step.

    A run that is resumed therefore sees the frames that the unbroken run saw.
    """

    config: FrameDataManagerConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def setup_train(self) -> None:
        """Takes note of the frames' size, in which nerfstudio's log counts rays."""
        scene = self.train_dataset.scene
        self._area = scene.height * scene.width

    def setup_eval(self) -> None:
        """Prepares whole pictures, and finds faults in annotations before training."""
        super().setup_eval()
        self.eval_pixel_sampler = None

    def get_train_rays_per_batch(self) -> int:
        """Pixels of a frame."""
        return self._area

    def next_train(self, step: int) -> tuple[Cameras, dict[str, Any]]:  # pyright: ignore
        """A training frame.

        Returns:
            Its camera, with a time, and a batch of "image" (all pixels row by row, R x 3, 0..1), "image_idx",
            "frame_index" (in the scene), after `use_evidence` "evidence" (chances of dynamic layer and actor), after
            `use_hints` "hints" (what moves and what is hand), and, from `feature_start_step` on, "features" of its
            "pixels".
        """
        dataset, frames = self.train_dataset, len(self.train_dataset)
        order = torch.randperm(frames, generator=torch.Generator().manual_seed(step // frames))
        index = int(order[step % frames])
        in_scene = int(dataset.scene_indices[index])
        batch: dict[str, Any] = {
            "image": self._colours.frame(in_scene),
            "image_idx": index,
            "frame_index": in_scene,
        }
        if self._labels is not None:
            batch["evidence"] = self._labels.chances(self._codes.frame(index))
        width = dataset.scene.width
        if self._hint_store is not None:
            every = torch.arange(self._area, device=self.device if self.resident else "cpu")
            frame = torch.full_like(every, in_scene)
            batch["hints"], _ = self._hints.lookup(frame, every // width, every % width)["hints"]
        if self.with_features(step):
            where = self.device if self.resident else "cpu"
            pixels = torch.randperm(self._area, device=where)[: self.config.feature_pixels]
            batch["pixels"] = sent(pixels, self.device)
            frame = torch.full_like(pixels, in_scene)
            batch["features"] = self._features.lookup(frame, pixels // width, pixels % width)
        return dataset.cameras[index : index + 1], batch

    def next_eval(self, step: int) -> tuple[Cameras, dict[str, Any]]:  # pyright: ignore
        """An evaluation frame, its pixels row by row."""
        camera, batch = self.next_eval_image(step)
        return camera, {**batch, "image": batch["image"].reshape(-1, 3)}
