"""Moving masks, object and affordance annotations, ground truth."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_HEIGHT, TINY_WIDTH
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from divff_nerfstudio.data.annotations import (
    LabelledMasks,
    affordance_annotations,
    check_annotations,
    clean_query,
    ground_truth,
    moving_mask,
    object_annotations,
    resize_nearest,
)
from divff_nerfstudio.data.remarks import remarks
from divff_nerfstudio.data.scene import SceneError, SceneFolder, load_scene
from divff_nerfstudio.data.scene_parts import FILES, FOLDERS
from divff_nerfstudio.plain_pickle import UnsafePickleError

MASK = Path("annotations") / "IMG_0000000100.bmp"
VIA = Path("object_annotations") / "te.json"
AFFORDANCES = Path("affordance_annotations") / "aff_annotations.pkl"


def box(rows: slice, cols: slice) -> np.ndarray:
    mask = np.zeros((TINY_HEIGHT, TINY_WIDTH), bool)
    mask[rows, cols] = True
    return mask


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@given(height=st.integers(1, 40), width=st.integers(1, 40), factor=st.integers(1, 4))
def test_nearest_keeps_pixels_at_whole_factors(height: int, width: int, factor: int) -> None:
    values = np.arange(height * width).reshape(height, width)
    large = resize_nearest(values, height * factor, width * factor)
    np.testing.assert_array_equal(large, values.repeat(factor, 0).repeat(factor, 1))
    np.testing.assert_array_equal(resize_nearest(large, height, width), values)


@given(old=st.integers(1, 50), new=st.integers(1, 50))
def test_nearest_takes_the_pixel_at_the_new_centre(old: int, new: int) -> None:
    taken = resize_nearest(np.arange(old)[:, None], new, 1)[:, 0]
    centres = [Fraction(2 * i + 1, 2 * new) * old for i in range(new)]
    assert taken.tolist() == [math.floor(centre) for centre in centres]


def test_moving_masks(tiny_scene: Path) -> None:
    scene = load_scene(tiny_scene)
    np.testing.assert_array_equal(moving_mask(scene, 0), box(slice(10, None), slice(4, 12)))
    assert moving_mask(scene, 4) is None, "an empty mask says nothing"
    assert moving_mask(scene, 1) is None, "not annotated"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_moving_masks_of_any_kind_and_size(tiny_scene: Path, mode: str) -> None:
    expected = box(slice(3, 9), slice(2, 20))
    large = Image.fromarray(expected.repeat(3, 0).repeat(3, 1))
    large.convert("L").convert(mode).save(tiny_scene / MASK)
    np.testing.assert_array_equal(moving_mask(load_scene(tiny_scene), 0), expected)


def test_objects(tiny_scene: Path) -> None:
    found = object_annotations(load_scene(tiny_scene))
    assert found is not None and found.names == ("cup", "pan") and list(found.masks) == [0]
    pan = box(slice(6, 12), slice(8, 14))
    cup = box(slice(2, 8), slice(2, 10)) & ~box(slice(2, 4), slice(2, 4)) & ~pan
    np.testing.assert_array_equal(found.masks[0][..., 0], cup)
    np.testing.assert_array_equal(found.masks[0][..., 1], pan)


def test_objects_lie_beside_the_scenes_as_published(tiny_scene: Path) -> None:
    scene = load_scene(tiny_scene)
    inside = object_annotations(scene), affordance_annotations(scene)
    for folder in ("object_annotations", "affordance_annotations"):
        (tiny_scene.parent / folder).mkdir()
        shutil.move(tiny_scene / folder, tiny_scene.parent / folder / "tiny")
    beside = object_annotations(scene), affordance_annotations(scene)
    for first, second in zip(inside, beside, strict=True):
        assert first is not None and second is not None and first.names == second.names
        np.testing.assert_array_equal(first.masks[0], second.masks[0])


def test_no_annotations(tiny_scene: Path) -> None:
    for folder in ("annotations", "object_annotations", "affordance_annotations", "ground_truth"):
        shutil.rmtree(tiny_scene / folder)
    scene = load_scene(tiny_scene)
    assert object_annotations(scene) is None and affordance_annotations(scene) is None
    assert moving_mask(scene, 0) is None and ground_truth(scene) is None
    check_annotations(scene)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ([2, 40, 33.75, 80, 33.75], box(slice(2, 4), slice(2, 6))),
        ([6, 40, 33.75, 120, 33.75, 120, 67.5, 40, 67.5], box(slice(2, 4), slice(2, 6))),
        ([3, 240, 135, 1000], box(slice(None), slice(None))),
        ([4, 240, 135, 61, 1000], box(slice(None), slice(9, 15))),
    ],
)
def test_shapes_of_the_annotator(tiny_scene: Path, shape: list[float], expected: np.ndarray) -> None:
    edit_json(tiny_scene / VIA, lambda p: p.update(metadata={"a": {"vid": "1", "xy": shape, "av": {"1": "2"}}}))
    found = object_annotations(load_scene(tiny_scene))
    assert found is not None
    np.testing.assert_array_equal(found.masks[0][..., 1], expected)


def test_outlines_may_refer_to_other_pictures_than_the_published_ones(tiny_scene: Path) -> None:
    """Whoever draws on small frames of their own is asked which size is meant."""
    width, height = TINY_WIDTH, TINY_HEIGHT

    def drawn(size: list[int] | None, *shapes: list[float]) -> None:
        regions = {str(i): {"vid": "1", "xy": shape, "av": {"1": "2"}} for i, shape in enumerate(shapes)}
        edit_json(tiny_scene / VIA, lambda p: p.update(metadata=regions, picture_size=size))

    own, far = [2, 2, 2, 4, 2], [3, 300, 100, 5]
    drawn(None, own, own, own, own)
    with pytest.raises(SceneError, match=rf'te\.json.* add "picture_size": \[{width}, {height}\]'):
        object_annotations(load_scene(tiny_scene))
    drawn([width, height], own, own, own, own)
    found = object_annotations(load_scene(tiny_scene))
    assert found is not None
    np.testing.assert_array_equal(found.masks[0][..., 1], box(slice(2, 4), slice(2, 6)))
    for shapes in ([own, own, own, own, far], [own, own]):
        drawn(None, *shapes)
        assert object_annotations(load_scene(tiny_scene)) is not None
    drawn([3 * width, height], own)
    with pytest.raises(SceneError, match=r'te\.json has "picture_size" 72x16, which is not the shape of the frames'):
        object_annotations(load_scene(tiny_scene))
    drawn([0, 5], own)
    with pytest.raises(SceneError, match="picture_size"):
        object_annotations(load_scene(tiny_scene))


def test_frames_are_found_by_number_and_through_views(tiny_scene: Path) -> None:
    def change(project: dict) -> None:
        project["file"] = {"7": {"fname": "folder/frame_0000000120.png"}}
        project["view"] = {"1": {"fid_list": ["7"]}}

    edit_json(tiny_scene / VIA, change)
    found = object_annotations(load_scene(tiny_scene))
    assert found is not None and list(found.masks) == [4]


VIA_FAULTS: dict[str, tuple[Callable[[dict], object], str]] = {
    "no attribute": (lambda p: p.pop("attribute"), "Image Annotator"),
    "no files": (lambda p: p["file"].clear(), "Image Annotator"),
    "no outline": (lambda p: p["metadata"]["1_a"].pop("xy"), "Image Annotator"),
    "unknown class": (lambda p: p["metadata"]["1_b"]["av"].update({"1": "9"}), "class 9"),
    "class of text": (lambda p: p["metadata"]["1_b"]["av"].update({"1": "cup"}), "Image Annotator"),
    "a point": (lambda p: p["metadata"]["1_a"].update(xy=[1, 5, 5]), "shape 1"),
    "a line": (lambda p: p["metadata"]["1_a"].update(xy=[7, 5, 5, 6, 6]), "shape 7"),
    "half a corner": (lambda p: p["metadata"]["1_a"].update(xy=[7, 5, 5, 6, 6, 7, 7, 8]), "shape 7"),
    "empty outline": (lambda p: p["metadata"]["1_a"].update(xy=[]), "shape 0 with 0 numbers"),
    "outline of text": (lambda p: p["metadata"]["1_a"].update(xy=[7, "a", "b", 1, 1, 2, 2]), "Image Annotator"),
    "corner nowhere": (lambda p: p["metadata"]["1_a"].update(xy=[7, 1, float("nan"), 1, 1, 2, 2]), "finite"),
    "other scene": (lambda p: p["file"]["1"].update(fname="IMG_0000000999.jpg"), "no frame of"),
    "a number without end": (lambda p: [f.update(fname="9" * 5000) for f in p["file"].values()], "no frame of"),
    "shares of the picture": (
        lambda p: [r.update(xy=[7, 0.1, 0.1, 0.5, 0.1, 0.5, 0.9]) for r in p["metadata"].values()],
        "in shares of the picture",
    ),
    "nothing": (lambda p: p["metadata"].clear(), "annotates nothing"),
    "of 1920x1080": (
        lambda p: p["metadata"]["1_a"].update(xy=[7, 9, 9, 1900, 9, 9, 900]),
        "outside of the 480x270",
    ),
    "left of all": (lambda p: p["metadata"]["1_a"].update(xy=[2, -50, 50, 60, 60]), "outside of the 480x270"),
    "a circle elsewhere": (lambda p: p["metadata"]["1_a"].update(xy=[3, 500, 50, 60]), "outside of the 480x270"),
    "one class under two names": (
        lambda p: p["attribute"]["1"]["options"].update({"01": "ladle"}),
        "two names to one class",
    ),
    "one name twice": (lambda p: p["attribute"]["1"]["options"].update({"5": "cup"}), "'cup': give each its own"),
    "a blank name": (lambda p: p["attribute"]["1"]["options"].update({"1": " "}), "is no name"),
    "a name of two lines": (lambda p: p["attribute"]["1"]["options"].update({"1": "a\nb"}), "is no name"),
    "a circle of nothing": (lambda p: p["metadata"]["1_a"].update(xy=[3, 100, 100, 0]), "shape 3"),
    "an ellipse of a negative radius": (lambda p: p["metadata"]["1_a"].update(xy=[4, 100, 100, -20, 40]), "shape 4"),
    "an outline on a line": (lambda p: p["metadata"]["1_a"].update(xy=[7, 9, 9, 20, 9, 30, 9]), "encloses nothing"),
}


@pytest.mark.parametrize("fault", VIA_FAULTS)
def test_faults_in_object_annotations_are_named(tiny_scene: Path, fault: str) -> None:
    change, words = VIA_FAULTS[fault]
    edit_json(tiny_scene / VIA, change)
    with pytest.raises(SceneError, match=words) as error:
        check_annotations(load_scene(tiny_scene))
    assert str(tiny_scene / VIA) in str(error.value)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"metadata": 3}'])
def test_broken_object_annotations_are_named(tiny_scene: Path, content: str) -> None:
    (tiny_scene / VIA).write_text(content)
    with pytest.raises(SceneError, match=r"te\.json is not a project"):
        object_annotations(load_scene(tiny_scene))


def test_affordances(tiny_scene: Path) -> None:
    found = affordance_annotations(load_scene(tiny_scene))
    assert found is not None and found.names == ("takes the cup", "cooks pasta") and list(found.masks) == [0]
    np.testing.assert_array_equal(found.masks[0][..., 1], box(slice(8, 12), slice(10, 20)))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("#C C takes the knife", "takes the knife"),
        (" #C C  cuts spagethi ", "cuts pasta"),
        ("#C C", ""),
        ("opens #C C", "opens #C C"),
    ],
)
def test_queries_are_cleaned(text: str, clean: str) -> None:
    assert clean_query(text) == clean


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"images": {}},
        {"text_queries": [3], "images": {}},
        {"text_queries": ["a"], "images": {"IMG_0000000100.jpg": np.zeros((4, 4))}},
        {"text_queries": ["a"], "images": {"IMG_0000000100.jpg": np.zeros((4, 4, 2))}},
        {"text_queries": ["a"], "images": {"IMG_0000000100.jpg": np.zeros((0, 4, 1))}},
        {"text_queries": ["a"], "images": {"IMG_0000000100.jpg": "mask"}},
        {"text_queries": ["a"], "images": {"IMG_0000000999.jpg": np.zeros((4, 4, 1))}},
        {"text_queries": ["a"], "images": {}},
        {"text_queries": ["a"], "images": {"IMG_0000000100.jpg": np.zeros((24, 16, 1))}},
        {"text_queries": ["a"], "images": {"IMG_0000000100.jpg": np.linspace(-4, 4, 384).reshape(16, 24, 1)}},
        {"text_queries": ["a\x1b[2J"], "images": {"IMG_0000000100.jpg": np.zeros((16, 24, 1))}},
        {"text_queries": ["a " * 9999], "images": {"IMG_0000000100.jpg": np.zeros((16, 24, 1))}},
        {"text_queries": ["a", "a"], "images": {"IMG_0000000100.jpg": np.zeros((16, 24, 2))}},
        {"text_queries": ["a"], "images": {f"{n}_0000000100.jpg": np.zeros((16, 24, 1)) for n in ("IMG", "frame")}},
    ],
)
def test_faults_in_affordances_are_named(tiny_scene: Path, content: object) -> None:
    (tiny_scene / AFFORDANCES).write_bytes(pickle.dumps(content))
    with pytest.raises(SceneError, match=r"aff_annotations\.pkl"):
        check_annotations(load_scene(tiny_scene))


def test_affordances_run_nothing(tiny_scene: Path) -> None:
    (tiny_scene / AFFORDANCES).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UnsafePickleError, match=r"aff_annotations\.pkl is refused"):
        check_annotations(load_scene(tiny_scene))


def write_mask_folder(folder: Path, scene: SceneFolder) -> LabelledMasks:
    masks = {0: np.stack((box(slice(2), slice(3)), box(slice(5, 9), slice(7))), -1), 3: np.zeros((16, 24, 2), bool)}
    masks[3][..., 1] = box(slice(1), slice(1))
    for index, mask in masks.items():
        for channel, name in enumerate(("blue bowl", "pan")):
            if mask[..., channel].any():
                path = folder / name / f"{scene.image_paths[index].stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask[..., channel].astype(np.uint8) * 255).save(path)
    return LabelledMasks(("blue bowl", "pan"), masks)


@pytest.mark.parametrize("read", [object_annotations, affordance_annotations])
def test_a_folder_of_masks_serves_as_well(
    tiny_scene: Path, tmp_path: Path, read: Callable[..., LabelledMasks | None]
) -> None:
    scene = load_scene(tiny_scene)
    expected = write_mask_folder(tmp_path / "masks", scene)
    given_folder = read(scene, tmp_path / "masks")
    place = tiny_scene / ("object_annotations" if read is object_annotations else "affordance_annotations")
    shutil.rmtree(place)
    shutil.copytree(tmp_path / "masks", place)
    for found in (given_folder, read(scene)):
        assert found is not None and found.names == expected.names and list(found.masks) == [0, 3]
        for index, mask in expected.masks.items():
            np.testing.assert_array_equal(found.masks[index], mask)


def test_annotations_may_be_named(tiny_scene: Path, tmp_path: Path) -> None:
    scene = load_scene(tiny_scene)
    shutil.move(tiny_scene / VIA, tmp_path / "mine.json")
    assert object_annotations(scene) is None
    found = object_annotations(scene, tmp_path / "mine.json")
    assert found is not None and found.names == ("cup", "pan")
    with pytest.raises(SceneError, match=r"nowhere\.json is missing"):
        object_annotations(scene, tmp_path / "nowhere.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SceneError, match="annotates nothing"):
        object_annotations(scene, tmp_path / "empty")


def test_a_truncated_mask_is_named(tiny_scene: Path) -> None:
    content = (tiny_scene / MASK).read_bytes()
    (tiny_scene / MASK).write_bytes(content[: len(content) // 2])
    with pytest.raises(SceneError, match=r"IMG_0000000100\.bmp is truncated"):
        check_annotations(load_scene(tiny_scene))


MASK_FAULTS: dict[str, tuple[Callable[[np.ndarray], Image.Image], str]] = {
    "one pixel": (lambda mask: Image.new("L", (1, 1), 255), "1x1"),
    "rotated": (lambda mask: Image.fromarray(mask.T.copy()), "16x24"),
    "of another aspect": (lambda mask: Image.fromarray(mask).resize((24, 24)), "24x24"),
    "soft": (lambda mask: Image.fromarray(mask).resize((48, 32), Image.Resampling.BILINEAR), "more than two values"),
    "labels": (
        lambda mask: Image.fromarray(mask // 255 + (np.arange(24) > 6).astype(np.uint8)),
        "more than two values",
    ),
    "transparent": (lambda mask: Image.merge("LA", (Image.fromarray(mask), Image.fromarray(mask))), "transparent"),
    "in printing colours": (lambda mask: Image.fromarray(mask).convert("CMYK"), "image mode CMYK"),
}


@pytest.mark.parametrize("fault", MASK_FAULTS)
def test_masks_that_are_none_are_refused(tiny_scene: Path, fault: str) -> None:
    change, words = MASK_FAULTS[fault]
    mask = box(slice(3, 9), slice(2, 20)).astype(np.uint8) * 255
    picture = change(mask)
    path = (tiny_scene / MASK).with_suffix(".png")
    (tiny_scene / MASK).unlink()
    picture.save(path, format="TIFF" if picture.mode == "CMYK" else "PNG")
    with pytest.raises(SceneError, match=words) as error:
        moving_mask(load_scene(tiny_scene), 0)
    assert str(path) in str(error.value)


def test_an_opaque_alpha_channel_says_nothing(tiny_scene: Path) -> None:
    expected = box(slice(3, 9), slice(2, 20))
    (tiny_scene / MASK).unlink()
    for mode in ("LA", "RGBA"):
        Image.fromarray(expected.astype(np.uint8) * 255).convert(mode).save((tiny_scene / MASK).with_suffix(".png"))
        np.testing.assert_array_equal(moving_mask(load_scene(tiny_scene), 0), expected)


def test_a_palette_in_which_0_is_not_black_is_refused(tiny_scene: Path) -> None:
    picture = Image.fromarray(box(slice(3, 9), slice(2, 20)).astype(np.uint8)).convert("P")
    picture.putpalette([255, 255, 255, 0, 0, 0])
    picture.save(tiny_scene / MASK)
    with pytest.raises(SceneError, match="palette"):
        moving_mask(load_scene(tiny_scene), 0)


def test_two_masks_of_one_frame_are_refused(tiny_scene: Path) -> None:
    shutil.copy(tiny_scene / MASK, (tiny_scene / MASK).with_suffix(".png"))
    with pytest.raises(SceneError, match="two masks of one frame"):
        moving_mask(load_scene(tiny_scene), 0)


def test_what_is_odd_is_said_once_per_folder(tiny_scene: Path) -> None:
    scene = load_scene(tiny_scene)
    assert remarks(scene) == []
    shutil.copy(tiny_scene / MASK, tiny_scene / "annotations" / "IMG_0000000100.BMP")
    shutil.copy(tiny_scene / MASK, tiny_scene / "annotations" / "frame_100.bmp")
    (tiny_scene / VIA).rename((tiny_scene / VIA).with_name("objects.json"))
    (tiny_scene / AFFORDANCES).with_name("notes.txt").write_text("x")
    said = remarks(scene)
    assert [sum(word in sentence for sentence in said) for word in ("1 more in", "objects.json", "notes.txt")] == [
        1,
        1,
        1,
    ]
    assert len(said) == 3 and all(sentence.endswith(".") for sentence in said)


def test_a_test_picture_that_is_trained_on_is_said(tiny_scene: Path) -> None:
    frames = tiny_scene / "frames"
    shutil.copy(frames / "IMG_0000000105.bmp", frames / "IMG_0000000100.bmp")
    (said,) = remarks(load_scene(tiny_scene))
    assert "IMG_0000000100.bmp of ids_test is the same picture as IMG_0000000105.bmp" in said


def test_numbers_that_fall_while_ids_rise_are_said(tiny_scene: Path) -> None:
    def swap(meta: dict) -> None:
        meta["images"]["12"], meta["images"]["14"] = meta["images"]["14"], meta["images"]["12"]

    edit_json(tiny_scene / "meta.json", swap)
    (said,) = remarks(load_scene(tiny_scene))
    assert "12 is IMG_0000000110.bmp, 14 is IMG_0000000105.bmp" in said


def test_cameras_that_see_the_room_as_from_one_place_are_said(tiny_scene: Path) -> None:
    def stop(meta: dict) -> None:
        for pose in meta["poses"].values():
            for row in pose:
                row[3] *= 1e-4

    edit_json(tiny_scene / "meta.json", stop)
    (said,) = remarks(load_scene(tiny_scene))
    assert "no depth is seen" in said


@pytest.mark.parametrize("name", (*FOLDERS, *FILES))
def test_what_is_no_part_of_a_scene_does_not_pass_for_its_absence(tiny_scene: Path, name: str) -> None:
    path = tiny_scene / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    load_scene(tiny_scene)  # without it
    path.symlink_to(tiny_scene / "not mounted")
    with pytest.raises(SceneError, match="leads nowhere") as error:
        load_scene(tiny_scene)
    assert str(path) in str(error.value)
    path.unlink()
    path.write_text("") if name in FOLDERS else path.mkdir()
    with pytest.raises(SceneError, match="is no fol" if name in FOLDERS else "is no file"):
        load_scene(tiny_scene)


GROUND_TRUTH = Path("ground_truth") / "frames" / "IMG_0000000105.npz"


def test_ground_truth(tiny_scene: Path) -> None:
    truth = ground_truth(load_scene(tiny_scene))
    assert truth is not None
    assert [entry["name"] for entry in truth.instance_table] == ["room", "cup", "arm"]
    np.testing.assert_array_equal(truth.layers(1) == 2, box(slice(10, None), slice(4, 12)))
    np.testing.assert_array_equal(truth.layers_ever(1) == 1, box(slice(2, 8), slice(2, 10)))
    np.testing.assert_array_equal(truth.instances(1), truth.layers_ever(1))
    assert truth.depth(1).dtype == np.float32 and (truth.depth(1) == 2).all()
    room = truth.clean_room(0)
    assert room is not None and (room == (90, 80, 70)).all() and truth.clean_room(1) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer": 3}, r"instances\.1\.layer"),
        ({"layer": "1"}, r"instances\.1\.layer"),
        ({"motion": [["a", "b"]]}, r"instances\.1\.motion"),
        ({"movable": "yes"}, r"instances\.1\.movable"),
        ({"name": " "}, "should be a name"),
        ({"description": "two\nlines"}, r"instances\.1\.description"),
        ({"id": 7}, "instance 1, which instances.json does not name"),
    ],
)
def test_faults_in_the_table_of_instances_are_named(tiny_scene: Path, change: dict, said: str) -> None:
    edit_json(tiny_scene / "ground_truth" / "instances.json", lambda table: table["instances"][1].update(change))
    truth = ground_truth(load_scene(tiny_scene))
    assert truth is not None
    with pytest.raises(SceneError, match=said):
        truth.instances(1)


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:99])])
def test_damaged_ground_truth_is_named(tiny_scene: Path, damage: Callable[[Path], object]) -> None:
    damage(tiny_scene / "ground_truth" / "frames" / "IMG_0000000105.npz")
    truth = ground_truth(load_scene(tiny_scene))
    assert truth is not None
    with pytest.raises(SceneError, match=r"IMG_0000000105\.npz is missing or damaged"):
        truth.layers(1)


def test_the_kitchen_agrees_with_its_renderer(kitchen_small: Path) -> None:
    scene = load_scene(kitchen_small)
    truth, objects = ground_truth(scene), object_annotations(scene)
    affordances = affordance_annotations(scene)
    assert truth is not None and objects is not None and affordances is not None
    assert "drinks from the red mug" in affordances.names
    ids = {entry["name"]: entry["id"] for entry in truth.instance_table}
    both = either = 0
    for index in scene.splits["test"]:
        np.testing.assert_array_equal(moving_mask(scene, index), truth.layers(index) > 0)
        shown = truth.instances(index)[..., None] == [ids[name] for name in objects.names]
        both += (shown & objects.masks[index]).sum((0, 1))
        either += (shown | objects.masks[index]).sum((0, 1))
    assert (both / either > 0.95).all(), dict(zip(objects.names, both / either, strict=True))
