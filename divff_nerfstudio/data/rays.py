"""Rays of a pinhole camera, in its own frame."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor


def camera_directions(
    coords: Float[Tensor, "*batch 2"], intrinsics: Float[Tensor, "*#batch 4"]
) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch 1"]]:
    """Directions of pixels in the frame of their camera (right, up, back), where the camera is at the origin.

    Args:
        coords: Image coordinates (y, x) in pixels; the centre of pixel (row, col) is (row + 0.5, col + 0.5).
        intrinsics: fx, fy, cx, cy in pixels.

    Returns:
        Unit directions, and the length of the direction whose z is -1: depth along the ray is z times that.
    """
    fx, fy, cx, cy = intrinsics.unbind(-1)
    x = (coords[..., 1] - cx) / fx
    y = -(coords[..., 0] - cy) / fy
    directions = torch.stack((x, y, -torch.ones_like(x)), -1)
    norm = torch.linalg.vector_norm(directions, dim=-1, keepdim=True)
    return directions / norm, norm


def pixel_grid(height: int, width: int) -> Float[Tensor, "{height} {width} 2"]:
    """Image coordinates (y, x) of all pixel centres."""
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((rows, cols), -1) + 0.5


def pixel_areas(coords: Float[Tensor, "*batch 2"], intrinsics: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "*batch 1"]:
    """Area of pixels at distance 1, as nerfstudio has it: product of the distances to the next two directions."""
    directions, _ = camera_directions(coords, intrinsics)
    area = torch.ones_like(coords[..., :1])
    for step in ((0.0, 1.0), (1.0, 0.0)):
        neighbours, _ = camera_directions(coords + coords.new_tensor(step), intrinsics)
        area = area * torch.linalg.vector_norm(directions - neighbours, dim=-1, keepdim=True)
    return area


def at_origin(cameras: Cameras) -> Cameras:
    """The same cameras without their poses, whose rays are those in the cameras' own frames."""
    moved = copy.copy(cameras)
    moved.camera_to_worlds = (
        torch.eye(4)[:3].to(cameras.camera_to_worlds).expand_as(cameras.camera_to_worlds[..., :3, :])
    )
    return moved
