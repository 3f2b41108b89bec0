"""Spatial encodings: planes, and the hash grids of runs that chose them, behind one constructor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from nerfstudio.field_components.encodings import Encoding, HashEncoding, NeRFEncoding
from nerfstudio.utils.rich_utils import CONSOLE
from scipy.sparse import csc_array
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from divff_nerfstudio.errors import first_line

Implementation = Literal["planes", "hash", "tcnn"]


class PlaneEncoding(Encoding):
    """Axis-aligned feature planes at several resolutions, multiplied with each other (K-planes, Fridovich-Keil 2023).

    On a CPU a point's bilinear corners are summed by `embedding_bag` over channels-last rows, several times cheaper
    than `grid_sample` and an order of magnitude cheaper than a hash grid in PyTorch; on a GPU by kernels in Triton.
    Only the planes have gradients: places and times are data.

    Args:
        resolutions: Points along each side of the three spatial planes, per level.
        channels: Features per level; the output has `len(resolutions) * channels`.
        time_resolution: Points in time of three further planes (x, y, z by time); 0: space only.
    """

    def __init__(self, resolutions: Sequence[int], channels: int, time_resolution: int = 0):
        super().__init__(in_dim=4 if time_resolution else 3)
        self.resolutions = tuple(resolutions)
        self.channels = channels
        self.time_resolution = time_resolution
        self.space = nn.ParameterList(
            nn.Parameter(torch.empty(3 * size * size, channels).uniform_(0.1, 0.5)) for size in resolutions
        )
        # Time planes start at one, so that every place is at rest (K-planes).
        self.time = nn.ParameterList(
            nn.Parameter(torch.ones(3 * size * time_resolution, channels))
            for size in (resolutions if time_resolution else ())
        )

    def get_out_dim(self) -> int:
        return len(self.resolutions) * self.channels

    def forward(
        self, in_tensor: Float[Tensor, "points dims"], times: Float[Tensor, "points 1"] | None = None
    ) -> Float[Tensor, "points features"]:
        """Features of points.

        Args:
            in_tensor: Coordinates in [0, 1]; what lies outside takes the value at the border.
            times: Times in [0, 1], where there are time planes.
        """
        levels = []
        for level, size in enumerate(self.resolutions):
            features = plane_product(self.space[level], in_tensor, None, size, size)
            if self.time_resolution:
                assert times is not None
                features = features * plane_product(self.time[level], in_tensor, times, size, self.time_resolution)
            levels.append(features)
        return torch.cat(levels, dim=-1)


def plane_product(
    table: Float[Tensor, "rows channels"],
    positions: Float[Tensor, "points 3"],
    times: Float[Tensor, "points 1"] | None,
    width: int,
    height: int,
) -> Float[Tensor, "points channels"]:
    """Bilinear values of three planes stacked in one table, multiplied over the planes.

    Args:
        table: Rows of the planes (x, y), (x, z) and (y, z), or of (x, time), (y, time) and (z, time), one after the
            other; in each, `height` lines of `width` points.
        positions: Coordinates in [0, 1]; what lies outside takes the value at the border.
        times: Times in [0, 1], where the planes' second axis is time.
        width: Points along the first axis of each plane.
        height: Points along the second.
    """
    if table.is_cuda and (found := kernels(table.device)) is not None:
        return found.plane_product(table, positions, times, width, height)
    x, y, z = positions.unbind(-1)
    if times is None:
        return _interpolate(table, torch.stack((x, x, y), -1), torch.stack((y, z, z), -1), width, height)
    return _interpolate(table, positions, times.expand(-1, 3), width, height)


@cache
def kernels(device: torch.device) -> Any:
    """The module with the kernels for a card; None where they do not run on it, which is said once.

    Triton compiles them at their first run, for which it needs a C compiler and Python's headers: they are tried before
    anything depends on them.
    """
    try:
        from divff_nerfstudio.fields import plane_kernels

        plane_kernels.try_out(device)
    except Exception as error:  # whatever a compiler, a driver or a card may say
        missing = isinstance(error, ModuleNotFoundError) and error.name == "triton"
        reason = f"Triton's kernels do not run ({first_line(error)})"
        why = "Triton is not installed (pip install triton)" if missing else reason
        CONSOLE.print(f"Planes run in PyTorch on the GPU, more slowly: {why}.", markup=False, soft_wrap=True)
        return None
    return plane_kernels


def _interpolate(
    table: Float[Tensor, "rows channels"],
    u: Float[Tensor, "points 3"],
    v: Float[Tensor, "points 3"],
    width: int,
    height: int,
) -> Float[Tensor, "points channels"]:
    """`plane_product` in PyTorch, for coordinates by plane."""
    x, y = u.clamp(0, 1) * (width - 1), v.clamp(0, 1) * (height - 1)
    left, top = x.floor().clamp_max(width - 2), y.floor().clamp_max(height - 2)
    x, y = x - left, y - top
    plane = torch.arange(3, device=u.device, dtype=torch.int32) * (width * height)
    corner = plane + top.int() * width + left.int()
    rows = torch.stack((corner, corner + 1, corner + width, corner + width + 1), -1).view(-1, 4)
    shares = torch.stack(((1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y), -1).view(-1, 4).to(table)
    if table.device.type == "cpu":
        return _PlaneProduct.apply(table, rows, shares)
    values = F.embedding_bag(rows, table, per_sample_weights=shares, mode="sum")
    first, second, third = values.view(-1, 3, table.shape[-1]).unbind(1)
    return first * second * third  # the gradient of a product over a dimension waits for a card


class _PlaneProduct(torch.autograd.Function):
    """Products of the three weighted sums of a table's rows that belong to a point."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        table: Float[Tensor, "rows channels"],
        rows: Int[Tensor, "planes_of_points 4"],
        shares: Float[Tensor, "planes_of_points 4"],
    ) -> Float[Tensor, "points channels"]:
        values = F.embedding_bag(rows, table, per_sample_weights=shares, mode="sum").view(-1, 3, table.shape[1])
        ctx.save_for_backward(values, rows, shares)
        ctx.count = len(table)
        first, second, third = values.unbind(1)
        return first * second * third

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        values, rows, shares = ctx.saved_tensors
        first, second, third = values.unbind(1)
        others = torch.stack((second * third, first * third, first * second), 1).mul_(gradients[0][:, None])
        return rows_gradient(others.flatten(0, 1), rows, shares, ctx.count), None, None


@torch.library.custom_op("divff::rows_gradient", mutates_args=())
def rows_gradient(gradients: Tensor, rows: Tensor, shares: Tensor, count: int) -> Tensor:
    """The gradient of a table of which weighted rows were summed, on a CPU.

    It is a product with a sparse matrix and takes a tenth of what PyTorch takes, which sorts the rows first.

    Args:
        gradients: Of the sums, (sums, channels).
        rows: Which rows each of them is of, (sums, rows of one).
        shares: Their weights.
        count: How many rows the table has.
    """
    starts = np.arange(0, rows.numel() + 1, rows.shape[1], dtype=np.int32)
    matrix = csc_array((shares.numpy().ravel(), rows.numpy().ravel(), starts), shape=(count, len(rows)))
    return torch.from_numpy(matrix @ gradients.numpy())


class GridEncoding(nn.Module):
    """A spatial encoding of points in the unit cube, by planes or by a hash grid.

    Args:
        implementation: "planes", "hash" (nerfstudio's hash grid in PyTorch) or "tcnn" (the same in tinycudann).
        resolutions: Resolutions of the planes; a hash grid spans the range from the first to the last.
        channels: Features per level of the planes.
        hash_levels: Levels of a hash grid.
        log2_hashmap_size: Size of a hash grid's tables.
    """

    def __init__(
        self,
        implementation: Implementation,
        resolutions: Sequence[int],
        channels: int,
        hash_levels: int = 12,
        log2_hashmap_size: int = 18,
    ):
        super().__init__()
        if implementation == "planes":
            self.encoding: Encoding = PlaneEncoding(resolutions, channels)
        else:
            self.encoding = HashEncoding(
                num_levels=hash_levels,
                min_res=16,
                max_res=4 * max(resolutions),
                log2_hashmap_size=log2_hashmap_size,
                implementation="tcnn" if implementation == "tcnn" else "torch",
            )
        self.out_dim = self.encoding.get_out_dim()

    def forward(self, positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points features"]:
        """Features of points in the unit cube."""
        return self.encoding(positions).float()


def positional_encoding(in_dim: int, octaves: int, first: int = 0) -> NeRFEncoding:
    """[x, sin(2^k pi x), cos(2^k pi x)] for first <= k < octaves, for coordinates of about [-1, 1]."""
    return NeRFEncoding(
        in_dim=in_dim,
        num_frequencies=octaves - first,
        min_freq_exp=first - 1.0,
        max_freq_exp=octaves - 2.0,
        include_input=True,
    )
