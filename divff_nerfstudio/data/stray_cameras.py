"""Cameras that are not where the others are: a pose that a reconstruction, or a hand, got wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64
from scipy.spatial import KDTree

from divff_nerfstudio.data.frames import SceneError

_FEW = 0.1
"""Share of the frames that may be strays; where it is more, the scene is of several places."""
_GROWTH = 4.0
"""How many times as large as without its strays a scene may be: all that is finer than the rest of it is lost."""
_LEAP = 100.0
"""How many times as far as usual, there and back, no head moves for a single frame."""


def strays(positions: Float[np.ndarray, "N 3"], fars: Float[np.ndarray, "N"]) -> Int64[np.ndarray, "k"]:
    """Cameras that see nothing of what another one sees, where most do.

    Args:
        positions: Of the frames' cameras, scene units.
        fars: Where the room ends for each.

    Returns:
        Indices of the frames; none where there are many of them.
    """
    if len(positions) < 3:
        return np.empty(0, np.int64)
    distances, others = map(np.asarray, KDTree(positions).query(positions, k=2))
    found = np.flatnonzero(distances[:, 1] > fars + fars[others[:, 1]])
    return found if len(found) <= max(1, _FEW * len(positions)) else found[:0]


def leaps(positions: Float[np.ndarray, "N 3"], nears: Float[np.ndarray, "N"]) -> Int64[np.ndarray, "k"]:
    """Cameras that are far away for one frame, in the order of time, and back in the next.

    Args:
        positions: Of the frames' cameras, scene units.
        nears: Where the room begins for each; what is small beside it is no leap.
    """
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    if len(steps) < 3:
        return np.empty(0, np.int64)
    most = max(_LEAP * float(np.median(steps)), float(nears.min()))
    far, near = steps > most, steps < most / 10
    # The first and the last frame have one step only, which may be their neighbour's.
    before, after = np.concatenate((near[1:2], far)), np.concatenate((far, near[-2:-1]))
    return np.flatnonzero(before & after)


def require_together(
    path: Path, frame_ids: Int64[np.ndarray, "N"], positions: Float[np.ndarray, "N 3"], fars: Float[np.ndarray, "N"]
) -> None:
    """Refuses strays so far away that the room, beside them, is a speck of which nothing can be learned.

    Args:
        path: The file of the poses.
        frame_ids: Ids of the frames.
        positions: Of the frames' cameras, scene units.
        fars: Where the room ends for each.

    Raises:
        SceneError: For the farthest one.
    """
    found = strays(positions, fars)
    if not len(found):
        return
    room = np.delete(positions, found, axis=0)
    middle, extent = np.median(room, axis=0), float(np.linalg.norm(np.ptp(room, axis=0)) + 2 * np.median(fars))
    distances = np.linalg.norm(positions[found] - middle, axis=1)
    farthest = int(distances.argmax())
    if distances[farthest] > _GROWTH * extent:
        raise SceneError(
            f"{path} has the pose of frame {frame_ids[found[farthest]]} {distances[farthest]:g} away from the others, "
            f"all of which fit into {extent:g}, so that it would be trained on nearly empty space: mend the pose, or "
            "take the frame out of ids_all and its split."
        )
