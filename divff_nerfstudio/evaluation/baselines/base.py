"""What the field is held against: methods that need no field, scored on the same frames, classes and metrics.

A baseline shows pictures of a held-out frame, or scores classes in it, or both; everything else is the evaluation's.
Another one is a class derived from `Baseline`, in a file of its own, and a line in `BASELINES`.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float

from divff_nerfstudio.evaluation.baselines.models import BaselineModels
from divff_nerfstudio.evaluation.results import FrameResult, Task
from divff_nerfstudio.evaluation.trained_scene import TrainedScene
from divff_nerfstudio.plugins import plugin_class

BASELINES: dict[str, str] = {
    "nearest": "divff_nerfstudio.evaluation.baselines.stored:NearestFrame",
    "mean": "divff_nerfstudio.evaluation.baselines.stored:MeanFrame",
    "extracted": "divff_nerfstudio.evaluation.baselines.stored:ExtractedFeatures",
    "lerf": "divff_nerfstudio.evaluation.baselines.crops:CropFeatures",
    "owl": "divff_nerfstudio.evaluation.baselines.owl:OwlSam",
    "owl-real": "divff_nerfstudio.evaluation.baselines.owl:OwlSamReal",
    "ooal": "divff_nerfstudio.evaluation.baselines.ooal.baseline:OoalBaseline",
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
