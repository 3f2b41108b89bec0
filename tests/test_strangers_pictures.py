"""Pictures of strangers: only what scenes are made of is read, and no program is started for the rest."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from divff_nerfstudio.data.frames import SceneError, decode_frame, frame_size
from divff_nerfstudio.data.scene import load_scene

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 24 16
%%EndComments
(was here) print
%%EOF
"""


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once anybody has started a program called gs."""
    programs, canary = tmp_path / "programs", tmp_path / "was here"
    programs.mkdir()
    program = programs / "gs"
    program.write_text(f"#!/bin/sh\ntouch '{canary}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    return canary


def test_ghostscript_would_be_started_otherwise(tmp_path: Path, canary: Path) -> None:
    (tmp_path / "picture.bmp").write_bytes(EPS)
    with pytest.raises(OSError), Image.open(tmp_path / "picture.bmp") as image:
        image.load()
    assert canary.exists()


@pytest.mark.parametrize("place", ["frames/IMG_0000000100.bmp", "frames/IMG_0000000115.bmp"])
def test_a_frame_that_is_eps_starts_nothing(tiny_scene: Path, canary: Path, place: str) -> None:
    (tiny_scene / place).write_bytes(EPS)
    with pytest.raises(SceneError, match=r"is truncated or no picture in BMP, JPEG, PNG or TIFF") as error:
        load_scene(tiny_scene)
    assert place in str(error.value) and not canary.exists()


@pytest.mark.parametrize("kind", ["GIF", "PPM", "TGA", "ICO", "WEBP", "PCX"])
def test_other_formats_are_refused_whatever_they_are_called(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "frame.bmp"
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(path, format=kind)
    for read in (decode_frame, frame_size):
        with pytest.raises(SceneError, match="no picture in BMP, JPEG, PNG or TIFF"):
            read(path)


@pytest.mark.parametrize("kind", ["BMP", "PNG", "TIFF", "JPEG"])
def test_the_formats_of_scenes_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "frame.anything"
    Image.fromarray(np.full((16, 24, 3), 77, np.uint8)).save(path, format=kind)
    assert frame_size(path) == (24, 16) and np.abs(decode_frame(path).astype(int) - 77).max() <= 1


SHOWN = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)


def chunk(name: bytes, content: bytes = b"", sound: bool = True) -> bytes:
    said = zlib.crc32(name + content) ^ (not sound)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", said)


def png(before: bytes = b"", behind: bytes = b"", end: bytes = chunk(b"IEND"), sound: bool = True) -> bytes:
    """A picture with further chunks before and behind its pixels, which lie in two chunks."""
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in SHOWN))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 24, 16, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", rows[:40]) + chunk(b"IDAT", rows[40:], sound)
    return b"\x89PNG\r\n\x1a\n" + head + before + pixels + behind + end


NOTE, TRANSPARENCY = b"Comment\0made by hand", struct.pack(">HHH", 9, 9, 9)


@pytest.mark.parametrize(
    "content",
    [
        png(),
        png(before=chunk(b"tEXt", NOTE, sound=False)),
        png(before=chunk(b"tIME", bytes(7), sound=False), behind=chunk(b"tEXt", NOTE, sound=False)),
        png(before=chunk(b"tEXt", NOTE, sound=False), end=b""),
        png(end=b""),
        png(end=chunk(b"IEND")[:6]),
        png(end=chunk(b"IEND", sound=False)),
        png(behind=chunk(b"tEXt", NOTE)[:-9], end=b""),
    ],
)
def test_what_is_damaged_beside_a_picture_does_not_refuse_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "frame.png"
    path.write_bytes(content)
    assert frame_size(path) == (24, 16)
    assert np.array_equal(decode_frame(path), SHOWN)
    assert np.array_equal(decode_frame(path, io.BytesIO(content)), SHOWN)


@pytest.mark.parametrize(
    "content",
    [
        png(sound=False),
        png(before=chunk(b"PLTE", bytes(6), sound=False)),
        png(before=chunk(b"tRNS", TRANSPARENCY, sound=False)),
        png(behind=bytes(20), end=b""),
        png(end=b"")[:-30],
        png(end=b"")[: -len(chunk(b"IDAT"))],
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", NOTE, sound=False),
    ],
)
def test_what_is_damaged_of_a_picture_refuses_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "frame.png"
    path.write_bytes(content)
    for name, given in ((path, None), (path, io.BytesIO(content))):
        with pytest.raises(SceneError, match=r"frame\.png is truncated or no picture"):
            decode_frame(name, given)


def test_pixels_that_are_missing_as_a_whole_chunk_refuse_a_picture(tmp_path: Path) -> None:
    whole = png(end=b"")
    (tmp_path / "frame.png").write_bytes(whole[: whole.index(b"IDAT", whole.index(b"IDAT") + 4) - 4])
    with pytest.raises(SceneError, match=r"frame\.png is truncated"):
        decode_frame(tmp_path / "frame.png")


def test_a_pipe_in_place_of_a_picture_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "frame.bmp")
    with pytest.raises(SceneError, match="no ordinary file"):
        decode_frame(tmp_path / "frame.bmp")


def test_a_picture_beyond_all_bounds_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    Image.new("1", (12000, 11999)).save(path)
    with pytest.raises(SceneError, match="12000x11999 pixels"):
        decode_frame(path)
