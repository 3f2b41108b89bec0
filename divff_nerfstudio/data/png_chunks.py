"""Check sums of PNG files, which guard what a picture shows and what is noted beside it alike."""

from __future__ import annotations

import struct
import zlib
from typing import IO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TRANSPARENCY = b"tRNS"
_ANCILLARY = 0x20
"""Bit of a chunk's first letter: it is small where the picture can be shown without the chunk."""


def without_damage(file: IO[bytes]) -> bytes | None:
    """Looks at all check sums of a PNG file.

    Notes beside a picture, such as its time or a text, do not concern what it shows; nor does a missing end, since a
    decoder tells whether the picture itself is whole.

    Args:
        file: The file, which is left at another place.

    Returns:
        None where nothing is damaged or missing; otherwise the file without its damaged notes.

    Raises:
        ValueError: If it is none, or what the picture is made of is damaged.
    """
    file.seek(0)
    if file.read(len(SIGNATURE)) != SIGNATURE:
        raise ValueError("it does not begin as a PNG file")
    kept, whole = [SIGNATURE], True
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if not name.isalpha():
            raise ValueError(f"broken PNG file (chunk {name!r})")
        content, check_sum = file.read(length), file.read(4)
        if len(content) == length and check_sum == struct.pack(">I", zlib.crc32(content, zlib.crc32(name))):
            kept += [head, content, check_sum]
        elif name == b"IEND" or (name[0] & _ANCILLARY and name != _TRANSPARENCY):
            whole = False  # without its transparency a picture would show something else
        else:
            raise ValueError(f"broken PNG file (check sum of {name.decode()})")
        if name == b"IEND":
            return None if whole else b"".join(kept)
    return b"".join(kept)
