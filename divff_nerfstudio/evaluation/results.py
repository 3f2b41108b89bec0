"""What an evaluation passes around: tasks, results of a frame, scores of a scene."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, UInt8

from divff_nerfstudio.data.annotations import GroundTruth, LabelledMasks
from divff_nerfstudio.evaluation.classes import ClassTable


@dataclass(frozen=True)
class Task:
    """A set of classes to find by their names."""

    name: str
    """Prefix of its scores: object or affordance; behind it _image or _video where not the usual features answer."""
    group: str
    """What is asked for: objects or affordances."""
    kind: str
    """Kind of features that answers."""
    threshold: float
    """Fixed relevancy above which a pixel counts as found."""
    annotations: LabelledMasks
    """Classes and masks."""

    @property
    def usual(self) -> bool:
        """Whether the features are those that DIV-FF asks for it: image for objects, video for affordances."""
        return "_" not in self.name


@dataclass
class FrameResult:
    """Everything about one held-out frame as one method shows it; it is dropped before the next is rendered."""

    index: int
    """Index in the scene."""
    frame_id: int
    """Id in the scene."""
    target: Float[np.ndarray, "height width 3"]
    """The frame, 0..1."""
    outputs: dict[str, Float[np.ndarray, "height width channels"]]
    """The method's pictures of it, by the model's names."""
    nearest: Float[np.ndarray, "height width 3"]
    """The training frame next in time, 0..1."""
    moving: Bool[np.ndarray, "height width"] | None
    """Annotated mask of what moves, if it has a pixel."""
    truth: GroundTruth | None
    """What only a renderer of the scene knows, if there is one."""
    relevancies: dict[str, Float[np.ndarray, "height width classes"]] = field(default_factory=dict)
    """By name of the task, where the frame is annotated for it."""
    masks: dict[str, Bool[np.ndarray, "height width classes"]] = field(default_factory=dict)
    """By name of the task, what belongs to each class at thresholds that fit the scene, where these are known."""
    shown: dict[tuple[str, str], Float[np.ndarray, "height width"]] = field(default_factory=dict)
    """Relevancy of phrases that nobody has annotated, by kind of features and phrase."""
    scores: dict[str, float] = field(default_factory=dict)
    """What this frame alone contributes."""
    classes: dict[str, ClassTable] = field(default_factory=dict)
    """By task, what this frame alone says of each class."""


@dataclass
class ViewScores:
    """What a task says that looks at the scene from other viewpoints or at other times than the frames'."""

    totals: dict[str, float]
    """Scores by full name; nothing where the scene has nothing to ask."""
    classes: ClassTable
    """Scores of each class."""
    figures: dict[str, UInt8[np.ndarray, "height width 3"]] = field(default_factory=dict)
    """Pictures by name."""
    frames: dict[int, ClassTable] = field(default_factory=dict)
    """By frame id, what it says of each class, where the task looks at frames."""


@dataclass
class Evaluation:
    """Scores of a scene by one method."""

    totals: dict[str, float]
    """Scores over the held-out frames; what cannot be told is left out."""
    frames: dict[int, dict[str, float]]
    """By frame id."""
    classes: dict[str, ClassTable]
    """By task and class."""
    thresholds: dict[str, float]
    """Fixed threshold of each task."""
    frame_classes: dict[int, dict[str, ClassTable]] = field(default_factory=dict)
    """By frame id, task and class."""
    thresholds_left_out: dict[str, dict[int, float]] = field(default_factory=dict)
    """By task and frame id, the threshold that is best for the other frames."""
    baselines: dict[str, Evaluation] = field(default_factory=dict)
    """The same of other methods, on the same frames and classes."""


def mean_scores(scored: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each score over the frames or classes that have it.

    Args:
        scored: Scores by name, of each frame or class.
    """
    every = tuple(scored)
    names = dict.fromkeys(name for scores in every for name in scores)
    return {name: float(np.mean([scores[name] for scores in every if name in scores])) for name in names}
