"""Baselines with detectors, masks of boxes and CLIP of crops, by tiny random models of the same classes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_scene
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_feature_sam import write_sam
from torch.nn.functional import normalize

from divff_nerfstudio.evaluation.baselines import crops, owl
from divff_nerfstudio.evaluation.baselines.base import at_threshold
from divff_nerfstudio.evaluation.baselines.models import BaselineModels, SamWeights
from divff_nerfstudio.evaluation.run import Wanted, evaluate
from divff_nerfstudio.features.pretrained import EncoderError
from divff_nerfstudio.features.sam import SamSegmenterConfig

CPU = torch.device("cpu")


def write_owl(folder: Path, kind: str) -> str:
    """A random OWL with a vocabulary of letters."""
    import transformers

    torch.manual_seed(0)
    names = {"owlv2": "Owlv2", "owlvit": "OwlViT"}[kind]
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 2}
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["!", *letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vision = getattr(transformers, f"{names}VisionConfig")(**sizes, image_size=32, patch_size=8)
    text = getattr(transformers, f"{names}TextConfig")(**sizes, vocab_size=len(words), max_position_embeddings=16)
    config = getattr(transformers, f"{names}Config")(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=32
    )
    getattr(transformers, f"{names}ForObjectDetection")(config).save_pretrained(folder)
    processor = getattr(transformers, f"{names}ImageProcessor")(size={"height": 32, "width": 32})
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(folder / "vocab.json", folder / "merges.txt", model_max_length=16)
    getattr(transformers, f"{names}Processor")(processor, tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    owls = {kind: write_owl(root / kind, kind) for kind in ("owlv2", "owlvit")}
    return owls | {"sam": write_sam(root / "sam")}


@pytest.mark.parametrize("kind", ["owlv2", "owlvit"])
def test_boxes_are_those_of_transformers_own_processor(folders, kind):
    picture = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    model = owl.Owl(folders[kind], CPU)
    asked = model._processor(text=[["mug"]], images=picture, return_tensors="pt")
    with torch.inference_mode():
        answer = model.model(**asked)
    expected = model._processor.post_process_grounded_object_detection(
        answer, threshold=0.0, target_sizes=torch.tensor([[24, 40]])
    )[0]
    (boxes, scores), *others = model.boxes(picture, ["mug"])
    assert others == [] and len(boxes) == len(scores) > 0 and (scores.diff() <= 0).all()
    best = expected["boxes"][expected["scores"].argmax()]
    torch.testing.assert_close(boxes[0], best.minimum(torch.tensor([40, 24, 40, 24])).clamp_min(0), atol=1e-3, rtol=0)
    assert scores[0] == pytest.approx(float(expected["scores"].max()), abs=1e-6)


def test_missing_files_are_said_in_one_sentence(folders, tmp_path):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(folders["owlv2"], bare)
    for name in bare.iterdir():
        if name.name not in ("config.json", "model.safetensors"):
            name.unlink()
    with pytest.raises(EncoderError, match=r"preprocessor_config.json.*--models.owl FOLDER"):
        owl.Owl(str(bare), CPU)


def test_masks_of_boxes_are_as_large_as_the_picture(folders):
    segmenter = SamSegmenterConfig(weights=folders["sam"]).setup()
    picture = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    boxes = torch.tensor([[0.0, 0.0, 20.0, 12.0], [10.0, 4.0, 40.0, 24.0]])
    masks = segmenter.box_masks(picture, boxes)
    assert masks.shape == (2, 24, 40) and masks.dtype == bool
    assert (masks[1:] != segmenter.box_masks(picture, boxes[1:])).mean() < 0.01, "but for rounding at their edges"
    assert segmenter.box_masks(picture, boxes[:0]).shape == (0, 24, 40)


def test_detections_are_scored_in_the_rendering_or_in_the_frame(folders, tmp_path, monkeypatch):
    """A detector that knows the mug by its colour, and masks that fill their box."""
    seen = []

    def boxes(self, picture, phrases):
        seen.append((picture, tuple(phrases)))
        rows, cols = np.nonzero((picture[..., 0] > 150) & (picture[..., 1] < 90))
        box = torch.tensor([[cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]]).float()
        none = (torch.zeros(0, 4), torch.zeros(0))
        return [(box, torch.tensor([0.2])) if "mug" in phrase else none for phrase in phrases]

    def masks(self, picture, found):
        filled = np.zeros((len(found), *picture.shape[:2]), bool)
        for mask, (left, top, right, bottom) in zip(filled, found.int().tolist(), strict=True):
            mask[top:bottom, left:right] = True
        return filled

    monkeypatch.setattr(owl.Owl, "boxes", boxes)
    monkeypatch.setattr("divff_nerfstudio.features.sam.SamSegmenter.box_masks", masks)
    models = BaselineModels(owl=folders["owlv2"], sam=SamWeights(folders["sam"]))
    datamanager = small_scene.datamanager(small_scene.write(tmp_path / "scene"))
    wanted = Wanted(tasks=("objects", "affordances"), baselines=("owl", "owl-real"), models=models)
    evaluation = evaluate(small_scene.KnowingModel(error=0.05), datamanager, small_scene.make_query(), wanted=wanted)
    for found in evaluation.baselines.values():
        assert set(found.classes) == {"object", "affordance"}
        assert found.classes["object"]["mug"]["iou"] == 1.0 and found.classes["object"]["bowl"]["iou"] == 0.0
        assert found.totals["affordance_miou"] == 1.0
    assert {phrases for _, phrases in seen} == {
        tuple(f"a photo of a {name}" for name in sorted(small_scene.OBJECTS)), small_scene.ACTIONS,
    }  # fmt: skip
    real = [any((picture == small_scene.picture(frame)).all() for frame in small_scene.TEST) for picture, _ in seen]
    assert sum(real) == len(real) / 2


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_thresholds_are_moved_and_the_order_stays(values, own, fixed):
    scores = np.sort(np.array(values))
    found = at_threshold(scores, own, fixed)
    assert (np.diff(found) >= 0).all() and found.min() >= 0 and found.max() <= 1
    assert (found[scores > own + 1e-4] > np.float32(fixed)).all()
    assert (found[scores < own - 1e-4] < np.float32(fixed)).all()


class Colours:
    """An encoder whose embedding is the mean colour."""

    dimension = small_scene.DIMENSION

    def encode_images(self, pictures):
        means = [torch.tensor(np.array(picture).mean((0, 1)) / 255).float() for picture in pictures]
        return normalize(torch.nn.functional.pad(torch.stack(means), (0, 3)), dim=-1)


def test_crops_of_a_picture_of_two_halves():
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, :48, 0], picture[:, 48:, 1] = 255, 255
    features = crops.crop_features(Colours(), picture, (0.15, 0.3))
    assert features.shape[:2] == (64 // 4 + 1, 96 // 4 + 1)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(features.shape[:2]))
    columns = features.shape[1]
    assert (features[:, : columns // 2 - 3, 0] > 0.99).all() and (features[:, columns // 2 + 4 :, 1] > 0.99).all()
    middle = features[:, columns // 2]
    torch.testing.assert_close(middle[:, 0], middle[:, 1], atol=0.15, rtol=0)


def test_crops_answer_where_the_encoder_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(crops, "load_encoder", lambda name, device: {"colours": Colours()}[name])
    datamanager = small_scene.datamanager(small_scene.write(tmp_path / "scene"))
    wanted = Wanted(tasks=("objects", "affordances"), baselines=("lerf",))

    def scores(entry):
        datamanager.feature_stores = {"image": SimpleNamespace(header=SimpleNamespace(text_encoder=entry), table=())}
        return evaluate(small_scene.KnowingModel(), datamanager, small_scene.make_query(), wanted=wanted)

    found = scores({"encoder": "colours"}).baselines["lerf"]
    assert set(found.classes) == {"object", "affordance_image"}  # the mug's code is red
    assert found.classes["object"]["mug"]["ap"] > 0.1  # 0.04 by chance
    assert scores({"family": "oracle"}).baselines["lerf"].classes == {}
