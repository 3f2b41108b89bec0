"""The scores that are told of a scene, each with name, unit and meaning: a new one is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from divff_nerfstudio.evaluation import metrics
from divff_nerfstudio.evaluation.results import FrameResult


@dataclass(frozen=True)
class Score:
    """What a number is called and means."""

    title: str
    """Short name for tables."""
    unit: str
    """Its unit, if it has one."""
    meaning: str
    """What it says, in a few words."""


@dataclass(frozen=True)
class FrameScore(Score):
    """A score of a single frame; that of the scene is the mean over the frames that have it."""

    compute: Callable[[FrameResult], float | None]
    """Computes it; None where the frame has none."""


def psnr(result: FrameResult) -> float | None:
    """PSNR of the rendered frame."""
    return metrics.psnr(result.outputs["rgb"], result.target)


def ssim(result: FrameResult) -> float | None:
    """SSIM of the rendered frame."""
    return metrics.ssim(result.outputs["rgb"], result.target)


def psnr_nearest_frame(result: FrameResult) -> float | None:
    """PSNR of the training frame next in time (the earlier of two), which any model should exceed."""
    return metrics.psnr(result.nearest, result.target)


def moving_ap(result: FrameResult) -> float | None:
    """AP of the moving mask against the annotation; a frame whose annotation is empty has none."""
    return None if result.moving is None else _mask_ap(result, "moving", result.moving)


def moving_ap_ever(result: FrameResult) -> float | None:
    """AP of the moving mask against ground truth in which objects count before they first move, too."""
    return None if result.truth is None else _mask_ap(result, "moving", result.truth.layers_ever(result.index) > 0)


def dynamic_ap(result: FrameResult) -> float | None:
    """AP of the dynamic layer's mask against the objects that are, or have been, moved."""
    return None if result.truth is None else _mask_ap(result, "dynamic", result.truth.layers(result.index) == 1)


def dynamic_ap_ever(result: FrameResult) -> float | None:
    """AP of the dynamic layer's mask against all objects that are moved at any time."""
    return None if result.truth is None else _mask_ap(result, "dynamic", result.truth.layers_ever(result.index) == 1)


def actor_ap(result: FrameResult) -> float | None:
    """AP of the actor layer's mask against the camera wearer."""
    return None if result.truth is None else _mask_ap(result, "actor", result.truth.layers(result.index) == 2)


def psnr_static_room(result: FrameResult) -> float | None:
    """PSNR of the static layer alone against the room without objects and actor, where that was rendered."""
    room = None if result.truth is None else result.truth.clean_room(result.index)
    return None if room is None else metrics.psnr(result.outputs["rgb_static"], room / 255.0)


def frame_scores(result: FrameResult) -> dict[str, float]:
    """All scores that a frame has, by name."""
    scores = {name: score.compute(result) for name, score in FRAME_SCORES.items()}
    return {name: score for name, score in scores.items() if score is not None}


def _mask_ap(result: FrameResult, layer: str, truth: Bool[np.ndarray, "height width"]) -> float | None:
    return metrics.average_precision(result.outputs[f"mask_{layer}"][..., 0], truth)


FRAME_SCORES: dict[str, FrameScore] = {
    "psnr": FrameScore("PSNR", "dB", "whole test frames", psnr),
    "psnr_nearest_frame": FrameScore(
        "PSNR, nearest frame", "dB", "copying the training frame next in time", psnr_nearest_frame
    ),
    "ssim": FrameScore("SSIM", "", "structural similarity of whole test frames", ssim),
    "moving_ap": FrameScore("Moving mask", "AP", "everything that moves, against the annotation", moving_ap),
    "moving_ap_ever": FrameScore(
        "Moving mask, ever", "AP", "objects count before they first move, too", moving_ap_ever
    ),
    "dynamic_ap": FrameScore("Dynamic layer", "AP", "its mask against moved objects alone", dynamic_ap),
    "dynamic_ap_ever": FrameScore(
        "Dynamic layer, ever", "AP", "objects count before they first move, too", dynamic_ap_ever
    ),
    "actor_ap": FrameScore("Actor layer", "AP", "its mask against the camera wearer alone", actor_ap),
    "psnr_static_room": FrameScore(
        "Static room", "dB", "static layer against the room without objects and actor", psnr_static_room
    ),
}
"""By the name that ``ns-eval`` writes."""

SCENE_SCORES: dict[str, Score] = {
    "object_ap": Score("Objects", "AP", "image features, no threshold, mean over classes"),
    "object_miou": Score("Objects, published", "mIoU", "at the fixed threshold; a class is asked only where annotated"),
    "object_miou_sound": Score(
        "Objects, sound", "mIoU", "at the fixed threshold; every class in every annotated frame"
    ),
    "object_miou_oracle": Score(
        "Objects, oracle", "mIoU", "threshold tuned on these frames: an upper bound, no result"
    ),
    "affordance_ap": Score("Affordances", "AP", "video features, no threshold, mean over queries"),
    "affordance_miou": Score("Affordances, published", "mIoU", "at the fixed threshold, asked only where annotated"),
    "affordance_miou_sound": Score("Affordances, sound", "mIoU", "every query in every annotated frame"),
    "affordance_miou_oracle": Score("Affordances, oracle", "mIoU", "threshold tuned on these frames: no result"),
}
"""Scores over all annotated frames together, see `metrics.ClassScores`."""
