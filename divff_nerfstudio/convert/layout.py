"""Writes posed frames as a scene folder: undistorted pictures, poses, near and far, splits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float, Int64
from PIL import Image
from pydantic import Field

from divff_nerfstudio.atomic import atomic_path, write_text
from divff_nerfstudio.convert.cameras import CameraError, Pinhole, SourceCamera, Undistorter, common_pinhole
from divff_nerfstudio.convert.names import MAX_NUMBER, ConvertError
from divff_nerfstudio.convert.pictures import FrameSource
from divff_nerfstudio.convert.timeline import SPLITS, ids_of
from divff_nerfstudio.schema import Positive

QUANTILES = (0.001, 0.999)
"""Shares of the points ahead of a camera that are nearer than its near, and than its far."""
QUALITY = 92
"""Of the video's JPEG files."""
FEWEST_FRAMES = 4
MAX_SIDE = 16384
"""Pixels that a frame may be wide."""
_MAX_POINTS = 200_000
_RIGID_TOLERANCE = 1e-3
_FINENESS = 1e-4
"""Step of single precision, as a share of how far cameras move, from which on they are moved to the origin."""
_FEWEST_POINTS = 10


@dataclass
class SceneOptions:
    """What a scene made of one's own frames looks like."""

    width: Annotated[int, Field(ge=16, le=MAX_SIDE)] = 228
    """Of the frames, pixels; never more than they have."""
    video_width: Literal[0] | Annotated[int, Field(ge=16, le=MAX_SIDE)] | None = None
    """Of the video's frames (high_res_video), pixels; None: twice the width of the frames, 0: none are written."""
    widest: Annotated[float, Field(ge=10, le=160)] = 110.0
    """Degrees that the undistorted view may span horizontally; a pinhole stretches what lies farther out."""
    split: Annotated[int, Field(ge=2, le=10**6)] = 8
    """Every n-th frame is held out, for test and validation alternately, unless the data set says which."""
    every: Annotated[int, Field(ge=1, le=10**6)] = 1
    """Use every n-th posed frame."""
    first: Annotated[int, Field(ge=0, le=MAX_NUMBER)] | None = None
    """Number of the first frame to use."""
    last: Annotated[int, Field(ge=0, le=MAX_NUMBER)] | None = None
    """Number of the last frame to use."""
    near: Positive | None = None
    """Where the room begins, scene units; None: found from the points of the reconstruction."""
    far: Positive | None = None
    """Where the room ends, scene units; None: found from the points of the reconstruction."""
    overwrite: bool = False
    """Replace what is in the output folder."""

    def check(self) -> None:
        """Raises ConvertError where two options do not go together."""
        if (self.near is None) != (self.far is None):
            raise ConvertError("Only one of --near and --far is given: give both, or none.")
        if self.near is not None and self.far is not None and not self.near < self.far:
            raise ConvertError(f"--near {self.near:g} --far {self.far:g}: give distances with 0 < near < far.")
        if self.first is not None and self.last is not None and self.first > self.last:
            raise ConvertError(f"--first {self.first} --last {self.last}: give numbers with first <= last.")


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

    def selected(self, options: SceneOptions) -> PosedFrames:
        """The frames that the options ask for.

        Raises:
            ConvertError: If too few are left.
        """
        first = -np.inf if options.first is None else options.first
        last = np.inf if options.last is None else options.last
        chosen = np.flatnonzero((self.numbers >= first) & (self.numbers <= last))[:: options.every]
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


def ray_bounds(
    poses: Float[np.ndarray, "n 3 4"], points: Float[np.ndarray, "p 3"], path: Path
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Near and far of each camera: quantiles of the distances, along rays, of the points ahead of it.

    A camera with too few points ahead takes those of the camera before it that has enough.

    Args:
        poses: Camera-to-world, OpenGL.
        points: Points of the room; a random part of them where there are very many.
        path: What is named in errors.

    Raises:
        ConvertError: If there are no points, or none ahead of any camera.
    """
    if len(points) > _MAX_POINTS:
        points = points[np.random.default_rng(0).choice(len(points), _MAX_POINTS, replace=False)]
    bounds = np.full((len(poses), 2), np.nan)
    for i, pose in enumerate(poses):
        offsets = points - pose[:, 3]
        distances = np.linalg.norm(offsets[offsets @ pose[:, 2] < 0], axis=1)
        if len(distances) >= _FEWEST_POINTS:
            bounds[i] = np.quantile(distances, QUANTILES)
    known = np.isfinite(bounds).all(1) & (bounds[:, 0] > 0) & (bounds[:, 0] < bounds[:, 1])
    if not known.any():
        raise ConvertError(
            f"{path} has no points of the room by which near and far are found: give --near and --far in its units, "
            "or a reconstruction with points."
        )
    source = np.maximum.accumulate(np.where(known, np.arange(len(poses)), -1))
    source[source < 0] = np.flatnonzero(known)[0]
    return bounds[source, 0], bounds[source, 1]


def splits_of(count: int, every: int) -> dict[str, list[int]]:
    """Train, val and test ids: every n-th frame is held out, for test and validation alternately.

    Args:
        count: Number of frames.
        every: n; less where there are so few frames that validation would get none.
    """
    held = list(range(0, count, min(every, count // 2)))
    test, val = held[0::2], held[1::2]
    return {"train": sorted(set(range(count)) - set(held)), "val": val, "test": test}


def write_scene(folder: Path, posed: PosedFrames, source: FrameSource, options: SceneOptions) -> dict[str, Any]:
    """Writes the pictures and, last, ``meta.json``; pictures that are there already are not written again.

    Args:
        folder: An existing folder, see `staged`.
        posed: The frames that get into the scene.
        source: The pictures; those between the posed ones get into ``high_res_video``.
        options: Sizes and splits.

    Returns:
        What was written as ``meta.json``.

    Raises:
        ConvertError: If frames are missing, or near and far cannot be found.
        CameraError: If the cameras' distortion cannot be undone.
    """
    if options.near is None or options.far is None:
        nears, fars = ray_bounds(posed.camera_to_worlds, posed.points, posed.path)
    else:
        nears, fars = (np.full(len(posed.numbers), value) for value in (options.near, options.far))
    missing = _missing(posed, source)
    if missing:
        raise ConvertError(
            f"{source.path} has no frame {missing[0]}, which has a pose in {posed.path}, and {len(missing) - 1} more "
            "are missing: give the frames that were reconstructed."
        )
    _check_sizes(posed, source)
    pinhole = _Pictures(folder, posed, source, options).write()
    ids = ids_of(posed.times, len(posed.numbers)).tolist()
    meta = {
        "ids_all": ids,
        "images": {str(i): f"{frame_stem(number)}.bmp" for i, number in zip(ids, posed.numbers, strict=True)},
        "intrinsics": pinhole.matrix,
        "camera": {
            "model": "PINHOLE",
            "width": pinhole.width,
            "height": pinhole.height,
            "params": [pinhole.fx, pinhole.fy, pinhole.cx, pinhole.cy],
        },
        "image_w": float(pinhole.width),
        "image_h": float(pinhole.height),
        "nears": {str(i): float(near) for i, near in zip(ids, nears, strict=True)},
        "fars": {str(i): float(far) for i, far in zip(ids, fars, strict=True)},
        "poses": {str(i): pose.tolist() for i, pose in zip(ids, posed.camera_to_worlds, strict=True)},
        **{f"ids_{split}": [ids[i] for i in found] for split, found in _held(posed, options).items()},
    }
    write_text(folder / "meta.json", json.dumps(meta))
    return meta


def _held(posed: PosedFrames, options: SceneOptions) -> dict[str, list[int]]:
    """Which frames are for what: as the data set says, or by `splits_of`."""
    if posed.splits is None:
        return splits_of(len(posed.numbers), options.split)
    return {split: [i for i, own in enumerate(posed.splits) if own == split] for split in SPLITS}


def _check_sizes(posed: PosedFrames, source: FrameSource) -> None:
    """Raises DivffError, before anything is written, where a picture has not the shape of its camera."""
    seen: set[tuple[SourceCamera, tuple[int, int]]] = set()
    for number, camera in zip(posed.numbers.tolist(), posed.cameras, strict=True):
        size = source.size_of(number)
        if (camera, size) not in seen:
            try:
                camera.scaled(*size)
            except CameraError as error:
                reason = str(error)
                raise ConvertError(
                    f"Frame {number} of {source.path} does not fit its camera: {reason[:1].lower()}{reason[1:]}"
                ) from None
            seen.add((camera, size))


def _missing(posed: PosedFrames, source: FrameSource) -> list[int]:
    """Frames with a pose that the source has not; a video's length is found when it is read."""
    return [] if source.numbers is None else sorted(set(posed.numbers.tolist()) - set(source.numbers))


def frame_stem(number: int) -> str:
    """Name of a sampled frame's file without its suffix."""
    return f"IMG_{number:010d}"


def video_name(number: int) -> str:
    """Name of a video frame's file."""
    return f"frame_{number:010d}.jpg"


def is_written(path: Path) -> bool:
    """Whether a picture is there; an empty file is what a power failure leaves."""
    return path.is_file() and path.stat().st_size > 0


class _Pictures:
    """Writes the frames and the video's frames in one pass through the source."""

    def __init__(self, folder: Path, posed: PosedFrames, source: FrameSource, options: SceneOptions):
        self.frames = folder / "frames"
        self.video = folder / "high_res_video"
        self.posed = posed
        self.source = source
        self.options = options
        self.views: dict[tuple[SourceCamera, int, tuple[int, int]], Undistorter] = {}

    def write(self) -> Pinhole:
        """Writes all that is not there yet; returns the frames' camera."""
        from rich.progress import track

        pinhole = common_pinhole(self.posed.cameras, self.options.width, self.options.widest)
        video_width = 2 * pinhole.width if self.options.video_width is None else self.options.video_width
        video_width = min(video_width, *(camera.width for camera in self.posed.cameras))
        self.frames.mkdir(exist_ok=True)
        posed = set(self.posed.numbers.tolist())
        wanted = {number for number in posed if not is_written(self._frame_path(number))}
        if video_width:
            self.video.mkdir(exist_ok=True)
            wanted |= {n for n in self._video_numbers() if not is_written(self.video / video_name(n))}
        for number, picture in track(self.source.read(wanted), total=len(wanted), description="Writing frames"):
            if number in posed and not is_written(self._frame_path(number)):
                _save(self._frame_path(number), self._seen(number, picture, pinhole))
            if video_width:
                _save(self.video / video_name(number), self._seen(number, picture, pinhole.resized(video_width)))
        return pinhole

    def _video_numbers(self) -> Sequence[int]:
        first, last = int(self.posed.numbers[0]), int(self.posed.numbers[-1])
        known = range(first, last + 1) if self.source.numbers is None else self.source.numbers
        return [number for number in known if first <= number <= last]

    def _frame_path(self, number: int) -> Path:
        return self.frames / f"{frame_stem(number)}.bmp"

    def _seen(self, number: int, picture: np.ndarray, pinhole: Pinhole) -> np.ndarray:
        """A frame as the pinhole sees it; one without a pose has the camera of the next that has one."""
        nearest = min(int(np.searchsorted(self.posed.numbers, number)), len(self.posed.numbers) - 1)
        size = (picture.shape[1], picture.shape[0])
        key = (self.posed.cameras[nearest], pinhole.width, size)
        if key not in self.views:
            self.views[key] = Undistorter(key[0].scaled(*size), pinhole)
        return self.views[key](picture)


def _save(path: Path, picture: np.ndarray) -> None:
    with atomic_path(path, sync=False) as temporary:
        Image.fromarray(picture).save(temporary, quality=QUALITY)
