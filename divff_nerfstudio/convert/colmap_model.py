"""What a COLMAP model consists of, and what must fit together in it.

The files are read here and not by pycolmap, which takes gigabytes, hangs or ends the process where they are damaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt64

from divff_nerfstudio.schema import MAX_NUMBER

MODEL_PARAMS = {
    "SIMPLE_PINHOLE": 3, "PINHOLE": 4, "SIMPLE_RADIAL": 4, "RADIAL": 5, "OPENCV": 8, "OPENCV_FISHEYE": 8,
    "FULL_OPENCV": 12, "FOV": 5, "SIMPLE_RADIAL_FISHEYE": 4, "RADIAL_FISHEYE": 5, "THIN_PRISM_FISHEYE": 12,
    "RAD_TAN_THIN_PRISM_FISHEYE": 16, "SIMPLE_DIVISION": 4, "DIVISION": 5, "SIMPLE_FISHEYE": 3, "FISHEYE": 4,
    "EUCM": 6, "EQUIRECTANGULAR": 2,
}  # fmt: skip
"""How many parameters COLMAP's camera models have, in the order of their ids."""
_UNIT_TOLERANCE = 1e-3


class ModelFault(ValueError):  # noqa: N818  (told in a ConvertError, which names the file)
    """What is wrong with a file of a model, in words."""


@dataclass(frozen=True)
class ColmapCamera:
    """A camera as the model describes it."""

    key: int
    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass
class Images:
    """The images of a model, in the order of its file."""

    keys: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    cameras: list[int] = field(default_factory=list)
    """Id of the camera of each."""
    poses: list[Sequence[float]] = field(default_factory=list)
    """World to camera: quaternion, its real part first, and position."""
    seen: list[int] = field(default_factory=list)
    """How many 2D points each has."""
    notes: list[str] = field(default_factory=list)
    """What the user is told."""

    def add(self, key: int, pose: Sequence[float], camera: int, name: str, seen: int) -> None:
        """Adds an image.

        Raises:
            ModelFault: If its name cannot be that of a file.
        """
        if not name or not name.isprintable():
            raise ModelFault(f"it has the image name {name[:80]!r}, which is none")
        self.keys.append(key)
        self.poses.append(pose)
        self.cameras.append(camera)
        self.names.append(name)
        self.seen.append(seen)


@dataclass(frozen=True)
class Points:
    """The points of a model."""

    keys: UInt64[np.ndarray, "p"]
    positions: Float[np.ndarray, "p 3"]
    tracks: np.ndarray
    """Of all points, one behind the other: id of an image, and which of its 2D points."""


def unit_quaternions(quaternions: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    """Quaternions of unit length.

    Raises:
        ModelFault: If one is not about that: zero, not finite, or of other numbers.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(quaternions, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.abs(lengths[:, 0] - 1) < _UNIT_TOLERANCE))
    if len(bad):
        raise ModelFault(f"the quaternion of its {bad[0] + 1}. image is no rotation (its length is not 1)")
    return quaternions / lengths


def _twice(values: Iterable[object]) -> object | None:
    seen: set[object] = set()
    return next((value for value in values if value in seen or seen.add(value)), None)


def check_images(images: Images, cameras: dict[int, ColmapCamera]) -> None:
    """Raises ModelFault where an image is there twice, has no camera, or a pose that is none."""
    for what, values in (("id", images.keys), ("name", images.names)):
        if (value := _twice(values)) is not None:
            raise ModelFault(f"two of its images have the {what} {value}")
    for name, camera in zip(images.names, images.cameras, strict=True):
        if camera not in cameras:
            raise ModelFault(f"its image {name} has the camera {camera}, which is not among the cameras")
    poses = np.array(images.poses, np.float64).reshape(-1, 7)
    unit_quaternions(poses[:, :4])
    if not (np.abs(poses) <= MAX_NUMBER).all():
        raise ModelFault("it has a position that is no finite number")


def check_points(points: Points, images: Images) -> None:
    """Raises ModelFault where a point is there twice, nowhere, or seen by an image that does not exist."""
    if len(np.unique(points.keys)) < len(points.keys):
        raise ModelFault("two of its points have the same id")
    if not (np.abs(points.positions) <= MAX_NUMBER).all():
        raise ModelFault("it has a point whose position is no finite number")
    keys = np.array(images.keys, np.uint64)
    order = np.argsort(keys)
    seen = np.array(images.seen, np.uint64)[order]
    ids, at = points.tracks[:, 0].astype(np.uint64), points.tracks[:, 1].astype(np.uint64)
    place = np.minimum(np.searchsorted(keys[order], ids), max(len(keys) - 1, 0))
    if len(ids) and not len(keys):
        raise ModelFault(f"a point is seen by image {ids[0]}, which is not among the images")
    lost = np.flatnonzero(keys[order][place] != ids) if len(ids) else np.empty(0, np.int64)
    if len(lost):
        raise ModelFault(f"a point is seen by image {ids[lost[0]]}, which is not among the images")
    # Where 2D points were left out of all images, tracks lead to none.
    beyond = np.flatnonzero(at >= seen[place]) if seen.any() and len(ids) else np.empty(0, np.int64)
    if len(beyond):
        i = beyond[0]
        raise ModelFault(f"a point is the 2D point {at[i]} of image {ids[i]}, which has {seen[place][i]}")
