"""NumPy's files whose headers promise more than there is, or something else."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from divff_nerfstudio import arrays
from divff_nerfstudio.arrays import ArrayFaultError, ScratchRows, open_array, read_arrays
from divff_nerfstudio.data.frames import cache_folder
from divff_nerfstudio.data.scene import load_scene

HEADER = "{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


def npy(
    shape: str, descr: str = "'<f8'", content: bytes = bytes(96), version: int = 1, length: int | None = None
) -> bytes:
    """An .npy file that says what it is told to."""
    header = HEADER.format(descr=descr, shape=shape).encode() + b"\n"
    size = len(header) if length is None else length
    packed = struct.pack("<H", size) if version == 1 else struct.pack("<I", size)
    return b"\x93NUMPY" + bytes((version, 0)) + packed + header + content


BOMBS = {
    "more than there is": npy(f"({2**22}, 3, 4)"),
    "terabytes": npy("(99999999999, 3, 4)"),
    "more than a word holds": npy("(4294967296, 4294967296, 4294967296)"),
    "less than nothing": npy("(-1, 3, 4)"),
    "wide texts": npy("(1, 3, 4)", "'<U999999999'"),
    "one value too few": npy("(1, 3, 5)"),
    "one value too many": npy("(1, 3, 3)"),
    "objects": npy("(1, 3, 4)", "'|O'"),
    "nested fields": npy("(1, 3, 4)", "[('a', '<f8', (99999, 99999, 99))]"),
    "a header of gigabytes": npy("(1, 3, 4)", version=2, length=2**32 - 1),
    "an unknown version": npy("(1, 3, 4)", version=9),
    "a program": npy("__import__('os').getcwd()"),
    "nothing": b"",
    "text": b"hello",
    "a pickle": b"\x80\x04N.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_a_header_promises_takes_no_memory(tmp_path: Path, bomb: str) -> None:
    alone, archive = tmp_path / "array.npy", tmp_path / "arrays.npz"
    alone.write_bytes(BOMBS[bomb])
    with pytest.raises(ArrayFaultError):
        open_array(alone, np.float64, 3)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("array.npy", BOMBS[bomb])
    tracemalloc.start()
    try:
        with pytest.raises(ArrayFaultError):
            read_arrays(archive)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_an_archive_that_unpacks_to_more_than_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "_MAX_BYTES", 2**20)
    np.savez_compressed(tmp_path / "arrays.npz", a=np.zeros(2**18), b=np.zeros(3))
    with pytest.raises(ArrayFaultError, match="more than 1 MiB"):
        read_arrays(tmp_path / "arrays.npz")


def test_sound_files_are_read(tmp_path: Path) -> None:
    values = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "c": np.zeros((0, 4)),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "arrays.npz", **values)
        found = read_arrays(tmp_path / "arrays.npz")
        assert found.keys() == values.keys()
        for name, value in values.items():
            np.testing.assert_array_equal(found[name], value)
    np.save(tmp_path / "array.npy", values["a"])
    np.testing.assert_array_equal(open_array(tmp_path / "array.npy", np.float64, 2), values["a"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (lambda: open_array(tmp_path / "pipe", np.float64, 1), lambda: read_arrays(tmp_path / "pipe")):
        with pytest.raises(ArrayFaultError, match="no ordinary file"):
            read()


@pytest.mark.parametrize("content", [BOMBS["terabytes"], BOMBS["objects"], b"", b"PK\x05\x06" + bytes(18)])
def test_a_strange_cache_of_frames_is_written_anew(tiny_scene: Path, content: bytes) -> None:
    expected = np.array(load_scene(tiny_scene).frames)
    (cache,) = cache_folder(tiny_scene).glob("frames-*.npy")
    cache.write_bytes(content)
    np.testing.assert_array_equal(load_scene(tiny_scene).frames, expected)


def test_rows_are_kept_in_a_file_without_a_name(tmp_path: Path) -> None:
    rows = ScratchRows(tmp_path, np.uint16)
    for i in range(3):
        rows.append(np.full((i, 2), i))
    found = rows.mapped()
    assert found.dtype == np.uint16 and found.tolist() == [[1, 1], [2, 2], [2, 2]]
    found += 1
    assert found.sum() == 16 and not list(tmp_path.iterdir())
    none = ScratchRows(None, np.float32)
    none.append(np.zeros((0, 5)))
    assert none.mapped().shape == (0, 5)
