"""Memory-mapped store of the features that are distilled: one folder per scene and kind of features.

A folder holds ``header.json`` (what was extracted, by what, see `StoreHeader`), ``table.npy`` (R, D) float16 with the
distinct features of all frames, ``offsets.npy`` (F + 1,) int64 with the first row of each frame in the table, and
``index.npy`` (F or 1, h, w) uint16 with each place's row within its frame's part of the table. The value 65535 says
that a place has no feature. A single index serves all frames where features lie on a fixed grid.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt16
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from divff_nerfstudio.atomic import atomic_path, remove_unfinished
from divff_nerfstudio.cache_dirs import is_writable, user_cache_dir
from divff_nerfstudio.errors import DISK_FULL, DivffError
from divff_nerfstudio.features.autoencoder import Autoencoder, load_autoencoder
from divff_nerfstudio.features.store_checks import (
    NO_FEATURE,
    ArrayFaultError,
    HeaderRecord,
    check_index,
    check_offsets,
    check_table,
    checked_before,
    open_array,
    remember_checked,
)
from divff_nerfstudio.locks import take_lock
from divff_nerfstudio.schema import read_json

if TYPE_CHECKING:
    from divff_nerfstudio.data.scene import Scene

FORMAT = 1
HEADER, TABLE, OFFSETS, INDEX = "header.json", "table.npy", "offsets.npy", "index.npy"
_ROWS, _PROGRESS = "rows.npy", "progress"
IMPORTED = "imported"
"""Source of the stores of an imported run, which say what its heads speak and hold no targets for them."""
_NPY_HEADER_BYTES = 128
_RECORD = "<qii"


class FeatureStoreError(DivffError):
    """A feature store is missing, damaged, in use, or was made with other settings."""


@dataclass(frozen=True)
class StoreHeader:
    """What a feature store holds and how it was made; equal headers mean equal features."""

    kind: str
    """Kind of features: "image", "video" or "regulariser"."""
    source: str
    """Registered name of the feature source."""
    model: str
    """Model of the source, as given by the user."""
    fingerprint: str
    """SHA-256 of the model's weights."""
    dimension: int
    """Length D of a feature."""
    frame_ids: list[int]
    """Ids of the scene's frames, in the order of the store."""
    image_size: list[int]
    """Height and width of the scene's frames in pixels."""
    settings: dict[str, Any] = field(default_factory=dict)
    """All options of the source that change its features."""
    text_encoder: dict[str, Any] | None = None
    """How to build the text encoder that speaks the features' language, or None where there is none."""
    negatives: list[str] = field(default_factory=list)
    """Phrases that a query is compared with."""
    shared_index: bool = False
    """Whether one index serves all frames."""
    decoder: str | None = None
    """File in the store's folder with the autoencoder whose codes the features are; None: they are embeddings."""
    format: int = FORMAT
    """Version of the store's layout."""

    def differences(self, other: StoreHeader) -> list[str]:
        """Names every entry in which `other` differs, as ``name: this -> other``."""
        # As JSON reads them back: a tuple is written as a list.
        mine, others = (_flat(json.loads(json.dumps(asdict(header)))) for header in (self, other))
        found = []
        for name in sorted(mine.keys() | others.keys()):
            if mine.get(name) == others.get(name):
                continue
            if name == "frame_ids":
                found.append(f"frame_ids: {len(self.frame_ids)} frames -> {len(other.frame_ids)} frames, or other ids")
            else:
                found.append(f"{name}: {mine.get(name, 'absent')} -> {others.get(name, 'absent')}")
        return found

    @property
    def is_of_unit_length(self) -> bool:
        """Whether its features must be: those of all registered sources are; what others give is theirs to know."""
        from divff_nerfstudio.features.sources import SOURCES

        return self.source in SOURCES

    def write(self, path: Path) -> None:
        """Writes the header as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> StoreHeader:
        """Reads a header.

        Raises:
            FeatureStoreError: If it is missing, damaged, or of another version.
        """
        remedy = "remove its folder and run `divff extract` again"
        if not path.exists():
            raise FeatureStoreError(f"There is no feature store at {path.parent}: run `divff extract`.")
        found = read_json(path, HeaderRecord, "the header of a feature store", remedy, FeatureStoreError)
        if found.format != FORMAT:
            raise FeatureStoreError(f"{path} is not a feature store of version {FORMAT}: {remedy}.")
        if len(set(found.frame_ids)) < len(found.frame_ids):
            raise FeatureStoreError(f"{path} names a frame twice in frame_ids: {remedy}.")
        return cls(**found.model_dump())


@dataclass(frozen=True)
class FrameFeatures:
    """Features of one frame: a table of distinct features and, for every place, the row that holds there."""

    index: UInt16[np.ndarray, "h w"]
    """Row of the table, or 65535 where there is no feature; any resolution that covers the whole frame."""
    table: Float[np.ndarray, "n D"]
    """Distinct features."""


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {prefix: content}
    flat = {}
    for name, value in content.items():
        flat.update(_flat(value, f"{prefix}.{name}" if prefix else str(name)))
    return flat


def store_root(scene: Scene, override: Path | None = None) -> Path:
    """Folder with the scene's feature stores, one below it per kind.

    Args:
        scene: The scene.
        override: A folder chosen by the user; it wins.

    Returns:
        ``SCENE/features`` where the scene's folder may be written to, else a folder in the user's cache.
    """
    if override is not None:
        return Path(override)
    return (scene.root if is_writable(scene.root) else user_cache_dir(scene.root)) / "features"


def _npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Header of an .npy file in a fixed number of bytes, so that the shape can be filled in at the end."""
    described = repr({"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
    room = _NPY_HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", room) + described.ljust(room - 1).encode("latin1") + b"\n"


def _write(file: io.FileIO, content: bytes) -> None:
    """Writes all of it: nothing stays in a buffer that a full disk would keep from ever being written."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _as_numpy(values: Tensor | np.ndarray) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _damaged(directory: Path, header: StoreHeader, name: str, reason: str) -> FeatureStoreError:
    """What to say of a store one of whose files is not what was written."""
    return FeatureStoreError(
        f"{directory / name} {reason}: remove {directory} and run `divff extract --sources {header.kind}` again."
    )


class FeatureStore:
    """A finished feature store, memory-mapped: what is not looked up is not read."""

    def __init__(self, directory: Path, header: StoreHeader, arrays: dict[str, np.ndarray]):
        self.directory = directory
        self.header = header
        # As plain arrays: a memmap's own indexing costs more at each look-up.
        self._table, self._offsets, self._index = (np.asarray(arrays[name]) for name in (TABLE, OFFSETS, INDEX))
        self._autoencoder: Autoencoder | None = None

    @classmethod
    def open(cls, directory: Path | str) -> FeatureStore:
        """Opens a store and checks that it is whole.

        Args:
            directory: Its folder.

        Raises:
            FeatureStoreError: If it is missing, or one of its files is truncated, does not fit the header, points
                beyond the table, or holds features that are not finite or, of a source of ours, not of unit length.
            CheckpointError: If the autoencoder of its codes cannot be read.
        """
        directory = Path(directory)
        header = StoreHeader.read(directory / HEADER)
        frames = len(header.frame_ids)
        refuse = partial(_damaged, directory, header)
        arrays: dict[str, np.ndarray] = {}
        name = TABLE
        try:
            for name, dtype, axes in ((TABLE, np.float16, 2), (OFFSETS, np.int64, 1), (INDEX, np.uint16, 3)):
                arrays[name] = open_array(directory / name, dtype, axes)
            sound, seal = checked_before(directory, (HEADER, TABLE, OFFSETS, INDEX))
            if not sound:
                name = OFFSETS
                check_offsets(arrays[OFFSETS], frames, len(arrays[TABLE]))
                name = INDEX
                height, width = header.image_size
                check_index(arrays[INDEX], arrays[OFFSETS], (height, width), 1 if header.shared_index else frames)
                name = TABLE
                if arrays[TABLE].shape[1] != header.dimension:
                    raise ArrayFaultError(f"does not hold features of length {header.dimension}")
                check_table(arrays[TABLE], header.is_of_unit_length)
                remember_checked(directory, seal)
        except FileNotFoundError:
            raise refuse(name, "is missing") from None
        except OSError as error:
            raise refuse(name, f"cannot be read ({error.strerror or error})") from None
        except ArrayFaultError as fault:
            raise refuse(name, str(fault)) from None
        store = cls(directory, header, arrays)
        if header.decoder is not None:
            if not (directory / header.decoder).is_file():
                raise refuse(header.decoder, "is missing")
            store._autoencoder = load_autoencoder(directory / header.decoder)
            if store._autoencoder.code_dim != header.dimension:
                raise refuse(header.decoder, f"does not decode codes of length {header.dimension}")
        return store

    @property
    def table(self) -> Float[np.ndarray, "R D"]:
        """The distinct features of all frames, memory-mapped, in half precision."""
        return self._table

    @property
    def dimension(self) -> int:
        """Length of a feature."""
        return self.header.dimension

    def __len__(self) -> int:
        return len(self.header.frame_ids)

    def lookup(
        self,
        frame: Int[Tensor, "n"] | np.ndarray,
        row: Int[Tensor, "n"] | np.ndarray,
        col: Int[Tensor, "n"] | np.ndarray,
    ) -> tuple[Float[Tensor, "n D"], Bool[Tensor, "n"]]:
        """Features at pixels of frames.

        Args:
            frame: Index of the frame in the scene.
            row: Pixel row in the scene's frame; its centre is looked up.
            col: Pixel column in the scene's frame.

        Returns:
            The features, zero where there is none, and where there is one.

        Raises:
            FeatureStoreError: If a place points to a row that its frame has not.
        """
        frame, row, col = _as_numpy(frame), _as_numpy(row), _as_numpy(col)
        height, width = self.header.image_size
        _, index_height, index_width = self._index.shape
        # The centre (row + 1/2) / height * index_height, in whole numbers: exact at every size.
        index_row = (2 * row.astype(np.int64) + 1) * index_height // (2 * height)
        index_col = (2 * col.astype(np.int64) + 1) * index_width // (2 * width)
        plane = np.zeros_like(frame) if self.header.shared_index else frame
        local = self._index[plane, index_row, index_col]
        valid = local != NO_FEATURE
        # One gather of all rays, in half precision: to pick those with a feature first costs more copies than it saves.
        rows = np.where(valid, self._offsets[frame] + local, 0)
        if np.any(valid & (rows >= self._offsets[frame + 1])):
            raise self._beyond()
        if len(self._table):
            found = np.take(self._table, rows, axis=0, mode="clip")
            found[~valid] = 0
        else:
            found = np.zeros((len(rows), self.dimension), np.float16)
        return torch.from_numpy(found).float(), torch.from_numpy(valid)

    def decode(self, features: Float[Tensor, "*bs D"]) -> Float[Tensor, "*bs E"]:
        """Embeddings of features of this store, or of rendered ones: decoded where they are an autoencoder's codes."""
        if self.header.decoder is None:
            return features
        if self._autoencoder is None:
            self._autoencoder = load_autoencoder(self.directory / self.header.decoder)
        return self._autoencoder.to(features.device).decode(features)

    def frame_features(self, i: int) -> tuple[UInt16[np.ndarray, "h w"], Float[np.ndarray, "n D"]]:
        """Index and table of the frame with index `i` in the scene; 65535 marks places without a feature.

        Raises:
            FeatureStoreError: If a place points to a row that the frame has not.
        """
        index = np.array(self._index[0 if self.header.shared_index else i])
        table = self._table[self._offsets[i] : self._offsets[i + 1]].astype(np.float32)
        if np.any((index != NO_FEATURE) & (index >= len(table))):
            raise self._beyond()
        return index, table

    def _beyond(self) -> FeatureStoreError:
        return _damaged(self.directory, self.header, INDEX, "points beyond the table of features")


class FeatureWriter:
    """Writes a store frame by frame; stopped at any moment, it goes on at the frame where it stopped.

    What is unfinished lies in a hidden folder beside the store and takes its place by a rename at the end. One writer
    at a time works on a store.
    """

    def __init__(
        self,
        directory: Path | str,
        header: StoreHeader,
        row_length: int | None = None,
        overwrite: bool = False,
        wait: bool = False,
    ):
        """Opens a new store, or one that was not finished.

        Args:
            directory: Folder of the store.
            header: What it will hold. A store that exists must have an equal header.
            row_length: Length of the rows that are appended, where `finish` reduces them to the header's dimension;
                None where they are kept as they are.
            overwrite: Throw away what exists and differs, or is damaged.
            wait: Wait while another writer is at it.

        Raises:
            FeatureStoreError: If what exists was made with other settings (it says which), another writer is at it, or
                there is no room for it.
        """
        self.directory = Path(directory)
        self.header = header
        self.row_length = row_length or header.dimension
        self._rows_name = TABLE if row_length is None else _ROWS
        self.finished = False
        self._offsets = [0]
        self._index_shape: tuple[int, int] | None = None
        self._files: list[io.FileIO] = []
        self._partial = self.directory.with_name(f".{self.directory.name}.partial")
        try:
            self._lock = take_lock(self.directory, self._busy, self._tell_waiting if wait else None)
        except OSError as error:
            raise FeatureStoreError(
                f"{self.directory} cannot be written ({error.strerror}): choose another folder with --output."
            ) from None
        try:
            with self._disk_faults():
                self._open(overwrite)
        except BaseException:
            self.close()
            raise

    @property
    def _busy(self) -> FeatureStoreError:
        return FeatureStoreError(
            f"Another extraction is writing {self.directory}: wait until it has ended, or give --wait."
        )

    def _tell_waiting(self) -> None:
        CONSOLE.print(f"Another extraction is writing {self.directory}; waiting until it has ended.", soft_wrap=True)

    @contextlib.contextmanager
    def _disk_faults(self) -> Iterator[None]:
        """Says in one sentence that a disk is full, or what else is wrong with it."""
        try:
            yield
        except OSError as error:
            kept = f"{len(self)} of {len(self.header.frame_ids)} frames are kept"
            remedy = "make room there" if error.errno in DISK_FULL else "mend that"
            raise FeatureStoreError(
                f"{self.directory} cannot be written ({error.strerror or error}); {kept}: {remedy} and run the same "
                "line again, which goes on behind them."
            ) from error

    def _open(self, overwrite: bool) -> None:
        if self.directory.exists():
            try:
                self._refuse_differences(self.directory)
                FeatureStore.open(self.directory)
            except FeatureStoreError:
                if not overwrite:
                    raise
            else:
                self.finished = True
                self._remove_remains()
                return
        if self._partial.exists():
            try:
                self._refuse_differences(self._partial)
            except FeatureStoreError:
                progress = self._partial / _PROGRESS
                if not overwrite and progress.exists() and progress.stat().st_size:
                    raise
                shutil.rmtree(self._partial)
        if self._partial.exists():
            remove_unfinished(self._partial)
        else:
            self._partial.mkdir()
            with atomic_path(self._partial / HEADER) as path:
                self.header.write(path)
        self._resume()

    def _refuse_differences(self, where: Path) -> None:
        differences = StoreHeader.read(where / HEADER).differences(self.header)
        if differences:
            raise FeatureStoreError(
                f"The features in {where} were extracted with other settings ({'; '.join(differences)}): "
                "choose another folder with --output, or replace them with --overwrite."
            )

    def _resume(self) -> None:
        """Opens the files behind the last frame that is whole in all of them."""

        for name in (_PROGRESS, self._rows_name, INDEX):
            path = self._partial / name
            path.touch()
            self._files.append(io.FileIO(path, "r+"))
        self._progress, self._rows, self._index = self._files
        records = self._progress.read()
        record = struct.calcsize(_RECORD)
        known = [struct.unpack_from(_RECORD, records, at) for at in range(0, len(records) - record + 1, record)]
        row_bytes, index_bytes = self._size(self._rows), self._size(self._index)
        for number, (end, height, width) in enumerate(known):
            planes = 1 if self.header.shared_index else number + 1
            if _NPY_HEADER_BYTES + end * self.row_length * 2 > row_bytes:
                break
            if _NPY_HEADER_BYTES + planes * height * width * 2 > index_bytes:
                break
            self._offsets.append(end)
            self._index_shape = (height, width)
        self._cut()

    def _cut(self) -> None:
        """Cuts off what lies behind the last whole frame."""
        ends = len(self) * struct.calcsize(_RECORD), self._rows_end, self._index_end
        for file, end in zip(self._files, ends, strict=True):
            file.truncate(end)
            file.seek(end)

    @staticmethod
    def _size(file: Any) -> int:
        return os.fstat(file.fileno()).st_size

    @property
    def _rows_end(self) -> int:
        return _NPY_HEADER_BYTES + self._offsets[-1] * self.row_length * 2

    @property
    def _index_end(self) -> int:
        if self._index_shape is None:
            return _NPY_HEADER_BYTES
        planes = 1 if self.header.shared_index else len(self)
        return _NPY_HEADER_BYTES + planes * self._index_shape[0] * self._index_shape[1] * 2

    def __len__(self) -> int:
        """Number of frames that are stored."""
        return len(self.header.frame_ids) if self.finished else len(self._offsets) - 1

    def append(self, features: FrameFeatures) -> None:
        """Stores the next frame's features.

        Raises:
            ValueError: If their shapes do not fit the store.
            FeatureStoreError: If they cannot be written; what was stored before stays.
        """
        table = np.ascontiguousarray(features.table, dtype=np.float16)
        index = np.ascontiguousarray(features.index, dtype=np.uint16)
        if table.ndim != 2 or table.shape[1] != self.row_length or len(table) > NO_FEATURE:
            raise ValueError(f"A table of shape {table.shape} does not fit rows of length {self.row_length}.")
        if index.ndim != 2 or self._index_shape not in (None, index.shape):
            raise ValueError(f"An index of shape {index.shape} does not fit {self._index_shape}.")
        used = index[index != NO_FEATURE]
        if used.size and used.max() >= len(table):
            raise ValueError(f"The index points beyond the {len(table)} rows of the table.")
        if not np.isfinite(table).all():
            raise ValueError("The features are not finite.")
        record = struct.pack(_RECORD, self._offsets[-1] + len(table), *index.shape)
        try:
            with self._disk_faults():
                _write(self._rows, table.tobytes())
                if self._index_shape is None or not self.header.shared_index:
                    _write(self._index, index.tobytes())
                _write(self._progress, record)
        except FeatureStoreError:
            self._cut()
            raise
        self._index_shape = index.shape[0], index.shape[1]
        self._offsets.append(self._offsets[-1] + len(table))

    def finish(self, reduce: Callable[[np.ndarray, Path], Iterable[np.ndarray]] | None = None) -> FeatureStore:
        """Completes the store and puts it in its place.

        Args:
            reduce: Turns all rows that were appended, (R, row_length), into the rows to keep, (R, D), chunk by chunk;
                it may put files that belong to them into the folder that it gets, too.

        Returns:
            The finished store.

        Raises:
            ValueError: If frames are missing, or rows shall be reduced that are not to be, or the other way round.
            FeatureStoreError: If it cannot be written; what was appended stays.
        """
        if self.finished:
            return FeatureStore.open(self.directory)
        if len(self) != len(self.header.frame_ids) or self._index_shape is None:
            raise ValueError(f"{len(self)} of {len(self.header.frame_ids)} frames are stored.")
        if (reduce is None) != (self._rows_name == TABLE):
            raise ValueError("Rows are reduced if, and only if, the writer was opened with their length.")
        with self._disk_faults():
            self._complete(reduce)
        self.finished = True
        return FeatureStore.open(self.directory)

    def _complete(self, reduce: Callable[[np.ndarray, Path], Iterable[np.ndarray]] | None) -> None:
        assert self._index_shape is not None
        self._head(self._rows, np.dtype(np.float16), (self._offsets[-1], self.row_length))
        planes = 1 if self.header.shared_index else len(self)
        self._head(self._index, np.dtype(np.uint16), (planes, *self._index_shape))
        if reduce is not None:
            self._reduce(reduce)
        with atomic_path(self._partial / OFFSETS) as path:
            np.save(path, np.asarray(self._offsets, dtype=np.int64))
        self._close_files()
        if self.directory.exists():
            shutil.rmtree(self._replaced, ignore_errors=True)
            self.directory.rename(self._replaced)
        self._partial.rename(self.directory)
        self._remove_remains()

    @property
    def _replaced(self) -> Path:
        return self.directory.with_name(f".{self.directory.name}.replaced")

    def _remove_remains(self) -> None:
        """Removes what a finished store does not need, and the store that it has replaced."""
        for name in (_PROGRESS, _ROWS):
            (self.directory / name).unlink(missing_ok=True)
        remove_unfinished(self.directory)
        shutil.rmtree(self._replaced, ignore_errors=True)

    @staticmethod
    def _head(file: Any, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        file.seek(0)
        _write(file, _npy_header(dtype, shape))
        os.fsync(file.fileno())

    def _reduce(self, reduce: Callable[[np.ndarray, Path], Iterable[np.ndarray]]) -> None:
        rows = 0
        with atomic_path(self._partial / TABLE) as path, io.FileIO(path, "w") as file:
            file.seek(_NPY_HEADER_BYTES)
            for chunk in reduce(
                np.load(self._partial / self._rows_name, mmap_mode="r", allow_pickle=False), self._partial
            ):
                _write(file, np.ascontiguousarray(chunk, dtype=np.float16).tobytes())
                rows += len(chunk)
            self._head(file, np.dtype(np.float16), (rows, self.header.dimension))

    def _close_files(self) -> None:
        for file in self._files:
            file.close()

    def close(self) -> None:
        """Lets go of the files; what is stored stays for the next writer."""
        self._close_files()
        self._lock.release()

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
