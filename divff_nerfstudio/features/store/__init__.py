"""Memory-mapped store of the features that are distilled: one folder per scene and kind of features.

A folder holds ``header.json`` (what was extracted, by what, see `StoreHeader`), ``table.npy`` (R, D) float16 with the
distinct features of all frames, ``offsets.npy`` (F + 1,) int64 with the first row of each frame in the table, and
``index.npy`` (F or 1, h, w) uint16 with each place's row within its frame's part of the table. The value 65535 says
that a place has no feature. A single index serves all frames where features lie on a fixed grid.
"""

from divff_nerfstudio.features.store.header import (
    HINTS,
    IMPORTED,
    NO_FEATURE,
    FeatureKind,
    FeatureStoreError,
    StoreHeader,
)
from divff_nerfstudio.features.store.reader import FeatureStore, finished_stores, store_root, stores_of
from divff_nerfstudio.features.store.resident import ResidentStore
from divff_nerfstudio.features.store.writer import FeatureWriter, FrameFeatures

__all__ = [
    "HINTS",
    "IMPORTED",
    "NO_FEATURE",
    "FeatureKind",
    "FeatureStore",
    "FeatureStoreError",
    "FeatureWriter",
    "FrameFeatures",
    "ResidentStore",
    "StoreHeader",
    "finished_stores",
    "store_root",
    "stores_of",
]
