"""Frames with a pose, as reconstructions give them: in order, with exact rotations, near the origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64

from divff_nerfstudio.convert.cameras import SourceCamera
from divff_nerfstudio.convert.names import ConvertError
from divff_nerfstudio.convert.timeline import SPLITS

FEWEST_FRAMES = 4
_RIGID_TOLERANCE = 1e-3
_FINENESS = 1e-4
"""Step of single precision, as a share of how far cameras move, from which on they are moved to the origin."""


@dataclass(frozen=True, eq=False)
class PosedFrames:
    """A reconstruction: which frames have a pose, and what was seen."""

    numbers: Int64[np.ndarray, "n"]
    """Numbers of the frames, ascending."""
    camera_to_worlds: Float[np.ndarray, "n 3 4"]
    """Poses: columns right, up, back, position (OpenGL)."""
    cameras: tuple[SourceCamera, ...]
    """Camera of each frame."""
    points: Float[np.ndarray, "p 3"]
    """Points of the room; there may be none."""
    path: Path
    """Where it was read from."""
    splits: tuple[str, ...] | None = None
    """What each frame is for, where the data set says so."""
    times: Float[np.ndarray, "n"] | None = None
    """When each was taken, ascending, where the data set says so."""
    notes: tuple[str, ...] = ()
    """What the user is told."""

    def selected(self, first: int | None, last: int | None, every: int) -> PosedFrames:
        """Every n-th frame from one number to another; None: to the end.

        Raises:
            ConvertError: If too few are left.
        """
        begin, end = -np.inf if first is None else first, np.inf if last is None else last
        chosen = np.flatnonzero((self.numbers >= begin) & (self.numbers <= end))[::every]
        if len(chosen) < FEWEST_FRAMES:
            raise ConvertError(
                f"{self.path} has poses of {len(chosen)} frames that are asked for: a scene needs {FEWEST_FRAMES} at "
                "least, with many views of one room."
            )
        posed = self.taken(chosen)
        lost = next((split for split in SPLITS if posed.splits is not None and split not in posed.splits), None)
        if lost is not None:
            raise ConvertError(
                f"{self.path} has none of the frames that are asked for in {lost}_filenames: ask for more of them."
            )
        return posed

    def taken(self, chosen: Int64[np.ndarray, "k"]) -> PosedFrames:
        """The frames at these places."""
        return replace(
            self,
            numbers=self.numbers[chosen],
            camera_to_worlds=self.camera_to_worlds[chosen],
            cameras=tuple(self.cameras[i] for i in chosen),
            splits=None if self.splits is None else tuple(self.splits[i] for i in chosen),
            times=None if self.times is None else self.times[chosen],
        )


def posed_frames(
    numbers: Sequence[int],
    poses: Float[np.ndarray, "n 3 4"],
    cameras: Sequence[SourceCamera],
    points: Float[np.ndarray, "p 3"],
    path: Path,
    splits: Mapping[int, str] | None = None,
    times: Mapping[int, float] | None = None,
    notes: Sequence[str] = (),
) -> PosedFrames:
    """A reconstruction in ascending order of its frames' numbers, with exact rotations.

    Args:
        numbers: Of the frames, in any order.
        poses: Camera-to-world, OpenGL.
        cameras: Camera of each frame.
        points: Points of the room.
        path: Where it was read from.
        splits: What frames are for, by their numbers; frames that are not in it are left out.
        times: When they were taken, by their numbers.
        notes: What the user is told.

    Raises:
        ConvertError: If there is no frame, two have one number, or a pose is none.
    """
    if not len(numbers):
        raise ConvertError(f"{path} has no posed frame: give a reconstruction that has some.")
    order = np.argsort(numbers)
    found = np.array(numbers, np.int64)[order]
    twice = found[1:][np.diff(found) == 0]
    if len(twice):
        raise ConvertError(f"{path} has two frames of number {twice[0]}: give --order name if names tell the order.")
    rigid = rigid_poses(np.asarray(poses, np.float64)[order], path)
    origin = _origin(rigid[:, :, 3])
    if origin.any():
        told = ", ".join(f"{value:.0f}" for value in origin)
        notes = [*notes, f"{path}: its poses lie far from the origin; ({told}) is subtracted from them and its points."]
    step, spread = np.spacing(np.abs(rigid[:, :, 3]).max()), np.ptp(rigid[:, :, 3], axis=0).max()
    if step > _FINENESS * spread > 0:
        raise ConvertError(
            f"{path} has positions so far from the origin that they are told to {step:.2g} where the cameras are "
            f"{spread:.2g} apart: write them nearer to it."
        )
    rigid[:, :, 3] -= origin
    posed = PosedFrames(
        found,
        rigid,
        tuple(cameras[i] for i in order),
        points.reshape(-1, 3) - origin,
        path,
        splits=None if splits is None else tuple(splits.get(int(number), "") for number in found),
        times=None if times is None else np.array([times[int(number)] for number in found]),
        notes=tuple(notes),
    )
    return posed if splits is None else posed.taken(np.array([i for i, n in enumerate(found) if int(n) in splits]))


def _origin(positions: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "3"]:
    """A whole position amid cameras that lie so far out, as in maps, that single precision loses how they move."""
    middle = positions.mean(0)
    spread = np.abs(positions - middle).max()
    step = np.spacing(np.abs(positions).max().astype(np.float32))
    return np.round(middle) if step > _FINENESS * spread > 0 else np.zeros(3)


def opengl_poses(world_to_camera: Float[np.ndarray, "n 3 4"]) -> Float[np.ndarray, "n 3 4"]:
    """Camera-to-world matrices (right, up, back) from COLMAP's world-to-camera (right, down, forward)."""
    rotations = world_to_camera[:, :, :3].transpose(0, 2, 1)
    positions = -np.einsum("nij,nj->ni", rotations, world_to_camera[:, :, 3])
    return np.concatenate((rotations * (1.0, -1.0, -1.0), positions[:, :, None]), axis=2)


def rigid_poses(poses: Float[np.ndarray, "n 3 4"], path: Path) -> Float[np.ndarray, "n 3 4"]:
    """Poses whose rotations are exact.

    Raises:
        ConvertError: If one is far from a rotation: scaled, mirrored or not finite.
    """
    rotations = poses[:, :, :3]
    with np.errstate(invalid="ignore"):
        error = np.abs(rotations.transpose(0, 2, 1) @ rotations - np.eye(3)).max((1, 2))
        bad = ~((error < _RIGID_TOLERANCE) & (np.linalg.det(rotations) > 0) & np.isfinite(poses).all((1, 2)))
    if bad.any():
        raise ConvertError(
            f"{path} has a pose, of its {np.flatnonzero(bad)[0] + 1}. frame, that is no rotation and position: give "
            "camera-to-world matrices without scale or mirroring."
        )
    left, _, right = np.linalg.svd(rotations)
    return np.concatenate((left @ right, poses[:, :, 3:]), axis=2)
