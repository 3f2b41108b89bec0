"""Relevancy maps of classes against their masks, over the annotated frames of a scene, under both conventions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

LEVELS = 1000
"""Thresholds that are tried for leaving a frame out: 0, 0.001, ..., 0.999."""
_BINS = 1 << 16
_STEPS_ABOVE = _BINS - 1 - np.arange(LEVELS) * (_BINS - 1) // LEVELS
_PRESENT = 1

ClassTable = dict[str, dict[str, float]]
"""Scores by class and name."""


class ClassScores:
    """Relevancy maps of several classes against their masks, summed over the annotated frames of a scene.

    Under the *published* convention (DIV-FF) a class is asked only in frames whose annotation has it, and a class that
    no frame has counts as 0. Under the *sound* one every class is asked in every annotated frame, and a class that no
    frame has is left out. Pixels are counted apart in frames that have a class and in frames that have not, so both
    conventions come out of one pass. Scores are kept as histograms of 65536 steps; a frame adds a thousand numbers per
    class to the memory, for the thresholds that are chosen without it.

    Args:
        names: The classes.
        threshold: Relevancy above which a pixel counts as found.
    """

    def __init__(self, names: Sequence[str], threshold: float):
        self.names = tuple(names)
        self.threshold = threshold
        self.annotated_frames = np.zeros(len(self.names), np.int64)
        self._counts = np.zeros((2, len(self.names), 3), np.int64)  # absent or present; class; TP, FP, FN
        self._histograms = np.zeros((2, len(self.names), 2, _BINS), np.int64)  # ...; class; negative or positive; score
        self._auto: np.ndarray | None = None  # class; TP, FP, FN
        self._above: list[np.ndarray] = []  # per frame: class; false or true positives; level
        self._positives: list[np.ndarray] = []  # per frame: class

    @property
    def frames(self) -> int:
        """How many frames have been added."""
        return len(self._above)

    def add(
        self,
        scores: Float[np.ndarray, "height width classes"],
        truth: Bool[np.ndarray, "height width classes"],
        where: Bool[np.ndarray, "height width"] | None = None,
        masks: Bool[np.ndarray, "height width classes"] | None = None,
    ) -> ClassTable:
        """Adds an annotated frame.

        Args:
            scores: Relevancies in [0, 1].
            truth: Masks of the classes; a class without a pixel is absent from the frame.
            where: The pixels to look at; None: all.
            masks: What counts as found at thresholds that fit the scene (`calibration`), in all frames or in none.

        Returns:
            Of this frame alone, for each class "pixels" (marked), "found" (pixels above the threshold), "iou" there
            and, if the frame has the class, "ap".
        """
        if scores.shape != truth.shape or scores.shape[-1] != len(self.names):
            raise ValueError(f"scores {scores.shape} and masks {truth.shape} need {len(self.names)} classes alike")
        where = np.ones(scores.shape[:2], bool) if where is None else where
        scores, truth = scores[where], truth[where]
        if masks is not None:
            auto = masks[where]
            counted = np.stack([(auto & truth).sum(0), (auto & ~truth).sum(0), (~auto & truth).sum(0)], axis=-1)
            self._auto = counted if self._auto is None else self._auto + counted
        found, present = scores > self.threshold, truth.any(axis=0).astype(int)
        self.annotated_frames += present
        counts = np.stack([(found & truth).sum(0), (found & ~truth).sum(0), (~found & truth).sum(0)], axis=-1)
        self._counts[present, np.arange(len(self.names))] += counts
        steps = np.clip(scores * (_BINS - 1), 0, _BINS - 1).round().astype(np.int64)
        above = np.empty((len(self.names), 2, LEVELS), np.int32)
        table: ClassTable = {}
        for i, name in enumerate(self.names):
            marked = truth[:, i]
            histogram = np.stack([np.bincount(steps[part, i], minlength=_BINS) for part in (~marked, marked)])
            self._histograms[present[i], i] += histogram
            above[i] = histogram[:, ::-1].cumsum(-1)[:, _STEPS_ABOVE - 1]
            table[name] = {
                "pixels": int(marked.sum()),
                "found": int(found[:, i].sum()),
                "iou": _iou(counts[i]),
            }
            if present[i]:
                table[name]["ap"] = _average_precision(histogram)
        self._above.append(above)
        self._positives.append(truth.sum(0))
        return table

    def per_class(self) -> ClassTable:
        """Scores of each class.

        Returns:
            For each class "frames" (that have it), "iou" and "ap_published" (published); if a frame has it also
            "iou_sound", "ap" (of all pixels of all annotated frames together), "iou_oracle" with "threshold_oracle"
            (the threshold that is best for it on these very frames: an upper bound, no result), if
            `left_out_thresholds` has any, "iou_loo" at those and, if frames came with masks, "iou_auto" of these.
        """
        thresholds = self.left_out_thresholds()
        held_out = self._left_out_counts(thresholds) if thresholds else None
        scores: ClassTable = {}
        for i, name in enumerate(self.names):
            scores[name] = {
                "frames": int(self.annotated_frames[i]),
                "iou": _iou(self._counts[_PRESENT, i]),
                "ap_published": _average_precision(self._histograms[_PRESENT, i]),
            }
            if self.annotated_frames[i]:
                histogram = self._histograms[:, i].sum(0)
                best, threshold = _best(histogram)
                scores[name] |= {
                    "iou_sound": _iou(self._counts[:, i].sum(0)),
                    "ap": _average_precision(histogram),
                    "iou_oracle": best,
                    "threshold_oracle": threshold,
                }
                if held_out is not None:
                    scores[name]["iou_loo"] = _iou(held_out[i])
                if self._auto is not None:
                    scores[name]["iou_auto"] = _iou(self._auto[i])
        return scores

    def totals(self) -> dict[str, float]:
        """Means over the classes.

        Returns:
            "miou" and "ap_published" (published), "miou_sound", "ap", "miou_loo", "miou_oracle" and, where masks came,
            "miou_auto"; nothing if no frame was added, and only the published ones, which are 0, if no frame has any of
            the classes.
        """
        if not self.frames or not self.names:
            return {}
        scores, totals = self.per_class().values(), {}
        for name in ("iou", "ap_published", "iou_sound", "ap", "iou_auto", "iou_loo", "iou_oracle"):
            values = [score[name] for score in scores if name in score]
            if values:
                totals[f"m{name}" if name.startswith("iou") else name] = float(np.mean(values))
        return totals

    def left_out_thresholds(self) -> list[float]:
        """For each frame, in the order of adding, the threshold that is best for the others (leave one frame out).

        Annotations exist for held-out frames only, so that a threshold can only be chosen on those; this one never sees
        the frame that it is used on. It is one for all classes, the one of largest mean IoU over the classes that the
        other frames have; of several as good, the middle one.

        Returns:
            Multiples of a thousandth; nothing if leaving a frame out leaves none with any class.
        """
        if self.frames < 2:
            return []
        above, positives = np.stack(self._above).astype(np.int64), np.stack(self._positives)
        thresholds = []
        for frame in range(self.frames):
            others, marked = above.sum(0) - above[frame], positives.sum(0) - positives[frame]
            kept = marked > 0
            if not kept.any():
                return []
            mean = (others[kept, 1] / (marked[kept, None] + others[kept, 0])).mean(0)
            best = np.flatnonzero(mean >= mean.max() - 1e-12)
            thresholds.append(float(best[len(best) // 2]) / LEVELS)
        return thresholds

    def _left_out_counts(self, thresholds: Sequence[float]) -> Int[np.ndarray, "classes 3"]:
        """True positives, false positives and false negatives, each frame at its own threshold, summed."""
        counts = np.zeros((len(self.names), 3), np.int64)
        for threshold, above, positives in zip(thresholds, self._above, self._positives, strict=True):
            false, true = above[:, :, round(threshold * LEVELS)].T
            counts += np.stack([true, false, positives - true], axis=-1)
        return counts


def _iou(counts: Int[np.ndarray, "3"]) -> float:
    """Intersection over union of summed true positives, false positives and false negatives; 0 if all are 0."""
    return float(counts[0] / max(counts.sum(), 1))


def _ranked(histogram: Int[np.ndarray, "2 steps"]) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives if all scores from a step on count as found, largest step first."""
    negatives, positives = histogram[:, ::-1]
    return positives.cumsum(), negatives.cumsum()


def _average_precision(histogram: Int[np.ndarray, "2 steps"]) -> float:
    """Area under the precision-recall curve; 0 if nothing is positive."""
    true, false = _ranked(histogram)
    precision = true / np.maximum(true + false, 1)
    return float((np.diff(true, prepend=0) * precision).sum() / max(true[-1], 1))


def _best(histogram: Int[np.ndarray, "2 steps"]) -> tuple[float, float]:
    """The largest IoU at any threshold, and that threshold."""
    true, false = _ranked(histogram)
    ious = true / (true[-1] + false)
    best = int(ious.argmax())
    return float(ious[best]), float((_BINS - 1 - best - 0.5) / (_BINS - 1))
