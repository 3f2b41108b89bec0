"""Square tiles over a picture: where they lie, their content, and the tile that is nearest to each pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8, UInt16


@dataclass(frozen=True)
class Tiles:
    """Tiles over pictures of one size.

    The picture is extended by half a tile on each side, so that the first tile has its centre in the picture's corner
    and each pixel lies near the centre of some tile.
    """

    height: int
    """Height of the picture in pixels."""
    width: int
    """Width of the picture in pixels."""
    size: int
    """Side of a tile in pixels."""
    stride: int
    """Pixels from one tile to the next."""

    @classmethod
    def of(cls, height: int, width: int, share: float, overlap: float) -> Tiles:
        """Tiles for a picture.

        Args:
            height: Height of the picture.
            width: Width of the picture.
            share: Side of a tile as a share of the height.
            overlap: Share of a tile that the next one covers, too.
        """
        size = max(2, int(share * height))
        return cls(height, width, size, max(1, round(size * (1 - overlap))))

    @property
    def rows(self) -> int:
        """Rows of tiles."""
        return self.height // self.stride + 1

    @property
    def columns(self) -> int:
        """Columns of tiles."""
        return self.width // self.stride + 1

    def index(self, lookup: Literal["nearest", "floor"] = "nearest") -> UInt16[np.ndarray, "height width"]:
        """Number of the tile that belongs to each pixel.

        Args:
            lookup: The tile whose centre is nearest to the pixel's, or the last whose centre is not behind it in either
                direction (DIV-FF).
        """
        whole = np.rint if lookup == "nearest" else np.floor
        row = whole((np.arange(self.height) + 0.5) / self.stride).clip(0, self.rows - 1)
        column = whole((np.arange(self.width) + 0.5) / self.stride).clip(0, self.columns - 1)
        return (row[:, None] * self.columns + column).astype(np.uint16)

    def cut(
        self, pictures: UInt8[np.ndarray, "n height width 3"], padding: Literal["edge", "black"] = "edge"
    ) -> UInt8[np.ndarray, "tiles n size size 3"]:
        """The content of every tile in each of several pictures.

        Args:
            pictures: The pictures.
            padding: What lies beyond them: the colour at their edge, or black.
        """
        before = self.size // 2
        after = self.size - before
        mode = "edge" if padding == "edge" else "constant"
        padded = np.pad(pictures, ((0, 0), (before, after), (before, after), (0, 0)), mode=mode)
        rows = np.arange(self.rows)[:, None] * self.stride + np.arange(self.size)
        columns = np.arange(self.columns)[:, None] * self.stride + np.arange(self.size)
        tiles = padded[:, rows[:, None, :, None], columns[None, :, None, :]]
        return tiles.transpose(1, 2, 0, 3, 4, 5).reshape(-1, len(pictures), self.size, self.size, 3)
