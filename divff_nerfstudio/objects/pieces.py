"""Puts together things of which segments show but pieces: always side by side, or one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int, UInt16
from scipy.spatial import KDTree

from divff_nerfstudio.objects.grouping import MIN_FRAMES, PLACE_SPEAKS, SPEED, Group
from divff_nerfstudio.objects.likeness import Likeness, covered
from divff_nerfstudio.objects.sighting_table import SightingTable

_TOUCHING = 2
"""So many pairs of neighbouring pixels make segments neighbours."""
_LESS = 0.35
"""So many spreads less alike than usual they may be."""
_BESIDE = 0.6
"""In so many of the frames that show both, pieces of one thing are neighbours."""
_ALWAYS = 0.95
"""The same where nothing but this speaks for it, both being in the dynamic layer, in so many frames that show both."""
_OFTEN = 15
_BRIEF = 0.25
"""What fills the gaps of another is seen in fewer frames than this share of its."""
_MEANWHILE = 0.1
"""In so many of its frames both may be seen."""
_COVERED = 0.5
_SOON = 3
"""What is away is seen so many frames before and after, at most."""
_SURE = PLACE_SPEAKS
"""Features that speak for one thing as much as a place does are enough, wherever it lies."""
MIN_DYNAMIC = 0.25
"""The dynamic layer has this share of what moves at some time, at least."""


def join_pieces(
    groups: Sequence[Group], seen: SightingTable, rows: UInt16[np.ndarray, "frames height width"], likeness: Likeness
) -> list[Group]:
    """Joins groups that are neighbours in most frames that show both, and whose features are as alike as those of one
    thing usually are: the halves of a mug of which one lies in the shade; and what the dynamic layer has that is never
    seen apart, however unlike: the blade of a knife and its handle.

    Things of one kind that only stand side by side are joined, too, if nothing tells them apart.

    Args:
        groups: The groups; those that are joined to others are changed.
        seen: All segments.
        rows: The row of each frame's part of the store at each pixel.
        likeness: What similarities of features say.
    """
    shown = [np.unique(seen.columns["frame"][np.array(group.numbers)]) for group in groups]
    dynamic = [_dynamic(group, seen) for group in groups]
    usual = likeness.same[0] - _LESS * likeness.same[1]
    alike, inseparable = [], []
    for (first, second), beside in _neighbours(groups, seen, rows).items():
        both = len(np.intersect1d(shown[first], shown[second], assume_unique=True))
        if both >= MIN_FRAMES and beside >= _BESIDE * both:
            alike.append((float(groups[first].direction @ groups[second].direction), first, second))
        if both >= _OFTEN and beside >= _ALWAYS * both and min(dynamic[first], dynamic[second]) >= MIN_DYNAMIC:
            inseparable.append((first, second))
    into = list(range(len(groups)))

    def join(first: int, second: int, least: float) -> None:
        one, other = sorted((_root(into, first), _root(into, second)), key=lambda i: (-len(groups[i].numbers), i))
        if one != other and float(groups[one].direction @ groups[other].direction) >= least:
            groups[one].absorb(groups[other])
            into[other] = one

    for similar, first, second in sorted(alike, reverse=True):
        if similar >= usual:
            join(first, second, usual)
    for first, second in inseparable:
        join(first, second, -np.inf)
    return [group for i, group in enumerate(groups) if into[i] == i]


def join_over_time(groups: Sequence[Group], seen: SightingTable, likeness: Likeness, reach: float) -> list[Group]:
    """Joins groups that are not seen at the same time: what the dynamic layer has and what looks the same, a carrot
    before and after it was moved; what is seen briefly at the place where another group is seen next before or after,
    and may look like it, a bottle of which a passing arm leaves but a part; and what the dynamic layer has just while
    another group that it has is away, and which could have got from there and back in time, a knife that looks like
    itself in the hand only from afar.

    Args:
        groups: The groups; those that take others in are changed.
        seen: All segments.
        likeness: What similarities of features say.
        reach: Points nearer to each other than this are at one place, scene units.
    """
    shown = [np.unique(seen.columns["frame"][np.array(group.numbers)]) for group in groups]
    dynamic = [_dynamic(group, seen) >= MIN_DYNAMIC for group in groups]
    kept = sorted(range(len(groups)), key=lambda i: -len(shown[i]))
    directions = np.stack([group.direction for group in groups]) if groups else np.zeros((0, 0))
    for one in reversed(kept.copy()):
        own = shown[one]
        similar = directions @ directions[one]
        speaks, graded = likeness.evidence(similar), likeness.graded(similar)
        for other in sorted((i for i in kept if i != one and graded[i] > 0), key=lambda i: -similar[i]):
            both = len(np.intersect1d(own, shown[other], assume_unique=True))
            if both > _MEANWHILE * min(len(own), len(shown[other])):
                continue
            brief, moving = len(own) <= _BRIEF * len(shown[other]), dynamic[one] and dynamic[other]
            if (
                (speaks[other] > _SURE and moving)
                or (speaks[other] > 0 and brief and _lies_there(groups[one], groups[other], seen, reach))
                or (moving and brief and _is_away(groups[one], groups[other], seen))
            ):
                groups[other].absorb(groups[one])
                shown[other] = np.union1d(shown[other], own)
                kept.remove(one)
                break
    return [groups[i] for i in sorted(kept)]


def _dynamic(group: Group, seen: SightingTable) -> float:
    """The dynamic layer's share of a group."""
    return float(seen.columns["dynamic"][np.array(group.numbers)].mean())


def _neighbours(
    groups: Sequence[Group], seen: SightingTable, rows: UInt16[np.ndarray, "frames height width"]
) -> Counter[tuple[int, int]]:
    """In how many frames two groups have segments beside each other."""
    owners = np.full(len(seen.columns) + 1, -1)  # the last is that of pixels in no segment, -1
    for number, group in enumerate(groups):
        owners[np.array(group.numbers)] = number
    found = Counter[tuple[int, int]]()
    for frame, row in enumerate(rows):
        place = owners[seen.numbers_at(frame, row)]
        pairs = np.concatenate(
            [
                np.stack((place[:-1], place[1:]), -1).reshape(-1, 2),
                np.stack((place[:, :-1], place[:, 1:]), -1).reshape(-1, 2),
            ]
        )
        pairs = np.sort(pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs.min(axis=1) >= 0)], axis=1)
        different, count = np.unique(pairs, axis=0, return_counts=True)
        found.update(tuple(pair) for pair in different[count >= _TOUCHING].tolist())
    return found


def _root(into: list[int], group: int) -> int:
    """What a group has been joined to, and that, and so on."""
    while into[group] != group:
        group = into[group]
    return group


def _lies_there(brief: Group, other: Group, seen: SightingTable, reach: float) -> bool:
    """Whether what a group shows lies where another one is seen last before, or first after."""
    points = seen.points(np.array(brief.numbers))
    return any(
        len(there) > 0 and covered(points, KDTree(seen.points(there)), reach) > _COVERED
        for _, there in _ends(brief, other, seen)
    )


def _is_away(brief: Group, other: Group, seen: SightingTable) -> bool:
    """Whether another group is seen last just before a group is, and first just after, both times so near to it that it
    may have been carried from there, and back."""
    for own, there in _ends(brief, other, seen):
        if not len(there):
            return False
        near, far = seen.columns[own], seen.columns[there]
        passed = abs(int(near["frame"][0]) - int(far["frame"][0]))
        apart = np.linalg.norm(near["centre"][:, None] - far["centre"], axis=-1).min()
        if passed > _SOON or apart > SPEED * float(far["depth"].max()) * passed:
            return False
    return True


def _ends(
    brief: Group, other: Group, seen: SightingTable
) -> Iterator[tuple[Int[np.ndarray, "n"], Int[np.ndarray, "m"]]]:
    """Numbers of a group's first segments and of the other's last ones before; then of its last ones, and of the
    other's first ones after."""
    own, numbers = np.array(brief.numbers), np.array(other.numbers)
    frames, when = seen.columns["frame"][own], seen.columns["frame"][numbers]
    first, last = frames.min(), frames.max()
    yield own[frames == first], numbers[when == when[when < first].max(initial=-1)]
    yield own[frames == last], numbers[when == when[when > last].min(initial=seen.frames)]
