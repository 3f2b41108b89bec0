"""NumPy's files from anybody: nothing is unpickled, and no more memory is taken than the file itself has to fill."""

from __future__ import annotations

import math
import os
import stat
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

_MAX_BYTES = 512 * 2**20
"""Of all arrays in an archive; larger ones are taken for something else."""


class ArrayFaultError(ValueError):
    """A file of arrays is not what it should be; the message goes behind the file's name."""


def open_array(path: Path, dtype: Any, dimensions: int) -> np.memmap:
    """Maps an .npy file whose header nobody vouches for.

    Args:
        path: The file.
        dtype: What its values must be.
        dimensions: How many axes it must have.

    Raises:
        FileNotFoundError: If it is missing.
        ArrayFaultError: If it is no ordinary file, no such array in C order, or shorter or longer than it says.
    """
    _require_ordinary(path)
    try:
        with np.errstate(over="ignore"):  # of sizes beyond all bounds
            array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise
    except Exception:  # a damaged header may fail in any way
        raise ArrayFaultError("is truncated or damaged") from None
    if array.dtype != np.dtype(dtype):
        raise ArrayFaultError(f"holds {array.dtype} where {np.dtype(dtype)} is due")
    if array.ndim != dimensions or not array.flags.c_contiguous:
        raise ArrayFaultError(f"has the shape or order of another array ({array.shape})")
    if path.stat().st_size != array.offset + array.nbytes:
        raise ArrayFaultError("is truncated or damaged")
    return array


def create_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    """Maps a new .npy file, to be filled.

    Raises:
        OSError: If it cannot be written, or there is no room for all of it: a mapped page that finds the disk full
            later kills the process.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("rb+") as file:
        take_room(file, array.offset + array.nbytes)
    return array


def scratch_array(folder: Path | None, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    """Maps a new file without a name, which goes away with its last user.

    Args:
        folder: Where it lies; None: where temporary files do.
        dtype: Type of its values.
        shape: Its shape.

    Raises:
        OSError: As `create_array`.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        take_room(file, math.prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(file, dtype, "w+", shape=shape)


class ScratchRows:
    """Rows that are written one after the other into a file without a name, and mapped once all are there.

    Args:
        folder: Where it lies; None: where temporary files do.
        dtype: Type of the values.
    """

    def __init__(self, folder: Path | None, dtype: Any):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it is closed once it is mapped
        self._dtype, self._shape = np.dtype(dtype), (0,)

    def append(self, rows: np.ndarray) -> None:
        """Adds rows, all of the same shape, at the end; they are brought to the type of the others.

        Raises:
            OSError: If there is no room for them.
        """
        self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self._shape = self._shape[0] + len(rows), *rows.shape[1:]

    def mapped(self) -> np.ndarray:
        """All rows, to read and to change; none are added any more. The file goes away with its last user.

        Raises:
            OSError: If there is no room for the last ones.
        """
        with self._file:
            self._file.flush()
            if not self._shape[0]:
                return np.empty(self._shape, self._dtype)
            return np.asarray(np.memmap(self._file, self._dtype, "r+", shape=self._shape))


def take_room(file: IO[bytes], size: int) -> None:
    """Has the disk set so many bytes of a file apart, where it can.

    Raises:
        OSError: If it has not so many.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of an .npz file whose headers nobody vouches for.

    Args:
        path: The file.

    Returns:
        Arrays of plain numbers or texts, by name.

    Raises:
        FileNotFoundError: If it is missing.
        ArrayFaultError: If it is no ordinary file, damaged, larger than is read, or an array in it is not of the size
            that its header says, or of Python's objects.
    """
    _require_ordinary(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > _MAX_BYTES:
                raise ArrayFaultError(f"holds more than {_MAX_BYTES / 2**20:.0f} MiB")
            return {member.filename.removesuffix(".npy"): _read_member(archive, member) for member in members}
    except (FileNotFoundError, ArrayFaultError):
        raise
    except Exception as error:  # damaged archives fail in many ways
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ArrayFaultError(f"is damaged ({reason})") from None


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        shape, fortran, dtype = _header(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or size > member.file_size:
            raise ArrayFaultError(f"has {member.filename}, which is no array of plain numbers of its size")
        content = file.read(size + 1)
    if len(content) != size:
        raise ArrayFaultError(f"has {member.filename}, which has another length than it says")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C").copy()


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of what follows in an .npy file."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)  # pyright: ignore[reportArgumentType]
    if version not in readers:
        raise ValueError(f"version {version} of NumPy's format")
    return readers[version](file)  # pyright: ignore[reportArgumentType]


def _require_ordinary(path: Path) -> None:
    if not stat.S_ISREG(path.stat().st_mode):
        raise ArrayFaultError("is no ordinary file")
