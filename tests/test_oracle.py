"""Features of scenes whose objects are known, and what they answer."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import small_scene
import torch

from divff_nerfstudio.data.scene import load_scene
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.oracle import canonical, phrase_code
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.sources import source_class
from divff_nerfstudio.features.text import text_encoder


def source(root: Path, name: str):
    return source_class(name)(Pictures(load_scene(root)), "demo", torch.device("cpu"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_scene.write(tmp_path / "scene")


def test_codes_are_the_phrases_own():
    assert canonical(" A  red Mug ") == "red mug" and canonical("another") == "another"
    np.testing.assert_array_equal(phrase_code("a red mug"), phrase_code("Red mug"))
    assert np.linalg.norm(phrase_code("mug")) == pytest.approx(1)
    assert abs(phrase_code("mug") @ phrase_code("bowl")) < 0.5
    assert phrase_code("mug")[:2].tolist() == pytest.approx([-0.13118547, 0.04975411], abs=1e-6)  # on every machine


def test_objects_answer_to_name_and_description(root):
    made = source(root, "oracle-objects")
    assert made.header().model == "oracle"
    frame = made.extract(4)
    picture = frame.table[frame.index]
    encode = text_encoder(made.text_encoder())
    for phrase in ("mug", "a red mug", "red mug"):
        similarity = picture @ encode([phrase])[0].numpy()
        np.testing.assert_array_equal(similarity > 0.9, small_scene.layers(4) == 1)
    bowl = picture @ encode(["bowl"])[0].numpy()
    np.testing.assert_array_equal(bowl > 0.9, small_scene.object_masks(4)[..., 1])


def test_actions_answer_where_they_are_afforded_in_every_frame(root):
    made = source(root, "oracle-actions")
    encode = text_encoder(made.text_encoder())
    for index in (0, 4, 11):  # the annotations are of frames 4 and 8 only
        frame = made.extract(index)
        similarity = frame.table[frame.index] @ encode(["take the mug"])[0].numpy()
        np.testing.assert_array_equal(similarity > 0.9, small_scene.layers(index) == 1)


@pytest.mark.parametrize(
    ("name", "missing"), [("oracle-objects", "ground_truth"), ("oracle-actions", "affordance_annotations")]
)
def test_what_is_missing_is_named(root, name, missing):
    shutil.rmtree(root / missing)
    with pytest.raises(DivffError, match=missing.replace("_", "[_ ]")):
        source(root, name)
