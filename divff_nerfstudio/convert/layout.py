"""Writes posed frames as a scene folder: undistorted pictures, poses, near and far, splits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from PIL import Image

from divff_nerfstudio.convert.cameras import Pinhole, SourceCamera, Undistorter, common_pinhole
from divff_nerfstudio.convert.pictures import ConvertError, FrameSource
from divff_nerfstudio.files import atomic_path

QUANTILES = (0.001, 0.999)
"""Shares of the points ahead of a camera that are nearer than its near, and than its far."""
QUALITY = 92
"""Of the video's JPEG files."""
FEWEST_FRAMES = 4
_MOST_POINTS = 200_000
_RIGID_TOLERANCE = 1e-3
_FEWEST_POINTS = 10


@dataclass
class SceneOptions:
    """What a scene made of one's own frames looks like."""

    width: int = 228
    """Of the frames, pixels; never more than they have."""
    video_width: int | None = None
    """Of the video's frames (high_res_video), pixels; None: twice the width of the frames, 0: none are written."""
    widest: float = 110.0
    """Degrees that the undistorted view may span horizontally; a pinhole stretches what lies farther out."""
    split: int = 8
    """Every n-th frame is held out, for test and validation alternately."""
    every: int = 1
    """Use every n-th posed frame."""
    first: int | None = None
    """Number of the first frame to use."""
    last: int | None = None
    """Number of the last frame to use."""
    near: float | None = None
    """Where the room begins, scene units; None: found from the points of the reconstruction."""
    far: float | None = None
    """Where the room ends, scene units; None: found from the points of the reconstruction."""
    overwrite: bool = False
    """Replace what is in the output folder."""

    def check(self) -> None:
        """Raises ConvertError where an option makes no sense."""
        for name, smallest in (("width", 16), ("split", 2), ("every", 1)):
            if getattr(self, name) < smallest:
                raise ConvertError(f"--{name} is {getattr(self, name)}: give {smallest} or more.")
        if self.video_width is not None and 0 != self.video_width < 16:
            raise ConvertError(f"--video-width is {self.video_width}: give 16 or more, or 0 for none.")
        if not 10 <= self.widest <= 160:
            raise ConvertError(f"--widest is {self.widest:g}: give 10 to 160 degrees.")
        if (self.near is None) != (self.far is None):
            raise ConvertError("Only one of --near and --far is given: give both, or none.")
        if self.near is not None and self.far is not None and not 0 < self.near < self.far:
            raise ConvertError(f"--near {self.near:g} --far {self.far:g}: give distances with 0 < near < far.")


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
        return PosedFrames(
            self.numbers[chosen],
            self.camera_to_worlds[chosen],
            tuple(self.cameras[i] for i in chosen),
            self.points,
            self.path,
        )


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
    if len(points) > _MOST_POINTS:
        points = points[np.random.default_rng(0).choice(len(points), _MOST_POINTS, replace=False)]
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
    pinhole = _Pictures(folder, posed, source, options).write()
    ids = range(len(posed.numbers))
    meta = {
        "ids_all": list(ids),
        "images": {str(i): f"{frame_stem(number)}.bmp" for i, number in enumerate(posed.numbers)},
        "intrinsics": pinhole.matrix,
        "camera": {
            "model": "PINHOLE",
            "width": pinhole.width,
            "height": pinhole.height,
            "params": [pinhole.fx, pinhole.fy, pinhole.cx, pinhole.cy],
        },
        "image_w": float(pinhole.width),
        "image_h": float(pinhole.height),
        "nears": {str(i): float(nears[i]) for i in ids},
        "fars": {str(i): float(fars[i]) for i in ids},
        "poses": {str(i): posed.camera_to_worlds[i].tolist() for i in ids},
        **{f"ids_{split}": found for split, found in splits_of(len(ids), options.split).items()},
    }
    with atomic_path(folder / "meta.json") as temporary:
        temporary.write_text(json.dumps(meta), encoding="utf-8")
    return meta


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
