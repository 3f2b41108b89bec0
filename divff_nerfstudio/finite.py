"""Stops a training at the first value that is not finite, before it is written anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

STEPS_BETWEEN_LOOKS = {"cuda": 50, "cpu": 1}
"""By kind of device: to look at a number on a GPU, one has to wait for all that it still computes."""


class FiniteWatch:
    """Looks whether losses and parameters are finite, at little cost.

    Args:
        device: Where they are.
    """

    def __init__(self, device: torch.device | str):
        self._every = STEPS_BETWEEN_LOOKS.get(torch.device(device).type, 1)
        self._pending: list[tuple[int, list[str], Tensor]] = []

    def look(self, step: int, losses: Mapping[str, Tensor], parameters: Iterable[tuple[str, Tensor]]) -> str | None:
        """Takes note of a step's losses, and looks at them and at the parameters if it is time to.

        Args:
            step: The step.
            losses: Its losses by name.
            parameters: The parameters behind it, by name.

        Returns:
            What is not finite, and since which step, in words; None if all is.
        """
        if losses:
            flags = torch.stack([loss.detach().isfinite().all() for loss in losses.values()])
            self._pending.append((step, list(losses), flags))
        if (step + 1) % self._every:
            return None
        return self.look_now(step, parameters)

    def look_now(self, step: int, parameters: Iterable[tuple[str, Tensor]]) -> str | None:
        """As `look`, at the losses that were taken note of, whatever time it is."""
        pending, self._pending = self._pending, []
        if pending:
            flags = torch.cat([flags for _, _, flags in pending]).cpu().tolist()
            names = [(name, at) for at, names, _ in pending for name in names]
            for (name, at), finite in zip(names, flags, strict=True):
                if not finite:
                    return f"the loss {name} is not finite at step {at}"
        broken = not_finite(parameters)
        return None if broken is None else f"the parameter {broken} is not finite after step {step}"


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor that has a value that is not finite; None if there is none."""
    named = [(name, tensor.detach()) for name, tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not named:
        return None
    # A sum is finite only if all values are, and costs a fraction of a look at each.
    suspects = torch.stack([tensor.sum(dtype=torch.float32) for _, tensor in named]).isfinite().logical_not()
    for i in suspects.nonzero()[:, 0].tolist():
        name, tensor = named[i]
        if not bool(tensor.isfinite().all()):
            return name
    return None
