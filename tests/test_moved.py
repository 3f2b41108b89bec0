"""Scores of moved objects: right, ghosted, stuck, painted and empty renderings, and faults of the ground truth."""

from __future__ import annotations

import csv
import json
import zipfile
from dataclasses import replace

import moved_scene
import numpy as np
import pytest
import small_scene
from moved_scene import BOWL, MUG

from divff_nerfstudio.data.moved_objects import moved_objects
from divff_nerfstudio.data.scene import SceneError, load_scene
from divff_nerfstudio.evaluation.moved_scores import moved, object_ap
from divff_nerfstudio.evaluation.places import PlacePixels, Places
from divff_nerfstudio.evaluation.report import Gallery, Report, report_page
from divff_nerfstudio.evaluation.run import Wanted, evaluate, evaluate_scene
from divff_nerfstudio.evaluation.scores import SCENE_SCORES
from divff_nerfstudio.evaluation.tables import save_csv
from divff_nerfstudio.evaluation.trained_scene import TrainedScene

AP, BEFORE = "moved_object_ap", "moved_object_ap_before"
FOUND, GONE, BOTH = "moved_found", "moved_gone", "moved_found_and_gone"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return moved_scene.write(tmp_path_factory.mktemp("moved") / "boxes")


@pytest.fixture
def broken(tmp_path):
    return moved_scene.write(tmp_path / "boxes")


def scored(root, model, queries=()):
    trained = TrainedScene(model, small_scene.datamanager(root), moved_scene.make_query())
    return moved(trained, queries)


@pytest.fixture
def places(root):
    scene = load_scene(root)
    trained = TrainedScene(moved_scene.BoxModel(), small_scene.datamanager(root), moved_scene.make_query())
    things = moved_objects(scene)
    assert trained.truth is not None and things is not None
    return Places(scene, trained.truth, things, trained.trained)


def test_what_is_right_has_full_scores(root):
    found = scored(root, moved_scene.BoxModel())
    assert {name: found.totals[name] for name in (AP, BEFORE, FOUND, "moved_found_shown", GONE, BOTH)} == {
        AP: 1, BEFORE: 1, FOUND: 1, "moved_found_shown": 1, GONE: 1, BOTH: 1,
    }  # fmt: skip
    assert found.totals["moved_point_error_cm"] == pytest.approx(0, abs=0.1)
    # The mug is moved before frames 9, 12 and 14, the bowl before 12 and 14; held out are 2 and 4 as well.
    assert found.totals["moved_object_pairs"] == found.totals["moved_asked_pairs"] == 5
    assert found.totals["moved_object_pairs_before"] == 5
    assert set(found.frames) == {2, 4, 9, 12, 14} and set(found.frames[9]) == {"mug", "bowl"}
    assert set(found.frames[9]["bowl"]) == {"ap_before"}
    assert set(found.totals) <= set(SCENE_SCORES)
    assert sorted(found.figures) == [f"moved_{i:06d}" for i in (2, 4, 9, 12, 14)]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (moved_scene.InTheRoom, {AP: 0, BEFORE: 0, FOUND: 1, GONE: 1, BOTH: 1}),
        (moved_scene.Ghosts, {FOUND: 1, GONE: 0, BOTH: 0}),
        (moved_scene.Stuck, {AP: 0, BEFORE: 1, FOUND: 0, GONE: 0, BOTH: 0}),
        (moved_scene.Absent, {AP: 0, BEFORE: 0, FOUND: 0, GONE: 1, BOTH: 0}),
        (moved_scene.Empty, {AP: 0, BEFORE: 0, FOUND: 0, GONE: 0, BOTH: 0}),
        (moved_scene.Painted, {AP: 1, FOUND: 0, GONE: 1, BOTH: 0}),
        (moved_scene.Gloved, {AP: 0, FOUND: 1, "moved_found_shown": 0, GONE: 1, BOTH: 1}),
    ],
)
def test_what_is_wrong_is_told(root, model, expected):
    totals = scored(root, model()).totals
    assert {name: totals[name] for name in expected} == expected


def test_the_point_is_measured_in_centimetres_from_the_true_box(root):
    # The ghost of the mug stands above its true place, so that its pixels come first; boxes are 0.6 and 0.4 wide.
    classes = scored(root, moved_scene.Ghosts()).classes
    apart = np.abs(np.subtract(*moved_scene.PLACES[MUG]))
    least, most = (np.linalg.norm(np.maximum(apart + more, 0)) / moved_scene.SCALE * 100 for more in (-0.5, 0.5))
    assert least < classes["mug"]["point_error_cm"] < most
    assert scored(root, moved_scene.Painted()).totals["moved_point_error_cm"] > 20


def test_without_features_the_layer_is_scored_alone(root):
    model = moved_scene.BoxModel()
    model.with_features = False
    totals = scored(root, model).totals
    assert set(totals) == {AP, BEFORE, "moved_object_pairs", "moved_object_pairs_before"} and totals[AP] == 1


def test_an_object_is_chosen_by_name_or_description(root):
    assert set(scored(root, moved_scene.BoxModel(), ("a red mug",)).classes) == {"mug"}
    assert set(scored(root, moved_scene.BoxModel(), ("bowl", "sink")).classes) == {"bowl"}
    assert scored(root, moved_scene.BoxModel(), ("sink",)).totals == {}


def test_things_that_are_called_alike_are_not_asked_for(broken):
    path = broken / "ground_truth" / "instances.json"
    table = json.loads(path.read_text())
    table["instances"][1]["description"] = "The  Bowl"
    path.write_text(json.dumps(table))
    moved_scene.CODES["The  Bowl"] = moved_scene.CODES["wall"]
    classes = scored(broken, moved_scene.BoxModel()).classes
    assert "found" in classes["mug"] and "found" not in classes["bowl"] and "ap" in classes["bowl"]


def test_average_precision_near_an_object():
    mask = np.zeros((20, 30), bool)
    mask[8:10, 10:13] = True
    none = np.zeros_like(mask)
    assert object_ap(mask * 1.0, mask, none) == 1
    assert object_ap(0.0 * mask, mask, none) == 0 == object_ap(0.001 + 0.0 * mask, mask, none)
    assert object_ap(mask * 1.0, none, none) is None
    half = mask * 1.0
    half[9] = 0  # found is half of it, all of that rightly
    assert object_ap(half, mask, none) == pytest.approx(0.5)
    far = mask * 0.5
    far[0] = far[:, 20:] = 1.0  # rows 5 to 12 and columns 7 to 15 are near
    assert object_ap(far, mask, none) == 1
    beside = mask * 0.5
    beside[5:7, 8:11] = 1.0
    assert object_ap(beside, mask, none) == pytest.approx(0.5)
    assert object_ap(beside, mask, beside == 1.0) == 1  # another moved object
    assert object_ap(beside, mask, mask | (beside == 1.0)) == 1  # it is one itself
    assert object_ap(1.0 + 0 * half, mask, none) == pytest.approx(6 / 72)  # all shown: the share of its pixels


def test_surfaces_fill_the_boxes_that_were_drawn(places):
    mug, bowl = places.moved.objects
    for thing, number in ((mug, MUG), (bowl, BOWL)):
        low, high = places.box(thing)
        halves = np.array(moved_scene.HALVES[number])
        assert (low >= -halves - 1e-4).all() and (high <= halves + 1e-4).all()
        assert (high - low)[:2] == pytest.approx(2 * halves[:2], abs=0.12)  # a pixel is 0.1 wide there
        pose = places.pose(thing, 14)
        inside = pose[:, :3] @ (low + high) / 2 + pose[:, 3]
        assert places.distance(thing, pose, inside) == 0
        out = pose[:, :3] @ ((low + high) / 2 + (high[0] - low[0], 0, 0)) + pose[:, 3]
        assert places.distance(thing, pose, out) == pytest.approx((high[0] - low[0]) / 2)
    assert places.same(mug, places.pose(mug, 0), places.pose(mug, 5)) and not places.overlap(
        mug, places.pose(mug, 0), places.pose(mug, 14)
    )
    assert not places.same(mug, places.pose(mug, 5), places.pose(mug, 6))


def test_one_looks_where_the_place_can_be_seen(places):
    mug, bowl = places.moved.objects
    now = places.looks(mug, places.pose(mug, 14), 14, 3)
    assert now[0].frame == 14 and len(now) == 3
    assert all(look.frame in places.viewpoints and look.frame >= 7 for look in now[1:])
    before = places.looks(mug, places.pose(mug, 0), 14, 3)
    assert len(before) == 3 and all(look.frame <= 5 and look.frame in places.viewpoints for look in before)
    for look in (*now, *before):
        mask = np.zeros((moved_scene.HEIGHT, moved_scene.WIDTH), bool)
        rows, columns = look.pixels.shape
        mask[look.top : look.top + rows, look.left : look.left + columns] = look.pixels
        assert (mask <= places.mask(mug, look.frame)).all() and mask.sum() >= 6
        assert (PlacePixels.at(look.frame, mask).pixels == look.pixels).all()
    assert places.looks(bowl, places.pose(mug, 0), 14, 3) == []


def test_what_stands_before_a_place_now_is_left_out(root, places, monkeypatch):
    mug, bowl = places.moved.objects
    clear = places.looks(mug, places.pose(mug, 0), 14, 3)
    poses = bowl.poses.copy()
    poses[bowl.numbers > 110, :, 3] = np.add(moved_scene.PLACES[MUG][0], (0, 0, 0.6))  # before the mug's old place
    monkeypatch.setitem(bowl.__dict__, "poses", poses)
    hidden = places.looks(mug, places.pose(mug, 0), 14, 3)
    assert sum(look.pixels.sum() for look in hidden) < sum(look.pixels.sum() for look in clear) / 2


def test_an_evaluation_tells_of_moved_objects(root, tmp_path):
    datamanager = small_scene.datamanager(root)
    pictures = {}
    evaluation = evaluate(
        moved_scene.Ghosts(),
        datamanager,
        moved_scene.make_query(),
        None,
        Wanted(tasks=("views",)),
        pictures.__setitem__,
    )
    assert evaluation.totals[GONE] == 0 and evaluation.classes["moved_objects"]["mug"]["found"] == 1
    assert "moved_000014" in pictures
    page = report_page(Report("title", "text", evaluation, Gallery(tmp_path)), tmp_path)
    assert "Moved objects, one by one" in page and "Gone from old places" in page and "5 pairs" in page
    save_csv(tmp_path, "divff", evaluation)
    with (tmp_path / "classes_by_frame.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["task"] == "moved_objects"]
    assert {(row["frame"], row["class"]) for row in rows if row["gone"]} == {
        ("9", "mug"), ("12", "mug"), ("14", "mug"), ("12", "bowl"), ("14", "bowl"),
    }  # fmt: skip
    save_csv(tmp_path, "divff", replace(evaluation, classes={}, frame_classes={}))
    assert not (tmp_path / "classes.csv").exists() and not (tmp_path / "classes_by_frame.csv").exists()
    model = moved_scene.BoxModel()
    model.render = with_all_pictures(model.render)
    totals = evaluate_scene(model, datamanager, moved_scene.make_query(), get_std=True)  # as ns-eval asks
    assert totals[BOTH] == 1 and all(np.isfinite(value) for value in totals.values())


def with_all_pictures(render):
    """Adds the pictures that scores of frames need."""

    def rendered(*args, **options):
        view = render(*args, **options)
        view.pictures |= {"mask_moving": view.pictures["mask_dynamic"], "rgb_static": view.pictures["rgb"]}
        return view

    return rendered


def test_a_scene_without_poses_of_objects_has_nothing_to_tell(tiny_scene):
    assert moved_objects(load_scene(tiny_scene)) is None


def edit_table(root, change):
    path = root / "ground_truth" / "instances.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def edit_arrays(root, name, change):
    path = root / "ground_truth" / name
    with np.load(path) as content:
        arrays = dict(content)
    change(arrays)
    np.savez(path, **arrays)


def scaled(arrays):
    arrays["mug"][3, :, :3] *= 2


def infinite(arrays):
    arrays["bowl"][7, 0, 3] = np.inf


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda root: (root / "ground_truth" / "instances.json").unlink(), "there is no such file"),
        (lambda root: edit_table(root, lambda t: t.pop("metres_to_scene_units")), "metres_to_scene_units"),
        (lambda root: edit_table(root, lambda t: t.update(metres_to_scene_units=0)), "greater than 0"),
        (lambda root: edit_table(root, lambda t: t["instances"][2].update(id=256)), "255"),
        (lambda root: edit_table(root, lambda t: t["instances"][2].update(motion=[[50]])), "motion"),
        (lambda root: edit_table(root, lambda t: t["instances"][2].update(motion=[[70, 50]])), "motion of mug"),
        (lambda root: edit_table(root, lambda t: t["instances"][2].update(motion=[[50, 5000]])), "motion of mug"),
        (lambda root: edit_table(root, lambda t: t["instances"][2].update(name="cup")), "no poses of cup"),
        (lambda root: edit_table(root, lambda t: t["instances"][1].update(name="mug")), "two instances called mug"),
        (lambda root: edit_arrays(root, "object_poses.npz", scaled), "no rotation"),
        (lambda root: edit_arrays(root, "object_poses.npz", infinite), "finite"),
        (lambda root: edit_arrays(root, "object_poses.npz", lambda a: a.update(mug=a["mug"][1:])), "151 frames"),
        (lambda root: edit_arrays(root, "object_poses.npz", lambda a: a.update(mug=a["mug"].astype(str))), "finite"),
        (lambda root: edit_arrays(root, "video_poses.npz", lambda a: a.update(frame=a["frame"] + 1)), "frame 0"),
        (lambda root: edit_arrays(root, "video_poses.npz", lambda a: a.update(frame=a["frame"][::-1])), "ascend"),
        (lambda root: edit_arrays(root, "video_poses.npz", lambda a: a.update(frame=a["frame"] * 1.0)), "whole"),
        (lambda root: (root / "ground_truth" / "video_poses.npz").unlink(), "missing"),
        (lambda root: (root / "ground_truth" / "video_poses.npz").write_bytes(b"PK\x03\x04no"), "damaged"),
    ],
)
def test_faults_of_the_ground_truth_are_told(broken, spoil, told):
    spoil(broken)
    with pytest.raises(SceneError, match=told) as error:
        moved_objects(load_scene(broken))
    assert str(broken) in str(error.value) and "anew" in str(error.value)


def test_an_array_that_promises_more_than_it_holds_is_refused(broken):
    path = broken / "ground_truth" / "object_poses.npz"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 3, 4)}"
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mug.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(SceneError, match="plain numbers"):
        moved_objects(load_scene(broken))
    np.savez(path, mug=np.array([{}], object))
    with pytest.raises(SceneError, match="plain numbers"):
        moved_objects(load_scene(broken))
