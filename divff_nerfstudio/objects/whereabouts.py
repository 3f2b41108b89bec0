"""Where a thing is in a frame, since when, and where it was before that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from divff_nerfstudio.objects.diary import Clock, called, landmark
from divff_nerfstudio.objects.sightings import Sighting
from divff_nerfstudio.objects.spans import Rest
from divff_nerfstudio.objects.things import Thing, Things

State = Literal["rests", "carried", "moved unseen", "not seen yet"]
_SAME_PLACE = 0.5
_ASIDE = 0.4
_WORDS = (("to the right", "to the left"), ("higher", "lower"), ("nearer", "farther away"))
"""What the axes of a pose (OpenGL: right, up, back) are called, in their own direction and against it."""


@dataclass(frozen=True, eq=False)
class Whereabouts:
    """How it stands with a thing in a frame."""

    thing: Thing
    """The thing."""
    frame: int
    """Index of the frame."""
    rest: Rest | None
    """Where it lies, as far as is known; None: it is carried, is moved unseen, or has not been seen yet."""
    before: Rest | None
    """Where it lay before that; of what is carried, where it comes from, if it lay anywhere."""
    after: Rest | None
    """Where it lies next, if anywhere."""

    @property
    def state(self) -> State:
        """Whether it rests, is carried, is moved while nobody sees it, or has not been seen yet."""
        if self.rest is not None:
            return "rests"
        if self.last_seen is None:
            return "not seen yet"
        between = self.before is not None and self.after is not None
        return "moved unseen" if between and self.frame not in self.thing.shown else "carried"

    @property
    def last_seen(self) -> int | None:
        """Index of the last frame up to this one that shows it; None if none does."""
        return max((frame for frame in self.thing.frames if frame <= self.frame), default=None)

    @property
    def points(self) -> Float[np.ndarray, "points 3"]:
        """Points of its surface where it is now, world coordinates; none before it is seen."""
        if self.rest is not None:
            return self.rest.points
        if self.last_seen is None:
            return np.zeros((0, 3), np.float32)
        nearest = int(np.abs(self.thing.spots.frames - self.frame).argmin())
        return self.thing.spots[nearest : nearest + 1].points

    @property
    def sighting(self) -> Sighting:
        """What shows it best where it is now, large and not cut off: so one sees it who stands where that frame was
        taken from. Of what is carried, or has not been seen yet, it is what is next in time."""
        seen = self.thing.sightings
        if self.rest is not None:
            return seen.best(np.isin(seen.column("frame"), self.rest.spots.frames))
        return seen.nearest(self.frame)

    def told(self, things: Things, clock: Clock, pose: Float[np.ndarray, "3 4"]) -> str:
        """It in words, without the thing's name, as seen by somebody who looks on.

        Args:
            things: All things.
            clock: Tells when.
            pose: Camera-to-world (OpenGL) of who looks on, which says what is left and right.
        """
        if self.rest is None:
            return self._on_the_way(things, clock, pose)
        since = self.rest.first
        if self.before is None and since > self.thing.frames[0]:
            told = f"here since {clock.told(since)}, when it is put down"
        elif self.before is None:
            told = "here from the beginning" if since == 0 else f"here since {clock.told(since)}, when it is first seen"
        else:
            where = self._from_here(things, pose, self.before.point, self.rest.point)
            told = f"here since {clock.told(since)}; before that {where}, until {clock.told(self.before.last)}"
        if self.after is not None or any(at > self.rest.last for at in self.thing.carried_in):
            told += f"; taken at {clock.told(self.rest.last)}"
        last = self.last_seen
        if last is None or self.thing.state(self.frame, len(clock.frame_ids)) != "out of sight":
            return told
        return f"{told}; last seen at {clock.told(last)}"

    def _on_the_way(self, things: Things, clock: Clock, pose: Float[np.ndarray, "3 4"]) -> str:
        """The words for what lies nowhere."""
        if self.last_seen is None:
            return f"not seen before {clock.told(self.thing.frames[0])}"
        if self.before is None or self.after is None:
            brought = self.thing.brought
            come = self.thing.frames[0] if brought is None or self.frame < brought.start else brought.start
            begin = clock.told(come if self.before is None else self.before.last)
            end = "" if self.after is None else f" to {clock.told(self.after.first)}"
            return f"carried from {begin}{end}, last seen at {clock.told(self.last_seen)}"
        where = self._from_here(things, pose, self.after.point, self.before.point)
        return f"{self.state} from {clock.told(self.before.last)} to {clock.told(self.after.first)}, {where}"

    def _from_here(
        self,
        things: Things,
        pose: Float[np.ndarray, "3 4"],
        there: Float[np.ndarray, "3"],
        here: Float[np.ndarray, "3"],
    ) -> str:
        """Another place in words, by what lies there and as seen from here."""
        if np.linalg.norm(there - here) < _SAME_PLACE * self.thing.size:
            return "at the same place"
        beside = landmark(things, self.thing, there)
        return direction(there - here, pose) + ("" if beside is None else f", beside {called(beside)}")


def whereabouts(thing: Thing, frame: int) -> Whereabouts:
    """How it stands with a thing in a frame.

    Args:
        thing: The thing.
        frame: Index of the frame.
    """
    rest = thing.rest_at(frame)
    others = [each for each in thing.rests if each is not rest]
    before = [each for each in others if each.last < frame]
    after = [each for each in others if each.first > frame]
    return Whereabouts(thing, frame, rest, before[-1] if before else None, after[0] if after else None)


def direction(offset: Float[np.ndarray, "3"], pose: Float[np.ndarray, "3 4"]) -> str:
    """A way in words, as somebody sees it who looks on: how far, and of the axes those that make up much of it.

    Args:
        offset: The way, world coordinates.
        pose: Camera-to-world (OpenGL) of who looks on.
    """
    local = offset @ pose[:, :3]
    far = float(np.linalg.norm(local))
    order = np.argsort(-np.abs(local))
    words = [_WORDS[axis][int(local[axis] < 0)] for axis in order if abs(local[axis]) >= _ASIDE * far][:2]
    return f"{far:.2g} scene units {' and '.join(words)}"


def spans_told(thing: Thing, clock: Clock, frame: int, max_spans: int = 6) -> str:
    """When a thing rests, is carried, is moved unseen and is out of sight, in words.

    Args:
        thing: The thing.
        clock: Tells when.
        frame: Index of the frame around which spans are told where there are many.
        max_spans: So many spans are told.
    """
    spans = thing.spans(len(clock.frame_ids))
    now = next(i for i, (_, first, last) in enumerate(spans) if first <= frame <= last)
    begin = min(max(now - max_spans // 2, 0), max(len(spans) - max_spans, 0))
    told = [
        f"{state} {clock.told(first)} to {clock.told(last)}" for state, first, last in spans[begin : begin + max_spans]
    ]
    before, after = begin, len(spans) - begin - len(told)
    more = [f"{before} before that"] * (before > 0) + [f"{after} after that"] * (after > 0)
    return ", ".join(told) + (f" ({' and '.join(more)})" if more else "")
