"""COLMAP's binary files, read within the bounds that their sizes set: a damaged count costs no memory and no time."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from divff_nerfstudio.convert.colmap_model import MODEL_PARAMS, ColmapCamera, Images, ModelFault, Points

_LONGEST_NAME = 4096
_NAMES = {number: name for number, (name, _) in enumerate(MODEL_PARAMS.items())}
_POINT = struct.Struct("<Q3d3BdQ")
_IMAGE = struct.Struct("<I7dI")
_CAMERA = struct.Struct("<IiQQ")


class _Bytes:
    """A file that is read from its beginning to its end."""

    def __init__(self, path: Path):
        self.content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        self.view = memoryview(self.content)  # pyright: ignore[reportArgumentType]
        self.at = 0

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        """The next values.

        Raises:
            ModelFault: If the file ends before they do.
        """
        start = self.skip(layout.size)
        return layout.unpack_from(self.view, start)

    def skip(self, size: int) -> int:
        """Goes on by `size` bytes; returns where they begin."""
        if size > len(self.view) - self.at:
            raise ModelFault("it ends too early")
        self.at += size
        return self.at - size

    def count(self, min_size: int) -> int:
        """How many entries of at least `min_size` bytes follow."""
        (count,) = self.take(struct.Struct("<Q"))
        if count * min_size > len(self.view) - self.at:
            raise ModelFault(f"it says that {count} entries follow, for which it is too short")
        return count

    def name(self) -> str:
        """Text up to a zero."""
        start = self.at
        window = bytes(self.view[start : start + _LONGEST_NAME])
        end = window.find(b"\0")
        if end < 0:
            raise ModelFault("it has an image name without an end")
        self.at = start + end + 1
        try:
            return window[:end].decode("utf-8")
        except UnicodeDecodeError:
            raise ModelFault(f"it has the image name {window[:end]!r}, which is no UTF-8 text") from None

    def end(self) -> None:
        """Raises ModelFault if anything is left."""
        if self.at < len(self.view):
            raise ModelFault(f"{len(self.view) - self.at} bytes are left behind its last entry")


def read_cameras(path: Path) -> Iterator[ColmapCamera]:
    """The cameras of ``cameras.bin``."""
    file = _Bytes(path)
    for _ in range(file.count(_CAMERA.size + 16)):
        key, number, width, height = file.take(_CAMERA)
        if number not in _NAMES:
            raise ModelFault(f"its camera {key} is of model {number}, which is not known")
        name = _NAMES[number]
        params = file.take(struct.Struct(f"<{MODEL_PARAMS[name]}d"))
        yield ColmapCamera(key, name, width, height, params)
    file.end()


def read_images(path: Path) -> Images:
    """The images of ``images.bin``."""
    file, images = _Bytes(path), Images()
    for _ in range(file.count(_IMAGE.size + 9)):
        key, *pose, camera = file.take(_IMAGE)
        name = file.name()
        seen = file.count(24)
        file.skip(24 * seen)
        images.add(key, pose, camera, name, seen)
    file.end()
    return images


def read_points(path: Path) -> Points:
    """The points of ``points3D.bin``, with the images that see them."""
    file = _Bytes(path)
    count = file.count(_POINT.size)
    keys, positions = np.empty(count, np.uint64), np.empty((count, 3))
    starts, lengths = np.empty(count, np.int64), np.empty(count, np.int64)
    for i in range(count):
        start = file.skip(_POINT.size)
        keys[i], *positions[i], _, _, _, _, length = _POINT.unpack_from(file.view, start)
        if length > (len(file.view) - file.at) // 8:
            raise ModelFault(f"it says that {length} images see a point, for which it is too short")
        starts[i], lengths[i] = file.at, length
        file.at += 8 * length
    file.end()
    inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    places = np.repeat(starts, lengths) + 8 * inside
    tracks = file.content[places[:, None] + np.arange(8)].view("<u4").reshape(-1, 2) if len(places) else None
    return Points(keys, positions, np.empty((0, 2), np.uint32) if tracks is None else tracks)
