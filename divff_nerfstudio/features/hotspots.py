"""Interaction hotspots: the feature of a whole clip, at the pixels where a hand meets an object (DIV-FF)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from jaxtyping import Bool
from pydantic import Field

from divff_nerfstudio.features.clip_source import ClipSource
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.sources import FeatureSource, source_class
from divff_nerfstudio.features.store import NO_FEATURE, FrameFeatures
from divff_nerfstudio.files import DivffError
from divff_nerfstudio.schema import Number, Record, Size, Weight, read_json

FILE = "hand_obj_detections.json"
_OVERSHOOT = 0.05
"""How far, as a share of the picture, detectors draw boxes over its edge."""
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


class _Entry(Record):
    """What a detector has found in one frame, as the file has it."""

    frame_number: Annotated[int, Field(ge=0, lt=10**12)] | Annotated[str, Field(pattern=r"^ *\d{1,12} *$")]
    left_hand: tuple[Number, Number, Number, Number] | None = None
    right_hand: tuple[Number, Number, Number, Number] | None = None
    objects: list[tuple[Number, Number, Number, Number]] | None = None


def read_detections(path: Path, box_size: tuple[int, int] | None = None) -> dict[int, Detections]:
    """Reads detected hands and objects, as EPIC-Diff's annotations of contact have them.

    Args:
        path: JSON list of dictionaries with "frame_number" (of the video, zero-padded text or a number), "left_hand"
            and "right_hand" (a box or null) and "objects" (boxes); a box is left, top, right, bottom.
        box_size: Width and height of the pictures that the boxes were found in, inside of which they must lie but for a
            few per cent; None: anywhere.

    Returns:
        What was found, by the video's frame number.

    Raises:
        DetectionsError: If it is missing or has another form; the message names the place.
    """
    if not path.exists():
        raise DetectionsError(
            f"{path} is missing: put a detector's boxes of hands and objects there, or name their file with "
            "--hotspot.boxes."
        )
    what = "a list of frame_number with left_hand, right_hand and objects as boxes of left, top, right, bottom"
    found: dict[int, Detections] = {}
    for place, entry in enumerate(read_json(path, list[_Entry], what, "mend it", DetectionsError)):
        hands = tuple(box for box in (entry.left_hand, entry.right_hand) if box is not None)
        objects = tuple(entry.objects or ())
        for box in (*hands, *objects):
            if fault := _fault(box, box_size):
                raise DetectionsError(f"{path} has a box {list(box)} in entry {place} that {fault}.")
        if (number := int(entry.frame_number)) in found:
            raise DetectionsError(f"{path} has frame {number} twice: take one entry away.")
        found[number] = Detections(hands, objects)
    every = [box for one in found.values() for box in (*one.hands, *one.objects)]
    if every and box_size is not None and max(max(box) for box in every) <= 1:
        raise DetectionsError(
            f"{path} has boxes in shares of the picture: multiply them by its width and height ({box_size[0]}x"
            f"{box_size[1]} with --hotspot.box-size)."
        )
    return found


def _fault(box: Box, box_size: tuple[int, int] | None) -> str | None:
    """What is wrong with a box, and what to do, in words."""
    x0, y0, x1, y1 = box
    if x1 < x0 or y1 < y0:
        return "ends before it begins: write left, top, right, bottom"
    if box_size is None:
        return None
    slack = _OVERSHOOT * max(box_size)
    if min(box) < -slack or x1 > box_size[0] + slack or y1 > box_size[1] + slack:
        return (
            f"lies outside of pictures of {box_size[0]}x{box_size[1]}: give the size of those that the boxes were "
            "found in with --hotspot.box-size"
        )
    return None


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
        self.detections = read_detections(path, self.config.box_size)
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
