"""Distillation of features: what rendered ones are compared with, and how far they are from it."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

HEADS = {"hotspot": "video"}
"""Kinds of targets that another kind's head is compared with."""


def feature_loss(
    kind: str,
    rendered: Float[Tensor, "rays dim"],
    target: Float[Tensor, "rays dim"],
    valid: Bool[Tensor, "rays"],
    mean_over_all: bool = False,
) -> Float[Tensor, ""]:
    """Distillation loss of one kind of features (DIV-FF), summed over channels and averaged over rays.

    Huber (delta 1.25) for language features, squared error for the regulariser.

    Args:
        kind: "image", "video" or "regulariser".
        rendered: Rendered features, of unit length.
        target: Features to render.
        valid: Rays that have a target.
        mean_over_all: Average over all rays, those without a target counting as 0 (DIV-FF), not over those with one.
    """
    if kind == "regulariser":
        error = (rendered - target).square()
    else:
        error = F.huber_loss(rendered, target, delta=1.25, reduction="none")
    count = valid.numel() if mean_over_all else valid.sum().clamp_min(1)
    return (error.sum(-1) * valid).sum() / count
