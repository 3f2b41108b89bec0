"""What a scene folder may hold beside its index and frames; what is unreadable must not pass for what is not there."""

from __future__ import annotations

import os
from pathlib import Path

from divff_nerfstudio.data.frames import SceneError

FOLDERS = (
    "annotations",
    "object_annotations",
    "affordance_annotations",
    "ground_truth",
    "ground_truth/frames",
    "ground_truth/background",
    "ground_truth/annotations_ever",
    "high_res_video",
    "features",
)
"""Optional folders of a scene."""
FILES = (
    "object_annotations/te.json",
    "affordance_annotations/aff_annotations.pkl",
    "ground_truth/instances.json",
    "ground_truth/object_poses.npz",
    "ground_truth/video_poses.npz",
    "ground_truth/points3d.npy",
    "hand_obj_detections.json",
)
"""Optional files of a scene."""


def require_parts(root: Path) -> None:
    """Looks at the optional parts of a scene folder: something else in one's place would pass for its absence.

    Args:
        root: The scene.

    Raises:
        SceneError: If there is something of a part's name that is no folder or no file, such as a link that leads
            nowhere.
    """
    for names, kind in ((FOLDERS, "folder"), (FILES, "file")):
        for name in names:
            path = root / name
            if os.path.lexists(path) and not (path.is_dir() if kind == "folder" else path.is_file()):
                told = "is a link that leads nowhere" if not path.exists() else f"is no {kind}"
                raise SceneError(f"{path} {told}: put the {kind} there that belongs to the scene, or take it away.")
