"""Where a picture is taken from: fixed viewpoints of a scene, and cameras and camera paths in files."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from divff_nerfstudio.data.meta import focal_fault
from divff_nerfstudio.data.scene import SceneFolder
from divff_nerfstudio.evenly import evenly_spaced
from divff_nerfstudio.schema import Amount, Number, Record, Share, parse_json, read_json
from divff_nerfstudio.viewer.camera_paths import CameraFileError, Side, read_camera_path, require_size, rigid

_COMPARED = 2000
_BLOCK = 256
"""Frames that are compared with others at a time."""


def fixed_viewpoint(scene: SceneFolder, frame_id: int | None = None) -> int:
    """Index of the frame whose viewpoint is the fixed one.

    Args:
        scene: The scene.
        frame_id: The frame that is wanted; None: that of the published videos for the ten scenes of EPIC-Diff
            (``configs/fixed_viewpoints.json``, by the name of the scene's folder), else the most central.

    Raises:
        SceneError: If the scene has no such frame.
    """
    if frame_id is None:
        frame_id = published_viewpoints().get(scene.name)
        if frame_id is None or frame_id not in scene.frame_ids:
            return central_frame(scene)
    return scene.index_of(frame_id)


def published_viewpoints() -> dict[str, int]:
    """Frame id of the published fixed viewpoint of each scene of EPIC-Diff, by the scene's name."""
    path = files("divff_nerfstudio") / "configs" / "fixed_viewpoints.json"
    return parse_json(path.read_text(encoding="utf-8"), dict[str, Amount])


def central_frame(scene: SceneFolder) -> int:
    """Index of the frame whose viewpoint is nearest to all others: the medoid of positions and viewing directions.

    Of more than `_COMPARED` frames, each is held against so many others, evenly spread over the video.
    """
    positions, directions = scene.camera_to_worlds[:, :, 3], -scene.camera_to_worlds[:, :, 2]
    others = evenly_spaced(len(scene), _COMPARED)
    apart, turned = np.zeros(len(scene)), np.zeros(len(scene))
    for start in range(0, len(scene), _BLOCK):
        own = slice(start, start + _BLOCK)
        apart[own] = np.linalg.norm(positions[own, None] - positions[others], axis=-1).mean(axis=1)
        turned[own] = np.arccos(np.clip(directions[own] @ directions[others].T, -1, 1)).mean(axis=1)
    return int((apart / max(apart.mean(), 1e-9) + turned / max(turned.mean(), 1e-9)).argmin())


class _AnyFile(Record):
    """What tells the two kinds of files of cameras apart."""

    camera_path: Any = None


def _rows(value: Any) -> Any:
    """A matrix's rows one behind the other."""
    if isinstance(value, list) and all(isinstance(row, list) for row in value):
        return tuple(number for row in value for number in row)
    return tuple(value) if isinstance(value, list) else value


class _Camera(Record, extra="forbid"):
    """One camera in a file."""

    camera_to_world: Annotated[
        tuple[Number, ...], BeforeValidator(_rows), Field(min_length=12, max_length=16), AfterValidator(rigid)
    ]
    intrinsics: Annotated[tuple[Number, ...], BeforeValidator(_rows), Field(min_length=9, max_length=9)] | None = None
    width: Side | None = None
    height: Side | None = None
    time: Share | None = None

    @model_validator(mode="after")
    def _sees(self) -> _Camera:
        if self.intrinsics is None:
            return self
        fx, skew, _, shear, fy, _, *last = self.intrinsics
        if not (fx > 0 and fy > 0):
            raise ValueError("intrinsics: the focal lengths should be greater than 0")
        if skew or shear or last != [0, 0, 1]:
            raise ValueError("intrinsics: should be [[fx,0,cx],[0,fy,cy],[0,0,1]]")
        return self


def read_camera(path: Path, like: Cameras) -> Cameras:
    """Reads a camera from a file.

    Args:
        path: A camera path as nerfstudio's viewer saves it, of which the first one is taken, or one camera: an object
            of "camera_to_world" (3x4 or 4x4, columns right, up, back, position) and, if they are not the scene's,
            "intrinsics" (3x3), "width", "height"; "time" (0 to 1) if it has one.
        like: A camera of the scene, which gives what a single camera leaves out.

    Returns:
        The camera, with a time if it has one.

    Raises:
        CameraFileError: If it is neither.
    """
    what = "a camera path of nerfstudio's viewer, nor a camera"
    remedy = 'save it from the viewer\'s tab "Render", or write {"camera_to_world": [[...], [...], [...]]}'
    if read_json(path, _AnyFile, what, remedy, CameraFileError).camera_path is not None:
        return read_camera_path(path).cameras[:1]
    content = read_json(path, _Camera, what, remedy, CameraFileError)
    pose = torch.tensor(content.camera_to_world, dtype=torch.float32).reshape(-1, 4)[:3]
    K = intrinsics_of(like) if content.intrinsics is None else np.array(content.intrinsics, np.float64).reshape(3, 3)
    width, height = content.width or int(like.width[0]), content.height or int(like.height[0])
    try:
        require_size(width, height)
    except ValueError as error:
        raise CameraFileError(f"{path} cannot be drawn ({error}): give another width and height.") from None
    if fault := focal_fault(K[0, 0], K[1, 1], (width, height)):
        raise CameraFileError(f"{path} has {fault}: write them in pixels of its width and height.")
    if not (0 <= K[0, 2] <= width and 0 <= K[1, 2] <= height):
        raise CameraFileError(
            f"{path} has a camera whose principal point ({K[0, 2]:g}, {K[1, 2]:g}) is outside of its picture of "
            f"{width}x{height}: give intrinsics, width and height of one picture."
        )
    return Cameras(
        camera_to_worlds=pose[None],
        fx=float(K[0, 0]),
        fy=float(K[1, 1]),
        cx=float(K[0, 2]),
        cy=float(K[1, 2]),
        width=width,
        height=height,
        times=None if content.time is None else torch.tensor([[content.time]]),
    )


def intrinsics_of(camera: Cameras) -> Float[np.ndarray, "3 3"]:
    """The pinhole camera of one or several alike, in pixels, as rays are sent through it.

    Args:
        camera: At least one camera.
    """
    fx, fy, cx, cy = (float(each.reshape(-1)[0]) for each in (camera.fx, camera.fy, camera.cx, camera.cy))
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def at_size(camera: Cameras, size: tuple[int, int]) -> Cameras:
    """A camera that sees the same in a picture that just fits into a height and a width.

    Args:
        camera: One camera.
        size: Height and width in pixels.
    """
    height, width = int(camera.height[0]), int(camera.width[0])
    scale = min(size[0] / height, size[1] / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    sized = camera[:]
    sized.fx, sized.cx = camera.fx * (columns / width), camera.cx * (columns / width)
    sized.fy, sized.cy = camera.fy * (rows / height), camera.cy * (rows / height)
    sized.height, sized.width = torch.full_like(camera.height, rows), torch.full_like(camera.width, columns)
    return sized
