"""Things of a scene: what they look like, where they rest and when they are moved, in all frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, UInt16

from divff_nerfstudio.arrays import ScratchRows
from divff_nerfstudio.evenly import evenly_spaced
from divff_nerfstudio.objects.comings import brought_in, carried_out, shown_carried
from divff_nerfstudio.objects.grouping import MIN_FRAMES, REACH, Group, Grouping
from divff_nerfstudio.objects.likeness import Likeness
from divff_nerfstudio.objects.moved import HIDDEN, moved
from divff_nerfstudio.objects.pieces import MIN_DYNAMIC, join_over_time, join_pieces
from divff_nerfstudio.objects.sighting_table import Sightings, SightingTable
from divff_nerfstudio.objects.sightings import FeaturesOf, Look, Sighting, sightings
from divff_nerfstudio.objects.spans import Rest, Spots, rests, settled, size, spots

_ACTOR = 0.35
_MAX_PIXELS = 2**22


@dataclass(frozen=True, eq=False)
class LookCamera:
    """Where a frame was taken from, at the size of its look."""

    pose: Float[np.ndarray, "3 4"]
    """Camera-to-world (OpenGL)."""
    intrinsics: Float[np.ndarray, "3 3"]
    """Pinhole camera, in pixels."""


@dataclass(frozen=True, eq=False)
class Move:
    """A thing is moved, brought in or carried out."""

    start: int
    """Index of the last frame that shows it at its old place; of what is brought in, of the first that shows it."""
    end: int
    """Index of the first frame that shows it at its new place; of what is carried out, of the last that shows it."""
    source: Float[np.ndarray, "3"] | None
    """Its old place, world coordinates; None: it is brought in, and nobody has seen where from."""
    target: Float[np.ndarray, "3"] | None
    """Its new place; None: it is carried out, and nobody has seen where to."""
    path: tuple[tuple[int, tuple[float, float, float]], ...] = ()
    """Index of each frame that shows it on its way, and where."""

    @property
    def distance(self) -> float | None:
        """How far apart the places are, scene units; None where one of them is not known."""
        if self.source is None or self.target is None:
            return None
        return float(np.linalg.norm(self.target - self.source))

    @property
    def way(self) -> Float[np.ndarray, "points 3"]:
        """Where it was from first to last, as far as is known: its old place, its path, its new place; world
        coordinates."""
        known = [self.source, *(np.array(point) for _, point in self.path), self.target]
        return np.stack([point for point in known if point is not None])


@dataclass(eq=False)
class Thing:
    """Something that several frames show."""

    number: int
    """Counts the things of a scene from 1 on."""
    sightings: Sightings
    """The segments that show it, in the order of time."""
    feature: Float[np.ndarray, "dim"]
    """Mean of its features, each segment's weighted by the square root of its area, of unit length."""
    rests: tuple[Rest, ...] = ()
    """Where it lies, and when."""
    moves: tuple[Move, ...] = ()
    """When it is moved."""
    name: str = ""
    """What it is called, if a text encoder has been asked."""

    @cached_property
    def spots(self) -> Spots:
        """Where each frame shows it."""
        return spots(self.sightings)

    @cached_property
    def size(self) -> float:
        """Diagonal of what a frame shows of it, scene units."""
        return size(self.spots)

    @property
    def frames(self) -> list[int]:
        """Indices of the frames that show it."""
        return self.spots.frames.tolist()

    @property
    def portrait(self) -> Sighting:
        """The segment that shows it best: large, and not cut off by the picture's border."""
        return self.sightings.best()

    @property
    def dynamic(self) -> float:
        """The dynamic layer's share of it."""
        return float(self.sightings.column("dynamic").mean())

    @property
    def movable(self) -> bool:
        """Whether it is ever moved, brought in or carried out."""
        return bool(self.moves)

    @property
    def brought(self) -> Move | None:
        """The move on which it is brought in, if it is."""
        return self.moves[0] if self.moves and self.moves[0].source is None else None

    @property
    def carried_off(self) -> Move | None:
        """The move on which it is carried out, if it is."""
        return self.moves[-1] if self.moves and self.moves[-1].target is None else None

    @cached_property
    def carried_in(self) -> frozenset[int]:
        """Indices of frames, outside of its rests, that show it away from where it rests before and after them, two
        in a row at least; of what the static layer shows, of which another part may have come into view, only those of
        its moves."""
        told = frozenset(at for move in self.moves for at, _ in move.path)
        if self.dynamic < MIN_DYNAMIC:
            return told
        return told | frozenset(self.spots.frames[shown_carried(self.spots, self.rests, self.size)].tolist())

    def rest_at(self, frame: int) -> Rest | None:
        """Where it lies in a frame, as far as is known; None: it is carried, or has not been seen yet.

        Before its first rest, and after its last, it lies there as long as no frame shows it carried.
        """
        found = next((rest for rest in self.rests if rest.first <= frame <= rest.last), None)
        if found is not None or not self.rests:
            return found
        come, taken_at = self._come_and_taken
        if frame > self.rests[-1].last:
            return self.rests[-1] if frame < taken_at else None
        return self.rests[0] if come <= frame < self.rests[0].first else None

    @cached_property
    def _come_and_taken(self) -> tuple[float, float]:
        """From which frame on it lies at its first place, the first that shows it unless it is carried there; and from
        which on no more at its last one: the first behind it of what is carried out, the first that shows it carried of
        all else."""
        first, last = self.rests[0].first, self.rests[-1].last
        come = first if any(at < first for at in self.carried_in) else int(self.spots.frames[0])
        if self.carried_off is not None:
            return come, last + 1
        return come, min((at for at in self.carried_in if at > last), default=np.inf)

    @cached_property
    def shown(self) -> frozenset[int]:
        """Indices of the frames that show it, and of the few between two of them."""
        found = set(self.frames)
        for before, after in pairwise(self.frames):
            if after - before <= HIDDEN:
                found.update(range(before, after))
        return frozenset(found)

    @cached_property
    def _on_the_way(self) -> dict[int, Float[np.ndarray, "3"]]:
        """Where frames show it that show it carried, by their indices."""
        shown = zip(self.spots.frames.tolist(), self.spots.centres, strict=True)
        return {frame: centre for frame, centre in shown if frame in self.carried_in}

    def place(self, frame: int) -> Float[np.ndarray, "3"]:
        """Where it is in a frame: at its resting place, on its way between two, or where it was last (or will first
        be) seen."""
        for rest in self.rests:
            if rest.first <= frame <= rest.last:
                return rest.point
        if frame in self._on_the_way:
            return self._on_the_way[frame]
        known = {rest.last: rest.point for rest in self.rests if rest.last < frame} | {
            at: point for at, point in self._on_the_way.items() if at < frame
        }
        return known[max(known)] if known else self.rests[0].point

    def spans(self, count: int) -> list[tuple[str, int, int]]:
        """What happens to it from the first frame to the last: "rests", "carried", "moved unseen" or "out of sight".

        Args:
            count: How many frames there are.

        Returns:
            Each with the indices of its first and last frame, in the order of time, without gaps.
        """
        if count not in self._spans:
            self._spans[count] = self._spans_of(count)
        return self._spans[count]

    @cached_property
    def _spans(self) -> dict[int, list[tuple[str, int, int]]]:
        """What `spans` has told."""
        return {}

    def _spans_of(self, count: int) -> list[tuple[str, int, int]]:
        states = np.full(count, "out of sight", dtype=object)
        for move in self.moves:
            # On a way that begins or ends in a hand, it is in that where frames do not show it, too.
            states[move.start + 1 : move.end] = "carried" if move.distance is None else "moved unseen"
        for frame in self.shown:
            states[frame] = "carried" if self.rest_at(frame) is None else "rests"
        edges = [0, *(i for i in range(1, count) if states[i] != states[i - 1]), count]
        return [(str(states[a]), a, b - 1) for a, b in pairwise(edges)]

    def state(self, frame: int, count: int) -> str:
        """What happens to it in a frame, as `spans` tells of all `count` frames."""
        return next(state for state, first, last in self.spans(count) if first <= frame <= last)


@dataclass(eq=False)
class Things:
    """All things of a scene."""

    things: list[Thing]
    """In the order of the number of frames that show them."""
    owners: UInt16[np.ndarray, "frames height width"]
    """Number of the thing at each pixel of each frame, 0: none; memory-mapped, as what follows."""
    distances: Float32[np.ndarray, "frames height width"]
    """How far each pixel's point is from the camera, scene units."""
    cameras: Sequence[LookCamera]
    """The frames' cameras."""
    reach: float
    """Points nearer to each other than this are at one place, scene units."""
    likeness: Likeness | None = None
    """What similarities of features say here; None where there are no things."""

    @cached_property
    def depth(self) -> float:
        """How far what the frames show is from the camera: median over all pixels, of evenly chosen frames where there
        are many, scene units."""
        frames, height, width = self.distances.shape
        return float(np.median(self.distances[evenly_spaced(frames, max(1, _MAX_PIXELS // (height * width)))]))

    @cached_property
    def centred(self) -> Float[np.ndarray, "things dim"]:
        """The things' features without what all features of the scene have in common."""
        assert self.likeness is not None
        return self.likeness.centred(np.stack([thing.feature for thing in self.things]))

    def alike(self, thing: Thing) -> list[int]:
        """Numbers of the things whose features might be of the same thing, itself among them."""
        assert self.likeness is not None
        own = self.likeness.centred(thing.feature[None])[0]
        evidence = self.likeness.evidence(self.centred @ own)
        return [other.number for other, says in zip(self.things, evidence, strict=True) if says > 0 or other is thing]

    def at(self, frame: int, row: int, column: int) -> Thing | None:
        """The thing at a pixel of a frame, at the size of the looks."""
        return self.numbered(int(self.owners[frame, row, column]))

    def numbered(self, number: int) -> Thing | None:
        """The thing of a number; None if there is none."""
        return next((thing for thing in self.things if thing.number == number), None)


def find_things(
    looks: Iterable[Look], features_of: FeaturesOf, cameras: Sequence[LookCamera], folder: Path | None = None
) -> Things:
    """Groups what all frames show into things, and finds out when they are moved.

    Args:
        looks: The frames, in the order of time; each is needed only until the next.
        features_of: Gives the features of their segments.
        cameras: Their cameras.
        folder: Where files lie in which all that grows with the number of frames is kept, and which have no names;
            None: where temporary files do.

    Raises:
        OSError: If there is no room for these files.
    """
    seen, rows, far = SightingTable(folder), ScratchRows(folder, np.uint16), ScratchRows(folder, np.float32)
    for look in looks:
        seen.append(sightings(look), look.eye)
        rows.append(look.index[None])
        far.append(look.distance[None])
    owners, distances = rows.mapped(), far.mapped()
    groups: list[Group] = []
    reach, likeness = 0.0, None
    if len(seen.columns):
        reach = REACH * float(np.median(seen.columns["depth"]))
        grouping = Grouping(seen, features_of, reach)
        likeness = grouping.likeness
        groups = join_over_time(grouping.groups, seen, likeness, reach)
        groups = join_pieces(groups, seen, owners, likeness)
    found = Things(_things(groups, seen), owners, distances, cameras, reach, likeness)
    _own(found.things, seen, owners)
    for thing in found.things:
        _follow(thing, found)
    return found


def _things(groups: Sequence[Group], seen: SightingTable) -> list[Thing]:
    """The groups that enough frames show, and are not the actor's, those that most frames show first."""
    found = []
    for group in groups:
        numbers = np.array(group.numbers)
        frames = seen.columns["frame"][numbers]
        count = len(np.unique(frames))
        shown = Sightings(seen, numbers[np.argsort(frames, kind="stable")])
        if count >= MIN_FRAMES and not _is_actor(shown):
            feature = np.asarray(group.looks)
            found.append((count, shown, feature / max(float(np.linalg.norm(feature)), 1e-9)))
    found.sort(key=lambda each: -each[0])
    return [Thing(number, *each[1:]) for number, each in enumerate(found[: np.iinfo(np.uint16).max], 1)]


def _is_actor(shown: Sightings) -> bool:
    """Whether segments are the actor's; what the actor holds now and then is not, though its layer may show it."""
    return float(shown.column("actor").mean()) > _ACTOR


def _own(things: Sequence[Thing], seen: SightingTable, places: UInt16[np.ndarray, "frames height width"]) -> None:
    """Turns rows of the store at each pixel into numbers of things, in place."""
    owners = np.zeros(len(seen.columns) + 1, np.uint16)  # the last is that of pixels in no segment, -1
    for thing in things:
        owners[thing.sightings.numbers] = thing.number
    for frame, place in enumerate(places):
        place[:] = owners[seen.numbers_at(frame, place)]


def _follow(thing: Thing, things: Things) -> None:
    """Finds out where a thing rests and when it is moved."""
    lain = rests(thing.spots, things.reach, len(things.cameras)) or [Rest(thing.spots[:1])]
    kept = [lain[0]]
    for later in lain[1:]:
        if not moved(thing, kept[-1], later, things):
            kept[-1] = Rest(kept[-1].spots + later.spots)
            continue
        kept += [settled(kept.pop(), things.reach, end=True), settled(later, things.reach)]
    came, went = brought_in(thing, kept, things), carried_out(thing, kept, things)
    if came is not None:
        kept[0] = settled(kept[0], things.reach)
    if went is not None:
        kept[-1] = settled(kept[-1], things.reach, end=True)
    thing.rests = tuple(kept)
    moves = [_move(thing, before.last, after.first, before, after) for before, after in pairwise(kept)]
    if came is not None:
        moves.insert(0, _move(thing, int(came.frames[0]), kept[0].first, None, kept[0]))
    if went is not None:
        moves.append(_move(thing, kept[-1].last, int(went.frames[-1]), kept[-1], None))
    thing.moves = tuple(moves)


def _move(thing: Thing, start: int, end: int, before: Rest | None, after: Rest | None) -> Move:
    """What happens to a thing between two rests, or before its first, or after its last."""
    way = thing.spots.between(start if before is None else start + 1, end if after is None else end - 1)
    shown = zip(way.frames.tolist(), way.centres.tolist(), strict=True)
    path = tuple((frame, tuple(place)) for frame, place in shown)
    return Move(start, end, None if before is None else before.point, None if after is None else after.point, path)
