"""Hints of what moves and what is hand: flow, boxes, masks, the store that they lie in, and how they are trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_FRAMES, TINY_HEIGHT, TINY_WIDTH, write_tiny_scene
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from divff_nerfstudio.cli import main
from divff_nerfstudio.data.detections import FILE
from divff_nerfstudio.data.scene import SceneError, SceneFolder, load_scene
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.extract import ExtractConfig
from divff_nerfstudio.features.hints.boxes import BoxPlane
from divff_nerfstudio.features.hints.flow import FlowConfig, FlowPlane, FrameCamera, Line
from divff_nerfstudio.features.hints.masks import MaskPlane
from divff_nerfstudio.features.hints.planes import NO, UNKNOWN, YES, HintPlane
from divff_nerfstudio.features.hints.source import HintSource, HintSourceConfig
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.store import FeatureStore, FeatureStoreError

HEIGHT, WIDTH, FOCAL, WALL = 64, 96, 90.0, 4.0
CPU = torch.device("cpu")
SIDE = 22
"""Of the square that moves, in pixels."""


def film(root: Path, moves: bool, slide: float = 0.06) -> SceneFolder:
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
    original = SceneFolder.frame
    monkeypatch.setattr(SceneFolder, "frame", lambda self, index: (looked.append(index), original(self, index))[1])
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


def test_flow_says_nothing_of_frames_that_see_nothing_in_common(tmp_path: Path):
    scene = film(tmp_path / "scene", moves=True)
    meta = json.loads((scene.root / "meta.json").read_text())
    for number, i in enumerate(meta["ids_all"]):
        if number % 4 == 3:  # looks back
            meta["poses"][str(i)] = np.diag((-1.0, 1, -1, 1))[:3].tolist()
    (scene.root / "meta.json").write_text(json.dumps(meta))
    plane = FlowPlane(Pictures(load_scene(scene.root)), FlowConfig())
    train = scene.splits["train"].tolist()
    assert (plane.states(train[0]) == UNKNOWN).all() and (plane.states(train[1]) == UNKNOWN).all()


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
    line = Line(FrameCamera(np.eye(4)[:3], matrix), FrameCamera(pose, matrix), seen, (1.0, 6.0))
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
    assert (plane.states(2) == UNKNOWN).all(), "no box of a hand is no proof that there is none"
    assert (plane.states(3) == UNKNOWN).all()


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
    (folder / "._IMG_0000000100.png").write_text("what a Mac leaves")
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


def test_values_that_no_mask_holds_or_that_differ_between_masks_are_refused(tiny_scene: Path):
    folder, inside = masks_of(tiny_scene)
    with pytest.raises(SceneError, match=r"No mask in .* holds 7: .*--hints\.hands-values"):
        plane_of(tiny_scene, folder, (7, 255))
    Image.fromarray(inside[2].astype(np.uint8) * 2).save(folder / "IMG_0000000110.png")
    with pytest.raises(SceneError, match=r"IMG_0000000110\.png holds another value than those before it.*in all masks"):
        plane_of(tiny_scene, folder)
    assert plane_of(tiny_scene, folder, (2, 255)).settings()["labels"] == [2, 255]


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
        ({"hands": "GONE.JSON"}, r"GONE\.JSON is missing.*--hints\.hands"),
        (
            {"moving": "flow", "moving_values": (1,)},
            r"--hints\.moving-values are of masks, but .* is flow",
        ),
        ({"moving": "flow", "hands_values": (1,)}, r"--hints\.hands-values are of masks, but --hints\.hands is auto"),
        ({"moving": "flow", "box_size": (640, 480)}, r"--hints\.box-size.*there are no boxes"),
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


@pytest.mark.parametrize(
    ("part", "value"), [("name", None), ("name", " "), ("settings", lambda _: {"path": Path("x")})]
)
def test_own_planes_say_what_they_are(tiny_scene: Path, monkeypatch: pytest.MonkeyPatch, part: str, value: object):
    monkeypatch.setattr(Halves, part, value)
    with pytest.raises(DivffError, match="Halves does not say what it is"):
        extract(tiny_scene, moving="test_hints:Halves")


def test_flow_is_of_cameras_and_pictures(tiny_scene: Path, edit_meta):
    """So that it is not taken for that of others."""

    def settings() -> dict[str, Any]:
        return FlowPlane(Pictures(load_scene(tiny_scene)), FlowConfig()).settings()

    before = settings()
    assert before == settings()
    edit_meta(lambda meta: meta["poses"][str(meta["ids_all"][0])][0].__setitem__(3, 0.3))
    moved = settings()
    edit_meta(lambda meta: meta["ids_train"].pop())
    assert len({told["of"] for told in (before, moved, settings())}) == 3


def test_a_store_with_other_values_is_refused(tiny_scene: Path):
    store = extract(tiny_scene, moving="test_hints:Halves")
    path = store.directory / "table.npy"
    table = np.load(path)
    table[0, 0] = 0.5
    np.save(path, table)
    with pytest.raises(FeatureStoreError, match=r"other hints than yes.*--sources hints"):
        FeatureStore.open(store.directory)


def test_a_source_says_what_its_planes_are_of(tiny_scene: Path):
    pictures = Pictures(load_scene(tiny_scene))
    first, second = (
        HintSource(pictures, "", CPU, HintSourceConfig("flow", flow=FlowConfig(threshold=threshold)))
        for threshold in (0.009, 0.02)
    )
    assert first.header().differences(second.header()) and first.fingerprint != second.fingerprint
    assert not first.header().is_of_unit_length


def test_true_masks_are_right_by_the_script(
    tiny_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "scripts"))
    from measure_hints import MeasureHints

    MeasureHints(scenes=(tiny_scene,), masks=tmp_path).main()
    folder = tmp_path / tiny_scene.name
    extract(tiny_scene, hands=str(folder / "hands"), moving="test_hints:Halves")
    capsys.readouterr()
    MeasureHints(scenes=(tiny_scene,), pictures=tmp_path / "pictures").main()
    said = capsys.readouterr().out.splitlines()
    share = 6 * 8 / (TINY_HEIGHT * TINY_WIDTH)  # of the arm, in `write_tiny_scene`
    assert f"| tiny | hands | {share:.3f} | 1.000 | {1 - share:.3f} | 1.000 | 1.000 |" in said
    assert any(line.startswith("| tiny | moving | ") for line in said)
    assert len(list((tmp_path / "pictures" / "tiny").iterdir())) == 1
