"""The scene's units: a box around the room, a length of the scene, and densities in those units."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from divff_nerfstudio.card import OnHost

NEAR_SCALE = 0.03
"""Distance from the camera, in lengths of the scene, at which the actor's depth coordinate starts."""
FAR_SCALE = 1.5
"""Distance at which it ends."""
_HALF_ANGLE_TANGENT = 1.1
"""Of the field of view that the actor's coordinates span."""
_MAX_EXPONENT, _MAX_STEEPNESS = 60.0, 15.0
"""Largest raw density, and the one up to which its gradient grows. Nothing pulls at what is opaque already, so that a
long training of the static layer alone takes raw densities beyond 88, where their exponential is infinite and a layer's
share of it not a number."""


class SceneSpace(nn.Module):
    """Maps the scene's arbitrary units onto those of the networks.

    Args:
        box: Least and largest corner of the room, in scene units.
        length: A length of the scene, such as the distance to its far end, in scene units.
    """

    box: Tensor
    length: Tensor

    def __init__(self, box: Float[Tensor, "2 3"], length: float):
        super().__init__()
        self.register_buffer("box", box.clone().float())
        self.register_buffer("length", torch.tensor(float(length)))
        self._on_host = OnHost()

    def known_length(self) -> float:
        """The length as a number, which is read from the device once."""
        return float(self._on_host("length", self.length))

    def to_unit_cube(self, positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        """World positions as coordinates in the box; what lies outside is moved to its border."""
        return ((positions - self.box[0]) / (self.box[1] - self.box[0])).clamp(0, 1)

    def to_camera_cube(self, camera_positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        """Camera positions as (right, up, logarithm of the distance), each in [0, 1], in the camera's field of view."""
        distance = (-camera_positions[:, 2:]).clamp_min(1e-4 * self.known_length())
        across = camera_positions[:, :2] / distance / (2 * _HALF_ANGLE_TANGENT) + 0.5
        depth = torch.log((distance / self.length / NEAR_SCALE).clamp_min(1)) / math.log(FAR_SCALE / NEAR_SCALE)
        return torch.cat((across, depth), -1).clamp(0, 1)


def activated_density(raw: Float[Tensor, "*bs"], space: SceneSpace, shift: float = 0.0) -> Float[Tensor, "*bs"]:
    """Density in 1 / scene unit from a network's raw output, always finite; a negative shift starts transparent."""
    return _BoundedExp.apply((raw + shift).float()) * (10.0 / space.length)  # pyright: ignore[reportOptionalOperand]


class _BoundedExp(torch.autograd.Function):
    """Exponential whose values and gradients are bounded; a value beyond the bound can still come back.

    Gradients of what is transparent fade with it (nerfstudio's `trunc_exp` bounds them from below): one that does not
    fade has the same sign for ever, and Adam makes steps of the full rate of it, however small it is, until the
    network's weights are without measure.
    """

    @staticmethod
    def forward(ctx: Any, raw: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(raw)
        return torch.exp(raw.clamp_max(_MAX_EXPONENT))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (raw,) = ctx.saved_tensors
        return grad * torch.exp(raw.clamp_max(_MAX_STEEPNESS))
