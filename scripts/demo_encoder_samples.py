"""Training pictures of the demo encoder: random kitchens, seen and cut as an extraction does it.

Each kitchen has its own colours, objects, person and light; none is the demo scene's. Views are cut into segments (by
the segmenter of the extraction, and by the true outlines), and clips into tiles. Every picture is described by the
things that it shows, with their shares of its pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from demo_encoder_captions import ROOM, Thing, things
from demo_encoder_objects import (
    COLOUR_NAMES,
    KINDS,
    make_object,
    render_object_crop,
    sample_actor,
    sample_lighting,
)
from jaxtyping import Bool, Float16, Int, Int16, UInt8
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image, ImageFilter
from rich.progress import track

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.demo_scene.grasps import grasp_of
from divff_nerfstudio.demo_scene.hands import HandPose, arm_bodies, hand_rotation
from divff_nerfstudio.demo_scene.plan import (
    BOARD,
    BOARD_HALF,
    BOARD_TOP,
    CORNERS,
    COUNTER_Z,
    HOB_TOP,
    HOB_X,
    HOB_Y,
    INSTANCES,
    SINK,
    SINK_FLOOR,
    SINK_HALF,
    RoomStyle,
)
from divff_nerfstudio.demo_scene.renderer import Body, Camera, PlacedBodies, box_average, cast, shade, to_srgb
from divff_nerfstudio.demo_scene.room import build_room
from divff_nerfstudio.demo_scene.shapes import turn_z
from divff_nerfstudio.features.open_clip_source import box_crop, masked_crop
from divff_nerfstudio.features.segments import ColourSegmenterConfig
from divff_nerfstudio.features.tiles import Tiles

INPUT = 64
SIZES = (228, 128), (114, 64)
"""Width and height of the views, as the demo's video frames and those that are trained on; as many of each."""
KITCHENS, VIEWS, CLIPS, CROPS = 64, 12, 10, 80
"""How many kitchens, and of each: views cut into segments, clips cut into tiles, close-ups of objects."""
HELD_OUT = 8
"""Every so many-th kitchen is for testing."""
SHOWN = 4
"""Things that a sample's description names at most."""
FIRST_OBJECT, HAND, ARM = 60, 111, 112
ROOM_NAMES = {
    "back wall": "splashback",
    "left wall": "wall",
    "right wall": "wall",
    "cupboard door": "cupboard",
    "drawer": "drawers",
    "hood": "extractor hood",
}
"""Kinds of captions for the room's instances, where they differ."""


@dataclass(frozen=True)
class Samples:
    """Pictures, each with the things that it shows."""

    pictures: UInt8[np.ndarray, "n h w 3"]
    things: Int16[np.ndarray, "n shown"]
    """Numbers in `things`, the largest share first."""
    shares: Float16[np.ndarray, "n shown"]
    """Share of the pixels of each."""
    held_out: Bool[np.ndarray, "n"]
    """Whether it is for testing."""

    @property
    def weights(self) -> np.ndarray:
        """How often to draw each sample, so that rare things are seen nearly as often as walls; sums to 1."""
        kinds = np.array([thing.kind for thing in things()])[self.things[:, 0]]
        _, inverse, counts = np.unique(kinds, return_inverse=True, return_counts=True)
        weight = counts[inverse] ** -0.75 * ~self.held_out
        return weight / weight.sum()


NUMBERS = {thing: number for number, thing in enumerate(things())}


class Kitchen:
    """A kitchen with objects and a person, at random.

    Args:
        seed: Of everything in it.
        sizes: Width and height of views; each has one of these.
        pans: Share of the views in which a black pan is on the hob for sure, which chance seldom gives.
    """

    def __init__(self, seed: int, sizes: Sequence[tuple[int, int]] = SIZES, pans: float = 0.0):
        self.random, self.sizes, self.pans = np.random.default_rng([11, seed]), sizes, pans
        self.room = PlacedBodies(build_room(RoomStyle.sample(self.random)))
        self.room_things = {
            number: NUMBERS[Thing(ROOM_NAMES.get(name, name))] for number, name in enumerate(INSTANCES, start=1)
        }

    def shuffle(self) -> None:
        """New objects in new places, another person, other light."""
        random = self.random
        count = int(random.integers(6, 15))
        self.props: list[tuple[str, str, np.ndarray, np.ndarray]] = []
        taken: list[np.ndarray] = []
        if self.pans > 0 and random.random() < self.pans:
            taken.append(np.array([random.uniform(*HOB_X), random.uniform(*HOB_Y), HOB_TOP]))
            self.props.append(("pan", "black", taken[0], turn_z(float(random.uniform(-np.pi, np.pi)))))
        while len(self.props) < count:
            kind, colour = str(random.choice(KINDS)), str(random.choice(COLOUR_NAMES))
            place = self._place()
            if all(np.linalg.norm(place[:2] - other[:2]) > 0.12 for other in taken):
                taken.append(place)
                self.props.append((kind, colour, place, turn_z(float(random.uniform(-np.pi, np.pi)))))
        self.things = {
            **self.room_things,
            HAND: NUMBERS[Thing("hand")],
            ARM: NUMBERS[Thing("arm")],
            **{FIRST_OBJECT + n: NUMBERS[Thing(kind, colour)] for n, (kind, colour, _, _) in enumerate(self.props)},
        }
        self.objects = [
            replace(make_object(kind, colour, FIRST_OBJECT + n)) for n, (kind, colour, _, _) in enumerate(self.props)
        ]
        self.actor, self.lighting = sample_actor(random), sample_lighting(random)
        self.size = self.sizes[int(random.integers(len(self.sizes)))]
        self.focal = self.size[0] / 2 / np.tan(np.radians(random.uniform(72, 92)) / 2)
        self.swing = random.normal(0, 0.03, (2, 3))
        self.held = {side: self._task() for side in (-1, 1)}
        near = np.array([random.uniform(-1.0, 1.0), 0.26, random.uniform(0.95, 1.15)])
        busy = [self.props[held][2] for held in self.held.values() if held is not None]
        if busy and random.random() < 0.7:
            near = busy[0] * [1, 1, 0] + [random.normal(0, 0.15), 0.0, random.uniform(0.95, 1.15)]
        if random.random() < 0.15:
            near[2] = random.uniform(1.2, 1.7)
        self.target = near
        self.eye = np.array(
            [0.75 * near[0] + random.normal(0, 0.1), random.uniform(-0.5, -0.28), random.uniform(1.5, 1.68)]
        )
        large = 6.0 if random.random() < 0.15 else 1.0
        self.drift = random.normal(0, 0.008, 3), random.normal(0, 0.015, 3) * large
        self.roll = float(random.normal(0, 0.04))

    def _place(self) -> np.ndarray:
        """Somewhere on the counter, the board, the hob or in the sink."""
        random = self.random
        where = random.random()
        if where < 0.12:
            return np.array([*(np.array(SINK) + random.uniform(-0.6, 0.6, 2) * SINK_HALF), SINK_FLOOR])
        if where < 0.27:
            return np.array([*(np.array(BOARD) + random.uniform(-0.8, 0.8, 2) * BOARD_HALF), BOARD_TOP])
        if where < 0.45:
            return np.array([random.uniform(*HOB_X), random.uniform(*HOB_Y), HOB_TOP])
        while True:
            place = np.array([random.uniform(-1.25, 1.4), random.uniform(0.06, 0.55), COUNTER_Z])
            in_sink = (np.abs(place[:2] - SINK) < np.array(SINK_HALF) + 0.03).all()
            if not in_sink and not HOB_X[0] < place[0] < HOB_X[1]:
                return place

    def _task(self) -> int | None:
        """Which object a hand holds."""
        return int(self.random.integers(len(self.props))) if self.random.random() < 0.5 else None

    def picture(self, moment: float) -> tuple[np.ndarray, np.ndarray]:
        """The view at a moment from 0 to 1: picture, and instance of each pixel."""
        eye, target = self.eye + 3 * moment * self.drift[0], self.target + 3 * moment * self.drift[1]
        bodies: list[Body] = []
        lifted = {}
        for side, held in self.held.items():
            if held is not None:
                wave = np.sin(moment * 5 + np.array([0.0, 1.0, 2.0]) + side) * self.swing[(side + 1) // 2]
                wave[2] += 0.02 + 0.06 * abs(np.sin(self.roll * 99 + moment))
                lifted[held] = wave
        for n, (body, (_, _, place, rotation)) in enumerate(zip(self.objects, self.props, strict=True)):
            bodies.append(body.placed(rotation, place + lifted.get(n, 0.0)))
        for side, held in self.held.items():
            pose = self._hand(side, held, lifted, eye, target)
            shoulder = eye + np.array([0.24 * side, 0.05, -0.34])
            bodies += arm_bodies(side, pose, shoulder, np.array([0.6 * side, -0.2, -0.7]), self.actor, HAND, ARM)
        stage = PlacedBodies.joined(self.room, PlacedBodies(bodies))
        camera = Camera.look_at(*self.size, self.focal, eye, target, self.roll)
        fine = camera.scaled(2)
        shaded = shade(stage, fine, cast(stage, fine), self.lighting, CORNERS)
        return to_srgb(box_average(shaded, 2)), cast(stage, camera).instance

    def _hand(
        self, side: int, held: int | None, lifted: dict[int, np.ndarray], eye: np.ndarray, target: np.ndarray
    ) -> HandPose:
        """A hand that holds an object, or rests before the body."""
        if held is None:
            ahead = (target - eye) * [1, 1, 0]
            ahead = ahead / np.linalg.norm(ahead)
            at = eye + 0.38 * ahead + np.array([0.17 * side, 0.0, -0.42]) + self.swing[0]
            frame = hand_rotation(np.array([-0.25 * side, 0.85, 0.1]), np.array([-0.5 * side, 0.0, -0.7]))
            return HandPose(at, frame, 0.25)
        kind, colour, place, _ = self.props[held]
        toward = turn_z(float(np.clip(self.swing[1, 0] * 9, -0.5, 0.5)))
        grasp = grasp_of(kind, self.objects[held].bounds, side)
        self.props[held] = (kind, colour, place, toward)
        return grasp.on(toward, place + lifted[held])


def described(inside: Int[np.ndarray, "pixels"], found: dict[int, int]) -> tuple[list[int], list[float]]:
    """Things and their shares among instances of pixels, the largest first."""
    shares: dict[int, float] = {}
    numbers, counts = np.unique(inside, return_counts=True)
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        if number in found:
            shares[found[number]] = shares.get(found[number], 0.0) + count / len(inside)
    largest = sorted(shares.items(), key=lambda item: -item[1])[:SHOWN]
    return [thing for thing, _ in largest], [share for _, share in largest]


def _small(picture: np.ndarray, random: np.random.Generator | None = None) -> np.ndarray:
    """At the encoder's size; seen through a coarser or softer lens now and then."""
    image = Image.fromarray(picture)
    if random is not None and random.random() < 0.4:
        factor = random.uniform(1.2, 2.5)
        size = (max(3, round(image.width / factor)), max(3, round(image.height / factor)))
        image = image.resize(size, Image.Resampling.BOX)
        if random.random() < 0.3:
            image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 0.8)))
    return np.asarray(image.resize((INPUT, INPUT), Image.Resampling.BICUBIC))


def segment_samples(kitchen: Kitchen) -> Iterator[tuple[np.ndarray, list[int], list[float]]]:
    """Masked crop and box crop of the segments of a view: the segmenter's, and the objects' true outlines."""
    picture, instances = kitchen.picture(0.0)
    segments = ColourSegmenterConfig().setup().segment(picture)
    masks = [segments == number for number in range(int(segments.max()) + 1)]
    for number in np.unique(instances):
        mask = instances == number
        if number >= FIRST_OBJECT:
            masks.append(mask)
            if kitchen.random.random() < 0.3:  # a part of it, as an occlusion or the segmenter may leave it
                rows, columns = np.nonzero(mask)
                edge = kitchen.random.choice(columns if kitchen.random.random() < 0.5 else rows)
                part = mask.copy()
                part[:, :edge] = 0
                masks.append(part)
    for mask in masks:
        if mask.sum() < max(12, 0.0015 * mask.size):
            continue
        named, shares = described(instances[mask], kitchen.things)
        if named and not (_ROOM_NUMBERS.issuperset(named) and kitchen.random.random() < 0.5):
            yield _small(masked_crop(picture, mask), kitchen.random), named, shares
            yield _small(box_crop(picture, mask), kitchen.random), named, shares


def clip_samples(kitchen: Kitchen, kept: int = 36) -> Iterator[tuple[np.ndarray, list[int], list[float]]]:
    """Tiles of a clip, as mosaics; each is described by what lies nearest to its centre in the first picture."""
    moments = [kitchen.picture(moment) for moment in np.linspace(0, 1, 4)]
    tiles = Tiles.of(*reversed(kitchen.size), share=0.3, overlap=0.5)
    cut = tiles.cut(np.stack([picture for picture, _ in moments]))
    instances = moments[0][1]
    nearest = tiles.index()
    described_tiles = [described(instances[nearest == tile], kitchen.things) for tile in range(len(cut))]
    interest = np.array([0.3 if _ROOM_NUMBERS.issuperset(named) else 1.0 for named, _ in described_tiles])
    for tile in kitchen.random.choice(len(cut), min(kept, len(cut)), replace=False, p=interest / interest.sum()):
        named, shares = described_tiles[tile]
        if named:
            small = [
                np.asarray(Image.fromarray(part).resize((INPUT // 2, INPUT // 2), Image.Resampling.BICUBIC))
                for part in cut[tile]
            ]
            yield np.concatenate([np.concatenate(small[:2], axis=1), np.concatenate(small[2:], axis=1)]), named, shares


_ROOM_NUMBERS = frozenset(number for thing, number in NUMBERS.items() if thing.kind in ROOM)


def close_ups(random: np.random.Generator) -> Iterator[tuple[np.ndarray, list[int], list[float]]]:
    """An object from near, masked and in its box."""
    kind, colour = str(random.choice(KINDS)), str(random.choice(COLOUR_NAMES))
    picture, mask = render_object_crop(random, kind, colour, size=int(random.choice([32, 48, 64])))
    if mask.sum() > 12:
        described_by = [NUMBERS[Thing(kind, colour)]], [1.0]
        yield _small(masked_crop(picture, mask), random), *described_by
        yield _small(box_crop(picture, mask), random), *described_by


def _render(seed: int) -> tuple[Samples, Samples]:
    kitchen = Kitchen(seed)
    crops, clips = [], []
    for _ in range(VIEWS):
        kitchen.shuffle()
        crops += segment_samples(kitchen)
    for _ in range(CLIPS):
        kitchen.shuffle()
        clips += clip_samples(kitchen)
    for _ in range(CROPS):
        crops += close_ups(kitchen.random)
    return _packed(crops, seed), _packed(clips, seed)


def _packed(found: list[tuple[np.ndarray, list[int], list[float]]], seed: int) -> Samples:
    named = np.zeros((len(found), SHOWN), np.int16)
    shares = np.zeros((len(found), SHOWN), np.float16)
    for row, (_, numbers, parts) in enumerate(found):
        named[row, : len(numbers)] = numbers
        shares[row, : len(parts)] = parts
    pictures = np.stack([picture for picture, _, _ in found])
    return Samples(pictures, named, shares, np.full(len(found), seed % HELD_OUT == 0))


def load_samples(folder: Path, kitchens: int = KITCHENS, processes: int = 2) -> tuple[Samples, Samples]:
    """Crops and clips; rendered first if the folder lacks them.

    Args:
        folder: Where they are kept.
        kitchens: How many kitchens.
        processes: Processes to render with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = ("pictures", "things", "shares", "held_out")
    missing = [seed for seed in range(kitchens) if not (folder / f"kitchen_{seed:03d}.npz").exists()]
    if missing:
        with ProcessPoolExecutor(processes) as pool:
            made = zip(missing, pool.map(_render, missing), strict=True)
            for seed, (crops, clips) in track(made, "kitchens", len(missing), console=CONSOLE):
                arrays = {f"crops_{name}": getattr(crops, name) for name in names}
                arrays |= {f"clips_{name}": getattr(clips, name) for name in names}
                with atomic_path(folder / f"kitchen_{seed:03d}.npz") as path:
                    np.savez(path, **arrays)
    parts = [dict(np.load(folder / f"kitchen_{seed:03d}.npz")) for seed in range(kitchens)]
    crops, clips = (
        Samples(*(np.concatenate([part[f"{kind}_{name}"] for part in parts]) for name in names))
        for kind in ("crops", "clips")
    )
    CONSOLE.print(f"{len(crops.pictures)} crops, {len(clips.pictures)} clips, of {kitchens} kitchens")
    return crops, clips
