"""Random numbers: draws by weights, and draws of one's own, so that who builds a network beside a training leaves the
training's generator alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class DrawingFrom(TorchDispatchMode):
    """While the block runs, this thread's draws on the CPU come from a generator of its own.

    `torch.random.fork_rng` would put the global generator back to where it was when the block began, and with it what
    another thread, such as a training, has drawn meanwhile.

    Args:
        generator: On the CPU; it gives the numbers that the global one would give after the same seed.
    """

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self._generator = generator

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Has an operation that draws use the generator."""
        kwargs = dict(kwargs or {})
        drawing = _drawing(func)
        if drawing is not None and kwargs.get("generator") is None and _is_on_cpu(args, kwargs):
            return drawing(*args, **kwargs | {"generator": self._generator})
        return func(*args, **kwargs)


@lru_cache
def _drawing(operation: Any) -> Any:
    """The form of an operation that takes a generator; None if it does not draw."""
    if any(argument.name == "generator" for argument in operation._schema.arguments):
        return operation
    form = "generator" if operation._overloadname == "default" else f"{operation._overloadname}_generator"
    return getattr(operation.overloadpacket, form, None)


def _is_on_cpu(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    device = next((each.device for each in args if isinstance(each, Tensor)), kwargs.get("device") or "cpu")
    return torch.device(device).type == "cpu"


def weighted_draw(weights: Float[Tensor, "values"], count: int) -> Int[Tensor, "count"]:
    """Draws indices by their weights, none twice: as `torch.multinomial`, which looks at the weights from the host.

    Args:
        weights: Above 0.
        count: How many.
    """
    return (weights / torch.empty_like(weights).exponential_()).topk(count).indices
