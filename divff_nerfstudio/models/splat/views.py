"""What a rasteriser needs of a camera, in lengths of the scene."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from divff_nerfstudio.card import sent
from divff_nerfstudio.data.rays import camera_directions, pixel_grid
from divff_nerfstudio.models.splat.rotations import turn_of
from divff_nerfstudio.models.splat.splats import Moment

_FAR_SIGHT = 500.0
"""Focal length, in pixels, of a camera whose one pixel is a ray."""


@dataclass
class RasterCamera:
    """A camera at a time."""

    moment: Moment
    """When, and from where."""
    intrinsics: Float[Tensor, "4"]
    """fx, fy, cx, cy in pixels."""
    width: int
    """Pixels in a row."""
    height: int
    """Rows."""
    world_to_camera: Float[Tensor, "4 4"]
    """World to camera (right, down, forward)."""
    camera_matrix: Float[Tensor, "3 3"]
    """Intrinsics as a matrix."""

    @classmethod
    def of(cls, camera: Cameras, length: float, default_time: float, device: torch.device | str) -> RasterCamera:
        """The view of one camera.

        It is computed where the camera is and sent in one piece, so that nobody waits for one in the host's memory.

        Args:
            camera: One camera, with or without a time.
            length: A length of the scene, in scene units.
            default_time: Time of a camera that has none.
            device: Where it is rendered.
        """
        pose = camera.camera_to_worlds.reshape(-1, camera.camera_to_worlds.shape[-2], 4)[0]
        time = pose.new_tensor(default_time) if camera.times is None else camera.times.reshape(-1)[0].float()
        rotation, origin = pose[:3, :3].float(), pose[:3, 3].float() / length
        intrinsics = torch.stack([getattr(camera, name).reshape(-1)[0] for name in ("fx", "fy", "cx", "cy")]).float()
        axes = rotation.T * intrinsics.new_tensor(((1.0,), (-1.0,), (-1.0,)))
        to_camera = torch.eye(4, device=axes.device)
        to_camera[:3, :3], to_camera[:3, 3] = axes, -axes @ origin
        fx, fy, cx, cy = intrinsics
        zero, one = torch.zeros_like(fx), torch.ones_like(fx)
        matrix = torch.stack((fx, zero, cx, zero, fy, cy, zero, zero, one))
        parts = (time[None], rotation.flatten(), origin, turn_of(rotation), intrinsics, to_camera.flatten(), matrix)
        there = sent(torch.cat(parts), device).split([len(part) for part in parts])
        return cls(
            moment=Moment(there[0][0], there[1].view(3, 3), there[2], there[3], float(time)),
            intrinsics=there[4],
            width=int(camera.width.reshape(-1)[0]),
            height=int(camera.height.reshape(-1)[0]),
            world_to_camera=there[5].view(4, 4),
            camera_matrix=there[6].view(3, 3),
        )

    def directions(self) -> tuple[Float[Tensor, "rays 3"], Float[Tensor, "rays 1"]]:
        """Unit directions of all pixels in the camera's frame (right, up, back), and distance along them per depth."""
        coords = sent(pixel_grid(self.height, self.width).reshape(-1, 2), self.intrinsics.device)
        return camera_directions(coords, self.intrinsics)

    def depths(self, means: Float[Tensor, "gaussians 3"]) -> Float[Tensor, "gaussians"]:
        """Depths of places along the optical axis."""
        return (means - self.moment.origin) @ -self.moment.rotation[:, 2]

    def in_camera(self, means: Float[Tensor, "gaussians 3"]) -> Float[Tensor, "gaussians 3"]:
        """World positions in the camera's frame."""
        return (means - self.moment.origin) @ self.moment.rotation


def pixel_cameras(rays: RayBundle) -> Iterator[Cameras]:
    """Cameras of one pixel, each of which looks along a ray."""
    origins, directions = rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3)
    times = None if rays.times is None else rays.times.reshape(-1, 1)
    for i, (origin, direction) in enumerate(zip(origins, directions, strict=True)):
        ahead = direction if bool(direction.isfinite().all()) else origin.new_tensor((0.0, 0.0, -1.0))
        back = -F.normalize(ahead, dim=0)
        least = F.one_hot(back.abs().argmin(), 3).to(back)
        right = F.normalize(torch.linalg.cross(least, back), dim=0)
        pose = torch.stack((right, torch.linalg.cross(back, right), back, origin), -1)
        yield Cameras(
            camera_to_worlds=pose[None],
            fx=_FAR_SIGHT,
            fy=_FAR_SIGHT,
            cx=0.5,
            cy=0.5,
            width=1,
            height=1,
            times=None if times is None else times[i : i + 1],
        )
