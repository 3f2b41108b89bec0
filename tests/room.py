"""A room of painted walls, seen by any camera: rays in, colours out; and its views as the data sets of others."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

SIZE = np.array([2.0, 1.5, 2.5])
"""Half the room's extents."""
WIDTH, HEIGHT = 160, 90
FOCAL = 90.0
DISTORTION = (-0.22, 0.05, 0.003, -0.004)
"""k1, k2, p1, p2."""
COUNT, FIRST, STEP = 12, 101, 5


def colours(origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """8-bit RGB of what rays from inside the room hit; any shape before the last axis."""
    with np.errstate(divide="ignore"):
        distances = ((np.sign(directions) * SIZE - origins) / directions).min(-1, keepdims=True)
    x, y, z = np.moveaxis(origins + distances * directions, -1, 0)
    waves = np.stack((np.sin(5 * x) + np.cos(4 * y), np.sin(4 * y + 3 * z), np.cos(3 * x - 5 * z) * np.sin(3 * y)), -1)
    return np.round(127.5 + 60 * waves).astype(np.uint8)


def poses(count: int) -> np.ndarray:
    """OpenGL camera-to-world matrices of somebody who turns and walks about, (count, 3, 4)."""
    share = np.linspace(0, 1, count)
    angles = np.stack((0.3 * np.sin(5 * share), 2.2 * share, 0.1 * np.cos(7 * share)), 1)
    positions = np.stack((0.5 * np.sin(4 * share), 0.2 * np.cos(6 * share), 0.6 * share - 0.3), 1)
    return np.concatenate((Rotation.from_euler("XYZ", angles).as_matrix(), positions[:, :, None]), 2)


def points() -> np.ndarray:
    """Points on the walls."""
    random = np.random.default_rng(0)
    found = random.uniform(-1, 1, (600, 3))
    wall = random.integers(0, 3, 600)
    found[np.arange(600), wall] = np.sign(found[np.arange(600), wall])
    return found * SIZE


@cache
def lens() -> np.ndarray:
    """Directions (right, down, forward) of each pixel centre of the distorting camera, by Newton's method."""
    columns, rows = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    target = np.stack(((columns - WIDTH / 2) / FOCAL, (rows - HEIGHT / 2) / FOCAL), -1)
    guess = target.copy()
    for _ in range(40):
        guess = guess + 0.8 * (target - distorted(guess))
    assert np.abs(distorted(guess) - target).max() < 1e-6
    return np.concatenate((guess, np.ones((HEIGHT, WIDTH, 1))), -1)


def distorted(seen: np.ndarray) -> np.ndarray:
    """What the lens does to x / z and y / z (OpenCV's model)."""
    k1, k2, p1, p2 = DISTORTION
    x, y = seen[..., 0], seen[..., 1]
    r2 = x * x + y * y
    factor = 1 + k1 * r2 + k2 * r2 * r2
    return np.stack(
        (x * factor + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * factor + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y), -1
    )


def view(pose: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """The picture of a camera with these directions (right, down, forward)."""
    return colours(pose[:, 3], (directions * (1, -1, -1)) @ pose[:, :3].T)


def numbers(count: int = COUNT) -> list[int]:
    return [FIRST + STEP * i for i in range(count)]


@cache
def every_pose() -> dict[int, np.ndarray]:
    """Poses of all frames of the video, every fifth of which is reconstructed."""
    total = STEP * (COUNT - 1) + 1
    return {FIRST + i: pose for i, pose in enumerate(poses(total))}


@cache
def _pictures() -> dict[int, np.ndarray]:
    return {number: view(pose, lens()) for number, pose in every_pose().items()}


def write_frames(folder: Path, suffix: str = ".png", only: list[int] | None = None) -> Path:
    """The distorted frames of the video."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in _pictures().items():
        if only is None or number in only:
            Image.fromarray(picture).save(folder / f"frame_{number:010d}{suffix}", quality=95)
    return folder


def world_to_camera() -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """COLMAP's quaternion (real part first) and position of each reconstructed frame."""
    found = {}
    for number in numbers():
        pose = every_pose()[number]
        rotation = (pose[:, :3] * (1, -1, -1)).T
        quaternion = Rotation.from_matrix(rotation).as_quat()
        found[number] = (quaternion[[3, 0, 1, 2]], -rotation @ pose[:, 3])
    return found


def camera_line() -> str:
    values = (FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, *DISTORTION)
    return f"1 OPENCV {WIDTH} {HEIGHT} " + " ".join(map(str, values))


def write_colmap(folder: Path, camera: str | None = None, name: str = "frame_{:010d}.png") -> Path:
    """A COLMAP model as text."""
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text((camera or camera_line()) + "\n")
    lines = []
    for i, (number, (quaternion, position)) in enumerate(world_to_camera().items(), 1):
        lines += [" ".join(map(str, (i, *quaternion, *position, 1, name.format(number)))), ""]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    text = [f"{i} {x} {y} {z} 128 128 128 0.5 " for i, (x, y, z) in enumerate(points(), 1)]
    (folder / "points3D.txt").write_text("\n".join(text) + "\n")
    return folder


def write_transforms(folder: Path, **camera) -> Path:
    """A nerfstudio data set with a PLY file of points."""
    write_frames(folder / "images")
    meta = {
        "fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2, "w": WIDTH, "h": HEIGHT,
        "camera_model": "OPENCV", **dict(zip(("k1", "k2", "p1", "p2"), DISTORTION, strict=True)),
        "ply_file_path": "points.ply",
        "frames": [
            {
                "file_path": f"images/frame_{number:010d}.png",
                "transform_matrix": [*every_pose()[number].tolist(), [0.0, 0.0, 0.0, 1.0]],
            }
            for number in reversed(numbers())
        ],
    } | camera  # fmt: skip
    (folder / "transforms.json").write_text(json.dumps(meta))
    header = (
        "ply\nformat ascii 1.0\nelement vertex 600\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    (folder / "points.ply").write_text(header + "\n".join(" ".join(map(str, point)) for point in points()) + "\n")
    return folder


def write_epic_fields(path: Path) -> Path:
    """An EPIC Fields reconstruction."""
    values = [FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, *DISTORTION]
    content = {
        "camera": {"id": 1, "model": "OPENCV", "width": WIDTH, "height": HEIGHT, "params": values},
        "images": {
            f"frame_{number:010d}.jpg": [*quaternion, *position]
            for number, (quaternion, position) in world_to_camera().items()
        },
        "points": [[*point, 1, 2, 3] for point in points()],
    }
    path.write_text(json.dumps(content))
    return path
