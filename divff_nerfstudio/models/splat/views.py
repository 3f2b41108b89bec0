"""What a rasteriser needs of a camera, in lengths of the scene."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from divff_nerfstudio.data.rays import camera_directions, pixel_grid
from divff_nerfstudio.models.splat.gaussians import Moment


@dataclass
class View:
    """A camera at a time."""

    moment: Moment
    """When, and from where."""
    intrinsics: Float[Tensor, "4"]
    """fx, fy, cx, cy in pixels."""
    width: int
    """Pixels in a row."""
    height: int
    """Rows."""

    @classmethod
    def of(cls, camera: Cameras, length: float, default_time: float, device: torch.device | str) -> View:
        """The view of one camera.

        Args:
            camera: One camera, with or without a time.
            length: A length of the scene, in scene units.
            default_time: Time of a camera that has none.
            device: Where it is rendered.
        """
        camera = camera.to(device)
        pose = camera.camera_to_worlds.reshape(-1, camera.camera_to_worlds.shape[-2], 4)[0]
        time = pose.new_tensor(default_time) if camera.times is None else camera.times.reshape(-1)[0].float()
        return cls(
            moment=Moment(time, pose[:3, :3].float(), pose[:3, 3].float() / length),
            intrinsics=torch.stack([getattr(camera, name).reshape(-1)[0] for name in ("fx", "fy", "cx", "cy")]).float(),
            width=int(camera.width.reshape(-1)[0]),
            height=int(camera.height.reshape(-1)[0]),
        )

    @property
    def world_to_camera(self) -> Float[Tensor, "4 4"]:
        """World to camera (right, down, forward)."""
        axes = self.moment.rotation.T * self.intrinsics.new_tensor(((1.0,), (-1.0,), (-1.0,)))
        matrix = torch.eye(4, device=axes.device)
        matrix[:3, :3], matrix[:3, 3] = axes, -axes @ self.moment.origin
        return matrix

    @property
    def camera_matrix(self) -> Float[Tensor, "3 3"]:
        """Intrinsics as a matrix."""
        fx, fy, cx, cy = self.intrinsics
        zero, one = torch.zeros_like(fx), torch.ones_like(fx)
        return torch.stack((fx, zero, cx, zero, fy, cy, zero, zero, one)).view(3, 3)

    def directions(self) -> tuple[Float[Tensor, "rays 3"], Float[Tensor, "rays 1"]]:
        """Unit directions of all pixels in the camera's frame (right, up, back), and distance along them per depth."""
        coords = pixel_grid(self.height, self.width).reshape(-1, 2).to(self.intrinsics)
        return camera_directions(coords, self.intrinsics)

    def depths(self, means: Float[Tensor, "gaussians 3"]) -> Float[Tensor, "gaussians"]:
        """Depths of places along the optical axis."""
        return (means - self.moment.origin) @ -self.moment.rotation[:, 2]

    def in_camera(self, means: Float[Tensor, "gaussians 3"]) -> Float[Tensor, "gaussians 3"]:
        """World positions in the camera's frame."""
        return (means - self.moment.origin) @ self.moment.rotation
