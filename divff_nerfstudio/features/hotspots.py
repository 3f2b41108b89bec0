"""Interaction hotspots: the feature of a whole clip, at the pixels where a hand meets an object (DIV-FF)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from jaxtyping import Bool, UInt8, UInt16

from divff_nerfstudio.data.detections import FILE, Box, scene_detections
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.clip_source import ClipSource
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.sources import PreparedSource, source_class
from divff_nerfstudio.features.store import NO_FEATURE, FrameFeatures
from divff_nerfstudio.schema import Size, Weight


def hotspot_mask(
    boxes: Sequence[Box], box_size: tuple[int, int], height: int, width: int
) -> Bool[np.ndarray, "height width"]:
    """The pixels whose centres lie in one of several boxes.

    Args:
        boxes: The boxes.
        box_size: Width and height of the picture that they were found in.
        height: Height of the mask.
        width: Width of the mask.
    """
    mask = np.zeros((height, width), bool)
    x = (np.arange(width) + 0.5) * box_size[0] / width
    y = (np.arange(height) + 0.5) * box_size[1] / height
    for x0, y0, x1, y1 in boxes:
        mask |= ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
    return mask


@dataclass
class HotspotSourceConfig:
    """Options of the interaction hotspots."""

    boxes: Path | None = None
    """File of detected hands and objects; None: SCENE/hand_obj_detections.json."""
    box_size: tuple[Size, Size] = (456, 256)
    """Width and height of the pictures that the boxes were found in."""
    margin: Weight = 10.0
    """How far hotspots are grown to all sides, in pixels of these pictures (DIV-FF)."""
    video: str = "egovideo"
    """Source that makes the clips' features; the video-language features must be the same one's."""
    clips: tyro.conf.Suppress[Any] = None
    """Options of that source; set to those given for it."""


class HotspotSource(PreparedSource):
    """A further target of the video-language features: the whole clip's, where a hand meets an object.

    Args:
        pictures: Pictures of the scene.
        encoder: Model of open_clip, where the clips' source uses one.
        device: Device to compute on.
        config: Options.

    Raises:
        DivffError: If there are no boxes, or the clips' source cannot be used.
    """

    kind = "hotspot"
    name = "hotspot"
    frames_at_once = 32
    config: HotspotSourceConfig

    def __init__(
        self, pictures: Pictures, encoder: str, device: torch.device, config: HotspotSourceConfig | None = None
    ):
        super().__init__(pictures, encoder, device, config or HotspotSourceConfig())
        path = self.config.boxes or pictures.scene.root / FILE
        size = self.config.box_size
        self.detections = scene_detections(pictures.scene, path, size, "--hotspot.boxes", "--hotspot.box-size")
        self._boxes = hashlib.sha256(path.read_bytes()).hexdigest()
        made = source_class(self.config.video)
        if not issubclass(made, ClipSource):
            raise DivffError(f"{self.config.video} makes no features of clips: name another with --hotspot.video.")
        self.clips = made(pictures, encoder, device, self.config.clips)
        self.model, self.fingerprint, self.dimension = self.clips.model, self.clips.fingerprint, self.clips.dimension

    def settings(self) -> dict[str, Any]:
        """The boxes and their options, and those of the clips' source."""
        return {
            "boxes": self._boxes,
            "box_size": list(self.config.box_size),
            "margin": self.config.margin,
            "video": self.clips.name,
            "clips": self.clips.settings(),
        }

    def looks_at(self) -> str:
        """That of what clips are cut from."""
        return self.clips.looks_at()

    def prepare(self, frame: int) -> tuple[UInt16[np.ndarray, "h w"], UInt8[np.ndarray, "clips length h w 3"] | None]:
        """Where there is a hotspot in a frame, and the clip that starts there, if there is one."""
        scene = self.pictures.scene
        index = np.full((scene.height, scene.width), NO_FEATURE, np.uint16)
        found = self.detections.get(int(scene.video_numbers[frame]))
        boxes = () if found is None else found.hotspots(self.config.margin)
        mask = hotspot_mask(boxes, self.config.box_size, scene.height, scene.width)
        if not mask.any():
            return index, None
        index[mask] = 0
        return index, self.clips.clip(frame)[None]

    def encode(
        self, prepared: Sequence[tuple[UInt16[np.ndarray, "h w"], UInt8[np.ndarray, "clips length h w 3"] | None]]
    ) -> Iterable[FrameFeatures]:
        """The feature of each clip, where there is a hotspot in the frame."""
        clips = [clip for _, clip in prepared if clip is not None]
        found = iter(self.clips.encode_clips(np.concatenate(clips)).numpy() if clips else ())
        nothing = np.zeros((0, self.dimension), np.float32)
        return [FrameFeatures(index, nothing if clip is None else next(found)[None]) for index, clip in prepared]
