"""Which files are videos, and which of a folder the frames of one."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

VIDEO_SUFFIXES = frozenset((
    ".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".mts", ".m2ts", ".ts", ".3gp", ".wmv", ".flv",
    ".ogv", ".vob", ".mxf", ".h264", ".hevc",
))  # fmt: skip
"""How videos' names end, in small letters."""
_NAME = re.compile(r"frame_(\d{1,12})\.(?:jpe?g|png|bmp)", re.IGNORECASE | re.ASCII)


def video_name(number: int) -> str:
    """Name of the file of a video's frame, as EPIC-KITCHENS has it."""
    return f"frame_{number:010d}.jpg"


def video_number(name: str) -> int | None:
    """Number of the frame whose file is called so; None: no frame's is."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def video_files(folder: Path) -> dict[int, Path]:
    """Files of the frames of a video by number, ascending; of several for one frame, the one that is usually called so.

    Args:
        folder: The folder; it need not exist.
    """
    found: dict[int, Path] = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted(folder.iterdir(), key=lambda path: path.name):
            number = video_number(path.name)
            if number is not None and (number not in found or path.name == video_name(number)):
                found[number] = path
    return dict(sorted(found.items()))
