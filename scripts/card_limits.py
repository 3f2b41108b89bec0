"""How far something is from what a card can do: what it computes and moves, beside a large product and a large copy."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

import torch
from compare_methods import flop_counter
from stopwatch import measure
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from divff_nerfstudio.card import matrix_products

Precision = Literal["highest", "high"]
"""Of matrix products: single precision, or TF32."""
_FLOAT = 4
"""Bytes of a number."""
_BILINEAR = 7
"""Floating-point operations of a bilinear value, its shares being known."""


@dataclass
class Limits:
    """What a card has been seen to do in a second."""

    flop: dict[Precision, float]
    """Floating-point operations of a matrix product, by precision."""
    bytes: float
    """Bytes read and written by a copy."""

    @classmethod
    def of(cls, device: str, side: int, size: int, repeats: int) -> Limits:
        """Measures a product of square matrices, and a copy.

        Args:
            device: The card.
            side: Of the matrices.
            size: Bytes that are copied.
            repeats: Of how many runs the median is taken.
        """
        left, right, product = (torch.rand(side, side, device=device) for _ in range(3))
        flop: dict[Precision, float] = {}
        for precision in ("highest", "high"):
            with matrix_products(precision):
                taken = measure(lambda: torch.mm(left, right, out=product), repeats)
            flop[precision] = 2 * side**3 / taken["seconds"]
        here, there = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
        return cls(flop, 2 * size / measure(lambda: there.copy_(here), repeats)["seconds"])

    def beside(self, work: Work, seconds: float, precision: Precision) -> dict[str, float]:
        """What was done in a time, and which shares of the limits that is.

        Args:
            work: What was done.
            seconds: The time.
            precision: Of its matrix products.
        """
        shares = {
            "share_of_flop": work.flop / seconds / self.flop[precision],
            "share_of_bytes": work.bytes / seconds / self.bytes,
        }
        return {"flop": work.flop, "bytes": work.bytes, **{name: rounded(share) for name, share in shares.items()}}


@dataclass
class Work:
    """What something computes and moves."""

    flop: int
    """Floating-point operations of matrix products and planes."""
    bytes: int
    """Bytes that its operations read and write, as if nothing were kept in a cache between them."""


def work_of(run: Callable[[], object]) -> Work:
    """Counts what a run computes and moves; one that is captured as a graph has nothing to be counted."""
    with flop_counter() as flops, _Counting() as counted:
        run()
    return Work(flops.get_total_flops() + counted.flop, counted.bytes)


class _Counting(TorchDispatchMode):
    """Counts the bytes of PyTorch's operations, and bytes and operations of kernels that PyTorch does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = self.bytes = 0
        self._patches = contextlib.ExitStack()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs an operation and counts its tensors; views cost nothing."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = tree_leaves((args, kwargs, result))
            self.bytes += sum(each.numel() * each.element_size() for each in tensors if isinstance(each, Tensor))
        return result

    def __enter__(self) -> _Counting:
        """Listens to the kernels, too."""
        from divff_nerfstudio.models.splat import drawing

        drawn = drawing.rasterization
        self._patches.enter_context(
            mock.patch.object(drawing, "rasterization", lambda *a, **o: self._drawn(drawn, a, o))
        )
        with contextlib.suppress(ImportError):  # where there is no Triton, its kernels do not run
            from divff_nerfstudio.fields import plane_kernels

            launch = plane_kernels._launch
            self._patches.enter_context(
                mock.patch.object(plane_kernels, "_launch", lambda *given: self._launched(launch, *given))
            )
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._patches.close()
        super().__exit__(*error)

    def _launched(
        self, launch: Any, kernel: Any, table: Tensor, places: Tensor, moments: Any, rest: Any, *size: int
    ) -> None:
        from divff_nerfstudio.fields import plane_kernels

        launch(kernel, table, places, moments, rest, *size)
        work = plane_work(
            len(places), table.shape[1], timed=moments is not None, backward=kernel is plane_kernels._backward
        )
        self.flop += work.flop
        self.bytes += work.bytes

    def _drawn(self, draw: Any, given: Any, options: Any) -> Any:
        found = draw(*given, **options)
        facts = found[2]
        if "flatten_ids" in facts:  # by gsplat's kernels, which know the Gaussians of each tile
            channels, gaussians = options["colors"].shape[-1], facts["means2d"].shape[-2]
            pixels = options["width"] * options["height"]
            followed = facts["means2d"].requires_grad
            self.bytes += gaussian_bytes(gaussians, len(facts["flatten_ids"]), pixels, channels, followed)
        return found


def plane_work(points: int, channels: int, timed: bool, backward: bool) -> Work:
    """What one of the kernels of `plane_kernels` does for three planes, each of whose corners is read by itself.

    Args:
        points: Points that are looked up.
        channels: Channels of the planes.
        timed: Whether the planes' second axis is time.
        backward: Whether it is the kernel of the gradient.
    """
    places, rows = _FLOAT * points * (3 + timed), _FLOAT * points * channels
    values = 6 if backward else 3  # each plane's gradient needs the values of both others
    corners, added = 4 * values * rows, 4 * 3 * 2 * rows if backward else 0
    operations = values * (_BILINEAR + 1) + (3 * 8 if backward else 0)
    return Work(points * channels * operations, places + corners + added + rows)


def gaussian_bytes(gaussians: int, met: int, pixels: int, channels: int, followed: bool) -> int:
    """Bytes that gsplat's kernels move at least for a picture: each Gaussian is read once, and once for each tile that
    it meets, where its number is sorted by depth; the gradient reads and adds as much.

    Args:
        gaussians: Gaussians that are projected.
        met: Pairs of Gaussians and tiles.
        pixels: Of the picture.
        channels: Channels that are composited.
        followed: Whether gradients are computed, too.
    """
    own, seen = 3 + 4 + 3 + 1, 2 + 1 + 1 + 3  # centre, rotation, scales, opacity; centre, radius, depth, conic
    row = 2 + 3 + 1 + channels
    forward = gaussians * (own + seen) + met * row + pixels * (channels + 1)
    sorting = 2 * met * (8 + 4)
    backward = met * 3 * row + 2 * pixels * (channels + 1) + gaussians * 2 * (own + seen)
    return _FLOAT * (forward + (backward if followed else 0)) + sorting


def rounded(value: float, digits: int = 4) -> float:
    """A number with so many digits that mean something."""
    return (
        value
        if value == 0 or not math.isfinite(value)
        else round(value, digits - 1 - math.floor(math.log10(abs(value))))
    )
