"""Rays, colours and feature targets; nothing of the other splits is trained on."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_FRAMES, TINY_HEIGHT, TINY_WIDTH, write_tiny_scene
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader
from PIL import Image

from divff_nerfstudio import datamanager, pixels
from divff_nerfstudio.card import OnHost
from divff_nerfstudio.data.epic_diff import EpicDiffDataParserConfig
from divff_nerfstudio.data.scene import SceneError, load_scene
from divff_nerfstudio.datamanager import DivFFDataManager, DivFFDataManagerConfig, SceneDataset
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.evidence.labels import Labels
from divff_nerfstudio.features.encoder_loading import load_encoder
from divff_nerfstudio.features.extract import ExtractConfig
from divff_nerfstudio.features.store import FeatureWriter, FrameFeatures, ResidentStore, StoreHeader, store_root
from divff_nerfstudio.frame_datamanager import FrameDataManagerConfig
from divff_nerfstudio.resumption import random_state, restore_random_state


def manager(root: Path, test_mode: str = "val", **options: object) -> DivFFDataManager:
    options = {"features": "auto", **options}
    options = {"dataparser": EpicDiffDataParserConfig(data=root), **options}
    config = DivFFDataManagerConfig(**options)  # pyright: ignore
    found = config.setup(device="cpu", test_mode=test_mode)
    assert isinstance(found, DivFFDataManager)
    return found


def write_features(root: Path, kind: str = "image", folder: Path | None = None, **changes: object) -> np.ndarray:
    """Stores one feature per frame and half of the picture: [frame index, left or right]; the last row has none."""
    scene = load_scene(root)
    entries = {
        "kind": kind,
        "source": "test",
        "model": "none",
        "fingerprint": "0",
        "dimension": 2,
        "frame_ids": scene.frame_ids.tolist(),
        "image_size": [scene.height, scene.width],
        **changes,
    }
    index = np.zeros((TINY_HEIGHT // 2, TINY_WIDTH // 2), np.uint16)
    index[:, TINY_WIDTH // 4 :] = 1
    index[-1] = 65535
    with FeatureWriter((folder or store_root(scene)) / kind, StoreHeader(**entries)) as writer:  # pyright: ignore
        for frame in range(len(entries["frame_ids"])):
            writer.append(FrameFeatures(index, np.array([[frame, 0], [frame, 1]], np.float32)))
        writer.finish()
    return index


def test_training_rays(tiny_scene: Path) -> None:
    data = manager(tiny_scene, train_num_rays_per_batch=500)
    scene = data.train_dataset.scene
    rays, batch = data.next_train(0)
    camera, row, col = batch["indices"].unbind(-1)
    assert "features" not in batch and batch["indices"].shape == (500, 3) and data.get_train_rays_per_batch() == 500
    train = scene.splits["train"]
    assert set(camera.tolist()) == set(range(len(train)))
    assert set(row.tolist()) == set(range(TINY_HEIGHT)) and set(col.tolist()) == set(range(TINY_WIDTH))
    expected = scene.frames[train[camera.numpy()], row.numpy(), col.numpy()].astype(np.float32) / 255
    np.testing.assert_array_equal(batch["image"], expected)
    assert rays.times is not None and rays.nears is not None and rays.fars is not None
    for values, of_scene in ((rays.times, scene.times()), (rays.nears, scene.nears), (rays.fars, scene.fars)):
        np.testing.assert_array_equal(values[:, 0], of_scene[train[camera.numpy()]])


@pytest.mark.parametrize("pixel_centres", [True, False])
def test_rays_are_those_of_nerfstudios_cameras(tiny_scene: Path, pixel_centres: bool) -> None:
    parser = EpicDiffDataParserConfig(data=tiny_scene, pixel_centres=pixel_centres)
    data = DivFFDataManagerConfig(dataparser=parser, features="none").setup(device="cpu")
    rays, batch = data.next_train(0)
    cameras = data.train_dataset.cameras
    camera, coords = batch["indices"][:, :1], batch["indices"][:, 1:] + 0.5
    expected = cameras.generate_rays(camera, coords)
    for name in ("origins", "directions", "pixel_area", "camera_indices", "times"):
        torch.testing.assert_close(getattr(rays, name), getattr(expected, name), atol=1e-6, rtol=1e-6, msg=name)
    torch.testing.assert_close(rays.metadata["directions_norm"], expected.metadata["directions_norm"])
    rotations = cameras.camera_to_worlds[camera[:, 0], :, :3]
    back = torch.einsum("rji,rj->ri", rotations, expected.directions)
    torch.testing.assert_close(rays.metadata["camera_directions"], back, atol=1e-6, rtol=1e-6)
    assert len(rays[::2]) == len(rays) // 2 and rays[::2].metadata["camera_directions"].shape[0] == len(rays) // 2


def test_nothing_but_training_frames_is_drawn(tiny_scene: Path) -> None:
    """Every frame is filled with its index, in colour and in features: no other index may ever come out."""
    scene = load_scene(tiny_scene)
    for index, path in enumerate(scene.image_paths):
        Image.new("RGB", (TINY_WIDTH, TINY_HEIGHT), (index, 0, 0)).save(path)
    write_features(tiny_scene)
    data = manager(tiny_scene, train_num_rays_per_batch=300)
    allowed = set(scene.splits["train"].tolist())
    colours, features = set(), set()
    for step in range(20):
        _, batch = data.next_train(step)
        colours |= set((batch["image"][:, 0] * 255).round().int().tolist())
        targets, valid = batch["features"]["image"]
        features |= set(targets[valid][:, 0].int().tolist())
    assert colours == features == allowed and len(allowed) < TINY_FRAMES


@pytest.mark.parametrize(("test_mode", "split"), [("val", "val"), ("test", "test")])
def test_evaluation_has_its_own_split(tiny_scene: Path, test_mode: str, split: str) -> None:
    data = manager(tiny_scene, test_mode)
    scene = data.eval_dataset.scene
    indices = scene.splits[split]  # pyright: ignore[reportArgumentType]
    assert isinstance(data.fixed_indices_eval_dataloader, FixedIndicesEvalDataloader)
    seen = []
    for camera, batch in data.fixed_indices_eval_dataloader:
        index = batch["frame_index"]
        seen.append(index)
        assert camera.shape == (1,) and camera.times.item() == pytest.approx(scene.times()[index])
        np.testing.assert_array_equal((batch["image"] * 255).round().byte(), scene.frames[index])
        assert camera.generate_rays(0).directions.shape == (TINY_HEIGHT, TINY_WIDTH, 3)
    assert seen == indices.tolist()
    rays, batch = data.next_eval(0)
    expected = scene.frames[indices[batch["indices"][:, 0].numpy()], batch["indices"][:, 1], batch["indices"][:, 2]]
    np.testing.assert_array_equal((batch["image"] * 255).round().byte(), expected)
    assert rays.times is not None and len(rays) == data.get_eval_rays_per_batch()
    camera, batch = data.next_eval_image(0)
    assert batch["frame_index"] in indices and batch["image"].shape == (TINY_HEIGHT, TINY_WIDTH, 3)


def test_inference_prepares_no_batches(tiny_scene: Path) -> None:
    data = manager(tiny_scene, "inference")
    assert data.train_pixel_sampler is None and not hasattr(data, "eval_dataloader")
    assert len(data.train_dataset) == 4 and data.train_dataset.get_image_float32(1).dtype == torch.float32
    assert data.train_dataset[0]["image"].shape == (TINY_HEIGHT, TINY_WIDTH, 3)
    assert data.get_train_rays_per_batch() == data.config.train_num_rays_per_batch
    assert data.get_datapath() == tiny_scene


def test_the_saved_random_state_restores_the_batches(tiny_scene: Path) -> None:
    data = manager(tiny_scene)
    torch.manual_seed(3)
    data.next_train(0)
    state = torch.get_rng_state()
    first = [data.next_train(step) for step in range(3)]
    torch.set_rng_state(state)
    again = [manager(tiny_scene).next_train(step) for step in range(1)] + [data.next_train(step) for step in (1, 2)]
    for (rays, batch), (other_rays, other_batch) in zip(first, again, strict=True):
        assert torch.equal(batch["indices"], other_batch["indices"]) and torch.equal(
            batch["image"], other_batch["image"]
        )
        assert torch.equal(rays.directions, other_rays.directions)


def test_a_resumption_says_that_batches_are_drawn_elsewhere(capsys) -> None:
    state = random_state(resident=True)
    restore_random_state(state, resident=True)
    assert not capsys.readouterr().out
    restore_random_state(state, resident=False)
    assert "--pipeline.datamanager.resident on" in capsys.readouterr().out
    restore_random_state({"cpu": state["cpu"]}, resident=False)  # of an earlier version: nobody knows
    assert not capsys.readouterr().out


def test_the_video_is_never_copied(tiny_scene: Path) -> None:
    data = manager(tiny_scene)
    assert data.train_pixel_sampler is not None
    scene = data.train_dataset.scene
    assert data.eval_dataset.scene is scene and data.train_dataset.metadata["scene"] is scene
    assert np.shares_memory(data.train_pixel_sampler.colours.values, scene.frames)


def test_the_number_of_rays_can_be_changed_as_exporters_do(tiny_scene: Path) -> None:
    data = manager(tiny_scene)
    assert data.train_pixel_sampler is not None
    data.train_pixel_sampler.num_rays_per_batch = 7
    assert len(data.next_train(0)[0]) == 7 and data.get_train_rays_per_batch() == 7


def test_features_come_from_their_step_on(tiny_scene: Path) -> None:
    index = write_features(tiny_scene)
    write_features(tiny_scene, "video")
    data = manager(tiny_scene)
    assert data.train_dataset.metadata["feature_dims"] == {"image": 2, "video": 2}
    data.feature_start_step = 10
    assert "features" not in data.next_train(9)[1]
    _, batch = data.next_train(10)
    assert set(batch["features"]) == {"image", "video"}
    camera, row, col = batch["indices"].unbind(-1)
    targets, valid = batch["features"]["image"]
    assert targets.dtype == torch.float32 and valid.dtype == torch.bool
    half = index[row.numpy() // 2, col.numpy() // 2]
    np.testing.assert_array_equal(valid, half != 65535)
    expected = np.stack((data.train_dataset.scene.splits["train"][camera.numpy()], half), -1)
    np.testing.assert_array_equal(targets[valid], expected[valid.numpy()])


def test_features_can_be_left_out_or_lie_elsewhere(tiny_scene: Path, tmp_path: Path) -> None:
    assert manager(tiny_scene).train_dataset.metadata["feature_dims"] == {}
    write_features(tiny_scene)
    without = manager(tiny_scene, features="none")
    assert without.feature_stores == {} and not without.with_features(10**6)
    write_features(tiny_scene, "regulariser", tmp_path / "elsewhere")
    assert set(manager(tiny_scene, feature_dir=tmp_path / "elsewhere").feature_stores) == {"regulariser"}
    with pytest.raises(SceneError, match=r"nowhere lacks .*divff extract --data"):
        manager(tiny_scene, feature_dir=tmp_path / "nowhere")


def test_unfinished_features_are_not_opened(tiny_scene: Path) -> None:
    write_features(tiny_scene)
    folder = store_root(load_scene(tiny_scene))
    (folder / "image").rename(folder / ".image.partial")
    assert manager(tiny_scene).feature_stores == {}


@pytest.mark.parametrize(
    ("changes", "words"), [({"frame_ids": [10, 12, 14]}, "other frames"), ({"image_size": [32, 48]}, "48x32")]
)
def test_features_of_other_frames_are_refused(tiny_scene: Path, tmp_path: Path, changes: dict, words: str) -> None:
    write_features(tiny_scene, **changes)
    with pytest.raises(SceneError, match=words) as error:
        manager(tiny_scene)
    assert f"`divff extract --data {tiny_scene} --sources image --overwrite`" in str(error.value)
    store_root(load_scene(tiny_scene)).rename(tmp_path / "elsewhere")
    with pytest.raises(SceneError, match=f"--output {tmp_path / 'elsewhere'} --sources image --overwrite`"):
        manager(tiny_scene, feature_dir=tmp_path / "elsewhere")


def test_what_it_cannot_do_is_said(tiny_scene: Path) -> None:
    with pytest.raises(SceneError, match="camera-res-scale-factor"):
        manager(tiny_scene, camera_res_scale_factor=0.5)
    (tiny_scene / "object_annotations" / "te.json").write_text("{")
    with pytest.raises(SceneError, match=r"te\.json"):
        manager(tiny_scene)


def test_other_dataparsers_are_refused(tiny_scene: Path) -> None:
    outputs = EpicDiffDataParserConfig(data=tiny_scene).setup().get_dataparser_outputs("train")
    outputs.metadata.pop("scene")
    with pytest.raises(SceneError, match="epic-diff"):
        SceneDataset(outputs)


def test_drawing_is_a_small_part_of_a_training_step(kitchen_small: Path) -> None:
    data = manager(kitchen_small, train_num_rays_per_batch=1024, features="none")
    data.next_train(0)
    durations = []
    for step in range(20):
        start = time.process_time()
        data.next_train(step)
        durations.append(time.process_time() - start)
    assert np.median(durations) < 0.005


def test_many_frames(tmp_path: Path) -> None:
    root = write_tiny_scene(tmp_path / "long", frames=1200, extras=False)
    data = manager(root)
    assert len(data.train_dataset) == 600 and data.next_train(0)[0].times.max() <= 1


def test_what_is_missing_stops_the_start_with_the_line_to_type(tiny_scene: Path) -> None:
    write_features(tiny_scene, "video")
    with pytest.raises(SceneError) as error:
        manager(tiny_scene, features="all", extract_options="--encoder=demo")
    message = str(error.value)
    assert "lacks image and regulariser features" in message and "\n" not in message
    assert f"`divff extract --data {tiny_scene} --encoder=demo --sources image regulariser`" in message
    assert "auto-extract" in message and "features none" in message
    for kind in ("image", "regulariser"):
        write_features(tiny_scene, kind)
    assert set(manager(tiny_scene, features="all").feature_stores) == {"image", "video", "regulariser"}


def test_the_line_names_other_folders(tiny_scene: Path, tmp_path: Path) -> None:
    (tiny_scene / "high_res_video").rename(tmp_path / "my video")
    parser = EpicDiffDataParserConfig(data=tiny_scene, video_dir=tmp_path / "my video")
    with pytest.raises(SceneError, match=r"--output .*elsewhere --video-dir '.*my video'`"):
        manager(tiny_scene, dataparser=parser, features="all", feature_dir=tmp_path / "elsewhere")


def test_missing_features_are_extracted_on_demand(tiny_scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def extract(options: ExtractConfig) -> None:
        calls.append((options.data, options.encoder))
        load_encoder("demo")
        torch.rand(3)
        for kind in options.sources:
            write_features(tiny_scene, kind)

    monkeypatch.setattr(ExtractConfig, "main", extract)
    asked = {"features": "all", "auto_extract": True, "extract_options": "--encoder=demo"}
    with pytest.raises(SceneError, match="lacks"):
        manager(tiny_scene, "test", **asked)  # an evaluation does not extract
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    data = manager(tiny_scene, **asked)
    assert torch.equal(torch.rand(3), expected) and load_encoder.cache_info().currsize == 0
    assert set(data.feature_stores) == {"image", "video", "regulariser"}
    assert calls == [(tiny_scene, "demo")]
    manager(tiny_scene, **asked)
    assert len(calls) == 1


def test_a_failed_extraction_stops_the_start(tiny_scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"features": "all", "auto_extract": True}
    with pytest.raises(DivffError, match=r"does not understand --pipeline\.datamanager\.extract-options"):
        manager(tiny_scene, **asked, extract_options="--paint")
    assert "--paint" in capsys.readouterr().err
    with pytest.raises(DivffError, match="nowhere"):
        manager(tiny_scene, **asked, extract_options="--encoder=nowhere --sources image")


def test_what_lies_on_the_device_gives_the_same_batches(tiny_scene: Path) -> None:
    write_features(tiny_scene)
    write_features(tiny_scene, "video")
    batches = []
    for resident in ("off", "frames", "on"):
        data = manager(tiny_scene, resident=resident)
        assert data.resident == data._features.resident == (resident == "on")
        assert data._colours.resident == (resident != "off")
        shape = (len(data.train_dataset), TINY_HEIGHT, TINY_WIDTH, 8)
        codes = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        data.__dict__["_labels"] = Labels(codes, (1.0, 4.0))
        torch.manual_seed(0)
        batches.append([data.next_train(step) for step in range(3)])
    first, *others = batches
    for (rays, batch), (other_rays, other) in zip(2 * first, itertools.chain(*others), strict=True):
        assert torch.equal(rays.directions, other_rays.directions) and torch.equal(rays.origins, other_rays.origins)
        for name in ("image", "indices", "evidence", "resting"):
            assert torch.equal(batch[name], other[name])
        for kind, (target, valid) in batch["features"].items():
            assert torch.equal(target, other["features"][kind][0]) and torch.equal(valid, other["features"][kind][1])
            assert 0 < int(valid.sum()) < len(valid)


def test_the_host_keeps_what_the_card_has_no_room_for(tiny_scene: Path, monkeypatch) -> None:
    write_features(tiny_scene)
    data = manager(tiny_scene)
    frames = 11 * len(data.train_dataset.scene.frames) * TINY_HEIGHT * TINY_WIDTH  # three colours, and what moves
    size = frames + ResidentStore.bytes_of(data.feature_stores["image"])
    assert data._resident == "off"  # without a card
    for free, gib, resident in (
        (2 * size, None, "on"),
        (2 * size - 2, None, "frames"),
        (2 * frames - 2, None, "off"),
        (size, size / 2**30, "on"),
        (size - 1, 1.0, "frames"),
        (2**40, frames / 2**30, "frames"),
        (2**40, (frames - 1) / 2**30, "off"),
    ):
        monkeypatch.setattr(datamanager, "free_bytes", lambda device, free=free: free)
        data.config.resident_gib = gib
        del data.__dict__["_resident"]
        assert data._resident == resident, (free, gib)
    for chosen in ("on", "frames", "off"):
        data.config.resident = chosen
        del data.__dict__["_resident"]
        assert data._resident == chosen and data.resident == (chosen == "on")


def test_a_card_is_asked_for_nothing_by_who_only_looks(tiny_scene: Path, monkeypatch) -> None:
    monkeypatch.setattr(pixels, "_copied", lambda *_: pytest.fail("frames were copied"))
    data = manager(tiny_scene, "test", resident="on")
    data.next_eval_image(0)
    data.next_eval(0)


def test_whole_frames_are_the_same_wherever_they_lie(tiny_scene: Path) -> None:
    write_features(tiny_scene)
    batches = []
    for resident in ("off", "frames", "on"):
        config = FrameDataManagerConfig(data=tiny_scene, features="auto", resident=resident, feature_pixels=50)
        data = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
        torch.manual_seed(0)
        batches.append(data.next_train(0)[1])
    for batch in batches[1:]:
        for name in ("image", "pixels"):
            assert torch.equal(batch[name], batches[0][name])
        assert torch.equal(batch["features"]["image"][0], batches[0]["features"]["image"][0])


def test_copies_on_the_host_follow_their_tensors() -> None:
    on_host, values = OnHost(), torch.arange(3.0)
    first = on_host("a", values)
    assert on_host("a", values) is first and torch.equal(first, values)
    values += 1
    assert torch.equal(on_host("a", values), values)
    assert torch.equal(on_host("a", torch.zeros(2)), torch.zeros(2))
