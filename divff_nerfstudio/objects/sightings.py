"""What single frames show: each stored segment with its place in the room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt16
from scipy.spatial import KDTree

from divff_nerfstudio.evenly import evenly_spaced
from divff_nerfstudio.features.store import NO_FEATURE

MIN_PIXELS = 6
"""Segments of fewer pixels are left out: their depth is that of their surroundings."""
SAMPLES = 48
"""So many points of a segment are kept, at most."""
_ACTOR = 0.5
_NEXT_TO = 0.1
"""The actor is next to what is nearer to it than this share of the distance from the camera."""
_SPREAD = 4.0


FeaturesOf = Callable[[int], Float[np.ndarray, "n dim"]]
"""Gives a frame's part of the store by its index, embeddings of unit length; it is asked again and again, so that not
all need to be in memory at once."""


@dataclass(frozen=True, eq=False)
class Sighting:
    """A segment of a frame."""

    frame: int
    """Index of the frame."""
    row: int
    """Row of the frame's part of the store."""
    points: Float[np.ndarray, "samples 3"]
    """Points of its surface, world coordinates."""
    centre: Float[np.ndarray, "3"]
    """Median of its points."""
    box: tuple[int, int, int, int]
    """First row and column, and those behind the last, in the frame."""
    area: int
    """Its pixels in the frame."""
    depth: float
    """Median distance from the camera, scene units."""
    cut: bool
    """Whether the picture's border cuts it off."""
    touched: bool
    """Whether the actor is next to it."""
    actor: float
    """The actor's share of its pixels."""
    dynamic: float
    """The same of the dynamic layer."""


@dataclass(frozen=True, eq=False)
class Look:
    """A frame: what it shows where."""

    frame: int
    """Index of the frame."""
    index: UInt16[np.ndarray, "height width"]
    """Row of the frame's part of the store at each pixel; 65535: none."""
    points: Float[np.ndarray, "height width 3"]
    """Where each pixel's ray meets the scene, world coordinates."""
    distance: Float[np.ndarray, "height width"]
    """How far that is from the camera."""
    actor: Float[np.ndarray, "height width"]
    """The actor's share of each pixel."""
    dynamic: Float[np.ndarray, "height width"]
    """The same of the dynamic layer."""
    eye: Float[np.ndarray, "3"]
    """Where the camera is, world coordinates."""


def sightings(look: Look) -> list[Sighting]:
    """The segments of a frame.

    Args:
        look: The frame.
    """
    height, width = look.index.shape
    flat = look.index.ravel()
    actor = look.actor > _ACTOR
    near = _next_to(look, actor).ravel()
    order = np.argsort(flat, kind="stable")
    starts = np.flatnonzero(np.diff(flat[order], prepend=-1))
    found = []
    for pixels in np.split(order, starts[1:]):
        row = int(flat[pixels[0]])
        if row == NO_FEATURE or len(pixels) < MIN_PIXELS:
            continue
        rows, columns = np.divmod(pixels, width)
        box = int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1
        inside = _inside(look.index, rows, columns)
        distance = look.distance.ravel()[inside]
        points = look.points.reshape(-1, 3)[_near_median(inside, distance)].astype(np.float32)
        found.append(
            Sighting(
                frame=look.frame,
                row=row,
                points=points,
                centre=np.median(points, axis=0),
                box=box,
                area=len(pixels),
                depth=float(np.median(distance)),
                cut=_cut(box, height, width),
                touched=bool(near[pixels].any()),
                actor=float(look.actor.ravel()[pixels].mean()),
                dynamic=float(look.dynamic.ravel()[pixels].mean()),
            )
        )
    return found


def _inside(index: np.ndarray, rows: Int[np.ndarray, "n"], columns: Int[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
    """Flat indices of the pixels all of whose neighbours belong to the segment, too, if enough do: depth is soft at
    edges."""
    height, width = index.shape
    kept = np.ones(len(rows), bool)
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        near = np.clip(rows + down, 0, height - 1), np.clip(columns + right, 0, width - 1)
        kept &= index[near] == index[rows, columns]
    pixels = rows * width + columns
    return pixels[kept] if kept.sum() >= MIN_PIXELS else pixels


def _near_median(pixels: Int[np.ndarray, "n"], distance: Float[np.ndarray, "n"]) -> Int[np.ndarray, "samples"]:
    """Evenly spaced pixels of a segment, without those whose depth is far off the others'."""
    middle = np.median(distance)
    off = np.abs(distance - middle)
    kept = pixels[off <= max(_SPREAD * float(np.median(off)), 0.02 * middle)]
    return kept[evenly_spaced(len(kept), SAMPLES)]


def _cut(box: Sequence[int], height: int, width: int) -> bool:
    return box[0] == 0 or box[1] == 0 or box[2] == height or box[3] == width


def _next_to(look: Look, actor: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Which pixels show the actor, or something that has it next to it: in the room, not only in the picture."""
    near = actor.copy()
    if actor.any() and not actor.all():
        bound = _NEXT_TO * look.distance[~actor]
        away, _ = KDTree(look.points[actor]).query(look.points[~actor], distance_upper_bound=float(bound.max()))
        near[~actor] = away < bound
    return near


def visible(
    points: Float[np.ndarray, "n 3"],
    camera_to_world: Float[np.ndarray, "3 4"],
    intrinsics: Float[np.ndarray, "3 3"],
    size: tuple[int, int],
) -> tuple[Int[np.ndarray, "n 2"], Float[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Where points are in a picture.

    Args:
        points: World coordinates.
        camera_to_world: Pose (OpenGL).
        intrinsics: Pinhole camera, in pixels.
        size: Height and width of the picture.

    Returns:
        Row and column of each, how far it is from the camera, and whether it is in the picture.
    """
    local = (points - camera_to_world[:, 3]) @ camera_to_world[:, :3]
    ahead = -local[:, 2]
    safe = np.maximum(ahead, 1e-9)
    columns = np.floor(intrinsics[0, 2] + intrinsics[0, 0] * local[:, 0] / safe)
    rows = np.floor(intrinsics[1, 2] - intrinsics[1, 1] * local[:, 1] / safe)
    seen = (ahead > 0) & (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
    pixels = np.stack([np.where(seen, rows, 0), np.where(seen, columns, 0)], -1).astype(np.int64)
    return pixels, np.linalg.norm(local, axis=-1), seen
