"""Pixels of one segment decide together, and so do segments that look alike: one object changes as one."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

_PIXEL, _SEGMENT, _KIND = 0.15, 0.15, 0.7
"""Shares of a pixel's own evidence, its segment's, and that of all segments that look alike, at all times: a piece of
worktop that is seen for a moment only looks like the rest of it."""
_RESTING = 0.8
"""Which quantile of resting counts, of all that looks alike and moves: an object may be carried for most of the video,
but it rests at some time; a hand hardly ever does."""
_BLOCK = 512


def alike(
    rows: Float[np.ndarray, "segments dim"], others: Float[np.ndarray, "others dim"], spread: float
) -> Float[np.ndarray, "segments others"]:
    """How alike segments look, from 1 down to 0.

    Args:
        rows: Looks of segments.
        others: Looks of others.
        spread: Distance at which two still look half alike, nearly (exp(-1/2)).
    """
    return np.exp(-_squared_distances(rows, others) / (2 * spread**2))


def nearest_distances(
    rows: Float[np.ndarray, "segments dim"], others: Float[np.ndarray, "others dim"]
) -> Float[np.ndarray, "pairs"]:
    """Distances of those segments of two frames that are each other's nearest, so that most pairs are of one thing."""
    if not len(rows) or not len(others):
        return np.zeros(0)
    squares = _squared_distances(rows, others)
    theirs = squares.argmin(1)
    pairs = squares.argmin(0)[theirs] == np.arange(len(rows))
    return np.sqrt(squares[pairs, theirs[pairs]])


def count(
    segments: Int[np.ndarray, "height width"],
    number: int,
    moves: Float[np.ndarray, "height width"],
    rests: Float[np.ndarray, "height width"],
) -> Float[np.ndarray, "segments 3"]:
    """Counts a frame's votes.

    Args:
        segments: Number of each pixel's segment in the frame; -1 where there is none.
        number: How many there are.
        moves: Chance of each pixel that it shows something that is not always there.
        rests: Of what so moves, the chance that it rests around that time.

    Returns:
        For each segment the pixels, those that move, and those that move and rest.
    """
    inside, parts = segments >= 0, (np.ones_like(moves), moves, moves * rests)
    return np.stack([np.bincount(segments[inside], part[inside], number) for part in parts], -1)


class Kinds:
    """What all segments that look alike do, at all times.

    Args:
        looks: How those look that are asked: features, or colours.
        votes: Theirs, see `count`.
        spread: See `alike`.
    """

    def __init__(self, looks: Float[np.ndarray, "others dim"], votes: Float[np.ndarray, "others 3"], spread: float):
        shares = _ratio(votes[:, 2], votes[:, 1])
        order = np.argsort(shares, kind="stable")
        self._looks, self._votes, self._shares, self._spread = looks[order], votes[order], shares[order], spread

    def votes(self, looks: Float[np.ndarray, "segments dim"]) -> Float[np.ndarray, "segments 3"]:
        """The votes of all that looks like each segment.

        Args:
            looks: How segments look.

        Returns:
            Sums of the pixels and of those that move, and of the latter the share that rests in the more restful of
            the segments (the quantile `_RESTING`).
        """
        found = np.zeros((len(looks), 3))
        for start in range(0, len(looks) if len(self._looks) else 0, _BLOCK):
            likeness = alike(looks[start : start + _BLOCK], self._looks, self._spread)
            sums = likeness @ self._votes[:, :2]
            restless = np.cumsum(likeness * self._votes[:, 1], -1)
            place = (restless < _RESTING * restless[:, -1:]).sum(-1)
            resting = self._shares[np.minimum(place, len(self._shares) - 1)]
            found[start : start + _BLOCK] = np.concatenate((sums, (resting * sums[:, 1])[:, None]), -1)
        return found


def decide(
    segments: Int[np.ndarray, "height width"],
    own: Float[np.ndarray, "segments 3"],
    kinds: Float[np.ndarray, "segments 3"],
    moves: Float[np.ndarray, "height width"],
    rests: Float[np.ndarray, "height width"],
) -> tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    """What becomes of a frame's `moves` and `rests` by the votes of its segments (`count`) and of their `Kinds`.

    Pixels without a segment stand alone.
    """
    inside = segments >= 0
    if not inside.any():
        return moves, rests
    voted = _SEGMENT * _ratio(own[:, 1], own[:, 0]) + _KIND * _ratio(kinds[:, 1], kinds[:, 0])
    # What is carried now rests at other times.
    resting = (_ratio(own[:, 2], own[:, 1]) + 4 * _ratio(kinds[:, 2], kinds[:, 1])) / 5
    place = np.where(inside, segments, 0)
    return np.where(inside, _PIXEL * moves + voted[place], moves), np.where(inside, resting[place], rests)


def _squared_distances(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.maximum((rows**2).sum(-1)[:, None] + (others**2).sum(-1)[None] - 2 * rows @ others.T, 0)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.maximum(whole, 1e-9)
