"""Whether poses belong to the pictures: the demo's do, and what they are taken for by mistake is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from divff_nerfstudio.cli import main
from divff_nerfstudio.data.pose_fit import pose_fit, require_fitting
from divff_nerfstudio.data.scene import SceneError, SceneFolder, load_scene
from divff_nerfstudio.demo_scene import DemoSceneConfig

FLIP = np.diag((1.0, -1.0, -1.0, 1.0))
"""From OpenCV's axes to OpenGL's."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> SceneFolder:
    root = tmp_path_factory.mktemp("posed") / "scene"
    DemoSceneConfig(root, num_frames=16, width=128, height=72, workers=1).main()
    return load_scene(root)


def square(poses: np.ndarray) -> np.ndarray:
    return np.concatenate((poses.astype(np.float64), np.broadcast_to([[[0.0, 0, 0, 1]]], (len(poses), 1, 4))), axis=1)


def with_quaternions_turned(poses: np.ndarray, places: int) -> np.ndarray:
    """What a reader makes of world-to-camera quaternions (x, y, z, w, moved so) that it takes for x, y, z, w."""
    worlds = np.linalg.inv(poses @ FLIP)
    quaternions = Rotation.from_matrix(worlds[:, :3, :3]).as_quat()
    worlds[:, :3, :3] = Rotation.from_quat(np.roll(quaternions, places, axis=1)).as_matrix()
    return np.linalg.inv(worlds) @ FLIP


def in_llff_axes(poses: np.ndarray) -> np.ndarray:
    return np.stack((-poses[:, :, 1], poses[:, :, 0], poses[:, :, 2], poses[:, :, 3]), axis=2)


MISTAKES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "world-to-camera matrices": np.linalg.inv,
    "world-to-camera matrices in OpenCV's axes (right, down, forward)": lambda poses: np.linalg.inv(poses @ FLIP),
    "matrices in OpenCV's axes (right, down, forward)": lambda poses: poses @ FLIP,
    "matrices in LLFF's axes (down, right, back)": in_llff_axes,
    "poses of pictures that are upside down": lambda poses: poses @ np.diag((-1.0, -1.0, 1.0, 1.0)),
    "matrices with transposed rotations": lambda poses: np.concatenate(
        (np.pad(poses[:, :3, :3].transpose(0, 2, 1), ((0, 0), (0, 1), (0, 0))), poses[:, :, 3:]),
        axis=2,
    ),
    "quaternions x, y, z, w that were read as w, x, y, z": lambda poses: with_quaternions_turned(poses, -1),
    "quaternions w, x, y, z that were read as x, y, z, w": lambda poses: with_quaternions_turned(poses, 1),
    "poses of frames 1 later": lambda poses: np.roll(poses, -1, axis=0),
    "poses of frames 1 earlier": lambda poses: np.roll(poses, 1, axis=0),
    "poses in the opposite order": lambda poses: poses[::-1],
}


def mistaken(scene: SceneFolder, mistake: str) -> SceneFolder:
    poses = MISTAKES[mistake](square(scene.camera_to_worlds))[:, :3].astype(np.float32)
    return replace(scene, camera_to_worlds=poses)


def test_true_poses_fit(scene):
    fit = pose_fit(scene)
    assert fit.fits and fit.meaning is None and fit.points > 100 and fit.share > 0.8
    assert require_fitting(scene, Path("meta.json"), "--no-check-poses") is None


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_poses_are_by_mistake_is_named(scene, mistake):
    wrong = mistaken(scene, mistake)
    fit = pose_fit(wrong)
    assert fit.share < 0.6 and fit.meaning == mistake
    with pytest.raises(SceneError, match=r"meta\.json does not fit .* OpenGL's axes .*--no-check-poses"):
        require_fitting(wrong, Path("meta.json"), "--no-check-poses")


def test_another_focal_length_is_told_but_not_refused(scene):
    intrinsics = scene.intrinsics.copy()
    intrinsics[[0, 1], [0, 1]] *= 2
    wrong = replace(scene, intrinsics=intrinsics)
    assert not pose_fit(wrong).fits
    told = require_fitting(wrong, Path("meta.json"), "--no-check-poses")
    assert told is not None and "focal length" in told


def test_a_near_that_is_far_too_small_changes_nothing(scene):
    near = replace(scene, nears=scene.nears / 50)
    assert pose_fit(near).share > 0.8
    wrong = replace(mistaken(scene, "world-to-camera matrices"), nears=near.nears)
    assert pose_fit(wrong).meaning == "world-to-camera matrices"


def test_what_is_fixed_to_the_camera_speaks_against_no_pose(scene):
    dashboard = np.random.default_rng(0).integers(0, 255, (scene.height // 2, scene.width, 3), np.uint8)
    frames = np.array(scene.frames)
    frames[:, scene.height // 2 :] = dashboard
    fixed = replace(scene)
    fixed.__dict__["frames"] = frames
    fit = pose_fit(fixed)
    assert fit.fits and fit.share > 0.5


def test_scenes_without_shared_points_say_nothing(tiny_scene):
    fit = pose_fit(load_scene(tiny_scene))
    assert fit.fits and fit.points < 100 and fit.share == 1


def test_a_stranger_s_matrices_are_refused_by_convert_unless_told_otherwise(scene, tmp_path, capsys):
    poses = np.linalg.inv(square(scene.camera_to_worlds))
    transforms = {
        "w": scene.width,
        "h": scene.height,
        **{name: float(scene.intrinsics[at]) for name, at in {"fl_x": (0, 0), "fl_y": (1, 1)}.items()},
        **{name: float(scene.intrinsics[at]) for name, at in {"cx": (0, 2), "cy": (1, 2)}.items()},
        "frames": [
            {"file_path": str(path.resolve()), "transform_matrix": pose.tolist()}
            for path, pose in zip(scene.image_paths, poses, strict=True)
        ],
    }
    data = tmp_path / "transforms.json"
    data.write_text(json.dumps(transforms))
    typed = ["convert", "nerfstudio", str(data), str(tmp_path / "out"), "--near", "0.3", "--far", "6"]
    assert main(typed) == 1 and not (tmp_path / "out").exists()
    assert "world-to-camera matrices" in capsys.readouterr().err
    assert main([*typed, "--no-check-poses"]) == 0
    assert load_scene(tmp_path / "out").width == scene.width
