"""Where frames come from: a folder, a tar archive, a video. Each frame has a number, counted from 1."""

from __future__ import annotations

import contextlib
import io
import tarfile
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

import numpy as np
from jaxtyping import UInt8

from divff_nerfstudio.archives import DAMAGE, is_compressed_tar, open_archive
from divff_nerfstudio.convert.names import (
    ConvertError,
    FrameNames,
    Order,
    frames_among,
    number_names,
    trailing_number,
)
from divff_nerfstudio.convert.tone import to_screen
from divff_nerfstudio.convert.video_stream import frames_of, pixel_shape, stream_of, upright
from divff_nerfstudio.data.frames import PICTURE_FORMATS, decode_frame, open_picture, require_upright
from divff_nerfstudio.data.video_files import VIDEO_SUFFIXES
from divff_nerfstudio.errors import DivffError, stand_in

FORMATS = (*PICTURE_FORMATS, "WEBP")
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"))
_MAX_BYTES = 100 * 10**9
"""Bytes that an archive of frames may unpack to; each picture is read by itself, where it lies."""
_MAX_PICTURE = 2**29
_FEW = 200
"""So many frames may be unpacked from an archive's beginning each."""


class FrameSource(Protocol):
    """Numbered frames that are read one after the other."""

    path: Path
    """Where they are."""

    @property
    def numbers(self) -> Sequence[int] | None:
        """Numbers of all frames, ascending; None where only reading to the end tells."""
        ...

    def size_of(self, number: int) -> tuple[int, int]:
        """Width and height of a frame, before it is decoded where that is possible."""
        ...

    def number_of(self, name: str) -> int | None:
        """Number of the frame that a reconstruction calls so."""
        ...

    def read(self, numbers: Collection[int]) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        """Decodes frames, in ascending order, holding one at a time.

        Raises:
            DivffError: If a frame is missing or damaged.
        """
        ...


def picture_size(path: Path, content: IO[bytes] | None = None) -> tuple[int, int]:
    """Width and height of a picture, from its header.

    Raises:
        DivffError: If it is none, or is stored turned.
    """
    with open_picture(path, content, FORMATS) as image:
        require_upright(path, image)
        return image.size


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


class FolderFrames:
    """Picture files."""

    def __init__(self, path: Path, files: dict[int, Path]):
        self.path = path
        self.files = files
        self.numbers = sorted(files)

    @staticmethod
    def of_folder(folder: Path, order: Order = "number", named: Collection[str] | None = None) -> FolderFrames:
        """All pictures of a folder and its subfolders, linked ones, too; hidden ones are left out.

        Args:
            folder: The folder.
            order: How names become numbers.
            named: Names in a reconstruction; what is neither one of them nor named alike is left out.

        Raises:
            ConvertError: If it has none, or they cannot be numbered.
        """
        names = sorted(str(path.relative_to(folder)) for path in _files_below(folder) if _is_picture(path.name))
        if not names:
            raise ConvertError(
                f"{folder} has no pictures that end in {', '.join(sorted(SUFFIXES))}: give the folder of the frames, "
                "saved in one of these formats."
            )
        chosen = frames_among(names, set(named or ()), order)
        return FolderFrames(folder, {n: folder / name for name, n in number_names(chosen, order, folder).items()})

    def number_of(self, name: str) -> int | None:
        """Number of the file of this name below the folder, if it is there."""
        return self._names.number(name)

    @cached_property
    def _names(self) -> FrameNames:
        return FrameNames({path.relative_to(self.path).as_posix(): number for number, path in self.files.items()})

    def _file(self, number: int) -> Path:
        if number not in self.files:
            raise ConvertError(f"{self.path} has no frame {number}: put it there.")
        return self.files[number]

    def size_of(self, number: int) -> tuple[int, int]:
        return picture_size(self._file(number))

    def read(self, numbers: Collection[int]) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        for number in sorted(numbers):
            yield number, decode_frame(self._file(number), formats=FORMATS)


def _files_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Files of a folder and its subfolders; a link that leads back to a folder above it is not followed."""
    real = folder.resolve()
    if real in above:
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "__MACOSX":
            continue
        if path.is_dir():
            yield from _files_below(path, (*above, real))
        elif path.is_file():
            yield path


class ArchiveFrames:
    """Pictures in a tar or zip archive, as EPIC-KITCHENS' RGB frames come; read where they lie."""

    def __init__(self, path: Path, order: Order = "number", named: Collection[str] | None = None):
        """Opens an archive; see `FolderFrames.of_folder`.

        Raises:
            DivffError: If it is damaged, holds what `open_archive` refuses, or its pictures cannot be numbered.
        """
        self.path = path
        self._opened = contextlib.ExitStack()
        members = self._opened.enter_context(open_archive(path, _MAX_BYTES))
        pictures = {str(member.name): member for member in members if _is_picture(str(member.name))}
        if not pictures:
            raise ConvertError(f"{path} has no pictures: give the archive of RGB frames.")
        chosen = frames_among(list(pictures), set(named or ()), order)
        numbers = number_names(chosen, order, path)
        self._names = FrameNames(numbers)
        self._members = {number: pictures[name] for name, number in numbers.items()}
        self.numbers = sorted(self._members)
        places = [numbers[name] for name in pictures if name in numbers]
        if len(places) > _FEW and places != self.numbers and is_compressed_tar(path):
            raise ConvertError(
                f"{path} is compressed and holds its frames in another order than that of their numbers, so that each "
                "would be unpacked from the beginning: unpack it, and give the folder."
            )

    def number_of(self, name: str) -> int | None:
        """Number of the picture of this name in the archive, if it is there."""
        return self._names.number(name)

    def content(self, number: int) -> bytes:
        """The file of a frame, as it is.

        Raises:
            ConvertError: If it is not there or the archive is damaged.
        """
        with self._reading(number) as file:
            return file.read(_MAX_PICTURE)

    @contextlib.contextmanager
    def _reading(self, number: int) -> Iterator[IO[bytes]]:
        if number not in self._members:
            raise ConvertError(f"{self.path} has no frame {number}: it is another or an incomplete archive.")
        try:
            with self._members[number].open() as file:
                yield file
        except (*DAMAGE, OSError, RuntimeError) as error:
            if isinstance(error, DivffError):
                raise
            raise ConvertError(f"{self.path} is damaged at frame {number} ({error}): fetch it anew.") from None

    def _name(self, number: int) -> Path:
        return self.path / (str(self._members[number].name) if number in self._members else str(number))

    def size_of(self, number: int) -> tuple[int, int]:
        with self._reading(number) as file:
            return picture_size(self._name(number), file)

    def read(self, numbers: Collection[int]) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        for number in sorted(numbers):
            yield number, decode_frame(self._name(number), io.BytesIO(self.content(number)), FORMATS)


class VideoFrames:
    """Frames of a video; the first has number 1. Every coded frame counts once, whatever the time stamps say."""

    def __init__(self, path: Path, square: bool = True):
        """Names a video.

        Args:
            path: The file.
            square: Whether pictures whose pixels are not as high as wide (anamorphic) are brought to square ones, as
                they are shown, rather than left as they are stored.
        """
        self.path = path
        self.numbers = None
        self._square = square
        self._ratio = Fraction(1)
        self._decoded = 0

    def number_of(self, name: str) -> int | None:
        return trailing_number(name)

    def size_of(self, number: int) -> tuple[int, int]:
        return self._size

    @cached_property
    def _size(self) -> tuple[int, int]:
        height, width, _ = self._shown(next(self.decode())[1]).shape
        return width, height

    def shaped_as(self, sizes: Collection[tuple[int, int]]) -> VideoFrames:
        """The same video, its pixels as they are stored where that is how it was reconstructed: ffmpeg cuts them so.

        Args:
            sizes: Widths and heights of the reconstruction's frames.
        """
        stored = VideoFrames(self.path, square=False)
        (wide, high), (width, height) = stored.size_of(1), self.size_of(1)
        if (wide, high) == (width, height):
            return self
        alike = [abs(w * high / (h * wide) - 1) < abs(w * height / (h * width) - 1) for w, h in sizes]
        return stored if all(alike) else self

    def _shown(self, frame: Any) -> UInt8[np.ndarray, "h w 3"]:
        if not self._square or self._ratio == 1:
            return rgb(frame)
        wide = self._ratio > 1
        width = round(frame.width * self._ratio) if wide else frame.width
        return rgb(frame, width, frame.height if wide else round(frame.height / self._ratio))

    def decode(self) -> Iterator[tuple[int, object]]:
        """Frames as PyAV gives them, by number.

        Raises:
            ConvertError: If the file is missing, no video, damaged, or interlaced.
        """
        with self._opened() as (container, stream):
            stream.thread_type = "AUTO"
            self._ratio = pixel_shape(stream, self.path)
            for number, frame in frames_of(container, stream, self.path):
                self._decoded = number
                yield number, frame

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """The container of PyAV and the stream that is shown."""
        import av

        if not self.path.is_file():
            raise ConvertError(f"{self.path} is missing or no ordinary file: give the path of a video.")
        try:
            with av.open(str(self.path)) as container:
                yield container, stream_of(container, self.path)
        except (av.FFmpegError, OSError) as error:
            said = f"{self.path} is damaged or no video ({error}): copy it anew from its source."
            raise ConvertError(stand_in(self.path) or said) from None

    def read(self, numbers: Collection[int]) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        last = max(numbers, default=0)
        if 0 < self._said < last:
            raise self._ends(self._said, last)
        yield from self.read_until_end(numbers)
        if self._decoded < last:
            raise self._ends(self._decoded, last)

    def _ends(self, found: int, last: int) -> ConvertError:
        return ConvertError(
            f"{self.path} has {found} frames, and frame {last} is asked for: give the whole one or, if it is that, say "
            f"--last {found}."
        )

    @cached_property
    def _said(self) -> int:
        """How many frames the file says that it has; 0 where it does not, or such files are known to say it wrongly."""
        with self._opened() as (container, stream):
            return stream.frames if "mp4" in container.format.name else 0

    def read_until_end(self, numbers: Iterable[int]) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        """As `read`, but a video that ends before the last of the numbers ends without an error."""
        wanted = set(numbers)
        last = max(wanted, default=0)
        for number, frame in self.decode() if wanted else ():
            if number in wanted:
                yield number, self._shown(frame)
            if number >= last:
                return


def rgb(frame: object, width: int | None = None, height: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """A decoded frame's pixels, upright, in the colours of a screen, and at another size if one is asked for."""
    return upright(to_screen(frame, width, height), frame)


def open_frames(path: Path, order: Order = "number", named: Collection[str] | None = None) -> FrameSource:
    """Frames of a folder, an archive or a video, by what `path` is; see `FolderFrames.of_folder`.

    Raises:
        ConvertError: If it is none of them.
    """
    if path.is_dir():
        return FolderFrames.of_folder(path, order, named)
    if not path.is_file():
        raise ConvertError(f"{path} is missing: give a folder of frames, an archive or a video.")
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return VideoFrames(path)
    if zipfile.is_zipfile(path) or tarfile.is_tarfile(path):
        return ArchiveFrames(path, order, named)
    said = f"{path} is no folder, tar or zip archive or video: give the frames as one of these."
    raise ConvertError(stand_in(path) or said)


def resized(picture: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """At another size (width, height), each pixel the average of what it covers."""
    import cv2

    if (picture.shape[1], picture.shape[0]) == size:
        return picture
    smaller = size[0] <= picture.shape[1]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def require_from_one(numbers: Iterable[int], path: Path, video: VideoFrames) -> None:
    """Raises ConvertError where frames of a video are numbered from 0 by what was reconstructed.

    Args:
        numbers: All that have a pose.
        path: The reconstruction.
        video: The video.
    """
    if 0 in numbers:
        raise ConvertError(
            f"{path} has a frame 0, where the first of {video.path} is 1, so that all would be off by one: give the "
            "folder of the pictures that were reconstructed."
        )
