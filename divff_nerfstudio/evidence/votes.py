"""Pixels of one segment decide together, and so do segments that look alike: one object changes as one."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

_PIXEL, _SEGMENT, _KIND = 1 / 3, 1 / 3, 1 / 3
"""Shares of a pixel's own evidence, its segment's, and that of all segments that look alike, at all times."""
_BLOCK = 2048


def alike(
    rows: Float[np.ndarray, "segments dim"], others: Float[np.ndarray, "others dim"], spread: float
) -> Float[np.ndarray, "segments others"]:
    """How alike segments look, from 1 down to 0.

    Args:
        rows: Looks of segments.
        others: Looks of others.
        spread: Distance at which two still look half alike, nearly (exp(-1/2)).
    """
    squares = (rows**2).sum(-1)[:, None] + (others**2).sum(-1)[None] - 2 * rows @ others.T
    return np.exp(-np.maximum(squares, 0) / (2 * spread**2))


def vote(
    segments: Int[np.ndarray, "frames height width"],
    looks: Float[np.ndarray, "segments dim"],
    spread: float,
    moves: Float[np.ndarray, "frames height width"],
    rests: Float[np.ndarray, "frames height width"],
) -> tuple[Float[np.ndarray, "frames height width"], Float[np.ndarray, "frames height width"]]:
    """Lets pixels vote.

    Args:
        segments: Number of each pixel's segment, over all frames; -1 where there is none, whose pixels stand alone.
        looks: How each segment looks: a feature, or a colour.
        spread: See `alike`.
        moves: Chance of each pixel that it shows something that is not always there.
        rests: Of what so moves, the chance that it rests around that time.

    Returns:
        Both after the vote.
    """
    flat, inside = segments.reshape(-1), segments.reshape(-1) >= 0
    if not inside.any():
        return moves, rests
    count = len(looks)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(flat[inside], values.reshape(-1)[inside], count)

    area, moving, resting = total(np.ones_like(moves)), total(moves), total(moves * rests)
    sums = np.zeros((count, 3))
    columns = np.stack((area, moving, resting), -1)
    looks = np.asarray(looks, np.float32)
    for start in range(0, count, _BLOCK):
        block = slice(start, start + _BLOCK)
        sums[block] = alike(looks[block], looks, spread) @ columns
    own_moves, own_rests = _ratio(moving, area), _ratio(resting, moving)
    kind_moves, kind_rests = _ratio(sums[:, 1], sums[:, 0]), _ratio(sums[:, 2], sums[:, 1])
    place = np.where(inside, flat, 0)
    voted_moves = _PIXEL * moves.reshape(-1) + (_SEGMENT * own_moves + _KIND * kind_moves)[place]
    voted_rests = (own_rests + 2 * kind_rests)[place] / 3  # what is carried now rests at other times
    return (
        np.where(inside, voted_moves, moves.reshape(-1)).reshape(moves.shape),
        np.where(inside, voted_rests, rests.reshape(-1)).reshape(rests.shape),
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.maximum(whole, 1e-9)
