"""Things over time: grouped, followed, told; a scene of boxes of which a hand moves two, with stored segments."""

from __future__ import annotations

import dataclasses
import json
from array import array
from functools import partial
from itertools import combinations
from types import SimpleNamespace

import matplotlib
import moved_scene
import numpy as np
import pytest
from matplotlib import texmanager
from matplotlib.figure import Figure
from moved_scene import ARM, BOWL, FRAMES, HEIGHT, MUG, STEP, WIDTH
from PIL import Image

from divff_nerfstudio.cli.things import last_seen, table, thing_data, told
from divff_nerfstudio.features.oracle import phrase_code
from divff_nerfstudio.objects import grouping, likeness, moved, pieces, spans
from divff_nerfstudio.objects import things as things_module
from divff_nerfstudio.objects.comings import brought_in
from divff_nerfstudio.objects.diary import Clock, diary, landmark
from divff_nerfstudio.objects.grouping import Group, Grouping
from divff_nerfstudio.objects.pictures import before_and_after, contact_sheet, plan, write_labels
from divff_nerfstudio.objects.sighting_table import Sightings, SightingTable
from divff_nerfstudio.objects.sightings import Look, sightings, visible
from divff_nerfstudio.objects.things import LookCamera, Things, find_things

MOVING = MUG, BOWL
NAMES = ("nothing", "wall", "mug", "bowl", "arm")
INTRINSICS = np.array([[30.0, 0, WIDTH / 2], [0, 30.0, HEIGHT / 2], [0, 0, 1]])


def hand(number: int) -> list[tuple[int, np.ndarray]]:
    """A hand beside whatever is being moved."""
    for thing in (MUG, BOWL):
        start, end = next(entry["motion"][0] for entry in moved_scene.INSTANCES if entry["id"] == thing)
        if start - STEP <= number <= end + STEP:
            where = moved_scene.pose(thing, number)[:, 3] + (0.0, -0.35, 0.1)
            return [(ARM, np.column_stack((np.eye(3), where)))]
    return []


def looks(depth_noise: float = 0.0, with_hand: bool = True, still: bool = False) -> list[Look]:
    random, found = np.random.default_rng(0), []
    for i in range(FRAMES):
        number = 0 if still else STEP * i
        view = moved_scene.camera_to_world(STEP * i)
        origins, directions, _ = moved_scene.rays(view)
        shown = [*moved_scene.bodies(number), *(hand(number) if with_hand else [])]
        distance, hit = moved_scene.cast(origins, directions, shown)
        distance = distance * (1 + depth_noise * random.standard_normal())
        index = np.where(hit > 0, hit, 65535).astype(np.uint16)
        points = origins + directions * distance[..., None]
        shares = (hit == ARM).astype(float), np.isin(hit, MOVING).astype(float)
        found.append(Look(i, index, points, distance, *shares, view[:, 3]))
    return found


def features(frame: int, noise: float = 0.0) -> np.ndarray:
    """Features of a frame's segments."""
    codes = np.stack([phrase_code(name) for name in NAMES])
    codes = codes + noise * np.random.default_rng(frame).standard_normal(codes.shape)
    return codes / np.linalg.norm(codes, axis=-1, keepdims=True)


def things_in(shown: list[Look], noise: float = 0.0) -> Things:
    return find_things(shown, partial(features, noise=noise), cameras())


def cameras() -> list[LookCamera]:
    return [LookCamera(moved_scene.camera_to_world(STEP * i), INTRINSICS) for i in range(FRAMES)]


def clock(fps: float | None = 10.0) -> Clock:
    return Clock(range(FRAMES), [STEP * i for i in range(FRAMES)], np.linspace(0, 1, FRAMES).tolist(), fps)


@pytest.fixture(scope="module")
def found():
    return things_in(looks())


def named(things, name):
    code = phrase_code(name)
    return max(things.things, key=lambda thing: float(thing.feature @ code))


def test_each_thing_is_found_once(found):
    assert len(found.things) == 3  # and the hand is none
    assert [len(thing.frames) for thing in found.things] == [FRAMES] * 3
    for name in ("wall", "mug", "bowl"):
        assert float(named(found, name).feature @ phrase_code(name)) > 0.99


@pytest.mark.parametrize(("name", "thing", "start", "end"), [("mug", MUG, 5, 7), ("bowl", BOWL, 10, 11)])
def test_moves_are_told_when_and_where(found, name, thing, start, end):
    (move,) = named(found, name).moves
    assert (move.start, move.end) == (start, end)
    for after, point in ((False, move.source), (True, move.target)):
        near = moved_scene.place(thing, after)[:, 3] + (0, 0, max(moved_scene.HALVES[thing]))
        assert np.linalg.norm(point - near) < 0.25
    assert move.distance == pytest.approx(np.linalg.norm(np.subtract(*moved_scene.PLACES[thing])), abs=0.25)


def test_what_stays_is_not_moved(found):
    assert named(found, "wall").moves == ()
    assert all(thing.moves == () for thing in things_in(looks(still=True)).things)


def by_hand(monkeypatch, thing, way, span):
    """The scene in which a thing goes a way of its own (its middle in each frame), with a hand beside it from one frame
    to another; the other things stay."""
    instances = [
        {**each, "motion": [[STEP * (span[0] + 1), STEP * (span[1] - 1)]] if each["id"] == thing else [[900, 900]]}
        for each in moved_scene.INSTANCES
    ]
    turns = {each: moved_scene.place(each, False) for each in MOVING}

    def pose(asked, number):
        return np.column_stack((np.eye(3), way[number // STEP])) if asked == thing else turns[asked]

    monkeypatch.setattr(moved_scene, "INSTANCES", instances)
    monkeypatch.setattr(moved_scene, "pose", pose)
    return looks()


def line(*parts):
    """Places, each for so many frames."""
    return [place for place, frames in parts for _ in range(frames)]


def without_hand(shown):
    """Takes the hand out of some looks."""
    for look in shown:
        look.index[look.index == ARM] = 65535
        look.actor[:] = 0


HERE, BESIDE, ABOVE, THERE = (0.2, -0.7, -2.9), (0.4, -0.7, -2.9), (0.7, -0.1, -2.9), (1.2, -0.7, -3.0)


@pytest.mark.parametrize(("lifted", "events"), [(0, 0), (4, 1)])
def test_what_is_only_pushed_a_little_is_not_moved(monkeypatch, lifted, events):
    """The bowl ends nearly where it was: nobody sees that its place is empty, but one sees it in the hand or not."""
    way = line((HERE, 5), (ABOVE, lifted), (BESIDE, FRAMES - 5 - lifted))
    found = things_in(by_hand(monkeypatch, BOWL, way, (4, 5 + lifted)))
    assert [event.thing for event in diary(found)] == [named(found, "bowl")] * events


@pytest.mark.parametrize(("alone", "moves"), [((), [(3, 11)]), ((6, 7, 8), [(3, 5), (9, 11)])])
def test_what_pauses_in_the_hand_is_still_on_its_way(monkeypatch, alone, moves):
    """For a while the bowl keeps still; if the hand leaves it meanwhile, it has been put down."""
    on_its_way = [tuple(np.mean((ABOVE, end), axis=0)) for end in (HERE, THERE)]
    way = line((HERE, 4), (on_its_way[0], 1), (ABOVE, 5), (on_its_way[1], 1), (THERE, 5))
    scene = by_hand(monkeypatch, BOWL, way, (3, 11))
    without_hand([scene[frame] for frame in alone])
    bowl = named(things_in(scene), "bowl")
    assert [(move.start, move.end) for move in bowl.moves] == moves


@pytest.mark.parametrize(("noise", "depth_noise"), [(0.06, 0.0), (0.0, 0.04), (0.04, 0.02)])
def test_noise_moves_nothing_and_hides_no_move(noise, depth_noise):
    noisy = things_in(looks(depth_noise), noise)
    moves = {name: [(move.start, move.end) for move in named(noisy, name).moves] for name in ("wall", "mug", "bowl")}
    assert moves == {"wall": [], "mug": [(5, 7)], "bowl": [(10, 11)]}
    assert all(thing.moves == () for thing in things_in(looks(depth_noise, still=True), noise).things)


def test_a_part_of_a_long_video_tells_the_same(found, monkeypatch):
    for module, name, most in (
        (spans, "MAX_SPOTS", 6),
        (moved, "_MAX_LOOKS", 4),
        (things_module, "_MAX_PIXELS", 4 * HEIGHT * WIDTH),
        (likeness, "_MAX_FRAMES", 6),
    ):
        monkeypatch.setattr(module, name, most)
    part = things_in(looks())
    assert (part.owners == found.owners).all()
    assert part.depth == pytest.approx(found.depth, rel=0.1) and part.reach == found.reach
    for thing, same in zip(part.things, found.things, strict=True):
        assert thing.spans(FRAMES) == same.spans(FRAMES) and len(thing.rests) == len(same.rests)
        assert thing.size == pytest.approx(same.size, rel=0.2)


@pytest.mark.parametrize("patience", [3, 1000])
def test_faults_of_a_few_frames_are_forgotten(monkeypatch, patience):
    """In each frame a piece of the wall has features of its own."""
    monkeypatch.setattr(grouping, "_PATIENCE", patience)
    scene, strange = looks(), np.random.default_rng(1).standard_normal((FRAMES, len(phrase_code("wall"))))
    strange /= np.linalg.norm(strange, axis=1, keepdims=True)
    for look in scene:
        part = look.index[:4, (3 * look.frame) % (WIDTH - 4) :][:, :4]
        part[part == moved_scene.WALL] = len(NAMES)
    counts = []
    merge = grouping.Grouping._merge
    monkeypatch.setattr(grouping.Grouping, "_merge", lambda self: counts.append(len(self.groups)) or merge(self))
    found = find_things(scene, lambda frame: np.concatenate((features(frame), strange[frame][None])), cameras())
    assert {len(thing.frames) for thing in found.things} == {FRAMES}
    assert counts[0] < 12 if patience == 3 else counts[0] > 12


def test_what_lies_nowhere_near_is_not_compared(monkeypatch):
    """Groups are put together as if each were compared with each; but few of them lie near another."""
    random, tried = np.random.default_rng(0), []
    codes, places = random.standard_normal((40, 8)), random.uniform(-3, 3, (40, 3))
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    learned = likeness.Likeness(np.zeros(8), (1.0, 0.04), (0.0, 0.3))
    whole = Grouping._one

    def groups():
        found = []
        for i in range(120):
            group = Group(numbers=array("q", range(i, 2 * i)), last=SimpleNamespace(frame=i))
            group.feature = group.looks = codes[i % 40]
            group.lie(places[i % 40] + 0.02 * np.random.default_rng(i).standard_normal((20, 3)))
            found.append(group)
        return found

    def one(self, first, second):
        tried.append((first, second))
        return whole(self, first, second)

    monkeypatch.setattr(Grouping, "_one", one)
    grouped = Grouping.__new__(Grouping)
    grouped.reach, grouped.likeness, grouped.groups = 0.1, learned, groups()
    grouped._merge()
    assert len(grouped.groups) == 40 and len(tried) < 500
    assert all(len(group.numbers) == 3 * i + 120 for i, group in enumerate(reversed(grouped.groups)))


@pytest.mark.parametrize(("unlike", "count"), [(0.0, 3), (0.1, 3), (3.0, 4)])
def test_pieces_of_one_thing_are_joined(unlike, count):
    """The right half of the wall is a segment of its own, with features that are like the other half's or are not."""
    scene, codes = looks(), features(0)
    other = codes[moved_scene.WALL] + unlike * phrase_code("door")
    for look in scene:
        half = look.index[:, WIDTH // 2 :]
        half[half == moved_scene.WALL] = len(NAMES)
    found = find_things(scene, lambda _: np.concatenate((codes, other[None] / np.linalg.norm(other))), cameras())
    assert [len(thing.frames) for thing in found.things] == [FRAMES] * count
    assert len(diary(found)) == 2


def test_a_stray_in_the_last_frame_is_no_move():
    """The mug's segment lies on the wall in one frame, with the hand beside it."""
    scene = looks(still=True)
    last = scene[-1]
    last.index[last.index == MUG] = moved_scene.WALL
    last.index[2:6, 2:6], last.index[2:6, 6:8] = MUG, ARM
    last.actor[2:6, 6:8] = 1
    found = things_in(scene)
    assert named(found, "mug").frames == list(range(FRAMES)) and diary(found) == []


def test_what_the_static_layer_shows_is_not_moved():
    """What it shows at both places; at one of them, it may err."""
    scene = looks()
    for i, look in enumerate(scene):
        look.dynamic[look.index == BOWL] = 0.2
        if i > 8:
            look.dynamic[look.index == MUG] = 0.2
    found = things_in(scene)
    assert [event.thing for event in diary(found)] == [named(found, "mug")]


@pytest.mark.parametrize(("apart", "count"), [(0, 3), (4, 4)])
def test_unlike_pieces_that_are_never_seen_apart_are_one(monkeypatch, apart, count):
    """The upper half of the mug looks like nothing of the lower one; in some frames something else lies between."""
    monkeypatch.setattr(pieces, "_OFTEN", 6)
    scene = looks()
    for i, look in enumerate(scene):
        rows = np.nonzero((look.index == MUG).any(axis=1))[0]
        upper = look.index[: int(rows.mean()) + 1]
        upper[upper == MUG] = len(NAMES)
        if i < apart:
            look.index[int(rows.mean()), look.index[int(rows.mean())] == len(NAMES)] = 65535
    codes = np.concatenate((features(0), phrase_code("chimney")[None]))
    found = find_things(scene, lambda _: codes, cameras())
    assert len(found.things) == count
    assert {event.thing for event in diary(found)} >= {named(found, "mug"), named(found, "bowl")}


@pytest.mark.parametrize("apart", [(2, 3), tuple(range(6, FRAMES))])
def test_groups_of_one_look_that_are_never_seen_together_are_one(apart):
    """Some frames of the mug, a few before it is moved or all that come afterwards, are a group of their own."""
    codes, seen, reach = features(0), SightingTable(), 0.1
    for look in looks():
        seen.append(sightings(look), look.eye)
    learned = likeness.learn_likeness(seen, lambda _: codes, reach)
    groups = {}
    for number, column in enumerate(seen.columns):
        other = column["row"] == MUG and column["frame"] in apart
        group = groups.setdefault((int(column["row"]), bool(other)), Group())
        centred = learned.centred(codes)[column["row"]]
        group.add(number, seen.sighting(number), codes[column["row"]], centred, here=True)
    kept = pieces.join_over_time(list(groups.values()), seen, learned, reach)
    assert len(kept) == len(groups) - 1
    mug = max((groups[MUG, False], groups[MUG, True]), key=lambda group: len(group.numbers))
    assert sorted(mug.numbers) == [i for i, c in enumerate(seen.columns) if c["row"] == MUG]


@pytest.mark.parametrize(("alike", "aside", "joined"), [(0.55, 0, True), (0.2, 0, False), (0.55, 9, False)])
def test_what_is_there_just_while_another_is_away_is_that(alike, aside, joined):
    """While it is in the hand, the mug looks like itself only from afar; what looks like something else is not it, and
    neither is what is so far away that nobody could have carried it there in time."""
    other = phrase_code("chimney") - phrase_code("mug") * (phrase_code("chimney") @ phrase_code("mug"))
    unlike = alike * phrase_code("mug") + (1 - alike**2) ** 0.5 * other / np.linalg.norm(other)
    codes = np.concatenate((features(0), unlike[None]))
    scene = looks()
    for look in scene[5:8]:
        look.points[look.index == MUG] += (aside, 0, 0)
        look.index[look.index == MUG] = len(NAMES)
    table = SightingTable()
    for look in scene:
        table.append(sightings(look), look.eye)
    grouped = Grouping(table, lambda _: codes, 0.1)
    shown = [set(table.columns["frame"][np.array(group.numbers)]) for group in grouped.groups]
    kept = pieces.join_over_time(grouped.groups, table, grouped.likeness, 0.1)
    assert {5, 6, 7} in shown and len(kept) == len(shown) - joined


@pytest.mark.parametrize(("shaken", "end"), [(4, False), (4, True), (0, False)])
def test_what_is_shaken_where_it_was_put_down_has_not_settled(shaken, end):
    """The mug keeps to its place, but in some frames it is a little beside it."""
    table, kept = SightingTable(), looks(still=True, with_hand=False)
    for i, look in enumerate(kept):
        at = FRAMES - 1 - i if end else i
        if at < shaken:
            aside = 0.25 * (1 if at % 2 else -1)
            look.points[look.index == MUG] += (aside, 0.0, 0.0)
        table.append(sightings(look), look.eye)
    mug = spans.spots(Sightings(table, np.flatnonzero(table.columns["row"] == MUG)))
    rest = spans.settled(spans.Rest(mug), 0.2, end)
    assert (rest.first, rest.last) == ((0, FRAMES - 1 - shaken) if end else (shaken, FRAMES - 1))


@pytest.mark.parametrize(("behind", "touched"), [(0.0, True), (2.0, False)])
def test_what_the_actor_touches_is_next_to_it_in_the_room(behind, touched):
    """An arm in front of a thing hides it, and is next to it in the picture alone."""
    look = looks()[6]
    look.points[look.index == ARM] -= behind * (look.points - look.eye)[look.index == ARM] / 4
    own = next(sighting for sighting in sightings(look) if sighting.row == MUG)
    assert own.touched == touched


@pytest.mark.parametrize(("share", "events"), [(0.6, 0), (1.0, 2)])
def test_nothing_moves_by_itself_unless_the_dynamic_layer_is_sure(share, events):
    """What is elsewhere without a hand near it, in full view, is a fault of the grouping and no event."""
    scene = looks(with_hand=False)
    for look in scene:
        look.dynamic[:] *= share
    assert len(diary(things_in(scene))) == events


def test_the_place_at_any_frame(found):
    mug = named(found, "mug")
    for frame in range(FRAMES):
        where = moved_scene.pose(MUG, STEP * frame)[:, 3]
        assert np.linalg.norm(mug.place(frame) - where) < 0.5
    spans = mug.spans(FRAMES)
    assert spans == [("rests", 0, 5), ("carried", 6, 6), ("rests", 7, FRAMES - 1)]
    assert mug.spans(FRAMES + 4)[-1] == ("out of sight", FRAMES, FRAMES + 3)


def test_the_diary_as_text_and_data(found):
    events = diary(found)
    assert [event.thing for event in events] == [named(found, "mug"), named(found, "bowl")]
    named(found, "mug").name = "mug"
    text = told(events, clock())
    assert text.splitlines()[0].startswith("5.0 s to 7.0 s: the mug (thing ") and text.count("\n") == 2
    assert told(events, clock(None)).startswith("frame 5 to frame 7:")
    assert told([], clock()) == "Nothing is moved.\n"
    data = json.loads(json.dumps(events[0].data(clock()), allow_nan=False))
    assert data["start"]["seconds"] == 5 and data["end"]["frame"] == 7 and data["distance"] > 1


def test_what_something_stands_by_has_a_name_and_does_not_move(monkeypatch):
    """Nearest is the bowl, which is moved; without its move, it is of the dynamic layer all the same."""
    found = things_in(looks())
    mug, bowl, wall = (named(found, name) for name in ("mug", "bowl", "wall"))
    monkeypatch.setattr(found, "depth", 100.0)
    assert landmark(found, mug, bowl.rests[0].point) is wall
    monkeypatch.setattr(bowl, "moves", ())
    assert landmark(found, mug, bowl.rests[0].point) is wall
    bowl.sightings.table.columns["dynamic"][bowl.sightings.numbers] = 0
    assert landmark(found, mug, bowl.rests[0].point) is bowl
    monkeypatch.setattr(wall, "name", "wall")
    assert landmark(found, mug, bowl.rests[0].point) is wall
    monkeypatch.setattr(wall, "spots", wall.spots[: FRAMES // 4])
    assert landmark(found, mug, bowl.rests[0].point) is bowl


def aside(frame):
    """On its way from or to what lies beside the picture, in each frame elsewhere."""
    return 1.6 - 0.24 * frame, -0.3, -2.9


@pytest.mark.parametrize("first", [0, 3])
def test_what_is_brought_in_is_told(monkeypatch, tmp_path, first):
    """The bowl comes in a hand and is put down, from the beginning on or later."""
    way = [*line(((9.0, -0.6, -2.9), first)), *(aside(i) for i in range(6)), *line((HERE, FRAMES - 6 - first))]
    found = things_in(by_hand(monkeypatch, BOWL, way, (0, first + 6)))
    (event,) = diary(found)
    shown = named(found, "bowl").frames[0]
    assert event.thing is named(found, "bowl") and event.kind == "brought in" and event.move.source is None
    assert (event.move.start, event.move.end) == (shown, first + 6) and shown < first + 4
    assert np.linalg.norm(event.move.target - HERE) < 0.4
    come = "is brought in and put down" if first else "is in the hand at the beginning and put down"
    assert come in event.told(clock())
    data = json.loads(json.dumps(event.data(clock()), allow_nan=False))
    assert data["kind"] == "brought in" and data["from"] is None and data["distance"] is None and data["path"]
    frames = np.zeros((FRAMES, 2 * HEIGHT, 2 * WIDTH, 3), np.uint8)
    assert plan(tmp_path / "plan.png", found, [event], clock()).is_file()
    assert before_and_after(found, event, lambda i: frames[i]).size


@pytest.mark.parametrize("left", [0, 3])
def test_what_is_carried_out_is_told(monkeypatch, tmp_path, left):
    """The bowl is taken, and is not put down again: it is still in the hand at the end, or has gone before."""
    way = [*line((HERE, FRAMES - 6 - left)), *(aside(i) for i in range(5, -1, -1)), *line(((9.0, -0.6, -2.9), left))]
    found = things_in(by_hand(monkeypatch, BOWL, way, (FRAMES - 7 - left, FRAMES)))
    (event,) = diary(found)
    shown = named(found, "bowl").frames[-1]
    assert event.thing is named(found, "bowl") and event.kind == "carried out" and event.move.target is None
    assert (event.move.start, event.move.end) == (FRAMES - 7 - left, shown) and shown > FRAMES - 6 - left
    gone = "and carried out." if left else "and still in the hand at the end."
    assert event.told(clock()).endswith(gone) and event.data(clock())["to"] is None
    assert plan(tmp_path / "plan.png", found, [event], clock()).is_file()


def test_what_comes_into_view_is_not_brought_in(monkeypatch):
    """The bowl lies there all the time, and a cupboard's door hides it in the first frames; no hand is seen with it."""
    scene = by_hand(monkeypatch, BOWL, line((HERE, FRAMES)), (900, 900))
    for look in scene[:5]:
        look.index[look.index == BOWL] = moved_scene.WALL
    assert diary(things_in(scene)) == []


AWAY, SHELF = (9.0, -0.6, -2.9), (-0.9, 0.2, -2.9)
"""Beside the picture, and in it, away from all else."""


@pytest.mark.parametrize(("alone", "start"), [(0, 7), (2, 7), (3, None)])
@pytest.mark.parametrize("out", [False, True])
def test_what_was_seen_without_a_hand_before_is_not_brought_in(monkeypatch, alone, start, out):
    """A few frames show the bowl on a shelf, later ones in a hand; the same backwards in time. Two frames may err."""
    way = line((AWAY, 2), (SHELF, alone), (AWAY, 5 - alone), *((aside(i), 1) for i in range(1, 5)), (HERE, 5))
    if out:
        way = way[::-1]
    found = things_in(by_hand(monkeypatch, BOWL, way, (3, 9) if out else (6, 12)))
    told = [(event.kind, event.move.end if out else event.move.start) for event in diary(found)]
    if start is None:
        assert told == []
    else:
        assert told == [("carried out", FRAMES - 1 - start) if out else ("brought in", start)]


@pytest.mark.parametrize(("unseen", "kinds"), [(2, ("brought in", "carried out")), (0, ("moved", "moved"))])
@pytest.mark.parametrize("out", [False, True])
def test_what_is_carried_slowly_at_first_or_at_last_has_not_lain_there(monkeypatch, unseen, kinds, out):
    """For five frames the bowl hardly moves, in a hand all the time; as the video begins or ends, it may lie there."""
    slowly, fast = [(1.5 - 0.02 * i, 0.3, -2.9) for i in range(5)], [(1.2 - 0.3 * i, 0.3, -2.9) for i in range(4)]
    way = [*line((AWAY, unseen)), *slowly, *fast, *line((HERE, FRAMES - 9 - unseen))]
    if out:
        way = way[::-1]
    first, last = unseen, unseen + 9
    found = things_in(
        by_hand(monkeypatch, BOWL, way, (FRAMES - 1 - last, FRAMES - 1 - first) if out else (first, last))
    )
    (event,) = diary(found)
    assert event.kind == kinds[out]
    if unseen:
        assert (event.move.end if out else event.move.start) == (FRAMES - 1 - unseen if out else unseen)


def test_what_is_put_down_between_two_hands_is_not_on_one_way(monkeypatch):
    """In three frames on its way the bowl is seen without a hand."""
    way = line((AWAY, 1), *((aside(i), 1) for i in range(1, 4)), (aside(4), 3), *((aside(5), 1),) * 3, (HERE, 6))
    scene = by_hand(monkeypatch, BOWL, way, (0, 11))
    assert [event.kind for event in diary(things_in(scene))] == ["brought in"]
    without_hand(scene[4:7])
    assert diary(things_in(scene)) == []


def test_what_never_lies_without_a_hand_or_was_there_before_is_not_brought_in(monkeypatch):
    way = [*(aside(i) for i in range(6)), *line((HERE, FRAMES - 6))]
    assert diary(things_in(by_hand(monkeypatch, BOWL, way, (0, FRAMES)))) == []
    found = things_in(by_hand(monkeypatch, BOWL, way, (0, 6)))
    bowl = named(found, "bowl")
    assert brought_in(bowl, bowl.rests, found) is not None
    owners = found.owners.copy()
    owners[: bowl.rests[0].first] = bowl.number
    assert brought_in(bowl, bowl.rests, dataclasses.replace(found, owners=owners)) is None


def test_what_stays_beside_a_thing_is_not_told_twice(found):
    event = diary(found)[0]
    wall = named(found, "wall")
    both, one = (dataclasses.replace(event, source=wall, target=target).told(clock()) for target in (wall, None))
    words = f"beside thing {wall.number}"
    assert both.endswith(f" scene units, still {words}.") and one.endswith(f" scene units, from {words}.")


def test_words_in_a_plan_do_not_stand_on_each_other():
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 10], [0, 10])
    labels = [("first", (5, 5)), ("on the first", (5.1, 5)), ("apart", (5, 8)), ("at the edge", (10, 10))]
    write_labels(axes, [(words, np.array(place)) for words, place in labels])
    figure.draw_without_rendering()
    assert [text.get_text() for text in axes.texts] == ["first", "apart", "at the edge"]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_last_seen_before_a_moment(found):
    mug = named(found, "mug")
    seen = last_seen([mug], clock(), 6.0)
    assert seen is not None and seen["frame"] == 5 and np.allclose(seen["point"], mug.rests[0].point)
    assert last_seen([mug], clock(), 0.0) is None and last_seen([], clock(), 6.0) is None
    late = last_seen([mug], clock(None), 0.99)
    assert late is not None and late["frame"] == FRAMES - 2


def test_pictures_and_tables_are_written(found, tmp_path):
    events, frames = diary(found), np.zeros((FRAMES, 2 * HEIGHT, 2 * WIDTH, 3), np.uint8)
    for path in (
        contact_sheet(tmp_path / "things.png", found, lambda i: frames[i]),
        plan(tmp_path / "plan.png", found, events, clock()),
    ):
        assert np.asarray(Image.open(path).convert("L")).std() > 5
    sheet = np.asarray(Image.open(tmp_path / "things.png").convert("RGB")).astype(int)
    assert (np.abs(sheet - (230, 159, 0)).max(axis=-1) < 30).sum() > 100, "things are outlined"
    lines = table(found.things, clock()).splitlines()
    assert len(lines) == 4 and lines[0].split() == ["thing", "name", "frames", "size", "events", "rests"]
    for thing in found.things:
        data = json.loads(json.dumps(thing_data(thing, clock()), allow_nan=False))
        assert data["events"] == len([event for event in events if event.thing is thing])


def test_a_move_is_drawn_before_and_after(found):
    event = diary(found)[0]
    frames = np.zeros((FRAMES, 4 * HEIGHT, 4 * WIDTH, 3), np.uint8)
    frames[event.move.end] = 100
    drawn = before_and_after(found, event, lambda i: frames[i])
    height, width = drawn.shape[:2]
    assert width > 2 * height
    before, after = drawn[:, :height], drawn[:, -height:]
    assert np.median(before) == 0 and np.median(after) == 100
    for side in (before, after):
        rows = np.nonzero((side == (230, 159, 0)).all(axis=-1))[0]
        assert len(rows) > 50 and abs(rows.mean() / height - 0.5) < 0.3


def test_settings_that_start_programs_are_not_heeded(found, tmp_path, monkeypatch):
    """A matplotlibrc in the working directory may ask for LaTeX, which is then searched for there, too."""
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    monkeypatch.setattr(texmanager.TexManager, "_run_checked_subprocess", lambda *_, **__: pytest.fail("LaTeX is run"))
    contact_sheet(tmp_path / "things.png", found, lambda _: np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    plan(tmp_path / "plan.png", found, diary(found), clock())


def test_frames_without_segments_and_of_nothing_but_the_actor_are_passed_over():
    """A lens that is covered, and a sleeve before it."""
    scene = looks()
    scene[4].index[:] = 65535
    scene[9].actor[:] = 1.0
    found = things_in(scene)
    assert named(found, "mug") and named(found, "bowl")


def test_a_scene_without_segments_has_no_things(tmp_path):
    empty = [
        Look(i, np.full((4, 6), 65535, np.uint16), np.zeros((4, 6, 3)), np.ones((4, 6)),
             np.zeros((4, 6)), np.zeros((4, 6)), np.zeros(3))
        for i in range(3)
    ]  # fmt: skip
    found = find_things(empty, lambda _: np.zeros((0, 8)), cameras()[:3])
    assert found.things == [] and diary(found) == [] and found.at(0, 1, 1) is None
    assert table(found.things, clock()) == "Nothing is found that several frames show.\n"
    frame = np.zeros((4, 6, 3), np.uint8)
    assert contact_sheet(tmp_path / "things.png", found, lambda _: frame).is_file()
    assert plan(tmp_path / "plan.png", found, [], clock()).is_file()


def test_a_pixel_gives_its_thing(found):
    rows, columns = np.nonzero(looks()[0].index == MUG)
    assert found.at(0, int(rows[0]), int(columns[0])) is named(found, "mug")


def test_points_project_to_their_pixels():
    look, camera = looks()[3], cameras()[3]
    pixels, far, seen = visible(look.points.reshape(-1, 3), camera.pose, camera.intrinsics, (HEIGHT, WIDTH))
    solid = look.distance.ravel() > 0
    assert seen[solid].all()
    assert (pixels[solid] == np.argwhere(np.ones((HEIGHT, WIDTH)))[solid]).mean() > 0.99
    assert np.allclose(far[solid], look.distance.ravel()[solid])
    behind = (camera.pose[:, 3] + camera.pose[:, 2])[None]
    assert not visible(behind, camera.pose, camera.intrinsics, (HEIGHT, WIDTH))[2].any()


def test_small_segments_are_left_out():
    look = looks()[0]
    index = look.index.copy()
    index[index == MUG] = moved_scene.WALL
    index[0, :3] = MUG
    small = sightings(SimpleNamespace(**{**look.__dict__, "index": index}))
    assert {sighting.row for sighting in small} == {moved_scene.WALL, BOWL}


def test_pixels_have_the_numbers_of_their_segments():
    table, shown = SightingTable(), looks()[:3]
    for look in shown:
        table.append(sightings(look), look.eye)
    for frame, look in enumerate(shown):
        numbers = table.numbers_at(frame, look.index)
        kept = [sighting.row for sighting in table.of_frame(frame)]
        assert set(np.unique(look.index[numbers == -1])) == set(np.unique(look.index)) - set(kept)
        inside = numbers >= 0
        assert (table.columns["row"][numbers[inside]] == look.index[inside]).all()
        assert (table.columns["frame"][numbers[inside]] == frame).all()
