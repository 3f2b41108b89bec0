"""Choosing some of many, evenly spaced: frames, moments, segments, points."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def evenly_spaced(count: int, max_count: int | None) -> Int[np.ndarray, "chosen"]:
    """Which of so many to look at, where they may be more than enough.

    Args:
        count: How many there are.
        max_count: How many are chosen, at least 1; None: all.

    Returns:
        Their indices, ascending, none twice. All where there are no more than are asked for; else as many as are asked
        for, the first and the last among them, but of one that is asked for, the first.
    """
    return np.linspace(0, count - 1, count if max_count is None else min(max_count, count)).round().astype(int)
