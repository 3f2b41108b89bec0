"""Interaction hotspots: the feature of a whole clip, at the pixels where a hand meets an object (DIV-FF)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from jaxtyping import Bool

from divff_nerfstudio.features.clip_source import ClipSource
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.sources import FeatureSource, source_class
from divff_nerfstudio.features.store import NO_FEATURE, FrameFeatures
from divff_nerfstudio.files import DivffError
from divff_nerfstudio.schema import Size, Weight

FILE = "hand_obj_detections.json"
_HANDS = ("left_hand", "right_hand")
Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge, in pixels from the picture's top left corner."""


class DetectionsError(DivffError):
    """A file of detected hands and objects is missing or malformed, or belongs to another video."""


@dataclass(frozen=True)
class Detections:
    """What a detector has found in one frame."""

    hands: tuple[Box, ...]
    """Boxes of the hands, at most two."""
    objects: tuple[Box, ...]
    """Boxes of the objects."""

    def hotspots(self, margin: float) -> tuple[Box, ...]:
        """Boxes of the places where hands meet objects: what the boxes of both share, grown to all sides.

        A hand that meets nothing marks its own box, grown alike.

        Args:
            margin: How far, in the boxes' pixels.
        """
        found: list[Box] = []
        for hand in self.hands:
            shared = [_shared(hand, other) for other in self.objects]
            found += [box for box in shared if box[0] < box[2] and box[1] < box[3]] or [hand]
        return tuple((x0 - margin, y0 - margin, x1 + margin, y1 + margin) for x0, y0, x1, y1 in found)


def read_detections(path: Path) -> dict[int, Detections]:
    """Reads detected hands and objects, as EPIC-Diff's annotations of contact have them.

    Args:
        path: JSON list of dictionaries with "frame_number" (of the video, zero-padded text or a number), "left_hand"
            and "right_hand" (a box or null) and "objects" (boxes); a box is left, top, right, bottom.

    Returns:
        What was found, by the video's frame number.

    Raises:
        DetectionsError: If it is missing or has another form; the message names the place.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DetectionsError(
            f"{path} is missing: put a detector's boxes of hands and objects there, or name their file with "
            "--hotspot.boxes."
        ) from None
    except (OSError, ValueError) as error:
        raise DetectionsError(f"{path} is not readable JSON ({error}): write it anew.") from None
    if not isinstance(content, list):
        raise DetectionsError(f"{path} holds no list: write one dictionary for each frame.")
    found: dict[int, Detections] = {}
    for place, entry in enumerate(content):
        try:
            number = int(entry["frame_number"])
            hands = tuple(_box(entry[name]) for name in _HANDS if entry.get(name) is not None)
            objects = tuple(_box(box) for box in entry.get("objects") or ())
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DetectionsError(
                f"{path} has an entry {place} that is no frame_number with left_hand, right_hand and objects as boxes "
                f"of left, top, right, bottom ({error}): mend it."
            ) from None
        if number in found:
            raise DetectionsError(f"{path} has frame {number} twice: take one entry away.")
        found[number] = Detections(hands, objects)
    return found


def _box(values: Sequence[float]) -> Box:
    x0, y0, x1, y1 = (float(value) for value in values)
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 < x0 or y1 < y0:
        raise ValueError(f"{values} is no box")
    return x0, y0, x1, y1


def _shared(one: Box, other: Box) -> Box:
    """What two boxes share; its edges change places where they share nothing."""
    return max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])


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


class HotspotSource(FeatureSource):
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
    config: HotspotSourceConfig

    def __init__(
        self, pictures: Pictures, encoder: str, device: torch.device, config: HotspotSourceConfig | None = None
    ):
        super().__init__(pictures, encoder, device, config or HotspotSourceConfig())
        path = self.config.boxes or pictures.scene.root / FILE
        self.detections = read_detections(path)
        numbers = pictures.scene.video_numbers.tolist()
        if not any(number in self.detections for number in numbers):
            raise DetectionsError(
                f"{path} has none of the scene's frames ({numbers[0]} to {numbers[-1]} of the video): name the boxes "
                "of this video with --hotspot.boxes."
            )
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

    def extract(self, frame: int) -> FrameFeatures:
        """The feature of the clip that starts at a frame, where there is a hotspot in the frame."""
        scene = self.pictures.scene
        index = np.full((scene.height, scene.width), NO_FEATURE, np.uint16)
        found = self.detections.get(int(scene.video_numbers[frame]))
        boxes = () if found is None else found.hotspots(self.config.margin)
        mask = hotspot_mask(boxes, self.config.box_size, scene.height, scene.width)
        if not mask.any():
            return FrameFeatures(index, np.zeros((0, self.dimension), np.float32))
        index[mask] = 0
        return FrameFeatures(index, self.clips.encode_clips(self.clips.clip(frame)[None]).numpy())
