"""The stream of a video that shows what was filmed, and how it says that its pictures are shaped and turned."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from divff_nerfstudio.convert.names import ConvertError

_STILLS = frozenset(("bmp", "gif", "mjpeg", "png", "webp"))
"""Codecs of covers and previews, where another stream is there."""
_LISTS = frozenset(("concat", "dash", "hls", "imf", "sdp"))
"""Formats of texts that name other files, by which somebody else's file would decide what is read here."""
_LONGEST_PIXEL = 4
"""Times that a pixel of a video is wider than high, or higher than wide, at most."""
_WHOLE = 0.95
"""Share of the frames that a video says it has which must be there: cuts without new coding hide a few."""
_ONE = 1 << 16
"""1 in a display matrix."""


def stream_of(container: Any, path: Path) -> Any:
    """The stream of pictures: no cover, and the largest where there are several.

    Args:
        container: An open video of PyAV.
        path: What is named in errors.

    Raises:
        ConvertError: If there is none that can be decoded, or the file is a list of others.
    """
    if container.format.name in _LISTS:
        raise ConvertError(f"{path} is no video but a list of others: give the video itself.")
    found = [stream for stream in container.streams.video if stream.codec_context is not None]
    if not found:
        raise ConvertError(f"{path} has no pictures in it that can be decoded: give a video.")
    return max(found, key=lambda stream: (stream.codec_context.name not in _STILLS, stream.width * stream.height))


def frames_of(container: Any, stream: Any, path: Path) -> Iterator[tuple[int, Any]]:
    """Decodes all frames, which are counted from 1.

    Raises:
        ConvertError: If one is damaged, interlaced or of another size than the first, they are turned by less than a
            quarter, or many are missing.
    """
    number = hidden = 0
    size, last = None, 0.0
    for packet in container.demux(stream):
        hidden += packet.is_discard
        for frame in packet.decode():
            number += 1
            if frame.is_corrupt:
                raise ConvertError(
                    f"{path} is damaged at its frame {number}, which cannot be decoded whole: copy it anew from its "
                    f"source or, if it is so there, code it anew with `ffmpeg -i {shlex.quote(str(path))} OUT.mp4`, "
                    "and give that."
                )
            if number == 1 and not _is_turned_by_quarters(frame):
                raise ConvertError(
                    f"{path} is to be shown turned by less than a quarter, or scaled: make its pictures so with "
                    f"`ffmpeg -i {shlex.quote(str(path))} OUT.mp4`, and give that."
                )
            if frame.interlaced_frame:
                raise ConvertError(
                    f"{path} is interlaced, its frame {number} shows two moments line by line: make one of each with "
                    f"`ffmpeg -i {shlex.quote(str(path))} -vf bwdif=send_frame OUT.mp4`, and give that."
                )
            size = size or (frame.width, frame.height)
            if (frame.width, frame.height) != size:
                raise ConvertError(
                    f"{path} changes from {size[0]}x{size[1]} to {frame.width}x{frame.height} at its frame {number}: "
                    f"bring all to one size with `ffmpeg -i {shlex.quote(str(path))} OUT.mp4`, and give that."
                )
            last = frame.time or last
            yield number, frame
    if number == 0:
        raise ConvertError(f"{path} has no frame that can be decoded: copy it anew from its source.")
    if number < _WHOLE * (stream.frames - hidden):
        raise ConvertError(
            f"{path} says that it has {stream.frames - hidden} frames, and {number} can be decoded: copy it anew from "
            "its source."
        )
    # Matroska and WebM tell no number of frames, but how long they are, or their sound is.
    seconds = (container.duration or 0) / 1e6 if "matroska" in container.format.name else 0.0
    if last < _WHOLE * seconds - 1:
        raise ConvertError(
            f"{path} says that it is {seconds:.1f} s long, and its pictures end at {last:.1f} s: copy it anew from its "
            f"source or, if it is so there, take its sound away with `ffmpeg -i {shlex.quote(str(path))} -an OUT.mp4`, "
            "and give that."
        )


def pixel_shape(stream: Any, path: Path) -> Fraction:
    """Width of a pixel over its height, where the stream says it.

    Raises:
        ConvertError: If no pixel is of that shape.
    """
    ratio = Fraction(stream.sample_aspect_ratio or 1)
    if not Fraction(1, _LONGEST_PIXEL) <= ratio <= _LONGEST_PIXEL:
        raise ConvertError(
            f"{path} says that its pixels are {float(ratio):g} times as wide as high: take that away with "
            f"`ffmpeg -i {shlex.quote(str(path))} -vf setsar=1 OUT.mp4`, and give that."
        )
    return ratio


def upright(picture: UInt8[np.ndarray, "h w 3"], frame: Any) -> UInt8[np.ndarray, "height width 3"]:
    """A frame's picture turned by quarters and mirrored as its display matrix says."""
    if (matrix := _display_matrix(frame)) is None:
        return picture
    (a, b), (c, d) = matrix  # x' = a x + c y, y' = b x + d y
    crossed = abs(b) > abs(a)
    shown = picture.swapaxes(0, 1) if crossed else picture
    if (c if crossed else a) < 0:
        shown = shown[:, ::-1]
    if (b if crossed else d) < 0:
        shown = shown[::-1]
    return np.ascontiguousarray(shown)


def _display_matrix(frame: Any) -> list[list[int]] | None:
    said = getattr(frame, "side_data", {}).get("DISPLAYMATRIX")
    return None if said is None else np.frombuffer(bytes(said), np.int32).reshape(3, 3)[:2, :2].tolist()


def _is_turned_by_quarters(frame: Any) -> bool:
    matrix = _display_matrix(frame)
    if matrix is None:
        return True
    shares = np.abs(matrix) / _ONE
    return bool(np.allclose(shares, np.eye(2), atol=0.01) or np.allclose(shares, 1 - np.eye(2), atol=0.01))
