"""How alike the features of one thing are in this scene, and those of different things: learned from the scene itself.

Segments that cover each other's place in frames a few apart are one thing, seen from elsewhere; segments of the same
frame are different ones. From these pairs comes how much a similarity says, whatever the encoder and however close
together its features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import KDTree

from divff_nerfstudio.evenly import evenly_spaced
from divff_nerfstudio.objects.sighting_table import SightingTable
from divff_nerfstudio.objects.sightings import FeaturesOf, Sighting

_COVERED = 0.5
_MIN_PAIRS = 8
_MAX_EVIDENCE = 8.0
_MIN_SPREAD = 0.04
_MAX_FRAMES = 512
_APART = 8
"""Frames that are compared are so many apart: next to each other, pictures are more alike than those of one thing that
has been moved, or was hidden for a while."""


@dataclass(frozen=True)
class Likeness:
    """What similarities of features say."""

    mean: Float[np.ndarray, "dim"]
    """What all features have in common; it is taken off before they are compared."""
    same: tuple[float, float]
    """Mean and spread of the similarity of one thing's features."""
    other: tuple[float, float]
    """The same of different things'."""

    def centred(self, features: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n dim"]:
        """Features without what all have in common, of unit length."""
        rest = features - self.mean
        return rest / np.maximum(np.linalg.norm(rest, axis=-1, keepdims=True), 1e-9)

    def evidence(self, similarity: Float[np.ndarray, "*bs"]) -> Float[np.ndarray, "*bs"]:
        """Log of how many times likelier similarities of centred features are of one thing than of two.

        It grows with the similarity everywhere, and never beyond bounds, since a place can say more than any feature.
        """
        (near, narrow), (far, wide) = self.same, self.other
        clipped = np.clip(similarity, far, near)
        alike = -0.5 * ((clipped - near) / narrow) ** 2 - np.log(narrow)
        unlike = -0.5 * ((clipped - far) / wide) ** 2 - np.log(wide)
        return np.clip(alike - unlike, -_MAX_EVIDENCE, _MAX_EVIDENCE)

    def graded(self, similarity: Float[np.ndarray, "*bs"]) -> Float[np.ndarray, "*bs"]:
        """How near similarities come to those of one thing (1) from those of different ones (-1).

        For rendered features, which are blends: they may be less alike than any two stored ones of a thing.
        """
        (near, _), (far, _) = self.same, self.other
        return np.clip(2 * (similarity - far) / max(near - far, 1e-6) - 1, -1, 1)


@dataclass(frozen=True, eq=False)
class _Shown:
    """What a frame shows, to be compared with another."""

    frame: int
    sightings: Sequence[Sighting]
    features: Float[np.ndarray, "n dim"]
    trees: Sequence[KDTree]

    @cached_property
    def centres(self) -> Float[np.ndarray, "n 3"]:
        """The segments' middles."""
        return np.array([sighting.centre for sighting in self.sightings]).reshape(-1, 3)

    def near(self, points: Float[np.ndarray, "m 3"], reach: float) -> Bool[np.ndarray, "n m"]:
        """Which points are within reach of the box around each segment."""
        low, high = (
            np.array([end(sighting.points, axis=0) for sighting in self.sightings]).reshape(-1, 1, 3)
            for end in (np.min, np.max)
        )
        return ((points >= low - reach) & (points <= high + reach)).all(axis=-1)


def learn_likeness(seen: SightingTable, features_of: FeaturesOf, reach: float) -> Likeness:
    """Learns from a scene what similarities of its features say: from some hundreds of its frames, where it has more,
    each with one a little before it.

    Args:
        seen: The segments of all frames.
        features_of: Gives their features.
        reach: Points nearer to each other than this are at one place, scene units.
    """
    chosen = evenly_spaced(seen.frames, _MAX_FRAMES).tolist()
    total, count = np.zeros(()), 0
    for frame in chosen:
        if found := seen.of_frame(frame):
            own = found.features(features_of)
            total, count = total + own.sum(axis=0), count + len(own)
    common = Likeness(total / max(count, 1), (1.0, _MIN_SPREAD), (0.0, 1.0))

    apart = min(_APART, max(1, seen.frames // 4))

    @lru_cache(apart + 1)
    def shown(frame: int) -> _Shown:
        found = seen.of_frame(frame)
        trees = [KDTree(sighting.points) for sighting in found]
        features = common.centred(found.features(features_of)) if found else np.zeros((0, common.mean.size))
        return _Shown(frame, list(found), features, trees)

    same, other = [np.zeros(0)], [np.zeros(0)]
    for frame in chosen:
        own = shown(frame)
        other.append((own.features @ own.features.T)[np.triu_indices(len(own.sightings), 1)])
        if frame >= apart:
            same.append(_paired(shown(frame - apart), own, reach))
    return Likeness(common.mean, _spread(np.concatenate(same), (0.9, 0.1)), _spread(np.concatenate(other), (0.0, 0.3)))


def covered(points: Float[np.ndarray, "n 3"], tree: KDTree, reach: float) -> float:
    """Share of points that have one of a tree's points near them."""
    return float((tree.query(points, distance_upper_bound=reach)[0] < np.inf).mean())


def _paired(before: _Shown, after: _Shown, reach: float) -> Float[np.ndarray, "pairs"]:
    """Similarities of the segments of two frames that cover each other's place."""
    found = []
    # The median of points half of which are near another segment is near its box.
    near = before.near(after.centres, reach) & after.near(before.centres, reach).T
    for i, j in ((int(i), int(j)) for i, j in np.argwhere(near)):
        mine, theirs = before.sightings[i], after.sightings[j]
        both = min(covered(mine.points, after.trees[j], reach), covered(theirs.points, before.trees[i], reach))
        if both > _COVERED:
            found.append(float(before.features[i] @ after.features[j]))
    return np.array(found)


def _spread(values: Float[np.ndarray, "n"], usual: tuple[float, float]) -> tuple[float, float]:
    """Median and robust spread of similarities; the usual ones where there are too few."""
    if len(values) < _MIN_PAIRS:
        return usual
    middle = float(np.median(values))
    return middle, max(1.48 * float(np.median(np.abs(values - middle))), _MIN_SPREAD)
