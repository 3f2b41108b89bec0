"""Downloads from the Hugging Face hub that break off: what is said, and what the next try finds."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import open_clip
import pytest
import requests
import transformers

from divff_nerfstudio.features import encoder_loading, pretrained
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
