"""Where things are at a moment, since when and where before; which of them a view shows."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import moved_scene
import numpy as np
import pytest
from moved_scene import BOWL, FRAMES, HEIGHT, MUG, STEP, WALL, WIDTH
from test_things import AWAY, HERE, NAMES, by_hand, cameras, clock, line, looks, named, things_in

from divff_nerfstudio.features.oracle import phrase_code
from divff_nerfstudio.objects.diary import diary
from divff_nerfstudio.objects.recognition import Recognition
from divff_nerfstudio.objects.spans import Rest
from divff_nerfstudio.objects.things import Move, Things
from divff_nerfstudio.objects.whereabouts import direction, spans_told, whereabouts

CODES = np.stack([phrase_code(name) for name in NAMES])


@pytest.fixture(scope="module")
def found():
    found = things_in(looks())
    for name in ("wall", "mug", "bowl"):
        named(found, name).name = name
    return found


@pytest.mark.parametrize(
    ("name", "frame", "state", "words"),
    [
        ("mug", 2, "rests", "here from the beginning; taken at 5.0 s"),
        ("mug", 6, "carried", "carried from 5.0 s to 7.0 s, {far} scene units to the right"),
        ("mug", 9, "rests", "here since 7.0 s; before that {far} scene units to the left, until 5.0 s"),
        ("wall", 9, "rests", "here from the beginning"),
        ("bowl", 15, "rests", "here since 11.0 s; before that {far} scene units to the left, until 10.0 s"),
    ],
)
def test_a_thing_is_here_since_then_and_was_there_before(found, name, frame, state, words):
    thing = named(found, name)
    where = whereabouts(thing, frame)
    far = f"{thing.moves[0].distance:.2g}" if thing.moves else ""
    assert where.state == state
    told = where.told(found, clock(), cameras()[frame].pose)
    assert told.replace(f", beside the wall (thing {named(found, 'wall').number})", "") == words.format(far=far)
    assert np.linalg.norm(np.median(where.points, axis=0) - thing.place(frame)) < 0.5


def test_left_and_right_are_those_of_who_looks_on():
    ahead = np.column_stack((np.eye(3), np.zeros(3)))
    behind = ahead * np.array([-1, 1, -1, 1])
    assert direction(np.array([0.8, 0.1, 0.0]), ahead) == "0.81 scene units to the right"
    assert direction(np.array([0.8, 0.1, 0.0]), behind) == "0.81 scene units to the left"
    assert direction(np.array([0.0, -0.3, -0.4]), ahead) == "0.5 scene units farther away and lower"


def test_what_is_seen_late_or_no_more():
    scene = looks()
    for look in (*scene[:3], *scene[9:]):
        look.index[look.index == MUG] = WALL
    things = things_in(scene)
    mug = named(things, "mug")
    early, late = whereabouts(mug, 0), whereabouts(mug, FRAMES - 1)
    assert (early.state, early.last_seen, len(early.points), early.sighting.frame) == ("not seen yet", None, 0, 3)
    assert early.told(things, clock(), cameras()[0].pose) == "not seen before 3.0 s"
    # Two frames show it at its new place, too few to say that it rests there; it has left its old one.
    assert late.state == "carried" and late.told(things, clock(), cameras()[0].pose).endswith(", last seen at 8.0 s")
    assert whereabouts(mug, 4).told(things, clock(), cameras()[0].pose).startswith("here since 3.0 s, when it is first")


@pytest.fixture
def never_put_down(monkeypatch):
    """The mug comes in the hand and is put down in frame 7; the bowl is taken in frame 10 and held to the end."""
    motions = {MUG: [[0, 70]], BOWL: [[100, 150]]}
    instances = [{**each, "motion": motions.get(each["id"], [])} for each in moved_scene.INSTANCES]
    monkeypatch.setattr(moved_scene, "INSTANCES", instances)
    return things_in(looks())


def test_what_comes_in_the_hand_or_stays_there_is_carried(never_put_down):
    mug, bowl = (named(never_put_down, name) for name in ("mug", "bowl"))
    coming, there = whereabouts(mug, 2), whereabouts(mug, 12)
    told = coming.told(never_put_down, clock(), cameras()[2].pose)
    assert coming.state == "carried" and told.startswith("carried from 0.0 s to ") and len(coming.points)
    words = there.told(never_put_down, clock(), cameras()[12].pose)
    assert there.state == "rests" and words.startswith("here since ") and "when it is put down" in words
    lying = whereabouts(bowl, 2).told(never_put_down, clock(), cameras()[2].pose)
    assert lying.startswith("here from the beginning; taken at ")
    held = whereabouts(bowl, FRAMES - 2)
    told = held.told(never_put_down, clock(), cameras()[FRAMES - 2].pose)
    assert held.state == "carried" and told.startswith("carried from 1") and told.endswith("last seen at 14.0 s")
    for thing, instance, frame in ((mug, MUG, 2), (bowl, BOWL, FRAMES - 2)):
        true = moved_scene.pose(instance, STEP * frame)[:, 3]
        assert np.linalg.norm(thing.place(frame) - true) < 0.4
        assert thing.state(frame, FRAMES) == "carried"


def test_what_the_static_layer_shows_is_never_carried(never_put_down):
    """Another part of it has come into view."""
    bowl = of_the_static_layer(named(never_put_down, "bowl"), moves=())
    assert bowl.carried_in == frozenset()


def test_what_the_diary_tells_is_told_of_what_is_mostly_static_too(never_put_down):
    """The dynamic layer has it where it lies, which is enough for an event, and hardly anywhere else."""
    bowl = of_the_static_layer(named(never_put_down, "bowl"))
    (move,) = bowl.moves
    assert bowl.carried_in == {frame for frame, _ in move.path}
    assert_agreed(bowl)
    assert whereabouts(bowl, FRAMES - 1).state == bowl.state(FRAMES - 1, FRAMES) == "carried"
    assert whereabouts(bowl, 2).told(never_put_down, clock(), cameras()[2].pose).split("; ")[1].startswith("taken at ")
    assert np.linalg.norm(bowl.place(FRAMES - 2) - moved_scene.pose(BOWL, STEP * (FRAMES - 2))[:, 3]) < 0.4


def of_the_static_layer(thing, **changes):
    sightings = SimpleNamespace(column=lambda name: np.zeros(len(thing.sightings)))
    still = replace(thing, sightings=sightings, **changes)  # pyright: ignore
    still.__dict__["spots"] = thing.spots
    return still


def test_what_moves_while_nobody_looks_is_not_in_a_hand(found):
    """The mug is put elsewhere in frame 6; of the frames around it nobody has seen any."""
    mug = named(found, "mug")
    (move,) = mug.moves
    mug = replace(mug, moves=(Move(2, 11, move.source, move.target),))
    near, far = (np.isin(mug.spots.frames, frames) for frames in (range(3), range(11, FRAMES)))
    mug.__dict__["spots"] = mug.spots[near | far]
    mug.rests = tuple(Rest(mug.spots[np.isin(mug.spots.frames, frames)]) for frames in (range(3), range(11, FRAMES)))
    assert mug.spans(FRAMES) == [("rests", 0, 2), ("moved unseen", 3, 10), ("rests", 11, FRAMES - 1)]
    told = whereabouts(mug, 6).told(found, clock(), cameras()[6].pose)
    assert whereabouts(mug, 6).state == "moved unseen" and told.startswith("moved unseen from 2.0 s to 11.0 s, ")


def test_two_tellings_of_one_frame_agree(found, never_put_down):
    """The strip of a thing's spans and the words above it; also where frames show the held bowl between two places."""
    bowl = named(never_put_down, "bowl")
    bowl.__dict__["carried_in"] = frozenset(sorted(bowl.carried_in)[:2])
    for things in (found, never_put_down):
        for thing in things.things:
            assert_agreed(thing)
    assert whereabouts(bowl, FRAMES - 1).state == "carried"


def assert_agreed(thing):
    """What is out of sight is where it was last seen, as far as anybody knows."""
    for frame in range(FRAMES):
        told, state = whereabouts(thing, frame).state, thing.state(frame, FRAMES)
        assert told == state or (state == "out of sight" and frame not in thing.shown), frame


@pytest.mark.parametrize("unseen", [range(4, 7), range(8, 11)])
@pytest.mark.parametrize("kind", ["brought in", "carried out"])
def test_what_is_out_of_sight_on_its_way_is_in_the_hand_all_the_same(monkeypatch, unseen, kind):
    """The bowl comes in a hand, or goes, and some frames on its way, or those beside its rest, do not show it."""
    way = [*line((AWAY, 2)), *((1.6 - 0.16 * i, 0.3, -2.9) for i in range(9)), *line((HERE, FRAMES - 11))]
    if out := kind == "carried out":
        way, unseen = way[::-1], range(FRAMES - unseen.stop, FRAMES - unseen.start)
    scene = by_hand(monkeypatch, BOWL, way, (4, 13) if out else (2, 11))
    for frame in unseen:
        scene[frame].index[scene[frame].index == BOWL] = WALL
    things = things_in(scene)
    bowl = named(things, "bowl")
    assert [event.kind for event in diary(things)] == [kind]
    assert not bowl.shown >= {*unseen}
    assert_agreed(bowl)
    assert {whereabouts(bowl, frame).state for frame in unseen} == {"carried"}


def test_spans_are_told_around_a_moment(found):
    mug = named(found, "mug")
    assert spans_told(mug, clock(), 6) == "rests 0.0 s to 5.0 s, carried 6.0 s to 6.0 s, rests 7.0 s to 15.0 s"
    assert spans_told(mug, clock(), 15, max_spans=1) == "rests 7.0 s to 15.0 s (2 before that)"
    assert spans_told(mug, clock(), 6, max_spans=1) == "carried 6.0 s to 6.0 s (1 before that and 1 after that)"


def test_who_goes_there_sees_it(found):
    for name, thing in (("mug", MUG), ("bowl", BOWL)):
        for frame in range(FRAMES):
            where = whereabouts(named(found, name), frame)
            sighting = where.sighting
            assert (looks()[sighting.frame].index == thing).any()
            if where.rest is not None:
                assert where.rest.first <= sighting.frame <= where.rest.last


def view(frame, pose):
    """Points, features and instances of a view of a moment."""
    origins, directions, _ = moved_scene.rays(pose)
    distance, hit = moved_scene.cast(origins, directions, moved_scene.bodies(STEP * frame))
    return origins + directions * distance[..., None], CODES[hit], hit


@pytest.mark.parametrize("frame", [0, 6, 9, 15])
@pytest.mark.parametrize("with_features", [True, False])
def test_any_view_of_a_moment_shows_the_things(found, frame, with_features):
    aside = np.column_stack((np.eye(3), (0.5, 0.2, -0.5)))
    points, features, hit = view(frame, aside)
    numbers = Recognition(found, frame).numbers(points, features if with_features else None)
    assert numbers.shape == (HEIGHT, WIDTH)
    for name, thing in (("mug", MUG), ("bowl", BOWL)):
        own, true = numbers == named(found, name).number, hit == thing
        assert (own & true).sum() > (0.8 if with_features else 0.6) * true.sum() > 0
        if with_features:
            assert not (own & ~true).any()


def test_what_lies_where_nothing_was_is_nothing(found):
    points, features, _ = view(0, cameras()[0].pose)
    assert not Recognition(found, 0).numbers(points + 50.0, features).any()
    nothing = Things([], found.owners, found.distances, found.cameras, 0.0)
    assert not Recognition(nothing, 0).numbers(points, features).any()
