"""What a renderer knows of moved objects: their names, when they move, and their poses in every frame of the video.

It lies in ``SCENE/ground_truth``: ``instances.json`` (what there is, and when it moves, in numbers of the video's
frames), ``object_poses.npz`` (for each object, by name, object-to-world in every frame of the video) and
``video_poses.npz`` ("frame": those frames' numbers).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64

from divff_nerfstudio.arrays import ArrayFaultError, read_arrays
from divff_nerfstudio.data.instances import UNLABELLED, Instance
from divff_nerfstudio.data.scene import SceneError, SceneFolder
from divff_nerfstudio.schema import MAX_NUMBER, Positive, Record, read_json

_OBJECT = 1
_RIGID_TOLERANCE = 1e-3
_REMEDY = "write the ground truth anew"


class InstanceTable(Record):
    """``instances.json``, as far as it is about places."""

    metres_to_scene_units: Positive
    """Scene units in a metre."""
    instances: tuple[Instance, ...]
    """What there is."""


@dataclass(frozen=True)
class MovedObject:
    """An object that is moved at some time."""

    instance: Instance
    """What it is, and when it moves."""
    poses: Float[np.ndarray, "video 3 4"]
    """Object-to-world in every frame of the video, scene units."""
    numbers: Int64[np.ndarray, "video"]
    """Numbers of those frames, ascending."""

    def pose(self, number: int) -> Float[np.ndarray, "3 4"]:
        """Where it is in a frame of the video."""
        return self.poses[int(np.searchsorted(self.numbers, number))]

    def has_moved(self, number: int) -> bool:
        """Whether its first motion has begun in a frame of the video."""
        return number > self.instance.motion[0][0]

    def former_places(self, number: int) -> list[Float[np.ndarray, "3 4"]]:
        """Poses at which it rested before the motions that have begun in a frame of the video."""
        return [self.pose(start) for start, _ in self.instance.motion if start < number]


@dataclass(frozen=True)
class MovedObjects:
    """All objects of a scene that are moved, and what else there is."""

    objects: tuple[MovedObject, ...]
    """In the order of the table."""
    others: tuple[Instance, ...]
    """The table's other entries, without the unlabelled."""
    metres_to_scene_units: float
    """Scene units in a metre."""

    def phrases_beside(self, thing: MovedObject) -> list[str]:
        """Names and descriptions of everything but one object, each once."""
        entries = [*self.others, *(other.instance for other in self.objects if other is not thing)]
        return list(dict.fromkeys(text for entry in entries for text in (entry.name, entry.phrase)))

    def centimetres(self, length: float) -> float:
        """A length in scene units, in centimetres."""
        return 100 * length / self.metres_to_scene_units


def moved_objects(scene: SceneFolder) -> MovedObjects | None:
    """Reads what a scene's ground truth says of its moved objects.

    Args:
        scene: The scene.

    Returns:
        The objects, or None where the scene has no ``object_poses.npz``.

    Raises:
        SceneError: If the files are damaged, disagree, or are of other frames than the scene's.
    """
    root = scene.root / "ground_truth"
    path = root / "object_poses.npz"
    if not path.exists():
        return None
    table = read_json(root / "instances.json", InstanceTable, "a table of a renderer's instances", _REMEDY, SceneError)
    numbers = _numbers(root / "video_poses.npz", scene)
    poses = _arrays(path)
    moved = [entry for entry in table.instances if entry.layer == _OBJECT and entry.motion]
    twice = [entry.name for entry in moved if sum(other.name == entry.name for other in table.instances) > 1]
    if twice:
        raise SceneError(f"{root / 'instances.json'} has two instances called {twice[0]}: {_REMEDY}.")
    for entry in moved:
        _check_motion(root / "instances.json", entry, numbers)
    found = tuple(MovedObject(entry, _poses(path, poses, entry, len(numbers)), numbers) for entry in moved)
    others = tuple(entry for entry in table.instances if entry not in moved and entry.name != UNLABELLED)
    return MovedObjects(found, others, table.metres_to_scene_units)


def _numbers(path: Path, scene: SceneFolder) -> np.ndarray:
    """Numbers of the video's frames that the rows of the poses belong to."""
    numbers = _arrays(path).get("frame")
    if numbers is None or numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not len(numbers):
        raise SceneError(f'{path} has no row of whole numbers in "frame": {_REMEDY}.')
    numbers = numbers.astype(np.int64)
    if (np.diff(numbers) <= 0).any():
        raise SceneError(f'{path} has frames in "frame" that do not ascend: {_REMEDY}.')
    missing = np.setdiff1d(scene.video_numbers, numbers)
    if len(missing):
        raise SceneError(f"{path} has no pose of frame {missing[0]} of the video, which {scene.root} has: {_REMEDY}.")
    return numbers


def _check_motion(path: Path, entry: Instance, numbers: np.ndarray) -> None:
    edges = [edge for span in entry.motion for edge in span]
    if edges != sorted(edges) or not np.isin(edges, numbers).all():
        raise SceneError(f"{path} has a motion of {entry.name} that is in no frames of the video: {_REMEDY}.")


def _poses(path: Path, poses: Mapping[str, np.ndarray], entry: Instance, count: int) -> np.ndarray:
    """Poses of an object."""
    own = poses.get(entry.name)
    if own is None:
        raise SceneError(f"{path} has no poses of {entry.name}, which is moved: {_REMEDY}.")
    if own.shape != (count, 3, 4) or own.dtype.kind != "f" or not (np.abs(own) <= MAX_NUMBER).all():
        raise SceneError(
            f"{path} has no 3x4 matrix of finite numbers of {entry.name} for each of {count} frames: {_REMEDY}."
        )
    turn = own[:, :, :3].astype(np.float64)
    error = np.abs(turn.transpose(0, 2, 1) @ turn - np.eye(3)).max()
    if error > _RIGID_TOLERANCE or (np.linalg.det(turn) < 0).any():
        raise SceneError(f"{path} has a pose of {entry.name} whose first three columns are no rotation: {_REMEDY}.")
    return own.astype(np.float64)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an NPZ file."""
    try:
        return read_arrays(path)
    except OSError as error:
        raise SceneError(f"{path} is missing or cannot be read ({error.strerror or error}): {_REMEDY}.") from None
    except ArrayFaultError as fault:
        raise SceneError(f"{path} {fault}: {_REMEDY}.") from None
