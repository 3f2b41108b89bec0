"""Scores of pictures, masks and relevancy maps, from arrays alone; a score that does not exist is None, not NaN."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

OBJECT_THRESHOLD = 0.7
"""Relevancy above which a pixel counts as the object asked for (DIV-FF, image features)."""
AFFORDANCE_THRESHOLD = 0.54
"""Relevancy above which a pixel counts as the place of the action asked for (DIV-FF, video features)."""
LARGEST_PSNR = 100.0
"""PSNR of equal pictures, which has no number, in dB."""
_BINS = 1 << 16


def psnr(
    image: Float[np.ndarray, "height width 3"],
    target: Float[np.ndarray, "height width 3"],
    where: Bool[np.ndarray, "height width"] | None = None,
) -> float | None:
    """Peak signal-to-noise ratio of a picture with colours in [0, 1].

    Args:
        image: The picture.
        target: What it should be.
        where: The pixels to look at; None: all.

    Returns:
        Decibels, at most `LARGEST_PSNR`; None if `where` has no pixel.
    """
    error = np.square(np.asarray(image, np.float64) - np.asarray(target, np.float64))
    error = error if where is None else error[where]
    if error.size == 0:
        return None
    return float(-10 * np.log10(max(error.mean(), 10 ** (-LARGEST_PSNR / 10))))


def ssim(image: Float[np.ndarray, "height width 3"], target: Float[np.ndarray, "height width 3"]) -> float | None:
    """Structural similarity (Wang et al. 2004) with torchmetrics' Gaussian window of 11 pixels.

    Returns:
        A number up to 1, or None for pictures smaller than the window.
    """
    if min(image.shape[:2]) < 11:
        return None
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    pair = (torch.from_numpy(np.asarray(part, np.float32)).permute(2, 0, 1)[None] for part in (image, target))
    return float(structural_similarity_index_measure(*pair, data_range=1.0))  # pyright: ignore[reportArgumentType]


def average_precision(scores: Float[np.ndarray, "*shape"], truth: Bool[np.ndarray, "*shape"]) -> float | None:
    """Area under the precision-recall curve, as scikit-learn sums it.

    Args:
        scores: The larger, the more likely positive.
        truth: What is positive.

    Returns:
        A number in [0, 1], or None if nothing is positive.
    """
    if not truth.any():
        return None
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth.ravel(), scores.ravel()))


class ClassScores:
    """Relevancy maps of several classes against their masks, summed over the annotated frames of a scene.

    Under the *published* convention (DIV-FF) a class is asked only in frames whose annotation has it, and a class that
    no frame has counts as IoU 0. Under the *sound* one every class is asked in every annotated frame, and a class that
    no frame has is left out. Pixels are counted in two groups per class, frames that have it and frames that have not,
    so both conventions come out of one pass; scores are kept as histograms of 65536 steps, so memory does not grow
    with the frames.

    Args:
        names: The classes.
        threshold: Relevancy above which a pixel counts as found.
    """

    def __init__(self, names: Sequence[str], threshold: float):
        self.names = tuple(names)
        self.threshold = threshold
        self.frames = 0
        self.annotated_frames = np.zeros(len(self.names), np.int64)
        self._counts = np.zeros((2, len(self.names), 3), np.int64)  # absent or present; class; TP, FP, FN
        self._histograms = np.zeros((len(self.names), 2, _BINS), np.int64)  # class; negative or positive; score

    def add(
        self, scores: Float[np.ndarray, "height width classes"], truth: Bool[np.ndarray, "height width classes"]
    ) -> None:
        """Adds an annotated frame.

        Args:
            scores: Relevancies in [0, 1].
            truth: Masks of the classes; a class without a pixel is absent from the frame.
        """
        if scores.shape != truth.shape or scores.shape[-1] != len(self.names):
            raise ValueError(f"scores {scores.shape} and masks {truth.shape} need {len(self.names)} classes alike")
        self.frames += 1
        scores, truth = scores.reshape(-1, len(self.names)), truth.reshape(-1, len(self.names))
        found, present = scores > self.threshold, truth.any(axis=0)
        self.annotated_frames += present
        counts = np.stack([(found & truth).sum(0), (found & ~truth).sum(0), (~found & truth).sum(0)], axis=-1)
        self._counts[present.astype(int), np.arange(len(self.names))] += counts
        steps = np.clip(scores * (_BINS - 1), 0, _BINS - 1).round().astype(np.int64)
        for i in range(len(self.names)):
            for positive in (0, 1):
                picked = steps[truth[:, i] == positive, i]
                self._histograms[i, positive] += np.bincount(picked, minlength=_BINS)

    def per_class(self) -> dict[str, dict[str, float]]:
        """Scores of each class.

        Returns:
            For each class "frames" (that have it) and "iou" (published); if a frame has it also "iou_sound", "ap" (of
            all pixels of all annotated frames together) and "iou_oracle" with "threshold_oracle" (the threshold that
            is best on these very frames: an upper bound, no result).
        """
        scores: dict[str, dict[str, float]] = {}
        for i, name in enumerate(self.names):
            scores[name] = {"frames": int(self.annotated_frames[i]), "iou": _iou(self._counts[1, i])}
            if self.annotated_frames[i]:
                best, threshold = self._oracle(i)
                scores[name] |= {
                    "iou_sound": _iou(self._counts[:, i].sum(0)),
                    "ap": self._average_precision(i),
                    "iou_oracle": best,
                    "threshold_oracle": threshold,
                }
        return scores

    def totals(self) -> dict[str, float]:
        """Means over the classes.

        Returns:
            "miou" (published), "miou_sound", "ap" and "miou_oracle"; nothing if no frame was added, and only "miou",
            which is 0, if no frame has any of the classes.
        """
        if not self.frames or not self.names:
            return {}
        scores = self.per_class().values()
        totals = {"miou": float(np.mean([score["iou"] for score in scores]))}
        for name, key in (("miou_sound", "iou_sound"), ("ap", "ap"), ("miou_oracle", "iou_oracle")):
            values = [score[key] for score in scores if key in score]
            if values:
                totals[name] = float(np.mean(values))
        return totals

    def _above(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """True and false positives of class `i` if all scores from a step on count as found, largest step first."""
        negatives, positives = self._histograms[i, :, ::-1]
        return positives.cumsum(), negatives.cumsum()

    def _average_precision(self, i: int) -> float:
        true, false = self._above(i)
        found = true + false
        precision = true / np.maximum(found, 1)
        return float((np.diff(true, prepend=0) * precision).sum() / true[-1])

    def _oracle(self, i: int) -> tuple[float, float]:
        true, false = self._above(i)
        ious = true / (true[-1] + false)
        best = int(ious.argmax())
        return float(ious[best]), float((_BINS - 1 - best - 0.5) / (_BINS - 1))


def _iou(counts: np.ndarray) -> float:
    """Intersection over union of summed true positives, false positives and false negatives; 0 if all are 0."""
    return float(counts[0] / max(counts.sum(), 1))
