"""Writes posed frames as a scene folder: undistorted pictures, poses, near and far, splits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from PIL import Image
from pydantic import Field

from divff_nerfstudio.atomic import atomic_path, write_text
from divff_nerfstudio.convert.cameras import (
    CameraError,
    Pinhole,
    SourceCamera,
    Undistorter,
    common_pinhole,
    told_of_view,
)
from divff_nerfstudio.convert.names import MAX_NUMBER, ConvertError
from divff_nerfstudio.convert.pictures import FrameSource
from divff_nerfstudio.convert.posed import PosedFrames
from divff_nerfstudio.convert.timeline import SPLITS, ids_of
from divff_nerfstudio.data.meta import DEPTH_RANGE
from divff_nerfstudio.data.video_files import video_name
from divff_nerfstudio.schema import Positive

QUANTILES = (0.001, 0.999)
"""Shares of the points ahead of a camera that are nearer than its near, and than its far."""
QUALITY = 92
"""Of the video's JPEG files."""
MAX_SIDE = 16384
"""Pixels that a frame may be wide."""
_MAX_POINTS = 200_000
_FEWEST_POINTS = 10
_VIEWS = 8
"""Cameras whose sampling is kept; data sets may have one for each frame."""


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
    check_poses: bool = True
    """Look whether points that frames share lie where the poses say."""
    overwrite: bool = False
    """Replace what is in the output folder."""

    def check(self) -> None:
        """Raises ConvertError where two options do not go together."""
        if (self.near is None) != (self.far is None):
            raise ConvertError("Only one of --near and --far is given: give both, or none.")
        if self.near is not None and self.far is not None and not self.near < self.far:
            raise ConvertError(f"--near {self.near:g} --far {self.far:g}: give distances with 0 < near < far.")
        if self.near is not None and self.far is not None and self.far > DEPTH_RANGE * self.near:
            raise ConvertError(
                f"--near {self.near:g} --far {self.far:g}: give a far of less than {DEPTH_RANGE:g} times the near."
            )
        if self.first is not None and self.last is not None and self.first > self.last:
            raise ConvertError(f"--first {self.first} --last {self.last}: give numbers with first <= last.")


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
        needed = f"{_FEWEST_POINTS} or more, by which near and far are found"
        remedy = "give --near and --far in its units, or a reconstruction with points"
        found = f"{path} has {len(points) or 'no'} points of the room"
        if len(points) < _FEWEST_POINTS:
            raise ConvertError(f"{found} where it needs {needed}: {remedy}.")
        raise ConvertError(
            f"{found}, and no camera has {needed}, ahead: negate the second and third columns of the poses if they are "
            "in OpenCV's axes (right, down, forward), invert them if they are world-to-camera matrices, otherwise "
            f"{remedy}."
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


def write_scene(folder: Path, posed: PosedFrames, source: FrameSource, options: SceneOptions) -> list[str]:
    """Writes the pictures and, last, ``meta.json``; pictures that are there already are not written again.

    Args:
        folder: An existing folder, see `staged`.
        posed: The frames that get into the scene.
        source: The pictures; those between the posed ones get into ``high_res_video``.
        options: Sizes and splits.

    Returns:
        What the user is told.

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
    pictures = _Pictures(folder, posed, source, options)
    pinhole = pictures.write()
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
    notes = [told_of_view(posed.cameras, pinhole, options.widest, posed.path)]
    if pictures.odd:
        notes.append(
            f"{source.path}: {len(pictures.odd)} pictures without a pose have another shape than those with one, frame "
            f"{pictures.odd[0]} first, and are left out."
        )
    return list(filter(None, notes))


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
        self.odd: list[int] = []
        self._view = lru_cache(_VIEWS)(_view)

    def write(self) -> Pinhole:
        """Writes all that is not there yet; returns the frames' camera."""
        from rich.progress import track

        try:
            pinhole = common_pinhole(self.posed.cameras, self.options.width, self.options.widest)
        except CameraError as error:
            raise CameraError(f"{self.posed.path}: {str(error)[:1].lower()}{str(error)[1:]}") from None
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
                try:
                    seen = self._seen(number, picture, pinhole.resized(video_width))
                except CameraError:
                    if number in posed:
                        raise
                    self.odd.append(number)
                    continue
                _save(self.video / video_name(number), seen)
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
        return self._view(self.posed.cameras[nearest], size, pinhole)(picture)


def _view(camera: SourceCamera, size: tuple[int, int], pinhole: Pinhole) -> Undistorter:
    return Undistorter(camera.scaled(*size), pinhole)


def _save(path: Path, picture: np.ndarray) -> None:
    with atomic_path(path, sync=False) as temporary:
        Image.fromarray(picture).save(temporary, quality=QUALITY)
