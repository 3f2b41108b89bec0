"""A feature store in the memory of a device, which is looked up there."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from divff_nerfstudio.features.store.header import NO_FEATURE
from divff_nerfstudio.features.store.reader import FeatureStore, place_in


class ResidentStore:
    """Looks up features of a store as `FeatureStore.lookup` does, without a word to the host.

    Args:
        store: The store, whose index was checked when it was opened.
        device: Where its tables shall be.
    """

    def __init__(self, store: FeatureStore, device: torch.device | str):
        self._size = store.header.image_size
        self._shared = store.header.shared_index
        self._none = len(store.table)
        # A row of zeros behind all others is what places without a feature get.
        table = np.concatenate((store.table, np.zeros((1, store.dimension), np.float16)))
        self._table = torch.from_numpy(table).to(device)
        self._index = torch.from_numpy(store.index.view(np.int16)).to(device)  # of 16 bits, whose sign is none
        self._offsets = torch.from_numpy(np.array(store.offsets)).to(device)

    @staticmethod
    def bytes_of(store: FeatureStore) -> int:
        """Memory that a store takes."""
        return store.table.nbytes + store.index.nbytes + store.offsets.nbytes

    def lookup(
        self, frame: Int[Tensor, "n"], row: Int[Tensor, "n"], col: Int[Tensor, "n"]
    ) -> tuple[Float[Tensor, "n D"], Bool[Tensor, "n"]]:
        """Features at pixels of frames, single precision, zero where there is none, and where there is one.

        Args:
            frame: Index of the frame in the scene.
            row: Pixel row in the scene's frame; its centre is looked up.
            col: Pixel column in the scene's frame.
        """
        index_row, index_col = place_in(self._index.shape, self._size, row, col)
        plane = torch.zeros_like(frame) if self._shared else frame
        local = self._index[plane, index_row, index_col].long() & NO_FEATURE
        valid = local != NO_FEATURE
        rows = torch.where(valid, self._offsets[frame] + local, self._none)
        return self._table[rows].float(), valid
