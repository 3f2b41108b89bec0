"""What the field is held against: methods that need no field, scored on the same frames, classes and metrics.

A baseline shows pictures of a held-out frame, or scores classes in it, or both; everything else is the evaluation's.
Another one is a class derived from `Baseline`, in a file of its own, and a line in `BASELINES`.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float

from divff_nerfstudio.data.annotations import resize_nearest
from divff_nerfstudio.evaluation.baseline_models import BaselineModels
from divff_nerfstudio.evaluation.results import FrameResult, Task
from divff_nerfstudio.evaluation.trained_scene import TrainedScene
from divff_nerfstudio.features.store import NO_FEATURE
from divff_nerfstudio.plugins import plugin_class

BASELINES: dict[str, str] = {
    "nearest": f"{__name__}:NearestFrame",
    "mean": f"{__name__}:MeanFrame",
    "extracted": f"{__name__}:ExtractedFeatures",
    "lerf": "divff_nerfstudio.evaluation.crops:CropFeatures",
    "owl": "divff_nerfstudio.evaluation.owl:OwlSam",
    "owl-real": "divff_nerfstudio.evaluation.owl:OwlSamReal",
    "ooal": "divff_nerfstudio.evaluation.ooal.baseline:OoalBaseline",
}
"""Where the class of each baseline is; it is imported when it is asked for."""


class Baseline(ABC):
    """A method that is scored beside the field.

    Args:
        trained: The scene; its training frames may be looked at.
        models: Options of baselines with models of their own; None: the defaults.
    """

    title: ClassVar[str]
    """What it does, in a few words, for tables."""
    sees_frame: ClassVar[bool] = False
    """Whether it looks at the held-out frame itself, as no method that renders it can."""

    def __init__(self, trained: TrainedScene, models: BaselineModels | None = None):
        self.trained, self.models = trained, models or BaselineModels()

    @property
    def device(self) -> torch.device:
        """Device to compute on."""
        return torch.device(self.trained.datamanager.device)

    def prepare(self, tasks: Mapping[str, Task]) -> None:  # noqa: B027
        """Loads what the tasks need, before the first frame is rendered.

        Args:
            tasks: What `relevancies` will be asked, by name.
        """

    def outputs(self, result: FrameResult) -> dict[str, Float[np.ndarray, "height width channels"]]:
        """Pictures of a held-out frame under the model's names, "rgb" and "mask_moving" for instance.

        Args:
            result: The frame as the field shows it: `target` is the frame itself, `outputs["rgb"]` its rendering.
        """
        return {}

    def relevancies(self, result: FrameResult, task: Task) -> Float[np.ndarray, "height width classes"] | None:
        """Scores of a task's classes in a held-out frame, in [0, 1]; None if the baseline has none.

        Args:
            result: As for `outputs`.
            task: Its `annotations.names` are what to look for; its masks are not to be looked at.
        """
        return None


def at_threshold(scores: Float[np.ndarray, "*shape"], own: float, fixed: float) -> Float[np.ndarray, "*shape"]:
    """Scores stretched so that a method's own threshold lies where the evaluation has its fixed one.

    The order of scores stays, so that nothing changes that no threshold enters.

    Args:
        scores: In [0, 1].
        own: The method's threshold, inside (0, 1).
        fixed: The evaluation's, inside (0, 1).
    """
    return np.interp(scores, (0.0, own, 1.0), (0.0, fixed, 1.0)).astype(np.float32)


def load_baseline(name: str, trained: TrainedScene, models: BaselineModels | None = None) -> Baseline:
    """The baseline of a registered name, or of a class given as ``module:Class``; see `Baseline`.

    Raises:
        DivffError: If there is none.
    """
    return plugin_class(name, Baseline, "baseline", BASELINES)(trained, models)


class _Stored(Baseline):
    """What the extracted features of a frame answer, with no field between."""

    def stored_relevancies(self, frame: int, task: Task) -> Float[np.ndarray, "height width classes"] | None:
        """Relevancies from the feature store at one frame's index; 0 where it has no feature."""
        store = self.trained.stores.get(task.kind)
        if store is None or task.kind not in self.trained.query.kinds:
            return None
        index, table = store.frame_features(frame)
        scores = self.trained.query.relevancies(torch.from_numpy(table), task.kind, task.annotations.names).numpy()
        scores = np.concatenate((scores, np.zeros_like(scores[:1])))
        index = np.where(index == NO_FEATURE, len(table), index)
        return scores[resize_nearest(index, self.trained.scene.height, self.trained.scene.width)]


class ExtractedFeatures(_Stored):
    """Relevancies of the frame's own extracted features: what was distilled, before it was."""

    title = "2D features of the frame itself"
    sees_frame = True

    def relevancies(self, result: FrameResult, task: Task) -> Float[np.ndarray, "height width classes"] | None:
        """Those of the frame."""
        return self.stored_relevancies(result.index, task)


class MeanFrame(_Stored):
    """The mean of all training frames; what varies between them moves."""

    title = "mean of all training frames"

    @cached_property
    def statistics(self) -> tuple[Float[np.ndarray, "height width 3"], Float[np.ndarray, "height width 1"]]:
        """Mean of the training frames, 0..1, and the standard deviation of a pixel, mean over the colours."""
        scene = self.trained.scene
        total = np.zeros((scene.height, scene.width, 3))
        squares = np.zeros_like(total)
        for index in self.trained.trained:
            frame = scene.frame(index) / 255.0
            total += frame
            squares += frame**2
        mean = total / len(self.trained.trained)
        deviation = np.sqrt(np.maximum(squares / len(self.trained.trained) - mean**2, 0))
        return mean.astype(np.float32), deviation.mean(-1, keepdims=True).astype(np.float32)

    def outputs(self, result: FrameResult) -> dict[str, Float[np.ndarray, "height width channels"]]:
        """The mean, and the deviation as moving mask."""
        mean, deviation = self.statistics
        return {"rgb": mean, "mask_moving": deviation}

    def relevancies(self, result: FrameResult, task: Task) -> Float[np.ndarray, "height width classes"] | None:
        """Mean of the relevancies of all training frames' features."""
        if task.name not in self._means:
            total, frames = None, self.trained.trained
            for index in frames:
                scores = self.stored_relevancies(index, task)
                if scores is None:
                    return None
                total = scores / len(frames) if total is None else total + scores / len(frames)
            self._means[task.name] = total
        return self._means[task.name]

    @cached_property
    def _means(self) -> dict[str, Float[np.ndarray, "height width classes"] | None]:
        return {}


class NearestFrame(_Stored):
    """A copy of the training frame next in time; where it differs from the mean of all, something moves."""

    title = "copy of the nearest training frame"

    @cached_property
    def _mean(self) -> Float[np.ndarray, "height width 3"]:
        return MeanFrame(self.trained).statistics[0]

    def outputs(self, result: FrameResult) -> dict[str, Float[np.ndarray, "height width channels"]]:
        """The copy, and its difference from the mean as moving mask."""
        return {"rgb": result.nearest, "mask_moving": np.abs(result.nearest - self._mean).mean(-1, keepdims=True)}

    def relevancies(self, result: FrameResult, task: Task) -> Float[np.ndarray, "height width classes"] | None:
        """Those of the copied frame's features."""
        return self.stored_relevancies(self.trained.nearest_trained(result.index), task)
