"""In which frames the place that a pixel shows looks the same: a sweep over depths, by colours alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

DEPTHS = 40
"""Planes of the sweep, at even distances in 1 / depth."""
NEARER, FARTHER = 0.75, 1.05
"""Where the sweep begins and ends, in units of near and far."""
MIN_FRAMES = 10
"""A video of no more is too short."""
_MIN_SHARE, _MIN_SEEN = 10 / 72, 5
"""A place that a smaller share of the other frames sees, or fewer of them, is known too little: nothing is said of
it."""
_TOLERANCES = (0.03, 0.04, 0.06, 0.09, 0.13)
_SETTLED = 0.95
_KEEPS_LOOKING = 0.85
"""Share of the frames in which something at rest looks the same while it is there."""
_MIN_CHANCE, _MAX_CHANCE = 0.03, 0.5
_PATIENCE = 12.0
"""What ends a rest, unlike hands that hide it for a while: so much evidence against it at each pixel, about eight
frames in a row that look otherwise. Else what leaves a place and later lies on the same ray seems to have stayed."""
_BEHIND = 1.05
"""How many times as far as an object something must be to be hidden by it: depths of the sweep are that uncertain."""
_DOUBT = 1 / 36
"""What share of the frames is held against each place where some are not counted, so that no few decide."""


class Stays(NamedTuple):
    """Where and when segments of a frame rest around its own time."""

    support: Float[Tensor, "segments"]
    """Evidence that they do: the mean over their pixels of what `Sweep.rests` tells of one; 0 where there is none."""
    depth: Float[Tensor, "segments"]
    """Along the optical axis, scene units."""
    since: Int[Tensor, "segments"]
    """The first of the frames around its own in which they look the same there, by its place in the order of time."""
    until: Int[Tensor, "segments"]
    """The last."""
    earliest: Int[Tensor, "segments"]
    """The first before that up to which nobody sees the place otherwise: they may rest there as long, unseen."""
    latest: Int[Tensor, "segments"]
    """The last after it."""


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
    def colours(self) -> Float[Tensor, "views 3 pixels"]:
        """The pictures, channel by channel."""
        return self.pictures.flatten(1, 2).transpose(1, 2).contiguous()

    @cached_property
    def ranges(self) -> tuple[Float[Tensor, "views 3 pixels"], Float[Tensor, "views 3 pixels"]]:
        """Least and largest colours of each pixel and its eight neighbours: a sweep meets no pixel in its middle."""
        padded = F.pad(self.pictures.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate")
        min_colours, max_colours = -F.max_pool2d(-padded, 3, 1), F.max_pool2d(padded, 3, 1)
        return min_colours.flatten(2), max_colours.flatten(2)


class Asked(NamedTuple):
    """A frame whose pixels are asked about."""

    number: int
    """Its place in the order of time."""
    picture: Float[Tensor, "height width 3"]
    """Of the size of the views' pictures."""
    pose: Float[Tensor, "3 4"]
    """Camera to world."""


class Movers(NamedTuple):
    """What moves in the views, and may hide what is behind it."""

    actor: Float[Tensor, "views pixels"]
    """Chance that a pixel shows the camera wearer, who is before everything."""
    objects: Float[Tensor, "views pixels"]
    """Chance that it shows an object."""
    depths: Float[Tensor, "views pixels"]
    """The objects', along the optical axis, scene units; infinite where not known, so that they hide nothing."""

    def hide(self, view: int, pixels: Int[Tensor, "met"], depths: Float[Tensor, "met"]) -> Float[Tensor, "met"]:
        """Chance that places at the depths along the optical axis are hidden in the pixels of a view."""
        behind = depths > _BEHIND * self.depths[view, pixels]
        return self.actor[view, pixels] + self.objects[view, pixels] * behind


@dataclass(frozen=True)
class Sweep:
    """What other frames have at the places that a frame's pixels may show."""

    number: int
    """The frame's place in the order of time."""
    others: Sequence[int]
    """Places of the other frames, ascending."""
    depths: Float[Tensor, "depths"]
    """Of the planes, along the optical axis, from near to far."""
    same: Float[Tensor, "others rows columns depths"]
    """1 where they see the place and it looks the same."""
    seen: Float[Tensor, "others rows columns depths"]
    """1 where they see the place; less where it looks otherwise and something before it may hide it."""
    doubt: float = 0.0
    """How many more frames are taken to see the place otherwise."""

    @property
    def kept(self) -> Float[Tensor, "rows columns"]:
        """Largest share, over the depths, of the frames seeing the place in which it looks the same; 1 where too few
        do."""
        count = self.seen.sum(0)
        known = count >= min_seen(len(self.others))
        share = torch.where(known, self.same.sum(0) / (count + self.doubt).clamp_min(1), 0.0)
        return torch.where(known.any(-1), share.amax(-1), 1.0)

    @property
    def rests(self) -> Float[Tensor, "rows columns"]:
        """Evidence that what the pixel shows rests there for a time around its own: a log-likelihood ratio against
        chance, per frame of the video.

        The interval is the one with the largest sum of log-likelihood ratios, so that it ends where the place begins to
        look different, at both ends apart.
        """
        (later, _), (earlier, _) = (longest(part, _PATIENCE) for part in self._around(self._ratios))
        return (later + earlier).amax(-1) / max(1, len(self.others))

    def stays(self, segments: Int[Tensor, "rows columns"], number: int) -> Stays:
        """Where and when segments rest: their pixels, which are there together, decide as one.

        Args:
            segments: Number of each asked pixel's segment; -1 where there is none.
            number: How many there are.
        """
        inside = segments >= 0
        pixels = torch.bincount(segments[inside], minlength=number)
        sums = self._ratios.new_zeros(len(self.others), number, len(self.depths))
        sums.index_add_(1, segments[inside], self._ratios[:, inside])
        patience = _PATIENCE * pixels[:, None]
        (later, last), (earlier, first) = (longest(part, patience) for part in self._around(sums))
        total = later + earlier
        best = total.argmax(-1, keepdim=True)
        ends = [steps.gather(-1, best)[:, 0] for steps in (first, last)]
        against = sums.gather(-1, best.expand(len(sums), -1, -1))[..., 0] < 0
        looks = self._looks(segments, best[:, 0]) | against
        unseen = [_until_looked_at(part, end) for part, end in zip(self._around(looks)[::-1], ends, strict=True)]
        numbers = torch.tensor([*self.others, self.number], device=total.device)  # an empty interval is the frame's own
        since, earliest = (numbers[torch.where(end > 0, self._before - end, -1)] for end in (ends[0], unseen[0]))
        until, latest = (numbers[torch.where(end > 0, self._before + end - 1, -1)] for end in (ends[1], unseen[1]))
        support = total.gather(-1, best)[:, 0] / (pixels * max(1, len(self.others))).clamp_min(1)
        return Stays(support, self._between(total, best), since, until, earliest, latest)

    @cached_property
    def _ratios(self) -> Float[Tensor, "others rows columns depths"]:
        """How much more likely each sight is of something at rest than by chance, which is how often the pixel's colour
        is met at any depth at any time; a logarithm."""
        met, asked = self.same.sum((0, 3)), self.seen.sum((0, 3)).clamp_min(1)
        chance = (met / asked).clamp(_MIN_CHANCE, _MAX_CHANCE)[..., None]
        hit, miss = torch.log(_KEEPS_LOOKING / chance), torch.log((1 - _KEEPS_LOOKING) / (1 - chance))
        return torch.where(self.same > 0, hit, miss) * self.seen

    @property
    def _before(self) -> int:
        """How many of the others are before this one."""
        return sum(other < self.number for other in self.others)

    def _around(self, ratios: Float[Tensor, "others *places"]) -> tuple[Tensor, Tensor]:
        """Those of the frames behind this one, and of those before it, both leading away from it."""
        return ratios[self._before :], ratios[: self._before].flip(0)

    def _looks(
        self, segments: Int[Tensor, "rows columns"], planes: Int[Tensor, "segments"]
    ) -> Bool[Tensor, "others segments"]:
        """Whether each frame sees the place of a segment: a half of its pixels.

        Args:
            segments: See `stays`.
            planes: On which plane each segment is.
        """
        inside = segments >= 0
        theirs = segments[inside]
        seen = self.seen[:, inside].gather(-1, planes[theirs].expand(len(self.seen), -1)[..., None])[..., 0]
        sums = seen.new_zeros(len(seen), len(planes)).index_add_(1, theirs, seen)
        return 2 * sums >= torch.bincount(theirs, minlength=len(planes))

    def _between(self, total: Float[Tensor, "segments depths"], best: Int[Tensor, "segments 1"]) -> Tensor:
        """Depth of the top of a parabola through the best plane and its neighbours."""
        inner = best.clamp(1, len(self.depths) - 2)
        left, middle, right = (total.gather(-1, inner + step)[:, 0] for step in (-1, 0, 1))
        bend = (left - 2 * middle + right).clamp_max(-1e-6)
        shift = torch.where(best == inner, ((left - right) / (2 * bend))[:, None], 0.0).clamp(-0.5, 0.5)[:, 0]
        planes = 1 / self.depths
        return 1 / (planes[best[:, 0]] + shift * (planes[1] - planes[0]))


def sweep(
    views: Views,
    asked: Asked,
    stride: int,
    tolerance: float,
    movers: Movers | None = None,
) -> Sweep:
    """Looks at the places that a frame's pixels may show in other frames.

    Args:
        views: The frames to look at; the asked one, if it is among them, is passed over.
        asked: Whose pixels are asked about.
        stride: Every which row and column of pixels is asked about.
        tolerance: Largest difference of a colour to the range of colours around the place in another frame.
        movers: What hides places in the views: what looks otherwise there may still be as it was. None: nothing is
            known of that.

    Returns:
        Of the asked pixels.
    """
    rows, columns, depths, points, own = places(views, asked, stride)
    points = points.T.contiguous()  # what is alike lies side by side, so that the processor takes many at once
    others = [view for view, number in enumerate(views.numbers) if number != asked.number]
    same = torch.zeros(len(others), points.shape[1], device=points.device)
    seen = torch.zeros_like(same)
    colours = own.T[:, :, None].expand(-1, -1, DEPTHS).reshape(3, -1)
    low, high = views.ranges
    for row, view in enumerate(others):
        met, at, depth = project(views, view, points)
        theirs = colours.index_select(1, met)
        below, above = low[view].index_select(1, at) - theirs, theirs - high[view].index_select(1, at)
        alike = (torch.maximum(below, above).amax(0) <= tolerance).float()
        same[row, met] = alike
        seen[row, met] = torch.ones_like(alike) if movers is None else (1 - movers.hide(view, at, depth)).maximum(alike)
    shape = (-1, rows, columns, DEPTHS)
    numbers = [views.numbers[view] for view in others]
    doubt = 0 if movers is None else _DOUBT * len(others)
    return Sweep(asked.number, numbers, depths, same.view(shape), seen.view(shape), doubt)


def settle_tolerance(views: Views, tried: Sequence[Asked], stride: int) -> float:
    """The least tolerance at which half of a few frames' pixels look the same nearly everywhere: the pictures' noise.

    Args:
        views: See `sweep`.
        tried: The frames.
        stride: See `sweep`.
    """
    for tolerance in _TOLERANCES:
        kept = torch.cat([sweep(views, asked, 2 * stride, tolerance).kept.flatten() for asked in tried])
        if float(kept.median()) >= _SETTLED:
            return tolerance
    return _TOLERANCES[-1]


def min_seen(frames: int) -> float:
    """How many of so many other frames have to see a place that something is said of."""
    return max(_MIN_SEEN, _MIN_SHARE * frames)


def plane_bounds(near: float, far: float) -> tuple[float, float]:
    """Depths of the nearest and the farthest plane of a sweep in a room from near to far, scene units."""
    return NEARER * near, FARTHER * far


def places(
    views: Views, asked: Asked, stride: int
) -> tuple[int, int, Float[Tensor, "depths"], Float[Tensor, "points 3"], Float[Tensor, "pixels 3"]]:
    """Rows and columns of asked pixels, planes, the places that they may show (all depths of a pixel together), and
    colours."""
    height, width = views.size
    device = views.pictures.device
    fx, fy, cx, cy = views.intrinsics
    row, column = torch.meshgrid(
        torch.arange(0, height, stride, device=device), torch.arange(0, width, stride, device=device), indexing="ij"
    )
    directions = torch.stack(((column + 0.5 - cx) / fx, -(row + 0.5 - cy) / fy, -torch.ones_like(row)), -1)
    near, far = plane_bounds(views.near, views.far)
    inverse = torch.linspace(1 / near, 1 / far, DEPTHS, device=device)
    local = directions.reshape(-1, 1, 3) / inverse[:, None]
    points = (local @ asked.pose[:, :3].T + asked.pose[:, 3]).reshape(-1, 3)
    return row.shape[0], row.shape[1], 1 / inverse, points, asked.picture[row, column].reshape(-1, 3)


def project(
    views: Views, view: int, points: Float[Tensor, "3 points"]
) -> tuple[Int[Tensor, "met"], Int[Tensor, "met"], Float[Tensor, "met"]]:
    """Numbers of the places that a view sees, and of the pixels where, and their depths along the optical axis."""
    height, width = views.size
    fx, fy, cx, cy = views.intrinsics
    pose = views.poses[view]
    x, y, z = pose[:, :3].T @ (points - pose[:, 3:])
    depth = (-z).clamp_min(1e-6 * views.near)
    column, row = fx * x / depth + cx, -fy * y / depth + cy
    inside = (-z > 0.3 * views.near) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    met = inside.nonzero()[:, 0]
    pixels = row.index_select(0, met).long() * width + column.index_select(0, met).long()
    return met, pixels, depth.index_select(0, met)


def _until_looked_at(looks: Bool[Tensor, "frames segments"], ends: Int[Tensor, "segments"]) -> Int[Tensor, "segments"]:
    """Ends of rests, put off to the frame before the next that sees the place: what nobody looks at stays as it is.

    Args:
        looks: Whether frames that lead away from one see the place.
        ends: In how many of these frames the segments rest.
    """
    frames = torch.arange(len(looks), device=ends.device)[:, None]
    return torch.where(looks & (frames >= ends), frames, len(looks)).amin(0) if len(looks) else ends


def longest(
    ratios: Float[Tensor, "frames *places"], patience: Float[Tensor, "*#places"] | float
) -> tuple[Tensor, Int[Tensor, "*places"]]:
    """The largest sum of ratios from the first frame on, 0 if none is positive, and of how many frames it is.

    Args:
        ratios: Of frames that lead away from one.
        patience: How far the sum may fall below its largest value: behind that, nothing counts.
    """
    places = ratios.shape[1:]
    summed = torch.zeros(places, dtype=torch.float64, device=ratios.device)
    max_sum = torch.zeros(places, dtype=ratios.dtype, device=ratios.device)
    frames = torch.zeros(places, dtype=torch.long, device=ratios.device)
    counts = torch.ones(places, dtype=torch.bool, device=ratios.device)
    for number, ratio in enumerate(ratios, 1):
        found = summed.add_(ratio).to(ratios.dtype)
        better = (found > max_sum) & counts
        max_sum = torch.where(better, found, max_sum)
        frames.masked_fill_(better, number)
        counts &= max_sum - found <= patience
    return max_sum, frames
