"""What video-language sources have in common: clips of the video, cut into tiles."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8, UInt16
from nerfstudio.utils.rich_utils import CONSOLE
from pydantic import Field
from torch import Tensor

from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.sources import PreparedSource
from divff_nerfstudio.features.store import FrameFeatures
from divff_nerfstudio.features.tiles import Tiles
from divff_nerfstudio.schema import Size


@dataclass
class ClipSourceConfig:
    """Options of clips and tiles."""

    clip_length: Size = 4
    """Pictures of a clip."""
    clip_stride: Size = 8
    """Video frames from one picture of a clip to the next."""
    tile_share: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Side of a tile, as a share of the picture's height."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a tile that the next one covers, too."""
    lookup: Literal["nearest", "floor"] = "nearest"
    """Tile of a pixel: the nearest, or the one before it in both directions, which is what DIV-FF's published fields
    learnt."""
    padding: Literal["edge", "black"] = "edge"
    """What tiles show beyond the picture: its edge's colour, or black as in DIV-FF."""


class ClipSource(PreparedSource):
    """Video-language features, one per tile of a clip: what is done here?

    A subclass loads its model and implements `encode_clips`.
    """

    kind = "video"
    negatives = ("general task", "undistic movement", "unclear action", "background")
    shared_index = True
    frames_at_once = 8
    config: ClipSourceConfig

    def __init__(self, pictures: Pictures, encoder: str, device: torch.device, config: ClipSourceConfig):
        super().__init__(pictures, encoder, device, config)
        if not pictures.has_video:
            scene = pictures.scene
            CONSOLE.print(
                f"[yellow]{scene.video_dir} has no video frames: clips are made of the sampled frames nearest in time."
            )

    @abstractmethod
    def encode_clips(self, clips: UInt8[np.ndarray, "n length height width 3"]) -> Float[Tensor, "n dim"]:
        """Embeddings of unit length of clips, single precision, on the CPU."""

    def settings(self) -> dict[str, Any]:
        """Options of clips and tiles, and which pictures they are cut from."""
        options = {entry.name: getattr(self.config, entry.name) for entry in fields(ClipSourceConfig)}
        return {**options, "video_frames": self.pictures.has_video}

    def looks_at(self) -> str:
        """That of the frames, and of the video's files between them."""
        return self.pictures.video_digest

    def clip(self, frame: int) -> UInt8[np.ndarray, "length height width 3"]:
        """The clip that starts at the frame with this index."""
        return self.pictures.clip(frame, self.config.clip_length, self.config.clip_stride)

    def prepare(self, frame: int) -> tuple[UInt16[np.ndarray, "h w"], Any]:
        """Tile of each pixel, and the tiles of the clip that starts at a frame."""
        clip, config = self.clip(frame), self.config
        tiles = Tiles.of(*clip.shape[1:3], share=config.tile_share, overlap=config.overlap)
        return tiles.index(config.lookup), self.resized(tiles.cut(clip, config.padding))

    def encode(self, prepared: Sequence[tuple[UInt16[np.ndarray, "h w"], Any]]) -> Iterable[FrameFeatures]:
        """Features of the tiles."""
        found = self.encode_resized([clips for _, clips in prepared])
        return [FrameFeatures(index, table.numpy()) for (index, _), table in zip(prepared, found, strict=True)]

    def resized(self, clips: UInt8[np.ndarray, "n length height width 3"]) -> Any:
        """Clips as `encode_resized` wants them: as they are, where the model's device resizes them."""
        return clips

    def encode_resized(self, parts: Sequence[Any]) -> Iterable[Float[Tensor, "n dim"]]:
        """Embeddings of the clips of several frames, each as `resized` has left it."""
        return self.encode_clips(np.concatenate(parts)).split([len(part) for part in parts])
