"""X-CLIP as a source of video-language features, with a tiny random model of transformers' own class."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_feature_encoders import write_scene
from torch.nn.functional import normalize

from divff_nerfstudio.data.scene import load_scene
from divff_nerfstudio.features.extract import ExtractConfig
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.pretrained import EncoderError
from divff_nerfstudio.features.store import FeatureStore
from divff_nerfstudio.features.text import text_encoder
from divff_nerfstudio.features.tiles import Tiles
from divff_nerfstudio.features.xclip import XClipSourceConfig, load_xclip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    from transformers import VideoMAEImageProcessor, XCLIPConfig, XCLIPModel, XCLIPTextConfig, XCLIPVisionConfig

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("xclip")
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2}
    message = {"mit_hidden_size": 16, "mit_intermediate_size": 37, "mit_num_attention_heads": 2}
    vision = XCLIPVisionConfig(**sizes, image_size=32, patch_size=16, num_frames=4, mit_num_hidden_layers=1, **message)
    text = XCLIPTextConfig(**sizes, vocab_size=8, max_position_embeddings=10, eos_token_id=7, pad_token_id=7)
    config = XCLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16, prompt_num_attention_heads=2
    )
    XCLIPModel(config).save_pretrained(path)
    VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    words = ["c", "u", "t</w>", "cu", "cut</w>", "t", "<|startoftext|>", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (path / "merges.txt").write_text("#version: 0.2\nc u\ncu t</w>\n")
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return path


def test_clips_are_seen_as_by_transformers_own_processor(folder):
    from transformers import VideoMAEImageProcessor, XCLIPModel

    clips = np.random.default_rng(0).integers(0, 255, (3, 4, 32, 32, 3), dtype=np.uint8)
    processor = VideoMAEImageProcessor.from_pretrained(folder)
    pixels = processor([list(clip) for clip in clips], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        whole = XCLIPModel.from_pretrained(folder).eval()(input_ids=torch.tensor([[6, 4, 7]]), pixel_values=pixels)
        expected = normalize(whole.video_embeds, dim=-1)
    found = load_xclip(str(folder), CPU).encode_clips(clips, batch=2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_features_of_a_scene_answer_queries(folder, tmp_path):
    root = write_scene(tmp_path / "squares", frames=3, video=40, size=(12, 16))
    options = XClipSourceConfig(weights=str(folder), clip_length=4)
    config = ExtractConfig(data=root, output=tmp_path / "features", device="cpu", sources=("xclip",), xclip=options)
    store = FeatureStore.open(config.main()[0])
    assert store.header.kind == "video" and store.header.settings["clip_stride"] == 4 and store.dimension == 16
    pictures = Pictures(load_scene(root))
    clip = pictures.clip(1, 4, 4)
    tiles = Tiles.of(*clip.shape[1:3], share=0.3, overlap=0.5)
    model = load_xclip(str(folder), CPU)
    np.testing.assert_allclose(store.frame_features(1)[1], model.encode_clips(tiles.cut(clip)), atol=1e-3)
    assert store.header.text_encoder is not None
    found = text_encoder(store.header.text_encoder)(["cut", "cut cut"])
    with torch.inference_mode():
        direct = model.model.get_text_features(torch.tensor([[6, 4, 7]]))
    torch.testing.assert_close(found[:1], normalize(direct, dim=-1), atol=1e-5, rtol=0)
    assert (found[0] - found[1]).abs().max() > 1e-4
    config.overwrite, config.xclip = True, replace(options, clip_length=8)
    with pytest.raises(EncoderError, match=r"clips of 4 pictures, not 8: give --xclip\.clip-length 4"):
        config.main()


def test_a_model_that_is_not_to_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EncoderError, match=r"--xclip\.weights|model's own"):
        load_xclip(str(tmp_path), CPU)


def test_a_folder_may_be_named_from_ones_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    assert load_xclip(f"~/{folder.name}", CPU).fingerprint == load_xclip(str(folder), CPU).fingerprint
