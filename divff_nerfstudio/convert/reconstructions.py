"""Reading reconstructions of others: COLMAP models, nerfstudio's ``transforms.json``, EPIC Fields."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from divff_nerfstudio.convert.cameras import SourceCamera
from divff_nerfstudio.convert.layout import PosedFrames, opengl_poses, rigid_poses
from divff_nerfstudio.convert.pictures import (
    ConvertError,
    FolderFrames,
    FrameSource,
    Order,
    number_names,
    trailing_number,
)
from divff_nerfstudio.data.frames import frame_size


def _posed(
    numbers: list[int], poses: list[Any], cameras: list[SourceCamera], points: np.ndarray, path: Path
) -> PosedFrames:
    """In ascending order of the frames' numbers, with exact rotations."""
    if not numbers:
        raise ConvertError(f"{path} has no posed frame: give a reconstruction that has some.")
    if len(set(numbers)) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise ConvertError(f"{path} has two frames of number {twice}: give --order name if names tell the order.")
    order = np.argsort(numbers)
    exact = rigid_poses(np.array(poses, np.float64)[order], path)
    return PosedFrames(
        np.array(numbers, np.int64)[order], exact, tuple(cameras[i] for i in order), points.reshape(-1, 3), path
    )


def find_model(folder: Path) -> Path:
    """The COLMAP model in a folder: itself, ``sparse/0``, ``sparse``, or ``colmap/sparse/0``.

    Raises:
        ConvertError: If there is none.
    """
    for inner in ("", "sparse/0", "sparse", "colmap/sparse/0", "0"):
        for suffix in ("bin", "txt"):
            if all((folder / inner / f"{name}.{suffix}").is_file() for name in ("cameras", "images", "points3D")):
                return folder / inner
    raise ConvertError(
        f"{folder} holds no COLMAP model: give the folder of cameras.bin, images.bin and points3D.bin (or .txt)."
    )


def read_colmap(model: Path, source: FrameSource, order: Order) -> PosedFrames:
    """A COLMAP model, as binary or text files.

    Args:
        model: Folder of its files.
        source: The frames that its images name.
        order: How names become numbers.

    Raises:
        ConvertError: If it cannot be read, pycolmap is missing, or its images are not among the frames.
        CameraError: If a camera model is not known.
    """
    try:
        import pycolmap
    except ImportError:
        raise ConvertError(
            f"{model} is read by pycolmap, which is not installed: pip install 'divff-nerfstudio[convert]'."
        ) from None
    try:
        reconstruction = pycolmap.Reconstruction(str(model))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConvertError(f"{model} is damaged or no COLMAP model ({reason}): copy it anew.") from None
    cameras = {
        key: SourceCamera(
            camera.model.name, camera.width, camera.height, tuple(float(value) for value in camera.params)
        )
        for key, camera in reconstruction.cameras.items()
    }
    images = [image for image in reconstruction.images.values() if image.has_pose]
    names = [image.name for image in images]
    if isinstance(source, FolderFrames):
        found = {name: source.number_of(name) for name in names}
        lost = next((name for name, number in found.items() if number is None), None)
        if lost is not None:
            raise ConvertError(f"{source.path} has no image {lost}, which {model} names: give --images.")
        numbers = [number for number in found.values() if number is not None]
    else:
        numbers = list(number_names(names, order, model).values())
    poses = [image.cam_from_world().matrix() for image in images]
    points = np.array([point.xyz for point in reconstruction.points3D.values()], np.float64)
    flipped = opengl_poses(np.array(poses, np.float64).reshape(-1, 3, 4))
    return _posed(numbers, list(flipped), [cameras[image.camera_id] for image in images], points, model)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConvertError(f"{path} is missing: give the path of the file.") from None
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path} is not readable JSON ({error}): copy it anew.") from None
    if not isinstance(content, dict):
        raise ConvertError(f"{path} holds no dictionary: copy it anew.")
    return content


_NERFSTUDIO_MODELS = {
    "": "OPENCV", "PERSPECTIVE": "OPENCV", "SIMPLE_PINHOLE": "OPENCV", "PINHOLE": "OPENCV", "SIMPLE_RADIAL": "OPENCV",
    "RADIAL": "OPENCV", "OPENCV": "OPENCV", "OPENCV_FISHEYE": "OPENCV_FISHEYE", "FISHEYE": "OPENCV_FISHEYE",
}  # fmt: skip
"""nerfstudio's camera models, all with the distortion keys k1 to k4, p1, p2, by COLMAP's names."""


def _nerfstudio_camera(meta: dict[str, Any], frame: dict[str, Any], image: Path, path: Path) -> SourceCamera:
    """The camera of a frame: its own keys before those of the whole file."""
    values = {**meta, **frame}
    name = str(values.get("camera_model", "")).upper()
    if name not in _NERFSTUDIO_MODELS:
        raise ConvertError(
            f"{path} has the camera model {name}, which is not known, and its distortion cannot be dropped: use one "
            f"of {', '.join(key for key in _NERFSTUDIO_MODELS if key)}."
        )
    try:
        if "w" in values and "h" in values:
            width, height = round(float(values["w"])), round(float(values["h"]))
        else:
            width, height = frame_size(image)
        if "fl_x" in values:
            fx = float(values["fl_x"])
        elif "camera_angle_x" in values:
            fx = width / 2 / math.tan(float(values["camera_angle_x"]) / 2)
        else:
            raise ConvertError(f"{path} has neither fl_x nor camera_angle_x: add the focal length.")
        fy = float(values.get("fl_y", fx))
        cx, cy = float(values.get("cx", width / 2)), float(values.get("cy", height / 2))
        k1, k2, k3, k4, p1, p2 = (float(values.get(key, 0.0)) for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
    except (TypeError, ValueError) as error:
        raise ConvertError(f"{path} has a camera with something else than numbers ({error}): mend it.") from None
    if _NERFSTUDIO_MODELS[name] == "OPENCV_FISHEYE":
        if p1 or p2:
            raise ConvertError(
                f"{path} has a fisheye camera with tangential distortion (p1, p2), which the model OPENCV_FISHEYE does "
                "not have: calibrate it without."
            )
        return SourceCamera("OPENCV_FISHEYE", width, height, (fx, fy, cx, cy, k1, k2, k3, k4))
    if k4:
        raise ConvertError(
            f"{path} has a perspective camera with k4, which has different meanings in nerfstudio and OpenCV: "
            "calibrate it with k1, k2, k3, p1, p2."
        )
    if k3:
        return SourceCamera("FULL_OPENCV", width, height, (fx, fy, cx, cy, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0))
    return SourceCamera("OPENCV", width, height, (fx, fy, cx, cy, k1, k2, p1, p2))


def read_nerfstudio(
    path: Path, order: Literal["number", "name", "listed"], points: Path | None = None
) -> tuple[PosedFrames, FolderFrames]:
    """A nerfstudio ``transforms.json`` and the pictures that it names.

    Args:
        path: The file, or the folder that holds it.
        order: How frames are numbered in the order of the video; `listed`: as in the file.
        points: A PLY file of points of the room; None: the one that the file names.

    Returns:
        The posed frames, and the pictures of their folders.

    Raises:
        ConvertError: If something in it is wrong or missing.
    """
    path = path / "transforms.json" if path.is_dir() else path
    meta = _json(path)
    frames = meta.get("frames")
    if not isinstance(frames, list) or not frames:
        raise ConvertError(f"{path} has no frames: give the transforms.json of a reconstruction.")
    files, poses = [], []
    for frame in frames:
        try:
            file = path.parent / str(frame["file_path"])
            pose = np.array(frame["transform_matrix"], np.float64)[:3, :4].reshape(3, 4)
        except (TypeError, KeyError, ValueError, IndexError):
            raise ConvertError(
                f"{path} has a frame without file_path or without a 4x4 transform_matrix: mend it."
            ) from None
        files.append(file if file.suffix else file.with_suffix(".png"))
        poses.append(pose)
    cameras = [_nerfstudio_camera(meta, frame, file, path) for frame, file in zip(frames, files, strict=True)]
    if order == "listed":
        source = FolderFrames(path.parent, dict(enumerate(files, 1)))
        numbers = list(range(1, len(files) + 1))
    else:
        source, numbers = _numbered_files(path, files, order)
    named = meta.get("ply_file_path")
    if points is None and named:
        points = path.parent / str(named)
    return _posed(numbers, poses, cameras, _read_points(points), path), source


def _numbered_files(path: Path, files: list[Path], order: Order) -> tuple[FolderFrames, list[int]]:
    """All pictures of the folders in which the named ones lie, and the numbers of the named ones."""
    pictures = {
        picture
        for folder in {file.parent for file in files}
        if folder.is_dir()
        for picture in folder.iterdir()
        if picture.suffix.lower() in {file.suffix.lower() for file in files} and not picture.name.startswith(".")
    }
    lost = next((file for file in files if file not in pictures), None)
    if lost is not None:
        raise ConvertError(f"{lost} is missing, which {path} names: put it there.")
    named = number_names([str(picture) for picture in pictures], order, path)
    source = FolderFrames(path.parent, {number: Path(name) for name, number in named.items()})
    return source, [named[str(file)] for file in files]


def _read_points(path: Path | None) -> np.ndarray:
    """Vertices of a PLY file; none where there is no file."""
    if path is None:
        return np.empty((0, 3))
    import plyfile

    try:
        vertices = plyfile.PlyData.read(str(path))["vertex"]
        return np.stack([np.asarray(vertices[axis], np.float64) for axis in "xyz"], axis=1)
    except FileNotFoundError:
        raise ConvertError(f"{path} is missing: put the points there, or give --points.") from None
    except (plyfile.PlyParseError, KeyError, ValueError, OSError) as error:
        raise ConvertError(f"{path} is no PLY file with points ({error}): give another as --points.") from None


def read_epic_fields(path: Path) -> PosedFrames:
    """An EPIC Fields JSON: a COLMAP camera, world-to-camera quaternions and positions by frame name, points.

    Raises:
        ConvertError: If something in it is wrong.
        CameraError: If its camera model is not known.
    """
    from scipy.spatial.transform import Rotation

    content = _json(path)
    try:
        camera = SourceCamera(
            str(content["camera"]["model"]),
            int(content["camera"]["width"]),
            int(content["camera"]["height"]),
            tuple(float(value) for value in content["camera"]["params"]),
        )
        names = list(content["images"])
        values = np.array([content["images"][name] for name in names], np.float64).reshape(len(names), 7)
        points = np.array([point[:3] for point in content.get("points", [])], np.float64).reshape(-1, 3)
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise ConvertError(
            f"{path} is no EPIC Fields file ({type(error).__name__}: {error}): it has camera, images (name: qw qx qy "
            "qz tx ty tz) and points."
        ) from None
    numbers = [trailing_number(name) for name in names]
    if None in numbers:
        raise ConvertError(f"{path} has the frame {names[numbers.index(None)]}, which ends in no number: rename it.")
    if not np.isfinite(values).all() or (np.linalg.norm(values[:, :4], axis=1) < 1e-6).any():
        raise ConvertError(f"{path} has a pose that is no rotation: copy it anew.")
    rotations = Rotation.from_quat(values[:, [1, 2, 3, 0]]).as_matrix()
    poses = opengl_poses(np.concatenate((rotations, values[:, 4:, None]), axis=2))
    return _posed([n for n in numbers if n is not None], list(poses), [camera] * len(names), points, path)
