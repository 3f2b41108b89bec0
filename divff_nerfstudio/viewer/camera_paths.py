"""Camera paths as nerfstudio's Render tab writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType

from divff_nerfstudio.files import atomic_path

_TYPES = {
    CameraType.PERSPECTIVE: "perspective",
    CameraType.FISHEYE: "fisheye",
    CameraType.EQUIRECTANGULAR: "equirectangular",
}


def write_still_path(path: Path, camera: Cameras, times: Sequence[float] | np.ndarray, fps: float = 10.0) -> None:
    """Writes the camera path that stands still and shows every time once.

    Args:
        path: The JSON file; `ns-render camera-path`, `divff video --camera-path` and the Render tab read it.
        camera: One camera.
        times: Times, 0 to 1, a picture each.
        fps: Pictures per second.
    """
    pose = torch.eye(4)
    pose[:3] = camera.camera_to_worlds.reshape(-1, 3, 4)[0].cpu()
    height, width, focal = (float(getattr(camera, name).flatten()[0]) for name in ("height", "width", "fy"))
    matrix, fov = pose.flatten().tolist(), float(np.rad2deg(2 * np.arctan(height / 2 / focal)))
    view = {"fov": fov, "aspect": width / height}
    seconds = len(times) / fps
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
        "fps": fps,
        "seconds": seconds,
        "is_cycle": False,
        "smoothness_value": 0.0,
        "camera_path": [{"camera_to_world": matrix, **view, "render_time": float(time)} for time in times],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
