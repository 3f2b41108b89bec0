"""Where a picture is taken from: fixed viewpoints of a scene, and cameras and camera paths in files."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.camera_paths import get_path_from_json
from nerfstudio.cameras.cameras import Cameras

from divff_nerfstudio.data.scene import Scene
from divff_nerfstudio.files import DivffError


class CameraFileError(DivffError):
    """A file of cameras cannot be read."""


def fixed_viewpoint(scene: Scene, frame_id: int | None = None) -> int:
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
    return json.loads(path.read_text(encoding="utf-8"))


def central_frame(scene: Scene) -> int:
    """Index of the frame whose viewpoint is nearest to all others: the medoid of positions and viewing directions."""
    positions, directions = scene.camera_to_worlds[:, :, 3], -scene.camera_to_worlds[:, :, 2]
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    apart = apart / max(apart.mean(), 1e-9)
    turned = np.arccos(np.clip(directions @ directions.T, -1, 1))
    turned = turned / max(turned.mean(), 1e-9)
    return int((apart + turned).sum(axis=1).argmin())


def chosen_frames(count: int, wanted: int | None) -> list[int]:
    """Evenly spaced indices, first and last among them; None: all."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return sorted({round(float(i)) for i in np.linspace(0, count - 1, max(wanted, 1))})


def read_camera_path(path: Path, scene: Scene) -> Cameras:
    """Reads cameras from a file.

    Args:
        path: A camera path as nerfstudio's viewer saves it, or one camera: an object of "camera_to_world" (3x4 or 4x4,
            columns right, up, back, position) and, if they are not the scene's, "intrinsics" (3x3), "width", "height";
            "time" (0 to 1) if it has one.
        scene: Gives what a single camera leaves out.

    Returns:
        The cameras, with times if all of them have one.

    Raises:
        CameraFileError: If it is neither.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cameras = get_path_from_json(content) if "camera_path" in content else _one_camera(content, scene)
    except OSError as error:
        raise CameraFileError(f"{path} cannot be read ({error.strerror}): give the file of a camera path.") from None
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CameraFileError(
            f"{path} is no camera path of nerfstudio's viewer and no camera ({type(error).__name__}: {error}): save it "
            'from the viewer\'s tab "Render", or write {"camera_to_world": [[...], [...], [...]]}.'
        ) from None
    if not torch.isfinite(cameras.camera_to_worlds).all() or not len(cameras):
        raise CameraFileError(f"{path} has no camera, or one that is not finite: save it anew.")
    if cameras.times is not None:
        cameras.times = cameras.times.reshape(-1, 1).float()
    return cameras


def _one_camera(content: dict[str, Any], scene: Scene) -> Cameras:
    pose = torch.tensor(content["camera_to_world"], dtype=torch.float32)
    pose = pose.reshape(-1, 4)[:3]
    if pose.shape != (3, 4):
        raise ValueError(f"camera_to_world has {pose.shape[0]} rows of 4")
    K = np.array(content.get("intrinsics", scene.intrinsics), np.float64).reshape(3, 3)
    time = content.get("time")
    return Cameras(
        camera_to_worlds=pose[None],
        fx=float(K[0, 0]),
        fy=float(K[1, 1]),
        cx=float(K[0, 2]),
        cy=float(K[1, 2]),
        width=int(content.get("width", scene.width)),
        height=int(content.get("height", scene.height)),
        times=None if time is None else torch.tensor([[float(time)]]),
    )
