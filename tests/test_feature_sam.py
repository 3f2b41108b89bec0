"""SAM's automatic masks and DINOv2's tokens, with tiny random models of transformers through the real loading code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_feature_encoders import write_encoder, write_scene

from divff_nerfstudio.data.scene import load_scene
from divff_nerfstudio.features import sam
from divff_nerfstudio.features.open_clip_source import SegmentSource, SegmentSourceConfig
from divff_nerfstudio.features.patches import DinoSource, DinoSourceConfig
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.pretrained import EncoderError
from divff_nerfstudio.features.sam import SamSegmenter, SamSegmenterConfig, crop_boxes, filled_and_rid, mask_nms
from divff_nerfstudio.features.segments import Segmenter
from divff_nerfstudio.features.store import NO_FEATURE

CPU = torch.device("cpu")


def write_sam(folder: Path) -> str:
    torch.manual_seed(0)
    side = 64
    backbone = {
        "hidden_size": 8,
        "num_attention_heads": 1,
        "image_size": [side, side],
        "blocks_per_stage": [1, 1, 1, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [8, 4, 2, 1],
        "window_positional_embedding_background_size": [4, 4],
        "global_attention_blocks": [],
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
    }
    prompts = {"hidden_size": 32, "image_size": side, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    config = transformers.Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    transformers.Sam2Model(config).save_pretrained(folder)
    return str(folder)


def write_dino(folder: Path) -> str:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=72, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=1, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory) -> str:
    return write_sam(tmp_path_factory.mktemp("sam") / "tiny")


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory) -> str:
    return write_dino(tmp_path_factory.mktemp("dino") / "tiny")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def lenient(folder: str, **options) -> SamSegmenter:
    """A random model's masks are poor and unstable; without thresholds they pass."""
    thresholds = {"predicted_iou": -10.0, "stability": 0.0, "points_per_side": 3, "min_region": 0, "nms": 0.99}
    return SamSegmenterConfig(weights=folder, **{**thresholds, **options}).setup()


PICTURE = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)


def test_the_whole_picture_is_asked_at_every_point(sam_folder):
    segmenter = lenient(sam_folder, crop_layers=0, nms=1.0)
    masks = segmenter.masks(PICTURE)
    assert masks.shape[1:] == (48, 80) and masks.dtype == bool and len(masks) > 9
    processor = transformers.Sam2ImageProcessorFast(
        size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16}
    )
    inputs = processor(images=[PICTURE], return_tensors="pt")
    points = torch.tensor([[x, y] for y in (1, 3, 5) for x in (1, 3, 5)]) / 6 * 64
    with torch.no_grad():
        output = segmenter.model(pixel_values=inputs["pixel_values"], input_points=points[None, :, None])
    logits = torch.nn.functional.interpolate(output.pred_masks[0], (48, 80), mode="bilinear").flatten(0, 1)
    expected, scores = logits > 0, output.iou_scores.flatten()
    some = expected.any(2).any(1)
    expected = expected[some][scores[some].argsort(descending=True)].numpy()
    agreement = [(masks == one).mean((1, 2)).max() for one in expected]
    assert min(agreement) > 0.97  # the picture is resized by another interpolation of the same kind


def test_crops_that_are_looked_at_together_have_the_masks_of_each(sam_folder, monkeypatch):
    segmenter = lenient(sam_folder)
    alone = segmenter.masks(PICTURE)
    monkeypatch.setattr(sam, "_CROPS", {"cpu": 3})  # as on a GPU
    together = segmenter.masks(PICTURE)
    assert len(alone) > 1 and together.shape == alone.shape
    assert (together != alone).mean() < 1e-3  # sums in another order


def test_segment_is_the_last_mask(sam_folder):
    segmenter = lenient(sam_folder, crop_layers=0)
    masks, segments = segmenter.masks(PICTURE), segmenter.segment(PICTURE)
    expected = np.full((48, 80), -1)
    for number, mask in enumerate(masks):
        expected[mask] = number
    np.testing.assert_array_equal(segments, expected)


def test_area_order_puts_small_things_on_top(sam_folder):
    areas = lenient(sam_folder, order="area", crop_layers=0).masks(PICTURE).sum((1, 2))
    assert (np.diff(areas) <= 0).all()


def test_large_pictures_are_segmented_smaller(sam_folder):
    large = PICTURE.repeat(4, 0).repeat(4, 1)
    masks = lenient(sam_folder, crop_layers=0, working_side=80).masks(large)
    assert masks.shape[1:] == (192, 320)
    blocks = masks.reshape(-1, 48, 4, 80, 4)
    assert (blocks == blocks[:, :, :1, :, :1]).all()


def test_nothing_good_is_no_segment(sam_folder):
    segmenter = lenient(sam_folder, predicted_iou=10.0)
    assert segmenter.masks(PICTURE).shape == (0, 48, 80)
    assert (segmenter.segment(PICTURE) == -1).all()


def test_crops_are_those_of_sam():
    boxes = list(crop_boxes(256, 456, 1))
    # SAM's own numbers: overlap int(512/1500 * 256) = 87, crops ceil((87 + side) / 2)
    assert boxes == [
        (0, 0, 256, 456),
        (0, 0, 172, 272),
        (85, 0, 256, 272),
        (0, 185, 172, 456),
        (85, 185, 256, 456),
    ]
    assert len(list(crop_boxes(256, 456, 2))) == 1 + 4 + 16


def test_parts_of_things_in_crops_are_left_out(sam_folder):
    picture = np.random.default_rng(0).integers(0, 255, (150, 240, 3), dtype=np.uint8)
    segmenter = lenient(sam_folder)
    size, box = (150, 240), (0, 0, 101, 146)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    masks, scores = segmenter._crop_masks(segmenter._crop_embeddings(pixels, size, [box])[0], size, box)
    assert len(masks) == len(scores) and masks.shape[1:] == (101, 146)
    assert not masks[:, -21:].any() and not masks[:, :, -21:].any()


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 12), threshold=st.floats(0, 1))
def test_nms_is_the_greedy_one(seed, count, threshold):
    random = np.random.default_rng(seed)
    masks = random.random((count, 3, 4)) < random.random((count, 1, 1))
    scores = random.integers(0, 4, count).astype(np.float32)
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        shared = [(masks[i] & masks[j]).sum() / max((masks[i] | masks[j]).sum(), 1) for j in kept]
        if all(iou <= np.float32(threshold) for iou in shared):
            kept.append(int(i))
    assert mask_nms(torch.from_numpy(masks), torch.from_numpy(scores), threshold).tolist() == kept


def test_small_holes_are_filled_and_small_islands_removed():
    mask = np.zeros((40, 60), bool)
    mask[5:25, 5:35] = True
    mask[10:13, 10:13] = False  # 9 pixels: a hole
    mask[15:22, 20:30] = False  # 70 pixels: an opening
    mask[35:37, 50:52] = True  # 4 pixels: an island
    cleaned = filled_and_rid(mask, 20)
    assert cleaned[11, 11] and not cleaned[18, 25] and not cleaned[36, 51] and cleaned[6, 6]
    assert filled_and_rid(mask, 10_000).sum() == 0 or filled_and_rid(mask, 10_000).all()
    island = np.zeros((40, 60), bool)
    island[3, 3] = island[9:11, 9] = True
    np.testing.assert_array_equal(np.argwhere(filled_and_rid(island, 20)), [[9, 9], [10, 9]])
    assert not filled_and_rid(np.zeros((4, 4), bool), 5).any()


class Overlapping(Segmenter):
    """A cup before a wall; a stripe that the cup hides as a whole."""

    def segment(self, picture):
        raise NotImplementedError

    def masks(self, picture):
        masks = np.zeros((3, *picture.shape[:2]), bool)
        masks[0, :, :30] = True
        masks[1, 10:12, 10:20] = True
        masks[2, 4:20, 5:45] = True
        return masks

    def settings(self):
        return {"name": "overlapping"}


def test_overlapping_segments_are_weighed_as_published(tmp_path):
    pictures = Pictures(load_scene(write_scene(tmp_path / "scene")))
    config = SegmentSourceConfig(segmenter="test_feature_sam:Overlapping", min_share=0.0)
    source = SegmentSource(pictures, write_encoder(tmp_path / "encoder"), CPU, config)
    features = source.extract(0)
    picture = pictures.sharpest(0)
    expected = np.full(picture.shape[:2], NO_FEATURE, np.uint16)
    expected[:, :30] = 0
    expected[4:20, 5:45] = 1
    np.testing.assert_array_equal(features.index, expected)
    assert len(features.table) == 2
    square = np.zeros((40, 40, 3), np.uint8)
    square[12:28] = picture[4:20, 5:45]
    masked, boxed = source.encoder.encode_images([square]), source.encoder.encode_images([picture[4:20, 5:45]])
    np.testing.assert_allclose(
        features.table[1], torch.nn.functional.normalize(0.75 * masked + 0.25 * boxed, dim=-1)[0], atol=1e-6
    )
    wall = np.zeros((32, 32, 3), np.uint8)
    wall[:, 1:31] = picture[:, :30]  # whole, also where the cup is before it
    masked, boxed = source.encoder.encode_images([wall]), source.encoder.encode_images([picture[:, :30]])
    np.testing.assert_allclose(
        features.table[0], torch.nn.functional.normalize(0.75 * masked + 0.25 * boxed, dim=-1)[0], atol=1e-6
    )


def test_sams_settings_tell_its_weights(sam_folder):
    settings = lenient(sam_folder).settings()
    assert settings["name"] == "sam2" and len(settings["fingerprint"]) == 64 and settings["nms"] == 0.99
    published = SamSegmenterConfig()
    assert (published.points_per_side, published.predicted_iou, published.stability) == (32, 0.7, 0.85)
    assert (published.nms, published.crop_layers, published.min_region) == (0.7, 1, 225)


@pytest.mark.parametrize("weights", ["large", "someone/sam"])
def test_weights_that_cannot_be_downloaded(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(EncoderError) as error:
        SamSegmenterConfig(weights=weights).setup()
    message = str(error.value)
    name = "facebook/sam2.1-hiera-large" if weights == "large" else weights
    assert f"config.json and model.safetensors from https://huggingface.co/{name}" in message
    assert "--segments.sam.weights FOLDER" in message and "\n" not in message


def test_weights_that_are_not_whole_are_refused(sam_folder, dino_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for folder, load in (
        (sam_folder, lambda path: SamSegmenterConfig(weights=path).setup()),
        (dino_folder, lambda path: DinoSource(None, "", CPU, DinoSourceConfig(weights=path))),  # pyright: ignore
    ):
        copy = tmp_path / Path(folder).parent.name
        copy.mkdir()
        (copy / "config.json").write_bytes((Path(folder) / "config.json").read_bytes())
        with pytest.raises(EncoderError, match=r"config\.json and model\.safetensors there"):
            load(str(copy))
        weights = load_file(Path(folder) / "model.safetensors")
        lost = sorted(weights)[5]
        del weights[lost]
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(EncoderError, match="lack"):
            load(str(copy))
        whole = (Path(folder) / "model.safetensors").read_bytes()
        (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(EncoderError, match="cannot be used"):
            load(str(copy))


def test_dinov2_sees_the_picture_in_its_own_shape(tmp_path, dino_folder):
    scene = load_scene(write_scene(tmp_path / "scene"))
    source = DinoSource(Pictures(scene), "", CPU, DinoSourceConfig(weights=dino_folder, height=56))
    features = source.extract(0)
    assert features.index.shape == (4, 7) and features.table.shape == (28, 72) and source.dimension == 64
    picture = Pictures(scene).sharpest(0)
    resized = torch.from_numpy(np.array(Image.fromarray(picture).resize((98, 56), Image.Resampling.BICUBIC)))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((resized / 255 - mean) / std).permute(2, 0, 1)
    with torch.no_grad():
        expected = source.tower(pixels[None]).last_hidden_state[0, 1:]
    np.testing.assert_allclose(features.table, expected, atol=1e-5)
    half = DinoSource(Pictures(scene), "", CPU, DinoSourceConfig(weights=dino_folder, height=56, statistics="half"))
    assert half.settings()["statistics"] == "half"
    assert np.abs(half.extract(0).table - features.table).max() > 1e-3


def test_dinov2_sees_several_frames_at_once(tmp_path, dino_folder):
    pictures = Pictures(load_scene(write_scene(tmp_path / "scene")))
    source = DinoSource(pictures, "", CPU, DinoSourceConfig(weights=dino_folder, height=56))
    for frame, features in enumerate(source.encode([source.prepare(frame) for frame in range(3)])):
        np.testing.assert_allclose(features.table, source.extract(frame).table, atol=1e-5)


def test_another_model_than_dinov2_is_refused(sam_folder, tmp_path):
    pictures = Pictures(load_scene(write_scene(tmp_path / "scene")))
    with pytest.raises(EncoderError, match="holds a sam2"):
        DinoSource(pictures, "", CPU, DinoSourceConfig(weights=sam_folder))
