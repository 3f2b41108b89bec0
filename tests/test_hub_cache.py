"""Downloads from the Hugging Face hub that break off: what is said, and what the next try finds."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import open_clip
import pytest
import requests
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from urllib3 import HTTPConnectionPool
from urllib3.exceptions import MaxRetryError

from divff_nerfstudio.features import encoder_loading, hub_cache, pretrained
from divff_nerfstudio.features.encoder_loading import load_encoder
from divff_nerfstudio.features.hub_cache import how_to_go_on
from divff_nerfstudio.features.pretrained import EncoderError, load_companions, load_pretrained

NAME = "somebody/tiny"
CONTENT = b"weights" * 1000
CUT = [
    requests.ConnectionError("Connection reset by peer"),
    requests.exceptions.ChunkedEncodingError("Connection broken: IncompleteRead(7 bytes read, 9 more expected)"),
    OSError("Consistency check failed: file should be of size 9 but has size 7"),
]


@pytest.fixture
def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a model's files in a hub's cache of its own, whose hub answers."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for room in (pretrained, encoder_loading):
        monkeypatch.setattr(room, "unreachable_hub", lambda: None)
    folder = tmp_path / "models--somebody--tiny" / "blobs"
    folder.mkdir(parents=True)
    small = b"{}"
    (folder / hashlib.sha1(b"blob %d\0" % len(small) + small).hexdigest()).write_bytes(small)
    (folder / hashlib.sha256(CONTENT).hexdigest()).write_bytes(CONTENT)
    return folder


def test_a_whole_cache_tells_of_no_broken_download(blobs: Path):
    for name in (NAME, "somebody/else", None):
        assert how_to_go_on(name, ValueError("another fault")) == ""


def test_a_file_that_was_cut_short_is_to_be_deleted(blobs: Path):
    for path in sorted(blobs.iterdir()):
        whole = path.read_bytes()
        os.truncate(path, len(whole) // 2)
        told = how_to_go_on(NAME, ValueError("incomplete metadata"))
        assert told.startswith(f"{path} is cut short or damaged, delete it")
        path.write_bytes(whole)


def test_an_unfinished_file_is_gone_on_with(blobs: Path):
    (blobs / f"{'a' * 64}.incomplete").write_bytes(CONTENT)
    assert "goes on where it was" in how_to_go_on(NAME, ValueError("interrupted"))


def test_an_unfinished_file_of_long_ago_is_of_another_download(blobs: Path):
    old = blobs / f"{'a' * 64}.incomplete"
    old.write_bytes(CONTENT)
    os.utime(old, (1, 1))
    assert how_to_go_on(NAME, ValueError("another fault")) == ""


def absent(cause: Exception | None = None) -> Exception:
    """What comes of a file that the cache has not, where the hub could not be asked."""
    try:
        raise LocalEntryNotFoundError("Cannot find the requested files in the disk cache") from cause
    except LocalEntryNotFoundError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        absent(),
        absent(requests.ConnectionError("Connection reset by peer")),
        requests.ConnectionError(MaxRetryError(HTTPConnectionPool("nowhere"), "/", Exception("refused"))),
        requests.exceptions.ConnectTimeout("timed out"),
    ],
)
def test_without_a_connection_no_download_broke_off(blobs: Path, error: Exception):
    assert how_to_go_on(NAME, error) == ""


def test_what_was_not_there_before_hides_no_download_that_broke_off(blobs: Path):
    """Loaders look for a file of one name, and fetch that of another where there is none."""
    broken = requests.exceptions.ChunkedEncodingError("Connection broken")
    broken.__context__ = absent()
    assert "goes on where it was" in how_to_go_on(NAME, broken)


def test_where_no_file_was_read_none_is_looked_at(blobs: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub_cache, "_is_what_it_is_called", lambda file: pytest.fail(f"{file} is read"))
    for error in (absent(), CUT[1]):
        how_to_go_on(NAME, error)


def test_files_of_another_version_alone_are_not_looked_at(blobs: Path):
    (blobs.parent / "refs").mkdir()
    (blobs.parent / "refs" / "main").write_text("new")
    for version, path in zip(("new", "old"), sorted(blobs.iterdir()), strict=True):
        (blobs.parent / "snapshots" / version).mkdir(parents=True)
        (blobs.parent / "snapshots" / version / "file").symlink_to(path)
        path.write_bytes(b"damaged")
    (mine, other) = sorted(blobs.iterdir())
    assert how_to_go_on(NAME, ValueError("another fault")).startswith(f"{mine} is cut short")
    mine.unlink()
    assert how_to_go_on(NAME, ValueError("another fault")) == "" and other.exists()


@pytest.mark.parametrize("method", ["open", "iterdir", "is_dir"])
def test_a_cache_of_another_user_hides_no_error(blobs: Path, monkeypatch: pytest.MonkeyPatch, method: str):
    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, method, refuse)
    assert how_to_go_on(NAME, ValueError("another fault")) == ""
    assert "goes on where it was" in how_to_go_on(NAME, CUT[0])


@pytest.mark.parametrize("error", CUT, ids=lambda error: type(error).__name__)
def test_every_loader_says_how_to_go_on(blobs: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def break_off(*_, **__):
        try:
            raise error
        except Exception as cause:
            raise OSError("Can't load the model") from cause

    monkeypatch.setattr(transformers.Sam2Model, "from_pretrained", break_off)
    monkeypatch.setattr(transformers.CLIPTokenizer, "from_pretrained", break_off)
    monkeypatch.setattr(encoder_loading, "_look_at_hub", lambda *_: None)
    monkeypatch.setattr(open_clip, "create_model", break_off)
    load_encoder.cache_clear()
    for load in (
        lambda: load_pretrained("Sam2Model", NAME, "--segments.sam.weights"),
        lambda: load_companions(("CLIPTokenizer",), NAME, "--xclip.weights"),
        lambda: load_encoder(f"hf-hub:{NAME}"),
        lambda: load_encoder("ViT-B-16/laion2b_s34b_b88k"),
    ):
        with pytest.raises(EncoderError, match=r"start the same line again, which goes on .*, or fetch") as told:
            load()
        assert "\n" not in str(told.value)
