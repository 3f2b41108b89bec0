"""What an evaluation passes around: tasks, results of a frame, scores of a scene."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from divff_nerfstudio.data.annotations import GroundTruth, LabelledMasks


@dataclass(frozen=True)
class Task:
    """A set of classes to find by their names."""

    name: str
    """Prefix of its scores: object or affordance."""
    kind: str
    """Kind of features that answers."""
    threshold: float
    """Fixed relevancy above which a pixel counts as found."""
    annotations: LabelledMasks
    """Classes and masks."""


@dataclass
class FrameResult:
    """Everything about one held-out frame; it is dropped before the next is rendered."""

    index: int
    """Index in the scene."""
    frame_id: int
    """Id in the scene."""
    target: Float[np.ndarray, "height width 3"]
    """The frame, 0..1."""
    outputs: dict[str, Float[np.ndarray, "height width channels"]]
    """The model's pictures of it."""
    nearest: Float[np.ndarray, "height width 3"]
    """The training frame next in time, 0..1."""
    moving: Bool[np.ndarray, "height width"] | None
    """Annotated mask of what moves, if it has a pixel."""
    truth: GroundTruth | None
    """What only a renderer of the scene knows, if there is one."""
    relevancies: dict[str, Float[np.ndarray, "height width classes"]] = field(default_factory=dict)
    """By name of the task, where the frame is annotated for it."""
    scores: dict[str, float] = field(default_factory=dict)
    """What this frame alone contributes."""


@dataclass
class Evaluation:
    """Scores of a scene."""

    totals: dict[str, float]
    """Scores over the held-out frames; what cannot be told is left out."""
    frames: dict[int, dict[str, float]]
    """By frame id."""
    classes: dict[str, dict[str, dict[str, float]]]
    """By task and class."""
    thresholds: dict[str, float]
    """Fixed threshold of each task."""
