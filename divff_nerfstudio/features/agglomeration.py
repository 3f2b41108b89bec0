"""Puts pixels together to regions by how likely pairs of them show different things."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

_SPECK = 9
"""Regions of fewer pixels join what they differ least from, though something else differs from that less: what comes of
it is nearly the same, in a tenth of the time."""
_STRIDE = 2
"""Of pairs that are no neighbours, every so many-th row and column counts."""


def regions_of(
    different: Float32[np.ndarray, "offsets height width"],
    offsets: Sequence[tuple[int, int]],
    limit: float,
    min_size: int,
) -> Int[np.ndarray, "height width"]:
    """Joins neighbouring regions, from single pixels on, those first that differ least (average linkage).

    Regions are joined in rounds, always two that are next to each other by what they differ, in whatever order.

    Args:
        different: Probability that the pixel at each of the offsets from a pixel shows something else.
        offsets: Rows and columns to that pixel, both at least 0; among them (0, 1) and (1, 0).
        limit: Regions are joined while this probability, on the average over their pairs of pixels, is less.
        min_size: Regions of fewer pixels belong to the neighbour that they differ from least.

    Returns:
        The region of each pixel, from 0 on.
    """
    regions = np.arange(different[0].size).reshape(different.shape[1:])
    parts = [_pairs(regions, *offset, values) for offset, values in zip(offsets, different, strict=True)]
    near = [np.full(len(part[0]), sum(offset) == 1) for offset, part in zip(offsets, parts, strict=True)]
    borders = _Borders(*(np.concatenate(column) for column in (*zip(*parts, strict=True), near)))
    for below, least, both in ((_SPECK, limit, False), (np.inf, limit, True), (min_size, np.inf, False)):
        while (into := borders.nearest(np.bincount(regions.ravel()), below, least, both)) is not None:
            borders, regions = borders.between(into), into[regions]
    return regions


class _Borders:
    """How much regions differ.

    Args:
        first: A region of each pair of pixels.
        second: The other one.
        foreseen: Sum of the probabilities that they differ.
        touching: Whether the pixels, or some of them, are neighbours.
        count: Of how many pairs of pixels it is the sum; None: of one each.
    """

    def __init__(
        self,
        first: Int[np.ndarray, "n"],
        second: Int[np.ndarray, "n"],
        foreseen: Float[np.ndarray, "n"],
        touching: Bool[np.ndarray, "n"],
        count: Float[np.ndarray, "n"] | None = None,
    ):
        count = np.ones(len(first)) if count is None else count
        low, high = np.minimum(first, second), np.maximum(first, second)
        across, regions = low != high, int(high.max(initial=0)) + 1
        codes, pair = np.unique((low * regions + high)[across], return_inverse=True)
        self.first, self.second = np.divmod(codes, regions)
        self.foreseen, self.count, touches = (
            np.bincount(pair, values[across], len(codes)) for values in (foreseen, count, touching)
        )
        self.touching = touches > 0

    def nearest(
        self, area: Int[np.ndarray, "regions"], below: float, limit: float, both: bool
    ) -> Int[np.ndarray, "regions"] | None:
        """Joins regions with the neighbour that they differ least from.

        Args:
            area: Pixels of each region.
            below: Only regions of fewer pixels are joined to another.
            limit: What they differ by is less.
            both: Whether that neighbour must differ least from them, too.

        Returns:
            The new number of each region; None if none is joined.
        """
        differ = np.where(self.touching, self.foreseen / self.count, np.inf)
        rank = np.empty(len(differ), np.int64)
        rank[np.argsort(differ, kind="stable")] = np.arange(len(differ))
        least = np.full(len(area), len(differ))
        for ends in (self.first, self.second):
            np.minimum.at(least, ends, rank)
        first, second = ((rank == least[ends]) & (area[ends] < below) for ends in (self.first, self.second))
        chosen = (first & second if both else first | second) & (differ < limit)
        if not chosen.any():
            return None
        graph = coo_matrix((chosen[chosen], (self.first[chosen], self.second[chosen])), (len(area), len(area)))
        return connected_components(graph, directed=False)[1].astype(np.int64)

    def between(self, into: Int[np.ndarray, "regions"]) -> _Borders:
        """The borders that are left between regions of new numbers."""
        return _Borders(into[self.first], into[self.second], self.foreseen, self.touching, self.count)


def _pairs(
    numbers: Int[np.ndarray, "h w"], down: int, right: int, values: Float32[np.ndarray, "h w"]
) -> tuple[Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"], Float32[np.ndarray, "pairs"]]:
    """Numbers of pixels, and of those at an offset, with the pairs' values."""
    height, width = numbers.shape
    stride = 1 if down + right == 1 else _STRIDE
    here = slice(0, max(height - down, 0), stride), slice(0, max(width - right, 0), stride)
    there = slice(down, None, stride), slice(right, None, stride)
    return numbers[here].ravel(), numbers[there].ravel(), values[here].ravel()
