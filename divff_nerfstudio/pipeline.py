"""nerfstudio's pipeline with the query, its panel, and scores that sum over a scene."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional

import numpy as np
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from divff_nerfstudio.card import is_card, matrix_products
from divff_nerfstudio.checkpoints import CheckpointError, require_sound
from divff_nerfstudio.datamanager import DivFFDataManager, DivFFDataManagerConfig
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.pca import fit_feature_basis
from divff_nerfstudio.features.text import text_encoder
from divff_nerfstudio.host_memory import keep_freed_memory
from divff_nerfstudio.models.base import LOGGED, LayeredModel, LayeredModelConfig
from divff_nerfstudio.models.divff import DivFFModelConfig
from divff_nerfstudio.models.separation import SeparationConfig
from divff_nerfstudio.option_ranges import check_config
from divff_nerfstudio.query import QueryConfig, build_query
from divff_nerfstudio.render_options import (
    check_eval_options,
    check_render_options,
    check_viewer_options,
    outputs_to_render,
    path_to_render,
)
from divff_nerfstudio.training_folder import TrainingError
from divff_nerfstudio.viewer.camera_paths import positions_of
from divff_nerfstudio.viewer.camera_reach import require_in_reach
from divff_nerfstudio.viewer.panel import QueryPanel
from divff_nerfstudio.viewer.presets import scene_presets
from divff_nerfstudio.viewer.views import Visibility

if TYPE_CHECKING:
    from divff_nerfstudio.calibration import Calibration
    from divff_nerfstudio.evaluation.door import Scene
    from divff_nerfstudio.evaluation.trained_scene import TrainedScene

MAX_UNASKED = 2000
"""Frames of a video up to which a viewer renders all of them to find things, without being asked to."""
_POSES = "_model.train_poses"
_OF_SCENE = (("times", "ids"), ("nears", "nears"), ("fars", "fars"), ("poses", "poses"), ("windows", "windows"))
"""What a checkpoint has of its scene, and what it is called in words."""
_SLACK = 1e-4
"""How far values of a scene may be apart, over the largest of them, and count as the same."""


@dataclass
class DivFFPipelineConfig(VanillaPipelineConfig):
    """Options of the pipeline."""

    _target: type = field(default_factory=lambda: DivFFPipeline)
    """target class to instantiate"""
    datamanager: DivFFDataManagerConfig = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default_factory=DivFFDataManagerConfig
    )
    """specifies the datamanager config"""
    model: LayeredModelConfig = field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default_factory=DivFFModelConfig
    )
    """specifies the model config"""
    query: QueryConfig = field(default_factory=QueryConfig)
    """what is asked of the scene, in the viewer at first and in ns-render"""


class DivFFPipeline(VanillaPipeline):
    """Data, model, query and panel of one scene.

    Attributes:
        query: What is asked of the scene; its answers are the model's last outputs.
        panel: The viewer's elements.
    """

    config: DivFFPipelineConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    datamanager: DivFFDataManager  # pyright: ignore[reportIncompatibleVariableOverride]
    model: LayeredModel  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(
        self,
        config: DivFFPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Optional[GradScaler] = None,  # noqa: UP045
    ):
        check_config(config, "pipeline.")
        if config.datamanager.windows > 1 and not config.model.windowed:
            raise TrainingError(
                f"Of this method's models ({type(config.model).__name__}) one has to hold the whole video: leave "
                "--pipeline.datamanager.windows out, or train the method divff."
            )
        if test_mode != "val":
            check_render_options(sys.argv)
            check_eval_options(sys.argv)
            check_viewer_options(sys.argv)
        if not is_card(device):
            keep_freed_memory()
        super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)  # pyright: ignore
        if config.model.hotspot_weight > 0 and test_mode == "val":
            self.datamanager.use_hotspots()
        if isinstance(config.model, SeparationConfig) and config.model.evidence == "on":
            self.datamanager.use_evidence()
        if isinstance(config.model, SeparationConfig) and config.model.hints == "on":
            self.datamanager.use_hints()
        stores = self.datamanager.feature_stores
        self.datamanager.feature_start_step = self.model.schedule.heads_start_step
        self.query = build_query(config.query, stores, text_encoder)
        self.model.query = self.query
        if "image" in stores and len(stores["image"].table) > 0:
            self.model.feature_basis = fit_feature_basis(stores["image"].table)
        scene = self.datamanager.train_dataset.scene
        if test_mode != "val":
            self.model.read_outputs = outputs_to_render(sys.argv)
            if (path := path_to_render(sys.argv)) is not None:
                require_in_reach(path, positions_of(path), scene)
        rows = config.datamanager.dataparser.time_rows  # pyright: ignore[reportAttributeAccessIssue]
        self.panel = QueryPanel(
            self.query,
            Visibility(),
            scene.frame_ids,
            scene.times(rows),
            scene.camera_to_worlds,
            float(2 * np.arctan(scene.height / 2 / scene.intrinsics[1, 1])),
            presets=lambda: scene_presets(scene, config.query.presets),
            calibrate=self._calibration,
            things=self._scene_of_things,
        )

    @cached_property
    def _trained(self) -> TrainedScene:
        """This scene as evaluation sees it."""
        from divff_nerfstudio.evaluation.trained_scene import TrainedScene

        return TrainedScene(self.model, self.datamanager, self.query)

    def _calibration(self, kind: str) -> Calibration | None:
        """What fits answers of a kind of features to the scene, if there is something."""
        return self._trained.calibration(kind)

    def _scene_of_things(self, load_config: Path, looked: Callable[[int, int], None]) -> Scene:
        """This scene as `open_run` gives it; what it renders is kept beside the run's config.yml, if that is there.

        Raises:
            DivffError: If that would take long, which a viewer does not do unasked.
        """
        from divff_nerfstudio.evaluation.door import Scene, kept_beside

        kept = kept_beside(load_config, self.model.step) if load_config.is_file() else None
        frames = len(self._trained.scene)
        if frames > MAX_UNASKED and not (kept is not None and kept.is_file()):
            command = shlex.join(["divff", "objects", "--load-config", str(load_config)])
            raise DivffError(
                f"To find the things of {frames} frames, all are rendered: run `{command}` once, and the panel knows "
                "them from then on."
            )
        return Scene(self._trained, kept, looked)

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Losses of a step, at its place in the schedule."""
        return self.model.training_step(*self.drawn(step))

    def drawn(self, step: int) -> tuple[Any, dict[str, Any]]:
        """What a step is taken on, drawn at its place in the schedule, which the model takes.

        In single precision also where steps are not: TF32 turns rays by parts of a pixel, and evidence is kept.
        """
        self.model.update_to_step(step)
        with matrix_products("highest"):
            return self.datamanager.next_train(step)

    def get_eval_image_metrics_and_images(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """PSNR of a held-out frame, and pictures of it to log: these alone are rendered."""
        self.eval()
        camera, batch = self.datamanager.next_eval_image(step)
        view = self.model.render(camera, outputs=LOGGED)
        metrics, pictures = self.model.get_image_metrics_and_images(view.pictures, batch)
        self.train()
        return {**metrics, "num_rays": view.height * view.width}, pictures

    def get_average_eval_image_metrics(
        self,
        step: Optional[int] = None,  # noqa: UP045
        output_path: Optional[Path] = None,  # noqa: UP045
        get_std: bool = False,
    ) -> dict[str, float]:
        """Scores over the held-out frames, counts summed over the scene, finite numbers only."""
        from divff_nerfstudio.evaluation.run import evaluate_scene

        self.eval()
        scores = evaluate_scene(self.model, self.datamanager, self.query, output_path, get_std)
        self.train()
        return scores

    def load_pipeline(self, loaded_state: Mapping[str, Any], step: int) -> None:
        """Loads a checkpoint's weights, all of them and no others.

        One of geometry alone stays that, even where the scene has got features since.

        Raises:
            CheckpointError: If names, shapes or types of numbers differ from those of this configuration and scene, or
                a value is not finite.
        """
        state = {self._present_name(key): value for key, value in loaded_state.items()}
        require_sound(state, self.state_dict())
        if len(state) < len(loaded_state):
            raise CheckpointError("The checkpoint holds a weight twice, by two of its names: take another one.")
        if self.model.semantic is not None and not any("_model.semantic." in key for key in state):
            if self.test_mode == "val" and self.model.heads_begin_on_loaded_geometry:
                CONSOLE.print("The checkpoint holds geometry alone, so the semantic heads begin anew.")
                state |= {key: value for key, value in self.state_dict().items() if "_model.semantic." in key}
            else:
                CONSOLE.print("The checkpoint was trained before the scene had features, so it is opened without them.")
                self.model.semantic = None
        state = {**self._scene_of_older_checkpoints(state), **state}
        self.model.make_room({key.removeprefix("_model."): value for key, value in state.items()})
        own = self.state_dict()
        wrong = sorted(state.keys() ^ own.keys()) + sorted(
            key for key in state.keys() & own.keys() if getattr(state[key], "shape", None) != own[key].shape
        )
        if wrong:
            what = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
            hint = " (the scene's features are missing or others: see `divff extract`)" if _semantic(wrong) else ""
            raise CheckpointError(
                f"The checkpoint does not fit this configuration and scene: {what} differ{hint}; "
                f"{self._otherwise(state, own)}."
            )
        self._require_same_scene(state, own)
        self.model.update_to_step(step)
        self.load_state_dict(dict(state), strict=True)

    @staticmethod
    def _otherwise(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
        """What to do where a checkpoint does not fit."""
        if len(state.keys() & own.keys()) < len(own) / 2:
            return "it is of another method or of other options: use the config.yml beside it (--load-config)"
        return "use the config.yml that was written beside it (--load-config), or the options that it was trained with"

    def _present_name(self, key: str) -> str:
        """Name of a parameter in this version, whether it was trained on one card or several."""
        if not isinstance(key, str):  # it is refused with the other faults
            return key
        above, _, name = key.replace("module.", "").rpartition(".")
        return f"{above}.{self.model.former_parameters.get(name, name)}" if above else name

    def _scene_of_older_checkpoints(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The training frames' poses, for checkpoints that were written before they held them."""
        return {key: value for key, value in self.state_dict().items() if key == _POSES and key not in state}

    def _require_same_scene(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        """Refuses a checkpoint of other training frames: their times, nears, fars and poses are in it."""
        wrong = []
        for name, what in _OF_SCENE:
            kept, expected = state.get(f"_model.train_{name}"), own.get(f"_model.train_{name}")
            if kept is None or expected is None or kept.numel() == 0:
                continue
            kept, slack = kept.to(expected), _SLACK * max(float(expected.abs().max()), 1e-30)
            if float((kept - expected).abs().max()) > slack:
                wrong.append(what)
        if wrong:
            scene = self.datamanager.train_dataset.scene.root
            raise CheckpointError(
                f"The checkpoint was trained on a scene with other {' and '.join(wrong)} than {scene}: give the scene "
                "that it was trained on (--data), or train this one from the start."
            )


def _semantic(names: list[str]) -> bool:
    return all("semantic" in name for name in names)
