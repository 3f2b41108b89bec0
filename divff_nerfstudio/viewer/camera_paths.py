"""Camera paths as nerfstudio's Render tab writes them, and as they are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.camera_paths import get_path_from_json
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.scene_box import OrientedBox
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from torch import Tensor

from divff_nerfstudio.atomic import write_text
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.schema import MAX_FPS, Number, PicturesPerSecond, Positive, Record, read_json

MAX_SIDE = 16384
"""Longest side of a picture."""
MAX_PIXELS = 2**26
"""Most pixels of a picture of a film."""
MAX_CAMERAS = 100_000
"""Most cameras of a path."""
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
"""Height or width of a picture in pixels."""

_TYPES = {
    CameraType.PERSPECTIVE: "perspective",
    CameraType.FISHEYE: "fisheye",
    CameraType.EQUIRECTANGULAR: "equirectangular",
}
_STEREO = ("omnidirectional", "vr180")
_FPS = 10.0
"""Pictures per second of a path that the panel writes."""
_MAX_ASPECT = 32
_RIGID = 1e-2
"""How far a pose may be from a rotation: files are written by hand, too."""
_OVERSHOT = 0.2
"""The tab's splines leave 0 to 1 by less than this between keyframes that lie within."""


class CameraFileError(DivffError):
    """A file of cameras cannot be read."""


def rigid(pose: Sequence[float]) -> Sequence[float]:
    """A camera-to-world matrix, 3x4 or 4x4 row by row, whose columns are right, up, back and position.

    Raises:
        ValueError: If it is scaled, mirrored or no such matrix.
    """
    if len(pose) not in (12, 16):
        raise ValueError("should have 3 or 4 rows of 4 numbers")
    matrix = np.array(pose, np.float64).reshape(-1, 4)
    rotation = matrix[:3, :3]
    if np.abs(rotation.T @ rotation - np.eye(3)).max() > _RIGID or np.linalg.det(rotation) < 0:
        raise ValueError("should be a rotation and a position, neither scaled nor mirrored")
    if len(matrix) == 4 and np.abs(matrix[3] - (0, 0, 0, 1)).max() > _RIGID:
        raise ValueError("should end in the row 0, 0, 0, 1, with the position in the fourth column")
    return pose


def require_size(width: int, height: int) -> None:
    """Raises ValueError for a width and height in pixels that no picture of a film has."""
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise ValueError(f"a picture of {width}x{height} is no shape of a film")
    if height * width > MAX_PIXELS:
        raise ValueError(f"a picture of {width}x{height} has more than {MAX_PIXELS:,} pixels")


def _lower(text: Any) -> Any:
    return text.lower() if isinstance(text, str) else text


def _whole(number: Any) -> Any:
    """Sizes that were typed into the viewer are written as 1080.0."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


class _Keyframe(Record):
    """One camera of a path."""

    camera_to_world: Annotated[tuple[Number, ...], Field(min_length=16, max_length=16), AfterValidator(rigid)]
    fov: Annotated[float, Field(ge=0.1, le=179)]
    aspect: Optional[Positive] = None  # noqa: UP045
    render_time: Optional[Annotated[float, Field(ge=-_OVERSHOT, le=1 + _OVERSHOT)]] = None  # noqa: UP045


class _Colour(Record):
    """A colour, 0 to 255."""

    r: Annotated[float, Field(ge=0, le=255)]
    g: Annotated[float, Field(ge=0, le=255)]
    b: Annotated[float, Field(ge=0, le=255)]


class _Crop(Record):
    """The part of the scene that is shown."""

    crop_center: tuple[Number, Number, Number]
    crop_scale: tuple[Positive, Positive, Positive]
    crop_rot: tuple[Number, Number, Number] = (0.0, 0.0, 0.0)
    crop_bg_color: _Colour


class _Path(Record):
    """A camera path of nerfstudio's viewer."""

    camera_type: Annotated[
        Literal["perspective", "fisheye", "equirectangular", "omnidirectional", "vr180"], BeforeValidator(_lower)
    ] = "perspective"
    render_height: Annotated[Side, BeforeValidator(_whole)]
    render_width: Annotated[Side, BeforeValidator(_whole)]
    fps: Optional[PicturesPerSecond] = None  # noqa: UP045
    seconds: Optional[Positive] = None  # noqa: UP045
    crop: Optional[_Crop] = None  # noqa: UP045
    camera_path: Annotated[tuple[_Keyframe, ...], Field(min_length=1, max_length=MAX_CAMERAS)]

    @model_validator(mode="after")
    def _hangs_together(self) -> _Path:
        require_size(self.render_width, self.render_height)
        timed = [each.render_time is not None for each in self.camera_path]
        if any(timed) and not all(timed):
            raise ValueError(f"camera_path.{timed.index(False)} has no render_time where others have one")
        return self


@dataclass(frozen=True)
class Crop:
    """The part of the scene that is shown, and what is seen behind it."""

    box: OrientedBox
    """Where it is."""
    background: Float[Tensor, "3"]
    """Colour where nothing is, 0 to 1."""


@dataclass(frozen=True)
class CameraPath:
    """Cameras of a film."""

    file: Path
    """Where it was read from."""
    cameras: Cameras
    """One for each picture, with times if the path has any."""
    seconds: float | None
    """How long the film is, if the path says so."""
    crop: Crop | None
    """The part of the scene that is shown; None: all."""

    @property
    def height(self) -> int:
        """Height of the path's pictures in pixels."""
        return int(self.cameras.height[0])

    @property
    def width(self) -> int:
        """Width of the path's pictures in pixels."""
        return int(self.cameras.width[0])

    def pictures_per_second(self, count: int) -> float | None:
        """How fast so many pictures make a film as long as the path says; None where it does not.

        Raises:
            CameraFileError: If no film is as slow or as fast.
        """
        if self.seconds is None:
            return None
        speed = count / self.seconds
        if not 0.1 <= speed <= MAX_FPS:
            raise CameraFileError(
                f"{self.file} wants {count} pictures in {self.seconds:g} seconds: mend its seconds, or give --fps."
            )
        return speed


def read_camera_path(path: Path) -> CameraPath:
    """Reads a camera path as nerfstudio's viewer saves it.

    Args:
        path: The JSON file.

    Raises:
        CameraFileError: If it is none, in one sentence that says where.
    """
    content = _read(path)
    if content.camera_type in _STEREO:
        raise CameraFileError(
            f"{path} is of the type {content.camera_type}, two pictures for each moment: film it with "
            "`ns-render camera-path`, or save it with another camera type."
        )
    cameras = get_path_from_json(content.model_dump(exclude_none=True))
    if cameras.times is not None:
        cameras.times = cameras.times.reshape(-1, 1).float().clamp(0, 1)
    return CameraPath(Path(path), cameras, content.seconds, None if content.crop is None else _crop(content.crop))


def check_path_to_render(path: Path) -> bool:
    """Finds out whether ``ns-render camera-path`` can read a path; it takes two pictures for each moment, too.

    Returns:
        Whether only a part of the scene is to be shown.

    Raises:
        CameraFileError: If not.
    """
    content = _read(path)
    if content.seconds is None:
        raise CameraFileError(f'{path} does not say how long the film is: write "seconds" into it.')
    return content.crop is not None


def positions_of(path: Path) -> Float[np.ndarray, "cameras 3"]:
    """Where the cameras of a path are, whatever their type.

    Raises:
        CameraFileError: If it is none.
    """
    return np.array([each.camera_to_world for each in _read(path).camera_path], np.float64)[:, 3:12:4]


def _read(path: Path) -> _Path:
    return read_json(
        path, _Path, "a camera path of nerfstudio's viewer", 'save it from the viewer\'s tab "Render"', CameraFileError
    )


def _crop(content: _Crop) -> Crop:
    box = OrientedBox.from_params(content.crop_center, content.crop_rot, content.crop_scale)
    colour = content.crop_bg_color
    return Crop(
        OrientedBox(R=box.R.float(), T=box.T.float(), S=box.S.float()),
        torch.tensor([colour.r, colour.g, colour.b], dtype=torch.float32) / 255.0,
    )


def write_still_path(path: Path, camera: Cameras, times: Sequence[float] | np.ndarray) -> None:
    """Writes the camera path that stands still and shows every time once.

    Args:
        path: The JSON file; `ns-render camera-path`, `divff video --camera-path` and the Render tab read it.
        camera: One camera.
        times: Times, 0 to 1, a picture each.
    """
    pose = torch.eye(4)
    pose[:3] = camera.camera_to_worlds.reshape(-1, 3, 4)[0].cpu()
    height, width, focal = (float(getattr(camera, name).flatten()[0]) for name in ("height", "width", "fy"))
    matrix, fov = pose.flatten().tolist(), float(np.rad2deg(2 * np.arctan(height / 2 / focal)))
    view = {"fov": fov, "aspect": width / height}
    seconds = len(times) / _FPS
    content = {
        "default_fov": fov,
        "default_time": float(times[0]),
        "default_transition_sec": seconds,
        "keyframes": [
            {
                "matrix": matrix,
                **view,
                "override_transition_enabled": False,
                "override_transition_sec": None,
                "render_time": float(time),
                "override_time_enabled": True,
            }
            for time in (times[0], times[-1])
        ],
        "camera_type": _TYPES[CameraType(int(camera.camera_type.flatten()[0]))],
        # Video codecs want even sizes.
        "render_height": 2 * round(height / 2),
        "render_width": 2 * round(width / 2),
        "fps": _FPS,
        "seconds": seconds,
        "is_cycle": False,
        "smoothness_value": 0.0,
        "camera_path": [{"camera_to_world": matrix, **view, "render_time": float(time)} for time in times],
    }
    write_text(path, json.dumps(content))
