"""The demo scene: what is written, and whether its ground truth is true."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.draw import polygon2mask

from divff_nerfstudio.data.annotations import (
    affordance_annotations,
    ground_truth,
    moving_mask,
    object_annotations,
)
from divff_nerfstudio.data.moved_objects import moved_objects
from divff_nerfstudio.data.scene import SceneFolder, load_scene
from divff_nerfstudio.demo_scene import DemoSceneConfig, DemoSceneError
from divff_nerfstudio.demo_scene import writer as writing
from divff_nerfstudio.demo_scene.choreography import REACH, REST, SCRIPT
from divff_nerfstudio.demo_scene.outlines import outlines_of
from divff_nerfstudio.demo_scene.renderer import cast
from divff_nerfstudio.demo_scene.world import ACTOR, FIRST_NUMBER, HANDS, OBJECT, STEP, TAIL, Settings, World
from divff_nerfstudio.demo_scene.writer import splits_of
from divff_nerfstudio.evaluation.places import Places

FRAMES, WIDTH, HEIGHT = 12, 40, 24


def write(folder: Path, **options) -> Path:
    given_options = {"num_frames": FRAMES, "width": WIDTH, "height": HEIGHT, "workers": 1} | options
    DemoSceneConfig(folder, **given_options).main()
    return folder


def written(folder: Path) -> list[Path]:
    """All files but those that a reader keeps in hidden folders."""
    return [path for path in folder.rglob("[!.]*") if path.is_file() and not path.parent.name.startswith(".")]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("demo") / "scene")


@pytest.fixture(scope="module")
def scene(root) -> SceneFolder:
    return load_scene(root)


@pytest.fixture(scope="module")
def instances(root) -> list[dict]:
    return json.loads((root / "ground_truth" / "instances.json").read_text())["instances"]


@pytest.fixture(scope="module")
def world() -> World:
    """The default scene's world."""
    return World(Settings(0, 80, 114, 64, 8))


def test_the_layout_is_complete(root, scene):
    assert (scene.width, scene.height, len(scene.frame_ids)) == (WIDTH, HEIGHT, FRAMES)
    assert {key: len(ids) for key, ids in scene.splits.items()} == {"train": 6, "val": 3, "test": 3}
    stems = [path.stem for path in scene.image_paths]
    tests = [stems[i] for i in scene.splits["test"]]
    numbers = range(FIRST_NUMBER, FIRST_NUMBER + (FRAMES - 1) * STEP + 1 + TAIL)
    expected = {
        "meta.json", "object_annotations/te.json", "affordance_annotations/aff_annotations.pkl",
        "ground_truth/instances.json", "ground_truth/object_poses.npz", "ground_truth/video_poses.npz",
        "ground_truth/points3d.npy",
        *(f"frames/{stem}.bmp" for stem in stems), *(f"ground_truth/frames/{stem}.npz" for stem in stems),
        *(f"high_res_video/frame_{number:010d}.jpg" for number in numbers),
        *(f"{folder}/{stem}.bmp" for stem in tests for folder in ("annotations", "ground_truth/annotations_ever")),
        *(f"ground_truth/background/{stem}.{kind}" for stem in tests for kind in ("png", "npz")),
    }  # fmt: skip
    assert {str(path.relative_to(root)) for path in written(root)} == expected
    meta = json.loads((root / "meta.json").read_text())
    assert meta["camera"]["params"] == [meta["intrinsics"][0][0], WIDTH / 2, HEIGHT / 2]
    assert list(scene.video_numbers) == [FIRST_NUMBER + STEP * i for i in range(FRAMES)]


def test_it_depends_on_the_seed_alone(root, tmp_path):
    again = write(tmp_path / "again", workers=2)
    for path in written(root):
        assert path.read_bytes() == (again / path.relative_to(root)).read_bytes(), path
    other = World(Settings(1, FRAMES, WIDTH, HEIGHT, 8))
    assert not np.allclose(other.rotation, World(Settings(0, FRAMES, WIDTH, HEIGHT, 8)).rotation)


@pytest.mark.parametrize("count", [8, 12, 33, 80, 300])
def test_every_nth_frame_is_for_test_or_validation(count):
    splits = splits_of(count)
    assert sorted(itertools.chain(*splits.values())) == list(range(count))
    assert min(len(ids) for ids in splits.values()) >= 2 and len(splits["train"]) >= count / 2
    if count == 80:
        assert splits["test"] == [0, 16, 32, 48, 64] and splits["val"] == [8, 24, 40, 56, 72]


def to_world(scene: SceneFolder, i: int, columns, rows, z) -> np.ndarray:
    """Points of continuous pixel coordinates and depths in the world, by the conventions that the README states."""
    K = scene.intrinsics
    local = np.stack([(columns - K[0, 2]) / K[0, 0] * z, -(rows - K[1, 2]) / K[1, 1] * z, -z], -1)
    pose = scene.camera_to_worlds[i].astype(np.float64)
    return local @ pose[:, :3].T + pose[:, 3]


def to_pixels(scene: SceneFolder, i: int, points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pose, K = scene.camera_to_worlds[i].astype(np.float64), scene.intrinsics
    x, y, z = ((points - pose[:, 3]) @ pose[:, :3]).T
    return K[0, 0] * x / -z + K[0, 2], K[1, 1] * -y / -z + K[1, 2], -z


def reprojection_errors(scene: SceneFolder, i: int, j: int, centre: float) -> np.ndarray:
    """Relative errors of depth of static points of frame i seen from frame j, where j is flat around them."""
    truth = ground_truth(scene)
    rows, columns = np.nonzero(truth.layers_ever(i) == 0)
    points = to_world(scene, i, columns + centre, rows + centre, truth.depth(i)[rows, columns].astype(np.float64))
    x, y, z = to_pixels(scene, j, points)
    x, y = x - centre, y - centre
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    inside = (z > 0) & (left >= 0) & (top >= 0) & (left < scene.width - 1) & (top < scene.height - 1)
    x, y, z, left, top = (values[inside] for values in (x, y, z, left, top))
    names = truth.instances(i)[rows, columns][inside]
    inverse, instance = 1 / truth.depth(j).astype(np.float64), truth.instances(j)
    corners = [(top + a, left + b) for a in (0, 1) for b in (0, 1)]
    same = np.all([instance[corner] == names for corner in corners], axis=0)
    x, y, z, left, top = (values[same] for values in (x, y, z, left, top))
    u, v = x - left, y - top
    found = (
        inverse[top, left] * (1 - u) * (1 - v) + inverse[top, left + 1] * u * (1 - v)
        + inverse[top + 1, left] * (1 - u) * v + inverse[top + 1, left + 1] * u * v
    )  # fmt: skip
    assert len(z) > 100
    return np.abs(1 / found - z) / z


def test_static_points_reproject_with_pixel_centres_at_one_half(scene):
    exact, integer = [], []
    for i, j in ((0, 1), (3, 4), (5, 6), (8, 9), (11, 10), (2, 7)):
        exact.append(np.median(reprojection_errors(scene, i, j, 0.5)))
        integer.append(np.median(reprojection_errors(scene, i, j, 0.0)))
    assert max(exact) < 1e-4
    assert np.median(integer) > 10 * np.median(exact)


def test_carried_objects_reproject_by_their_own_poses(scene, root, instances):
    truth = ground_truth(scene)
    numbers = {entry["name"]: entry["id"] for entry in instances}
    errors, moved, hits = [], 0, [0, 0]
    with np.load(root / "ground_truth" / "object_poses.npz") as poses:
        for name in poses.files:
            own = poses[name][scene.video_numbers - FIRST_NUMBER]
            assert np.allclose(own[:, :, :3].transpose(0, 2, 1) @ own[:, :, :3], np.eye(3), atol=1e-9)
            for i, j in zip(range(FRAMES - 1), range(1, FRAMES), strict=True):
                rows, columns = np.nonzero(truth.instances(i) == numbers[name])
                z = truth.depth(i)[rows, columns].astype(np.float64)
                local = (to_world(scene, i, columns + 0.5, rows + 0.5, z) - own[i, :, 3]) @ own[i, :, :3]
                for k, frame in enumerate((j, i)):
                    x, y, depth = to_pixels(scene, j, local @ own[frame, :, :3].T + own[frame, :, 3])
                    inside = (x >= 1) & (y >= 1) & (x < WIDTH - 1) & (y < HEIGHT - 1)
                    at = (y[inside].astype(int), x[inside].astype(int))
                    same = truth.instances(j)[at] == numbers[name]
                    if frame == j:
                        errors.append(np.abs(truth.depth(j)[at] - depth[inside])[same])
                    if np.abs(own[j] - own[i]).max() > 0.1:
                        hits[k] += int(same.sum())
                        moved += int(inside.sum())
    assert np.median(np.concatenate(errors)) < 0.02
    assert moved > 30 and hits[0] > 2 * hits[1]


def test_tables_of_poses_agree_with_the_metadata(scene, root):
    with np.load(root / "ground_truth" / "video_poses.npz") as video:
        assert list(video["frame"]) == list(range(FIRST_NUMBER, FIRST_NUMBER + len(video["frame"])))
        assert np.allclose(video["c2w"][scene.video_numbers - FIRST_NUMBER], scene.camera_to_worlds, atol=1e-6)


def test_moved_objects_are_told_with_their_places(scene, instances):
    things, truth = moved_objects(scene), ground_truth(scene)
    assert things is not None and truth is not None
    moved = {entry["name"]: entry for entry in instances if entry["layer"] == OBJECT}
    assert [thing.instance.name for thing in things.objects] == list(moved)
    own = World(Settings(0, FRAMES, WIDTH, HEIGHT, 8))
    assert things.centimetres(own.scale) == pytest.approx(100)
    places = Places(scene, truth, things, range(FRAMES))
    for thing in things.objects:
        entry = moved[thing.instance.name]
        assert thing.has_moved(entry["first_moved_frame"]) and not thing.has_moved(entry["first_moved_frame"] - 1)
        assert len(thing.former_places(FIRST_NUMBER + own.settings.video_frames)) == len(entry["motion"])
        surface = places.surface(thing) / own.scale
        low, high = own.bodies[thing.instance.name].bounds
        assert len(surface) > 6 and (surface > low - 1e-4).all() and (surface < high + 1e-4).all()


def test_layers_follow_from_instances(scene, instances):
    truth = ground_truth(scene)
    ever = np.array([entry["layer"] for entry in instances])
    assert set(ever) == {0, OBJECT, ACTOR}
    for i, frame_id in enumerate(scene.frame_ids):
        now = [
            0 if entry["layer"] == OBJECT and frame_id < entry["first_moved_id"] else entry["layer"]
            for entry in instances
        ]
        assert np.array_equal(truth.layers_ever(i), ever[truth.instances(i)])
        assert np.array_equal(truth.layers(i), np.array(now)[truth.instances(i)])
        assert truth.instances(i).min() > 0 and np.isfinite(truth.depth(i)).all() and truth.depth(i).min() > 0
    assert (truth.layers(0) == OBJECT).sum() == 0 < (truth.layers_ever(0) == OBJECT).sum()
    for i in scene.splits["test"]:
        assert np.array_equal(moving_mask(scene, i), truth.layers(i) > 0)


def test_near_and_far_hold_the_room(scene, root):
    points = np.load(root / "ground_truth" / "points3d.npy").astype(np.float64)
    truth = ground_truth(scene)
    for i in range(FRAMES):
        _, _, z = to_pixels(scene, i, points)
        assert np.allclose(np.quantile(z[z > 0], (0.001, 0.999)), (scene.nears[i], scene.fars[i]), rtol=1e-4)
        room = truth.depth(i)[truth.layers_ever(i) == 0]
        assert np.mean((room >= scene.nears[i]) & (room <= scene.fars[i])) > 0.95


def test_outlines_and_affordances_agree_with_instances(scene, instances):
    truth, numbers = ground_truth(scene), {entry["name"]: entry["id"] for entry in instances}
    objects, actions = object_annotations(scene), affordance_annotations(scene)
    assert objects is not None and actions is not None
    assert set(objects.masks) == set(actions.masks) == set(scene.splits["test"])
    hits = total = 0
    for i, masks in objects.masks.items():
        for name, mask in zip(objects.names, np.moveaxis(masks, -1, 0), strict=True):
            exact = truth.instances(i) == numbers[name]
            hits, total = hits + int((mask & exact).sum()), total + int((mask | exact).sum())
    assert hits / total > 0.8
    asked = actions.names
    assert "cuts the carrot" in asked and "washes the colander" in asked
    for i, masks in actions.masks.items():
        for name, things in (("takes the mug", ["mug"]), ("cuts the carrot", ["cutting board", "carrot", "knife"])):
            exact = np.isin(truth.instances(i), [numbers[thing] for thing in things])
            assert np.array_equal(masks[..., asked.index(name)], exact)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 4))
def test_outlines_fill_to_the_mask_they_trace(seed, count):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:36, :50] + 0.5
    mask = np.zeros((36, 50), bool)
    for _ in range(count):
        cx, cy, a, b = rng.uniform([6, 6, 4, 4], [44, 30, 12, 9])
        ellipse = ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2
        mask |= (ellipse < 1) & (ellipse > rng.choice([0.0, 0.35]))
    filled = np.zeros_like(mask)
    for outline in outlines_of(mask):
        assert outline.min() >= 0 and outline.max() <= 1
        filled ^= polygon2mask(mask.shape, (outline * (50, 36) - 0.5)[:, ::-1])
    assert (filled & mask).sum() / max((filled | mask).sum(), 1) > 0.9


def test_a_hole_stays_a_hole_and_parts_stay_apart():
    mask = np.zeros((30, 40), bool)
    mask[4:20, 4:20] = True
    mask[9:15, 9:15] = False
    mask[22:28, 28:36] = True
    outlines = outlines_of(mask)
    assert len(outlines) == 2
    filled = [polygon2mask(mask.shape, (outline * (40, 30) - 0.5)[:, ::-1]) for outline in outlines]
    assert not filled[0][10:14, 10:14].any() and filled[0][5:8, 5:19].all()
    assert filled[1][23:27, 29:35].all() and not (filled[0] & filled[1]).any()


def test_the_clean_room_has_neither_actor_nor_moved_objects(scene, instances):
    truth = ground_truth(scene)
    gone = [entry["id"] for entry in instances if entry["layer"] > 0]
    for i in scene.splits["test"]:
        with np.load(scene.root / "ground_truth" / "background" / f"{scene.image_paths[i].stem}.npz") as clean:
            assert not np.isin(clean["instance"], gone).any()
            still = truth.layers_ever(i) == 0
            assert np.array_equal(clean["depth"][still], truth.depth(i)[still])
            assert np.all(clean["depth"] >= truth.depth(i))
        room = truth.clean_room(i)
        assert room.shape == (HEIGHT, WIDTH, 3)
        change = np.abs(room.astype(int) - scene.frame(i)).mean(-1)
        assert np.median(change[still]) < 3 and change[~still].mean() > 15


def test_frames_are_the_video_made_smaller(scene):
    for i in (0, FRAMES - 1):
        path = scene.video_frame_path(int(scene.video_numbers[i]))
        assert path is not None
        video = np.asarray(Image.open(path), dtype=float)
        assert video.shape == (2 * HEIGHT, 2 * WIDTH, 3)
        assert np.abs(video.reshape(HEIGHT, 2, WIDTH, 2, 3).mean((1, 3)) - scene.frame(i)).mean() < 6


def test_at_least_four_objects_move_at_different_times(world):
    spans = {prop.name: world.motion(prop.name) for prop in world.props}
    moved = [name for name, found in spans.items() if found]
    assert len(moved) >= 4 and len(moved) < len(spans)
    for name in moved:
        poses = world.object_poses[name]
        ((start, end),) = spans[name]
        assert np.array_equal(poses[: start + 1], np.broadcast_to(poses[0], poses[: start + 1].shape))
        assert np.array_equal(poses[end:], np.broadcast_to(poses[end], poses[end:].shape))
        assert np.ptp(poses[start:end, :, 3], axis=0).max() > 0.1
        steps = np.linalg.norm(np.diff(poses[:, :, 3], axis=0), axis=1)
        assert steps.max() < 0.09 and np.abs(np.diff(steps)).max() < 0.05
        layers = world.layers(start)[world.number(name)], world.layers(start + 1)[world.number(name)]
        assert layers == (0, OBJECT)
    apart = sorted((spans[name][0] for name in moved), key=lambda span: span[0])
    assert sum(second[0] >= first[1] for first, second in itertools.pairwise(apart)) >= 3


def test_the_actor_is_fixed_to_the_camera_at_rest_and_holds_what_it_carries(world):
    script = world.script
    rested = carried = 0
    for frame in range(world.settings.video_frames):
        moment, beat = script.moment(frame), script.beat(frame)
        for side, pose in moment.hands.items():
            local = moment.camera_rotation.T @ (pose.position - moment.camera_position)
            if all(not hold.start - REACH < beat < hold.end + REACH for hold in script.holds[side]):
                assert np.allclose(local, REST[side][0], atol=1e-9)
                rested += 1
            for carry in SCRIPT:
                if carry.side == side and carry.start <= beat <= carry.end:
                    thing = moment.objects[carry.prop]
                    reach = np.linalg.norm(thing.position - pose.position)
                    low, high = script.bounds[carry.prop]
                    assert reach < np.linalg.norm(np.maximum(-low, high)) + 0.03
                    carried += 1
    assert rested > 100 and carried > 100


def test_hands_move_without_jumps(world):
    moments = [world.script.moment(frame) for frame in range(world.settings.video_frames)]
    for side in (1, -1):
        local = np.stack([m.camera_rotation.T @ (m.hands[side].position - m.camera_position) for m in moments])
        assert np.linalg.norm(np.diff(local, axis=0), axis=1).max() < 0.13
    eyes = np.stack([m.camera_position for m in moments])
    assert np.linalg.norm(np.diff(eyes, axis=0), axis=1).max() < 0.08
    turns = [np.trace(a.camera_rotation.T @ b.camera_rotation) for a, b in itertools.pairwise(moments)]
    assert np.degrees(np.arccos((np.array(turns).min() - 1) / 2)) < 7


def test_every_object_and_the_actor_are_to_be_seen_in_several_test_frames(world):
    counts = dict.fromkeys((*(prop.name for prop in world.props), *(name for name, _ in HANDS)), 0)
    for identifier in splits_of(80)["test"]:
        seen = cast(world.stage(identifier * STEP), world.camera(identifier * STEP)).instance
        for name in counts:
            counts[name] += (seen == world.number(name)).sum() >= 6
    assert min(counts.values()) >= 2, counts
    moving = []
    for frame in range(0, 80 * STEP, 8 * STEP):
        seen = cast(world.stage(frame), world.camera(frame)).instance
        moving.append((world.layers(frame)[seen] > 0).mean())
    assert 0.03 < np.mean(moving) < 0.25


@pytest.mark.parametrize("count", [4, 6, 10])
def test_the_number_of_objects_is_an_option(count):
    world = World(Settings(3, 20, 40, 24, count))
    assert len(world.props) == count
    assert sum(bool(world.motion(prop.name)) for prop in world.props) >= 4
    assert np.isfinite(cast(world.stage(30), world.camera(30)).depth).all()


def test_the_full_scene_is_larger(world):
    large = World(Settings(0, 300, 228, 128, 8))
    assert large.camera(0).width == 228 and large.settings.video_frames == 299 * STEP + 1 + TAIL
    assert large.motion("mug")[0][0] == pytest.approx(world.motion("mug")[0][0] * 299 / 79, abs=4)


@pytest.mark.parametrize(
    "options",
    [{"num_frames": 5}, {"num_frames": 2000}, {"width": 8}, {"num_objects": 2}, {"num_objects": 99}, {"workers": 0}],
)
def test_options_out_of_range_are_named(tmp_path, options):
    with pytest.raises(DemoSceneError, match="--"):
        write(tmp_path / "scene", **options)
    assert not (tmp_path / "scene").exists()


def test_nothing_is_overwritten_unasked_and_nothing_half_is_left(tmp_path, monkeypatch):
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene" / "letter.txt").write_text("keep me")
    with pytest.raises(DemoSceneError, match="--overwrite"):
        write(tmp_path / "scene")
    with pytest.raises(DemoSceneError, match="is no scene"):
        write(tmp_path / "scene", overwrite=True)
    assert (tmp_path / "scene" / "letter.txt").read_text() == "keep me"

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "write_annotations", fail)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "other", num_frames=8, width=16, height=16)
    assert [path.name for path in tmp_path.iterdir()] == ["scene"]
