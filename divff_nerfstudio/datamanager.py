"""Rays, colours and feature targets for training, pictures for evaluation, from memory-mapped frames."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import numpy as np
import tyro
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.pixel_samplers import PixelSamplerConfig
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader, RandIndicesEvalDataloader
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image
from pydantic import Field
from torch import Tensor

from divff_nerfstudio.card import free_bytes, sent
from divff_nerfstudio.data.annotations import check_annotations
from divff_nerfstudio.data.epic_diff import EpicDiffDataParserConfig
from divff_nerfstudio.data.pose_fit import require_fitting
from divff_nerfstudio.data.remarks import remarks
from divff_nerfstudio.data.scene import SceneError, SceneFolder, load_scene
from divff_nerfstudio.data.windows import MAX_OVERLAP, Windows, cut_windows
from divff_nerfstudio.evidence.labels import CHANNELS, Labels, labels
from divff_nerfstudio.features.hints.stored import open_hints
from divff_nerfstudio.features.store import HINTS, FeatureStore, ResidentStore, stores_of
from divff_nerfstudio.features.stored import StoredFeatures
from divff_nerfstudio.host_memory import return_freed_memory
from divff_nerfstudio.option_ranges import Rays
from divff_nerfstudio.pixels import FeatureTables, FrameTable, PixelBatches
from divff_nerfstudio.schema import Positive, Weight


class SceneDataset(InputDataset):
    """The frames of one split as nerfstudio's pictures, read from the scene's memory map."""

    def __init__(self, dataparser_outputs: Any, scale_factor: float = 1.0):
        super().__init__(dataparser_outputs, scale_factor)
        if "scene" not in self.metadata:
            raise SceneError("The method divff reads EPIC-Diff scenes only: choose the dataparser epic-diff.")
        self.scene: SceneFolder = self.metadata["scene"]
        self.scene_indices: Int[Tensor, "frames"] = self.metadata["indices"]

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        """One frame, (H, W, 3) uint8, at the size of its camera."""
        frame = self.scene.frame(int(self.scene_indices[image_idx]))
        size = int(self.cameras.width[image_idx]), int(self.cameras.height[image_idx])
        if size == (frame.shape[1], frame.shape[0]):
            return frame
        return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))

    def get_metadata(self, data: dict) -> dict:
        """Adds the frame's index in the scene."""
        return {"frame_index": int(self.scene_indices[data["image_idx"]])}


@dataclass
class DivFFDataManagerConfig(VanillaDataManagerConfig):
    """Options of the data manager."""

    _target: type = field(default_factory=lambda: DivFFDataManager)
    """Target class to instantiate."""
    dataparser: AnnotatedDataParserUnion = field(default_factory=EpicDiffDataParserConfig)
    """Specifies the dataparser used to unpack the data."""
    train_num_rays_per_batch: Optional[Rays] = 1024  # noqa: UP045  # pyright: ignore[reportIncompatibleVariableOverride]
    """Rays per step. None: as the method has it, settled when training starts."""
    features: Literal["all", "auto", "none"] = "all"
    """Feature targets: of all kinds, which `divff extract` must have stored for the scene; auto: of the kinds that it
    has stored; none: geometry alone is trained."""
    auto_extract: bool = False
    """Extract the features that are missing before training starts, instead of stopping."""
    extract_options: str = ""
    """Options of `divff extract` for that, quoted and with an equals sign: "--encoder=demo"."""
    feature_dir: Optional[Path] = None  # noqa: UP045
    """Folder of the feature stores, if it is not the place where `divff extract` puts them."""
    check_poses: bool = True
    """Before training, look whether points that frames share lie where the poses say."""
    contested_weight: Weight = 4.0
    """With evidence, how much more often than others those pixels are drawn for the features that show what moves, or a
    place where something else is at other times: they are few, and answers depend on them."""
    resident: Literal["auto", "on", "frames", "off"] = "auto"
    """Keep frames, what was found to move and features in the memory of the device, where batches are then drawn;
    frames: all but features; auto: on a GPU, what `resident_gib` has room for. Where features lie there, pixels are
    drawn by another generator."""
    resident_gib: Optional[Positive] = None  # noqa: UP045
    """Memory for that, in GiB. None: half of what is free."""
    windows: Annotated[int, Field(ge=1, le=1000)] = 1
    """Overlapping windows that a long video is cut into, each with moving layers of its own in one room that they
    share: for a video with more in it than one model holds. The method divff has them, and takes as many times the
    steps unless told otherwise."""
    window_overlap: Annotated[float, Field(ge=0, le=MAX_OVERLAP)] = 0.1
    """Part of a window that each of its neighbours is trained on, too."""

    # Options of nerfstudio's that have no meaning here: all frames are always at hand, at one size, for single pixels.
    train_num_images_to_sample_from: tyro.conf.Suppress[int] = -1
    train_num_times_to_repeat_images: tyro.conf.Suppress[int] = -1
    eval_num_images_to_sample_from: tyro.conf.Suppress[int] = -1
    eval_num_times_to_repeat_images: tyro.conf.Suppress[int] = -1
    eval_image_indices: tyro.conf.Suppress[Optional[tuple[int, ...]]] = (0,)  # noqa: UP045
    camera_res_scale_factor: tyro.conf.Suppress[float] = 1.0
    patch_size: tyro.conf.Suppress[int] = 1
    pixel_sampler: tyro.conf.Suppress[PixelSamplerConfig] = field(default_factory=PixelSamplerConfig)
    masks_on_gpu: tyro.conf.Suppress[bool] = False
    images_on_gpu: tyro.conf.Suppress[bool] = False

    def survey(self) -> tuple[int, bool]:
        """What a schedule depends on: the number of training pixels, and whether the scene has features.

        Raises:
            SceneError: If the scene cannot be read.
        """
        scene = load_scene(self.data or self.dataparser.data, check_frames=False)
        stored = self.features != "none" and bool(self.stored(scene).folders())
        return len(scene.splits["train"]) * scene.height * scene.width, stored

    def stored(self, scene: SceneFolder) -> StoredFeatures:
        """What there is of a scene's features."""
        return StoredFeatures(scene, self.feature_dir, self.extract_options)

    def has_hints(self) -> bool:
        """Whether the scene has hints of what moves and what is hand; not if there is no scene, which is told later."""
        root = (self.data or self.dataparser.data).resolve()
        return HINTS in stores_of(root, self.feature_dir)


class DivFFDataManager(VanillaDataManager[SceneDataset]):
    """nerfstudio's data manager without a copy of the video in memory, and with feature targets.

    Only frames of the training split are ever drawn for training, and only their features are looked up.

    Attributes:
        feature_stores: The opened stores by kind ("image", "video", "regulariser", and "hotspot" after `use_hotspots`);
            empty without features.
        feature_start_step: Training step from which on batches carry feature targets; the schedule sets it.
        windows: The video's windows, of one of which each batch is; None: it is not cut into any.
    """

    config: DivFFDataManagerConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    train_dataset: SceneDataset
    eval_dataset: SceneDataset
    train_pixel_sampler: PixelBatches | None  # pyright: ignore[reportIncompatibleVariableOverride]
    eval_pixel_sampler: PixelBatches | None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: DivFFDataManagerConfig, *args: Any, **kwargs: Any):
        self.feature_stores: dict[str, FeatureStore] = {}
        self.windows: Windows | None = None
        self._hotspots: FeatureStore | None = None
        self._uses_evidence = False
        self._hint_store: FeatureStore | None = None
        self.feature_start_step = 0
        if config.camera_res_scale_factor != 1.0:
            raise SceneError("camera-res-scale-factor must be 1: scale the scene's frames and intrinsics instead.")
        factor = getattr(config.dataparser, "downscale_factor", 1.0)
        if not 1 / 64 <= factor <= 64:
            raise SceneError(f"--downscale-factor is {factor}: give a number from 1/64 to 64.")
        self._scaled = factor != 1.0
        if self._scaled:
            config = replace(config, camera_res_scale_factor=1 / factor)
        super().__init__(config, *args, **kwargs)
        self.train_dataparser_outputs = self._train_outputs

    def create_train_dataset(self) -> SceneDataset:
        """The training frames; cuts them into windows, opens the feature stores and hands their dimensions on to the
        model."""
        dataset = super().create_train_dataset()
        if self.config.check_poses and self.test_mode == "val":
            meta = dataset.scene.root / "meta.json"
            remark = require_fitting(dataset.scene, meta, "--pipeline.datamanager.check-poses False")
            if remark is not None:
                CONSOLE.print(remark, soft_wrap=True, markup=False)
        if self.config.windows > 1:
            times = dataset.metadata["all_times"].numpy()
            self.windows = cut_windows(dataset.scene, times, self.config.windows, self.config.window_overlap)
            dataset.metadata["windows"] = self.windows
        if self.config.features != "none":
            extract = self.config.auto_extract and self.test_mode == "val"
            self.feature_stores = self.config.stored(dataset.scene).open(self.config.features == "all", extract)
            self._hotspots = self.feature_stores.pop("hotspot", None)
        dataset.metadata["feature_dims"] = {kind: store.dimension for kind, store in self.feature_stores.items()}
        return dataset

    def create_eval_dataset(self) -> SceneDataset:
        """The held-out frames.

        After this nerfstudio compares the sizes of all training cameras, one by one, which takes longer than all else
        where there are thousands; ours share one, so that it gets none to compare.
        """
        self._train_outputs = self.train_dataparser_outputs
        self.train_dataparser_outputs = None  # pyright: ignore[reportAttributeAccessIssue]
        return super().create_eval_dataset()

    def setup_train(self) -> None:
        """Prepares drawing training rays."""
        if self._scaled:  # ns-render looks at whole pictures alone
            self.train_pixel_sampler = None
            return
        rays = self.config.train_num_rays_per_batch or 0
        self.train_pixel_sampler = self._pixel_batches(self.train_dataset, rays, self._colours)  # pyright: ignore

    def setup_eval(self) -> None:
        """Prepares drawing evaluation rays and whole pictures, and finds faults in annotations before training."""
        check_annotations(self.eval_dataset.scene)
        for sentence in remarks(self.eval_dataset.scene):
            CONSOLE.print(sentence, soft_wrap=True, markup=False)
        rays = self.config.eval_num_rays_per_batch
        self.eval_pixel_sampler = None
        if not self._scaled:
            colours = FrameTable(self.eval_dataset.scene.frames, self.device, resident=False)
            self.eval_pixel_sampler = self._pixel_batches(self.eval_dataset, rays, colours)  # pyright: ignore
        self.fixed_indices_eval_dataloader = FixedIndicesEvalDataloader(self.eval_dataset, device=self.device)
        self.eval_dataloader = RandIndicesEvalDataloader(self.eval_dataset, device=self.device)

    def use_hotspots(self) -> None:
        """Adds the targets where hands meet objects, which are left out otherwise, to those of the batches.

        Raises:
            SceneError: If they are missing, or are not in the space of the video-language features.
        """
        stored = self.config.stored(self.train_dataset.scene)
        hotspots = stored.check_hotspots(self.feature_stores.get("video"), self._hotspots)
        self.feature_stores["hotspot"] = hotspots
        self.__dict__.pop("_features", None)  # tables without them

    def use_evidence(self) -> None:
        """Adds to training batches what the frames tell of what moves, see `evidence.labels`."""
        self._uses_evidence = True

    def use_hints(self) -> None:
        """Adds to training batches what was said of what moves and what is hand, see `features.hints`.

        Raises:
            SceneError: In training, if nothing was, or of other frames.
        """
        if self.test_mode == "val":
            stored = self.config.stored(self.train_dataset.scene)
            self._hint_store = open_hints(stored.scene, stored.hints, shlex.join(stored.command([HINTS])))

    @cached_property
    def _hints(self) -> FeatureTables:
        """What is said of pixels."""
        store = self._hint_store
        return FeatureTables({} if store is None else {HINTS: store}, self.device, self.resident)

    @cached_property
    def _labels(self) -> Labels | None:
        """What was found to move in the training frames, looked for when training begins."""
        if not self._uses_evidence:
            return None
        dataset, store = self.train_dataset, self.feature_stores.get("image")
        found = labels(dataset.scene, dataset.scene_indices.numpy(), store, self.device)
        return_freed_memory()  # it takes more than the training does
        return found

    @cached_property
    def _codes(self) -> FrameTable:
        """Its codes."""
        assert self._labels is not None
        return FrameTable(self._labels.codes, self.device, self._resident != "off")

    @cached_property
    def _times(self) -> Float[Tensor, "frames"]:
        """Of the training frames."""
        return self.train_dataset.metadata["times"].flatten().to(self.device)

    def _contested(self, indices: Int[Tensor, "pixels 3"]) -> Float[Tensor, "pixels"]:
        """How often pixels (camera, row, column) are to be drawn, relative to places where nothing ever happens."""
        assert self._labels is not None
        found = self._labels.contested(self._codes.pixels(*indices.unbind(-1), where=indices.device))
        return 1 + self.config.contested_weight * found

    @cached_property
    def _colours(self) -> FrameTable:
        """The scene's frames."""
        return FrameTable(self.train_dataset.scene.frames, self.device, self._resident != "off")

    @cached_property
    def _features(self) -> FeatureTables:
        """Features of the scene's frames."""
        return FeatureTables(self.feature_stores, self.device, self.resident)

    @property
    def resident(self) -> bool:
        """Whether all that training reads lies in the memory of the device, where batches are then drawn."""
        return self._resident == "on"

    @cached_property
    def _resident(self) -> Literal["on", "frames", "off"]:
        """What of it lies there.

        Where features do not, batches are drawn on the host, which looks them up while the card is still at the steps
        before.
        """
        config, scene = self.config, self.train_dataset.scene
        free = free_bytes(self.device)
        if config.resident != "auto":
            return config.resident
        if free is None:
            return "off"
        stores = [*self.feature_stores.values(), *(() if self._hotspots is None else (self._hotspots,))]
        hints = config.stored(scene).hints  # they are opened later, if at all
        features = sum(path.stat().st_size for path in hints.glob("*.npy")) + sum(map(ResidentStore.bytes_of, stores))
        frames = scene.frames.nbytes * (3 + CHANNELS) // 3
        room = free / 2 if config.resident_gib is None else min(free, config.resident_gib * 2**30)
        return "on" if frames + features <= room else "frames" if frames <= room else "off"

    def _pixel_batches(self, dataset: SceneDataset, rays: int, colours: FrameTable) -> PixelBatches:
        return PixelBatches(dataset.cameras, dataset.metadata, colours, dataset.scene_indices, rays, self.device)

    def with_features(self, step: int) -> bool:
        """Whether training batches of this step carry feature targets."""
        return bool(self.feature_stores) and step >= self.feature_start_step

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Rays of training frames.

        Returns:
            The rays (with times, nears, fars, and "camera_directions" in their metadata), and a batch of "image"
            (R x 3, 0..1), "indices" (R x 3: camera, row, column), after `use_evidence` "evidence" (R x 2: chances of
            dynamic layer and actor) and "resting" (R x 5, see `Labels.resting`), after `use_hints` "hints" (R x 2: what
            moves and what is hand, 1 yes, -1 no, 0 unknown), and, from `feature_start_step` on, "features".
        """
        assert self.train_pixel_sampler is not None
        contested = self._labels is not None and self.with_features(step) and self.config.contested_weight > 0
        where = self.device if self.resident else "cpu"
        frames = None if self.windows is None else self.windows.frames[self.windows.of_step(step)]
        rays, drawn = self.train_pixel_sampler.draw(where, self._contested if contested else None, frames)
        batch: dict[str, Any] = dict(drawn)
        camera, row, column = drawn["indices"].unbind(-1)
        in_scene = self.train_pixel_sampler.in_scene(camera)
        if self.with_features(step):
            batch["features"] = self._features.lookup(in_scene, row, column)
        if self._labels is not None:
            codes = self._codes.pixels(camera, row, column)
            batch["evidence"] = self._labels.chances(codes)
            batch["resting"] = self._labels.resting(codes, sent(camera, self.device), self._times)
        for name, (said, _) in self._hints.lookup(in_scene, row, column).items():
            batch[name] = said
        return rays, batch

    def next_eval(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Rays of evaluation frames with their colours."""
        assert self.eval_pixel_sampler is not None
        rays, batch = self.eval_pixel_sampler.draw()
        return rays, dict(batch)

    def next_eval_image(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """A random evaluation frame: its camera, and "image" (H, W, 3), "image_idx", "frame_index" (in the scene)."""
        return next(self.eval_dataloader)  # pyright: ignore[reportReturnType]
