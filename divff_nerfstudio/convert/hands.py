"""Masks of the hands, on which a reconstruction finds no features: hands move with the camera, not with the room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from divff_nerfstudio.convert.names import ConvertError
from divff_nerfstudio.convert.pictures import FolderFrames
from divff_nerfstudio.data.detections import read_detections
from divff_nerfstudio.data.masks import is_of_shape, mask_values, resize_nearest

DETECTION_SIZE = (456, 256)
"""Width and height of the frames that boxes of ``hand_obj_detections.json`` refer to."""
_JPEG = (".jpg", ".jpeg")
_BLACK_IN_JPEG = 127
"""What is darker is black: JPEG blurs edges, and makes black noisy around them."""
_GROWN = 8
"""Pixels, of 456, by which boxes are grown: they cut off fingers and shadows."""

HandMask = Callable[[int, int, int], Bool[np.ndarray, "height width"]]
"""From a frame's number, width and height to what hides the room."""


def open_hands(path: Path, stored: tuple[int, int] | None = None) -> HandMask:
    """Masks of the hands.

    Args:
        path: A folder of mask pictures whose names end in the frames' numbers, not black where a hand is; or a
            ``hand_obj_detections.json``, whose boxes of hands are masked.
        stored: Width and height of the video's pictures as they are stored, where they are shown in another shape
            (anamorphic): ffmpeg cuts them so, and masks may be of what it cut.

    Raises:
        ConvertError: If it does not exist; the masks themselves are looked at, and refused, one by one.
        DetectionsError: If it is a file of another form.
    """
    if path.is_dir():
        return _of_folder(FolderFrames.of_folder(path), stored)
    if not path.exists():
        raise ConvertError(f"{path} is missing: give a folder of masks or a hand_obj_detections.json.")
    found = read_detections(path, DETECTION_SIZE, resize="scale them to those")
    boxes = {number: np.array(each.hands, np.float64).reshape(-1, 4) for number, each in found.items()}
    return lambda number, width, height: _of_boxes(boxes.get(number, np.empty((0, 4))), width, height)


def _of_folder(masks: FolderFrames, stored: tuple[int, int] | None) -> HandMask:
    def mask(number: int, width: int, height: int) -> np.ndarray:
        if number not in masks.files:
            return np.zeros((height, width), bool)
        path = masks.files[number]
        values = mask_values(path, shown=True).max(2)
        shapes = [(width, height), *([stored] if stored else [])]
        if not any(is_of_shape((values.shape[1], values.shape[0]), shape) for shape in shapes):
            raise ConvertError(
                f"{path} is {values.shape[1]}x{values.shape[0]}, which is not the shape of the video's frames ({width}x"
                f"{height}): give masks of whole frames."
            )
        black = _BLACK_IN_JPEG if path.suffix.lower() in _JPEG else 0
        return resize_nearest(values, height, width) > black

    return mask


def _of_boxes(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    grown = boxes + np.array((-_GROWN, -_GROWN, _GROWN, _GROWN))
    scale = np.tile((width / DETECTION_SIZE[0], height / DETECTION_SIZE[1]), 2)
    for left, top, right, bottom in np.clip(np.round(grown * scale), 0, None).astype(int):
        mask[top:bottom, left:right] = True
    return mask
