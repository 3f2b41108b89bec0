"""How far away objects are while they are carried: as far as they were nearby in time, and as they look smaller or
larger than where they rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from divff_nerfstudio.evidence.votes import alike

_ALIKE, _NEXT_ALIKE = 0.3, 0.5
"""How alike segments look, at least, that are taken for one thing, and how alike of what looks most alike."""
_SIZE_WEIGHT = 1.0
"""What the sizes say, beside frames next to the asked one: hands hide parts of things, and things turn."""
_TIME_WEIGHT = 2.0
"""What a resting place in the next frame says; it falls with the square of the frames between."""

_NEIGHBOURS = 3
"""Resting sights before and behind a frame that are looked at: one alone may be wrong."""


@dataclass(frozen=True)
class Sights:
    """Segments of a video that show objects."""

    frames: Int[np.ndarray, "segments"]
    """In which frames they are, by number."""
    looks: Sequence[Float[np.ndarray, "segments dim"]]
    """How they look, by each sort of looks, in units of how far apart those of one thing are."""
    extents: Float[np.ndarray, "segments"]
    """How long they are, in pixels, see `extents`; 0 where the picture's edge cuts them."""
    depths: Float[np.ndarray, "segments"]
    """At which depths they rest, along the optical axis; 0 where that is not known."""

    def __getitem__(self, chosen: Bool[np.ndarray, "segments"] | Int[np.ndarray, "chosen"]) -> Sights:
        """Some of them."""
        looks = [each[chosen] for each in self.looks]
        return Sights(self.frames[chosen], looks, self.extents[chosen], self.depths[chosen])


def joined(parts: Sequence[Sights]) -> Sights:
    """Sights of several frames as one; there is one at least."""
    frames, looks, sizes, depths = zip(
        *((part.frames, part.looks, part.extents, part.depths) for part in parts), strict=True
    )
    looks = [np.concatenate(sort) for sort in zip(*looks, strict=True)]
    return Sights(np.concatenate(frames), looks, np.concatenate(sizes), np.concatenate(depths))


def carried_depths(carried: Sights, resting: Sights) -> Float[np.ndarray, "segments"]:
    """Depths of segments that do not rest, from those of segments that look like them and do.

    Args:
        carried: Segments of one frame.
        resting: Segments of all frames whose depths are known.

    Returns:
        Depths along the optical axis; 0 where nothing at rest looks like the segment.
    """
    found = np.zeros(len(carried.frames))
    pairs = zip(carried.looks, resting.looks, strict=True)
    likeness = np.mean([alike(own, others, 1.0) for own, others in pairs], 0)
    for i, like in enumerate(likeness):
        same = like >= max(_ALIKE, _NEXT_ALIKE * like.max(initial=0))
        if same.any():
            found[i] = _depth(carried.frames[i], carried.extents[i], resting[same], like[same])
    return found


def extents(segments: Int[np.ndarray, "height width"], number: int) -> Float[np.ndarray, "segments"]:
    """How long segments are: the standard deviation of their pixels along their longest axis; 0 for those that the
    picture's edge cuts, and for those without a pixel.

    Args:
        segments: Number of each pixel's segment; -1 where there is none.
        number: How many there are.
    """
    rows, columns = np.nonzero(segments >= 0)
    theirs = segments[rows, columns]
    pixels = np.maximum(np.bincount(theirs, minlength=number), 1)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(theirs, values, number) / pixels

    down, across = rows - mean(rows)[theirs], columns - mean(columns)[theirs]
    half, slope, mixed = (
        (mean(down**2) + mean(across**2)) / 2,
        (mean(down**2) - mean(across**2)) / 2,
        mean(down * across),
    )
    found = np.sqrt(half + np.hypot(slope, mixed))
    edge = np.concatenate((segments[[0, -1]].ravel(), segments[:, [0, -1]].ravel()))
    found[edge[edge >= 0]] = 0
    return found


def _depth(frame: int, extent: float, resting: Sights, like: Float[np.ndarray, "segments"]) -> float:
    """Depth of a segment, from resting ones that look like it: the weighed mean of logarithms; 0 if none says any."""
    said, weights = [], []
    whole = resting.extents > 0
    if extent > 0 and whole.any():
        sizes = resting.depths[whole] * resting.extents[whole]
        said.append(np.log(_median(sizes, like[whole]) / extent))
        weights.append(_SIZE_WEIGHT)
    gaps = np.abs(resting.frames - frame)
    for side in (resting.frames < frame, resting.frames > frame):  # in the same frame it is another thing of its looks
        if side.any():
            nearest = np.flatnonzero(side)[np.argsort(gaps[side], kind="stable")[:_NEIGHBOURS]]
            said.append(np.log(_median(resting.depths[nearest], like[nearest])))
            weights.append(_TIME_WEIGHT / gaps[nearest[0]] ** 2)
    return float(np.exp(np.average(said, weights=weights))) if said else 0.0


def _median(values: Float[np.ndarray, "values"], weights: Float[np.ndarray, "values"]) -> float:
    order = np.argsort(values)
    summed = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(summed, summed[-1] / 2)])
