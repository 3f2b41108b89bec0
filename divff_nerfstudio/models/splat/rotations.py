"""Rotations as quaternions, w first."""

from __future__ import annotations

import torch
from jaxtyping import Float
from nerfstudio.cameras.camera_utils import quaternion_from_matrix
from torch import Tensor


def turn_of(rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "4"]:
    """A rotation as a quaternion, w first; it is computed on the host."""
    return torch.from_numpy(quaternion_from_matrix(rotation.double().cpu().numpy())).to(rotation)


def product(first: Float[Tensor, "4"], second: Float[Tensor, "gaussians 4"]) -> Float[Tensor, "gaussians 4"]:
    """Quaternions of rotations by `second` and then by `first`, w first."""
    w, x, y, z = first
    matrix = torch.stack((w, -x, -y, -z, x, w, -z, y, y, z, w, -x, z, -y, x, w)).view(4, 4)
    return second @ matrix.T
