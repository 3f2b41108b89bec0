"""The scores that are told of a scene, each with name, unit and meaning: a new one is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from divff_nerfstudio.evaluation import metrics
from divff_nerfstudio.evaluation.results import FrameResult

_PAIRS = "pairs"


@dataclass(frozen=True)
class Score:
    """What a number is called and means."""

    title: str
    """Short name for tables."""
    unit: str
    """Its unit, if it has one."""
    meaning: str
    """What it says, in a few words."""

    def told(self, value: float) -> str:
        """A value of it with its unit: two decimals, none where things are counted."""
        return f"{value:.{0 if self.unit == _PAIRS else 2}f} {self.unit}".strip()


@dataclass(frozen=True)
class FrameScore(Score):
    """A score of a single frame; that of the scene is the mean over the frames that have it."""

    compute: Callable[[FrameResult], float | None]
    """Computes it; None where the frame has none."""
    reads: tuple[str, ...] = ("rgb",)
    """The pictures of the view that it looks at."""


class AnnotatedScore(FrameScore):
    """A score that frames without annotation and ground truth do not have: for these, nothing is rendered for it."""


def psnr(result: FrameResult) -> float | None:
    """PSNR of the picture."""
    return _picture(result, metrics.psnr)


def psnr_published(result: FrameResult) -> float | None:
    """PSNR of the picture, of the frames that count for the moving mask: those whose annotation is not empty."""
    return None if result.moving is None else psnr(result)


def psnr_static(result: FrameResult) -> float | None:
    """PSNR over the pixels that the annotation does not mark as moving."""
    return None if result.moving is None else _picture(result, metrics.psnr, ~result.moving)


def psnr_moving(result: FrameResult) -> float | None:
    """PSNR over the pixels that the annotation marks as moving."""
    return None if result.moving is None else _picture(result, metrics.psnr, result.moving)


def ssim(result: FrameResult) -> float | None:
    """SSIM of the picture."""
    return _picture(result, metrics.ssim)


def lpips(result: FrameResult) -> float | None:
    """LPIPS of the picture, where its weights are at hand."""
    return _picture(result, metrics.lpips)


def psnr_nearest_frame(result: FrameResult) -> float | None:
    """PSNR of the training frame next in time (the earlier of two), which any model should exceed."""
    return metrics.psnr(result.nearest, result.target)


def moving_ap(result: FrameResult) -> float | None:
    """AP of the moving mask, without what is yet to be moved, against the annotation, which counts objects from their
    first move on; a frame whose annotation is empty has none."""
    return None if result.moving is None else _mask_ap(result, "moving", result.moving, moved=True)


def moving_ap_ever(result: FrameResult) -> float | None:
    """AP of the moving mask against ground truth in which objects count before they first move, too."""
    return None if result.truth is None else _mask_ap(result, "moving", result.truth.layers_ever(result.index) > 0)


def dynamic_ap(result: FrameResult) -> float | None:
    """AP of the dynamic layer's mask, without what is yet to be moved, against the objects that are, or have been,
    moved."""
    if result.truth is None:
        return None
    return _mask_ap(result, "dynamic", result.truth.layers(result.index) == 1, moved=True)


def dynamic_ap_ever(result: FrameResult) -> float | None:
    """AP of the dynamic layer's mask against all objects that are moved at any time."""
    return None if result.truth is None else _mask_ap(result, "dynamic", result.truth.layers_ever(result.index) == 1)


def actor_ap(result: FrameResult) -> float | None:
    """AP of the actor layer's mask against the camera wearer."""
    return None if result.truth is None else _mask_ap(result, "actor", result.truth.layers(result.index) == 2)


def psnr_static_room(result: FrameResult) -> float | None:
    """PSNR of the static layer alone against the room without objects and actor, where that was rendered."""
    room = None if result.truth is None else result.truth.clean_room(result.index)
    if room is None or "rgb_static" not in result.outputs:
        return None
    return metrics.psnr(result.outputs["rgb_static"], room / 255.0)


def frame_scores(result: FrameResult) -> dict[str, float]:
    """All scores that a frame has, by name."""
    scores = {name: score.compute(result) for name, score in FRAME_SCORES.items()}
    return {name: score for name, score in scores.items() if score is not None}


def scored_pictures(annotated: bool) -> set[str]:
    """The pictures of a view that the scores of its frame look at.

    Args:
        annotated: Whether the frame is annotated, or there is ground truth of it.
    """
    scores = (each for each in FRAME_SCORES.values() if annotated or not isinstance(each, AnnotatedScore))
    return {name for each in scores for name in each.reads}


def _picture(result: FrameResult, metric: Callable[..., float | None], *where: np.ndarray) -> float | None:
    """A metric of the picture, where the method shows one."""
    return metric(result.outputs["rgb"], result.target, *where) if "rgb" in result.outputs else None


def _mask_ap(
    result: FrameResult, layer: str, truth: Bool[np.ndarray, "height width"], moved: bool = False
) -> float | None:
    """AP of a mask; with `moved` what the method takes to be yet to be moved is left out of it."""
    outputs = result.outputs
    mask = outputs.get(f"mask_{layer}")
    if mask is None:
        return None
    if moved and "mask_moved" in outputs:
        mask = mask - (outputs["mask_dynamic"] - outputs["mask_moved"])
    return metrics.average_precision(mask[..., 0], truth)


_MOVED = ("mask_moving", "mask_dynamic", "mask_moved")

FRAME_SCORES: dict[str, FrameScore] = {
    "psnr": FrameScore("PSNR", "dB", "whole test frames", psnr),
    "psnr_nearest_frame": FrameScore(
        "PSNR, nearest frame", "dB", "copying the training frame next in time", psnr_nearest_frame, ()
    ),
    "psnr_static": FrameScore("PSNR, static pixels", "dB", "pixels that nothing moves in", psnr_static),
    "psnr_moving": FrameScore("PSNR, moving pixels", "dB", "pixels annotated as moving", psnr_moving),
    "psnr_published": FrameScore(
        "PSNR, published", "dB", "whole frames, of those whose moving mask is not empty", psnr_published
    ),
    "ssim": FrameScore("SSIM", "", "structural similarity of whole test frames", ssim),
    "lpips": FrameScore("LPIPS", "", "perceptual distance (AlexNet), the less the better", lpips),
    "moving_ap": AnnotatedScore(
        "Moving mask", "AP", "everything that moves, against the annotation", moving_ap, _MOVED
    ),
    "moving_ap_ever": AnnotatedScore(
        "Moving mask, ever", "AP", "objects count before they first move, too", moving_ap_ever, ("mask_moving",)
    ),
    "dynamic_ap": AnnotatedScore("Dynamic layer", "AP", "its mask against moved objects alone", dynamic_ap, _MOVED),
    "dynamic_ap_ever": AnnotatedScore(
        "Dynamic layer, ever", "AP", "objects count before they first move, too", dynamic_ap_ever, ("mask_dynamic",)
    ),
    "actor_ap": AnnotatedScore(
        "Actor layer", "AP", "its mask against the camera wearer alone", actor_ap, ("mask_actor",)
    ),
    "psnr_static_room": AnnotatedScore(
        "Static room",
        "dB",
        "static layer against the room without objects and actor",
        psnr_static_room,
        ("rgb_static",),
    ),
}
"""By the name that ``ns-eval`` writes."""

TASK_TITLES = {
    "object": ("Objects", "image features"),
    "object_video": ("Objects by video", "video features, as the published code"),
    "affordance": ("Affordances", "video features"),
    "affordance_image": ("Affordances by image", "image features"),
    "surroundings": ("Surroundings", "static classes where the frame's camera does not look"),
}
"""Tasks of `ClassScores` by name: title, and what answers."""
_CLASS_SCORES = {
    "ap": ("", "AP", "no threshold; every class in every annotated frame, mean over classes"),
    "ap_published": (", published", "AP", "no threshold; asked only where annotated, never annotated is 0"),
    "miou": (
        ", published",
        "mIoU",
        "at the fixed threshold; asked only where annotated, never annotated is 0",
    ),
    "miou_sound": (", sound", "mIoU", "at the fixed threshold; every class in every annotated frame"),
    "miou_auto": (
        ", fitted",
        "mIoU",
        "in every annotated frame, at thresholds that fit the scene, found without annotations",
    ),
    "miou_loo": (
        ", left out",
        "mIoU",
        "in every annotated frame, at the threshold that is best for the others",
    ),
    "miou_oracle": (", oracle", "mIoU", "threshold tuned on these frames: an upper bound, no result"),
}

SCENE_SCORES: dict[str, Score] = {
    f"{task}_{key}": Score(title + ending, unit, f"{features}; {meaning}")
    for task, (title, features) in TASK_TITLES.items()
    for key, (ending, unit, meaning) in _CLASS_SCORES.items()
} | {
    "consistency_iou": Score("Over time", "IoU", "masks of static classes from one viewpoint, between times"),
    "consistency_soft_iou": Score("Over time, soft", "IoU", "the same of relevancy above one half, no threshold"),
    "consistency_found": Score("Over time, found", "", "share of times at which a static class has a mask at all"),
    "moved_object_ap": Score(
        "Moved objects", "AP", "dynamic layer near each moved object, after its first move; mean over objects"
    ),
    "moved_object_pairs": Score("Moved objects, after", _PAIRS, "objects in held-out frames that this is of"),
    "moved_object_ap_before": Score("Moved objects, before", "AP", "the same before the object's first move"),
    "moved_object_pairs_before": Score("Moved objects, before", _PAIRS, "objects in held-out frames that this is of"),
    "moved_found": Score("Found at its place", "", "share of pairs in which the phrase wins where the object is"),
    "moved_found_shown": Score("Found, actor shown", "", "the same from the frame's own camera, with the actor drawn"),
    "moved_gone": Score("Gone from old places", "", "share of pairs in which others win where it rested before"),
    "moved_found_and_gone": Score("Found and gone", "", "share of pairs in which both is so"),
    "moved_asked_pairs": Score("Found and gone, of", _PAIRS, "objects in held-out frames that this is of"),
    "moved_point_error_cm": Score(
        "Error of the point",
        "cm",
        "median distance of the answer's point to the object's true box",
    ),
}
"""Scores over all annotated frames together, see `classes.ClassScores`, and over all views of a task."""
