"""A finished feature store, looked up by pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, UInt16
from torch import Tensor

from divff_nerfstudio.arrays import ArrayFaultError, open_array
from divff_nerfstudio.cache_dirs import features_dir
from divff_nerfstudio.features.autoencoder import Autoencoder, load_autoencoder
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.store.checks import (
    check_hints,
    check_index,
    check_offsets,
    check_table,
    checked_before,
    remember_checked,
    seal_of,
)
from divff_nerfstudio.features.store.header import (
    HEADER,
    HINTS,
    INDEX,
    NO_FEATURE,
    OFFSETS,
    TABLE,
    FeatureStoreError,
    StoreHeader,
)

if TYPE_CHECKING:
    from divff_nerfstudio.data.scene import SceneFolder

_FILES = (HEADER, TABLE, OFFSETS, INDEX)


def store_root(scene: SceneFolder, override: Path | None = None) -> Path:
    """Folder with the scene's feature stores, one below it per kind.

    Args:
        scene: The scene.
        override: A folder chosen by the user; it wins.

    Returns:
        ``SCENE/features`` where the scene's folder may be written to, else a folder in the user's cache.
    """
    if override is not None:
        return Path(override)
    return features_dir(scene.root)


def finished_stores(root: Path) -> list[Path]:
    """Folders of the finished stores in a root, by name; what an extraction has left hidden does not count."""
    return sorted(path.parent for path in root.glob("*/header.json") if not path.parent.name.startswith("."))


def stores_of(scene_root: Path, override: Path | None = None) -> dict[str, Path]:
    """Folders of a scene's finished stores by name.

    Args:
        scene_root: Folder of the scene.
        override: The only folder that is looked in; None: ``SCENE/features`` and, before it where the scene's folder
            may not be written to, the one in the user's cache.
    """
    roots = (scene_root / "features", features_dir(scene_root)) if override is None else (override,)
    return {folder.name: folder for root in roots for folder in finished_stores(root)}


_Places = TypeVar("_Places", np.ndarray, Tensor)


def place_in(shape: Sequence[int], size: Sequence[int], row: _Places, col: _Places) -> tuple[_Places, _Places]:
    """Row and column of pixels' centres in an index, in whole numbers: exact at every size.

    Args:
        shape: Of the index: planes, rows, columns.
        size: Height and width of the picture.
        row: Row of each pixel.
        col: Its column.
    """
    (_, rows, columns), (height, width) = shape, size
    places = (2 * row + 1) * rows // (2 * height), (2 * col + 1) * columns // (2 * width)
    return cast("tuple[_Places, _Places]", places)  # torch declares no type of a floor division


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
        self._decoders: dict[torch.device, Autoencoder] = {}
        self._decoding = Lock()

    @classmethod
    def open(cls, directory: Path | str) -> FeatureStore:
        """Opens a store and checks that it is whole.

        Args:
            directory: Its folder.

        Raises:
            FeatureStoreError: If it is missing, or one of its files is truncated, does not fit the header, points
                beyond the table, or holds features that are not finite or, of a source of ours, not of unit length, or
                hints that are none.
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
            seal = seal_of(directory, _FILES)
            if not checked_before(directory, seal):
                name = OFFSETS
                check_offsets(arrays[OFFSETS], frames, len(arrays[TABLE]))
                name = INDEX
                height, width = header.image_size
                check_index(arrays[INDEX], arrays[OFFSETS], (height, width), 1 if header.shared_index else frames)
                name = TABLE
                if arrays[TABLE].shape[1] != header.dimension:
                    raise ArrayFaultError(f"does not hold features of length {header.dimension}")
                check_table(arrays[TABLE], header.is_of_unit_length)
                if header.kind == HINTS:
                    check_hints(arrays[TABLE])
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
            decoder = load_autoencoder(directory / header.decoder)
            if decoder.code_dim != header.dimension:
                raise refuse(header.decoder, f"does not decode codes of length {header.dimension}")
            store._decoders[torch.device("cpu")] = decoder
        return store

    @property
    def seal(self) -> str:
        """Changes with the content, by sizes and times of the files."""
        return seal_of(self.directory, _FILES)

    def other_frames(self, scene: SceneFolder) -> str | None:
        """From which other frames than a scene's its features are, in words; None if from the same."""
        height, width = self.header.image_size
        if (height, width) != (scene.height, scene.width):
            return f"from frames of {width}x{height} where those of {scene.root} are {scene.width}x{scene.height}"
        if self.header.frame_ids != scene.frame_ids.tolist():
            return f"from other frames than {scene.root / 'meta.json'} names"
        pictures = Pictures(scene)
        if self.header.pictures in (None, pictures.frames_digest):
            return None
        if pictures.has_video and self.header.pictures != pictures.video_digest:  # one taken away tells nothing
            return f"from other pictures than those that lie in {scene.root} now"
        return None

    @property
    def table(self) -> Float[np.ndarray, "R D"]:
        """The distinct features of all frames, memory-mapped, in half precision."""
        return self._table

    @property
    def offsets(self) -> Int64[np.ndarray, "frames+1"]:
        """Where each frame's rows of the table begin, and the end of the last."""
        return self._offsets

    @property
    def index(self) -> UInt16[np.ndarray, "planes h w"]:
        """Each frame's index, or one that all share; see `FrameFeatures`."""
        return self._index

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
        whole = row.astype(np.int64), col.astype(np.int64)
        index_row, index_col = place_in(self._index.shape, self.header.image_size, *whole)
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
        with self._decoding:  # threads decode on several devices
            decoder = self._decoders.get(features.device)
            if decoder is None:
                decoder = load_autoencoder(self.directory / self.header.decoder).to(features.device)
                self._decoders[features.device] = decoder
        return decoder.decode(features)

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
