"""What is hand, by a detector's boxes of hands, which hold more than hands and leave the arms out."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int8

from divff_nerfstudio.data.detections import Box, scene_detections
from divff_nerfstudio.features.hints.planes import UNKNOWN, HintPlane, stated
from divff_nerfstudio.features.hotspots import hotspot_mask
from divff_nerfstudio.features.pictures import Pictures

_CORE = 0.4
"""Part of a box's sides around its middle in which a hand that holds nothing is for sure."""
_GROWN = 0.1
"""By which part of its longer side a box is grown: detectors cut off fingers."""


class BoxPlane(HintPlane):
    """Hands of ``hand_obj_detections.json``.

    The middle of a hand's box is hand, but for boxes of objects. The rest of the box is unknown, and so is all that is
    not above it, since arms come from the picture's lower edges and have no box. Elsewhere there is no hand. Frames
    that the file does not name are unknown, and so are those without a hand's box: detectors miss hands.

    Args:
        pictures: Pictures of the scene.
        path: The file.
        box_size: Width and height of the pictures that the boxes were found in.

    Raises:
        DetectionsError: If it is missing or malformed, or names none of the scene's frames.
    """

    name = "boxes"

    def __init__(self, pictures: Pictures, path: Path, box_size: tuple[int, int]):
        super().__init__(pictures)
        self._size = box_size
        self._found = scene_detections(pictures.scene, path, box_size, "--hints.hands", "--hints.box-size")
        self._content = hashlib.sha256(path.read_bytes()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """The boxes and the size of their pictures."""
        return {"name": self.name, "version": 1, "boxes": self._content, "box_size": list(self._size)}

    def states(self, frame: int) -> Int8[np.ndarray, "h w"]:
        """See the class."""
        scene = self.pictures.scene
        size = scene.height, scene.width
        found = self._found.get(int(scene.video_numbers[frame]))
        if found is None or not found.hands:
            return np.full(size, UNKNOWN, np.int8)
        held = [_scaled(box, 1 + _GROWN) for box in found.objects]
        yes = hotspot_mask([_scaled(box, _CORE) for box in found.hands], self._size, *size)
        yes &= ~hotspot_mask(held, self._size, *size)
        perhaps = hotspot_mask([self._reach(box) for box in found.hands], self._size, *size)
        return stated(yes, ~perhaps)

    def _reach(self, box: Box) -> Box:
        """Where a hand's box, grown, and its arm may be."""
        width, height = self._size
        top = box[1] - _GROWN * max(box[2] - box[0], box[3] - box[1])
        return 0.0, top, float(width), float(height)


def _scaled(box: Box, factor: float) -> Box:
    """A box around the same middle."""
    x0, y0, x1, y1 = box
    x, y, across, down = (x0 + x1) / 2, (y0 + y1) / 2, factor * (x1 - x0) / 2, factor * (y1 - y0) / 2
    return x - across, y - down, x + across, y + down
