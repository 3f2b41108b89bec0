"""COLMAP's text files. Names may hold spaces, and lines of 2D points may be left out throughout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from divff_nerfstudio.convert.colmap_model import MODEL_PARAMS, ColmapCamera, Images, ModelFault, Points

_COUNT = re.compile(rb"^# Number of (cameras|images|points): (\d{1,18})\b", re.MULTILINE)
_HEAD = 4096
"""Bytes in which a file's first comments are."""
_POSE_WORDS = 9
"""Words of an image's line before its name: id, quaternion, position, id of the camera."""


def _lines(path: Path) -> list[tuple[int, str]]:
    """Lines without comments, with their numbers; empty ones included."""
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    found = []
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            text = line.decode("utf-8").strip(" \t\r")
        except UnicodeDecodeError:
            raise ModelFault(f"its line {number} is no UTF-8 text ({line[-60:]!r})") from None
        if not text.startswith("#"):
            found.append((number, text))
    return found


def told_of_lack(path: Path, count: int) -> str | None:
    """What the user is told of a file with fewer entries than it says at its beginning; None where it has them.

    It need not be cut short: who takes images out by hand leaves the comment as it is.

    Args:
        path: The file.
        count: How many entries it has.
    """
    with path.open("rb") as file:
        said = _COUNT.search(file.read(_HEAD))
    if said is None or int(said[2]) <= count:
        return None
    return (
        f"{path.name} says that it has {int(said[2])} {said[1].decode()}, and {count} are there: if none were taken "
        "out on purpose, it is cut short, so copy it anew."
    )


def _whole(words: list[str], number: int) -> list[int]:
    if not all(word.isascii() and word.isdigit() and len(word) < 20 for word in words):
        raise ModelFault(f"its line {number} has something else than ids and sizes where these should be")
    return [int(word) for word in words]


def _without_grouping(word: str) -> str:
    """A number as programs write it; Python would take 9_0 for 90."""
    if "_" in word:
        raise ValueError(word)
    return word


def _floats(words: list[str], number: int) -> list[float]:
    try:
        return [float(_without_grouping(word)) for word in words]
    except ValueError:
        raise ModelFault(f"its line {number} has something else than numbers where these should be") from None


def read_cameras(path: Path) -> Iterator[ColmapCamera]:
    """The cameras of ``cameras.txt``."""
    for number, line in _lines(path):
        if not line:
            continue
        words = line.split()
        if len(words) < 4 or words[1] not in MODEL_PARAMS:
            raise ModelFault(f"its line {number} is no camera of a known model")
        key, width, height = _whole([words[0], *words[2:4]], number)
        if len(words) - 4 != MODEL_PARAMS[words[1]]:
            raise ModelFault(f"its line {number} has {len(words) - 4} parameters, {words[1]} {MODEL_PARAMS[words[1]]}")
        yield ColmapCamera(key, words[1], width, height, tuple(_floats(words[4:], number)))


def _are_points(line: str) -> bool:
    """Whether a line is one of 2D points: x, y, id, x, y, id ...; there may be none."""
    words = line.split()
    try:
        return len(words) % 3 == 0 and all(np.isfinite(float(word)) for word in words)
    except ValueError:
        return False


def _add(images: Images, number: int, line: str, seen: int) -> None:
    words = line.split(None, _POSE_WORDS)
    if len(words) <= _POSE_WORDS:
        raise ModelFault(f"its line {number} is no image with quaternion, position, camera and name")
    key, camera = _whole([words[0], words[8]], number)
    images.add(key, _floats(words[1:8], number), camera, words[9], seen)


def read_images(path: Path) -> Images:
    """The images of ``images.txt``."""
    lines = _lines(path)
    images, at = Images(), 0
    while at < len(lines):
        number, line = lines[at]
        at += 1
        if not line:
            continue
        points = lines[at][1] if at < len(lines) else ""
        if not _are_points(points):
            if len(images.keys):
                raise ModelFault(f"its line {lines[at][0]} should hold the 2D points of the image above, or nothing")
            return _without_points(lines)
        _add(images, number, line, len(points.split()) // 3)
        at += 1
    return images


def _without_points(lines: list[tuple[int, str]]) -> Images:
    """Images of a file that has no lines of 2D points, not even empty ones, as some programs write it."""
    images = Images(notes=["images.txt has no lines of 2D points: each of its lines is taken for an image."])
    for number, line in lines:
        if line:
            _add(images, number, line, 0)
    return images


def read_points(path: Path) -> Points:
    """The points of ``points3D.txt``, with the images that see them."""
    keys, positions, tracks = [], [], []
    for number, line in _lines(path):
        if not line:
            continue
        words = line.split()
        if len(words) < 8 or len(words) % 2:
            raise ModelFault(f"its line {number} is no point with position, colour, error and pairs of a track")
        keys += _whole(words[:1], number)
        positions.append(_floats(words[1:4], number))
        _whole(words[4:7], number)
        _floats(words[7:8], number)
        tracks += _whole(words[8:], number)
    return Points(
        np.array(keys, np.uint64),
        np.array(positions, np.float64).reshape(-1, 3),
        np.array(tracks, np.uint64).reshape(-1, 2),
    )
