"""COLMAP models, as binary or text files: which one of several is taken, and what its images are called."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float

from divff_nerfstudio.convert import colmap_binary, colmap_text
from divff_nerfstudio.convert.cameras import told_camera
from divff_nerfstudio.convert.colmap_model import (
    ColmapCamera,
    Images,
    ModelFault,
    check_images,
    check_points,
    unit_quaternions,
)
from divff_nerfstudio.convert.names import (
    ConvertError,
    Order,
    are_frame_numbers,
    number_names,
    shortened,
    told_of_folders,
)
from divff_nerfstudio.convert.pictures import SUFFIXES, FrameSource, VideoFrames, require_from_one
from divff_nerfstudio.convert.posed import PosedFrames, opengl_poses, posed_frames
from divff_nerfstudio.errors import stand_in

_NEEDED = ("cameras", "images")
_POINTS = "points3D"
_READERS = {"bin": colmap_binary, "txt": colmap_text}
_PLACES = ("", "sparse", "colmap", "colmap/sparse")


def _suffix(folder: Path) -> str | None:
    """Of the model's files in a folder, those with points before those without; None where it is no model."""

    def has(suffix: str, *names: str) -> bool:
        return all((folder / f"{name}.{suffix}").is_file() for name in names)

    found = [suffix for suffix in _READERS if has(suffix, *_NEEDED)]
    return next((suffix for suffix in found if has(suffix, _POINTS)), next(iter(found), None))


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tells what is wrong with a file of a model."""
    try:
        yield
    except ModelFault as fault:
        said = f"{path} is damaged or no file of a COLMAP model ({fault}): copy it anew."
        raise ConvertError(stand_in(path) or said) from None


def find_model(folder: Path) -> tuple[Path, str | None]:
    """The COLMAP model in a folder: itself, or the one with most images among those in it and in its ``sparse``.

    Returns:
        The model's folder, and a sentence for the user where there was a choice.

    Raises:
        ConvertError: If there is none, or its images cannot be read.
    """
    if _suffix(folder) is not None:
        return folder, None
    if not folder.exists():
        raise ConvertError(f"{folder} is missing: give the folder of a COLMAP model.")
    found, packed = [], []
    for place in dict.fromkeys(folder / place for place in _PLACES):
        inner = sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []
        found += [path for path in (place, *inner) if _suffix(path) is not None and path not in found]
        packed += [path for each in (place, *inner) for path in sorted(each.glob("images.*.gz"))]
    if not found and packed:
        raise ConvertError(
            f"{packed[0]} and the files beside it are packed: unpack them (gunzip {packed[0].parent}/*.gz)."
        )
    if not found:
        raise ConvertError(
            f"{folder} holds no COLMAP model: give the folder of cameras.bin, images.bin and points3D.bin (or .txt)."
        )
    if len(found) == 1:
        return found[0], None
    counts = {path: _count(path) for path in found}
    best = max(found, key=lambda path: counts[path])
    others = ", ".join(f"{path.relative_to(folder)} {counts[path]}" for path in found if path != best)
    return best, f"{best} is taken, the COLMAP model with most images: {counts[best]} ({others})."


def _count(model: Path) -> int:
    suffix = _suffix(model) or ""
    path = model / f"images.{suffix}"
    with _told(path):
        return len(_READERS[suffix].read_images(path).keys)


@dataclass(frozen=True)
class Model:
    """A COLMAP model in which everything fits together."""

    path: Path
    cameras: dict[int, ColmapCamera]
    images: Images
    points: Float[np.ndarray, "p 3"]


def read_model(folder: Path) -> Model:
    """Reads the model in a folder, all of it, and looks whether it fits together.

    Raises:
        ConvertError: If a file is cut short, has something behind its end, or names what does not exist.
    """
    suffix = _suffix(folder)
    if suffix is None:
        raise ConvertError(f"{folder} is no COLMAP model: give the folder of cameras, images and points3D.")
    reader = _READERS[suffix]
    cameras: dict[int, ColmapCamera] = {}
    with _told(path := folder / f"cameras.{suffix}"):
        for camera in reader.read_cameras(path):
            if camera.key in cameras:
                raise ModelFault(f"two of its cameras have the id {camera.key}")
            cameras[camera.key] = camera
    with _told(path := folder / f"images.{suffix}"):
        images = reader.read_images(path)
        check_images(images, cameras)
    path = folder / f"{_POINTS}.{suffix}"
    counts, positions = {"cameras": len(cameras), "images": len(images.keys)}, np.empty((0, 3))
    if path.is_file():  # otherwise near and far are asked for
        with _told(path):
            points = reader.read_points(path)
            check_points(points, images)
        counts[_POINTS], positions = len(points.keys), points.positions
    if suffix == "txt":
        for name, count in counts.items():
            if note := colmap_text.told_of_lack(folder / f"{name}.txt", count):
                images.notes.append(note)
    return Model(folder, cameras, images, positions)


def posed_by(model: Model, source: FrameSource, order: Order) -> PosedFrames:
    """The model's images as frames of `source`.

    Args:
        model: The model.
        source: The frames that its images name.
        order: How names become numbers.

    Raises:
        ConvertError: If its images are not among the frames.
        CameraError: If a camera makes no sense.
    """
    images, place = model.images, model.path / f"cameras.{_suffix(model.path)}"
    cameras = {
        key: told_camera(place, camera.model, (camera.width, camera.height), camera.params)
        for key, camera in model.cameras.items()
        if key in set(images.cameras)
    }
    if isinstance(source, VideoFrames):
        if order != "number" or not are_frame_numbers(images.names):
            raise ConvertError(
                f"{model.path} has images whose names do not end in the numbers of {source.path}'s frames: give the "
                "folder of the images as --images."
            )
        numbers = list(number_names(images.names, order, model.path).values())
        require_from_one(numbers, model.path, source)
    else:
        numbers = _numbers_in(source, model)
    poses = np.array(images.poses, np.float64).reshape(-1, 7)
    return posed_frames(
        numbers,
        opengl_poses(world_to_cameras(poses)),
        [cameras[key] for key in images.cameras],
        model.points,
        model.path,
        notes=[*(f"{model.path}: {note}" for note in images.notes), *told_of_folders(images.names)],
    )


def _numbers_in(source: FrameSource, model: Model) -> list[int]:
    """Numbers of the model's images, whose names may begin with folders in which all of them lay."""
    names = model.images.names
    for shorter in shortened(names):
        numbers = [number for name in shorter if (number := source.number_of(name)) is not None]
        if len(numbers) == len(names):
            return numbers
    lost = next(name for name in names if source.number_of(name) is None)
    alike = (str(PurePosixPath(lost).with_suffix(suffix)) for suffix in sorted(SUFFIXES))
    other = next((f", but {name}" for name in alike if source.number_of(name) is not None), "")
    raise ConvertError(
        f"{source.path} has no image {lost}, which {model.path} names{other}: give those that were reconstructed, with "
        "--images, called as they were."
    )


def world_to_cameras(poses: Float[np.ndarray, "n 7"]) -> Float[np.ndarray, "n 3 4"]:
    """Matrices of quaternions, their real part first, and positions.

    Raises:
        ModelFault: If a quaternion is no rotation.
    """
    from scipy.spatial.transform import Rotation

    if not len(poses):
        return np.empty((0, 3, 4))
    rotations = Rotation.from_quat(unit_quaternions(poses[:, :4])[:, [1, 2, 3, 0]]).as_matrix()
    return np.concatenate((rotations, poses[:, 4:, None]), axis=2)


def read_colmap(folder: Path, source: FrameSource, order: Order) -> PosedFrames:
    """`read_model` and `posed_by` in one."""
    return posed_by(read_model(folder), source, order)
