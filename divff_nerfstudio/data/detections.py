"""Hands and objects that a detector has found in a video, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from divff_nerfstudio.data.scene import SceneFolder
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.schema import Number, Record, read_json

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


def read_detections(
    path: Path,
    box_size: tuple[int, int] | None = None,
    remedy: str = "name their file with --hotspot.boxes",
    resize: str = "give the size of those that the boxes were found in with --hotspot.box-size",
) -> dict[int, Detections]:
    """Reads detected hands and objects, as EPIC-Diff's annotations of contact have them.

    Args:
        path: JSON list of dictionaries with "frame_number" (of the video, zero-padded text or a number), "left_hand"
            and "right_hand" (a box or null) and "objects" (boxes); a box is left, top, right, bottom.
        box_size: Width and height of the pictures that the boxes were found in, inside of which they must lie but for a
            few per cent; None: anywhere.
        remedy: What the user can do where there is no file.
        resize: What the user can do where boxes are of pictures of another size.

    Returns:
        What was found, by the video's frame number.

    Raises:
        DetectionsError: If it is missing or has another form; the message names the place.
    """
    if not path.exists():
        raise DetectionsError(f"{path} is missing: put a detector's boxes of hands and objects there, or {remedy}.")
    what = "a list of frame_number with left_hand, right_hand and objects as boxes of left, top, right, bottom"
    found: dict[int, Detections] = {}
    for place, entry in enumerate(read_json(path, list[_Entry], what, "mend it", DetectionsError)):
        hands = tuple(box for box in (entry.left_hand, entry.right_hand) if box is not None)
        objects = tuple(entry.objects or ())
        for box in (*hands, *objects):
            if fault := _fault(box, box_size, resize):
                raise DetectionsError(f"{path} has a box {list(box)} in entry {place} that {fault}.")
        if (number := int(entry.frame_number)) in found:
            raise DetectionsError(f"{path} has frame {number} twice: take one entry away.")
        found[number] = Detections(hands, objects)
    every = [box for one in found.values() for box in (*one.hands, *one.objects)]
    if every and box_size is not None and max(max(box) for box in every) <= 1:
        raise DetectionsError(
            f"{path} has boxes in shares of the picture: multiply them by its width and height, "
            f"{box_size[0]}x{box_size[1]}, or {resize}."
        )
    return found


def scene_detections(
    scene: SceneFolder, path: Path, box_size: tuple[int, int], option: str, size_option: str
) -> dict[int, Detections]:
    """What `read_detections` gives, of a scene's own video.

    Args:
        scene: The scene.
        path: The file.
        box_size: Width and height of the pictures that the boxes were found in.
        option: The option that names the file, for messages.
        size_option: The option that gives the size.

    Raises:
        DetectionsError: As `read_detections`, and if none of the scene's frames is in it.
    """
    resize = f"give the size of those that the boxes were found in with {size_option}"
    found = read_detections(path, box_size, f"name their file with {option}", resize)
    numbers = scene.video_numbers.tolist()
    if not any(number in found for number in numbers):
        raise DetectionsError(
            f"{path} has none of the scene's frames ({numbers[0]} to {numbers[-1]} of the video): name the boxes of "
            f"this video with {option}."
        )
    return found


def _fault(box: Box, box_size: tuple[int, int] | None, resize: str) -> str | None:
    """What is wrong with a box, and what to do, in words."""
    x0, y0, x1, y1 = box
    if x1 < x0 or y1 < y0:
        return "ends before it begins: write left, top, right, bottom"
    if box_size is None:
        return None
    slack = _OVERSHOOT * max(box_size)
    if min(box) < -slack or x1 > box_size[0] + slack or y1 > box_size[1] + slack:
        return f"lies outside of pictures of {box_size[0]}x{box_size[1]}: {resize}"
    return None


def _shared(one: Box, other: Box) -> Box:
    """What two boxes share; its edges change places where they share nothing."""
    return max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])
