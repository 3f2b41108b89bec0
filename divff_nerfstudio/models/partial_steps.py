"""A training step on more rays than fit into memory: gradients of its parts, summed as the parts are followed back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor, nn

Step = Callable[[RayBundle, dict[str, Any]], tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]]
"""A step on rays and their batch: outputs, losses and metrics."""


def step_in_parts(
    step: Step, parameters: Sequence[nn.Parameter], rays: RayBundle, batch: dict[str, Any], size: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and metrics of a step that is taken some rays at a time.

    Args:
        step: Takes the step on some of the rays; its losses and metrics are means over them, with "rgb" among its
            outputs.
        parameters: Whose gradients are looked for.
        rays: All rays.
        batch: What they should be.
        size: Rays at a time.

    Returns:
        Losses, whose sum is to be followed back once more, which costs nothing, and metrics.
    """
    count = len(rays)
    gradients: list[Tensor | None] = [None] * len(parameters)
    losses: dict[str, Tensor] = {}
    metrics: dict[str, Tensor] = {}
    for start in range(0, count, size):
        part = slice(start, start + size)
        outputs, found, measured = step(rays[part], _part_of(batch, part))
        share = len(outputs["rgb"]) / count
        scaled = {name: share * loss for name, loss in found.items()}
        followed = torch.autograd.grad(sum(scaled.values()), parameters, allow_unused=True)  # pyright: ignore
        for i, gradient in enumerate(followed):
            known = gradients[i]
            gradients[i] = gradient if known is None else known if gradient is None else known.add_(gradient)
        losses = _added(losses, scaled)
        metrics = _added(metrics, {name: share * value for name, value in measured.items()})
    first = next(iter(losses))
    losses[first] = _Followed.apply(losses[first], gradients, *parameters)  # pyright: ignore[reportArgumentType]
    return losses, metrics


class _Followed(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if gradient is None else gradient * upstream[0] for gradient in ctx.gradients)
        return None, None, *scaled


def _part_of(batch: dict[str, Any], part: slice) -> dict[str, Any]:
    """Some rays of a batch."""
    some = {"image": batch["image"][part]}
    if "features" in batch:
        some["features"] = {kind: (target[part], valid[part]) for kind, (target, valid) in batch["features"].items()}
    return some


def _added(sums: dict[str, Tensor], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums by name, with further values added, cut off from what they were computed from."""
    return {name: sums.get(name, 0) + value.detach() for name, value in values.items()}
