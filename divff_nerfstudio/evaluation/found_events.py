"""How well events are told: against the motions of objects in the ground truth, as far as frames show them.

What frames do not show at rest before it moves is *brought in*, and its event begins with the first frame that shows
it; what they do not show afterwards is *carried out*, and its event ends with the last. Three frames or more must show
either on its way: of fewer nobody can tell. What is on its way as the video begins, or ends, rests nowhere before, or
after. An event is found if one that
is told of a thing that is this object begins and ends within a second of it and is of the same kind, each counted once;
what is left of those that are told is false.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from divff_nerfstudio.data.moved_objects import MovedObjects
from divff_nerfstudio.evaluation.places import MIN_PIXELS
from divff_nerfstudio.objects.things import Things

SECONDS = 1.0
"""How far an event may be off at its begin and at its end."""
_SURELY = 4
"""What so many frames show of a place is known; what fewer show, may be."""
_ON_THE_WAY = 3
"""So many frames must show on its way what they show at rest on one side only."""


@dataclass(frozen=True)
class KnownEvent:
    """What can be known, or is told, of an object's motion."""

    instance: int
    """Number of the object."""
    start: int
    """Number of the last frame of the video before it; of what is brought in, of the first that shows the object."""
    end: int
    """Number of the first frame after it; of what is carried out, of the last that shows the object."""
    source: bool | None
    """Whether it is known where the object comes from; None: it may be."""
    target: bool | None
    """The same of where it goes."""

    def is_told(self, told: KnownEvent) -> bool:
        """Whether what is told is of this object, and of this kind."""
        sides = (self.source, told.source), (self.target, told.target)
        return told.instance == self.instance and all(own is None or own == other for own, other in sides)


def true_events(
    moved: MovedObjects, frames: Int[np.ndarray, "frames 256"], numbers: Int[np.ndarray, "frames"]
) -> list[KnownEvent]:
    """All motions that frames show: at rest both before and after, or on one of these sides and on the way.

    Args:
        moved: The objects.
        frames: Pixels of each frame that show each instance.
        numbers: The frames' numbers in the video.
    """
    found = []
    for each in moved.objects:
        seen = numbers[frames[:, each.instance.id] >= MIN_PIXELS]
        edges = [-1, *(edge for span in each.instance.motion for edge in span), int(numbers[-1]) + 1]
        for i, (start, end) in enumerate(each.instance.motion):
            # It has rested neither before the video nor after it.
            first, last = start if start > 0 else -1, end if end < each.numbers[-1] else int(numbers[-1]) + 1
            before = seen[(seen >= edges[2 * i]) & (seen <= first)]
            way = seen[(seen > first) & (seen < last)]
            after = seen[(seen >= last) & (seen <= edges[2 * i + 3])]
            sides = bool(len(before)) + bool(len(after))
            if not sides or (sides == 1 and len(way) < _ON_THE_WAY):
                continue
            source, target = (_known(len(rest)) for rest in (before, after))
            found.append(
                KnownEvent(
                    each.instance.id,
                    start if len(before) else int(way[0]),
                    end if len(after) else int(way[-1]),
                    source,
                    target,
                )
            )
    return found


def _known(frames: int) -> bool | None:
    """Whether a place is known that so many frames show; None: it may be."""
    return None if 0 < frames < _SURELY else frames > 0


def score_events(
    things: Things,
    moved: MovedObjects,
    own: Int[np.ndarray, "things"],
    frames: Int[np.ndarray, "frames 256"],
    numbers: Int[np.ndarray, "frames"],
    fps: float,
) -> dict[str, float]:
    """Scores what is told of moves.

    Args:
        things: What was found.
        moved: What truly moves.
        own: The instance that each thing is.
        frames: Pixels of each frame that show each instance.
        numbers: The frames' numbers in the video.
        fps: Frames of the video in a second.

    Returns:
        The scores "events..." of `score_things`.
    """
    true, told = true_events(moved, frames, numbers), _told(things, own, numbers)
    off, used = [], set()
    for event in true:
        near = {
            i: max(abs(event.start - told[i].start), abs(event.end - told[i].end))
            for i in range(len(told))
            if i not in used and event.is_told(told[i])
        }
        best = min(near, key=lambda i: near[i], default=None)
        if best is not None and near[best] <= SECONDS * fps:
            used.add(best)
            off.append((abs(event.start - told[best].start) + abs(event.end - told[best].end)) / 2 / fps)
    scores: dict[str, float] = {"events": len(true), "events_told": len(told)}
    if true:
        scores["events_found"] = len(off) / len(true)
    if told:
        scores["events_false"] = 1 - len(used) / len(told)
    return scores | ({"events_off_s": float(np.median(off))} if off else {})


def _told(things: Things, own: Int[np.ndarray, "things"], numbers: Int[np.ndarray, "frames"]) -> Sequence[KnownEvent]:
    """All events that are told."""
    return [
        KnownEvent(
            int(instance),
            int(numbers[move.start]),
            int(numbers[move.end]),
            move.source is not None,
            move.target is not None,
        )
        for thing, instance in zip(things.things, own, strict=True)
        for move in thing.moves
    ]
