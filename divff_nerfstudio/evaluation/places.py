"""Where moved objects truly are, and through which frames one can look at a place of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras

from divff_nerfstudio.data.annotations import GroundTruth
from divff_nerfstudio.data.moved_objects import MovedObject, MovedObjects
from divff_nerfstudio.data.scene import SceneFolder
from divff_nerfstudio.evaluation.surroundings import projected, true_points
from divff_nerfstudio.evenly import evenly_spaced

MIN_PIXELS = 6
"""A thing of fewer pixels in a frame does not count as seen there."""
_SAME_PLACE = 0.05
"""Share of its longest side that no corner of its box may be displaced by where a thing stands as before."""
_SURFACE_FRAMES, _SURFACE_POINTS = 64, 4000
_SHORTLIST = 8
_MIN_WINDOW = 8

Pose = Float[np.ndarray, "3 4"]


@dataclass(frozen=True)
class PlacePixels:
    """Pixels of a frame that show a place of an object."""

    frame: int
    """Index of the frame whose camera looks."""
    top: int
    """First row of the part of the picture that they lie in."""
    left: int
    """Its first column."""
    pixels: Bool[np.ndarray, "rows columns"]
    """Which pixels of that part they are."""

    @classmethod
    def at(cls, frame: int, mask: Bool[np.ndarray, "height width"]) -> PlacePixels:
        """The pixels of a mask, with the smallest part of the picture that holds them."""
        (top, bottom), (left, right) = (
            _interval(np.flatnonzero(mask.any(axis)), mask.shape[1 - axis]) for axis in (1, 0)
        )
        return cls(frame, top, left, mask[top:bottom, left:right])

    def camera(self, whole: Cameras) -> Cameras:
        """One camera of the whole picture, narrowed to that part."""
        height, width = self.pixels.shape
        return Cameras(
            camera_to_worlds=whole.camera_to_worlds,
            fx=whole.fx,
            fy=whole.fy,
            cx=whole.cx - self.left,
            cy=whole.cy - self.top,
            width=width,
            height=height,
            times=whole.times,
        )


class Places:
    """Surfaces and places of a scene's moved objects.

    Args:
        scene: The scene.
        truth: What each pixel of its frames shows.
        moved: Its moved objects.
        viewpoints: Indices of the frames that may be looked through, besides the one that is asked about.
    """

    def __init__(self, scene: SceneFolder, truth: GroundTruth, moved: MovedObjects, viewpoints: Sequence[int]):
        self.scene, self.truth, self.moved, self.viewpoints = scene, truth, moved, tuple(viewpoints)
        self.instances = lru_cache(maxsize=64)(truth.instances)
        self._surfaces: dict[int, Float[np.ndarray, "points 3"]] = {}

    @cached_property
    def pixel_counts(self) -> Float[np.ndarray, "frames 256"]:
        """How many pixels each instance has in each frame."""
        return np.stack([np.bincount(self.truth.instances(i).ravel(), minlength=256) for i in range(len(self.scene))])

    def pose(self, thing: MovedObject, index: int) -> Pose:
        """Where an object is in a frame of the scene."""
        return thing.pose(int(self.scene.video_numbers[index]))

    def seen(self, thing: MovedObject, index: int) -> bool:
        """Whether a frame shows enough of an object."""
        return bool(self.pixel_counts[index, thing.instance.id] >= MIN_PIXELS)

    def mask(self, thing: MovedObject, index: int) -> Bool[np.ndarray, "height width"]:
        """The pixels of a frame that show an object."""
        return self.instances(index) == thing.instance.id

    def surface(self, thing: MovedObject) -> Float[np.ndarray, "points 3"]:
        """Points of an object's surface that frames show, in its own frame, scene units; none if no frame does."""
        number = thing.instance.id
        if number not in self._surfaces:
            shown = np.flatnonzero(self.pixel_counts[:, number] >= MIN_PIXELS)
            found = [np.empty((0, 3))]
            for index in shown[evenly_spaced(len(shown), _SURFACE_FRAMES)].tolist():
                points = true_points(self.scene, index, self.truth.depth(index))[self.mask(thing, index)]
                found.append(_into(self.pose(thing, index), points))
            points = np.concatenate(found)
            few = np.random.default_rng(0).permutation(len(points))[:_SURFACE_POINTS]
            self._surfaces[number] = points[few]
        return self._surfaces[number]

    def box(self, thing: MovedObject) -> Float[np.ndarray, "2 3"]:
        """Least and largest coordinates of an object's surface, in its own frame."""
        points = self.surface(thing)
        return np.stack((points.min(0), points.max(0)))

    def length(self, thing: MovedObject) -> float:
        """Longest side of an object's box, scene units."""
        low, high = self.box(thing)
        return float((high - low).max())

    def distance(self, thing: MovedObject, pose: Pose, points: Float[np.ndarray, "*bs 3"]) -> Float[np.ndarray, "*bs"]:
        """How far world points lie outside of an object's box at a pose, scene units; 0 inside."""
        low, high = self.box(thing)
        own = _into(pose, points)
        return np.linalg.norm(np.maximum(np.maximum(low - own, own - high), 0), axis=-1)

    def same(self, thing: MovedObject, first: Pose, second: Pose) -> bool:
        """Whether an object stands at two poses in the same way."""
        low, high = self.box(thing)
        corners = np.where(np.indices((2, 2, 2)).reshape(3, 8).T == 0, low, high)
        displaced = np.linalg.norm(_out_of(first, corners) - _out_of(second, corners), axis=-1)
        return bool(displaced.max() <= _SAME_PLACE * self.length(thing))

    def overlap(self, thing: MovedObject, first: Pose, second: Pose) -> bool:
        """Whether an object at one pose reaches into its own box at another."""
        return bool((self.distance(thing, second, _out_of(first, self.surface(thing))) == 0).any())

    def looks(self, thing: MovedObject, pose: Pose, asked: int, max_looks: int) -> list[PlacePixels]:
        """Frames in which an object stands at a pose, and their pixels that show it there.

        At the time of another frame such a pixel shows the place still, unless a moved object has come between.
        Where one may have, the pixel is left out; so is what the object itself covers if it stands elsewhere then.

        Args:
            thing: The object.
            pose: The place.
            asked: Index of the frame whose time is asked about; it comes first where it shows the object there.
            max_looks: How many looks at most.
        """
        counts = self.pixel_counts[:, thing.instance.id]
        there = [
            index
            for index in sorted({*self.viewpoints, asked})
            if counts[index] >= MIN_PIXELS and self.same(thing, self.pose(thing, index), pose)
        ]
        first = [asked] if asked in there else []
        large = [i for i in there if i != asked and 2 * counts[i] >= max(counts[i] for i in there)]
        shortlist = [large[i] for i in evenly_spaced(len(large), _SHORTLIST)]
        masks = {index: self._clear(thing, index, asked) for index in [*first, *shortlist]}
        usable = {index: mask for index, mask in masks.items() if mask.sum() >= MIN_PIXELS}
        rest = [index for index in shortlist if index in usable]
        wanted = max_looks - len(first)
        chosen = [rest[i] for i in evenly_spaced(len(rest), wanted)] if wanted > 0 else []
        return [PlacePixels.at(index, usable[index]) for index in [*first, *chosen] if index in usable]

    def _clear(self, thing: MovedObject, index: int, asked: int) -> Bool[np.ndarray, "height width"]:
        """Pixels of a frame that show an object, and that no moved object covers at the time of another frame."""
        mask = self.mask(thing, index).copy()
        for other in self.moved.objects:
            if index == asked or not len(self.surface(other)):
                continue
            then = self.pose(other, asked)
            if not self.same(other, self.pose(other, index), then):
                mask &= ~self._covered(other, then, index)
        return mask

    def _covered(self, thing: MovedObject, pose: Pose, index: int) -> Bool[np.ndarray, "height width"]:
        """The rectangle of a frame's picture that an object at a pose may cover."""
        columns, rows, ahead = projected(self.scene, index, _out_of(pose, self.surface(thing)))
        covered = np.zeros((self.scene.height, self.scene.width), bool)
        if not (ahead > 0).any():
            return covered
        (left, right), (top, bottom) = (
            (int(np.clip(edge, 0, size)) for edge in (np.floor(found.min()) - 1, np.ceil(found.max()) + 1))
            for found, size in ((columns[ahead > 0], self.scene.width), (rows[ahead > 0], self.scene.height))
        )
        covered[top:bottom, left:right] = True
        return covered


def around(mask: Bool[np.ndarray, "height width"]) -> tuple[slice, slice]:
    """The rows and columns near a mask: those of its bounding box, and on each side as many as its longer side has."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    margin = max(int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) + 1
    return tuple(slice(max(0, int(found[0]) - margin), int(found[-1]) + 1 + margin) for found in (rows, columns))  # pyright: ignore[reportReturnType]


def _interval(found: np.ndarray, size: int) -> tuple[int, int]:
    """First and behind last of some indices, at least so far apart that every method renders it."""
    short = max(0, min(_MIN_WINDOW, size) - (int(found[-1]) + 1 - int(found[0])))
    low = min(max(0, int(found[0]) - short // 2), size - min(_MIN_WINDOW, size))
    return low, max(int(found[-1]) + 1, low + min(_MIN_WINDOW, size))


def _into(pose: Pose, points: Float[np.ndarray, "*bs 3"]) -> Float[np.ndarray, "*bs 3"]:
    """World points in an object's own frame."""
    return (points - pose[:, 3]) @ pose[:, :3]


def _out_of(pose: Pose, points: Float[np.ndarray, "*bs 3"]) -> Float[np.ndarray, "*bs 3"]:
    """Points of an object's own frame in the world."""
    return points @ pose[:, :3].T + pose[:, 3]
