"""Which of what looks otherwise is the room in shadow: a darker multiple, in all channels alike, of what other frames
have there."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from divff_nerfstudio.evidence.sightings import DEPTHS, Asked, Movers, Views, min_seen, places, project

_ALIKE = 0.03
"""How far colours may be from a multiple of the room's, relative to them (at exp(-1/2))."""
_ROUNDING = 0.004
"""How far besides, since colours are of 8 bits."""
_LEFT, _LEFT_WIDTH = -0.25, 0.05
"""Below which logarithm of what is left of the light it is a shadow, and how sharp that bound is."""
_COLOURED, _COLOURED_WIDTH = 0.065, 0.015
"""From which deviation of its channels' logarithms on the room has a colour, and how sharp that bound is: before what
is grey, a black pan is a darker multiple, too."""


def shadowed(
    views: Views, asked: Asked, stride: int, movers: Movers, changed: Bool[Tensor, "rows columns"]
) -> Float[Tensor, "rows columns"]:
    """Chance that pixels show the room in the shadow of something.

    Args:
        views: Frames that may show the room there.
        asked: Whose pixels are asked about.
        stride: Every which row and column of pixels is asked about.
        movers: What hides the room in the views; their shadows count as they do.
        changed: Which of the asked pixels look otherwise than in most frames; the others are in no shadow.
    """
    found = torch.zeros(changed.shape, device=changed.device)
    own, room = asked.picture[::stride, ::stride][changed], _room(views, asked, stride, movers, changed)
    left = (own * room).sum(-1) / room.square().sum(-1).clamp_min(1e-6)
    off = (own - left[:, None] * room).square().mean(-1).sqrt()
    alike = torch.exp(-((off / (_ALIKE * left * room.square().mean(-1).sqrt() + _ROUNDING)).square()) / 2)
    darker = torch.sigmoid((_LEFT - left.clamp_min(1e-3).log()) / _LEFT_WIDTH)
    coloured = torch.sigmoid(((room + 0.02).log().std(-1, correction=0) - _COLOURED) / _COLOURED_WIDTH)
    found[changed] = alike * darker * coloured
    return found


def _room(
    views: Views, asked: Asked, stride: int, movers: Movers, changed: Bool[Tensor, "rows columns"]
) -> Float[Tensor, "changed 3"]:
    """The room's colours at pixels: their mean over the frames in which nothing hides it, at the depth where these
    agree best; black where too few see anything."""
    points = places(views, asked, stride)[3].view(*changed.shape, DEPTHS, 3)[changed].reshape(-1, 3).T.contiguous()
    weights, sums, squares = (torch.zeros(rows, points.shape[1], device=points.device) for rows in (1, 3, 1))
    for view, number in enumerate(views.numbers):
        if number == asked.number:
            continue
        met, at, depth = project(views, view, points)
        clear, colours = 1 - movers.hide(view, at, depth).clamp_max(1), views.colours[view].index_select(1, at)
        weights[:, met] += clear
        sums[:, met] += clear * colours
        squares[:, met] += clear * colours.square().sum(0)
    means = sums / weights.clamp_min(1e-6)
    spread = squares / weights.clamp_min(1e-6) - means.square().sum(0)
    others = len(views.numbers) - (asked.number in views.numbers)
    spread = torch.where(weights >= min_seen(others), spread, torch.inf).view(-1, DEPTHS)
    best = spread.argmin(-1, keepdim=True)
    colours = means.view(3, -1, DEPTHS).gather(2, best.expand(3, -1, -1))[..., 0].T
    return torch.where(spread.gather(1, best).isfinite(), colours, 0.0)
