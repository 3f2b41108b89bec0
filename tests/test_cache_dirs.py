"""Places for caches."""

from __future__ import annotations

from pathlib import Path

import pytest

from divff_nerfstudio.cache_dirs import is_writable, user_cache_dir


def test_a_folder_without_write_bits_is_not_writable_even_for_an_administrator(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    assert is_writable(folder) and not is_writable(tmp_path / "absent")
    folder.chmod(0o555)
    assert not is_writable(folder)


def test_cache_places_differ_by_scene_and_follow_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = user_cache_dir(tmp_path / "a" / "P01"), user_cache_dir(tmp_path / "b" / "P01")
    assert first != second and first.name.startswith("P01-") and first.parent == second.parent
    monkeypatch.delenv("DIVFF_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache_dir(tmp_path / "P01").parent == tmp_path / "xdg" / "divff"
    (tmp_path / "home").mkdir(mode=0o555)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    assert tmp_path / "home" not in user_cache_dir(tmp_path / "P01").parents
