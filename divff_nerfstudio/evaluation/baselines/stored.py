"""Baselines that need no model: frames of the training split, and the features that were extracted."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float

from divff_nerfstudio.data.annotations import resize_nearest
from divff_nerfstudio.evaluation.baselines.base import Baseline
from divff_nerfstudio.evaluation.results import FrameResult, Task
from divff_nerfstudio.features.store import NO_FEATURE


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
