"""The files of a store while they grow: arrays whose headers are filled in at the end, and how far all are whole."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float16, UInt16

from divff_nerfstudio.features.store.header import INDEX

PROGRESS = "progress"
_HEADER_BYTES = 128
_RECORD = "<qii"


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Header of an .npy file in a fixed number of bytes, so that the shape can be filled in at the end."""
    described = repr({"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
    room = _HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", room) + described.ljust(room - 1).encode("latin1") + b"\n"


def _write(file: io.FileIO, content: bytes) -> None:
    """Writes all of it: nothing stays in a buffer that a full disk would keep from ever being written."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _head(file: io.FileIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    file.seek(0)
    _write(file, _header(dtype, shape))
    os.fsync(file.fileno())


def write_rows(path: Path, chunks: Iterable[np.ndarray], length: int) -> None:
    """Writes an .npy file of rows in half precision.

    Args:
        path: The file.
        chunks: The rows, (N, length), chunk by chunk.
        length: Length of a row.
    """
    rows = 0
    with io.FileIO(path, "w") as file:
        file.seek(_HEADER_BYTES)
        for chunk in chunks:
            _write(file, np.ascontiguousarray(chunk, dtype=np.float16).tobytes())
            rows += len(chunk)
        _head(file, np.dtype(np.float16), (rows, length))


class GrowingFiles:
    """Rows and index of a store that is being written, opened behind the last frame that is whole in all of its files.

    Args:
        folder: Where they are, or shall be.
        rows_name: Name of the file of rows.
        row_length: Length of a row.
        shared_index: Whether all frames have the first one's index.

    Attributes:
        offsets: Where the rows of each frame begin, and the end of the last.
        index_shape: Height and width of an index; None before the first frame.
    """

    def __init__(self, folder: Path, rows_name: str, row_length: int, shared_index: bool):
        self._row_length, self._shared_index = row_length, shared_index
        self.offsets = [0]
        self.index_shape: tuple[int, int] | None = None
        self._files: list[io.FileIO] = []
        try:
            for name in (PROGRESS, rows_name, INDEX):
                (folder / name).touch()
                self._files.append(io.FileIO(folder / name, "r+"))
            self._progress, self._rows, self._index = self._files
            self._resume()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """Number of frames that are whole."""
        return len(self.offsets) - 1

    def append(self, table: Float16[np.ndarray, "n D"], index: UInt16[np.ndarray, "h w"]) -> None:
        """Adds a frame.

        Raises:
            OSError: If it cannot be written; what was there before stays.
        """
        end = self.offsets[-1] + len(table)
        try:
            _write(self._rows, table.tobytes())
            if self.index_shape is None or not self._shared_index:
                _write(self._index, index.tobytes())
            _write(self._progress, struct.pack(_RECORD, end, *index.shape))
        except OSError:
            self._cut()
            raise
        self.index_shape = index.shape[0], index.shape[1]
        self.offsets.append(end)

    def complete(self) -> None:
        """Fills in the headers, behind which nothing is appended any more."""
        assert self.index_shape is not None
        _head(self._rows, np.dtype(np.float16), (self.offsets[-1], self._row_length))
        _head(self._index, np.dtype(np.uint16), (self._planes(len(self)), *self.index_shape))

    def close(self) -> None:
        """Lets go of the files."""
        for file in self._files:
            file.close()

    def _resume(self) -> None:
        records, record = self._progress.read(), struct.calcsize(_RECORD)
        known = [struct.unpack_from(_RECORD, records, at) for at in range(0, len(records) - record + 1, record)]
        row_bytes, index_bytes = (os.fstat(file.fileno()).st_size for file in (self._rows, self._index))
        for number, (end, height, width) in enumerate(known, start=1):
            if self._rows_end(end) > row_bytes or self._index_end(number, (height, width)) > index_bytes:
                break
            self.offsets.append(end)
            self.index_shape = (height, width)
        self._cut()

    def _cut(self) -> None:
        """Cuts off what lies behind the last whole frame."""
        index_end = _HEADER_BYTES if self.index_shape is None else self._index_end(len(self), self.index_shape)
        ends = len(self) * struct.calcsize(_RECORD), self._rows_end(self.offsets[-1]), index_end
        for file, end in zip(self._files, ends, strict=True):
            file.truncate(end)
            file.seek(end)

    def _rows_end(self, rows: int) -> int:
        return _HEADER_BYTES + rows * self._row_length * 2

    def _index_end(self, frames: int, shape: tuple[int, int]) -> int:
        return _HEADER_BYTES + self._planes(frames) * shape[0] * shape[1] * 2

    def _planes(self, frames: int) -> int:
        return 1 if self._shared_index else frames
