"""Writing of a feature store, frame by frame, so that it goes on where it was stopped."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt16
from nerfstudio.utils.rich_utils import CONSOLE

from divff_nerfstudio.arrays import open_array
from divff_nerfstudio.atomic import atomic_path, remove_unfinished
from divff_nerfstudio.errors import DISK_FULL
from divff_nerfstudio.features.store.growing import PROGRESS, GrowingFiles, write_rows
from divff_nerfstudio.features.store.header import HEADER, NO_FEATURE, OFFSETS, TABLE, FeatureStoreError, StoreHeader
from divff_nerfstudio.features.store.reader import FeatureStore
from divff_nerfstudio.locks import take_lock

_ROWS = "rows.npy"
_MAX_TOLD = 4
"""So many differing settings are named."""
_MAX_LENGTH = 100
"""Characters of each."""


def _least_telling(difference: str) -> tuple[bool, bool]:
    """Orders differences of settings: what source and model, then plain values, then what is long, as digests are."""
    return not difference.startswith(("source: ", "model: ")), len(difference) > _MAX_LENGTH


@dataclass(frozen=True)
class FrameFeatures:
    """Features of one frame: a table of distinct features and, for every place, the row that holds there."""

    index: UInt16[np.ndarray, "h w"]
    """Row of the table, or 65535 where there is no feature; any resolution that covers the whole frame."""
    table: Float[np.ndarray, "n D"]
    """Distinct features."""


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
        self._files: GrowingFiles | None = None
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
                progress = self._partial / PROGRESS
                if not overwrite and progress.exists() and progress.stat().st_size:
                    raise
                shutil.rmtree(self._partial)
        if self._partial.exists():
            remove_unfinished(self._partial)
        else:
            self._partial.mkdir()
            with atomic_path(self._partial / HEADER) as path:
                self.header.write(path)
        self._files = GrowingFiles(self._partial, self._rows_name, self.row_length, self.header.shared_index)

    def _refuse_differences(self, where: Path) -> None:
        differences = StoreHeader.read(where / HEADER).differences(self.header)
        if differences:
            told = sorted(differences, key=_least_telling)
            told = [each if len(each) <= _MAX_LENGTH else f"{each[:_MAX_LENGTH]}..." for each in told]
            more = f"; and {len(told) - _MAX_TOLD} more" if len(told) > _MAX_TOLD else ""
            raise FeatureStoreError(
                f"The features in {where} were extracted with other settings ({'; '.join(told[:_MAX_TOLD])}{more}): "
                "choose another folder with --output, or replace them with --overwrite."
            )

    def __len__(self) -> int:
        """Number of frames that are stored."""
        return len(self.header.frame_ids) if self.finished else len(self._files or ())

    def append(self, features: FrameFeatures) -> None:
        """Stores the next frame's features.

        Raises:
            ValueError: If their shapes do not fit the store.
            FeatureStoreError: If they cannot be written; what was stored before stays.
        """
        assert self._files is not None
        table = np.ascontiguousarray(features.table, dtype=np.float16)
        index = np.ascontiguousarray(features.index, dtype=np.uint16)
        if table.ndim != 2 or table.shape[1] != self.row_length or len(table) > NO_FEATURE:
            raise ValueError(f"A table of shape {table.shape} does not fit rows of length {self.row_length}.")
        if index.ndim != 2 or self._files.index_shape not in (None, index.shape):
            raise ValueError(f"An index of shape {index.shape} does not fit {self._files.index_shape}.")
        used = index[index != NO_FEATURE]
        if used.size and used.max() >= len(table):
            raise ValueError(f"The index points beyond the {len(table)} rows of the table.")
        if not np.isfinite(table).all():
            raise ValueError("The features are not finite.")
        with self._disk_faults():
            self._files.append(table, index)

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
        if self._files is None or len(self) != len(self.header.frame_ids):
            raise ValueError(f"{len(self)} of {len(self.header.frame_ids)} frames are stored.")
        if (reduce is None) != (self._rows_name == TABLE):
            raise ValueError("Rows are reduced if, and only if, the writer was opened with their length.")
        with self._disk_faults():
            self._complete(self._files, reduce)
        self.finished = True
        return FeatureStore.open(self.directory)

    def _complete(self, files: GrowingFiles, reduce: Callable[[np.ndarray, Path], Iterable[np.ndarray]] | None) -> None:
        files.complete()
        if reduce is not None:
            rows = open_array(self._partial / self._rows_name, np.float16, 2)
            with atomic_path(self._partial / TABLE) as path:
                write_rows(path, reduce(rows, self._partial), self.header.dimension)
            del rows  # Windows renames no folder of which a file is mapped
        with atomic_path(self._partial / OFFSETS) as path:
            np.save(path, np.asarray(files.offsets, dtype=np.int64))
        files.close()
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
        for name in (PROGRESS, _ROWS):
            (self.directory / name).unlink(missing_ok=True)
        remove_unfinished(self.directory)
        shutil.rmtree(self._replaced, ignore_errors=True)

    def close(self) -> None:
        """Lets go of the files; what is stored stays for the next writer."""
        if self._files is not None:
            self._files.close()
        self._lock.release()

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
