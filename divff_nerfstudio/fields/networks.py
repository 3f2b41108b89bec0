"""The fields' networks, which multiply in bfloat16 while a view is rendered in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float
from nerfstudio.field_components.mlp import MLP
from torch import Tensor

_HALF: ContextVar[bool] = ContextVar("half precision", default=False)
"""Whether this thread's networks do so: a view may be rendered while another thread trains."""


@contextmanager
def half_precision(on: bool) -> Iterator[None]:
    """Has this thread's networks multiply in bfloat16 within the block, or not."""
    before = _HALF.set(on)
    try:
        yield
    finally:
        _HALF.reset(before)


class Network(MLP):
    """nerfstudio's network. What it is given and gives is float32 in any case, and so is what is made of that."""

    def forward(self, in_tensor: Float[Tensor, "*bs in_dim"]) -> Float[Tensor, "*bs out_dim"]:
        """Outputs for inputs."""
        if not _HALF.get():
            return super().forward(in_tensor)
        with torch.autocast(in_tensor.device.type, torch.bfloat16):
            return super().forward(in_tensor).float()
