"""Atomic writes."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from divff_nerfstudio.atomic import atomic_path


def test_atomic_path_replaces_only_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "values.npy"
    with atomic_path(target) as path:
        assert path.suffix == ".npy" and path.parent == target.parent and not target.exists()
        np.save(path, np.arange(3))
    with pytest.raises(ValueError, match="half way"), atomic_path(target) as path:
        path.write_text("half")
        raise ValueError("half way")
    assert np.load(target).tolist() == [0, 1, 2]
    assert [p.name for p in target.parent.iterdir()] == ["values.npy"]


def test_atomic_path_takes_a_directory(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "folder") as path:
        path.mkdir()
        (path / "a").touch()
    assert (tmp_path / "folder" / "a").is_file()


def test_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "file.bin"

    def write(value: int) -> None:
        for _ in range(20):
            with atomic_path(target) as path:
                path.write_bytes(bytes([value]) * 10000)

    threads = [threading.Thread(target=write, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = target.read_bytes()
    assert len(content) == 10000 and len(set(content)) == 1
    assert list(tmp_path.iterdir()) == [target]
