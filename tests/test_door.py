"""The door for notebooks, and the commands over it: a scene of boxes with stored segments, drawn as it is."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import moved_scene
import numpy as np
import pytest
import small_scene
import torch
from moved_scene import FRAMES, HEIGHT, STEP, WIDTH
from test_things import NAMES, hand

import divff_nerfstudio
from divff_nerfstudio.cli import things as commands
from divff_nerfstudio.cli.query import QueryCommandConfig
from divff_nerfstudio.cli.things import DiaryConfig, ObjectsConfig
from divff_nerfstudio.data.moved_objects import moved_objects
from divff_nerfstudio.data.scene import load_scene
from divff_nerfstudio.evaluation import looks
from divff_nerfstudio.evaluation.door import Scene
from divff_nerfstudio.evaluation.found_things import score_things
from divff_nerfstudio.evaluation.options import EvaluationError
from divff_nerfstudio.evaluation.places import Places
from divff_nerfstudio.evaluation.trained_scene import TrainedScene
from divff_nerfstudio.features.oracle import phrase_code
from divff_nerfstudio.features.store.header import StoreHeader
from divff_nerfstudio.features.store.reader import FeatureStore
from divff_nerfstudio.features.store.writer import FeatureWriter, FrameFeatures
from divff_nerfstudio.features.text import text_encoder
from divff_nerfstudio.query import QueryConfig, build_query

CODES = np.stack([phrase_code(name) for name in NAMES])


class Hands(moved_scene.BoxModel):
    """Draws the scene as it is, a hand beside what is being moved; counts the views."""

    views = 0
    codes = torch.from_numpy(CODES)

    def actor(self, number, view):
        return hand(number)

    def render(self, *arguments, **options):
        Hands.views += 1
        return super().render(*arguments, **options)


def write_store(folder: Path) -> FeatureStore:
    header = StoreHeader(
        kind="image", source="segments", model="test", fingerprint="", dimension=CODES.shape[1],
        frame_ids=list(range(FRAMES)), image_size=[HEIGHT, WIDTH],
        text_encoder={"family": "oracle", "dimension": CODES.shape[1]}, negatives=["object", "things"],
    )  # fmt: skip
    with FeatureWriter(folder, header) as writer:
        for i in range(FRAMES):
            view = moved_scene.camera_to_world(STEP * i)
            origins, directions, _ = moved_scene.rays(view)
            shown = [*moved_scene.bodies(STEP * i), *hand(STEP * i)]
            _, hit = moved_scene.cast(origins, directions, shown)
            index = np.where(hit > 0, hit, 65535).astype(np.uint16)
            writer.append(FrameFeatures(index, CODES))
        return writer.finish()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = moved_scene.write(tmp_path_factory.mktemp("door") / "boxes")
    write_store(root / "features" / "image")
    return root


@pytest.fixture
def scene(root, tmp_path):
    manager = small_scene.datamanager(root)
    manager.feature_stores = {"image": FeatureStore.open(root / "features" / "image")}
    query = build_query(QueryConfig(), manager.feature_stores, text_encoder)
    return Scene(TrainedScene(Hands(), manager, query), tmp_path / "kept" / "looks.npz")


def test_a_picture_in_numpy(scene):
    whole, bare = scene.render(6), scene.render(6, hide=["actor"])
    assert whole.rgb.shape == (HEIGHT, WIDTH, 3) and whole.depth.shape == (HEIGHT, WIDTH)
    assert whole.layers["actor"].any() and not bare.layers["actor"].any()
    assert np.isclose(sum(whole.layers.values()), 1).mean() > 0.9
    other = scene.render(1.0, scene.camera_to_worlds[0])
    assert not np.allclose(other.rgb, scene.render(1.0).rgb)
    assert scene.frame(6).shape == (HEIGHT, WIDTH, 3)


def test_answers_say_whether_it_is_here(scene):
    there = scene.ask("mug", 0)
    assert there.state == "in view"
    assert (there.mask == scene.mask(scene.matching("mug")[0], 0)).all()
    behind = scene.camera_to_worlds[0] * np.array([-1, 1, -1, 1])
    assert scene.ask("mug", 0, behind).state == "in the scene, not in view"
    gone = scene.ask("violin", 0)
    assert gone.state == "not in the scene" and not gone.mask.any()
    assert json.loads(json.dumps(gone.summary()))["state"] == "not in the scene"


def test_things_have_names_and_the_diary_tells_of_them(scene):
    assert {thing.name for thing in scene.objects()} == {"wall", "mug", "bowl"}
    assert [(event.thing.name, event.move.start, event.move.end) for event in scene.diary()] == [
        ("mug", 5, 7),
        ("bowl", 10, 11),
    ]
    assert scene.matching("violin") == []


def test_a_phrase_for_what_is_no_thing_means_none(scene, monkeypatch):
    """Some frames show a hand, which is the actor's; whatever thing is the likeliest is not one."""
    assert scene.ask("arm", 6).state == "in view"
    arm, mug, violin = (scene.meant(phrase) for phrase in ("arm", "mug", "violin"))
    assert scene.matching("arm") == [] and arm.things == ()
    assert [each.standing for each in (arm, mug, violin)] == [
        "in the scene, not a thing of it", "a thing of this scene", "not in the scene",
    ]  # fmt: skip
    assert [thing.name for thing in mug.things] == ["mug"]
    assert {arm.rival.name, mug.rival.name, violin.rival.name} <= {"wall", "mug", "bowl"} and mug.rival.name != "mug"
    monkeypatch.setattr(scene.trained, "calibration", lambda kind: None)
    unknown = scene.meant("mug")
    assert (unknown.things, unknown.rival, unknown.in_scene, unknown.standing) == ((), None, None, None)


def test_what_a_thing_is_called_means_it(scene, monkeypatch):
    """Also where it is not as like the name as another thing, or below the name's threshold."""
    assert all(thing in scene.matching(thing.name) for thing in scene.objects())
    mug, bowl = (scene.matching(name)[0] for name in ("mug", "bowl"))
    monkeypatch.setattr(bowl, "name", "mug")
    assert scene.matching("mug") == [mug, bowl]
    monkeypatch.setattr(bowl, "name", "violin")
    assert scene.matching("violin") == []


def test_own_names_are_taken(scene):
    scene.names = ("bowl", "wall")
    assert {thing.name for thing in scene.objects()} <= {"bowl", "wall"}


def test_depths_are_rendered_once(scene, root):
    before = Hands.views
    first = scene.found.distances
    assert Hands.views == before + FRAMES and scene._kept.is_file()
    again = Scene(scene.trained, scene._kept)
    assert (again.found.distances == first).all() and Hands.views == before + FRAMES
    scene._kept.write_bytes(scene._kept.read_bytes()[:100])
    broken = Scene(scene.trained, scene._kept)
    assert (broken.found.distances == first).all() and Hands.views == before + 2 * FRAMES


def test_a_run_that_cannot_be_written_to_has_things_all_the_same(scene, tmp_path):
    (tmp_path / "file").touch()
    looked = []
    found = Scene(scene.trained, tmp_path / "file" / "looks.npz", lambda *done: looked.append(done))
    assert len(found.objects()) == 3 and looked[-1] == (FRAMES, FRAMES)
    where = found.whereabouts(found.matching("mug")[0], 9)
    assert where.state == "rests" and where.rest.first == 7 and where.before.last == 5
    assert found.whereabouts(found.matching("mug")[0], 1.0).frame == FRAMES - 1


def test_where_there_is_no_room_for_what_frames_show_it_is_said(scene, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(looks, "scratch_array", full)
    with pytest.raises(EvaluationError, match=rf"{scene._kept.parent} .*No space left on device.*make room"):
        scene.objects()


def test_what_is_right_has_full_scores(scene, root):
    loaded = load_scene(root)
    things = moved_objects(loaded)
    assert things is not None and scene.trained.truth is not None
    places = Places(loaded, scene.trained.truth, things, range(FRAMES))
    scores = score_things(scene.found, places, 20.0)
    assert scores["events"] == scores["events_told"] == 2
    assert (scores["events_found"], scores["events_false"], scores["things_found_once"]) == (1, 0, 1)
    assert scores["things_point_error_cm"] < 1 and scores["things_merged"] == 0
    for thing in scene.objects():
        thing.moves = ()
    missed = score_things(scene.found, places, 20.0)
    assert missed["events_found"] == 0 and "events_false" not in missed and "events_off_s" not in missed


def test_without_segments_there_is_a_remedy(scene):
    scene.trained.datamanager.feature_stores = {}
    with pytest.raises(EvaluationError, match="divff extract --sources segments"):
        scene.objects()


def test_the_commands_write_their_files(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "open_run", lambda config, data: scene)
    run = tmp_path / "config.yml"
    content = ObjectsConfig(load_config=run, output=tmp_path / "out").main()
    assert len(content["things"]) == 3 and "mug" in capsys.readouterr().out
    diary = DiaryConfig(load_config=run, output=tmp_path / "out", fps=10).main()
    assert [event["name"] for event in diary["events"]] == ["mug", "bowl"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "things.json", "things.png", "diary.json", "diary.txt", "plan.png",
    }  # fmt: skip
    capsys.readouterr()
    asked = {"load_config": run, "text": ("image: mug", "violin", "arm"), "output": tmp_path / "out", "when": True}
    answer = QueryCommandConfig(**asked, before=6.0, fps=10.0).main()
    assert json.loads(capsys.readouterr().out) == answer
    mug, violin, arm = answer["answers"]
    assert [each["state"] for each in (mug, violin)] == ["a thing of this scene", "not in the scene"]
    assert arm["in_scene"] and arm["things"] == [] and arm["state"] == "in the scene, not a thing of it"
    assert mug["rival"]["name"] in ("wall", "bowl")
    arms = scene.trained.calibration("image").likeness(np.stack([each.feature for each in scene.objects()]), ["arm"])
    assert arm["rival"]["thing"] == scene.objects()[int(arms[:, 0].argmax())].number
    assert (
        mug["query"] == "mug"
        and mug["in_scene"]
        and mug["last_seen"]["frame"] == 5
        and len(mug["things"][0]["rests"]) == 2
    )
    assert not violin["in_scene"] and violin["things"] == [] and violin["last_seen"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"when": True, "frame": 1}, "all frames"),
        ({"fps": 20.0, "frame": 1}, "--when"),
        ({"when": True, "before": 30.0}, "give --fps to say it in seconds"),
        ({"when": True, "features": "video"}, "image features"),
        ({"when": True, "text": ("mug", "video: cut the bread")}, "image features"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, options, words):
    with pytest.raises(EvaluationError, match=words):
        given = {"load_config": tmp_path / "none.yml", "text": ("mug",), "output": tmp_path} | options
        QueryCommandConfig(**given).main()


def test_the_package_has_the_door():
    assert divff_nerfstudio.Scene is Scene and callable(divff_nerfstudio.open_run)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = divff_nerfstudio.nothing_like_it
