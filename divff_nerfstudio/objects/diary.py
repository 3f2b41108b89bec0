"""The diary of a scene: what was moved, when, from where to where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from divff_nerfstudio.objects.pieces import MIN_DYNAMIC
from divff_nerfstudio.objects.things import Move, Thing, Things

Kind = Literal["moved", "put back", "brought in", "carried out"]
_SAME_PLACE = 0.5
_END = 2
"""What so many frames at an end of the video show in a hand is there when the video begins or ends."""


@dataclass(frozen=True)
class Clock:
    """Tells frames' times."""

    frame_ids: Sequence[int]
    """Id of each frame."""
    numbers: Sequence[int]
    """Number of each frame in the video."""
    times: Sequence[float]
    """Time of each frame, 0 to 1."""
    fps: float | None = None
    """Frames of the video in a second, if known."""

    def seconds(self, frame: int) -> float | None:
        """Seconds from the scene's first frame to one; None where nobody knows the video's speed."""
        return None if self.fps is None else (int(self.numbers[frame]) - int(self.numbers[0])) / self.fps

    def told(self, frame: int) -> str:
        """A frame's time in words."""
        seconds = self.seconds(frame)
        return f"frame {self.frame_ids[frame]}" if seconds is None else f"{seconds:.1f} s"

    def data(self, frame: int) -> dict[str, Any]:
        """A frame's time as plain data."""
        found = {"frame": int(self.frame_ids[frame]), "time": float(self.times[frame])}
        seconds = self.seconds(frame)
        return found if seconds is None else found | {"seconds": seconds}

    def latest_before(self, when: float) -> int | None:
        """Index of the last frame before a moment: seconds where the video's speed is known, else a time from 0 to 1.

        Returns:
            None if there is none.
        """
        known = [i for i, time in enumerate(self.times) if (time if self.fps is None else self.seconds(i) or 0) < when]
        return known[-1] if known else None


@dataclass(frozen=True, eq=False)
class Event:
    """Somebody has moved something, brought it in or carried it out."""

    thing: Thing
    """What."""
    move: Move
    """When, and from where to where."""
    source: Thing | None
    """What it stood by before, if anything rests near it."""
    target: Thing | None
    """What it stands by after."""
    returned: bool
    """Whether it was put back where it had been."""

    @property
    def kind(self) -> Kind:
        """What has happened: of what is brought in nobody has seen where from, of what is carried out, where to."""
        if self.move.source is None:
            return "brought in"
        if self.move.target is None:
            return "carried out"
        return "put back" if self.returned else "moved"

    def data(self, clock: Clock) -> dict[str, Any]:
        """The event as plain data; points are world coordinates, and null where nobody knows."""
        return {
            "thing": self.thing.number,
            "name": self.thing.name,
            "kind": self.kind,
            "start": clock.data(self.move.start),
            "end": clock.data(self.move.end),
            "from": None if self.move.source is None else self.move.source.tolist(),
            "to": None if self.move.target is None else self.move.target.tolist(),
            "distance": self.move.distance,
            "from_beside": self.source.number if self.source else None,
            "to_beside": self.target.number if self.target else None,
            "put_back": self.returned,
            "path": [clock.data(frame) | {"point": list(point)} for frame, point in self.move.path],
        }

    def told(self, clock: Clock) -> str:
        """The event as a sentence."""
        when = f"{clock.told(self.move.start)} to {clock.told(self.move.end)}"
        if self.kind == "put back":
            return f"{when}: {called(self.thing)} is taken and put back{_beside(self.source)}."
        if self.kind == "brought in":
            come = "is in the hand at the beginning" if self.move.start < _END else "is brought in"
            return f"{when}: {called(self.thing)} {come} and put down{_beside(self.target)}."
        if self.kind == "carried out":
            gone = "still in the hand at the end" if self.move.end >= len(clock.frame_ids) - _END else "carried out"
            return f"{when}: {called(self.thing)} is taken{_beside(self.source, 'from ')}, and {gone}."
        where = _beside(self.source, "from ") + _beside(self.target, "to ")
        if self.source is self.target:
            where = _beside(self.source, "still ")
        return f"{when}: {called(self.thing)} is moved {self.move.distance:.2g} scene units{where}."


def diary(things: Things) -> list[Event]:
    """All that is moved, brought in or carried out, in the order of time."""
    found = []
    for thing in things.things:
        for move in thing.moves:
            far = move.distance
            returned = far is not None and far < _SAME_PLACE * thing.size and bool(move.path)
            source, target = (
                None if point is None else landmark(things, thing, point) for point in (move.source, move.target)
            )
            found.append(Event(thing, move, source, target, returned))
    return sorted(found, key=lambda event: (event.move.start, event.thing.number))


def landmark(things: Things, thing: Thing, point: Float[np.ndarray, "3"]) -> Thing | None:
    """What something at a place stands by: of the things that are never moved, are not of the dynamic layer, do not
    fill the room and are seen a third as often as it, the nearest one that has a name, or else the nearest.

    Args:
        things: All things.
        thing: What stands there.
        point: The place, world coordinates.

    Returns:
        None if nothing is nearer than the room is deep by a quarter.
    """
    room = things.depth
    near = []
    for other in things.things:
        stays = other is not thing and not other.movable and other.dynamic < MIN_DYNAMIC
        if not stays or not other.rests or other.size > room / 2 or len(other.frames) < len(thing.frames) / 3:
            continue
        far = float(np.linalg.norm(other.rests[0].points - point, axis=1).min())
        if far < room / 4:
            near.append((not other.name, far, other))
    return min(near, key=lambda each: each[:2])[2] if near else None


def called(thing: Thing) -> str:
    """What a thing is called: its name, if it has one, and its number."""
    return f"the {thing.name} (thing {thing.number})" if thing.name else f"thing {thing.number}"


def _beside(thing: Thing | None, before: str = "") -> str:
    return "" if thing is None else f", {before}beside {called(thing)}"
