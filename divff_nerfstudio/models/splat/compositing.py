"""Compositing of projected Gaussians in PyTorch: padded lists per tile, front to back (Kerbl 2023, section 6).

A few tensor operations on whole tiles do what gsplat's kernel does per pixel, with the same rules: opacity at most
0.999, parts below 1/255 left out, and an end where less than 1e-4 of the light is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

MAX_ALPHA, MIN_ALPHA, MIN_LIGHT = 0.999, 1 / 255, 1e-4
"""gsplat's limits: opacity of one Gaussian in a pixel, opacity that counts, light at which a pixel is done."""
GSPLAT_TILE = 16
"""A Gaussian reaches every pixel of the tiles of this size that the square of its radius touches (gsplat)."""
_TILE = 4
"""Side of a tile in pixels, a divisor of `GSPLAT_TILE`: of 4 and 8 the faster on a CPU."""
_CHUNK = 1 << 17
"""Opacities that are held at a time: what fits into a cache."""
_BAND = 1 << 17
"""Pixels whose lists are held at a time: whatever the size of the picture, memory is bounded."""
_NOTHING = -1e4
"""Logarithm of the opacity of what fills up the lists."""


@dataclass
class Projected:
    """Gaussians in the image of one camera."""

    means: Float[Tensor, "gaussians 2"]
    """Centres in pixels; the centre of the first pixel is at (0.5, 0.5)."""
    conics: Float[Tensor, "gaussians 3"]
    """Upper triangle of the inverse covariances, in 1 / pixel^2."""
    radii: Int[Tensor, "gaussians"]
    """Three standard deviations along the longest axis, in pixels; 0: not in the image."""
    depths: Float[Tensor, "gaussians"]
    """Depths by which they are sorted."""
    opacities: Float[Tensor, "gaussians"]
    """In [0, 1]."""


@dataclass
class TileLists:
    """For each tile of an image, the Gaussians that may be seen in it, from front to back."""

    ids: Int[Tensor, "pairs"]
    """Gaussians, tile after tile."""
    starts: Int[Tensor, "tiles"]
    """Where each tile's part begins."""
    counts: Int[Tensor, "tiles"]
    """Length of each tile's part."""
    width: int
    """Tiles in a row."""


def composite_gaussians(
    projected: Projected, values: Float[Tensor, "gaussians channels"], width: int, height: int
) -> tuple[Float[Tensor, "{height} {width} channels"], Float[Tensor, "{height} {width} 1"]]:
    """Sums of values weighted by how much of each Gaussian is seen, and the sums of the weights.

    Differentiable with respect to centres, conics, opacities and values.

    Args:
        projected: The Gaussians.
        values: What is summed.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
    """
    rows = max(1, _BAND // (width * GSPLAT_TILE)) * GSPLAT_TILE
    bands = []
    for top in range(0, height, rows):
        part = replace(projected, means=projected.means - projected.means.new_tensor((0.0, top)))
        size = (width, min(rows, height - top))
        lists = list_tiles(part, *size)
        bands.append(_Compositing.apply(part.means, part.conics, part.opacities, values, lists, *size))
    summed = torch.cat(bands)
    return summed[..., :-1], summed[..., -1:]


@torch.no_grad()
def list_tiles(projected: Projected, width: int, height: int) -> TileLists:
    """Lists the Gaussians of each tile, those in front first.

    Args:
        projected: The Gaussians.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
    """
    reach = torch.log(projected.opacities / MIN_ALPHA)
    seen = torch.nonzero((projected.radii > 0) & (reach > 0))[:, 0]
    seen = seen[torch.sort(projected.depths[seen], stable=True).indices]
    radii, reach = projected.radii[seen].to(projected.means), reach[seen]
    a, b, c = projected.conics[seen].unbind(-1)
    covariance = torch.stack((c, a), -1) / (a * c - b * b).clamp_min(1e-12)[:, None]
    # Half the ellipse in which the opacity counts, a little widened against rounding.
    half = (2 * reach[:, None] * covariance).sqrt() * 1.001 + 0.01
    means, size = projected.means[seen], torch.tensor((width, height), device=radii.device)
    first = torch.maximum((means - half - 0.5).ceil(), GSPLAT_TILE * ((means - radii[:, None]) / GSPLAT_TILE).floor())
    last = torch.minimum(
        (means + half - 0.5).floor(), GSPLAT_TILE * ((means + radii[:, None]) / GSPLAT_TILE).ceil() - 1
    )
    first, last = first.clamp_min(0).int(), torch.minimum(last, size - 1).int()
    low, high = first // _TILE, torch.where(last < first, first // _TILE - 1, last // _TILE)
    across, down = (high - low + 1).clamp_min(0).unbind(-1)
    pairs = across * down
    which = torch.repeat_interleave(torch.arange(len(seen), device=seen.device), pairs)
    place = torch.arange(len(which), device=seen.device) - (pairs.cumsum(0) - pairs)[which]
    columns = -(-width // _TILE)
    tiles = (low[which, 1] + place // across[which]) * columns + low[which, 0] + place % across[which]
    order = torch.sort(tiles.int(), stable=True).indices
    counts = torch.bincount(tiles, minlength=columns * -(-height // _TILE))
    return TileLists(ids=seen[which[order]], starts=counts.cumsum(0) - counts, counts=counts, width=columns)


@dataclass
class _Chunk:
    """Some tiles with lists of about one length, filled up to the longest."""

    ids: Int[Tensor, "tiles list"]
    columns: Float[Tensor, "tiles side"]
    rows: Float[Tensor, "tiles side"]
    pixels: Int[Tensor, "tiles area"]


def _chunks(lists: TileLists, width: int, height: int, nothing: int, like: Tensor) -> Iterator[_Chunk]:
    """Tiles in chunks that fit into a cache, with the centres of their pixels and these pixels' numbers."""
    order = torch.sort(lists.counts, descending=True).indices
    counts = lists.counts[order].tolist()
    side, start = torch.arange(_TILE, device=like.device), 0
    while start < len(order) and counts[start] > 0:
        longest = counts[start]
        tiles = order[start : start + max(1, _CHUNK // (longest * _TILE * _TILE))]
        start += len(tiles)
        place = torch.arange(longest, device=like.device)
        inside = place < lists.counts[tiles][:, None]
        pairs = torch.where(inside, lists.starts[tiles][:, None] + place, 0)
        rows = (tiles // lists.width)[:, None] * _TILE + side
        columns = (tiles % lists.width)[:, None] * _TILE + side
        # Pixels beyond the border are numbered like one pixel more than there are.
        pixels = torch.where(
            (rows < height)[:, :, None] & (columns < width)[:, None, :],
            rows[:, :, None] * width + columns[:, None, :],
            height * width,
        )
        yield _Chunk(
            ids=torch.where(inside, lists.ids[pairs], nothing),
            columns=columns.to(like) + 0.5,
            rows=rows.to(like) + 0.5,
            pixels=pixels.flatten(1),
        )


@dataclass
class _Weights:
    """A chunk's Gaussians in its pixels."""

    gaussians: Float[Tensor, "6 tiles list"]
    dx: Float[Tensor, "tiles side list"]
    dy: Float[Tensor, "tiles side list"]
    alphas: Float[Tensor, "tiles area list"]
    weights: Float[Tensor, "tiles area list"]


def _weigh(table: Float[Tensor, "gaussians 6"], chunk: _Chunk) -> _Weights:
    """Opacities of a chunk's Gaussians in its pixels, and their weights."""
    gaussians = F.embedding(chunk.ids, table).movedim(-1, 0).contiguous()
    x, y, a, b, c, opacity = gaussians
    dx, dy = chunk.columns[:, :, None] - x[:, None], chunk.rows[:, :, None] - y[:, None]
    across = opacity[:, None] - 0.5 * a[:, None] * dx * dx
    down = -0.5 * c[:, None] * dy * dy
    alphas = across[:, None] + down[:, :, None]
    alphas.addcmul_((b[:, None] * dx)[:, None], dy[:, :, None], value=-1)
    alphas = alphas.exp_().clamp_max_(MAX_ALPHA)
    alphas = F.threshold(alphas, MIN_ALPHA, 0.0, inplace=True).flatten(1, 2)
    light = torch.cumprod(1 - alphas, -1)
    weights = -torch.diff(light, dim=-1, prepend=torch.ones_like(light[..., :1]))
    weights.mul_(light > MIN_LIGHT)
    return _Weights(gaussians, dx, dy, alphas, weights)


class _Compositing(torch.autograd.Function):
    """Compositing with its derivative by hand: opacities are computed again in place of being kept."""

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        conics: Tensor,
        opacities: Tensor,
        values: Tensor,
        lists: TileLists,
        width: int,
        height: int,
    ) -> Tensor:
        """Weighted sums of the values, and in a last channel of the weights."""
        table, filled = _tables(means, conics, opacities, values)
        image = values.new_zeros(height * width + 1, values.shape[-1] + 1)
        for chunk in _chunks(lists, width, height, len(means), values):
            composited = torch.bmm(_weigh(table, chunk).weights, F.embedding(chunk.ids, filled))
            image.index_copy_(0, chunk.pixels.flatten(), composited.flatten(0, 1))
        ctx.save_for_backward(means, conics, opacities, values)
        ctx.lists, ctx.width, ctx.height = lists, width, height
        return image[:-1].view(height, width, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        """Gradients of centres, conics, opacities and values."""
        means, conics, opacities, values = ctx.saved_tensors
        table, filled = _tables(means, conics, opacities, values)
        gradient = F.pad(gradients[0].flatten(0, 1), (0, 0, 0, 1))
        of_table, of_values = torch.zeros_like(table), torch.zeros_like(filled)
        for chunk in _chunks(ctx.lists, ctx.width, ctx.height, len(means), values):
            weighed, ids = _weigh(table, chunk), chunk.ids.flatten()
            here = F.embedding(chunk.pixels, gradient)
            of_values.index_add_(0, ids, torch.bmm(weighed.weights.mT, here).flatten(0, 1))
            if not any(ctx.needs_input_grad[:3]):
                continue
            of_weights = torch.bmm(here, F.embedding(chunk.ids, filled).mT)
            of_table.index_add_(0, ids, _gradient_of_table(weighed, of_weights).flatten(1).T)
        if not any(ctx.needs_input_grad[:3]):
            return None, None, None, of_values[:-1, :-1], None, None, None
        of_opacities = of_table[:-1, 5] / opacities.clamp_min(1e-12)
        return of_table[:-1, :2], of_table[:-1, 2:5], of_opacities, of_values[:-1, :-1], None, None, None


def _tables(
    means: Tensor, conics: Tensor, opacities: Tensor, values: Tensor
) -> tuple[Float[Tensor, "gaussians 6"], Float[Tensor, "gaussians channels"]]:
    """Rows of centre, conic and logarithm of the opacity, and of values and a one; last of both, a row of nothing."""
    logarithms = opacities.clamp_min(1e-12).log()[:, None]
    table = F.pad(torch.cat((means, conics, logarithms), -1), (0, 0, 0, 1))
    table[-1, 5] = _NOTHING
    return table, F.pad(F.pad(values, (0, 1), value=1.0), (0, 0, 0, 1))


def _gradient_of_table(
    weighed: _Weights, of_weights: Float[Tensor, "tiles area list"]
) -> Float[Tensor, "6 tiles list"]:
    """Gradient of a chunk's Gaussians from that of their weights.

    With p the logarithm of an opacity before its limits, w the weights and g their gradient, that of p is
    w g - alpha / (1 - alpha) * (sum of w g over what is behind).
    """
    _, _, a, b, c, _ = weighed.gaussians
    tiles, side, longest = weighed.dx.shape
    of_exponent = of_weights.mul_(weighed.weights)
    summed = of_exponent.cumsum(-1)
    behind = summed[..., -1:] - summed
    ratio = weighed.alphas / (1 - weighed.alphas)
    of_exponent = torch.addcmul(of_exponent, ratio, behind, value=-1)
    of_exponent.masked_fill_(weighed.alphas >= MAX_ALPHA, 0.0)
    of_exponent = of_exponent.view(tiles, side, side, longest)
    in_column, in_row = of_exponent.sum(1), of_exponent.sum(2)
    crossed = torch.einsum("tyxk,tyk->txk", of_exponent, weighed.dy)
    dx, dy = weighed.dx, weighed.dy
    sum_x, sum_y = (in_column * dx).sum(1), (in_row * dy).sum(1)
    return torch.stack(
        (
            a * sum_x + b * sum_y,
            c * sum_y + b * sum_x,
            -0.5 * (in_column * dx * dx).sum(1),
            -(crossed * dx).sum(1),
            -0.5 * (in_row * dy * dy).sum(1),
            in_column.sum(1),
        )
    )
