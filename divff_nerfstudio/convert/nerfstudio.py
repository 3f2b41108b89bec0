"""nerfstudio's data sets: ``transforms.json`` and the pictures that it names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from divff_nerfstudio.convert.layout import PosedFrames, posed_frames
from divff_nerfstudio.convert.names import ConvertError, Order, frames_among, number_names, printable
from divff_nerfstudio.convert.pictures import SUFFIXES, FolderFrames, picture_size
from divff_nerfstudio.convert.points import read_points
from divff_nerfstudio.convert.timeline import SPLITS, named_splits, usable_times
from divff_nerfstudio.convert.transforms import Transforms, camera_of
from divff_nerfstudio.schema import read_json


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
        CameraError: If a camera makes no sense.
    """
    path = path / "transforms.json" if path.is_dir() else path
    whole = read_json(path, Transforms, "a transforms.json of nerfstudio", "mend it", ConvertError)
    files = [_file(path.parent, frame.file_path) for frame in whole.frames]
    _check_files(files, path)
    source, numbers = _numbered(path, files, order)
    cameras = []
    for frame, file in zip(whole.frames, files, strict=True):
        sized = (frame.w or whole.w) and (frame.h or whole.h)
        try:
            cameras.append(camera_of(whole, frame, None if sized else picture_size(file)))
        except ValueError as error:
            raise ConvertError(f"{path} has a faulty camera, of {printable(frame.file_path)}: {error}.") from None
    splits, notes = _splits(path, whole, dict(zip(files, numbers, strict=True)))
    times, more = _times(path, whole, numbers)
    if points is None and whole.ply_file_path is not None:
        points = _inside(path.parent, whole.ply_file_path)
    posed = posed_frames(
        numbers,
        np.array([np.array(frame.transform_matrix)[:3] for frame in whole.frames], np.float64),
        cameras,
        read_points(points),
        path,
        splits=splits,
        times=times,
        notes=(*notes, *more, *_unread(path, whole)),
    )
    return posed, source


def _unread(path: Path, whole: Transforms) -> list[str]:
    """What the user is told of pictures beside the frames that training does not use."""
    keys = ("mask_path", "depth_file_path")
    named = [key for key in keys if any(getattr(frame, key) is not None for frame in whole.frames)]
    if not named:
        return []
    return [f"{path}: {' and '.join(named)} of its frames are not used: nothing is trained on masks or depths."]


def _inside(folder: Path, name: str) -> Path:
    """Where a path of the file leads; Windows writes it with backslashes."""
    path = folder / name
    return folder / name.replace("\\", "/") if "\\" in name and not path.exists() else path


def _file(folder: Path, name: str) -> Path:
    """The picture that the file means; Blender's data sets leave the suffix out."""
    path = Path(os.path.normpath(_inside(folder, name)))
    if path.suffix.lower() in SUFFIXES:
        return path
    alike = (path.with_name(path.name + suffix) for suffix in (".png", *sorted(SUFFIXES)))
    return next((found for found in alike if found.is_file()), path)


def _check_files(files: Sequence[Path], path: Path) -> None:
    """Raises ConvertError where a picture is named twice, or not there."""
    seen: set[Path] = set()
    for file in files:
        if file in seen:
            raise ConvertError(
                f"{path} names {printable(str(file))} twice: leave it in once, or its other pose is lost."
            )
        seen.add(file)
        try:
            there = file.is_file()
        except ValueError:  # a zero in the name
            there = False
        if not there:
            raise ConvertError(f"{printable(str(file))} is missing, which {path} names: put it there.")


def _numbered(
    path: Path, files: list[Path], order: Literal["number", "name", "listed"]
) -> tuple[FolderFrames, list[int]]:
    """The frames of the folders in which the named ones lie, and the numbers of the named ones."""
    if order == "listed":
        return FolderFrames(path.parent, dict(enumerate(files, 1))), list(range(1, len(files) + 1))
    named = _numbers(path, files, order)
    return FolderFrames(path.parent, {number: Path(name) for name, number in named.items()}), [
        named[str(file)] for file in files
    ]


def _numbers(path: Path, files: Sequence[Path], order: Order) -> dict[str, int]:
    suffixes = {file.suffix.lower() for file in files}
    pictures = sorted(
        str(picture)
        for folder in {file.parent for file in files}
        for picture in folder.iterdir()
        if picture.suffix.lower() in suffixes and not picture.name.startswith(".") and picture.is_file()
    )
    names = {str(file) for file in files}
    return number_names(sorted({*frames_among(pictures, names, order), *names}), order, path)


def _splits(path: Path, whole: Transforms, numbers: dict[Path, int]) -> tuple[dict[int, str] | None, list[str]]:
    listed: dict[str, list[int] | None] = {}
    for split in SPLITS:
        names = getattr(whole, f"{split}_filenames")
        listed[split] = None if names is None else []
        for name in names or ():
            file = _file(path.parent, name)
            if file not in numbers:
                raise ConvertError(f"{path} has {printable(name)} in {split}_filenames, but no frame of it: add it.")
            listed[split].append(numbers[file])  # pyright: ignore[reportOptionalMemberAccess]
    return named_splits(listed, path)


def _times(path: Path, whole: Transforms, numbers: Sequence[int]) -> tuple[dict[int, float] | None, list[str]]:
    """Times of the frames by their numbers, and what the user is told."""
    times = [frame.time for frame in whole.frames]
    if all(time is None for time in times):
        return None, []
    if any(time is None for time in times):
        return None, [f"{path}: the times of its frames are not used, since some have none; frames are evenly spaced."]
    known = {number: float(time) for number, time in zip(numbers, times, strict=True) if time is not None}
    reason = usable_times(np.array([known[number] for number in sorted(known)]))
    if reason is not None:
        return None, [f"{path}: the times of its frames are not used, since {reason}; frames are evenly spaced."]
    return known, [f"{path}: the times of its frames are used."]
