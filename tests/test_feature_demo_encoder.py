"""The demo encoder that comes with the package, and the scripts that train it."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from divff_nerfstudio.features.encoder_loading import DEMO_ENCODER, MERGES, load_encoder

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)


def test_it_loads_offline_and_is_small(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    load_encoder.cache_clear()
    encoder = load_encoder("demo")
    assert isinstance(encoder.model, open_clip.CLIP) and encoder.clip_tower is not None
    assert sum(weight.numel() for weight in encoder.model.parameters()) < 5e6
    assert sum(path.stat().st_size for path in DEMO_ENCODER.iterdir()) < 8e6


def test_object_crops_show_the_object_and_repeat():
    from demo_encoder_objects import COLOUR_NAMES, KINDS, render_object_crop

    colours = {}
    for kind in KINDS:
        picture, mask = render_object_crop(np.random.default_rng(1), kind, "red", size=24)
        again, _ = render_object_crop(np.random.default_rng(1), kind, "red", size=24)
        assert picture.shape == (24, 24, 3) and picture.dtype == np.uint8 and mask.shape == (24, 24)
        assert np.array_equal(picture, again)
        assert mask.sum() > 6, kind
    for colour in COLOUR_NAMES:
        picture, mask = render_object_crop(np.random.default_rng(2), "mug", colour, 32, "plain", hand=False)
        colours[colour] = picture[mask].mean(0)
    assert colours["red"][0] > 2 * colours["red"][2] and colours["blue"][2] > 2 * colours["blue"][0]
    assert colours["white"].mean() > 2 * colours["black"].mean()


def test_it_knows_colours_of_objects_rendered_anew():
    from demo_encoder_objects import COLOUR_NAMES, KINDS, render_object_crop

    from divff_nerfstudio.features.open_clip_source import masked_crop

    random = np.random.default_rng(2**31)
    encoder = load_encoder("demo")
    wanted, crops = [], []
    while len(crops) < 60:
        colour = int(random.integers(len(COLOUR_NAMES)))
        picture, mask = render_object_crop(random, str(random.choice(KINDS)), COLOUR_NAMES[colour])
        if mask.sum() > 100:
            wanted.append(colour)
            crops.append(masked_crop(picture, mask))
    words = encoder.encode_text([f"something {colour}" for colour in COLOUR_NAMES])
    found = (encoder.encode_images(crops) @ words.T).argmax(-1)
    assert (found == torch.tensor(wanted)).float().mean() > 0.6  # 0.08 by chance


def test_every_caption_is_true_of_something_and_false_of_something():
    from demo_encoder_captions import image_captions, things, video_captions

    everything = things()
    for captions in (image_captions(everything), video_captions(everything)):
        assert len(set(captions.texts)) == len(captions.texts) == captions.true.shape[1]
        assert captions.true.any(0).all() and not captions.true.all(0).any()
        assert not (captions.true & captions.unknown).any()
    images, videos = image_captions(everything), video_captions(everything)

    def kinds(captions, text):
        return {everything[i].kind for i in np.flatnonzero(captions.true[:, captions.texts.index(text)])}

    assert kinds(images, "cup") == {"mug"} and kinds(images, "fruit") == {"banana", "apple", "lemon"}
    assert kinds(videos, "wash the dishes") == {"sink", "tap"}
    red = np.flatnonzero(images.true[:, images.texts.index("a red cup")])
    assert [(everything[i].kind, everything[i].colour) for i in red] == [("mug", "red")]


def test_it_says_what_it_can_name():
    from train_demo_encoder import KIND_NAMES

    assert load_encoder("demo").names == KIND_NAMES


def test_merges_make_frequent_words_whole(tmp_path):
    from train_demo_encoder import byte_pair_merges, write_merges

    merges = byte_pair_merges(["the red mug", "the red bowl", "the mug"], 20)
    write_merges(tmp_path / MERGES, merges)
    assert gzip.decompress((tmp_path / MERGES).read_bytes()).startswith(b"#version")
    tokenizer = open_clip.SimpleTokenizer(bpe_path=str(tmp_path / MERGES), context_length=8)
    assert len(tokenizer.encode("the red mug")) == 3  # a token a word
    assert len(tokenizer.encode("zzz")) == 3  # a token a letter


def test_truth_of_a_batch_is_the_share_of_what_it_is_true_of():
    from demo_encoder_captions import Thing, image_captions, things
    from demo_encoder_samples import NUMBERS, Samples
    from train_demo_encoder import Task

    captions = image_captions(things())
    shown = np.array([[NUMBERS[Thing("mug", "red")], NUMBERS[Thing("wall")], 0, 0]], np.int16)
    shares = np.array([[0.75, 0.25, 0, 0]], np.float16)
    samples = Samples(np.zeros((1, 64, 64, 3), np.uint8), shown, shares, np.array([False]))
    encoder = open_clip.SimpleTokenizer(bpe_path=str(DEMO_ENCODER / MERGES), context_length=16)
    task = Task(samples, captions, ("object",), encoder, 0)
    texts = np.array([captions.texts.index(text) for text in ("mug", "red mug", "wall", "bowl", "something red")])
    truth, known = task.truth(np.array([0]), texts)
    assert truth[0].tolist() == pytest.approx([0.75, 0.75, 0.25, 0.0, 0.75])
    assert known[0].tolist() == pytest.approx([1, 1, 1, 1, 0.75])


def test_a_kitchen_gives_described_crops_and_tiles():
    from demo_encoder_samples import INPUT, Kitchen, clip_samples, segment_samples

    kitchen = Kitchen(10_000)
    kitchen.shuffle()
    for samples, fewest in ((list(segment_samples(kitchen)), 10), (list(clip_samples(kitchen)), 10)):
        assert len(samples) >= fewest
        for picture, named, shares in samples:
            assert picture.shape == (INPUT, INPUT, 3) and len(named) == len(shares) > 0
            assert 0 < sum(shares) <= 1 + 1e-6 and shares == sorted(shares, reverse=True)


def test_a_tiny_training_writes_an_encoder_that_loads(tmp_path, monkeypatch):
    import demo_encoder_samples
    import train_demo_encoder

    monkeypatch.setattr(demo_encoder_samples, "VIEWS", 1)
    monkeypatch.setattr(demo_encoder_samples, "CLIPS", 1)
    monkeypatch.setattr(demo_encoder_samples, "CROPS", 12)
    made = [demo_encoder_samples._render(seed) for seed in (0, 1)]
    samples = tuple(
        demo_encoder_samples.Samples(
            *(np.concatenate([getattr(part[kind], name) for part in made]) for name in vars(made[0][kind]))
        )
        for kind in (0, 1)
    )
    monkeypatch.setattr(train_demo_encoder, "load_samples", lambda folder, kitchens: samples)
    monkeypatch.setattr(train_demo_encoder, "accuracies", lambda *arguments: {})
    config = train_demo_encoder.TrainConfig(
        tmp_path, 2, tmp_path / "encoder", minutes=0.02, batch=8, texts=12, image_width=8, text_width=32, text_layers=1
    )
    train_demo_encoder.train(config)
    encoder = load_encoder(str(tmp_path / "encoder"))
    assert encoder.clip_tower is not None and encoder.encode_text(["a mug"]).shape == (1, config.dimension)
    sys.modules.pop("train_demo_encoder", None)
