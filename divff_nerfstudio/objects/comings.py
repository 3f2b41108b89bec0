"""What somebody brings into what is filmed, and what somebody carries out of it: in the hand, before a thing is first
put down, or after it is last taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from divff_nerfstudio.objects.moved import HIDDEN, may_move, unlike_it
from divff_nerfstudio.objects.spans import AWAY, Rest, Spots, seen_alone

if TYPE_CHECKING:
    from divff_nerfstudio.objects.things import Thing, Things

_CARRIED = 3
"""So many frames must show a thing in a hand, away from its place."""
_STRAYS = 2
"""So many frames beyond the way may show it otherwise, by a fault."""
_EMPTY = 0.5


def shown_carried(spots: Spots, rests: Sequence[Rest], size: float) -> Bool[np.ndarray, "n"]:
    """Which frames, outside of a thing's rests, show it away from where it rests before and after them, two in a row
    at least.

    Args:
        spots: What the frames show of it, in the order of time.
        rests: Where it lies, and when.
        size: How long it is, scene units.
    """
    found = np.zeros(len(spots), bool)
    for i, frame in enumerate(spots.frames):
        if any(rest.first <= frame <= rest.last for rest in rests):
            continue
        nearest = [rest for rest in rests if rest.last < frame][-1:]
        nearest += [rest for rest in rests if rest.first > frame][:1]
        found[i] = all(spots[i : i + 1].off(rest.point)[0] > AWAY * size for rest in nearest)
    row = np.diff(spots.frames) <= HIDDEN
    return found & (np.append(found[1:] & row, False) | np.append(False, found[:-1] & row))


def brought_in(thing: Thing, rests: Sequence[Rest], things: Things) -> Spots | None:
    """The way on which somebody was seen to bring a thing to the first place that it rests at.

    Nothing else has been seen of it before: the first frames that show it show it in a hand. It lies there afterwards
    without a hand, and where frames show the place before, something else is there.

    Args:
        thing: The thing.
        rests: Where it lies, and when.
        things: All things.

    Returns:
        What the frames show of it from the first that shows it in the hand up to its rest; None if nobody has seen it
        come.
    """
    held = _in_hand(thing, rests, thing.spots.frames < rests[0].first)
    if not len(held) or held[0] > _STRAYS or not _left_empty(thing, rests[0], range(rests[0].first), things):
        return None
    return thing.spots.between(int(thing.spots.frames[held[0]]), rests[0].first - 1)


def carried_out(thing: Thing, rests: Sequence[Rest], things: Things) -> Spots | None:
    """The way on which somebody was seen to carry a thing from the last place that it rests at, never to put it down.

    Args:
        thing: The thing.
        rests: Where it lies, and when.
        things: All things.

    Returns:
        What the frames show of it behind its rest, up to the last that shows it in the hand; None if nobody has seen it
        go.
    """
    last = rests[-1].last
    held = _in_hand(thing, rests, thing.spots.frames > last)
    after = range(last + 1, len(things.cameras))
    beyond = len(thing.spots) - 1 - _STRAYS
    if not len(held) or held[-1] < beyond or not _left_empty(thing, rests[-1], after, things):
        return None
    return thing.spots.between(last + 1, int(thing.spots.frames[held[-1]]))


def _in_hand(thing: Thing, rests: Sequence[Rest], asked: Bool[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
    """Which of the frames that show a thing and are asked show it away from its rests, in a hand.

    None do if they are too few, or if more frames than may err show it without a hand in between: then it lay there,
    and this is not one way.
    """
    shown, touched = shown_carried(thing.spots, rests, thing.size), thing.spots.touched
    held = np.flatnonzero(asked & shown & touched)
    if len(held) < _CARRIED or np.diff(np.flatnonzero(touched[held[0] : held[-1] + 1])).max() - 1 > _STRAYS:
        return held[:0]
    return held


def _left_empty(thing: Thing, rest: Rest, frames: range, things: Things) -> bool:
    """Whether a thing was seen to lie at a place without a hand, and the place was another's before or after."""
    if not seen_alone(rest) or not may_move(thing, [rest], things):
        return False
    empty = unlike_it(thing, rest.points, frames, things)
    return empty is None or empty > _EMPTY
