"""Hints of what moves and what is hand: flow, boxes, masks, the store that they lie in, and how they are trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from conftest import TINY_FRAMES, TINY_HEIGHT, TINY_WIDTH, write_tiny_scene
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_datamanager import manager, write_features

from divff_nerfstudio.cli import main
from divff_nerfstudio.data.detections import FILE
from divff_nerfstudio.data.scene import Scene, SceneError, load_scene
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.extract import ExtractConfig
from divff_nerfstudio.features.hints.boxes import BoxPlane
from divff_nerfstudio.features.hints.flow import Camera, FlowConfig, FlowPlane, Line
from divff_nerfstudio.features.hints.masks import MaskPlane
from divff_nerfstudio.features.hints.planes import NO, UNKNOWN, YES, HintPlane
from divff_nerfstudio.features.hints.source import HintSource, HintSourceConfig
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.store import FeatureStore, FeatureStoreError
from divff_nerfstudio.frame_datamanager import FrameDataManager, FrameDataManagerConfig
from divff_nerfstudio.models.separation import SeparationConfig, fusion_losses, layer_losses, room_loss

HEIGHT, WIDTH, FOCAL, WALL = 64, 96, 90.0, 4.0
CPU = torch.device("cpu")
SIDE = 22
"""Of the square that moves, in pixels."""


def film(root: Path, moves: bool, slide: float = 0.06) -> Scene:
    """A camera that slides along a coloured wall, and a coloured square that goes down the picture if it moves."""
    write_tiny_scene(root, frames=6, extras=False)
    meta = json.loads((root / "meta.json").read_text())
    meta["intrinsics"] = [[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]]
    meta |= {"image_w": WIDTH, "image_h": HEIGHT}
    wall, square = (_texture(seed) for seed in (1, 2))
    row, column = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for number, i in enumerate(meta["ids_all"]):
        pose = np.eye(4)[:3]
        pose[0, 3] = slide * number
        meta["poses"][str(i)], meta["nears"][str(i)], meta["fars"][str(i)] = pose.tolist(), 2.0, 6.0
        picture = _look(wall, 100 + row, 100 + column + FOCAL * pose[0, 3] / WALL)
        if moves:
            inside, top = _square(number)
            picture[inside] = _look(square, 100 + row - top, 100 + column)[inside]
        Image.fromarray(picture.round().astype(np.uint8)).save(root / "frames" / meta["images"][str(i)])
    (root / "meta.json").write_text(json.dumps(meta))
    return load_scene(root)


def _square(number: int) -> tuple[np.ndarray, float]:
    """Where it is, and its upper edge."""
    row, column = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    top = 8 + 3 * number
    return (abs(row - top - SIDE / 2) < SIDE / 2) & (abs(column - WIDTH / 2) < SIDE / 2), top


def _texture(seed: int) -> np.ndarray:
    """Blots of all colours."""
    small = np.random.default_rng(seed).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((360, 360), Image.Resampling.BICUBIC)).astype(float)


def _look(texture: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Colours between pixels of a texture."""
    top, left = np.floor(row).astype(int), np.floor(column).astype(int)
    down, right = (row - top)[..., None], (column - left)[..., None]
    upper = texture[top, left] * (1 - right) + texture[top, left + 1] * right
    lower = texture[top + 1, left] * (1 - right) + texture[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


@pytest.mark.parametrize("slide", [0.06, 0.0])
def test_a_still_scene_does_not_move_before_a_moving_camera(tmp_path: Path, slide: float):
    scene = film(tmp_path / "still", moves=False, slide=slide)
    plane = FlowPlane(Pictures(scene), FlowConfig())
    for frame in scene.splits["train"].tolist():
        states = plane.states(frame)
        assert not (states == YES).any()
        assert (states == NO).mean() > 0.7


@pytest.mark.parametrize("slide", [0.06, 0.0])
def test_a_square_that_moves_is_found(tmp_path: Path, slide: float):
    scene = film(tmp_path / "moving", moves=True, slide=slide)
    plane = FlowPlane(Pictures(scene), FlowConfig())
    for frame in scene.splits["train"].tolist():
        states, (inside, _) = plane.states(frame), _square(frame)
        near = np.asarray(Image.fromarray(inside).resize((WIDTH // 4, HEIGHT // 4)).resize((WIDTH, HEIGHT)))
        assert (states[inside] == YES).mean() > 0.5 and (states[inside] == NO).mean() < 0.15
        assert (states[~inside & ~near] == YES).mean() < 0.01
        assert (states[~inside & ~near] == NO).mean() > 0.5


def test_flow_looks_at_no_other_held_out_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scene = film(tmp_path / "scene", moves=True)
    looked: list[int] = []
    original = Scene.frame
    monkeypatch.setattr(Scene, "frame", lambda self, index: (looked.append(index), original(self, index))[1])
    plane = FlowPlane(Pictures(scene), FlowConfig())
    for frame in scene.splits["train"].tolist():
        plane.states(frame)
    assert set(looked) == set(scene.splits["train"].tolist())


@pytest.mark.parametrize("height", [1, 2, TINY_HEIGHT])
def test_flow_says_nothing_of_pictures_that_have_none(tiny_scene: Path, edit_meta, height: int):
    for path in (tiny_scene / "frames").iterdir():
        Image.fromarray(np.zeros((height, 3, 3), np.uint8)).save(path)
    edit_meta(
        lambda meta: meta.update(
            image_w=3.0, image_h=float(height), intrinsics=[[3, 0, 1.5], [0, 3, height / 2], [0, 0, 1]]
        )
    )
    plane = FlowPlane(Pictures(load_scene(tiny_scene)), FlowConfig())
    assert not (plane.states(0) == YES).any()


@given(
    x=st.floats(-0.4, 0.4), y=st.floats(-0.3, 0.3), depth=st.floats(1.2, 5.0), angle=st.floats(-0.2, 0.2),
    shift=st.tuples(st.floats(0.05, 0.3), st.floats(-0.2, 0.2), st.floats(-0.2, 0.2)),
)  # fmt: skip
def test_a_point_is_seen_on_its_line_at_its_depth(x: float, y: float, depth: float, angle: float, shift: tuple):
    matrix = np.array([[80.0, 0, 40], [0, 90.0, 30], [0, 0, 1]])
    cos, sin = math.cos(angle), math.sin(angle)
    pose = np.array([[cos, 0, sin, shift[0]], [0, 1, 0, shift[1]], [-sin, 0, cos, shift[2]]])
    seen = np.array([[[40 + 80 * x, 30 + 90 * y]]])
    local = (np.array([x, -y, -1]) * depth - pose[:, 3]) @ pose[:, :3]
    there = np.array([40 - 80 * local[0] / local[2], 30 + 90 * local[1] / local[2]])
    line = Line(Camera(np.eye(4)[:3], matrix), Camera(pose, matrix), seen, (1.0, 6.0))
    assert line.at(1 / depth)[0, 0] == pytest.approx(there, abs=1e-6)
    off, nearness, length = line.nearest(there[None, None])
    assert off[0, 0] == pytest.approx(0, abs=1e-6) and 1 / nearness[0, 0] == pytest.approx(depth, rel=1e-4)
    ends = [line.at(end)[0, 0] for end in line.ends]
    assert length[0, 0] == pytest.approx(np.linalg.norm(ends[0] - ends[1]))
    across = np.array([-(ends[0] - ends[1])[1], (ends[0] - ends[1])[0]]) / length[0, 0]
    assert line.nearest((there + 2.5 * across)[None, None])[0][0, 0] == pytest.approx(2.5, abs=1e-6)


# Boxes and masks.


def boxes(root: Path, *entries: tuple[int, list | None, list]) -> Path:
    path = root / FILE
    content = [{"frame_number": number, "left_hand": hand, "objects": objects} for number, hand, objects in entries]
    path.write_text(json.dumps(content))
    return path


def test_boxes_tell_hands_in_their_middle_and_none_above(tiny_scene: Path):
    size = (10 * TINY_WIDTH, 10 * TINY_HEIGHT)
    path = boxes(
        tiny_scene, (100, [80, 60, 160, 120], []), (105, [80, 60, 160, 120], [[100, 60, 140, 120]]), (110, None, [])
    )
    plane = BoxPlane(Pictures(load_scene(tiny_scene)), path, size)
    states = plane.states(0)
    assert (states[8:10, 11:13] == YES).all()
    assert (states[:5] == NO).all() and (states[6:][states[6:] != YES] == UNKNOWN).all()
    assert 0 < (states == YES).sum() < 8 * 6 / 4
    held = plane.states(1)
    assert not (held == YES).any() and (held[:5] == NO).all()
    assert (plane.states(2) == NO).all() and (plane.states(3) == UNKNOWN).all()


def test_boxes_of_another_video_or_size_are_refused(tiny_scene: Path):
    pictures = Pictures(load_scene(tiny_scene))
    with pytest.raises(DivffError, match=r"none of the scene's frames.*--hints\.hands"):
        BoxPlane(pictures, boxes(tiny_scene, (99999, None, [])), (456, 256))
    with pytest.raises(DivffError, match=r"outside of pictures of 456x256.*--hints\.box-size"):
        BoxPlane(pictures, boxes(tiny_scene, (100, [0, 0, 900, 500], [])), (456, 256))


def masks_of(root: Path, frames: int = TINY_FRAMES) -> tuple[Path, np.ndarray]:
    """A mask for each frame, called as the frames are."""
    folder = root / "masks"
    folder.mkdir()
    inside = np.random.default_rng(3).random((frames, TINY_HEIGHT, TINY_WIDTH)) < 0.3
    for frame in range(frames):
        Image.fromarray(inside[frame].astype(np.uint8) * 255).save(folder / f"IMG_{100 + 5 * frame:010d}.png")
    return folder, inside


def plane_of(root: Path, folder: Path, labels: tuple[int, ...] = ()) -> MaskPlane:
    return MaskPlane(Pictures(load_scene(root)), folder, "--hints.hands", labels)


def test_masks_are_matched_by_name(tiny_scene: Path, capsys: pytest.CaptureFixture[str]):
    folder, inside = masks_of(tiny_scene, TINY_FRAMES - 1)
    (folder / "IMG_0000000105.png").rename(folder / "frame_105.png")  # by its number
    (folder / "notes.txt").write_text("by hand")
    plane = plane_of(tiny_scene, folder)
    assert capsys.readouterr().out == ""
    for frame in range(TINY_FRAMES - 1):
        assert np.array_equal(plane.states(frame), np.where(inside[frame], YES, NO))
    assert (plane.states(TINY_FRAMES - 1) == UNKNOWN).all()
    Image.new("L", (TINY_WIDTH, TINY_HEIGHT)).save(folder / "frame_101.png")
    before = plane.settings()
    plane = plane_of(tiny_scene, folder)
    said = capsys.readouterr().out
    assert "1 of 8 masks" in said and "frame_101.png" in said and plane.settings() == before
    Image.new("L", (TINY_WIDTH, TINY_HEIGHT)).save(folder / "frame_105.png")
    assert plane_of(tiny_scene, folder).settings() != before


def _soft(mask: np.ndarray) -> Image.Image:
    return Image.fromarray((np.linspace(0, 255, mask.size).reshape(mask.shape)).astype(np.uint8))


def _transparent(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack((mask, mask, mask, 255 - mask), -1))


def _painted(mask: np.ndarray) -> Image.Image:
    picture = Image.fromarray((mask > 0).astype(np.uint8), "P")
    picture.putpalette([9, 9, 9, 200, 0, 0])
    return picture


FAULTS: dict[str, tuple[Callable[[np.ndarray], Image.Image], str]] = {
    "soft": (_soft, r"holds \d+ values.*--hints\.hands-values 1 2.*soft masks"),
    "transparent": (_transparent, "transparent places"),
    "palette": (_painted, "palette in which 0 is not black"),
    "turned": (lambda mask: Image.fromarray(mask.T.copy()), "16x24, which is not the shape of the frames"),
    "small": (lambda mask: Image.fromarray(mask[::8, ::8].copy()), "which is not the shape of the frames"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_masks_that_would_be_a_guess_are_refused_in_a_sentence(tiny_scene: Path, fault: str):
    folder, inside = masks_of(tiny_scene)
    make, said = FAULTS[fault]
    path = folder / "IMG_0000000110.png"
    make(inside[2].astype(np.uint8) * 255).save(path)
    with pytest.raises(SceneError, match=said) as error:
        plane_of(tiny_scene, folder)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_masks_that_fit_no_frame_or_one_twice_are_refused(tiny_scene: Path):
    folder, _ = masks_of(tiny_scene)
    (folder / "frame_105.png").write_bytes((folder / "IMG_0000000105.png").read_bytes())
    with pytest.raises(SceneError, match=r"masks of one frame, IMG_0000000105\.bmp"):
        plane_of(tiny_scene, folder)
    for path in folder.iterdir():
        path.rename(folder / f"x{path.stem[-3:]}_.png")
    with pytest.raises(SceneError, match=r"which no frame is called.*IMG_0000000100\.png.*--hints\.hands"):
        plane_of(tiny_scene, folder)
    (tiny_scene / "none").mkdir()
    with pytest.raises(SceneError, match="has no masks"):
        plane_of(tiny_scene, tiny_scene / "none")


def test_labels_that_are_named_are_inside(tiny_scene: Path):
    folder, _ = masks_of(tiny_scene)
    labels = np.random.default_rng(4).integers(0, 4, (TINY_HEIGHT, TINY_WIDTH)).astype(np.uint8)
    Image.fromarray(labels).save(folder / "IMG_0000000100.png")
    painted = Image.fromarray(labels, "P")
    painted.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    painted.save(folder / "IMG_0000000105.png")
    plane = plane_of(tiny_scene, folder, (1, 3))
    expected = np.where(np.isin(labels, (1, 3)), YES, NO)
    assert np.array_equal(plane.states(0), expected) and np.array_equal(plane.states(1), expected)
    coloured = np.stack((labels, 0 * labels, labels), -1)
    Image.fromarray(coloured).save(folder / "IMG_0000000110.png")
    with pytest.raises(SceneError, match="is in colour"):
        plane_of(tiny_scene, folder, (1, 3))


# The store.


class Halves(HintPlane):
    """The left half of what is odd, no hint elsewhere."""

    name = "halves"
    wrong: Any = None

    def settings(self):
        return {"name": self.name}

    def states(self, frame):
        if self.wrong is not None:
            return self.wrong
        return np.array([[YES if frame % 2 else NO, UNKNOWN]], np.int8)


def extract(root: Path, **options: object) -> FeatureStore:
    config = ExtractConfig(data=root, sources=("hints",), hints=HintSourceConfig(**options))  # pyright: ignore
    return FeatureStore.open(config.main()[0])


def test_both_planes_lie_in_one_store(tiny_scene: Path):
    folder, inside = masks_of(tiny_scene)
    store = extract(tiny_scene, moving="test_hints:Halves", hands=str(folder))
    assert (store.header.kind, store.header.model) == ("hints", "moving: halves; hands: masks")
    frame, row, column = np.meshgrid(*map(np.arange, inside.shape), indexing="ij")
    said, known = store.lookup(frame.ravel(), row.ravel(), column.ravel())
    moving, hand = said.view(*inside.shape, 2).numpy().transpose(3, 0, 1, 2)
    odd = np.arange(TINY_FRAMES) % 2 == 1
    assert (
        known.all()
        and (moving[odd, :, : TINY_WIDTH // 2] == YES).all()
        and (moving[~odd, :, : TINY_WIDTH // 2] == NO).all()
    )
    assert (moving[..., TINY_WIDTH // 2 :] == UNKNOWN).all()
    assert np.array_equal(hand, np.where(inside, YES, NO))
    before = (store.directory / "index.npy").stat().st_mtime_ns
    extract(tiny_scene, moving="test_hints:Halves", hands=str(folder))
    assert (store.directory / "index.npy").stat().st_mtime_ns == before
    with pytest.raises(FeatureStoreError, match=r"settings\.hands\.name: masks -> none"):
        extract(tiny_scene, moving="test_hints:Halves", hands="none")


def test_by_default_the_boxes_that_there_are_and_flow_if_it_is_asked_for(tiny_scene: Path):
    words = ["extract", "--data", str(tiny_scene), "--sources", "hints"]
    assert main(words) == 1
    boxes(tiny_scene, (100, [10, 10, 20, 20], []))
    assert main(words) == 0
    store = FeatureStore.open(tiny_scene / "features" / "hints")
    assert store.header.model == "moving: none; hands: boxes"
    assert main([*words, "--hints.moving", "flow", "--hints.hands", "none", "--overwrite"]) == 0
    assert FeatureStore.open(store.directory).header.model == "moving: flow; hands: none"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, r"say nothing.*hand_obj_detections\.json"),
        ({"moving": "flows"}, r"--hints\.moving flows is no folder of masks, nor one of none, flow"),
        ({"hands": "masks"}, r"--hints\.hands masks is no folder of masks, no file of boxes, nor one of none, auto"),
        ({"moving": "no_such:Plane"}, r"plane of hints for --hints\.moving no_such:Plane cannot be imported"),
        ({"hands": "pathlib:Path"}, "is no HintPlane"),
        ({"hands": "gone.json"}, r"gone\.json is missing.*--hints\.hands"),
    ],
)
def test_what_is_named_and_is_not_there(tiny_scene: Path, options: dict, said: str):
    with pytest.raises(DivffError, match=said):
        extract(tiny_scene, **options)


@pytest.mark.parametrize("wrong", [np.ones((2, 2), bool), np.full((2, 2), 7), np.zeros(3, int), None, "x"])
def test_own_planes_say_yes_no_or_unknown(tiny_scene: Path, monkeypatch: pytest.MonkeyPatch, wrong: object):
    monkeypatch.setattr(Halves, "wrong", [] if wrong is None else wrong)
    with pytest.raises(DivffError, match="Halves gave no hints of frame 0"):
        extract(tiny_scene, moving="test_hints:Halves")


def test_a_store_with_other_values_is_refused(tiny_scene: Path):
    store = extract(tiny_scene, moving="test_hints:Halves")
    path = store.directory / "table.npy"
    table = np.load(path)
    table[0, 0] = 0.5
    np.save(path, table)
    with pytest.raises(FeatureStoreError, match=r"other hints than yes.*--sources hints"):
        FeatureStore.open(store.directory)


# Training.


def test_hints_fuse_into_the_layer_that_they_name():
    yes, no, unknown = float(YES), float(NO), float(UNKNOWN)
    dynamic, actor = 0.2, 0.3
    own, either, theirs = -math.log(dynamic), -math.log(dynamic + actor), -math.log(actor)
    not_own, not_theirs = -math.log(1 - dynamic), -math.log(1 - actor)
    for moves, hand, belongs, against in (
        (unknown, unknown, 0, 0),
        (unknown, yes, theirs, not_own),
        (yes, yes, theirs, not_own),
        (no, yes, theirs, not_own),
        (yes, no, own, not_theirs),
        (yes, unknown, either, 0),
        (unknown, no, 0, not_theirs),
        (no, no, 0, not_theirs),
        (no, unknown, 0, not_theirs),
    ):
        hints = torch.tensor([[moves, hand], [unknown, unknown]])
        found = fusion_losses(torch.tensor([dynamic, 0.5]), torch.tensor([actor, 0.5]), hints)
        assert [float(each) for each in found] == pytest.approx([belongs / 2, against / 2], rel=1e-5)


def test_hints_are_weighed_and_keep_the_room_from_what_moves():
    config = SeparationConfig(hint_weight=2.0, hint_against_weight=3.0)
    rgb, target = torch.zeros(4, 3), torch.ones(4, 3)
    hints = torch.tensor([[1.0, 0], [0, 1], [-1, -1], [0, 0]])
    masks = {"dynamic": torch.full((4,), 0.2), "actor": torch.full((4,), 0.3)}
    for evidence in (None, torch.full((4, 2), 0.25)):
        plain = layer_losses(config, 1.0, masks, rgb, None, target, evidence)  # pyright: ignore
        hinted = layer_losses(config, 1.0, masks, rgb, None, target, evidence, hints=hints)  # pyright: ignore
        belongs, against = fusion_losses(masks["dynamic"], masks["actor"], hints)
        assert "hints" not in plain and float(hinted["hints"]) == pytest.approx(float(2 * belongs + 3 * against))
        assert {key: plain[key] for key in ("mask",)} == {key: hinted[key] for key in ("mask",)}
        assert float(hinted["static"]) == pytest.approx(float(plain["static"]) / 2)
        before, after = (room_loss(config, rgb, target, evidence, each) for each in (None, hints))
        assert float(after) == pytest.approx(float(before) / 2)


def test_batches_carry_hints_of_their_pixels(tiny_scene: Path, capsys: pytest.CaptureFixture[str]):
    store = extract(tiny_scene, moving="test_hints:Halves", hands="none")
    write_features(tiny_scene)
    drawn = []
    for resident in ("off", "on"):
        data = manager(tiny_scene, resident=resident, train_num_rays_per_batch=200)
        assert set(data.feature_stores) == {"image"}
        torch.manual_seed(0)
        assert "hints" not in data.next_train(0)[1]
        capsys.readouterr()
        data = manager(tiny_scene, resident=resident, train_num_rays_per_batch=200)
        data.use_hints()
        said = capsys.readouterr().out
        train = data.train_dataset.scene.splits["train"]
        half = 50 * np.mean(train % 2 == 1)
        assert f"Hints of {len(train)} training frames are used (moving: halves; hands: none)" in said
        assert f"{half:.1f} % move" in said and "0.0 % are hand" in said
        torch.manual_seed(0)
        _, batch = data.next_train(0)
        camera, row, column = batch["indices"].unbind(-1)
        assert torch.equal(batch["hints"], store.lookup(train[camera.numpy()], row, column)[0])
        drawn.append(batch["hints"])
    assert torch.equal(*drawn)


def test_whole_frames_carry_hints(tiny_scene: Path):
    store = extract(tiny_scene, moving="test_hints:Halves")
    config = FrameDataManagerConfig(data=tiny_scene, features="none")
    data = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    assert isinstance(data, FrameDataManager) and "hints" not in data.next_train(0)[1]
    data = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    data.use_hints()
    _, batch = data.next_train(0)
    row, column = (torch.from_numpy(each.ravel()) for each in np.mgrid[:TINY_HEIGHT, :TINY_WIDTH])
    assert torch.equal(batch["hints"], store.lookup(torch.full_like(row, batch["frame_index"]), row, column)[0])


def test_hints_that_are_missing_or_of_other_frames_stop_the_start(tiny_scene: Path, edit_meta):
    data = manager(tiny_scene, features="none")
    with pytest.raises(SceneError, match=r"lacks hints: run `divff extract .*--sources hints`.*hints off"):
        data.use_hints()
    manager(tiny_scene, "test", features="none").use_hints()  # an evaluation needs none
    extract(tiny_scene, moving="test_hints:Halves")
    edit_meta(lambda meta: (meta["ids_all"].pop(1), meta["ids_train"].pop(0)))
    with pytest.raises(SceneError, match=r"other frames.*--sources hints --overwrite"):
        manager(tiny_scene, features="none").use_hints()


@pytest.mark.parametrize("configured", [tiny_run.config, tiny_run.splat_config])
def test_both_methods_train_on_the_hints_that_there_are(tiny_scene: Path, tmp_path: Path, configured: Callable):
    def losses(name: str, **options: object) -> tuple[str, dict[str, torch.Tensor]]:
        config = configured(tiny_scene, tmp_path / name)
        for key, value in options.items():
            setattr(config.pipeline.model, key, value)
        torch.manual_seed(0)
        trainer = tiny_run.trainer_of(config)
        trainer.setup()
        torch.manual_seed(0)
        _, found, _ = trainer.pipeline.get_train_loss_dict(config.pipeline.model.staged().static_until)
        return config.pipeline.model.hints, found

    hints, found = losses("without")
    assert hints == "off" and "hints" not in found
    extract(tiny_scene, moving="test_hints:Halves")
    hints, found = losses("with")
    assert hints == "on" and found["hints"] > 0
    hints, other = losses("heavy", hint_weight=2.2, hint_against_weight=2.0)
    assert float(other["hints"]) == pytest.approx(2 * float(found["hints"]), rel=1e-4)
    hints, found = losses("off", hints="off")
    assert hints == "off" and "hints" not in found


def test_hints_are_no_features(tiny_scene: Path):
    extract(tiny_scene, moving="test_hints:Halves")
    data = manager(tiny_scene)
    assert data.feature_stores == {} and data.config.survey()[1] is False and data.config.has_hints()
    with pytest.raises(SceneError, match="lacks image and video and regulariser features"):
        manager(tiny_scene, features="all")


def test_a_source_says_what_its_planes_are_of(tiny_scene: Path):
    pictures = Pictures(load_scene(tiny_scene))
    first, second = (
        HintSource(pictures, "", CPU, HintSourceConfig("flow", flow=FlowConfig(threshold=threshold)))
        for threshold in (0.009, 0.02)
    )
    assert first.header().differences(second.header()) and first.fingerprint != second.fingerprint
    assert not first.header().is_of_unit_length
