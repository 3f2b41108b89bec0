"""One mask at a time: what counts as inside, and whether it can be one of the scene's frames."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Integer
from PIL.ImageFile import ImageFile

from divff_nerfstudio.data.frames import open_picture, require_upright
from divff_nerfstudio.data.picture_names import decoded
from divff_nerfstudio.data.scene import SceneError, SceneFolder
from divff_nerfstudio.schema import is_label

MASK_SUFFIXES = (".bmp", ".png")
_MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "I;16")
_WIDE = re.compile(r";16[BLN]")
"""How Pillow names what it is given where colours have 16 bits; it keeps the upper 8, in which labels from 1 are 0."""
_MIN_SHARE = 0.2
"""A mask is at least that wide and high, as a share of the frame."""


@dataclass(frozen=True)
class LabelledMasks:
    """Masks of several classes or queries in the frames that are annotated."""

    names: tuple[str, ...]
    """What each channel shows."""
    masks: Mapping[int, Bool[np.ndarray, "height width classes"]]
    """By frame index; a frame that nobody annotated is not in it."""


def resize_nearest(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Takes the value at each new pixel's centre; the first two axes are rows and columns."""
    rows = (2 * np.arange(height) + 1) * values.shape[0] // (2 * height)
    cols = (2 * np.arange(width) + 1) * values.shape[1] // (2 * width)
    return values[rows[:, None], cols[None, :]]


def read_mask(path: Path, scene: SceneFolder) -> Bool[np.ndarray, "height width"]:
    """Reads a mask and brings it to the size of the scene's frames.

    Black is outside, one other value or colour is inside. An opaque alpha channel says nothing.

    Raises:
        SceneError: If it is damaged, of another shape than the frames, transparent, or holds more than two values.
    """
    values = mask_values(path)
    if values.shape[2] > 1:
        values = (values.astype(np.int64) @ (256 ** np.arange(values.shape[2])))[..., None]
    return fitted_mask(path, values, scene)[..., 0]


def mask_values(path: Path, named: bool = False, shown: bool = False) -> Integer[np.ndarray, "h w channels"]:
    """Values of a mask as they are stored: of a palette the places in it, an opaque alpha channel left out.

    Args:
        path: The picture.
        named: Whether somebody has said which values are inside: of a palette, then, the first need not be black.
        shown: Whether only what is black matters: of a palette, then, its colours are given.

    Raises:
        SceneError: If it is damaged, turned, transparent, or no mask has its mode.
    """
    with open_picture(path) as image:
        # What is to be decoded is known only before Pillow looks for EXIF, for which it decodes a PNG file.
        parts = cast(ImageFile, image).tile
        if any(_WIDE.search(str(part.args)) for part in parts) and not image.mode.startswith("I"):
            raise SceneError(
                f"{path} has colours of 16 bits, of which small values would be lost: save it as 8-bit RGB, or as grey "
                "of 16 bits."
            )
        require_upright(path, image)
        image.load()
        if image.mode not in _MODES:
            raise SceneError(f"{path} has image mode {image.mode}, which no mask has: save it in black and white.")
        numbers = np.asarray(image)
        if image.mode in ("RGBA", "LA"):
            if (numbers[..., -1] != 255).any():
                raise SceneError(f"{path} has transparent places, which say nothing of a mask: save it without alpha.")
            numbers = numbers[..., :-1]
        if image.mode == "P" and (shown or not named):
            colours = np.asarray(image.convert("RGB"))
            if shown:
                return colours
            if not np.array_equal(numbers != 0, colours.any(-1)):
                raise SceneError(f"{path} has a palette in which 0 is not black: save it in black and white.")
    return numbers.reshape(*numbers.shape[:2], -1)


def is_of_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a picture can show the same view as another one, by their widths and heights, which are whole numbers."""
    (width, height), (other_width, other_height) = (tuple(max(1, side) for side in each) for each in (size, other))
    return abs(math.log(width * other_height / (height * other_width))) <= 0.03 + 1 / min(width, height)


def fitted_mask(place: Path | str, values: np.ndarray, scene: SceneFolder) -> Bool[np.ndarray, "height width channels"]:
    """A mask at the size of the scene's frames.

    Args:
        place: Where it comes from, for messages.
        values: Truth values, or numbers of which 0 is outside and one other is inside, (h, w, channels).
        scene: The scene.

    Raises:
        SceneError: If it holds other numbers, or is of another shape than the frames.
    """
    height, width = values.shape[:2]
    small = min(height / scene.height, width / scene.width) < _MIN_SHARE
    if small or not is_of_shape((width, height), (scene.width, scene.height)):
        raise SceneError(
            f"{place} is {width}x{height}, which is not the shape of the frames ({scene.width}x{scene.height}): write "
            "the mask of the whole frame."
        )
    if values.dtype != np.bool_:
        inside = values[values != 0]
        if inside.size and (not np.isfinite(inside[0]) or inside[0] < 0 or (inside != inside[0]).any()):
            raise SceneError(
                f"{place} holds more than two values, so that what is inside would be a guess: write 0 outside and one "
                "other value inside."
            )
    return resize_nearest(values != 0, scene.height, scene.width)


def frame_finder(scene: SceneFolder) -> Callable[[str], int | None]:
    """Finds the frame that an annotation's file name means: by its stem, else by the number at its end."""
    by_stem = {path.stem: index for index, path in enumerate(scene.image_paths)}
    by_number = {int(number): index for index, number in enumerate(scene.video_numbers)}

    def find(name: str) -> int | None:
        stem = Path(str(name)).stem
        number = re.search(r"(?<!\d)(\d{1,18})$", decoded(stem))  # a longer one is no frame's
        return by_stem.get(stem, by_number.get(int(number[1])) if number else None)

    return find


def require_names(path: Path, names: Sequence[str]) -> None:
    """Refuses names of classes or actions that cannot be asked in words.

    Args:
        path: Where they come from.
        names: The names.

    Raises:
        SceneError: If one is blank, endless, holds what no terminal shows, or stands twice.
    """
    for name in names:
        if not is_label(name):
            raise SceneError(f"{path} has a class or query {name[:80]!r}, which is no name: give each its own words.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise SceneError(f"{path} has two classes or queries {twice!r}: give each its own words.")


def require_match(path: Path, scene: SceneFolder, found: Mapping[int, Any], names: Iterable[str]) -> None:
    first = next(iter(names), None)
    if not found:
        what = "annotates nothing" if first is None else f"annotates {first}, but no frame of {scene.root}"
        raise SceneError(f"{path} {what}: take it away, or put the file of this scene there.")
