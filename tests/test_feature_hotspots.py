"""Interaction hotspots: boxes, masks, the whole clip's feature, and the loss that it adds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch
from conftest import TINY_FRAMES
from hypothesis import given
from hypothesis import strategies as st
from test_datamanager import manager, write_features
from test_feature_encoders import write_encoder, write_scene
from test_model import HEADS_START, batch_of, bundle, make_model

from divff_nerfstudio.data.detections import FILE, Detections, DetectionsError, read_detections
from divff_nerfstudio.data.scene import SceneError, load_scene
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.encoder_loading import load_encoder
from divff_nerfstudio.features.extract import ExtractConfig
from divff_nerfstudio.features.hotspots import HotspotSource, HotspotSourceConfig, hotspot_mask
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.store import FeatureStore, FeatureWriter, FrameFeatures
from divff_nerfstudio.models.distillation import feature_loss

CPU = torch.device("cpu")
coordinates = st.integers(-5, 40)
boxes = st.tuples(coordinates, coordinates, st.integers(0, 30), st.integers(0, 30)).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)


@given(hands=st.lists(boxes, max_size=2), objects=st.lists(boxes, max_size=3), margin=st.integers(0, 4))
def test_a_pixel_is_hot_where_a_hand_meets_an_object(hands, objects, margin):
    found = hotspot_mask(Detections(tuple(hands), tuple(objects)).hotspots(margin), (36, 20), 20, 36)
    expected = np.zeros((20, 36), bool)
    for hand in hands:
        places = []
        for other in objects:
            x0, y0, x1, y1 = (
                max(hand[0], other[0]),
                max(hand[1], other[1]),
                min(hand[2], other[2]),
                min(hand[3], other[3]),
            )
            if x0 < x1 and y0 < y1:
                places.append((x0, y0, x1, y1))
        for x0, y0, x1, y1 in places or [hand]:
            expected[max(0, y0 - margin) : max(0, y1 + margin), max(0, x0 - margin) : max(0, x1 + margin)] = True
    np.testing.assert_array_equal(found, expected)


def test_boxes_are_scaled_to_the_frame():
    mask = hotspot_mask([(114, 64, 228, 128)], (456, 256), 16, 28)
    assert np.flatnonzero(mask.any(1)).tolist() == [4, 5, 6, 7]
    assert np.flatnonzero(mask.any(0)).tolist() == [7, 8, 9, 10, 11, 12, 13]


def write_detections(path: Path, entries: object) -> Path:
    path.write_text(json.dumps(entries))
    return path


def entry(number: int | str, left=None, right=None, objects=()) -> dict:
    return {"frame_number": f"{number:0>10}", "left_hand": left, "right_hand": right, "objects": list(objects)}


def test_published_files_are_read(tmp_path):
    path = write_detections(
        tmp_path / FILE, [entry(7, left=[1, 2, 3, 4], objects=[[0, 0, 5, 5]]), entry(12), entry(3, right=[0, 0, 1, 1])]
    )
    found = read_detections(path)
    assert found == {
        7: Detections(((1, 2, 3, 4),), ((0, 0, 5, 5),)),
        12: Detections((), ()),
        3: Detections(((0, 0, 1, 1),), ()),
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"frames": []}, "array"),
        ([entry(1), entry(1)], "frame 1 twice"),
        ([entry(1), entry("x")], "1.frame_number"),
        ([{"left_hand": None}], "frame_number"),
        ([entry(1, left=[1, 2, 3])], "0.left_hand"),
        ([entry(1, objects=[[4, 4, 1, 9]])], "ends before it begins"),
        ([entry(1, right=[0, 0, float("nan"), 1])], "NaN"),
        (["x"], "0: "),
        ([entry(-1)], "0.frame_number"),
        ([entry(1, left=[900, 500, 1900, 1000])], "outside of pictures of 456x256.*--hotspot.box-size"),
        ([entry(1, left=[0.1, 0.1, 0.5, 0.9])], "shares of the picture"),
    ],
)
def test_faults_of_a_file_are_named(tmp_path, content, said):
    with pytest.raises(DetectionsError, match=said) as error:
        read_detections(write_detections(tmp_path / FILE, content), (456, 256))
    assert str(tmp_path / FILE) in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_missing_or_damaged(tmp_path):
    with pytest.raises(DetectionsError, match=r"--hotspot\.boxes"):
        read_detections(tmp_path / FILE)
    (tmp_path / FILE).write_text("[{")
    with pytest.raises(DetectionsError, match="JSON"):
        read_detections(tmp_path / FILE)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory) -> str:
    return write_encoder(tmp_path_factory.mktemp("encoders") / "tiny")


@pytest.fixture
def scene_root(tmp_path) -> Path:
    root = write_scene(tmp_path / "scene", frames=4, video=40)
    write_detections(
        root / FILE,
        [entry(1, left=[4, 4, 20, 12], objects=[[10, 2, 50, 9], [0, 0, 1, 1]]), entry(4), entry(7, right=[0, 0, 8, 8])],
    )
    return root


def extract(root: Path, encoder: str, *sources: str, **options) -> dict[str, FeatureStore]:
    hotspot = HotspotSourceConfig(box_size=(56, 32), margin=2, video="clip-tiles", **options)
    config = ExtractConfig(data=root, encoder=encoder, device="cpu", sources=sources, hotspot=hotspot)
    return {path.name: FeatureStore.open(path) for path in config.main()}


def test_hot_pixels_have_the_feature_of_the_whole_clip(scene_root, encoder_folder):
    store = extract(scene_root, encoder_folder, "hotspot")["hotspot"]
    rows, columns = (grid.ravel() for grid in np.mgrid[:16, :28])
    valid = [store.lookup(np.full(len(rows), frame), rows, columns)[1].reshape(16, 28) for frame in range(4)]
    expected = np.zeros((16, 28), bool)
    expected[1:5, 4:11] = True  # (10, 4, 20, 9) grown by 2, at half the size: rows 1 to 5.5, columns 4 to 11
    expected[5, 4:11] = False
    np.testing.assert_array_equal(valid[0], expected)
    assert not valid[1].any() and not valid[3].any()  # nothing found there; nothing known of it
    assert valid[2][:5, :5].all() and int(valid[2].sum()) == 25
    pictures = Pictures(load_scene(scene_root))
    clip = load_encoder(encoder_folder).encode_clips(pictures.clip(2, 4, 8)[None])
    np.testing.assert_allclose(store.frame_features(2)[1], clip.numpy(), atol=1e-3)
    assert store.header.text_encoder is None and store.header.settings["clips"]["clip_stride"] == 8


def test_boxes_of_another_video_and_sources_without_clips(scene_root, encoder_folder, tmp_path):
    other = write_detections(tmp_path / "other.json", [entry(1000, left=[0, 0, 9, 9])])
    pictures = Pictures(load_scene(scene_root))
    config = HotspotSourceConfig(boxes=other, video="clip-tiles")
    with pytest.raises(DetectionsError, match=r"other\.json has none of the scene's frames \(1 to 10"):
        HotspotSource(pictures, encoder_folder, CPU, config)
    with pytest.raises(DivffError, match="no features of clips"):
        HotspotSource(pictures, encoder_folder, CPU, replace(config, boxes=None, video="segments"))


def test_hotspots_use_the_options_of_their_source(scene_root, encoder_folder):
    hotspot = HotspotSourceConfig(video="clip-tiles")
    config = ExtractConfig(data=scene_root, encoder=encoder_folder, device="cpu", hotspot=hotspot, sources=("hotspot",))
    config.clip_tiles.clip_stride = 3
    store = FeatureStore.open(config.main()[0])
    assert store.header.settings["clips"]["clip_stride"] == 3


def test_batches_have_hotspots_only_where_they_count(tiny_scene):
    write_features(tiny_scene, "video")
    write_features(tiny_scene, "hotspot")
    data = manager(tiny_scene)
    assert data.train_dataset.metadata["feature_dims"] == {"video": 2}
    assert set(data.next_train(0)[1]["features"]) == {"video"}
    data.use_hotspots()
    assert set(data.next_train(0)[1]["features"]) == {"video", "hotspot"}
    assert len(data.feature_stores["hotspot"]) == TINY_FRAMES


def test_hotspots_must_be_there_and_be_of_the_same_model(tiny_scene):
    write_features(tiny_scene, "video")
    with pytest.raises(SceneError, match=r"lacks hotspot features: run `divff extract --data .* --sources hotspot`"):
        manager(tiny_scene).use_hotspots()
    write_features(tiny_scene, "hotspot", fingerprint="1", model="other")
    with pytest.raises(SceneError, match=r"features of other.*--hotspot\.video test --overwrite"):
        manager(tiny_scene).use_hotspots()


def test_their_loss_is_on_the_head_of_the_video_features():
    model = make_model(hotspot_weight=0.5)
    assert model.semantic is not None and "hotspot" not in model.semantic.heads
    model.update_to_step(HEADS_START)
    model.train()
    batch = batch_of()
    target, valid = torch.randn(len(batch["image"]), 12), torch.arange(len(batch["image"])) < 3
    batch["features"]["hotspot"] = (target, valid)
    outputs = model(bundle(model))
    losses = model.get_loss_dict(outputs, batch)
    rendered = model.semantic.decode(outputs["code"], "video")
    torch.testing.assert_close(losses["features_hotspot"], 0.5 * feature_loss("video", rendered, target, valid))
    losses["features_hotspot"].backward()
    assert any(p.grad is not None and p.grad.any() for p in model.semantic.heads["video"].parameters())


def test_a_run_trains_on_hotspots_if_it_shall(tiny_scene, tmp_path):
    tiny_run.write_features(tiny_scene, tmp_path / "encoder")
    config = tiny_run.config(tiny_scene, tmp_path / "runs")
    config.settle()
    config.pipeline.model.hotspot_weight = 1.0
    with pytest.raises(SceneError, match="lacks hotspot features"):
        config.pipeline.setup(device="cpu", test_mode="val")
    video = FeatureStore.open(tiny_scene / "features" / "video").header
    with FeatureWriter(tiny_scene / "features" / "hotspot", replace(video, kind="hotspot")) as writer:
        for _ in video.frame_ids:
            writer.append(FrameFeatures(np.zeros((2, 3), np.uint16), np.ones((1, video.dimension))))
        writer.finish()
    losses = {}
    for weight in (0.0, 1.0):
        config.pipeline.model.hotspot_weight = weight
        pipeline = config.pipeline.setup(device="cpu", test_mode="val")
        losses[weight] = pipeline.get_train_loss_dict(pipeline.model.schedule.heads_start_step)[1]
    assert set(losses[1.0]) - set(losses[0.0]) == {"features_hotspot"} and losses[1.0]["features_hotspot"] > 0
