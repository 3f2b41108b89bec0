"""What is looked at when a feature store is opened: every header before it is trusted, every value once.

A store may come from a stranger, a damaged disk or another scene. Its arrays are mapped, and looked through in pieces;
that it was done is remembered outside of the store, with the files' sizes and times.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from pathlib import Path

import numpy as np

from divff_nerfstudio.arrays import ArrayFaultError
from divff_nerfstudio.atomic import write_text
from divff_nerfstudio.cache_dirs import user_cache_dir
from divff_nerfstudio.features.store.header import NO_FEATURE

_CHUNK = 2**24
"""Values that are looked through at a time."""
_LENGTH_TOLERANCE = 0.02
"""How far features of unit length may be off: half precision rounds them by a tenth of that."""


def check_offsets(offsets: np.ndarray, frames: int, rows: int) -> None:
    """Refuses offsets that do not cut the table into a part for each frame.

    Raises:
        ArrayFaultError: With what is wrong.
    """
    if offsets.shape != (frames + 1,):
        raise ArrayFaultError(f"does not fit the header's {frames} frames")
    lengths = np.diff(offsets)
    if offsets[0] != 0 or offsets[-1] != rows or lengths.min() < 0 or lengths.max() > NO_FEATURE:
        raise ArrayFaultError("does not fit the table of features")


def check_index(index: np.ndarray, offsets: np.ndarray, image_size: tuple[int, int], planes: int) -> None:
    """Refuses an index that points beyond its frame's part of the table, or lies across the picture.

    Args:
        index: Rows of the table, (planes, h, w); one plane serves all frames, or each frame has its own.
        offsets: First row of each frame.
        image_size: Height and width of the frames.
        planes: How many there must be.

    Raises:
        ArrayFaultError: With what is wrong.
    """
    if len(index) != planes:
        raise ArrayFaultError(f"has {len(index)} planes where {planes} are due")
    if 0 in index.shape:
        raise ArrayFaultError("covers no pixel")
    shape = math.log(index.shape[1] / index.shape[2])
    upright, turned = (abs(shape - math.log(a / b)) for a, b in (image_size, image_size[::-1]))
    if turned < 0.1 and upright > 3 * turned + 0.2:
        raise ArrayFaultError(
            f"is {index.shape[2]}x{index.shape[1]} where the frames are {image_size[1]}x{image_size[0]}: rows and "
            "columns changed places"
        )
    rows = np.diff(offsets)
    rows = np.array([rows.min()]) if planes == 1 else rows
    step = max(1, _CHUNK // (index.shape[1] * index.shape[2]))
    for start in range(0, planes, step):
        # One more than each row: 65535, which says that there is none, becomes 0.
        max_row = (index[start : start + step] + np.uint16(1)).max((1, 2))
        if (max_row > rows[start : start + step]).any():
            raise ArrayFaultError("points beyond the table of features")


def check_table(table: np.ndarray, unit_length: bool) -> None:
    """Refuses features that are not finite, or not of unit length where they should be.

    Raises:
        ArrayFaultError: With what is wrong.
    """
    step = max(1, _CHUNK // max(1, table.shape[1]))
    for start in range(0, len(table), step):
        chunk = table[start : start + step]
        if ((chunk.view(np.uint16) & 0x7C00) == 0x7C00).any():
            raise ArrayFaultError("has features that are not finite")
        if unit_length:
            values = chunk.astype(np.float32)
            squares = np.einsum("rd,rd->r", values, values)
            if (np.abs(np.sqrt(squares) - 1) > _LENGTH_TOLERANCE).any():
                raise ArrayFaultError("has features that are not of unit length")


def check_hints(table: np.ndarray) -> None:
    """Refuses hints other than two of yes (1), no (-1) and unknown (0).

    Raises:
        ArrayFaultError: With what is wrong.
    """
    if table.shape[1] != 2 or not np.isin(table, (-1, 0, 1)).all():
        raise ArrayFaultError("holds other hints than yes, no and unknown of what moves and of hands")


def seal_of(directory: Path, names: tuple[str, ...]) -> str:
    """What to call these files of a store as they are now: it changes when one of them is written to or exchanged.

    Raises:
        OSError: If one of them cannot be looked at.
    """
    digest = hashlib.sha256(b"1")
    for name in names:
        status = (directory / name).stat()
        digest.update(f"{name} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}\n".encode())
    return digest.hexdigest()


def checked_before(directory: Path, seal: str) -> bool:
    """Whether a store was found sound as it is now."""
    try:
        return _seal(directory).read_text() == seal
    except (OSError, ValueError):
        return False


def remember_checked(directory: Path, seal: str) -> None:
    """Keeps that a store was found sound; where that cannot be kept it is looked through again next time."""
    with contextlib.suppress(OSError):
        write_text(_seal(directory), seal, sync=False)


def _seal(directory: Path) -> Path:
    """Outside of the store, which may be another's, and whose files would vouch for themselves."""
    return user_cache_dir(directory) / "checked"
