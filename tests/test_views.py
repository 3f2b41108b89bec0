"""Views of a trained scene, questions to them, and what comes of the answers: tracks, point clouds, other views."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_scene
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from divff_nerfstudio.cli.export import ExportConfig
from divff_nerfstudio.cli.query import QueryCommandConfig, file_name
from divff_nerfstudio.cli.video import VideoConfig
from divff_nerfstudio.data.scene import SceneError, SceneFolder, load_scene
from divff_nerfstudio.evaluation.consistency import consistency, static_classes
from divff_nerfstudio.evaluation.looks import look_cameras, ray_directions
from divff_nerfstudio.evaluation.options import CloudOptions, EvaluationError, asked_kind
from divff_nerfstudio.evaluation.pointcloud import _Fused, reliable, write_cloud
from divff_nerfstudio.evaluation.surroundings import in_picture, surroundings, true_points
from divff_nerfstudio.evaluation.tracks import Track, TrackPoint, follow, save_plot
from divff_nerfstudio.evaluation.trained_scene import AskedView, TrainedScene
from divff_nerfstudio.evaluation.viewpoints import (
    CameraFileError,
    central_frame,
    fixed_viewpoint,
    intrinsics_of,
    published_viewpoints,
    read_camera,
)
from divff_nerfstudio.models.view import Features
from divff_nerfstudio.query import QueryError


@pytest.fixture
def trained(tmp_path: Path) -> TrainedScene:
    root = small_scene.write(tmp_path / "scene")
    return TrainedScene(small_scene.KnowingModel(), small_scene.datamanager(root), small_scene.make_query())


@pytest.fixture
def config(trained: TrainedScene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for command in ("query", "video", "export"):
        monkeypatch.setattr(f"divff_nerfstudio.cli.{command}.open_scene", lambda *_: trained)
    return tmp_path / "config.yml"


def test_the_answer_is_where_the_thing_is(trained):
    answer = trained.view(frame=5).ask("mug")
    mug = small_scene.layers(5) == 1
    np.testing.assert_array_equal(answer.mask, mug)
    assert (answer.row, answer.column) == tuple(np.argwhere(mug)[0])
    assert answer.layer == "dynamic" and answer.shares == {"static": 0.0, "dynamic": 1.0, "actor": 0.0}
    direction = np.array([(answer.column + 0.5 - 20) / 30, -(answer.row + 0.5 - 12) / 30, -1.0])
    expected = direction / np.linalg.norm(direction) + np.array([0.05, 0, 0])
    np.testing.assert_allclose(answer.point, expected, atol=1e-5)  # depth 1 along the ray, from the frame's camera
    assert answer.score == pytest.approx(1 / (1 + np.exp(-10)))
    assert answer.summary()["area"] == pytest.approx(mug.mean())
    json.dumps(answer.summary(), allow_nan=False)


def test_a_view_takes_frame_time_and_camera_apart(trained):
    seen = trained.model.seen
    trained.view(frame=3)
    trained.view(time=0.5)
    trained.view(frame=3, time=1.0)
    trained.view(time=1.0, camera=trained.cameras[7:8], hide=("actor",))
    trained.view(camera=trained.cameras[7:8])
    at = [(frame, hidden, round(x, 2)) for frame, hidden, x in seen]
    assert at == [(3, False, 0.03), (6, False, 0.05), (11, False, 0.03), (11, True, 0.07), (7, False, 0.07)]
    with pytest.raises(EvaluationError, match="moment"):
        trained.view()
    with pytest.raises(SceneError, match="no frame 99"):
        trained.view(frame=99)


def test_another_question_renders_and_decodes_nothing(trained):
    decoded = []

    def decode(kind):
        decoded.append(kind)
        return torch.nn.functional.normalize(torch.randn(228 * 128, 512), dim=-1).view(128, 228, 512)

    outputs = {name: torch.ones(128, 228, 1) for name in ("depth", "accumulation", "mask_dynamic", "mask_actor")}
    query = small_scene.make_query()
    query.encoders["image"] = lambda phrases: torch.randn(len(phrases), 512)
    view = AskedView(
        trained.cameras[:1], {"rgb": torch.rand(128, 228, 3), **outputs}, Features(["image"], decode), query
    )
    view.relevancies("image", ["mug"])
    start = time.process_time()
    view.relevancies("image", ["bowl"])
    assert decoded == ["image"] and trained.model.seen == []
    assert time.process_time() - start < 1  # the figure is scripts/bench.py's; this says that nothing is rendered
    with pytest.raises(QueryError, match="no trained video features"):
        view.ask("mug", "video")


def test_phrases_may_name_their_features():
    assert asked_kind("blue  mug", "image") == ("image", "blue mug")
    assert asked_kind("video: cut: bread", "image") == ("video", "cut: bread")
    assert asked_kind("ratio: one", "video") == ("video", "ratio: one")
    with pytest.raises(EvaluationError, match="words"):
        asked_kind("image: ", "video")


def test_query_prints_one_json_and_writes_pictures(config, tmp_path, capsys):
    content = QueryCommandConfig(
        load_config=config, text=("mug", "video: take the mug"), frame=4, output=tmp_path / "out"
    ).main()
    printed = capsys.readouterr().out
    assert json.loads(printed) == content and printed.count("\n") == 1
    first, second = content["answers"]
    assert (first["layer"], first["features"], second["features"]) == ("dynamic", "image", "video")
    assert second["threshold"] == 0.54
    saved = np.load(first["files"]["array"])
    assert saved.shape == (small_scene.HEIGHT, small_scene.WIDTH) and saved.max() == pytest.approx(first["score"])
    assert len({path for answer in content["answers"] for path in answer["files"].values()}) == 8
    assert all(Path(path).is_file() for answer in content["answers"] for path in answer["files"].values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "moment"),
        ({"fixed": 3}, "moment"),
        ({"frame": 1, "fixed": 3, "camera": Path("c.json")}, "both"),
        ({"frame": 1, "over_time": True}, "all times"),
        ({"frame": 1, "camera": Path("missing.json")}, "no such file"),
        ({"frame": 1, "time": 0.5}, "both name a moment"),
    ],
)
def test_a_question_without_a_place_is_refused(config, tmp_path, options, words):
    with pytest.raises((EvaluationError, CameraFileError), match=words):
        QueryCommandConfig(load_config=config, text=("mug",), output=tmp_path, **options).main()


def test_an_empty_question_is_refused_before_the_run_is_opened(tmp_path):
    for text in (("mug", " "), ()):
        with pytest.raises((QueryError, EvaluationError), match="what to look for"):
            QueryCommandConfig(load_config=tmp_path / "none.yml", text=text, time=0.5, output=tmp_path).main()


def test_a_fixed_viewpoint_at_another_time(config, trained, tmp_path):
    content = QueryCommandConfig(load_config=config, text=("mug",), time=1.0, fixed=2, output=tmp_path).main()
    assert content["time"] == 1.0 and content["camera_to_world"][0][3] == pytest.approx(0.02)
    assert trained.model.seen[0][0] == 11


def test_names_of_files_keep_phrases_apart():
    assert file_name("blue mug", "image") == "blue_mug_image" != file_name("blue mug", "video")
    assert len(file_name("\U00020000" * 70, "image").encode()) < 150
    names = {file_name(text, "image") for text in ("Blue mug", "blue mug", "blue-mug", "blue/mug", "é", "...")}
    assert len(names) == 6 and not any("/" in name or name.startswith(".") for name in names)


def test_over_time_follows_what_moves(config, trained, tmp_path, monkeypatch):
    (mug,) = follow(trained, [("image", "mug")], [0, 3, 6, 9, 11], 5)
    middle = [np.argwhere(small_scene.layers(i) == 1).mean(0)[1] for i in (0, 3, 6, 9, 11)]
    assert np.corrcoef(mug.points[:, 0], middle)[0, 1] > 0.99
    assert all(hidden for _, hidden, _ in trained.model.seen)
    judged = SimpleNamespace(verdicts=lambda phrases: [SimpleNamespace(in_scene=phrase == "mug") for phrase in phrases])
    monkeypatch.setattr(type(trained), "calibration", lambda *_: judged)
    content = QueryCommandConfig(
        load_config=config, text=("mug",), over_time=True, moments=4, fixed=5, output=tmp_path / "out"
    ).main()
    (answer,) = content["over_time"]
    assert answer["in_scene"] is True
    assert answer["sighted"] == 4 and content["fixed"] == 5
    table = Path(answer["files"]["csv"]).read_text().splitlines()
    assert table[0].startswith("frame,time,score,found,x,y,z,layer") and len(table) == 5
    assert Path(answer["files"]["plot"]).read_bytes()[:4] == b"\x89PNG"


def sightings(*places: float | None) -> list[TrackPoint]:
    return [
        TrackPoint(10 * i, i / 10, 0.9, True, None if x is None else (x, 0.0, 0.0), 2.0, "dynamic", 0)
        for i, x in enumerate(places)
    ]


def test_moves_are_where_it_is_displaced(tmp_path):
    track = Track("mug", "image", sightings(0.0, 0.01, 0.0, 1.0, 2.0, None, 2.01, 2.0, 3.0))
    assert track.tolerance == pytest.approx(0.1)
    assert track.moves == [(20, 40), (70, 80)]
    assert [row["moved"] for row in track.rows()] == [0, 0, 0, 1, 1, 0, 0, 0, 1]
    save_plot(tmp_path / "plot.png", track)
    nothing = Track("mug", "image", sightings(None, None))
    assert nothing.moves == [] and nothing.summary()["sighted"] == 0
    save_plot(tmp_path / "nothing.png", nothing)


def test_a_video_of_a_camera_path(config, trained, tmp_path):
    pose = np.eye(4).ravel().tolist()
    path = tmp_path / "path.json"
    cameras = [{"camera_to_world": pose, "fov": 50, "render_time": t} for t in (0.0, 1.0)]
    path.write_text(json.dumps({"render_height": 24, "render_width": 40, "camera_path": cameras}))
    VideoConfig(load_config=config, camera_path=path, layout="prediction", cell_height=32).main()
    assert [frame for frame, *_ in trained.model.seen] == [0, 11]
    with pytest.raises(EvaluationError, match="both"):
        VideoConfig(load_config=config, camera_path=path, fixed=3).main()


def test_a_video_of_answers_needs_questions(config, trained):
    trained.query.ask(text="")
    with pytest.raises(EvaluationError, match="nothing is asked: give --queries"):
        VideoConfig(load_config=config, layout="relevancy").main()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "--time .* --frame .* --over-time or --when"),
        ({"when": True, "threshold": 0.5}, "--when takes no --threshold"),
        ({"when": True, "hide": ("actor",)}, "leave --threshold and --hide out"),
        ({"fixed": 3}, "No moment"),
    ],
)
def test_questions_that_name_no_moment_or_too_much_are_told_at_once(tmp_path, options, said):
    with pytest.raises(EvaluationError, match=said):
        QueryCommandConfig(tmp_path / "none.yml", text=("mug",), output=tmp_path / "q", **options).main()


def test_cameras_in_files(trained, tmp_path):
    path = tmp_path / "camera.json"
    path.write_text(json.dumps({"camera_to_world": np.eye(4)[:3].tolist(), "time": 0.25}))
    camera = read_camera(path, trained.cameras[:1])
    assert camera.times.tolist() == [[0.25]] and float(camera.fx[0]) == 30 and int(camera.width[0]) == 40
    for content in ("", "[]", "{}", '{"camera_to_world": [[1, 2]]}', '{"camera_path": []}'):
        path.write_text(content)
        with pytest.raises(CameraFileError, match=r"camera\.json"):
            read_camera(path, trained.cameras[:1])


@pytest.mark.parametrize("pixel_centres", [True, False])
def test_rays_are_those_that_the_model_was_trained_with(pixel_centres, tmp_path):
    """Of a camera that a file leaves to the scene, and where things are looked for."""
    root = small_scene.write(tmp_path / "scene")
    manager = small_scene.datamanager(root, pixel_centres=pixel_centres)
    trained = TrainedScene(small_scene.KnowingModel(), manager, small_scene.make_query())
    rays = manager.train_dataset.cameras.generate_rays(0).directions
    path = tmp_path / "camera.json"
    path.write_text(json.dumps({"camera_to_world": manager.train_dataset.cameras.camera_to_worlds[0].tolist()}))
    camera = read_camera(path, trained.cameras[:1])
    torch.testing.assert_close(camera.generate_rays(0).directions, rays)
    look = look_cameras(trained.scene, intrinsics_of(trained.cameras))[int(trained.scene.splits["train"][0])]
    assert np.allclose(ray_directions(look, (trained.scene.height, trained.scene.width)), rays.numpy(), atol=1e-6)


def test_the_published_viewpoints_are_taken_by_the_scenes_name(trained):
    published = published_viewpoints()
    assert len(published) == 10 and published["P01_01"] == 716 and published["P21_01"] == 238
    scene = trained.scene
    assert fixed_viewpoint(scene) == central_frame(scene)
    renamed = load_scene(scene.root.rename(scene.root.with_name("P16_01")))
    assert fixed_viewpoint(renamed) == central_frame(renamed)  # it has no frame 76
    assert fixed_viewpoint(scene, 7) == 7


def test_what_never_moves_is_found_in_one_place(trained):
    assert static_classes(trained) == ("bowl",)
    found = consistency(trained, ("bowl",), moments=12)
    assert found.classes["bowl"]["consistency_found"] == pytest.approx(1 / 12)  # the model shows it at one time only
    assert found.classes["bowl"]["consistency_iou"] == 0
    assert found.classes["bowl"]["consistency_soft_iou"] == 0
    assert consistency(trained, ("mug",)).totals == {} == surroundings(trained, ("mug",)).totals  # it moves
    assert all(hidden for _, hidden, _ in trained.model.seen)


def test_without_ground_truth_the_moving_masks_say_what_moves(tmp_path):
    root = small_scene.write(tmp_path / "scene")
    shutil.rmtree(root / "ground_truth")
    trained = TrainedScene(small_scene.KnowingModel(), small_scene.datamanager(root), small_scene.make_query())
    assert static_classes(trained) == ("bowl", "never shown")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> SceneFolder:
    return load_scene(small_scene.write(tmp_path_factory.mktemp("views") / "scene"))


@given(frame=st.integers(0, 11), row=st.integers(0, 23), column=st.integers(0, 39), depth=st.floats(0.1, 9))
@settings(max_examples=30)
def test_points_of_a_frame_lie_in_its_picture(scene, frame, row, column, depth):
    points = true_points(scene, frame, np.full((24, 40), depth, np.float32))
    assert in_picture(scene, frame, points).all()
    behind = 2 * scene.camera_to_worlds[frame, :, 3] - points
    assert not in_picture(scene, frame, behind)[row, column]


def test_surroundings_are_scored_outside_of_the_frame(tmp_path):
    root = small_scene.write(tmp_path / "scene")
    meta = json.loads((root / "meta.json").read_text())
    turn = 0.5  # frame 4 looks past the right half of what frame 8 sees
    meta["poses"]["8"] = [[np.cos(turn), 0, -np.sin(turn), 0], [0, 1, 0, 0], [np.sin(turn), 0, np.cos(turn), 0]]
    meta["poses"]["8"] = [[*row[:3], 0.08 if i == 0 else 0.0] for i, row in enumerate(meta["poses"]["8"])]
    (root / "meta.json").write_text(json.dumps(meta))
    model = small_scene.KnowingModel()
    trained = TrainedScene(model, small_scene.datamanager(root), small_scene.make_query())
    found = surroundings(trained, ("bowl",))
    assert [frame for frame, *_ in model.seen] == [4, 8] and all(hidden for _, hidden, _ in model.seen)
    assert set(found.figures) == {"surroundings_000004", "surroundings_000008"}
    assert found.classes["bowl"]["frames"] == 1  # at time 8 from pose 4, where the ground truth has the bowl
    assert found.totals["surroundings_miou_sound"] == 0.0  # the model shows it at time 4 only


def test_a_cloud_has_true_places_colours_layers_and_relevancies(trained, config, tmp_path):
    plyfile = pytest.importorskip("plyfile")
    path = ExportConfig(
        load_config=config,
        output=tmp_path / "cloud.ply",
        queries=("mug",),
        time=0.0,
        cloud=CloudOptions(views=1, cell=1e-4, full_features=True),
    ).main()
    points = plyfile.PlyData.read(path)["vertex"]
    place = np.stack([points[axis] for axis in "xyz"], -1)
    assert len(place) == small_scene.HEIGHT * small_scene.WIDTH
    np.testing.assert_allclose(np.linalg.norm(place, axis=-1), 1, atol=1e-5)  # a sphere: depth is along the ray
    layers = small_scene.layers(0)
    assert np.bincount(points["layer"]).tolist() == [np.sum(layers == i) for i in range(3)]
    assert (points["relevancy_0"] > 0.7).sum() == (layers == 1).sum() == (points["layer"] == 1).sum()
    assert {"feature_0", "feature_1", "feature_2"} <= {p.name for p in points.properties}
    features = np.load(tmp_path / "cloud_image_features.npy")
    assert features.shape == (len(place), small_scene.DIMENSION) and features.dtype == np.float16
    assert b"comment relevancy_0: mug (image features)" in path.read_bytes()[:300]
    (tmp_path / "cloud_late_image_features.npy").touch()  # of cloud_late.ply
    ExportConfig(load_config=config, output=path, cloud=CloudOptions(views=1)).main()
    assert [left.name for left in tmp_path.glob("cloud_*")] == ["cloud_late_image_features.npy"]
    with pytest.raises(EvaluationError, match="of point clouds"):
        ExportConfig(load_config=config, what="gaussians", queries=("mug",)).main()


def test_other_views_leave_the_actor_out_and_fuse(trained, tmp_path):
    count = write_cloud(tmp_path / "c.ply", trained, 0.0, options=CloudOptions(views=3, cell=1.0))
    assert [hidden for _, hidden, _ in trained.model.seen] == [False, True, True]
    assert {frame for frame, *_ in trained.model.seen} == {0}
    assert count < 10
    with pytest.raises(EvaluationError, match="no point"):
        write_cloud(tmp_path / "c.ply", trained, 0.0, options=CloudOptions(views=1, opaque=1.1))


def test_pixels_between_two_depths_give_no_point(trained):
    depth = torch.ones(4, 6, 1)
    depth[:, 3:] = 2
    view = AskedView(
        trained.cameras[:1], {"depth": depth, "accumulation": torch.ones(4, 6, 1)}, Features(), trained.query
    )
    kept = reliable(view, 0.5, 0.1)
    assert kept[:, [0, 1, 4, 5]].all() and not kept[:, [2, 3]].any()


def test_cells_are_counted_from_amid_the_scene():
    """However far it lies from the origin; cells too small to be counted are refused, and not put together."""
    points = np.array([[0.0, 0, 0], [0.6, 0, 0], [2, 0, 0]])
    for away in (0.0, 1e6):
        fused = _Fused(1.0, np.full(3, away))
        fused.add(points + away, {"value": np.ones((3, 1))})
        assert len(fused) == 2
    with pytest.raises(EvaluationError, match=r"raise --cloud\.cell"):
        _Fused(1e-8, np.zeros(3)).add(points, {"value": np.ones((3, 1))})


@given(st.integers(1, 60), st.integers(0, 1000))
@settings(max_examples=30)
def test_fusing_gives_the_mean_of_each_cell(count, seed):
    random = np.random.default_rng(seed)
    points, values = random.normal(size=(count, 3)), random.random((count, 2)).astype(np.float32)
    fused = _Fused(0.7, np.zeros(3))
    for part in np.array_split(np.arange(count), 3):
        fused.add(points[part], {"value": values[part]})
    cells, where = np.unique(np.floor(points / 0.7), axis=0, return_inverse=True)
    expected = np.stack([values[where.ravel() == i].mean(0) for i in range(len(cells))])
    centres, means = fused.means()
    np.testing.assert_array_equal(np.floor(centres / 0.7), cells)
    np.testing.assert_allclose(means["value"], expected, rtol=1e-4)
