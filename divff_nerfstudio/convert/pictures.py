"""Where frames come from: a folder, a tar archive, a video. Each frame has a number, counted from 1."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from jaxtyping import UInt8

from divff_nerfstudio.data.frames import PICTURE_FORMATS, decode_frame
from divff_nerfstudio.files import DivffError

FORMATS = (*PICTURE_FORMATS, "WEBP")
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"))
_VIDEOS = frozenset((".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg"))

Order = Literal["number", "name"]
"""Frames are numbered by the digits at the end of their names, or counted in the order of their names."""


class ConvertError(DivffError):
    """Something cannot be converted; the message names the file and the remedy in one sentence."""


class FrameSource(Protocol):
    """Numbered frames that are read one after the other."""

    path: Path
    """Where they are."""

    @property
    def numbers(self) -> Sequence[int] | None:
        """Numbers of all frames, ascending; None where only reading to the end tells."""
        ...

    def read(self, numbers: Collection[int]) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        """Decodes frames, in ascending order, holding one at a time.

        Raises:
            DivffError: If a frame is missing or damaged.
        """
        ...


def trailing_number(name: str) -> int | None:
    """The digits at the end of a file name without its suffix."""
    match = re.search(r"(\d+)$", Path(name).stem)
    return int(match[1]) if match else None


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts frame10 behind frame9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def number_names(names: Sequence[str], order: Order, where: Path) -> dict[str, int]:
    """The number of each frame.

    Args:
        names: File names, with folders where there are several.
        order: How they are numbered.
        where: What is named in errors.

    Raises:
        ConvertError: If a name ends in no number, or two end in the same.
    """
    if order == "name":
        return {name: i for i, name in enumerate(sorted(names, key=natural_key), 1)}
    numbered: dict[int, str] = {}
    for name in names:
        number = trailing_number(name)
        if number is None:
            raise ConvertError(
                f"{where} has a frame {name}, which ends in no number: give --order name if the order of the names is "
                "that of the video."
            )
        if number in numbered:
            raise ConvertError(
                f"{where} has two frames of number {number}, {numbered[number]} and {name}: give --order name if the "
                "order of the names is that of the video."
            )
        numbered[number] = name
    return {name: number for number, name in numbered.items()}


class FolderFrames:
    """Picture files."""

    def __init__(self, path: Path, files: dict[int, Path]):
        self.path = path
        self.files = files
        self.numbers = sorted(files)

    @staticmethod
    def of_folder(folder: Path, order: Order = "number") -> FolderFrames:
        """All pictures of a folder and its subfolders; hidden ones are left out.

        Raises:
            ConvertError: If it has none, or they cannot be numbered.
        """
        names = [
            str(path.relative_to(folder))
            for path in folder.rglob("[!.]*")
            if path.suffix.lower() in SUFFIXES and path.is_file()
        ]
        if not names:
            raise ConvertError(f"{folder} has no pictures: give the folder of the frames.")
        return FolderFrames(folder, {n: folder / name for name, n in number_names(names, order, folder).items()})

    def number_of(self, name: str) -> int | None:
        """Number of the file of this name below the folder, if it is there."""
        return self._by_path.get(self.path / name)

    @cached_property
    def _by_path(self) -> dict[Path, int]:
        return {path: number for number, path in self.files.items()}

    def read(self, numbers: Collection[int]) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        for number in sorted(numbers):
            if number not in self.files:
                raise ConvertError(f"{self.path} has no frame {number}: put it there.")
            yield number, decode_frame(self.files[number], formats=FORMATS)


class TarFrames:
    """Pictures in an uncompressed or compressed tar archive, as EPIC-KITCHENS' RGB frames come; read where they lie."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._archive = tarfile.open(path)  # noqa: SIM115  (open as long as frames are read)
            members = [m for m in self._archive if m.isreg() and Path(m.name).suffix.lower() in SUFFIXES]
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ConvertError(f"{path} is truncated or no tar archive ({error}): fetch it anew.") from None
        if not members:
            raise ConvertError(f"{path} has no pictures: give the archive of RGB frames.")
        named = number_names([member.name for member in members], "number", path)
        self._members = {named[member.name]: member for member in members}
        self.numbers = sorted(self._members)

    def content(self, number: int) -> bytes:
        """The file of a frame, as it is.

        Raises:
            ConvertError: If it is not there or the archive is damaged.
        """
        try:
            file = self._archive.extractfile(self._members[number])
            content = b"" if file is None else file.read()
        except KeyError:
            raise ConvertError(f"{self.path} has no frame {number}: it is another or an incomplete archive.") from None
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ConvertError(f"{self.path} is damaged at frame {number} ({error}): fetch it anew.") from None
        return content

    def read(self, numbers: Collection[int]) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        for number in sorted(numbers):
            name = self.path / (self._members[number].name if number in self._members else str(number))
            yield number, decode_frame(name, io.BytesIO(self.content(number)), FORMATS)


class VideoFrames:
    """Frames of a video; the first has number 1. Every coded frame counts once, whatever the time stamps say."""

    def __init__(self, path: Path):
        self.path = path
        self.numbers = None

    def decode(self) -> Iterator[tuple[int, object]]:
        """Frames as PyAV gives them, by number.

        Raises:
            ConvertError: If the file is missing, no video, or damaged.
        """
        import av

        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise ConvertError(f"{self.path} has no pictures in it: give a video.")
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                number = 0
                for frame in container.decode(stream):
                    number += 1
                    yield number, frame
        except FileNotFoundError:
            raise ConvertError(f"{self.path} is missing: give the path of a video.") from None
        except (av.FFmpegError, OSError) as error:
            raise ConvertError(f"{self.path} is damaged or no video ({error}): copy it anew from its source.") from None
        if number == 0:
            raise ConvertError(f"{self.path} has no frame that can be decoded: copy it anew from its source.")

    def read(self, numbers: Collection[int]) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        found = 0
        for number, picture in self.read_until_end(numbers):
            found = number
            yield number, picture
        if numbers and found < max(numbers):
            raise ConvertError(f"{self.path} ends before frame {max(numbers)}, which is asked for: give the whole one.")

    def read_until_end(self, numbers: Iterable[int]) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        """As `read`, but a video that ends before the last of the numbers ends without an error."""
        wanted = set(numbers)
        last = max(wanted, default=0)
        for number, frame in self.decode() if wanted else ():
            if number in wanted:
                yield number, rgb(frame)
            if number >= last:
                return


def rgb(frame: object, width: int | None = None, height: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """A decoded frame's pixels, upright, and at another size if one is asked for."""
    picture = frame.to_ndarray(format="rgb24", width=width, height=height)  # pyright: ignore[reportAttributeAccessIssue]
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


def open_frames(path: Path, order: Order = "number") -> FrameSource:
    """Frames of a folder, a tar archive or a video, by what `path` is.

    Raises:
        ConvertError: If it is none of them.
    """
    if path.is_dir():
        return FolderFrames.of_folder(path, order)
    if not path.is_file():
        raise ConvertError(f"{path} is missing: give a folder of frames, a tar archive or a video.")
    if path.suffix.lower() in _VIDEOS:
        return VideoFrames(path)
    if tarfile.is_tarfile(path):
        return TarFrames(path)
    raise ConvertError(f"{path} is no folder, tar archive or video: give the frames as one of these.")


def resized(picture: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """At another size (width, height), each pixel the average of what it covers."""
    import cv2

    if (picture.shape[1], picture.shape[0]) == size:
        return picture
    smaller = size[0] <= picture.shape[1]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
