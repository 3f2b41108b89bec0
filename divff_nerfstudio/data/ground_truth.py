"""What only the renderer of a scene knows: layers, instances, depth, the room without what moves."""

from __future__ import annotations

import stat
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float32, UInt8
from pydantic import Field

from divff_nerfstudio.data.frames import decode_frame
from divff_nerfstudio.data.instances import Instance
from divff_nerfstudio.data.scene import SceneError, SceneFolder
from divff_nerfstudio.schema import Record, read_json

_LAYERS = ("static", "dynamic", "actor")
_REMEDY = "write the ground truth anew"
_PIECE = 2**20


class _InstanceTable(Record):
    instances: Annotated[list[Instance], Field(min_length=1)]


class GroundTruth:
    """What only the renderer of a scene knows, from ``SCENE/ground_truth``.

    Args:
        scene: The scene.
    """

    def __init__(self, scene: SceneFolder):
        self.scene = scene
        self.root = scene.root / "ground_truth"

    @cached_property
    def instance_table(self) -> list[dict[str, Any]]:
        """Entries of ``instances.json``: id, name, description, layer, movable, motion, ..."""
        path = self.root / "instances.json"
        table = read_json(path, _InstanceTable, "the ground truth's table of instances", _REMEDY, SceneError).instances
        if len({entry.id for entry in table}) < len(table):
            raise SceneError(f"{path} names an id twice: {_REMEDY}.")
        return [
            entry.model_dump(exclude_unset=True, exclude_none=True) | {"description": entry.phrase} for entry in table
        ]

    def layers(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """0 static, 1 object that moves or has moved, 2 actor."""
        return self._read(self._frame(index), "layer")

    def layers_ever(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """As `layers`, where an object counts also before it is first moved."""
        return self._read(self._frame(index), "layer_ever")

    def instances(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """Id in `instance_table` of what each pixel shows."""
        path = self._frame(index)
        values = self._read(path, "instance")
        unknown = np.setdiff1d(values, [entry["id"] for entry in self.instance_table])
        if len(unknown):
            raise SceneError(f"{path} has an instance {unknown[0]}, which instances.json does not name: {_REMEDY}.")
        return values

    def depth(self, index: int) -> Float32[np.ndarray, "height width"]:
        """Distance along the optical axis (not along the ray), scene units."""
        return self._read(self._frame(index), "depth")

    def clean_room(self, index: int) -> UInt8[np.ndarray, "height width 3"] | None:
        """The frame without actor and movable objects, or None where it was not rendered."""
        path = self._background(index).with_suffix(".png")
        return decode_frame(path) if path.is_file() else None

    def _frame(self, index: int) -> Path:
        return self.root / "frames" / f"{self.scene.image_paths[index].stem}.npz"

    def _background(self, index: int) -> Path:
        return self.root / "background" / self.scene.image_paths[index].name

    def _read(self, path: Path, key: str) -> np.ndarray:
        dtype = np.float32 if key == "depth" else np.uint8
        values = read_npz_array(path, key, (self.scene.height, self.scene.width), dtype)
        if key == "depth" and not (np.isfinite(values) & (values >= 0)).all():
            raise SceneError(f"{path} has depths that are no distances: {_REMEDY}.")
        if key.startswith("layer") and values.max() > len(_LAYERS) - 1:
            raise SceneError(f"{path} has a layer {values.max()} where there are {len(_LAYERS)}: {_REMEDY}.")
        return values


def ground_truth(scene: SceneFolder) -> GroundTruth | None:
    """The scene's ground truth, or None for a scene that was filmed."""
    return GroundTruth(scene) if (scene.root / "ground_truth" / "frames").is_dir() else None


def read_npz_array(
    path: Path, key: str, shape: tuple[int, ...], dtype: Any, into: np.ndarray | None = None
) -> np.ndarray:
    """Reads one array of an .npz file that may come from a stranger: nothing larger than expected is unpacked.

    Args:
        path: The file.
        key: Name of the array.
        shape: Its shape.
        dtype: Its type.
        into: An array of that shape and type, to be filled and returned; None: a new one.

    Raises:
        SceneError: If the file is missing or damaged, or the array is another one.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise SceneError(f"{path} is no ordinary file: {_REMEDY}.")
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            version = np.lib.format.read_magic(file)  # pyright: ignore[reportArgumentType]
            if version != (1, 0):
                raise ValueError(f"version {version} of NumPy's format")
            found, fortran, kind = np.lib.format.read_array_header_1_0(file)  # pyright: ignore[reportArgumentType]
            if found != shape:
                raise SceneError(f"{path} has {key} in a size that is not the frames' ({found[:4]}): {_REMEDY}.")
            if kind != np.dtype(dtype) or fortran:
                raise SceneError(f"{path} has {key} as {kind} where {np.dtype(dtype)} is due: {_REMEDY}.")
            values = np.empty(shape, kind) if into is None else into
            room = values.reshape(-1).view(np.uint8).data
            while content := file.read(min(len(room), _PIECE) or 1):
                if len(content) > len(room):
                    break
                room[: len(content)] = content
                room = room[len(content) :]
            if content or len(room):
                raise ValueError("it has another length than it says")
            return values
    except SceneError:
        raise
    except Exception as error:  # damaged archives fail in many ways
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SceneError(f"{path} is missing or damaged ({reason}): {_REMEDY}.") from None
