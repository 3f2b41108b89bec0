"""Whether poses and pictures belong together: a point seen in two frames lies where the poses let it lie.

A still point that is seen at a pixel lies somewhere on the pixel's ray, from near on, and is seen in another frame on
the ray's picture there. Points are found again by SIFT. Where few of them lie there, and most would if the poses were
taken for what other tools mean by them, they have been read wrongly: such poses train to a fog, hours later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.spatial.transform import Rotation

from divff_nerfstudio.data.scene import SceneError, SceneFolder
from divff_nerfstudio.evenly import evenly_spaced

_WIDTH = 456
"""Frames are looked at in this width, at most."""
_ANCHORS = 24
"""Frames, evenly over the video, whose points are looked for in a frame after them."""
_STEPS = (1, 2, 4, 8, 16)
"""How many frames after them: the first where points have moved far enough."""
_MOVED = 0.04
"""Median way of the points between two frames that is far enough to tell, as a share of the width."""
_RATIO = 0.75
"""Lowe's ratio: how much more alike than the second most alike the same point must look."""
_FEWEST = 12
"""Points that two frames must share."""
_STILL = 0.02
"""Way of a point, as a share of the width, up to which it tells nothing: it may be fixed to the camera."""
_ENOUGH, _PAIRS = 100, 4
"""Points in all, and pairs of frames, by which anything is said."""
_TOLERANCE = 0.01
"""How far from the ray's picture a point may lie, as a share of the width."""
_NEAREST = 0.3
"""Where rays begin, in units of near."""
_AHEAD = 1e-3
"""Of a ray in another camera, per unit of its depth, what is not yet ahead of that."""
_MOST, _FEW = 0.5, 0.35
"""Share of the points, beyond chance, from which on poses may be the right ones, and up to which they are told to be
wrong."""
_BETTER = 1.5
"""How many times as many points must speak for what poses may mean otherwise."""
_SHIFTS = (-5, -4, -3, -2, -1, 1, 2, 3, 4, 5)
"""Frames by which poses may be late."""

_FLIP = np.diag((1.0, -1.0, -1.0))
"""From OpenCV's axes (right, down, forward) to OpenGL's (right, up, back), and back."""

Rotations = Float[np.ndarray, "N 3 3"]
Positions = Float[np.ndarray, "N 3"]
Reading = Callable[[Rotations, Positions], tuple[Rotations, Positions]]
"""How poses that mean something else are read from what was taken for camera-to-world (OpenGL)."""


def _inverse(rotations: Rotations, positions: Positions) -> tuple[Rotations, Positions]:
    turned = rotations.transpose(0, 2, 1)
    return turned, -np.einsum("nij,nj->ni", turned, positions)


def _in_axes(axes: Float[np.ndarray, "3 3"]) -> Reading:
    return lambda rotations, positions: (rotations @ axes, positions)


def _inverse_in_opencv(rotations: Rotations, positions: Positions) -> tuple[Rotations, Positions]:
    rotations, positions = _inverse(rotations, positions)
    return rotations @ _FLIP, positions


def _late(count: int) -> Reading:
    """Poses of frames so many before or after."""

    def read(rotations: Rotations, positions: Positions) -> tuple[Rotations, Positions]:
        own = np.clip(np.arange(len(rotations)) + count, 0, len(rotations) - 1)
        return rotations[own], positions[own]

    return read


def _quaternions(shift: int) -> Reading:
    """World-to-camera quaternions (OpenCV's axes) whose four numbers are read from another one on."""

    def read(rotations: Rotations, positions: Positions) -> tuple[Rotations, Positions]:
        rotations, positions = _inverse(rotations @ _FLIP, positions)
        rotations = Rotation.from_quat(np.roll(Rotation.from_matrix(rotations).as_quat(), shift, axis=1)).as_matrix()
        rotations, positions = _inverse(rotations, positions)
        return rotations @ _FLIP, positions

    return read


_OTHERWISE: dict[str, Reading] = {
    "world-to-camera matrices": _inverse,
    "world-to-camera matrices in OpenCV's axes (right, down, forward)": _inverse_in_opencv,
    "matrices in OpenCV's axes (right, down, forward)": _in_axes(_FLIP),
    "matrices in LLFF's axes (down, right, back)": _in_axes(np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])),
    "poses of pictures that are upside down": _in_axes(np.diag((-1.0, -1.0, 1.0))),
    "matrices with transposed rotations": lambda rotations, positions: (rotations.transpose(0, 2, 1), positions),
    "quaternions x, y, z, w that were read as w, x, y, z": _quaternions(1),
    "quaternions w, x, y, z that were read as x, y, z, w": _quaternions(-1),
    **{f"poses of frames {abs(k)} {'later' if k < 0 else 'earlier'}": _late(k) for k in _SHIFTS},
    "poses in the opposite order": lambda rotations, positions: (rotations[::-1], positions[::-1]),
}
"""What poses may be instead, and how they are then read."""


@dataclass(frozen=True, eq=False)
class _Shared:
    """Points that two frames share."""

    first: int
    second: int
    """Indices of the frames."""
    seen: Float[np.ndarray, "m 2"]
    seen_again: Float[np.ndarray, "m 2"]
    """Pixels in both."""


@dataclass(frozen=True)
class PoseFit:
    """How well a scene's poses fit its pictures."""

    points: int
    """Points that were found again."""
    share: float
    """Of them, how many lie where the poses let them lie, beyond chance; 1 where there are too few to tell."""
    meaning: str | None = None
    """What the poses fit as, where they do not fit as what they should be."""

    @property
    def fits(self) -> bool:
        """Whether nothing speaks against the poses."""
        return self.meaning is None and self.share > _FEW

    def told(self) -> str:
        """What speaks against them, and what to do."""
        found = f"Of {self.points} points that frames share, {self.share:.0%} lie where the poses say"
        if self.meaning is None:
            return (
                f"{found}: look whether focal length and size are those of the pictures, and whether each picture has "
                "its own pose."
            )
        return (
            f"{found}, but most would if these are {self.meaning}: give each picture its own camera-to-world matrix in "
            "OpenGL's axes (right, up, back)."
        )


def pose_fit(scene: SceneFolder) -> PoseFit:
    """Compares a scene's poses with its pictures, in a second or two, however long the video.

    Args:
        scene: Its frames are read here and there.
    """
    shared = list(_Matches(scene))
    count = sum(len(pair.seen) for pair in shared)
    if count < _ENOUGH or len(shared) < _PAIRS:
        return PoseFit(count, 1.0)
    poses = scene.camera_to_worlds.astype(np.float64)
    rotations, positions = poses[:, :, :3], poses[:, :, 3]
    share = _share(shared, rotations, positions, scene)
    shares = {name: _share(shared, *read(rotations, positions), scene) for name, read in _OTHERWISE.items()}
    best = max(shares, key=shares.__getitem__)
    return PoseFit(count, share, best if shares[best] >= max(_MOST, _BETTER * share) else None)


def require_fitting(scene: SceneFolder, poses: Path, remedy: str) -> str | None:
    """Refuses poses that are plainly something else than they should be.

    Args:
        scene: The scene.
        poses: The file that they come from, to be named.
        remedy: What leaves this out.

    Returns:
        What the user should know; None if nothing speaks against them.

    Raises:
        SceneError: If they fit the pictures as something else.
    """
    fit = pose_fit(scene)
    if fit.fits:
        return None
    if fit.meaning is None:
        return f"{poses} may not belong to the pictures. {fit.told()}"
    raise SceneError(f"{poses} does not fit the pictures. {fit.told()} ({remedy} leaves this out.)")


class _Matches:
    """Finds points of frames again in frames after them."""

    def __init__(self, scene: SceneFolder):
        import cv2

        self.scene = scene
        self.scale = min(1.0, _WIDTH / scene.width)
        self._sift = cv2.SIFT.create(1000)
        self._matcher = cv2.BFMatcher(cv2.NORM_L2)
        self._looks: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}

    def __iter__(self) -> Iterator[_Shared]:
        for first in evenly_spaced(len(self.scene), _ANCHORS):
            pairs = (self._between(int(first), int(first) + step) for step in _STEPS if first + step < len(self.scene))
            moved = next((pair for pair in pairs if pair is not None), None)
            if moved is not None:
                yield moved

    def _between(self, first: int, second: int) -> _Shared | None:
        """What two frames share; nothing where it has hardly moved."""
        (seen, looks), (seen_again, looks_again) = self._look(first), self._look(second)
        if looks is None or looks_again is None or min(len(looks), len(looks_again)) < 2:
            return None
        ways = self._alike(looks, looks_again), self._alike(looks_again, looks)
        good = [(i, j) for i, j in ways[0].items() if ways[1].get(j) == i]
        if len(good) < _FEWEST:
            return None
        here, there = seen[[i for i, _ in good]], seen_again[[j for _, j in good]]
        way = np.linalg.norm(there - here, axis=1) / self.scene.width
        if np.median(way) < _MOVED:
            return None
        return _Shared(first, second, here[way > _STILL], there[way > _STILL])

    def _alike(self, looks: np.ndarray, others: np.ndarray) -> dict[int, int]:
        """Points that look like one other point much more than like all the rest."""
        pairs = self._matcher.knnMatch(looks, others, k=2)
        return {
            best.queryIdx: best.trainIdx for best, next_best in pairs if best.distance < _RATIO * next_best.distance
        }

    def _look(self, index: int) -> tuple[Float[np.ndarray, "k 2"], np.ndarray | None]:
        if index not in self._looks:
            import cv2

            picture: UInt8[np.ndarray, "h w 3"] = self.scene.frame(index)
            if self.scale < 1:
                picture = cv2.resize(picture, None, fx=self.scale, fy=self.scale, interpolation=cv2.INTER_AREA)
            found, looks = self._sift.detectAndCompute(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), None)  # pyright: ignore
            places = np.array([point.pt for point in found], np.float64).reshape(-1, 2)
            self._looks[index] = (places + 0.5) / self.scale, looks
        return self._looks[index]


def _share(shared: list[_Shared], rotations: Rotations, positions: Positions, scene: SceneFolder) -> float:
    """Share of the points that lie where poses let them lie, beyond those that would if they were others of a frame.

    Where a ray's picture is a line across the frame, that is most of them."""
    right, chance = (
        np.concatenate([_possible(pair, other, rotations, positions, scene) for pair in shared]).mean()
        for other in (0, 1)
    )
    return float(max(0.0, (right - chance) / max(1 - chance, 1e-9)))


def _possible(
    pair: _Shared, other: int, rotations: Rotations, positions: Positions, scene: SceneFolder
) -> Bool[np.ndarray, "m"]:
    """Which points lie on the pictures of their rays, in both directions, or of the rays so many points before."""
    seen_again = np.roll(pair.seen_again, other * (len(pair.seen_again) // 2), axis=0)
    there = _on_ray(pair.seen, seen_again, pair.first, pair.second, rotations, positions, scene)
    back = _on_ray(seen_again, pair.seen, pair.second, pair.first, rotations, positions, scene)
    return there & back


def _on_ray(
    seen: Float[np.ndarray, "m 2"],
    seen_again: Float[np.ndarray, "m 2"],
    first: int,
    second: int,
    rotations: Rotations,
    positions: Positions,
    scene: SceneFolder,
) -> Bool[np.ndarray, "m"]:
    """Which pixels of the second frame lie where rays through those of the first one are seen: on a piece of a line."""
    intrinsics = scene.intrinsics.astype(np.float64)
    rays = np.c_[seen, np.ones(len(seen))] @ np.linalg.inv(intrinsics).T @ _FLIP
    far = rays @ (_FLIP @ rotations[second].T @ rotations[first]).T
    shift = _FLIP @ rotations[second].T @ (positions[first] - positions[second])
    # At 1 / depth n, far + n * shift is where the ray is in the second camera, up to its scale: ahead of it from
    # `begin` to `end`.
    turns = (_AHEAD - far[:, 2]) / (shift[2] if abs(shift[2]) > 1e-12 else 1e-12)
    nearest = 1 / (_NEAREST * float(scene.nears[first]))
    behind = far[:, 2] < _AHEAD
    begin = np.where(behind, turns, 0.0)
    end = np.where(~behind & (turns > 0), np.minimum(turns, nearest), nearest)
    ends = [_pixels(far + n[:, None] * shift, intrinsics) for n in (begin, end)]
    way = ends[1] - ends[0]
    along = ((seen_again - ends[0]) * way).sum(-1) / np.maximum((way**2).sum(-1), 1e-12)
    distance = np.linalg.norm(seen_again - ends[0] - np.clip(along, 0, 1)[:, None] * way, axis=-1)
    seen_at_all = (begin >= 0) & (begin <= end)
    return seen_at_all & (distance < max(_TOLERANCE * scene.width, 1.0))


def _pixels(points: Float[np.ndarray, "m 3"], intrinsics: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "m 2"]:
    """Where points (right, down, forward) are seen."""
    projected = points @ intrinsics.T
    return projected[:, :2] / np.maximum(projected[:, 2:], _AHEAD)
