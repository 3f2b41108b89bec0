"""The values of feature planes on a GPU: one kernel forward and one backward, in Triton.

The numbers are those of `encodings.plane_product` in PyTorch; sums of gradients are rounded in another order.
Imported only where there are CUDA tensors, since Triton is on no Windows or macOS machine.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_POINTS = 64
"""Points that one program looks up."""


@triton.jit
def _cell(coordinates, points, axis, dims, known, size):
    """Index of the cell in which points lie along one axis, and how far into it they are, 0 to 1."""
    at = tl.load(coordinates + points * dims + axis, mask=known, other=0.0)
    # Of a comparison with what is no number, the number is taken: nothing is read outside of the table.
    at = tl.minimum(tl.maximum(at, 0.0), 1.0) * (size - 1)
    cell = tl.minimum(tl.floor(at), size - 2.0)
    return cell.to(tl.int64), at - cell


@triton.jit
def _corners(
    positions, times, points, plane: tl.constexpr, known, width, height, channels, channel, timed: tl.constexpr
):
    """Offsets of a plane's first corner around each point, and the shares of the way to the next ones."""
    if timed:
        across, x = _cell(positions, points, plane, 3, known, width)
        down, y = _cell(times, points, 0, 1, known, height)
    else:
        across, x = _cell(positions, points, plane // 2, 3, known, width)
        down, y = _cell(positions, points, 1 + (plane + 1) // 2, 3, known, height)
    row = plane * width * height + down * width + across
    return row[:, None] * channels + channel[None, :], x[:, None], y[:, None]


@triton.jit
def _bilinear(table, corner, x, y, width, channels, known):
    """Values between four corners."""
    first = tl.load(table + corner, mask=known, other=0.0)
    right = tl.load(table + corner + channels, mask=known, other=0.0)
    below = tl.load(table + corner + width * channels, mask=known, other=0.0)
    last = tl.load(table + corner + (width + 1) * channels, mask=known, other=0.0)
    return first * ((1 - x) * (1 - y)) + right * (x * (1 - y)) + below * ((1 - x) * y) + last * (x * y)


@triton.jit
def _forward(
    positions, times, table, out, count, width, height, channels,
    timed: tl.constexpr, block: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    points = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    channel = tl.arange(0, padded)
    here = points < count
    known = here[:, None] & (channel < channels)[None, :]
    product = tl.full((block, padded), 1.0, tl.float32)
    for plane in tl.static_range(3):  # pyright: ignore
        corner, x, y = _corners(positions, times, points, plane, here, width, height, channels, channel, timed)
        product *= _bilinear(table, corner, x, y, width, channels, known)
    tl.store(out + points[:, None] * channels + channel[None, :], product, mask=known)


@triton.jit
def _backward(
    positions, times, table, gradient, found, count, width, height, channels,
    timed: tl.constexpr, block: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    points = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    channel = tl.arange(0, padded)
    here = points < count
    known = here[:, None] & (channel < channels)[None, :]
    above = tl.load(gradient + points[:, None] * channels + channel[None, :], mask=known, other=0.0)
    for plane in tl.static_range(3):  # pyright: ignore
        others = above
        for other in tl.static_range(3):  # pyright: ignore
            if other != plane:
                corner, x, y = _corners(positions, times, points, other, here, width, height, channels, channel, timed)
                others *= _bilinear(table, corner, x, y, width, channels, known)
        corner, x, y = _corners(positions, times, points, plane, here, width, height, channels, channel, timed)
        tl.atomic_add(found + corner, others * ((1 - x) * (1 - y)), mask=known, sem="relaxed")
        tl.atomic_add(found + corner + channels, others * (x * (1 - y)), mask=known, sem="relaxed")
        tl.atomic_add(found + corner + width * channels, others * ((1 - x) * y), mask=known, sem="relaxed")
        tl.atomic_add(found + corner + (width + 1) * channels, others * (x * y), mask=known, sem="relaxed")


class _PlaneProduct(torch.autograd.Function):
    """Only tables have gradients: places and times are data."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, table: Tensor, positions: Tensor, times: Tensor | None, width: int, height: int
    ) -> Tensor:
        places, moments = positions.contiguous(), None if times is None else times.contiguous()
        out = table.new_empty(len(places), table.shape[1])
        ctx.save_for_backward(table, places, moments)
        ctx.size = width, height
        _launch(_forward, table, places, moments, (out,), width, height)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:  # pyright: ignore
        table, places, moments = ctx.saved_tensors
        found = torch.zeros_like(table)
        _launch(_backward, table, places, moments, (gradients[0].contiguous(), found), *ctx.size)
        return found, None, None, None, None


def _launch(
    kernel: Any,
    table: Tensor,
    places: Tensor,
    moments: Tensor | None,
    rest: tuple[Tensor, ...],
    width: int,
    height: int,
) -> None:
    count, channels = len(places), table.shape[1]
    if count:
        kernel[(triton.cdiv(count, _POINTS),)](
            places, places if moments is None else moments, table, *rest, count, width, height, channels,
            timed=moments is not None, block=_POINTS, padded=triton.next_power_of_2(channels),
        )  # fmt: skip


def plane_product(
    table: Float[Tensor, "rows channels"],
    positions: Float[Tensor, "points 3"],
    times: Float[Tensor, "points 1"] | None,
    width: int,
    height: int,
) -> Float[Tensor, "points channels"]:
    """Bilinear values of three planes, multiplied; see `encodings.plane_product`, whose numbers these are.

    Raises:
        ValueError: If a gradient of places or times is asked for: the kernels have none.
    """
    if torch.is_grad_enabled() and (positions.requires_grad or (times is not None and times.requires_grad)):
        raise ValueError("planes on a GPU have gradients of their tables alone, not of positions or times")
    return _PlaneProduct.apply(table, positions, times, width, height)


def try_out(device: torch.device) -> None:
    """Compiles both kernels and runs them once, on next to nothing.

    Raises:
        Exception: If they cannot be compiled or run on the device.
    """
    with torch.inference_mode(False), torch.enable_grad():
        table = torch.ones(12, 1, device=device, requires_grad=True)
        plane_product(table, torch.zeros(1, 3, device=device), None, 2, 2).sum().backward()
