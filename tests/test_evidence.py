"""What frames tell of what moves: a wall, a box that is there for a while, and a hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_tiny_scene
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from divff_nerfstudio.data.scene import load_scene
from divff_nerfstudio.datamanager import DivFFDataManagerConfig
from divff_nerfstudio.evidence import labels as labels_module
from divff_nerfstudio.evidence.labels import _voting, labels
from divff_nerfstudio.evidence.shadows import shadowed
from divff_nerfstudio.evidence.sightings import Asked, Movers, Sweep, Views, longest, min_seen, settle_tolerance, sweep
from divff_nerfstudio.evidence.votes import Kinds, alike, count, decide, nearest_distances
from divff_nerfstudio.models.separation import (
    SeparationConfig,
    evidence_loss,
    layer_losses,
    placed_mask,
    resting_loss,
)

HEIGHT, WIDTH, FOCAL, FRAMES = 32, 48, 40.0, 30
WALL, BOX = 4.0, 3.0
ROOM, OBJECT, HAND = 0, 1, 2


def film(
    first: int, last: int, seed: int = 0, noise: float = 0.0, depths: np.ndarray | float = BOX
) -> tuple[Views, np.ndarray]:
    """A camera that moves along a coloured wall; a red box before it from frame `first` to before `last`, at depths
    and swaying while these change; a hand.

    Returns:
        The frames, and what each pixel shows.
    """
    random = np.random.default_rng(seed)
    texture = random.uniform(0.1, 0.9, (8, 14, 3))
    large = np.asarray(
        [Image.fromarray((255 * texture[..., c]).astype(np.uint8)).resize((420, 240), 3) for c in range(3)]
    )
    row, column = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    x, y = (column - WIDTH / 2) / FOCAL, -(row - HEIGHT / 2) / FOCAL
    pictures, poses, shows = [], [], []
    for frame in range(FRAMES):
        pose = np.eye(4)[:3]
        pose[:2, 3] = 0.5 * np.sin(frame * 0.7), 0.3 * np.cos(frame * 0.45)
        at = np.stack((x * WALL + pose[0, 3], y * WALL + pose[1, 3]), -1)
        rows, columns = ((at[..., 1] + 3) * 40).astype(int) % 240, ((at[..., 0] + 5) * 42).astype(int) % 420
        picture, what = large[:, rows, columns].transpose(1, 2, 0) / 255.0, np.zeros((HEIGHT, WIDTH), int)
        depth, sway = np.broadcast_to(depths, FRAMES)[frame], 0.0
        if depth != BOX:
            sway = 1.6 * (0.618 * frame % 1 - 0.5)
        box = abs(x * depth + pose[0, 3] - sway) < 0.35
        box &= (abs(y * depth + pose[1, 3]) < 0.3) & (first <= frame < last)
        picture[box], what[box] = (0.95, 0.05, 0.1), OBJECT
        left, top = random.integers(0, WIDTH - 10), random.integers(HEIGHT // 2, HEIGHT - 8)
        picture[top : top + 8, left : left + 10], what[top : top + 8, left : left + 10] = (0.1, 0.95, 0.2), HAND
        pictures.append(picture + random.normal(0, noise, picture.shape) if noise else picture)
        poses.append(pose)
        shows.append(what)
    colours = torch.from_numpy(np.stack(pictures)).float().clamp(0, 1)
    placed = torch.from_numpy(np.stack(poses)).float()
    views = Views(range(FRAMES), colours, placed, (FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2), 2.0, 5.0)
    return views, np.stack(shows)


def ask(views: Views, frame: int) -> Asked:
    """One of the frames."""
    return Asked(frame, views.pictures[frame], views.poses[frame])


def some(views: Views, frames: list[int]) -> Views:
    """Some of the frames."""
    return replace(views, numbers=frames, pictures=views.pictures[frames], poses=views.poses[frames])


def settled(views: Views, stride: int) -> float:
    """The tolerance by four frames of all."""
    return settle_tolerance(views, [ask(views, frame) for frame in (3, 11, 18, 26)], stride)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(moved=st.integers(9, 21), comes=st.booleans(), seed=st.integers(0, 9), noise=st.sampled_from((0.0, 0.02)))
def test_a_box_rests_a_hand_does_not_and_the_wall_is_always_there(moved: int, comes: bool, seed: int, noise: float):
    first, last = (moved, FRAMES) if comes else (0, moved)
    views, shows = film(first, last, seed, noise)
    tolerance = settled(views, 2)
    kept: dict[int, list] = {ROOM: [], OBJECT: [], HAND: []}
    rests: dict[int, list] = {ROOM: [], OBJECT: [], HAND: []}
    for frame in range(first + 1, last - 1, 3):
        found = sweep(views, ask(views, frame), 1, tolerance)
        for what in (ROOM, OBJECT, HAND):
            kept[what].extend(found.kept[torch.from_numpy(shows[frame] == what)].tolist())
            rests[what].extend(found.rests[torch.from_numpy(shows[frame] == what)].tolist())
    assert np.median(kept[ROOM]) > 0.9
    assert np.median(kept[HAND]) < 0.4
    assert np.median(kept[OBJECT]) < (last - first) / FRAMES + 0.1
    assert np.median(rests[OBJECT]) > 1.5 * np.median(rests[HAND])


def test_noise_settles_the_tolerance():
    clean, noisy = (settled(film(0, 15, noise=noise)[0], 1) for noise in (0.0, 0.1))
    assert clean < noisy


def test_a_place_that_few_frames_see_is_not_accused():
    views, _ = film(0, FRAMES)
    found = sweep(some(views, [0, 1, 2, 4]), ask(views, 3), 2, 0.04)
    assert (found.kept == 1).all()
    alone = sweep(some(views, [3]), ask(views, 3), 2, 0.04)
    assert (alone.kept == 1).all() and (alone.rests == 0).all()


def work_before_the_left_half(views: Views) -> torch.Tensor:
    """Lets something green be before the left half of every other frame, and says where."""
    hidden = torch.zeros(FRAMES, HEIGHT, WIDTH)
    views.pictures[1::2, :, : WIDTH // 2] = torch.tensor([0.1, 0.95, 0.2])
    hidden[1::2, :, : WIDTH // 2] = 1
    return hidden.flatten(1)


def test_what_hands_hide_is_not_held_against_the_room():
    """Hands work before the wall's left half in every other frame; the box stands there until frame 12."""
    views, shows = film(0, 12)
    hidden = work_before_the_left_half(views)
    hands = Movers(hidden, torch.zeros_like(hidden), torch.full_like(hidden, torch.inf))
    walls, boxes = ([], []), []
    for frame in (2, 6, 10):
        looked, behind = (sweep(views, ask(views, frame), 1, 0.04, there).kept for there in (None, hands))
        wall, box = (torch.from_numpy(shows[frame] == what) for what in (ROOM, OBJECT))
        wall[:, WIDTH // 3 :] = False
        walls[0].extend(looked[wall].tolist())
        walls[1].extend(behind[wall].tolist())
        boxes.extend(behind[box].tolist())
    assert np.median(walls[0]) < 0.7 < 0.8 < np.median(walls[1])
    assert np.median(boxes) < 0.7
    everywhere = hands._replace(actor=torch.ones_like(hidden))
    unlike = replace(views, pictures=torch.zeros_like(views.pictures))
    assert (sweep(unlike, ask(views, 3), 1, 0.0, everywhere).kept == 1).all()  # nothing is known of what is hidden


@pytest.mark.parametrize(("depth", "hides"), [(BOX, True), (1.5 * WALL, False), (torch.inf, False)])
def test_objects_hide_what_is_known_to_be_behind_them(depth: float, hides: bool):
    views, shows = film(0, 0)
    hidden = work_before_the_left_half(views)
    objects = Movers(torch.zeros_like(hidden), hidden, torch.full_like(hidden, depth))
    wall = torch.from_numpy(shows[6] == ROOM)
    wall[:, WIDTH // 3 :] = False
    found = sweep(views, ask(views, 6), 1, 0.04, objects).kept[wall]
    assert (float(np.median(found)) > 0.8) == hides


@pytest.mark.parametrize("left", [0.2, 0.6])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_what_is_darker_in_all_channels_alike_is_the_room_in_shadow(left: float, noise: float):
    views, shows = film(0, 0)
    nothing, all_changed = torch.zeros(FRAMES, HEIGHT * WIDTH), torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    movers = Movers(torch.from_numpy(shows == HAND).flatten(1).float(), nothing, nothing + torch.inf)
    for frame in (0, 9, 20, 29):
        asked = ask(views, frame)
        lit = (asked.picture + noise * torch.randn(HEIGHT, WIDTH, 3, generator=torch.Generator())).clamp(0, 1)
        room = torch.from_numpy(shows[frame] == ROOM) & (asked.picture.log().std(-1) > 0.15)
        found = [
            float(shadowed(views, asked._replace(picture=picture), 1, movers, all_changed)[room].mean())
            for picture in (left * lit, lit, torch.tensor([1.0, 0.8, 0.6]) * left * lit)
        ]
        assert found[0] > 0.65 and found[1] < 0.05 and found[2] < 0.2


def test_before_what_is_grey_nothing_is_taken_for_a_shadow():
    views, shows = film(0, 0)
    grey = replace(views, pictures=views.pictures.mean(-1, keepdim=True).expand(-1, -1, -1, 3))
    nothing = torch.zeros(FRAMES, HEIGHT * WIDTH)
    movers = Movers(torch.from_numpy(shows == HAND).flatten(1).float(), nothing, nothing + torch.inf)
    asked, changed = ask(grey, 9), torch.from_numpy(shows[9] == ROOM)
    dark = asked._replace(picture=0.4 * asked.picture)
    assert shadowed(grey, dark, 1, movers, changed).max() < 0.1
    seen_by_few = some(views, [8, 10])
    dark = ask(views, 9)._replace(picture=0.4 * views.pictures[9])
    few = Movers(*(part[[8, 10]] for part in movers))
    assert shadowed(seen_by_few, dark, 1, few, changed).max() < 0.1
    assert not shadowed(views, dark, 1, movers, torch.zeros_like(changed)).any()


def test_pairs_of_neighbouring_frames_are_nearest_to_each_other():
    rows, others = np.array([[0.0, 0], [4, 0], [9, 0]]), np.array([[0.0, 1], [4, 2], [5, 0]])
    assert nearest_distances(rows, others).tolist() == [1.0, 1.0]  # of the last of each, another is nearer
    assert nearest_distances(rows, np.zeros((0, 2))).size == 0


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
def test_how_alike_one_thing_looks_is_learned_from_the_scene(noise: float):
    class Things:
        min_spreads = 0.01, 3.0

        def looks(self, scene: None, frame: int, segments: int) -> tuple[np.ndarray, np.ndarray]:
            looks = 5 * np.eye(6, 32) + np.random.default_rng(frame).normal(0, noise, (6, 32))
            return looks, looks

    found, bounded = labels_module._spreads(None, np.arange(30), np.arange(30), Things())  # type: ignore[arg-type]
    assert bounded == max(3.0, found)
    # Two draws of 32 numbers are noise * sqrt(2 * 32) apart, and what is so far apart has exp(-1) of a vote.
    assert found == pytest.approx(max(0.01, noise * 32**0.5), rel=0.1)
    assert alike(np.zeros((1, 1)), np.full((1, 1), found * 2**0.5), found) == pytest.approx(np.exp(-1))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(("same", "other", "unseen")), min_size=1, max_size=12), st.integers(0, 12))
def test_rests_is_the_best_interval_around_a_frame(seen: list[str], before: int):
    before = min(before, len(seen))
    same = torch.tensor([float(word == "same") for word in seen])[:, None, None, None]
    visible = torch.tensor([float(word != "unseen") for word in seen])[:, None, None, None]
    others = [*range(before), *range(before + 1, len(seen) + 1)]
    looked = Sweep(before, others, torch.ones(1), same, visible)
    found = float(looked.rests) * len(seen)
    chance = min(max(float(same.sum() / visible.sum().clamp_min(1)), 0.03), 0.5)
    ratio = {"same": np.log(0.85 / chance), "other": np.log(0.15 / (1 - chance)), "unseen": 0.0}
    sums = [sum(ratio[word] for word in seen[i:j]) for i in range(before + 1) for j in range(before, len(seen) + 1)]
    assert found == pytest.approx(max(sums), abs=1e-4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(first=st.integers(0, 9), length=st.integers(1, 10), at=st.integers(0, 9), plane=st.integers(0, 4))
def test_a_segment_stays_where_and_as_long_as_most_of_its_pixels_agree(first: int, length: int, at: int, plane: int):
    last = min(first + length, 20) - 1
    own = first + min(at, last - first)
    others = [frame for frame in range(20) if frame != own]
    depths = 1 / torch.linspace(1.0, 0.2, 5)
    same = torch.zeros(19, 1, 4, 5)
    for row, frame in enumerate(others):
        if first <= frame <= last:
            same[row, :, :, plane] = 1
    same[:, 0, 2] = 0  # one of the segment's pixels looks different everywhere
    segments = torch.tensor([[0, 0, 0, -1]])
    found = Sweep(own, others, depths, same, torch.ones_like(same)).stays(segments, 2)
    assert found.since.tolist() == [first, own] and found.until.tolist() == [last, own]
    assert found.support[1] == 0
    if last > first:
        assert found.support[0] > 0 and found.depth[0] == pytest.approx(float(depths[plane]), rel=1e-4)


@pytest.mark.parametrize(
    "seen", ["....sss.....xxss", "xx..sss.....xxss", "xxxxsssxxxxxxxss", "....sss.........", "s...sss....-----"]
)
def test_what_nobody_looks_at_may_stay_as_it_is(seen: str):
    """Seen to rest (s), to be gone (x), by a fourth of its pixels to be gone (-), or not at all (.): it may rest there
    until somebody sees the place otherwise, and does as long as it is seen."""
    own, others = 5, [frame for frame in range(16) if frame != 5]
    same, visible = torch.zeros(15, 1, 4, 3), torch.zeros(15, 1, 4, 3)
    for row, frame in enumerate(others):
        visible[row, :, : 1 if seen[frame] == "-" else 4, 1] = seen[frame] != "."
        same[row, :, :, 1] = seen[frame] == "s"
    found = Sweep(own, others, 1 / torch.linspace(1.0, 0.2, 3), same, visible).stays(torch.zeros(1, 4).long(), 1)
    gone = [frame for frame in range(16) if seen[frame] in "x-"]
    earliest, latest = max([-1, *(f for f in gone if f < own)]) + 1, min([16, *(f for f in gone if f > own)]) - 1
    rests = [frame for frame in range(earliest, latest + 1) if seen[frame] == "s"]
    assert (found.earliest.tolist(), found.latest.tolist()) == ([earliest], [latest])
    assert (found.since.tolist(), found.until.tolist()) == ([rests[0]], [rests[-1]])


def test_of_a_short_video_less_is_asked():
    """Of 72 frames ten have to see a place, of few ones five, and as large a share is held against it."""
    assert [min_seen(frames) for frames in (10, 35, 72)] == [5, 5, 10]
    views, _ = film(0, FRAMES)
    hidden = torch.zeros(FRAMES, HEIGHT * WIDTH)
    nothing = Movers(hidden, hidden, torch.full_like(hidden, torch.inf))
    few = some(views, range(0, FRAMES, 3))
    asked = ask(views, 1)
    doubts = [
        sweep(each, asked, 8, 0.04, Movers(*(part[: len(each.numbers)] for part in nothing))).doubt
        for each in (views, few)
    ]
    assert doubts == pytest.approx([(FRAMES - 1) / 36, len(few.numbers) / 36])
    assert sweep(views, asked, 8, 0.04).doubt == 0


@settings(max_examples=20, deadline=None, derandomize=True)
@given(place=st.floats(0.0, 4.0))
def test_a_depth_lies_between_planes(place: float):
    same = (1 - 0.2 * (torch.arange(5) - place).square()).clamp_min(0).expand(400, 1, 1, 5)
    same = (torch.rand(same.shape, generator=torch.Generator().manual_seed(0)) < same).float()
    depths = 1 / torch.linspace(1.0, 0.2, 5)
    looked = Sweep(0, range(1, 401), depths, same, torch.ones_like(same))
    found = float(1 / looked.stays(torch.zeros(1, 1, dtype=torch.long), 1).depth[0])
    assert found == pytest.approx(1 - 0.2 * place, abs=0.12)


def test_a_segment_decides_with_those_that_look_like_it():
    segments = np.array([[[0, 0, 1, -1]], [[0, 0, 1, -1]]])
    looks = np.array([[1.0, 0], [0, 1]], np.float32)  # the same in both frames
    moves = np.array([[[0.9, 0.3, 0.0, 0.7]], [[0.6, 0.6, 0.2, 0.1]]])
    rests = np.array([[[1.0, 0.0, 0.5, 0.4]], [[0.0, 0.5, 0.5, 0.2]]])
    votes = [count(segments[k], 2, moves[k], rests[k]) for k in range(2)]
    assert votes[0] == pytest.approx(np.array([[2, 1.2, 0.9], [1, 0, 0]]))
    kinds = Kinds(np.concatenate((looks, looks)), np.concatenate(votes), 0.1).votes(looks)
    (voted, _), (_, resting) = (decide(segments[k], votes[k], kinds, moves[k], rests[k]) for k in range(2))
    assert voted[0].tolist() == pytest.approx([0.15 * 0.9 + 0.85 * 0.6, 0.15 * 0.3 + 0.85 * 0.6, 0.7 * 0.1, 0.7])
    assert resting[0].tolist() == pytest.approx([(0.25 + 4 * 0.75) / 5] * 2 + [0.5, 0.2])
    none, _ = decide(np.full((1, 4), -1), votes[0], kinds, moves[0], rests[0])
    assert np.array_equal(none, moves[0])


def test_what_is_carried_for_most_of_the_video_is_no_hand():
    """A mug rests in a fourth of the frames, a hand a little in all of them; another thing says nothing of either."""
    mug, hand, room = np.eye(3)
    mugs = [[10, 10, 0]] * 6 + [[10, 10, 9]] * 2
    hands = [[10, 10, 3]] * 8
    looks, votes = np.array([mug] * 8 + [hand] * 8 + [room]), np.array([*mugs, *hands, [10, 0, 0]], float)
    mixed = np.random.default_rng(0).permutation(len(looks))
    found = Kinds(looks[mixed], votes[mixed], 0.1).votes(np.stack((mug, hand, room)))
    assert found == pytest.approx(np.array([[80, 80, 72], [80, 80, 24], [10, 0, 0]]), abs=1e-6)
    assert np.array_equal(Kinds(looks[:0], votes[:0], 0.1).votes(looks), np.zeros((17, 3)))


def test_what_has_the_colours_of_a_hand_is_none_for_an_encoder_that_knows_it():
    """A hand and a mug of one colour, which features tell apart; a bowl and a wall that are one to the encoder."""
    features = np.array([[0.0, 0], [4, 0], [0, 4], [0, 4]])
    colours = np.array([[0.0], [0], [0], [40]])
    hand, mug, bowl, wall = range(4)
    by_features, together = (alike(looks, looks, 1.0) for looks in _voting((features, 10 * colours), (1.0, 10.0)))
    assert max(by_features[hand, mug], together[hand, mug], together[bowl, wall]) < 0.03
    assert by_features[bowl, wall] == 1
    (alone,) = _voting((colours,), (2.0,))
    assert np.array_equal(alone, colours / 2)


def test_a_rest_outlives_hands_and_ends_where_something_else_is_for_long():
    hidden = torch.tensor([1.0, 1, -2, -2, 1, 1, 1, 1, 1, 1])
    gone = torch.tensor([1.0, 1, -2, -2, -2, 2, 2, 2, 2, 2])
    never = torch.tensor([-1.0] * 10)
    sums, frames = longest(torch.stack((hidden, gone, never), -1), patience=5.0)
    assert sums.tolist() == [4, 2, 0] and frames.tolist() == [10, 2, 0]
    sums, frames = longest(torch.stack((gone, gone), -1), patience=torch.tensor([5.0, 7.0]))
    assert sums.tolist() == [2, 6] and frames.tolist() == [2, 10]
    sums, frames = longest(torch.zeros(0, 3), patience=5.0)
    assert sums.tolist() == [0, 0, 0] and frames.tolist() == [0, 0, 0]


def test_what_looks_alike():
    rows = np.array([[0.0, 0], [3, 4]])
    assert alike(rows, rows, 5.0) == pytest.approx(np.array([[1, np.exp(-0.5)], [np.exp(-0.5), 1]]))


def test_evidence_pulls_where_it_is_sure():
    mask = torch.tensor([0.2, 0.2, 0.2], requires_grad=True)
    loss = evidence_loss([mask], torch.tensor([[1.0], [0.5], [0.0]]), against=0.5)
    assert loss.item() == pytest.approx((-np.log(0.2) - 0.5 * np.log(0.8)) / 3)
    loss.backward()
    assert mask.grad is not None
    assert mask.grad[0] < 0 and mask.grad[1] == 0 and mask.grad[2] > 0
    wrong = evidence_loss([torch.tensor([0.0]), torch.tensor([1.0])], torch.tensor([[1.0, 0.0]]), 1.0)
    assert wrong.item() == pytest.approx(-2 * np.log(1e-3), rel=1e-3)


def test_evidence_counts_once_unless_its_weight_is_said():
    masks, target = {"dynamic": torch.full((4,), 0.2), "actor": torch.full((4,), 0.3)}, torch.ones(4, 3)
    chances = torch.tensor([[0.9, 0.1], [0.0, 1.0], [0.0, 0.0], [0.3, 0.5]])
    plain = float(evidence_loss(masks.values(), chances, SeparationConfig().evidence_against))
    formerly_unsaid = SeparationConfig(evidence_weight=None)
    for config, weight in ((SeparationConfig(), 1), (formerly_unsaid, 1), (SeparationConfig(evidence_weight=3.0), 3)):
        found = layer_losses(config, 1.0, masks, 0 * target, None, target, chances)  # pyright: ignore
        assert float(found["evidence"]) == pytest.approx(weight * plain)


def test_a_mask_counts_less_where_it_was_not_found():
    weights, distances = torch.tensor([[0.2, 0.5, 0.1]]).expand(3, 3), torch.tensor([[1.0, 2.0, 4.0]]).expand(3, 3)
    whole, right, wrong = placed_mask(weights, distances, torch.tensor([0.0, 2.0, 1.5]), 0.25).tolist()
    assert whole == pytest.approx(0.8) and right == pytest.approx(0.5 + 0.25 * 0.3, abs=1e-3)
    assert 0.25 * 0.8 <= wrong < right


def test_what_rests_is_to_be_opaque():
    opacity = torch.tensor([0.0, 0.5, 0.5], requires_grad=True)
    loss = resting_loss(opacity, torch.tensor([1.0, 1.0, 0.0]))
    loss.backward()
    assert loss > 0 and opacity.grad is not None
    assert opacity.grad[0] < opacity.grad[1] < 0 == opacity.grad[2]


def written(root: Path, views: Views) -> Path:
    """Writes a scene of a film; its folder."""
    write_tiny_scene(root, frames=FRAMES, extras=False)
    meta = json.loads((root / "meta.json").read_text())
    meta["intrinsics"] = [[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]]
    meta |= {"image_w": WIDTH, "image_h": HEIGHT, "ids_val": meta["ids_test"][1:2], "ids_test": meta["ids_test"][:1]}
    meta["ids_train"] = [i for i in meta["ids_all"] if i not in meta["ids_val"] + meta["ids_test"]]
    for number, i in enumerate(meta["ids_all"]):
        meta["poses"][str(i)] = views.poses[number].tolist()
        meta["nears"][str(i)], meta["fars"][str(i)] = views.near, views.far
        picture = (views.pictures[number].numpy() * 255).round().astype(np.uint8)
        Image.fromarray(picture).save(root / "frames" / meta["images"][str(i)])
    (root / "meta.json").write_text(json.dumps(meta))
    return root


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A scene on the disk of such a film, and what its pixels show."""
    views, shows = film(0, 18)
    return written(tmp_path_factory.mktemp("filmed") / "scene", views), shows


def test_labels_of_a_scene(filmed: tuple[Path, np.ndarray]):
    root, shows = filmed
    scene = load_scene(root)
    train = scene.splits["train"]
    times = scene.times()[train]
    found = labels(scene, train, None)
    assert found is not None and found.codes.shape == (len(train), HEIGHT, WIDTH, 8) and found.codes.dtype == np.uint8
    codes = torch.from_numpy(np.array(found.codes)).float().flatten(1, 2) / 255
    shape, when = (len(train), HEIGHT, WIDTH, -1), torch.from_numpy(times)
    what, (dynamic, actor) = shows[train], found.chances(codes.flatten(0, 1)).view(shape).numpy().transpose(3, 0, 1, 2)
    placed = [found.resting(codes[frame], torch.tensor([frame]), when) for frame in range(len(train))]
    depth, since, until, earliest, latest = torch.stack(placed).view(shape).numpy().transpose(3, 0, 1, 2)
    assert (earliest <= since + 1e-6).all() and (until <= latest + 1e-6).all()
    assert (dynamic + actor <= 1.01).all()
    assert ((since <= times[:, None, None]) & (times[:, None, None] <= until)).all()
    assert np.median((dynamic + actor)[what == ROOM]) < 0.1
    assert np.median(dynamic[what == OBJECT]) > 0.6
    assert np.median(actor[what == HAND]) > 0.6
    resting = (what == OBJECT) & (dynamic > 0.5) & (depth > 0)
    assert resting.sum() > 0.5 * (what == OBJECT).sum()
    assert np.median(abs(depth[resting] - BOX)) < 0.15 * BOX  # it is of one colour: only its edges tell
    whole = scene.times()
    assert np.median(until[resting]) == pytest.approx(whole[17], abs=1.5 / FRAMES)
    assert np.median(since[resting]) == pytest.approx(0, abs=1.5 / FRAMES)
    contested = found.contested(codes.flatten(0, 1)).view(shape[:3]).numpy()
    assert contested[what == ROOM].mean() < 0.5 < np.median(contested[what != ROOM])


def test_what_is_carried_is_as_far_as_its_size_and_its_rests_say(tmp_path: Path):
    depths = np.concatenate((np.full(12, BOX), np.linspace(BOX, 2.0, 7)[1:], np.full(12, BOX)))
    views, shows = film(0, 18, depths=depths)
    scene = load_scene(written(tmp_path / "scene", views))
    train = scene.splits["train"]
    found = labels(scene, train, None)
    assert found is not None
    codes = torch.from_numpy(np.array(found.codes)).float().flatten(1, 2) / 255
    times = torch.from_numpy(scene.times()[train])
    placed = [found.resting(codes[frame], torch.tensor([frame]), times) for frame in range(len(train))]
    depth, since, until, earliest, latest = torch.stack(placed).permute(2, 0, 1).numpy()
    is_box = (shows[train] == OBJECT).reshape(depth.shape) & (depth > 0)
    carried = ((train >= 12) & (train < 18))[:, None] & is_box
    said = since > until
    assert said[carried].mean() > 0.2 and said[is_box & ~carried].mean() < 0.2
    assert (earliest[said] == times[0].item()).all() and (latest[said] == times[-1].item()).all()
    off = abs(depth / depths[train, None] - 1)
    assert np.median(off[carried & said]) < 0.1 and np.quantile(off[carried & said], 0.9) < 0.2


def test_a_shadow_that_moves_is_no_hand(tmp_path: Path):
    (views, shows), random = film(0, 0), np.random.default_rng(5)
    in_shadow = np.zeros_like(shows, bool)
    for frame in range(FRAMES):
        left, top = random.integers(0, WIDTH - 10), random.integers(0, HEIGHT // 2 - 8)
        in_shadow[frame, top : top + 8, left : left + 10] = True
    views.pictures[torch.from_numpy(in_shadow)] *= 0.35
    scene = load_scene(written(tmp_path / "scene", views))
    train = scene.splits["train"]
    found = labels(scene, train, None)
    assert found is not None
    moves = found.codes[..., :2].astype(float).sum(-1) / 255
    assert np.median(moves[in_shadow[train]]) < 0.2
    assert np.median(moves[shows[train] == HAND]) > 0.6


def test_labels_are_kept_and_made_again_where_they_are_damaged(filmed, monkeypatch: pytest.MonkeyPatch):
    scene = load_scene(filmed[0])
    train = scene.splits["train"]
    found = labels(scene, train, None)
    assert found is not None
    first = np.array(found.codes)  # it is mapped from the file that is damaged now
    assert isinstance(found.codes, np.memmap)
    kept = Path(str(found.codes.filename))  # other tests of this scene leave labels of their own beside it
    assert kept in filmed[0].glob("**/evidence-*.npy")
    kept.write_bytes(kept.read_bytes()[:-5])
    again = labels(scene, train, None)
    assert again is not None and np.array_equal(first, again.codes) and np.array_equal(np.load(kept), first)
    monkeypatch.setattr(labels_module, "_write", lambda *_: pytest.fail("computed though it was kept"))
    last = labels(scene, train, None)
    assert last is not None and np.array_equal(first, last.codes)
    with pytest.raises(pytest.fail.Exception):  # other frames, other labels
        labels(scene, train[:-1], None)


def test_an_encoder_that_takes_everything_for_one_thing_is_not_believed_alone(filmed: tuple[Path, np.ndarray]):
    root, shows = filmed

    class Blind:
        seal = "blind"

        def frame_features(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
            return shows[frame].astype(np.int64), np.ones((3, 8), np.float32)

    scene = load_scene(root)
    train = scene.splits["train"]
    found = labels(scene, train, Blind())  # type: ignore[arg-type]
    assert found is not None
    dynamic, actor = found.codes[..., 0] / 255, found.codes[..., 1] / 255
    what = shows[train]
    assert np.median(dynamic[what == OBJECT]) > 0.4 > 0.1 > np.median((dynamic + actor)[what == ROOM])
    assert np.median(actor[what == HAND]) > 0.4 > np.median(dynamic[what == HAND])


def test_looking_for_what_moves_leaves_the_training_its_random_numbers(tmp_path: Path):
    """Else a training whose labels lie in the cache would draw other rays than the first one of the scene."""
    scene = load_scene(written(tmp_path / "scene", film(0, 18)[0]))
    expected = torch.get_rng_state()
    assert labels(scene, scene.splits["train"], None) is not None
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_short_video_tells_nothing(tiny_scene: Path):
    scene = load_scene(tiny_scene)
    assert labels(scene, scene.splits["train"], None) is None


def test_batches_carry_the_evidence_of_their_pixels(filmed: tuple[Path, np.ndarray]):
    config = DivFFDataManagerConfig(data=filmed[0], features="none", train_num_rays_per_batch=32)
    data = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    data.use_evidence()
    _, batch = data.next_train(0)
    other = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    assert "evidence" not in other.next_train(0)[1]
    scene = data.train_dataset.scene
    expected = labels(scene, scene.splits["train"], None)
    assert expected is not None
    camera, row, column = batch["indices"].unbind(-1)
    codes = torch.from_numpy(expected.codes[camera, row, column]).float() / 255
    assert torch.equal(batch["evidence"], expected.chances(codes))
    assert torch.equal(
        batch["resting"], expected.resting(codes, camera, torch.from_numpy(scene.times()[scene.splits["train"]]))
    )


def test_what_moves_is_drawn_more_often_for_features(filmed: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch):
    config = DivFFDataManagerConfig(data=filmed[0], features="none", train_num_rays_per_batch=512)

    def share(weight: float, with_features: bool) -> float:
        data = replace(config, contested_weight=weight).setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
        data.use_evidence()
        monkeypatch.setattr(data, "with_features", lambda _: with_features)
        torch.manual_seed(0)
        return float(torch.cat([data.next_train(step)[1]["evidence"].sum(-1) for step in range(8)]).mean())

    everywhere = share(4.0, False)
    assert share(0.0, True) == everywhere
    assert share(4.0, True) > 1.5 * everywhere
