"""Text towers of transformers in models of open_clip are read from this machine, without a word to the hub."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import open_clip
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import save_file

from divff_nerfstudio.features import encoder_loading
from divff_nerfstudio.features.encoder_loading import load_encoder
from divff_nerfstudio.features.pretrained import EncoderError

NAME = "somebody/words"
WORDS = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "a", "mug", "cup"))}
TOWER = {
    "model_type": "roberta", "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16, "pad_token_id": 0,
}  # fmt: skip
SHAPE = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8},
    "text_cfg": {"hf_model_name": NAME, "hf_tokenizer_name": NAME, "context_length": 6},
}


@pytest.fixture(autouse=True)
def attempts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list:
    """Connections that are tried; none comes about, and the hub's cache is empty."""
    tried: list = []

    def refuse(self, place):
        tried.append(place)
        raise ConnectionRefusedError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-words", SHAPE)
    load_encoder.cache_clear()
    return tried


def write_tokenizer(folder: Path) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)


def write_model(folder: Path, tower: dict | None = TOWER, tokenizer: bool = True) -> Path:
    """A model's folder as open_clip writes it, with the description of its text tower beside."""
    described = folder.with_name("described")
    described.mkdir(parents=True)
    (described / "config.json").write_text(json.dumps(TOWER))
    torch.manual_seed(0)
    built = SHAPE["text_cfg"] | {"hf_model_name": str(described), "hf_model_pretrained": False}
    state = open_clip.CustomTextCLIP(**{**SHAPE, "text_cfg": built}).state_dict()
    shutil.rmtree(described)
    folder.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / encoder_loading.WEIGHTS)
    (folder / encoder_loading.CONFIG).write_text(json.dumps({"model_cfg": SHAPE}))
    if tower is not None:
        (folder / "config.json").write_text(json.dumps(tower))
    if tokenizer:
        write_tokenizer(folder)
    return folder


def in_cache(root: Path, name: str = NAME) -> Path:
    """A repository's folder in the hub's cache."""
    repository = root / "hub" / f"models--{name.replace('/', '--')}"
    folder = repository / "snapshots" / "abc"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    return folder


def cache_words(root: Path) -> None:
    folder = in_cache(root)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(TOWER))
    write_tokenizer(folder)


def require_words(name: str) -> None:
    found = load_encoder(name).encode_text(["a mug", "a cup", "a mug"])
    assert found.shape == (3, 8)
    torch.testing.assert_close(found[0], found[2])
    assert not torch.allclose(found[0], found[1], atol=1e-4)


def test_a_folder_describes_its_tower(tmp_path, attempts):
    require_words(str(write_model(tmp_path / "model")))
    assert not attempts


@pytest.mark.parametrize("own", [None, {"model_type": "clip", "text_config": {}}])
def test_the_hubs_cache_describes_it_otherwise(tmp_path, attempts, own):
    cache_words(tmp_path)
    require_words(str(write_model(tmp_path / "model", own)))
    assert not attempts


def test_weights_in_a_file_need_no_hub(tmp_path, attempts):
    weights = write_model(tmp_path / "model") / encoder_loading.WEIGHTS
    cache_words(tmp_path)
    require_words(f"tiny-words/{weights}")
    assert not attempts


def test_a_silent_hubs_model(tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_loading, "unreachable_hub", lambda: "it is silent")
    cache_words(tmp_path)
    write_model(in_cache(tmp_path, "somebody/model"), None)
    require_words("hf-hub:somebody/model")


@pytest.mark.parametrize(
    ("tower", "tokenizer", "said"),
    [
        (None, True, f"The text tower {NAME} is described nowhere on this machine: fetch config.json from https"),
        (
            TOWER,
            False,
            "The tokenizer of .*model cannot be read .*: fetch tokenizer.json .*, and put them into",
        ),
        (TOWER | {"auto_map": {"AutoModel": "evil.X"}}, True, "its auto_map may bring code with it"),
        ([], True, "config.json is not a description of a model"),
    ],
)
def test_what_a_folder_lacks_is_one_sentence(tmp_path, attempts, tower, tokenizer, said):
    with pytest.raises(EncoderError, match=said) as caught:
        load_encoder(str(write_model(tmp_path / "model", tower, tokenizer)))
    assert "\n" not in str(caught.value) and not attempts


@pytest.mark.parametrize(("missing", "said"), [("config.json", "text tower"), ("tokenizer", "tokenizer of tiny-words")])
def test_what_the_cache_lacks_is_one_sentence(tmp_path, monkeypatch, missing, said):
    monkeypatch.setattr(encoder_loading, "unreachable_hub", lambda: "it is silent")
    weights = write_model(tmp_path / "model") / encoder_loading.WEIGHTS
    cache_words(tmp_path)
    for path in tmp_path.glob(f"hub/models--*/snapshots/abc/{missing}*"):
        path.unlink()
    with pytest.raises(EncoderError, match=f"{said}.*hf download {NAME}"):
        load_encoder(f"tiny-words/{weights}")


def test_an_image_tower_leads_nowhere_else(tmp_path, attempts):
    folder = write_model(tmp_path / "model")
    shape = {**SHAPE, "vision_cfg": {"timm_model_name": "hf-hub:somebody/tower", "image_size": 32}}
    (folder / encoder_loading.CONFIG).write_text(json.dumps({"model_cfg": shape}))
    with pytest.raises(EncoderError, match="its timm_model_name may bring code with it"):
        load_encoder(str(folder))
    assert not attempts
