"""What training reads of frames, pixel by pixel: rays and colours, what was found to move, and features.

All of it lies in the host's memory, mapped from files, or in the memory of the device where it fits there: then a batch
is drawn and looked up on the device, and the host waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from divff_nerfstudio.card import sent
from divff_nerfstudio.data.rays import camera_directions, pixel_areas, pixel_grid
from divff_nerfstudio.features.store import FeatureStore, ResidentStore
from divff_nerfstudio.generators import weighted_draw

CANDIDATES = 4
"""Pixels from which one is drawn, where some are to be drawn more often than others."""
FeatureTargets = dict[str, tuple[Float[Tensor, "rays dimension"], Bool[Tensor, "rays"]]]
"""For each kind of feature: the rays' targets, and which of them have one."""


class FrameTable:
    """Bytes of each pixel of some frames, where they are mapped from a file or on a device.

    Args:
        values: The frames.
        device: Where what is looked up shall be.
        resident: Whether the frames themselves shall be there.
    """

    def __init__(
        self, values: UInt8[np.ndarray, "frames height width channels"], device: torch.device | str, resident: bool
    ):
        self.device, self.resident = torch.device(device), resident
        # As a plain array: a memmap's own indexing costs more at each look-up.
        self.values = np.asarray(values)
        self._height, self._width = values.shape[1:3]

    @cached_property
    def _there(self) -> UInt8[Tensor, "pixels channels"]:
        """The frames on the device, copied when first asked for: who only looks at a run has no need of them."""
        return _copied(self.values, self.device).flatten(0, 2)

    def pixels(
        self,
        frame: Int[Tensor, "n"],
        row: Int[Tensor, "n"],
        column: Int[Tensor, "n"],
        where: torch.device | None = None,
    ) -> Float[Tensor, "n channels"]:
        """Values of pixels in [0, 1].

        Args:
            frame: Frames; like rows and columns on the host, or on the device if the frames themselves are there.
            row: Rows.
            column: Columns.
            where: Device on which the values shall be; None: that of the table.
        """
        place, where = (frame * self._height + row) * self._width + column, where or self.device
        if self.resident and where.type == self.device.type:
            found = self._there[sent(place, where)]
        else:
            found = sent(torch.from_numpy(self.values.reshape(-1, self.values.shape[-1])[place.numpy()]), where)
        return found.float() / 255.0

    def frame(self, frame: int) -> Float[Tensor, "pixels channels"]:
        """Values of all pixels of a frame, row by row."""
        area = self._height * self._width
        if self.resident:
            found = self._there[frame * area : (frame + 1) * area]
        else:
            found = sent(torch.from_numpy(np.array(self.values[frame]).reshape(area, -1)), self.device)
        return found.float() / 255.0


def _copied(
    values: UInt8[np.ndarray, "frames height width channels"], device: torch.device | str
) -> UInt8[Tensor, "frames height width channels"]:
    """Frames on a device, copied some at a time: the host has no room for them twice."""
    found = torch.empty(values.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(values), 64):
        found[start : start + 64] = torch.from_numpy(np.array(values[start : start + 64]))
    return found


class FeatureTables:
    """Features of pixels, of all kinds that there are.

    Args:
        stores: The stores by kind.
        device: Where what is looked up shall be.
        resident: Whether the stores' tables shall be there.
    """

    def __init__(self, stores: Mapping[str, FeatureStore], device: torch.device | str, resident: bool):
        self._device = device
        self.resident = resident
        self._stores = {kind: ResidentStore(store, device) if resident else store for kind, store in stores.items()}

    def lookup(self, frame: Int[Tensor, "n"], row: Int[Tensor, "n"], column: Int[Tensor, "n"]) -> FeatureTargets:
        """Features at pixels; places are on the host unless the tables are on the device.

        Args:
            frame: Index of the frame in the scene.
            row: Pixel row in the scene's frame.
            column: Pixel column in the scene's frame.
        """
        targets = {}
        for kind, store in self._stores.items():
            features, valid = store.lookup(frame, row, column)
            targets[kind] = sent(features, self._device), sent(valid, self._device)
        return targets


class PixelBatches:
    """Draws pixels of a split at random, with their rays and colours.

    All frames share one camera model, so that what a pixel's ray has in the camera's own frame is tabulated once; a
    ray costs one rotation. Draws come from torch's global generator of the device that they are made on, whose saved
    state restores them.

    Args:
        cameras: Those of the split.
        metadata: "times", "nears" and "fars" of them.
        colours: The frames of the scene.
        scene_indices: Which of these the split has.
        num_rays_per_batch: Rays in each batch.
        device: Where the rays shall be.
    """

    def __init__(
        self,
        cameras: Cameras,
        metadata: Mapping[str, Any],
        colours: FrameTable,
        scene_indices: Int[Tensor, "frames"],
        num_rays_per_batch: int,
        device: torch.device | str,
    ):
        self.num_rays_per_batch = num_rays_per_batch
        self.device = device
        self.colours = colours
        self.height, self.width = colours.values.shape[1:3]
        self._frames = len(scene_indices)
        self._scene_indices = {"cpu": scene_indices.cpu(), torch.device(device).type: scene_indices.to(device)}
        self._rotations = cameras.camera_to_worlds[:, :, :3].to(device)
        self._origins = cameras.camera_to_worlds[:, :, 3].to(device)
        self._per_frame = torch.stack([metadata[key] for key in ("times", "nears", "fars")], -1).to(device)
        intrinsics = torch.cat([getattr(cameras, name)[0] for name in ("fx", "fy", "cx", "cy")])
        coords = pixel_grid(self.height, self.width).reshape(-1, 2)
        directions, norms = camera_directions(coords, intrinsics)
        self._per_pixel = torch.cat((directions, norms, pixel_areas(coords, intrinsics)), -1).to(device)

    def draw(
        self,
        where: torch.device | str = "cpu",
        prefer: Callable[[Int[Tensor, "pixels 3"]], Float[Tensor, "pixels"]] | None = None,
        frames: range | None = None,
    ) -> tuple[RayBundle, dict[str, Tensor]]:
        """One batch.

        Args:
            where: Device on which the pixels are drawn, and their indices stay.
            prefer: How often pixels (camera, row, column) shall be drawn, up to a factor; above 0. The batch is drawn
                by it from `CANDIDATES` times as many. None: all alike.
            frames: Frames within the split of which they are drawn; None: all.

        Returns:
            The rays, and "image" (colours, R x 3, 0..1) with "indices" (camera, row, column).
        """
        area, rays = self.height * self.width, self.num_rays_per_batch
        count = rays if prefer is None else CANDIDATES * rays
        frames = range(self._frames) if frames is None else frames
        drawn = torch.randint(frames.start * area, frames.stop * area, (count,), device=where)
        indices = torch.stack((drawn // area, drawn % area // self.width, drawn % self.width), -1)
        if prefer is not None:
            chosen = weighted_draw(prefer(indices), rays)
            drawn, indices = drawn[chosen], indices[chosen]
        camera, row, column = indices.unbind(-1)
        image = self.colours.pixels(self.in_scene(camera), row, column)
        return self.rays(camera, drawn % area), {"image": image, "indices": indices}

    def in_scene(self, camera: Int[Tensor, "rays"]) -> Int[Tensor, "rays"]:
        """Indices in the scene of frames of the split."""
        return self._scene_indices[camera.device.type][camera]

    def rays(self, camera: Int[Tensor, "rays"], pixel: Int[Tensor, "rays"]) -> RayBundle:
        """Rays through pixel centres.

        Args:
            camera: Frame within the split.
            pixel: row * width + column.
        """
        camera, pixel = sent(camera, self.device), sent(pixel, self.device)
        per_pixel, per_frame = self._per_pixel[pixel], self._per_frame[camera]
        directions = torch.einsum("rij,rj->ri", self._rotations[camera], per_pixel[:, :3])
        return RayBundle(
            origins=self._origins[camera],
            directions=directions,
            pixel_area=per_pixel[:, 4:5],
            camera_indices=camera[:, None],
            times=per_frame[:, 0:1],
            nears=per_frame[:, 1:2],
            fars=per_frame[:, 2:3],
            metadata={"camera_directions": per_pixel[:, :3], "directions_norm": per_pixel[:, 3:4]},
        )
