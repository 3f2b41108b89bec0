"""How wide words are when they are drawn, and what of them fits."""

from __future__ import annotations

import bisect
import unicodedata
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont


def width(text: str, size: int) -> float:
    """How wide a line is in pixels, at most.

    A picture in a browser is drawn in whatever font the system has, which nobody knows here; DejaVu Sans is one of the
    widest that are in use.

    Args:
        text: The line.
        size: Size of the font, pixels.
    """
    wide = [unicodedata.east_asian_width(letter) in "WF" for letter in text]  # as wide as high, in every font
    others = "".join(letter for letter, is_wide in zip(text, wide, strict=True) if not is_wide)
    return size * sum(wide) + _font(size).getlength(others)


def fitted(text: str, size: int, room: float) -> str:
    """A line, or so much of it as fits with an ellipsis.

    Args:
        text: The line.
        size: Size of the font, pixels.
        room: Pixels that there are for it.
    """
    if width(text, size) <= room:
        return text
    lengths = range(1, len(text))
    kept = bisect.bisect_right(lengths, room, key=lambda length: width(f"{text[:length].rstrip()}…", size))
    return f"{text[:kept].rstrip()}…"


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # has the font

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
