"""Which of many groups lie near another: by boxes around them, all at once, before points are compared one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    from divff_nerfstudio.objects.grouping import Group

_MIN_ROWS = 64


class Near:
    """Groups with the boxes around them.

    Args:
        groups: The groups.

    Attributes:
        groups: The groups, in the order in which they were added.
    """

    def __init__(self, groups: list[Group]):
        self.groups: list[Group] = []
        self._boxes = np.zeros((_MIN_ROWS, 2, 3))
        for group in groups:
            self.add(group)

    def add(self, group: Group) -> None:
        """Adds a group."""
        if len(self.groups) == len(self._boxes):
            self._boxes = np.concatenate((self._boxes, np.zeros_like(self._boxes)))
        self._boxes[len(self.groups)] = group.box
        self.groups.append(group)

    def absorb(self, number: int, other: Group) -> None:
        """Has a group take in another at the same place.

        Args:
            number: Index of the one that takes in.
            other: The other.
        """
        self.groups[number].absorb(other)
        self._boxes[number] = self.groups[number].box

    def to(self, group: Group, reach: float) -> Int[np.ndarray, "n"]:
        """Indices of the groups whose boxes are within reach of a group's, ascending.

        Args:
            group: The group.
            reach: How near that is, scene units.
        """
        lows, highs = self._boxes[: len(self.groups)].transpose(1, 0, 2)
        low, high = group.box
        return np.flatnonzero(((low <= highs + reach) & (high >= lows - reach)).all(axis=1))
