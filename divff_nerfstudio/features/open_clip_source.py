"""The three feature sources that any model of open_clip can serve: segments, tiles of clips, and patches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from sklearn.decomposition import IncrementalPCA
from torch import Tensor
from torch.nn.functional import normalize

from divff_nerfstudio.features.clip_source import ClipSource, ClipSourceConfig
from divff_nerfstudio.features.encoders import Encoder, load_encoder
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.segments import ColourSegmenterConfig
from divff_nerfstudio.features.sources import FeatureSource
from divff_nerfstudio.features.store import NO_FEATURE, FrameFeatures
from divff_nerfstudio.features.tiles import Tiles


class OpenClipSource(FeatureSource):
    """What the sources have in common that use a model of open_clip."""

    def __init__(self, pictures: Pictures, encoder: str, device: torch.device, config: Any = None):
        super().__init__(pictures, encoder, device, config)
        self.encoder: Encoder = load_encoder(encoder, device)
        self.model, self.fingerprint = encoder, self.encoder.fingerprint
        self.dimension = self.encoder.dimension

    def text_encoder(self) -> dict[str, Any] | None:
        """The same model's text tower."""
        return {"encoder": self.encoder_name, "fingerprint": self.fingerprint, "normalise": True}


@dataclass
class SegmentSourceConfig:
    """Options of the image-language features."""

    segmenter: ColourSegmenterConfig = field(default_factory=ColourSegmenterConfig)
    """How segments are found."""
    masked_weight: float = 0.75
    """Weight of the crop in which all but the segment is black; the segment's whole box has the rest (DIV-FF)."""
    min_share: float = 0.002
    """Segments with less than this share of the picture have no feature (225 pixels of 456x256, as in DIV-FF)."""
    tiles: bool = False
    """Whether pixels without a segment take the feature of the tile around them; else they have none."""
    tile_share: float = 0.3
    """Side of such a tile, as a share of the picture's height."""


class SegmentSource(OpenClipSource):
    """Image-language features, one per segment: what is it?"""

    kind = "image"
    name = "segments"
    negatives = ("object", "things", "stuff", "hands")
    config: SegmentSourceConfig

    def __init__(
        self, pictures: Pictures, encoder: str, device: torch.device, config: SegmentSourceConfig | None = None
    ):
        super().__init__(pictures, encoder, device, config or SegmentSourceConfig())
        self.segmenter = self.config.segmenter.setup()

    def settings(self) -> dict[str, Any]:
        """Options of segmenter, crops and tiles, and which pictures they are cut from."""
        options = {key: value for key, value in asdict(self.config).items() if key != "segmenter"}
        return {**options, "segmenter": self.segmenter.settings(), "video_frames": self.pictures.all_in_video}

    def extract(self, frame: int) -> FrameFeatures:
        """Features of the segments, in the resolution of the sharpest picture."""
        picture = self.pictures.sharpest(frame)
        segments = self.segmenter.segment(picture)
        areas = np.bincount(segments[segments >= 0], minlength=1)
        kept = np.flatnonzero(areas >= max(1.0, self.config.min_share * segments.size))
        row = np.full(len(areas) + 1, NO_FEATURE, np.uint16)
        row[kept] = np.arange(len(kept))
        index = row[segments]
        masks = [segments == number for number in kept]
        masked = self.encoder.encode_images([masked_crop(picture, mask) for mask in masks])
        boxed = self.encoder.encode_images([box_crop(picture, mask) for mask in masks])
        share = self.config.masked_weight
        table = normalize(share * masked + (1 - share) * boxed, dim=-1).numpy()
        if self.config.tiles and (index == NO_FEATURE).any():
            index, table = self._with_tiles(picture, index, table)
        return FrameFeatures(index, table)

    def _with_tiles(self, picture: np.ndarray, index: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tiles = Tiles.of(*picture.shape[:2], share=self.config.tile_share, overlap=0.5)
        nearest = tiles.index()
        empty = index == NO_FEATURE
        used, local = np.unique(nearest[empty], return_inverse=True)
        index = index.copy()
        index[empty] = len(table) + local
        found = self.encoder.encode_images(tiles.cut(picture[None])[used, 0])
        return index, np.concatenate([table, found.numpy()])


def masked_crop(picture: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "s s 3"]:
    """A segment on black, padded to a square."""
    rows, columns = _box(mask)
    crop = picture[rows, columns] * mask[rows, columns, None]
    height, width = crop.shape[:2]
    side = max(height, width)
    square = np.zeros((side, side, 3), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = crop
    return square


def box_crop(picture: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "bh bw 3"]:
    """The box around a segment, with all that it shows."""
    return picture[_box(mask)]


def _box(mask: Bool[np.ndarray, "h w"]) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


class TileSource(OpenClipSource, ClipSource):
    """Video-language features of a model of open_clip: of its tower for clips, or the mean over a clip's pictures."""

    name = "clip-tiles"
    config: ClipSourceConfig

    def __init__(self, pictures: Pictures, encoder: str, device: torch.device, config: ClipSourceConfig | None = None):
        super().__init__(pictures, encoder, device, config or ClipSourceConfig())

    def encode_clips(self, clips: UInt8[np.ndarray, "n length height width 3"]) -> Float[Tensor, "n dim"]:
        """Embeddings of clips."""
        return self.encoder.encode_clips(clips)


@dataclass
class PatchSourceConfig:
    """Options of the regulariser."""

    dimension: int = 64
    """Length of a feature after the principal component analysis (at most the model's own)."""
    scale: float = 2.0
    """Height at which a vision transformer sees the picture, over its usual one."""
    chunk: int = 4096
    """Rows that the analysis looks at in one go."""


class PatchSource(OpenClipSource):
    """The regulariser: the image tower's patch tokens, their principal components over all frames, of unit length."""

    kind = "regulariser"
    name = "patches"
    shared_index = True
    config: PatchSourceConfig

    def __init__(self, pictures: Pictures, encoder: str, device: torch.device, config: PatchSourceConfig | None = None):
        super().__init__(pictures, encoder, device, config or PatchSourceConfig())
        self.row_length = self._tokens(0).shape[-1]
        self.dimension = min(self.config.dimension, self.row_length)

    def text_encoder(self) -> None:
        """None: no words belong to patch tokens."""

    def settings(self) -> dict[str, Any]:
        """Options of tokens and analysis, and which pictures they are made from."""
        return {
            "dimension": self.dimension,
            "scale": self.config.scale,
            "chunk": self.config.chunk,
            "video_frames": self.pictures.all_in_video,
        }

    def extract(self, frame: int) -> FrameFeatures:
        """Tokens of a frame, not yet reduced."""
        tokens = self._tokens(frame)
        rows, columns, length = tokens.shape
        index = np.arange(rows * columns, dtype=np.uint16).reshape(rows, columns)
        return FrameFeatures(index, tokens.reshape(-1, length).numpy())

    def reduce(self, rows: np.ndarray) -> Iterable[np.ndarray]:
        """One principal component analysis for all frames; then every row in it, of unit length."""
        analysis = IncrementalPCA(self.dimension)
        chunks = list(self._chunks(len(rows)))
        for chunk in chunks:
            analysis.partial_fit(rows[chunk].astype(np.float32))
        for chunk in chunks:
            reduced = torch.from_numpy(analysis.transform(rows[chunk].astype(np.float32)))
            yield normalize(reduced, dim=-1).numpy()

    def _chunks(self, count: int) -> Iterable[slice]:
        """Slices that are all at least as long as the analysis needs."""
        starts = list(range(0, max(1, count - self.dimension + 1), max(self.config.chunk, self.dimension)))
        return (slice(start, end) for start, end in zip(starts, [*starts[1:], count], strict=True))

    def _tokens(self, frame: int) -> torch.Tensor:
        return self.encoder.patch_tokens(self.pictures.sharpest(frame), self.config.scale)
