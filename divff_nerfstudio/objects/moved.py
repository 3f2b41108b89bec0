"""Whether a thing has left a place for another, by what the frames show of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt16
from scipy.spatial import KDTree

from divff_nerfstudio.evenly import evenly_spaced
from divff_nerfstudio.objects.pieces import MIN_DYNAMIC
from divff_nerfstudio.objects.sightings import visible
from divff_nerfstudio.objects.spans import Rest, size, taken

if TYPE_CHECKING:
    from divff_nerfstudio.objects.things import Thing, Things

_SEEN = 0.3
_LEFT = 0.5
_SURELY_LEFT = 0.9
_SURELY_DYNAMIC = 0.75
_WHOLE = 0.5
_ALIKE = 2.5
_ROOM = 0.5
_NEAR = 2
_TOUCHED = 0.25
_MAX_LOOKS = 512
HIDDEN = 3
"""Frames that may pass between two that show a thing, as if those between did, too."""


def moved(thing: Thing, before: Rest, after: Rest, things: Things) -> bool:
    """Whether a thing has left a place for another, or another part of the same is seen.

    What the static layer shows at both places has not. It has left if frames that show the old place afterwards show
    something else there. If none shows it, a thing has still moved if it is seen all the way, or elsewhere in between,
    with the actor next to it, and whole at both places, as large here as there; what the picture's border cuts off, or
    what fills the room, has not. Of places that are nearly the same nobody can see that one has been left: it must have
    been seen elsewhere in between, in a hand; what is only pushed a little, or touched, has not moved. Somebody must
    have had it: the actor is next to it as it goes or comes, or nobody has seen it go; unless the dynamic layer is sure
    of it, and the old place is empty: a hand may be next to a handle that is a segment of its own.
    """
    if not may_move(thing, (before, after), things):
        return False
    touched, unseen = _handled(thing, before, after, things)
    handled = touched or unseen
    if not handled and min(_dynamic(thing, rest) for rest in (before, after)) <= _SURELY_DYNAMIC:
        return False
    seen_taken = touched and taken(thing.spots, before, after, thing.size, things.reach)
    away = before.points[KDTree(after.points).query(before.points)[0] > 2 * things.reach]
    if len(away) < _SEEN * len(before.points):
        return seen_taken and _whole(before, after)
    left = unlike_it(thing, away, range(after.first, after.last + 1), things)
    if not handled:
        return left is not None and left > _SURELY_LEFT
    if left is not None:
        return left > _LEFT
    return (seen_taken or (touched and not unseen)) and _whole(before, after)


def may_move(thing: Thing, rests: Sequence[Rest], things: Things) -> bool:
    """Whether the dynamic layer shows enough of a thing at one of some places, and it does not fill the room."""
    return max(_dynamic(thing, rest) for rest in rests) >= MIN_DYNAMIC and thing.size <= _ROOM * things.depth


def _whole(before: Rest, after: Rest) -> bool:
    """Whether the picture's border does not cut a thing off at two places, and it is as large here as there."""
    sizes = size(before.spots), size(after.spots)
    uncut = all(rest.spots.cut.mean() < _WHOLE for rest in (before, after))
    return uncut and max(sizes) < _ALIKE * max(min(sizes), 1e-9)


def _dynamic(thing: Thing, rest: Rest) -> float:
    """The dynamic layer's share of a thing where it rests."""
    return float(thing.sightings.column("dynamic")[np.isin(thing.sightings.column("frame"), rest.spots.frames)].mean())


def _handled(thing: Thing, before: Rest, after: Rest, things: Things) -> tuple[bool, bool]:
    """Whether the actor was next to a thing between two rests, and not only by chance, and whether it was out of sight
    while the place where it had lain was, too: else the actor would have been seen with it."""
    way = thing.spots.between(before.last - _NEAR, after.first + _NEAR)
    hidden = (after.first - before.last) - len(thing.spots.between(before.last + 1, after.first)) > HIDDEN
    if hidden:
        points = _some(before.points)
        between = before.last + 1 + evenly_spaced(after.first - before.last - 1, _MAX_LOOKS)
        away = [_owners(points, frame, things) is None for frame in between]
        hidden = sum(away) > HIDDEN
    return bool(len(way) and way.touched.mean() >= _TOUCHED), hidden


def unlike_it(thing: Thing, points: Float[np.ndarray, "n 3"], frames: range, things: Things) -> float | None:
    """Share of the frames that show a place which show something unlike a thing there; of some hundreds of them, where
    there are more.

    Args:
        thing: The thing.
        points: Points of its surface at the place, world coordinates.
        frames: Indices of the frames that are asked.
        things: All things.

    Returns:
        None where no frame shows the place.
    """
    points = _some(points)
    alike, shown = things.alike(thing), []
    for frame in frames.start + evenly_spaced(len(frames), _MAX_LOOKS):
        if (owners := _owners(points, frame, things)) is not None:
            shown.append(float(np.isin(owners, alike).mean()) < 1 - _LEFT)
    return float(np.mean(shown)) if shown else None


def _owners(points: Float[np.ndarray, "n 3"], frame: int, things: Things) -> UInt16[np.ndarray, "m"] | None:
    """Numbers of the things that a frame shows at points; None if it does not show enough of these."""
    camera = things.cameras[frame]
    _, height, width = things.distances.shape
    pixels, away, seen = visible(points, camera.pose, camera.intrinsics, (height, width))
    rows, columns = pixels.T
    owners = things.owners[frame, rows, columns]
    seen &= (things.distances[frame, rows, columns] > away - 2 * things.reach) & (owners > 0)
    return owners[seen] if seen.mean() > _SEEN else None


def _some(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "m 3"]:
    """Every so manieth of many points."""
    return points[:: max(1, len(points) // 64)]
