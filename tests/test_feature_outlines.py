"""Segments by learned outlines: how regions are put together, the weights that ship, and how they are trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.measure import label
from test_feature_encoders import write_scene

from divff_nerfstudio.data.scene import load_scene
from divff_nerfstudio.features.agglomeration import regions_of
from divff_nerfstudio.features.open_clip_source import SegmentSource
from divff_nerfstudio.features.outlines import OFFSETS, OUTLINES, OutlineSegmenterConfig
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.segments import ColourSegmenterConfig

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def scripts_on_path(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)


def foreseen(instances: np.ndarray, sure: float = 0.9) -> np.ndarray:
    """What a network would foresee that is never wrong."""
    height, width = instances.shape
    found = np.full((len(OFFSETS), height, width), 0.5, np.float32)
    for (down, right), values in zip(OFFSETS, found, strict=True):
        here, there = instances[: max(height - down, 0), : max(width - right, 0)], instances[down:, right:]
        values[: here.shape[0], : here.shape[1]] = np.where(here != there, sure, 1 - sure)
    return found


def parts(instances: np.ndarray) -> np.ndarray:
    """Numbers the connected parts of each instance."""
    return np.asarray(label(instances, background=-1, connectivity=1))


def same(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two maps part the pixels in the same way."""
    pairs = np.unique(np.stack((first.ravel(), second.ravel())), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


@given(arrays(np.int64, st.tuples(st.integers(1, 18), st.integers(1, 30)), elements=st.integers(0, 3)))
def test_what_is_foreseen_without_fault_is_found_without_fault(instances):
    assert same(regions_of(foreseen(instances), OFFSETS, 0.5, 0), parts(instances))


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.integers(0, 60))
def test_noise_ends_in_regions_that_are_large_enough(seed, height, width, min_size):
    noise = np.random.default_rng(seed).random((len(OFFSETS), height, width), np.float32)
    regions = regions_of(noise, OFFSETS, 0.5, min_size)
    assert np.bincount(regions.ravel()).min() >= min(min_size, height * width)
    assert same(regions, parts(regions))  # none is in two parts


def test_a_gap_in_an_outline_does_not_join_what_it_parts():
    instances = np.zeros((40, 60), int)
    instances[10:30, 20:45] = 1
    leaky = foreseen(instances)
    gap = leaky[:2, 15:18]
    gap[gap > 0.5] = 0.3  # less than the limit
    assert same(regions_of(leaky, OFFSETS, 0.5, 16), instances)


@pytest.mark.parametrize("shape", [(1, 1), (16, 1), (3, 400), (400, 3), (200, 20)])
def test_pictures_of_any_shape_are_segmented(shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    segments = OutlineSegmenterConfig().setup().segment(picture)
    assert segments.shape == shape and segments.min() == 0


def test_objects_are_wholer_than_by_colour(scripts_on_path):
    from demo_encoder_samples import SIZES, Kitchen
    from demo_outline_samples import Views
    from train_demo_outlines import wholeness

    kitchen = Kitchen(2**20, SIZES[:1])
    shown = []
    for _ in range(3):
        kitchen.shuffle()
        shown.append(kitchen.picture(0.0))
    views = Views(*(np.stack([pair[i] for pair in shown]).astype(np.uint8) for i in range(2)))
    by_colour = wholeness(views, ColourSegmenterConfig().setup().segment, every=1)
    learned = wholeness(views, OutlineSegmenterConfig().setup().segment, every=1)
    for size in ("full_mean_best_iou", "half_mean_best_iou"):
        assert learned[size] > by_colour[size] + 0.05


def test_the_header_tells_options_and_weights(tmp_path):
    from safetensors.torch import load_file, save_file

    segmenter = OutlineSegmenterConfig(different=0.4).setup()
    settings = segmenter.settings()
    assert settings["name"] == "outlines" and settings["different"] == 0.4
    json.dumps(settings)
    weights = load_file(OUTLINES)
    weights["head.bias"] += 1
    save_file(weights, tmp_path / "other.safetensors")
    other = OutlineSegmenterConfig(different=0.4).setup(weights=tmp_path / "other.safetensors")
    assert other.settings()["fingerprint"] != settings["fingerprint"]


def test_the_demo_encoder_cuts_along_outlines(tmp_path):
    pictures = Pictures(load_scene(write_scene(tmp_path / "scene", frames=3)))
    assert SegmentSource(pictures, "demo", torch.device("cpu")).settings()["segmenter"]["name"] == "outlines"


def test_a_tiny_training_writes_weights_that_load(tmp_path, scripts_on_path, capsys):
    from demo_outline_samples import VIEWS
    from train_demo_outlines import TrainConfig, train

    random = np.random.default_rng(0)
    for seed in range(2):  # the first is held out
        instances = np.kron(random.integers(59, 64, (VIEWS, 4, 5)), np.ones((32, 32), int)).astype(np.uint8)
        pictures = (instances[..., None] * (3, 2, 1)).astype(np.uint8)
        np.savez(tmp_path / f"views_{seed:03d}.npz", pictures=pictures, instances=instances)
    config = TrainConfig(samples=tmp_path, kitchens=2, output=tmp_path / "weights.safetensors", minutes=1e-3, batch=2)
    train(config)
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] >= 1 and 0 < printed["outlines 0.5"]["full_mean_best_iou"] <= 1
    OutlineSegmenterConfig().setup(weights=config.output)
