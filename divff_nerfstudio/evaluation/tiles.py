"""Pictures side by side with words under them: the common ground of figures and videos."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

Picture = UInt8[np.ndarray, "height width 3"]

BACKGROUND = (24, 26, 31)
INK = (236, 238, 242)
FADED = (150, 156, 168)
CELL_HEIGHT = 180
"""Height of a picture in a figure, in pixels; its width follows from the frame's shape."""
LABEL_HEIGHT = 26
"""Height of the words under it."""
_GAP = 4


def cell_size(height: int, width: int, cell_height: int = CELL_HEIGHT) -> tuple[int, int]:
    """Height and width of a cell for frames of a size, both even."""
    return cell_height // 2 * 2, max(2, round(cell_height * width / height / 2) * 2)


def labelled(picture: Picture, text: str) -> Picture:
    """A picture with words under it."""
    return column_of([picture, caption(text, picture.shape[1], LABEL_HEIGHT)], gap=0)


def as_picture(
    image: Float[np.ndarray, "height width channels"], size: tuple[int, int], smooth: bool = True
) -> Picture:
    """Brings an image to a size for looking at.

    Args:
        image: Colours or one channel (shown grey), 0..1.
        size: Height and width of the result.
        smooth: Bicubic; else the pixels are shown as squares.
    """
    colours = np.broadcast_to(image, (*image.shape[:2], 3))
    pixels = Image.fromarray((np.clip(colours, 0, 1) * 255).round().astype(np.uint8))
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(pixels.resize((size[1], size[0]), method))


def fitted(image: Float[np.ndarray, "height width channels"], size: tuple[int, int]) -> Picture:
    """As `as_picture`, where an image of other proportions gets dark borders instead of being stretched."""
    height, width = image.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    inner = min(size[0], round(scale * height)), min(size[1], round(scale * width))
    if size[0] - inner[0] < 2 and size[1] - inner[1] < 2:
        return as_picture(image, size)
    cell = np.full((*size, 3), BACKGROUND, np.uint8)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    cell[top : top + inner[0], left : left + inner[1]] = as_picture(image, inner)
    return cell


def outlined(picture: Picture, mask: Bool[np.ndarray, "rows cols"], colour: tuple[int, int, int]) -> Picture:
    """Draws the outline of a mask (of any resolution) onto a picture."""
    height, width = picture.shape[:2]
    stretched = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    padded = np.pad(stretched, 1, mode="edge")
    inner = padded[1:-1, :-2] & padded[1:-1, 2:] & padded[:-2, 1:-1] & padded[2:, 1:-1]
    drawn = picture.copy()
    drawn[stretched & ~inner] = colour
    return drawn


def marked(picture: Picture, row: float, col: float) -> Picture:
    """Draws a ring around a point; row and column are shares of the picture's size."""
    image = Image.fromarray(picture)
    height, width = picture.shape[:2]
    radius = max(4, height // 24)
    x, y = col * width, row * height
    draw = ImageDraw.Draw(image)
    for extra, colour in ((1, (0, 0, 0)), (0, (255, 255, 255))):
        box = (x - radius - extra, y - radius - extra, x + radius + extra, y + radius + extra)
        draw.ellipse(box, outline=colour, width=2 + extra)
    return np.asarray(image)


@lru_cache(maxsize=256)
def caption(text: str, width: int, height: int, colour: tuple[int, int, int] = INK) -> Picture:
    """A strip of text in the middle of a dark ground; what is too long is made smaller, then cut."""
    strip = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    sizes = range(max(9, int(height * 0.62)), 8, -1)
    fonts = (ImageFont.load_default(size) for size in sizes)
    font = next((font for font in fonts if draw.textlength(text, font=font) <= width - 8), None)
    if font is None:
        font = ImageFont.load_default(sizes[-1])
        while len(text) > 1 and draw.textlength(text + "…", font=font) > width - 8:
            text = text[:-1]
        text += "…"
    draw.text((width / 2, height / 2), text, fill=colour, font=font, anchor="mm")
    return np.asarray(strip)


def blank(size: tuple[int, int], lines: Sequence[str]) -> Picture:
    """An empty cell that says why it is empty."""
    height, width = size
    line_height = min(24, max(12, height // 8))
    strips = [caption(line, width, line_height, FADED) for line in lines]
    above = max(0, (height - line_height * len(strips)) // 2)
    cell = np.full((height, width, 3), BACKGROUND, np.uint8)
    if strips:
        text = np.concatenate(strips)[: height - above]
        cell[above : above + len(text)] = text
    return cell


def row_of(cells: Sequence[Picture]) -> Picture:
    """Cells of one height side by side."""
    return _joined(cells, _GAP, axis=1)


def column_of(rows: Sequence[Picture], gap: int = _GAP) -> Picture:
    """Rows below each other, the narrower ones filled up to the right."""
    width = max(row.shape[1] for row in rows)
    filled = []
    for row in rows:
        full = np.full((row.shape[0], width, 3), BACKGROUND, np.uint8)
        full[:, : row.shape[1]] = row
        filled.append(full)
    return _joined(filled, gap, axis=0)


def _joined(parts: Sequence[Picture], gap: int, axis: int) -> Picture:
    shape = list(parts[0].shape)
    shape[axis] = gap
    between = np.full(shape, BACKGROUND, np.uint8)
    pieces = [piece for part in parts for piece in (part, between)][:-1]
    return np.concatenate(pieces, axis=axis)
