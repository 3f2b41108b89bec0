"""In which frames the place that a pixel shows looks the same: a sweep over depths, by colours alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

DEPTHS = 40
"""Planes of the sweep, at even distances in 1 / depth."""
NEARER, FARTHER = 0.75, 1.05
"""Where the sweep begins and ends, in units of near and far."""
LEAST_FRAMES = 10
"""A place that fewer other frames see is known too little: nothing is said of it."""
_TOLERANCES = (0.03, 0.04, 0.06, 0.09, 0.13)
_SETTLED = 0.95
_KEEPS_LOOKING = 0.85
"""Share of the frames in which something at rest looks the same while it is there."""
_LEAST_CHANCE, _LARGEST_CHANCE = 0.03, 0.5


class Sightings(NamedTuple):
    """What is known of pixels of a frame."""

    kept: Float[Tensor, "*pixels"]
    """Largest share, over the depths, of the frames seeing the place in which it looks the same; 1 where too few do."""
    rests: Float[Tensor, "*pixels"]
    """Evidence that what the pixel shows rests there for a time around its own: a log-likelihood ratio against chance,
    per frame of the video."""


@dataclass(frozen=True)
class Views:
    """Frames in which places are looked for, with their cameras."""

    numbers: Sequence[int]
    """Their places in the order of time, ascending."""
    pictures: Float[Tensor, "views height width 3"]
    """Colours in [0, 1]."""
    poses: Float[Tensor, "views 3 4"]
    """Camera to world: columns right, up, back, position."""
    intrinsics: Sequence[float]
    """fx, fy, cx, cy in pixels of the pictures."""
    near: float
    """Least depth of the room along the optical axis, scene units."""
    far: float
    """Largest."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return int(self.pictures.shape[1]), int(self.pictures.shape[2])

    @cached_property
    def ranges(self) -> tuple[Float[Tensor, "views pixels 3"], Float[Tensor, "views pixels 3"]]:
        """Least and largest colours of each pixel and its eight neighbours: a sweep meets no pixel in its middle."""
        padded = F.pad(self.pictures.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate")
        least, largest = -F.max_pool2d(-padded, 3, 1), F.max_pool2d(padded, 3, 1)
        return least.flatten(2).permute(0, 2, 1), largest.flatten(2).permute(0, 2, 1)


class Asked(NamedTuple):
    """A frame whose pixels are asked about."""

    number: int
    """Its place in the order of time."""
    picture: Float[Tensor, "height width 3"]
    """Of the size of the views' pictures."""
    pose: Float[Tensor, "3 4"]
    """Camera to world."""


def sightings(views: Views, asked: Asked, stride: int, tolerance: float) -> Sightings:
    """Looks at the places that a frame's pixels may show in other frames.

    Args:
        views: The frames to look at; the asked one, if it is among them, is passed over.
        asked: Whose pixels are asked about.
        stride: Every which row and column of pixels is asked about.
        tolerance: Largest difference of a colour to the range of colours around the place in another frame.

    Returns:
        Of the asked pixels, (rows, columns).
    """
    rows, columns, points, own = _places(views, asked, stride)
    others = [view for view, number in enumerate(views.numbers) if number != asked.number]
    pixels = len(own)
    same = torch.zeros(len(others), pixels * DEPTHS, device=points.device)
    seen = torch.zeros_like(same)
    colours = own[:, None].expand(-1, DEPTHS, -1).reshape(-1, 3)
    low, high = views.ranges
    for row, view in enumerate(others):
        inside, at = _project(views, view, points)
        differs = torch.maximum(low[view, at] - colours, colours - high[view, at]).amax(-1)
        seen[row] = inside.float()
        same[row] = (inside & (differs <= tolerance)).float()
    count = seen.sum(0)
    share = torch.where(count >= LEAST_FRAMES, same.sum(0) / count.clamp_min(1), 0.0).view(pixels, DEPTHS)
    kept = torch.where((count.view(pixels, DEPTHS) >= LEAST_FRAMES).any(-1), share.amax(-1), 1.0)
    before = sum(views.numbers[view] < asked.number for view in others)
    rests = _rests(same.view(-1, pixels, DEPTHS), seen.view(-1, pixels, DEPTHS), before) / max(1, len(others))
    return Sightings(kept.view(rows, columns), rests.view(rows, columns))


def settle_tolerance(views: Views, tried: Sequence[Asked], stride: int) -> float:
    """The least tolerance at which half of a few frames' pixels look the same nearly everywhere: the pictures' noise.

    Args:
        views: See `sightings`.
        tried: The frames.
        stride: See `sightings`.
    """
    for tolerance in _TOLERANCES:
        kept = torch.cat([sightings(views, asked, 2 * stride, tolerance).kept.flatten() for asked in tried])
        if float(kept.median()) >= _SETTLED:
            return tolerance
    return _TOLERANCES[-1]


def _places(
    views: Views, asked: Asked, stride: int
) -> tuple[int, int, Float[Tensor, "points 3"], Float[Tensor, "pixels 3"]]:
    """Rows and columns of asked pixels, the places that they may show (all depths of a pixel together), and colours."""
    height, width = views.size
    device = views.pictures.device
    fx, fy, cx, cy = views.intrinsics
    row, column = torch.meshgrid(
        torch.arange(0, height, stride, device=device), torch.arange(0, width, stride, device=device), indexing="ij"
    )
    directions = torch.stack(((column + 0.5 - cx) / fx, -(row + 0.5 - cy) / fy, -torch.ones_like(row)), -1)
    inverse = torch.linspace(1 / (NEARER * views.near), 1 / (FARTHER * views.far), DEPTHS, device=device)
    local = directions.reshape(-1, 1, 3) / inverse[:, None]
    points = (local @ asked.pose[:, :3].T + asked.pose[:, 3]).reshape(-1, 3)
    return row.shape[0], row.shape[1], points, asked.picture[row, column].reshape(-1, 3)


def _project(views: Views, view: int, points: Float[Tensor, "points 3"]) -> tuple[Bool[Tensor, "points"], Tensor]:
    """Which places a view sees, and the number of the pixel where."""
    height, width = views.size
    fx, fy, cx, cy = views.intrinsics
    pose = views.poses[view]
    x, y, z = ((points - pose[:, 3]) @ pose[:, :3]).unbind(-1)
    depth = (-z).clamp_min(1e-6 * views.near)
    column, row = fx * x / depth + cx, -fy * y / depth + cy
    inside = (-z > 0.3 * views.near) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return inside, row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()


def _rests(
    same: Float[Tensor, "frames pixels depths"], seen: Float[Tensor, "frames pixels depths"], before: int
) -> Float[Tensor, "pixels"]:
    """The best interval of frames around a frame's own in which a place looks the same, against chance.

    The interval is the one with the largest sum of log-likelihood ratios, so that it ends where the place begins to
    look different, at both ends apart. Chance is how often the pixel's colour is met at any depth at any time.
    """
    chance = (same.sum((0, 2)) / seen.sum((0, 2)).clamp_min(1)).clamp(_LEAST_CHANCE, _LARGEST_CHANCE)[:, None]
    hit, miss = torch.log(_KEEPS_LOOKING / chance), torch.log((1 - _KEEPS_LOOKING) / (1 - chance))
    ratios = torch.where(same > 0, hit, miss) * seen
    total = torch.zeros_like(ratios[0]) if len(ratios) else seen.sum(0)
    for part in (ratios[before:], ratios[:before].flip(0)):
        if len(part):
            total = total + torch.cumsum(part, 0).amax(0).clamp_min(0)
    return total.amax(-1)
