"""Where a thing rests, and when it is carried: its places over time, from the points of its segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32
from scipy.spatial import KDTree

from divff_nerfstudio.evenly import evenly_spaced
from divff_nerfstudio.objects.likeness import covered
from divff_nerfstudio.objects.sighting_table import Sightings

MIN_SIGHTINGS = 4
"""So many frames must show a thing at a place before it rests there."""
MAX_SPOTS = 256
"""Of so many frames, at most, it is looked closely at what they show of a thing at a place."""
_MIN_AT_ENDS = 2
_END = 2
_COVERED = 0.85
_STRAYS = 2
_HELD = 0.6
_PAUSE = 12
"""What is not seen without a hand lies where it keeps still in so many frames; in fewer, it pauses on its way."""
_DISPLACED = 3
_STEP = 0.3
_SETTLED = 0.9
"""What keeps still lies, by so much of what a frame shows of it, where other frames show it."""
_LATER = 9
"""It is compared with frames so much later: those next to it are of the same movement."""
_ENOUGH = 6
"""The last frames, so many, are what is compared with when there are no later ones."""
_COMPARED = 16
_QUIET = 3
"""What has kept still in so many frames no longer moves."""
AWAY = 0.6
"""Share of its size by which a thing must be displaced before its place is another."""


@dataclass(frozen=True, eq=False)
class Spots:
    """What each of some frames shows of a thing, in the order of time."""

    sightings: Sightings
    """All segments that show the thing, in the order of time."""
    parts: Int32[np.ndarray, "n 2"]
    """First of a frame's segments among these, and the one behind its last."""
    frames: Int32[np.ndarray, "n"]
    """Index of each frame."""
    centres: Float32[np.ndarray, "n 3"]
    """Median of the points of the thing's surface that a frame shows, world coordinates."""
    cut: Bool[np.ndarray, "n"]
    """Whether it is cut off by the picture's border."""
    touched: Bool[np.ndarray, "n"]
    """Whether the actor is next to it."""

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, chosen: slice | Int[np.ndarray, "m"] | Sequence[int]) -> Spots:
        return Spots(self.sightings, *(getattr(self, name)[chosen] for name in _PER_FRAME))

    def __add__(self, later: Spots) -> Spots:
        own = ((getattr(each, name) for each in (self, later)) for name in _PER_FRAME)
        return Spots(self.sightings, *(np.concatenate([*values]) for values in own))

    def between(self, first: int, last: int) -> Spots:
        """Those of the frames from one to another, both included."""
        return self[slice(*np.searchsorted(self.frames, (first, last + 1)))]

    @property
    def eyes(self) -> Float[np.ndarray, "n 3"]:
        """Where each frame's camera is, world coordinates."""
        return self.sightings.table.eyes[self.frames]

    @property
    def few(self) -> Spots:
        """Some hundreds of them, evenly chosen, where there are more."""
        return self if len(self) <= MAX_SPOTS else self[evenly_spaced(len(self), MAX_SPOTS)]

    @property
    def points(self) -> Float32[np.ndarray, "points 3"]:
        """Points of the thing's surface that the frames show, together, world coordinates."""
        numbers = [self.sightings.numbers[first:end] for first, end in self.parts]
        return self.sightings.table.points(np.concatenate(numbers))

    def off(self, point: Float[np.ndarray, "3"]) -> Float[np.ndarray, "n"]:
        """How far each is from a point across the line of sight, scene units: along it, rendered depth is not sure."""
        eyes = self.eyes
        sight = self.centres - eyes
        sight /= np.maximum(np.linalg.norm(sight, axis=1, keepdims=True), 1e-9)
        to = point - eyes
        return np.linalg.norm(to - (to * sight).sum(axis=1, keepdims=True) * sight, axis=1)


_PER_FRAME = tuple(each.name for each in fields(Spots) if each.name != "sightings")


@dataclass(frozen=True, eq=False)
class Rest:
    """A span in which a thing lies at one place."""

    spots: Spots
    """What the frames show of it there."""

    @property
    def first(self) -> int:
        """Index of the first frame that shows it there."""
        return int(self.spots.frames[0])

    @property
    def last(self) -> int:
        """Index of the last one."""
        return int(self.spots.frames[-1])

    @cached_property
    def points(self) -> Float32[np.ndarray, "points 3"]:
        """What the frames show of it there, together; a few hundred of them, where there are more."""
        return self.spots.few.points

    @cached_property
    def point(self) -> Float[np.ndarray, "3"]:
        """The middle of what is seen of it: median over the frames that do not cut it off, if there are any."""
        whole = self.spots.centres[~self.spots.cut]
        return np.median(whole if len(whole) else self.spots.centres, axis=0)

    @cached_property
    def box(self) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
        """Lower and upper corner of a box along the world's axes around nearly all of its points."""
        low, high = np.percentile(self.points, (3, 97), axis=0)
        return low, high


def spots(sightings: Sightings) -> Spots:
    """What each frame shows of a thing: the points of all its segments.

    Args:
        sightings: The segments, in the order of time.
    """
    frames, starts, counts = np.unique(sightings.column("frame"), return_index=True, return_counts=True)
    centres = sightings.column("centre")[starts]
    for i in np.flatnonzero(counts > 1):
        own = sightings.numbers[starts[i] : starts[i] + counts[i]]
        centres[i] = np.median(sightings.table.points(own), axis=0)
    cut, touched = (np.logical_or.reduceat(sightings.column(name), starts) for name in ("cut", "touched"))
    parts = np.stack((starts, starts + counts), -1).astype(np.int32)
    return Spots(sightings, parts, frames, centres, cut, touched)


def size(seen: Spots) -> float:
    """How long a thing is: diagonal of the box around what a frame shows of it, median over frames, scene units."""
    few = seen.few
    shown = (few[i : i + 1].points for i in range(len(few)))
    lengths = [float(np.linalg.norm(np.ptp(np.percentile(points, (5, 95), axis=0), axis=0))) for points in shown]
    return float(np.median(lengths))


def rests(seen: Spots, reach: float, count: int) -> list[Rest]:
    """The spans in which a thing rests.

    A thing rests while its middle stays within a part of its size, or nearly all of what is seen of it lies where it
    lay; a few frames that say otherwise are strays. Rests that follow each other at one place are one, unless the actor
    had it elsewhere in between, and if it is put back, it has not rested there. What keeps still between two places for
    a short while, and is not seen there without a hand, has not rested there either: it pauses in the hand. Nor
    has what keeps still so before or after all other places, unless it is there as the video begins or ends. At the
    video's ends two frames are enough, as its rest may go on where nobody films.

    Args:
        seen: What each frame shows of it, in the order of time.
        reach: Points nearer to each other than this are at one place, scene units.
        count: How many frames there are.
    """
    if not len(seen):
        return []
    long = size(seen)
    step = max(_STEP * long, reach)
    found: list[Rest] = []

    def goes_on(before: Rest, after: Rest) -> bool:
        return _one_place(before, after, step, reach) and not taken(seen, before, after, long, reach)

    for run in _runs(seen, step, reach):
        rest = Rest(seen[run])
        at_ends = rest.first < _END or rest.last >= count - _END
        if len(run) < (_MIN_AT_ENDS if at_ends else MIN_SIGHTINGS):
            continue
        if len(found) > 1 and _held(found[-1]) and _one_place(found[-2], rest, step, reach):
            found.pop()
        if len(found) > 1 and _pauses(found[-1]) and not goes_on(found[-1], rest):
            found.pop()
        if found and goes_on(found[-1], rest):
            found[-1] = Rest(found[-1].spots + rest.spots)
        else:
            found.append(rest)
    if len(found) > 1 and found[0].first >= _END and _pauses(found[0]):
        del found[0]
    if len(found) > 1 and found[-1].last < count - _END and _pauses(found[-1]):
        del found[-1]
    return found


def seen_alone(rest: Rest) -> bool:
    """Whether frames show a thing where it rests without the actor next to it: two in a row, since one may err."""
    alone = ~rest.spots.touched
    return bool((alone[1:] & alone[:-1]).any())


def _pauses(rest: Rest) -> bool:
    """Whether a thing only keeps still in a hand for a while."""
    return len(rest.spots) < _PAUSE and not seen_alone(rest)


def settled(rest: Rest, reach: float, end: bool = False) -> Rest:
    """A rest without the frames at its begin in which the thing still moves a little: a pan that is shaken on the hob.

    It has settled when nearly all of what a frame shows of it lies, seen from there, where later frames show it, and
    goes on to do so: what hides a part of it makes no difference, and neither does an error of the rendered depth.

    Args:
        rest: Where the thing rests.
        reach: Points nearer to each other than this are at one place, scene units.
        end: Whether the frames at its end are asked instead, compared with earlier ones.
    """
    order = range(len(rest.spots))[:: -1 if end else 1]
    first = quiet = 0
    for i in range(len(order) - _ENOUGH):
        if _still(rest.spots, order[i], order[min(i + _LATER, len(order) - _ENOUGH) :], reach):
            quiet += 1
        else:
            first, quiet = i + 1, 0
        if quiet == _QUIET:
            break
    kept = np.sort(order[first:])
    return rest if first == 0 else Rest(rest.spots[kept])


def _still(seen: Spots, spot: int, others: Sequence[int], reach: float) -> bool:
    """Whether what a frame shows of a thing lies, seen from there, where others show it."""
    eye, others = seen.eyes[spot], others[:: max(1, len(others) // _COMPARED)]
    points, there = seen[[spot]].points - eye, seen[others].points - eye
    away = np.linalg.norm(points, axis=1)
    directions, known = points / away[:, None], there / np.linalg.norm(there, axis=1, keepdims=True)
    # Few points of a large thing lie far apart, the closer the more frames show them.
    apart = float(np.median(KDTree(points).query(points, k=2)[0][:, 1])) / len(others) ** 0.5
    off = KDTree(known).query(directions)[0] * away
    return float((off < max(reach / 2, apart)).mean()) >= _SETTLED


def _held(rest: Rest) -> bool:
    """Whether the actor was next to a thing nearly all the time."""
    return float(rest.spots.touched.mean()) >= _HELD


def _runs(seen: Spots, step: float, reach: float) -> list[list[int]]:
    """Parts of the time in which a thing is at one place; each spot belongs to one, strays to none."""
    found, at = [], 0
    while at < len(seen):
        found.append(_run(seen, at, step, reach))
        at = found[-1][-1] + 1
    return found


def _run(seen: Spots, start: int, step: float, reach: float) -> list[int]:
    """Indices of the spots from one on that lie at one place."""
    run, strays = [start], 0
    for i in range(start + 1, len(seen)):
        spot, before = seen[i : i + 1], len(run) - 4 if len(run) > 4 else len(run)
        near = spot.off(np.median(seen.centres[run[-24:]], axis=0))[0] < step
        if near or _covers(seen[run[: before : max(1, before // 8)]], spot, reach):
            run.append(i)
            strays = 0
        elif (strays := strays + 1) > _STRAYS:
            break
    return run


def _covers(before: Spots, spot: Spots, reach: float) -> bool:
    """Whether nearly all of what is seen of a thing lies where it lay before."""
    return covered(spot.points, KDTree(before.points), reach) > _COVERED


def _one_place(first: Rest, second: Rest, step: float, reach: float) -> bool:
    """Whether two rests are at one place."""
    apart = (np.median(other.spots.few.off(one.point)) for one, other in ((first, second), (second, first)))
    if max(apart) < step:
        return True
    return (
        max(covered(second.points, KDTree(first.points), reach), covered(first.points, KDTree(second.points), reach))
        > _COVERED
    )


def taken(seen: Spots, before: Rest, after: Rest, long: float, reach: float) -> bool:
    """Whether the actor has had a thing elsewhere between two rests.

    Args:
        seen: What each frame shows of the thing, in the order of time.
        before: The first of the rests.
        after: The second.
        long: The thing's size, scene units.
        reach: Points nearer to each other than this are at one place, scene units.
    """
    far = max(AWAY * long, 3 * reach)
    between = seen.between(before.last + 1, after.first - 1)
    return int((between.touched & (between.off(before.point) > far)).sum()) >= _DISPLACED
