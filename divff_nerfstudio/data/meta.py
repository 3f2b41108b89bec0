"""``meta.json`` of an EPIC-Diff scene folder: its schema, and what of it makes no scene, told in one sentence each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from divff_nerfstudio.data.frames import SceneError
from divff_nerfstudio.data.picture_names import decoded
from divff_nerfstudio.schema import Number, Record, read_json

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

_PRINCIPAL_POINT_TOLERANCE = 0.15
"""How far, as a share of the frame's size, the principal point may lie from the middle."""
_RIGID_TOLERANCE = 1e-3
_COUNTABLE = 10**12
"""Numbers of frames from here on are faults."""
_FOCAL_RANGE = (0.02, 500.0)
"""Focal lengths in widths (or heights) of the frame."""
WIDEST_PIXEL = 4.0
"""How many times as wide as high, or the reverse, pixels may be."""
DEPTH_RANGE = 1e6
"""How many times as far as the near the far may be."""
_FINENESS = 1e-3
"""How finely, as a share of the smallest near, single precision must tell positions apart."""

_FrameId = Annotated[int, Field(ge=0, lt=_COUNTABLE)]
_Row = tuple[Number, Number, Number]
_PoseRow = tuple[Number, Number, Number, Number]


class Meta(Record):
    """``meta.json`` of a scene folder; frame ids are texts where they are keys."""

    ids_all: list[_FrameId]
    ids_train: list[_FrameId]
    ids_val: list[_FrameId]
    ids_test: list[_FrameId]
    images: dict[str, str]
    """File names in ``frames/``."""
    poses: dict[str, tuple[_PoseRow, _PoseRow, _PoseRow]]
    """Camera to world, 3x4: columns right, up, back, position."""
    nears: dict[str, Number]
    fars: dict[str, Number]
    intrinsics: tuple[_Row, _Row, _Row]
    """Pinhole camera in pixels."""
    image_w: Number | None = None
    image_h: Number | None = None


def read_meta(path: Path) -> Meta:
    """Reads the index of a scene."""
    root = path.parent
    if not path.exists():
        what = f"{path} is missing"
        if not root.is_dir():
            what = f"{root} {'is a file' if root.exists() else 'does not exist'}"
        raise SceneError(f"{what}: give the folder of an EPIC-Diff scene (--data, or --scene of `divff import`).")
    return read_json(
        path, Meta, "the index of an EPIC-Diff scene", "mend it, or copy it anew from its source", SceneError
    )


def ids_of(path: Path, meta: Meta, key: str) -> np.ndarray:
    """The frame ids of a key, ascending."""
    ids: list[int] = getattr(meta, key)
    if not ids:
        raise SceneError(f"{path} has no frame in {key}: every split needs at least one.")
    unique = np.unique(np.array(ids, np.int64))
    if len(unique) < len(ids):
        twice = next(i for i in unique if ids.count(int(i)) > 1)
        raise SceneError(f"{path} names frame {twice} twice in {key}: take one away.")
    return unique


def splits_of(path: Path, meta: Meta, frame_ids: np.ndarray) -> dict[Split, np.ndarray]:
    """Indices of each split's frames."""
    ids = {split: ids_of(path, meta, f"ids_{split}") for split in SPLITS}
    for split in SPLITS:
        unknown = np.setdiff1d(ids[split], frame_ids)
        if len(unknown):
            raise SceneError(f"{path} has frame {unknown[0]} in ids_{split} but not in ids_all: add it there.")
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        both = np.intersect1d(ids[first], ids[second])
        if len(both):
            raise SceneError(
                f"{path} has frame {both[0]} in ids_{first} and in ids_{second}: leave it in one of them, or the "
                "evaluation is on frames that were trained on."
            )
    return {split: np.searchsorted(frame_ids, ids[split]) for split in SPLITS}


def _per_frame(path: Path, meta: Meta, key: str, frame_ids: np.ndarray) -> list[Any]:
    values = getattr(meta, key)
    missing = [int(i) for i in frame_ids if str(i) not in values]
    if missing:
        raise SceneError(f"{path} has no entry in {key} for frame {missing[0]}: add it, or take the id out of ids_all.")
    return [values[str(i)] for i in frame_ids]


def poses_of(path: Path, meta: Meta, frame_ids: np.ndarray, near: float) -> np.ndarray:
    """The frames' poses, of which each is a rotation and a position."""
    poses = np.array(_per_frame(path, meta, "poses", frame_ids), np.float64)
    rotations = poses[:, :, :3]
    error = np.abs(rotations.transpose(0, 2, 1) @ rotations - np.eye(3)).max((1, 2))
    bad = np.flatnonzero((error > _RIGID_TOLERANCE) | (np.linalg.det(rotations) < 0))
    if len(bad):
        raise SceneError(
            f"{path} has a pose of frame {frame_ids[bad[0]]} whose first three columns are no rotation: write a "
            "camera-to-world matrix with columns right, up, back, without scale."
        )
    _require_fineness(path, poses[:, :, 3], near)
    return poses.astype(np.float32)


def _require_fineness(path: Path, positions: np.ndarray, near: float) -> None:
    """Refuses positions that single precision cannot tell apart by what is small beside the nearest near."""

    def step(places: np.ndarray) -> float:
        return float(np.spacing(np.abs(places).max().astype(np.float32)))

    finest = step(positions)
    if finest <= _FINENESS * near:
        return
    if step(positions - positions.mean(0)) <= _FINENESS * near:
        raise SceneError(
            f"{path} has poses so far from the origin (up to {np.abs(positions).max():g}) that single precision "
            f"moves them by {finest:g}, where the nearest near is {near:g}: subtract one position from all poses."
        )
    raise SceneError(
        f"{path} has a near of {near:g}, which is too small beside positions of up to {np.abs(positions).max():g}, "
        f"which single precision moves by {finest:g}: give nears at which there is something to see."
    )


def near_far(path: Path, meta: Meta, frame_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the room begins and ends for each frame."""
    nears, fars = (np.array(_per_frame(path, meta, key, frame_ids), np.float32) for key in ("nears", "fars"))
    bad = np.flatnonzero((nears <= 0) | (nears >= fars) | (fars > DEPTH_RANGE * nears))
    if len(bad):
        i = bad[0]
        beyond = " and a far of less than a million nears" if 0 < nears[i] < fars[i] else ""
        raise SceneError(
            f"{path} has near {nears[i]:g} and far {fars[i]:g} for frame {frame_ids[i]}: write distances with "
            f"0 < near < far{beyond}."
        )
    return nears, fars


def names_of(path: Path, meta: Meta, frame_ids: np.ndarray) -> list[str]:
    """The pictures' names, a plain one and another one for each frame."""
    names = [_plain_name(path, name) for name in _per_frame(path, meta, "images", frame_ids)]
    _refuse_twins(path, names, frame_ids)
    return names


def _plain_name(path: Path, name: str) -> str:
    if not name or name != Path(name).name or len(name) > 200 or not name.isprintable():
        shown = name if len(name) <= 80 else name[:77] + "..."
        raise SceneError(f"{path} has {shown!r} in images, which is no plain file name: name a file in frames/.")
    return name


def _refuse_twins(path: Path, names: list[str], frame_ids: np.ndarray) -> None:
    """One picture under two ids would be trained on and tested."""
    seen: dict[str, int] = {}
    for name, frame_id in zip(names, frame_ids.tolist(), strict=True):
        if (other := seen.setdefault(name, frame_id)) != frame_id:
            raise SceneError(f"{path} names {name} for frames {other} and {frame_id}: give each frame its own picture.")


def video_numbers_of(path: Path, images: Sequence[Path]) -> np.ndarray:
    """Numbers in the video; two pictures of one number would be taken for one frame by all that is told by number."""
    seen: dict[int, Path] = {}
    for image in images:
        number = _video_number(path, image)
        if (other := seen.setdefault(number, image)) is not image:
            raise SceneError(
                f"{path} names {other.name} and {image.name}, both of which are frame {number} of the video by their "
                "names: give each its own number."
            )
    return np.array(list(seen), np.int64)


def _video_number(path: Path, image: Path) -> int:
    match = re.search(r"(\d+)$", decoded(image.stem))
    if match is None or int(match[1]) >= _COUNTABLE:
        raise SceneError(
            f"{path} names the image {image.name}, which ends in no frame number: call it IMG_0000000123.bmp."
        )
    return int(match[1])


def intrinsics_of(path: Path, meta: Meta, image: Path, width: int, height: int) -> np.ndarray:
    """The camera, which fits the frames' size."""
    K = np.array(meta.intrinsics, np.float64)
    if K[0, 0] <= 0 or K[1, 1] <= 0 or K[0, 1] != 0 or K[1, 0] != 0 or not np.array_equal(K[2], (0, 0, 1)):
        raise SceneError(f"{path} has intrinsics that are no pinhole camera: write [[fx,0,cx],[0,fy,cy],[0,0,1]].")
    for key, size in (("image_w", width), ("image_h", height)):
        if getattr(meta, key) not in (None, size):
            raise SceneError(
                f"{image} is {width}x{height} where {path} has {key} = {getattr(meta, key):g}: scale the frames to the "
                "size of the intrinsics, or the intrinsics (and image_w, image_h) to the frames."
            )
    if fault := focal_fault(float(K[0, 0]), float(K[1, 1]), (width, height)):
        raise SceneError(f"{path} has {fault}: write them in pixels.")
    offset = np.abs(K[:2, 2] - (width / 2, height / 2)) / (width, height)
    if (offset > _PRINCIPAL_POINT_TOLERANCE).any():
        raise SceneError(
            f"{image} is {width}x{height}, which does not fit the intrinsics of {path} (principal point "
            f"{K[0, 2]:g}, {K[1, 2]:g}): scale the frames to the intrinsics, or the intrinsics to the frames."
        )
    return K.astype(np.float32)


def focal_fault(fx: float, fy: float, size: tuple[int, int]) -> str | None:
    """Why no camera has focal lengths, in pixels, for pictures of a width and height; None where one may."""
    if not all(_FOCAL_RANGE[0] <= focal / max(size) <= _FOCAL_RANGE[1] for focal in (fx, fy)):
        return f"focal lengths {fx:g} and {fy:g} for frames of {size[0]}x{size[1]}, which no camera has"
    if max(fx, fy) > WIDEST_PIXEL * min(fx, fy):
        return f"focal lengths {fx:g} and {fy:g}, which are of one camera only if both are in pixels"
    return None
