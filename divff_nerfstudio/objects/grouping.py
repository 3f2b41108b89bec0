"""Groups the segments of all frames into things: frame by frame, by features and by the places where things lie."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment
from scipy.spatial import KDTree

from divff_nerfstudio.evenly import evenly_spaced
from divff_nerfstudio.objects.boxes import Near
from divff_nerfstudio.objects.likeness import Likeness, covered, learn_likeness
from divff_nerfstudio.objects.sighting_table import Sightings, SightingTable
from divff_nerfstudio.objects.sightings import FeaturesOf, Sighting

REACH = 0.03
"""Points are at one place if they are nearer to each other than this share of the room's depth."""
PLACE_SPEAKS = 3.0
"""How much it says for a thing that something lies where it lay, in the unit of `Likeness.evidence`."""
MIN_FRAMES = 3
"""What fewer frames show is no thing."""
SPEED = 0.25
"""What is carried gets no farther from one frame to the next than this share of its distance from the camera."""
_PATIENCE = 1000
_ELSEWHERE = -1.5
_FAR = -4.0
_MAX_POINTS = 768
_PART = 0.5
_SAME_PLACE = 0.5


@dataclass(eq=False)
class Group:
    """Segments that are taken for one thing."""

    numbers: array[int] = field(default_factory=partial(array, "q"))
    """Of the segments in the table; a frame may have several."""
    last: Sighting | None = None
    """The latest that was added."""
    feature: Float[np.ndarray, "dim"] | None = None
    """Sum of the centred features."""
    looks: Float[np.ndarray, "dim"] | float = 0.0
    """Sum of the features, each weighted by the square root of its area."""
    points: Float[np.ndarray, "points 3"] = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    """Where it lies now."""
    _tree: KDTree | None = None
    _box: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def tree(self) -> KDTree:
        """Its points, to search in."""
        tree = self._tree = self._tree or KDTree(self.points)
        return tree

    @property
    def box(self) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
        """Lower and upper corner of a box along the world's axes around its points."""
        box = self._box = self._box or (self.points.min(axis=0), self.points.max(axis=0))
        return box

    def absorb(self, other: Group) -> None:
        """Takes in another group at the same place."""
        assert self.last is not None and other.last is not None and self.feature is not None
        self.last = max(self.last, other.last, key=lambda sighting: sighting.frame)
        self.numbers.extend(other.numbers)
        self.feature, self.looks = self.feature + other.feature, self.looks + other.looks
        self.lie(np.concatenate((self.points, other.points)))

    def covers(self, points: Float[np.ndarray, "n 3"], reach: float) -> float:
        """Share of points that have one of its own near them."""
        low, high = self.box
        if (points.min(axis=0) > high + reach).any() or (points.max(axis=0) < low - reach).any():
            return 0.0
        return covered(points, self.tree, reach)

    def lie(self, points: Float[np.ndarray, "n 3"]) -> None:
        """Says where it lies."""
        self.points, self._tree, self._box = points, None, None

    @property
    def direction(self) -> Float[np.ndarray, "dim"]:
        """Mean of its centred features, of unit length."""
        assert self.feature is not None
        return self.feature / max(float(np.linalg.norm(self.feature)), 1e-9)

    def add(
        self,
        number: int,
        sighting: Sighting,
        feature: Float[np.ndarray, "dim"],
        centred: Float[np.ndarray, "dim"],
        here: bool,
    ) -> None:
        """Takes in a segment.

        Args:
            number: Of the segment in the table.
            sighting: The segment.
            feature: Its feature.
            centred: The same without what all features have in common.
            here: Whether it lies where the thing lay; else the thing lies there from now on.
        """
        self.numbers.append(number)
        self.last = sighting
        self.feature = centred.copy() if self.feature is None else self.feature + centred
        self.looks = self.looks + feature * sighting.area**0.5
        points = np.concatenate((self.points, sighting.points)) if here else sighting.points
        self.lie(points[evenly_spaced(len(points), _MAX_POINTS)])


class Grouping:
    """Groups segments, frame by frame.

    In each frame, segments and things are matched one to one so that the sum of what speaks for the pairs is largest:
    how alike their features are, by what similarities say in this scene (`Likeness`), and whether the segment lies
    where the thing lay. A segment for which no thing speaks begins a new one; one that was left over because its
    thing has a larger part in the frame joins it.

    What fewer frames show than a thing needs, and none of the next thousand, is forgotten, or is a part of what lies
    there: else a long video would have to be compared with each fault of its segmentation.

    Args:
        seen: The segments of all frames.
        features_of: Gives their features.
        reach: Points nearer to each other than this are at one place, scene units.
    """

    def __init__(self, seen: SightingTable, features_of: FeaturesOf, reach: float):
        self.reach = reach
        self.likeness: Likeness = learn_likeness(seen, features_of, reach)
        self.groups: list[Group] = []
        for frame in range(seen.frames):
            if len(found := seen.of_frame(frame)):
                self._match(found, found.features(features_of))
            if frame % _PATIENCE == _PATIENCE - 1:
                self._forget(frame - _PATIENCE)
        self._merge()

    def _match(self, found: Sightings, stored: Float[np.ndarray, "n dim"]) -> None:
        """Gives each segment of a frame to a thing."""
        sightings, features = list(found), self.likeness.centred(stored)
        own: list[int | None] = [None] * len(sightings)
        here = np.zeros((len(sightings), len(self.groups)))
        if self.groups:
            alike, here = self._compared(sightings, features)
            speaks = alike + here
            for row, column in zip(*linear_sum_assignment(-np.maximum(speaks, 0)), strict=True):
                if speaks[row, column] > 0:
                    own[row] = int(column)
            for row, chosen in enumerate(own):
                if chosen is None:
                    lies = (here[row] > PLACE_SPEAKS * _PART) & (alike[row] > 0)
                    if lies.any():
                        own[row] = int(np.argmax(np.where(lies, speaks[row], -np.inf)))
        for row, sighting in enumerate(sightings):
            chosen = own[row]
            if chosen is None:
                self.groups.append(Group())
            group = self.groups[-1 if chosen is None else chosen]
            lies = chosen is not None and here[row, chosen] > 0
            group.add(int(found.numbers[row]), sighting, stored[row], features[row], bool(lies))

    def _compared(
        self, sightings: Sequence[Sighting], features: Float[np.ndarray, "n dim"]
    ) -> tuple[Float[np.ndarray, "n groups"], Float[np.ndarray, "n groups"]]:
        """What features and what places say for each pair of segment and thing."""
        alike = self.likeness.evidence(features @ np.stack([group.direction for group in self.groups]).T)
        told = alike > -PLACE_SPEAKS
        place = np.where(told & self._within_reach(sightings), _ELSEWHERE, _FAR)
        for row, column in np.argwhere(told & self._overlapping(sightings)):
            share = covered(sightings[row].points, self.groups[column].tree, self.reach)
            if share > 0.2:
                place[row, column] = PLACE_SPEAKS * min(1.0, 0.3 + share)
        return alike, place

    def _within_reach(self, sightings: Sequence[Sighting]) -> Bool[np.ndarray, "n groups"]:
        """Whether a segment is so near to where a thing was seen last that it may have been carried there."""
        last = [group.last for group in self.groups if group.last is not None]
        centres, depths = np.stack([each.centre for each in sightings]), np.array([each.depth for each in sightings])
        apart = np.linalg.norm(centres[:, None] - np.stack([each.centre for each in last]), axis=-1)
        passed = np.array([max(sightings[0].frame - each.frame, 1) for each in last])
        return apart < SPEED * depths[:, None] * passed

    def _overlapping(self, sightings: Sequence[Sighting]) -> Bool[np.ndarray, "n groups"]:
        """Whether boxes around a segment and a thing are within reach of each other."""
        low, high = (np.stack([end(each.points, axis=0) for each in sightings])[:, None] for end in (np.min, np.max))
        lows, highs = (np.stack(ends) for ends in zip(*(group.box for group in self.groups), strict=True))
        return ((low <= highs + self.reach) & (high >= lows - self.reach)).all(axis=-1)

    def _forget(self, since: int) -> None:
        """Lets go of what few frames show, and none from one on."""
        kept, old = list[Group](), list[Group]()
        for group in self.groups:
            assert group.last is not None
            (old if len(group.numbers) < MIN_FRAMES and group.last.frame < since else kept).append(group)
        near = Near(kept)
        for group in old:
            if (larger := self._larger(near, group)) is not None:
                near.absorb(larger, group)
        self.groups = near.groups

    def _merge(self) -> None:
        """Puts together what lies at one place with features of one thing, until nothing more does."""
        before = 0
        while before != len(self.groups):
            before, near = len(self.groups), Near([])
            for group in sorted(self.groups, key=lambda group: -len(group.numbers)):
                if (larger := self._larger(near, group)) is None:
                    near.add(group)
                else:
                    near.absorb(larger, group)
            self.groups = near.groups

    def _larger(self, near: Near, group: Group) -> int | None:
        """The first group that another is one with: its index; None if there is none."""
        return next((int(i) for i in near.to(group, self.reach) if self._one(near.groups[i], group)), None)

    def _one(self, first: Group, second: Group) -> bool:
        alike = float(self.likeness.evidence(np.array(first.direction @ second.direction)))
        return alike > 0 and first.covers(second.points, self.reach) > _SAME_PLACE
