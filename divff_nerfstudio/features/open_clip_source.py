"""The three feature sources that any model of open_clip can serve: segments, tiles of clips, and patches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8, UInt16
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from divff_nerfstudio.features.autoencoder import (
    AutoencoderConfig,
    load_autoencoder,
    save_autoencoder,
    train_autoencoder,
)
from divff_nerfstudio.features.clip_source import ClipSource, ClipSourceConfig
from divff_nerfstudio.features.encoder_loading import load_encoder
from divff_nerfstudio.features.encoders import Encoder, stretched
from divff_nerfstudio.features.outlines import OutlineSegmenterConfig
from divff_nerfstudio.features.patches import PatchConfig, PatchTokens
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.sam import SamSegmenterConfig
from divff_nerfstudio.features.segments import ColourSegmenterConfig, Segmenter
from divff_nerfstudio.features.sources import PreparedSource
from divff_nerfstudio.features.store import NO_FEATURE, FrameFeatures
from divff_nerfstudio.features.tiles import Tiles
from divff_nerfstudio.plugins import plugin_class
from divff_nerfstudio.schema import Share

AUTOENCODER = "autoencoder.pth"
_CHUNK = 4096
_SEGMENTERS = "sam", "colour", "outlines"


class OpenClipSource(PreparedSource):
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

    segmenter: str = "auto"
    """How segments are found: sam (SAM 2.1), outlines (by outlines learned from the demo's world, as the demo encoder),
    colour (by colour alone, no weights), or your own class, module:Class; auto: outlines with the demo encoder, else
    sam."""
    sam: SamSegmenterConfig = field(default_factory=SamSegmenterConfig)
    """Options of SAM 2.1."""
    colour: ColourSegmenterConfig = field(default_factory=ColourSegmenterConfig)
    """Options of the segmenter that goes by colour."""
    outlines: OutlineSegmenterConfig = field(default_factory=OutlineSegmenterConfig)
    """Options of the segmenter that goes by learned outlines."""
    masked_weight: Share = 0.75
    """Weight of the crop in which all but the segment is black; the segment's whole box has the rest (DIV-FF)."""
    min_share: Share = 0.002
    """Segments with less than this share of the picture have no feature (225 pixels of 456x256, as in DIV-FF)."""
    tiles: bool = False
    """Whether pixels without a segment take the feature of the tile around them; else they have none."""
    tile_share: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Side of such a tile, as a share of the picture's height."""
    codes: bool = False
    """Whether codes of an autoencoder are stored, which is trained on the scene's features and kept beside them; the
    field learns the codes, queries decode them (DIV-FF)."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """Options of the autoencoder."""


@dataclass(frozen=True)
class Crops:
    """Segments of a picture, cut out of it."""

    index: UInt16[np.ndarray, "h w"]
    """Segment of each pixel, then tile, if any; 65535 where there is neither."""
    masked: UInt8[Tensor, "segments 3 height width"]
    """Each segment on black, in the size of the encoder's input."""
    boxed: UInt8[Tensor, "segments 3 height width"]
    """Each segment's box."""
    tiles: UInt8[Tensor, "tiles 3 height width"]
    """Tiles around pixels that have no segment."""


class SegmentSource(OpenClipSource):
    """Image-language features, one per segment: what is it?"""

    kind = "image"
    name = "segments"
    negatives = ("object", "things", "stuff", "hands")
    frames_at_once = 4
    config: SegmentSourceConfig

    def __init__(
        self, pictures: Pictures, encoder: str, device: torch.device, config: SegmentSourceConfig | None = None
    ):
        super().__init__(pictures, encoder, device, config or SegmentSourceConfig())
        self.segmenter = self._make_segmenter().to(device)
        if self.config.codes:
            self.row_length = self.dimension
            self.dimension = self.config.autoencoder.encoder_widths[-1]
            self.decoder = AUTOENCODER

    def _make_segmenter(self) -> Segmenter:
        name = self.config.segmenter
        if name == "auto":
            name = "outlines" if self.encoder_name == "demo" else "sam"
        if name in _SEGMENTERS:
            return getattr(self.config, name).setup()
        made: Any = plugin_class(name, Segmenter, "segmenter", {}, _SEGMENTERS)
        return made()

    def settings(self) -> dict[str, Any]:
        """Options of segmenter, crops, tiles and codes, and which pictures they are cut from."""
        parts = ("segmenter", *_SEGMENTERS, "autoencoder")
        options = {key: value for key, value in asdict(self.config).items() if key not in parts}
        if self.config.codes:
            options["autoencoder"] = asdict(self.config.autoencoder)
            del options["autoencoder"]["_target"], options["autoencoder"]["feature_dim"]
        return {**options, "segmenter": self.segmenter.settings(), "video_frames": self.pictures.all_in_video}

    def prepare(self, frame: int) -> Crops | UInt8[np.ndarray, "h w 3"]:
        """The segments of a frame, cut out; the picture where the segmenter cannot work ahead."""
        picture = self.pictures.sharpest(frame)
        return self._crops(picture) if self.segmenter.ahead else picture

    def encode(self, prepared: Sequence[Crops | UInt8[np.ndarray, "h w 3"]]) -> Iterable[FrameFeatures]:
        """Features of the segments, in the resolution of the sharpest picture."""
        frames = [each if isinstance(each, Crops) else self._crops(each) for each in prepared]
        parts = [part for crops in frames for part in (crops.masked, crops.boxed, crops.tiles)]
        found, share = iter(self.encoder.encode_stretched(parts)), self.config.masked_weight
        for crops in frames:
            masked, boxed, tiles = (next(found) for _ in range(3))
            table = normalize(share * masked + (1 - share) * boxed, dim=-1)
            yield FrameFeatures(crops.index, torch.cat((table, tiles)).numpy())

    def _crops(self, picture: UInt8[np.ndarray, "h w 3"]) -> Crops:
        """Segments of a picture.

        Where segments overlap, the last is on top: the box of each is that of the pixels left to it, while its masked
        crop is of the whole.
        """
        masks = self.segmenter.masks(picture)
        masks = masks[masks.sum((1, 2)) >= max(1.0, self.config.min_share * masks[0].size)] if len(masks) else masks
        index = np.full(picture.shape[:2], NO_FEATURE, np.uint16)
        for number, mask in enumerate(masks):
            index[mask] = number
        seen = np.unique(index[index != NO_FEATURE])
        row = np.full(NO_FEATURE + 1, NO_FEATURE, np.uint16)
        row[seen] = np.arange(len(seen))
        size = self.encoder.input_size
        masked = stretched((masked_crop(picture, masks[number]) for number in seen), size)
        boxed = stretched((box_crop(picture, index == number) for number in seen), size)
        index, tiles = row[index], stretched((), size)
        if self.config.tiles and (index == NO_FEATURE).any():
            index, tiles = self._with_tiles(picture, index, len(seen))
        return Crops(index, masked, boxed, tiles)

    def reduce(self, rows: np.ndarray, folder: Path) -> Iterable[np.ndarray]:
        """Codes of all features, by an autoencoder that is trained on them."""
        path, state = folder / AUTOENCODER, folder / "autoencoder-training.pth"
        if not path.exists():
            options, epochs = self.config.autoencoder, self.config.autoencoder.epochs
            autoencoder = train_autoencoder(
                rows,
                options,
                self.device,
                report=lambda epoch, _: self.note(f"autoencoder, epoch {epoch}/{epochs}"),
                state=state,
            )
            save_autoencoder(autoencoder, path)
        state.unlink(missing_ok=True)
        autoencoder = load_autoencoder(path, self.device)
        for start in range(0, len(rows), _CHUNK):
            features = torch.from_numpy(rows[start : start + _CHUNK].astype(np.float32))
            yield autoencoder.encode(features.to(self.device)).cpu().numpy()

    def _with_tiles(
        self, picture: UInt8[np.ndarray, "h w 3"], index: UInt16[np.ndarray, "h w"], segments: int
    ) -> tuple[UInt16[np.ndarray, "h w"], UInt8[Tensor, "tiles 3 height width"]]:
        """The index with the tiles that fill its gaps, and these tiles."""
        tiles = Tiles.of(*picture.shape[:2], share=self.config.tile_share, overlap=0.5)
        nearest = tiles.index()
        empty = index == NO_FEATURE
        used, local = np.unique(nearest[empty], return_inverse=True)
        index = index.copy()
        index[empty] = segments + local
        return index, stretched(tiles.cut(picture[None])[used, 0], self.encoder.input_size)


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

    def resized(self, clips: UInt8[np.ndarray, "n length h w 3"]) -> UInt8[Tensor, "n length 3 height width"]:
        """Clips in the size of the model's input."""
        return self.encoder.stretched_clips(clips)

    def encode_resized(self, parts: Sequence[UInt8[Tensor, "_ length 3 h w"]]) -> list[Float[Tensor, "_ dim"]]:
        """Embeddings of such clips."""
        return self.encoder.encode_stretched_clips(parts)


@dataclass
class PatchSourceConfig(PatchConfig):
    """Options of the regulariser by a model of open_clip."""

    scale: Annotated[float, Field(gt=0, le=16)] = 2.0
    """Height at which a vision transformer sees the picture, over its usual one."""


class PatchSource(PatchTokens):
    """The regulariser by the image tower of a model of open_clip."""

    name = "patches"
    config: PatchSourceConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, pictures: Pictures, encoder: str, device: torch.device, config: PatchSourceConfig | None = None):
        super().__init__(pictures, encoder, device, config or PatchSourceConfig())
        self.encoder = load_encoder(encoder, device)
        self.model, self.fingerprint = encoder, self.encoder.fingerprint
        self.measure()

    def settings(self) -> dict[str, Any]:
        """Options of tokens and analysis, and which pictures they are made from."""
        return {
            "dimension": self.dimension,
            "scale": self.config.scale,
            "chunk": self.config.chunk,
            "video_frames": self.pictures.all_in_video,
        }

    def prepare(self, frame: int) -> UInt8[Tensor, "1 3 height width"]:
        """A frame's picture at the height that the tower sees."""
        return self.encoder.stretched_whole(self.pictures.sharpest(frame), self.config.scale)

    def tokens(self, pictures: UInt8[Tensor, "n 3 height width"]) -> Float[Tensor, "n rows columns length"]:
        """The tower's tokens over the whole of each picture."""
        return self.encoder.tokens(pictures)
