"""The ffmpeg program that renderers look for."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from divff_nerfstudio.ffmpeg import ensure_ffmpeg


@pytest.fixture
def bare_path(tmp_path, monkeypatch):
    """A PATH without ffmpeg, and an empty cache."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_the_program_of_the_package_is_put_on_path(bare_path):
    program = ensure_ffmpeg()
    assert program is not None and program == shutil.which("ffmpeg")
    shown = subprocess.run([program, "-version"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("ffmpeg version")
    assert os.environ["PATH"].split(os.pathsep)[0] == str(bare_path)


def test_twice_is_once(bare_path):
    ensure_ffmpeg()
    path = os.environ["PATH"]
    ensure_ffmpeg()
    assert os.environ["PATH"] == path


def test_an_installed_program_is_left_alone(bare_path):
    own = bare_path / "ffmpeg"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert ensure_ffmpeg() == str(own)
    assert not (bare_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_no_hindrance(bare_path, monkeypatch):
    (bare_path / "cache").write_text("a file, not a folder")
    assert ensure_ffmpeg() is not None


def test_a_broken_link_is_renewed(bare_path):
    program = ensure_ffmpeg()
    assert program is not None
    link = bare_path / "cache" / "divff"
    (link_file,) = link.glob("bin-*/ffmpeg")
    link_file.unlink()
    link_file.symlink_to(bare_path / "gone")
    os.environ["PATH"] = str(bare_path)
    assert ensure_ffmpeg() == program
