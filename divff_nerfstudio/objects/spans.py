"""Where a thing rests, and when it is carried: its places over time, from the points of its segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from scipy.spatial import KDTree

from divff_nerfstudio.objects.likeness import covered
from divff_nerfstudio.objects.sightings import Sighting

MIN_SIGHTINGS = 4
"""So many frames must show a thing at a place before it rests there."""
_MIN_AT_ENDS = 1
_COVERED = 0.85
_STRAYS = 2
_HELD = 0.6
_DISPLACED = 3
_STEP = 0.3
_AWAY = 0.6
"""Share of its size by which a thing must be displaced before its place is another."""


@dataclass(frozen=True, eq=False)
class Spot:
    """What one frame shows of a thing."""

    frame: int
    """Index of the frame."""
    points: Float[np.ndarray, "points 3"]
    """Points of its surface, world coordinates."""
    cut: bool
    """Whether it is cut off by the picture's border."""
    touched: bool
    """Whether the actor is next to it."""
    eye: Float[np.ndarray, "3"]
    """Where the camera is, world coordinates."""

    @cached_property
    def centre(self) -> Float[np.ndarray, "3"]:
        """Median of its points."""
        return np.median(self.points, axis=0)

    def off(self, point: Float[np.ndarray, "3"]) -> float:
        """How far it is from a point across the line of sight, scene units: along it, rendered depth is not sure."""
        sight = self.centre - self.eye
        sight = sight / max(float(np.linalg.norm(sight)), 1e-9)
        to = point - self.eye
        return float(np.linalg.norm(to - (to @ sight) * sight))


@dataclass(frozen=True, eq=False)
class Rest:
    """A span in which a thing lies at one place."""

    spots: tuple[Spot, ...]
    """What the frames show of it there."""

    @property
    def first(self) -> int:
        """Index of the first frame that shows it there."""
        return self.spots[0].frame

    @property
    def last(self) -> int:
        """Index of the last one."""
        return self.spots[-1].frame

    @cached_property
    def points(self) -> Float[np.ndarray, "points 3"]:
        """What the frames show of it there, together."""
        return np.concatenate([spot.points for spot in self.spots])

    @cached_property
    def point(self) -> Float[np.ndarray, "3"]:
        """The middle of what is seen of it: median over the frames that do not cut it off, if there are any."""
        whole = [spot.centre for spot in self.spots if not spot.cut]
        return np.median(whole or [spot.centre for spot in self.spots], axis=0)

    @cached_property
    def box(self) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
        """Lower and upper corner of a box along the world's axes around nearly all of its points."""
        low, high = np.percentile(self.points, (3, 97), axis=0)
        return low, high


def spots(sightings: Sequence[Sighting]) -> list[Spot]:
    """What each frame shows of a thing: the points of all its segments."""
    frames: dict[int, list[Sighting]] = {}
    for sighting in sightings:
        frames.setdefault(sighting.frame, []).append(sighting)
    return [
        Spot(
            frame,
            np.concatenate([each.points for each in own]),
            any(each.cut for each in own),
            any(each.touched for each in own),
            own[0].eye,
        )
        for frame, own in sorted(frames.items())
    ]


def size(seen: Sequence[Spot]) -> float:
    """How long a thing is: diagonal of the box around what a frame shows of it, median over frames, scene units."""
    lengths = [float(np.linalg.norm(np.ptp(np.percentile(spot.points, (5, 95), axis=0), axis=0))) for spot in seen]
    return float(np.median(lengths))


def rests(seen: Sequence[Spot], reach: float) -> list[Rest]:
    """The spans in which a thing rests.

    A thing rests while its middle stays within a part of its size, or nearly all of what is seen of it lies where it
    lay; a few frames that say otherwise are strays. Rests that follow each other at one place are one, unless the actor
    had it elsewhere in between, and if it is put back, it has not rested there.

    Args:
        seen: What each frame shows of it, in the order of time.
        reach: Points nearer to each other than this are at one place, scene units.
    """
    if not seen:
        return []
    long = size(seen)
    step, far = max(_STEP * long, reach), max(_AWAY * long, 3 * reach)
    found: list[Rest] = []
    for run in _runs(seen, step, reach):
        rest = Rest(tuple(seen[i] for i in run))
        at_ends = run[0] == 0 or run[-1] >= len(seen) - 1
        if len(run) < (_MIN_AT_ENDS if at_ends else MIN_SIGHTINGS):
            continue
        if len(found) > 1 and _held(found[-1]) and _one_place(found[-2], rest, step, reach):
            found.pop()
        if found and _one_place(found[-1], rest, step, reach) and not _taken(seen, found[-1], rest, far):
            found[-1] = Rest((*found[-1].spots, *rest.spots))
        else:
            found.append(rest)
    return found


def _held(rest: Rest) -> bool:
    """Whether the actor was next to a thing nearly all the time."""
    return float(np.mean([spot.touched for spot in rest.spots])) >= _HELD


def _runs(seen: Sequence[Spot], step: float, reach: float) -> list[list[int]]:
    """Parts of the time in which a thing is at one place; each spot belongs to one, strays to none."""
    found, at = [], 0
    while at < len(seen):
        found.append(_run(seen, at, step, reach))
        at = found[-1][-1] + 1
    return found


def _run(seen: Sequence[Spot], start: int, step: float, reach: float) -> list[int]:
    """Indices of the spots from one on that lie at one place."""
    run, strays = [start], 0
    for i in range(start + 1, len(seen)):
        centres = np.stack([seen[j].centre for j in run[-24:]])
        near = seen[i].off(np.median(centres, axis=0)) < step
        before = run[:-4] or run
        if near or _covers([seen[j] for j in before[:: max(1, len(before) // 8)]], seen[i], reach):
            run.append(i)
            strays = 0
        elif (strays := strays + 1) > _STRAYS:
            break
    return run


def _covers(before: Sequence[Spot], spot: Spot, reach: float) -> bool:
    """Whether nearly all of what is seen of a thing lies where it lay before."""
    points = np.concatenate([each.points for each in before])
    return covered(spot.points, KDTree(points), reach) > _COVERED


def _one_place(first: Rest, second: Rest, step: float, reach: float) -> bool:
    """Whether two rests are at one place."""
    apart = (
        np.median([spot.off(one.point) for spot in other.spots]) for one, other in ((first, second), (second, first))
    )
    if max(apart) < step:
        return True
    return (
        max(covered(second.points, KDTree(first.points), reach), covered(first.points, KDTree(second.points), reach))
        > _COVERED
    )


def _taken(seen: Sequence[Spot], before: Rest, after: Rest, far: float) -> bool:
    """Whether the actor has had a thing elsewhere between two rests."""
    away = [spot.touched for spot in seen if before.last < spot.frame < after.first and spot.off(before.point) > far]
    return sum(away) >= _DISPLACED
