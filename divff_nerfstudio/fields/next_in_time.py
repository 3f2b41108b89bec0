"""Which frames are next to a time."""

from __future__ import annotations

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


def frames_around(
    sorted_times: Shaped[Tensor, "frames"], times: Shaped[Tensor, "*bs"]
) -> tuple[Int[Tensor, "*bs"], Int[Tensor, "*bs"]]:
    """Indices of the two frames that times lie between; of one frame twice the same, beyond the ends the last two."""
    last = len(sorted_times) - 1
    later = torch.searchsorted(sorted_times, times.contiguous()).clamp(min(1, last), last)
    return (later - 1).clamp_min(0), later


def nearest_frame(sorted_times: Shaped[Tensor, "frames"], times: Shaped[Tensor, "*bs"]) -> Int[Tensor, "*bs"]:
    """Index of the frame next in time, of earlier and later equally near ones the earlier."""
    earlier, later = frames_around(sorted_times, times)
    closer = (times - sorted_times[earlier]) <= (sorted_times[later] - times)
    return torch.where(closer, earlier, later)
