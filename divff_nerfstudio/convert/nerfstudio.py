"""nerfstudio's data sets: ``transforms.json`` and the pictures that it names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from divff_nerfstudio.convert.cameras import CameraError
from divff_nerfstudio.convert.names import (
    ConvertError,
    Order,
    frames_among,
    number_names,
    printable,
    shortened,
    told_of_folders,
)
from divff_nerfstudio.convert.pictures import SUFFIXES, FolderFrames, picture_size
from divff_nerfstudio.convert.points import read_points
from divff_nerfstudio.convert.posed import PosedFrames, posed_frames
from divff_nerfstudio.convert.timeline import SPLITS, named_splits, usable_times
from divff_nerfstudio.convert.transforms import Transforms, camera_of
from divff_nerfstudio.data.picture_names import alike
from divff_nerfstudio.schema import read_json


def read_nerfstudio(
    path: Path,
    order: Literal["number", "name", "listed"],
    points: Path | None = None,
    bounded: bool = False,
) -> tuple[PosedFrames, FolderFrames]:
    """A nerfstudio ``transforms.json`` and the pictures that it names.

    Args:
        path: The file, or the folder that holds it.
        order: How frames are numbered in the order of the video; `listed`: as in the file.
        points: A PLY file of points of the room; None: the one that the file names.
        bounded: Whether near and far are known, so that no points are needed.

    Returns:
        The posed frames, and the pictures of their folders.

    Raises:
        ConvertError: If something in it is wrong or missing.
        CameraError: If a camera makes no sense.
    """
    if path.is_dir():
        path = _file_in(path)
    whole = read_json(path, Transforms, "a transforms.json of nerfstudio", "mend it", ConvertError)
    pictures, moved = _Names.that_find(path, [frame.file_path for frame in whole.frames])
    files = [pictures.file(frame.file_path) for frame in whole.frames]
    _check_files(files, path)
    source, numbers = _numbered(path, files, order)
    cameras = []
    for frame, file in zip(whole.frames, files, strict=True):
        sized = (frame.w or whole.w) and (frame.h or whole.h)
        try:
            cameras.append(camera_of(whole, frame, None if sized else picture_size(file)))
        except ValueError as error:
            raise ConvertError(f"{path} has a faulty camera, of {printable(frame.file_path)}: {error}.") from None
        except CameraError as error:
            raise CameraError(f"{path}, {printable(frame.file_path)}: {error}") from None
    splits, notes = _splits(path, whole, pictures, dict(zip(files, numbers, strict=True)))
    times, more = _times(path, whole, numbers)
    if points is None and whole.ply_file_path is not None and not bounded:
        points = _inside(path.parent, whole.ply_file_path)
    posed = posed_frames(
        numbers,
        np.array([np.array(frame.transform_matrix)[:3] for frame in whole.frames], np.float64),
        cameras,
        read_points(points),
        path,
        splits=splits,
        times=times,
        notes=(*moved, *notes, *more, *_unread(path, whole), *told_of_folders([str(file) for file in files])),
    )
    return posed, source


def _file_in(folder: Path) -> Path:
    """The file of a data set's folder."""
    path = folder / "transforms.json"
    if not path.is_file():
        others = ", ".join(each.name for each in sorted(folder.glob("transforms*.json"))[:4] if each.is_file())
        raise ConvertError(f"{path} is missing: give the file itself{f' (there are {others})' if others else ''}.")
    return path


def _unread(path: Path, whole: Transforms) -> list[str]:
    """What the user is told of what is beside the frames and not used."""
    keys = ("mask_path", "depth_file_path")
    named = [key for key in keys if any(getattr(frame, key) is not None for frame in whole.frames)]
    notes = []
    if named:
        notes = [f"{path}: {' and '.join(named)} of its frames are not used: nothing is trained on masks or depths."]
    if whole.fisheye_crop_radius is not None:
        notes.append(f"{path}: fisheye_crop_radius is not used: lower --widest if the frames' corners are dark.")
    return notes


def _inside(folder: Path, name: str) -> Path:
    """Where a path of the file leads; Windows writes it with backslashes."""
    path = folder / name
    return folder / name.replace("\\", "/") if "\\" in name and not _is_there(path) else path


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a zero in it
        return False


class _Names:
    """Finds the pictures that a file names, whatever machine has written their names.

    Args:
        folder: Where the file lies.
        above: What is left out of the names' beginning: a folder of another machine.
    """

    def __init__(self, folder: Path, above: str = ""):
        self._folder = folder
        self._above = above
        self._forms: dict[Path, dict[str, Path]] = {}

    @staticmethod
    def that_find(path: Path, names: Sequence[str]) -> tuple[_Names, list[str]]:
        """What finds all of a file's pictures, of one from another machine, too, which names its own folders.

        Returns:
            It, and what the user is told.
        """
        for shorter in shortened(names):
            above = names[0][: len(names[0]) - len(shorter[0])]
            found = _Names(path.parent, above)
            if all(_is_there(found.file(name)) for name in names):
                notes = [f"{path}: its pictures are not at {printable(above)}; those beside it are taken."]
                return found, notes if above else []
        return _Names(path.parent), []

    def file(self, name: str) -> Path:
        """The picture of a name; Blender's data sets leave the suffix out."""
        path = Path(os.path.normpath(_inside(self._folder, name.removeprefix(self._above))))
        suffixes = ("",) if path.suffix.lower() in SUFFIXES else (".png", *sorted(SUFFIXES))
        found = (self._found(path.with_name(path.name + suffix)) for suffix in suffixes)
        return next((each for each in found if _is_there(each)), path)

    def _found(self, path: Path) -> Path:
        """A path, or the only one that is alike and there."""
        if _is_there(path) or path.parent == path:
            return path
        parent = self._found(path.parent)
        return self._forms_in(parent).get(alike(path.name), parent / path.name)

    def _forms_in(self, folder: Path) -> dict[str, Path]:
        if folder not in self._forms:
            found: dict[str, list[Path]] = {}
            with contextlib.suppress(OSError, ValueError):
                for path in folder.iterdir():
                    found.setdefault(alike(path.name), []).append(path)
            self._forms[folder] = {form: paths[0] for form, paths in found.items() if len(paths) == 1}
        return self._forms[folder]


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
        except (OSError, ValueError):  # a name that is too long, or has a zero in it
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


def _splits(
    path: Path, whole: Transforms, pictures: _Names, numbers: dict[Path, int]
) -> tuple[dict[int, str] | None, list[str]]:
    listed: dict[str, list[int] | None] = {}
    for split in SPLITS:
        names = getattr(whole, f"{split}_filenames")
        listed[split] = None if names is None else []
        for name in names or ():
            file = pictures.file(name)
            if file not in numbers:
                raise ConvertError(f"{path} has {printable(name)} in {split}_filenames, but no frame of it: add it.")
            listed[split].append(numbers[file])  # pyright: ignore[reportOptionalMemberAccess]
    found, notes = named_splits(listed, path)
    if found is not None and (rest := len(numbers) - len(found)):
        notes.append(f"{path}: {rest} of its frames are in none of its lists of file names and are left out.")
    return found, notes


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
