"""Puts together things of which segments show but pieces: side by side whenever both are seen, and as alike as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt16

from divff_nerfstudio.objects.grouping import MIN_FRAMES, Group
from divff_nerfstudio.objects.likeness import Likeness
from divff_nerfstudio.objects.sighting_table import SightingTable

_TOUCHING = 2
"""So many pairs of neighbouring pixels make segments neighbours."""
_LESS = 0.35
"""So many spreads less alike than usual they may be."""
_BESIDE = 0.6
"""In so many of the frames that show both, pieces of one thing are neighbours."""


def join_pieces(
    groups: Sequence[Group], seen: SightingTable, rows: UInt16[np.ndarray, "frames height width"], likeness: Likeness
) -> list[Group]:
    """Joins groups that are neighbours in most frames that show both, and whose features are as alike as those of one
    thing usually are: the halves of a mug of which one lies in the shade.

    Things of one kind that only stand side by side are joined, too, if nothing tells them apart.

    Args:
        groups: The groups; those that are joined to others are changed.
        seen: All segments.
        rows: The row of each frame's part of the store at each pixel.
        likeness: What similarities of features say.
    """
    shown = [np.unique(seen.columns["frame"][np.array(group.numbers)]) for group in groups]
    usual = likeness.same[0] - _LESS * likeness.same[1]
    found = []
    for (first, second), beside in _neighbours(groups, seen, rows).items():
        both = len(np.intersect1d(shown[first], shown[second], assume_unique=True))
        if both >= MIN_FRAMES and beside >= _BESIDE * both:
            found.append((float(groups[first].direction @ groups[second].direction), first, second))
    into = list(range(len(groups)))
    for similar, first, second in sorted(found, reverse=True):
        one, other = sorted((_root(into, first), _root(into, second)), key=lambda i: (-len(groups[i].numbers), i))
        if similar >= usual and one != other and float(groups[one].direction @ groups[other].direction) >= usual:
            groups[one].absorb(groups[other])
            into[other] = one
    return [group for i, group in enumerate(groups) if into[i] == i]


def _neighbours(
    groups: Sequence[Group], seen: SightingTable, rows: UInt16[np.ndarray, "frames height width"]
) -> Counter[tuple[int, int]]:
    """In how many frames two groups have segments beside each other."""
    owners = np.full(len(seen.columns), -1)
    for number, group in enumerate(groups):
        owners[np.array(group.numbers)] = number
    found = Counter[tuple[int, int]]()
    of_row = np.full(np.iinfo(np.uint16).max + 1, -1)
    for frame, row in enumerate(rows):
        own = seen.of_frame(frame)
        of_row[:] = -1
        of_row[own.column("row")] = owners[own.numbers]
        place = of_row[row]
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
