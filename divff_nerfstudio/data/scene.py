"""An EPIC-Diff scene folder as a validated index."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from pydantic import Field

from divff_nerfstudio.data.frames import SceneError, decode_frame, frame_digests, frame_size, open_frames
from divff_nerfstudio.data.scene_parts import require_parts
from divff_nerfstudio.data.video_files import usual_name, video_files
from divff_nerfstudio.schema import Number, Record, read_json

__all__ = ["SPLITS", "Scene", "SceneError", "Split", "load_scene"]

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

_PRINCIPAL_POINT_TOLERANCE = 0.15
"""How far, as a share of the frame's size, the principal point may lie from the middle."""
_RIGID_TOLERANCE = 1e-3
_COUNTABLE = 10**12
"""Numbers of frames from here on are faults."""
_MAX_ROWS = 10**6
"""Larger time tables do not fit into memory beside a network."""
_MIN_STEP = 2.5e-7
"""Times closer than that, as shares of the video, are the same in single precision or nearly so."""
_FOCAL_RANGE = (0.02, 500.0)
"""Focal lengths in widths (or heights) of the frame."""
WIDEST_PIXEL = 4.0
"""How many times as wide as high, or the reverse, pixels may be."""
_DEPTH_RANGE = 1e6
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


@dataclass(frozen=True, eq=False)
class Scene:
    """The frames of a scene with their cameras, in ascending order of frame id.

    Frames are addressed by their *index* 0..N-1 everywhere; the frame *id* (a key of ``meta.json``) is the row of the
    published time tables, and the *video number* (in the image's file name) counts the frames of the video.
    """

    root: Path
    """Folder of the scene."""
    frame_ids: Int64[np.ndarray, "N"]
    """Frame ids, ascending."""
    image_paths: tuple[Path, ...]
    """Picture of each frame."""
    camera_to_worlds: Float32[np.ndarray, "N 3 4"]
    """Poses: columns right, up, back, position (OpenGL)."""
    nears: Float32[np.ndarray, "N"]
    """Where the room begins, scene units."""
    fars: Float32[np.ndarray, "N"]
    """Where the room ends, scene units."""
    intrinsics: Float32[np.ndarray, "3 3"]
    """Pinhole camera of all frames, in pixels."""
    width: int
    """Width of the frames in pixels."""
    height: int
    """Height of the frames in pixels."""
    splits: Mapping[Split, Int64[np.ndarray, "k"]]
    """Indices of the frames for training, for evaluation while training, and for the final test."""
    video_numbers: Int64[np.ndarray, "N"]
    """Number of each frame in the video."""
    video_dir: Path
    """Folder of the video's frames ``frame_0000000123.jpg``; it need not exist."""
    _index: Mapping[int, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {int(frame_id): i for i, frame_id in enumerate(self.frame_ids)})

    def __len__(self) -> int:
        return len(self.frame_ids)

    def __deepcopy__(self, memo: dict) -> Scene:
        """Nothing here changes, and nerfstudio copies metadata deeply: share the memory map instead."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "frames"}

    @property
    def name(self) -> str:
        """Name of the scene: that of its folder."""
        return self.root.resolve().name

    def index_of(self, frame_id: int) -> int:
        """Index of the frame with this id.

        Raises:
            SceneError: If the scene has no such frame.
        """
        try:
            return self._index[int(frame_id)]
        except KeyError:
            raise SceneError(
                f"{self.root / 'meta.json'} has no frame {frame_id}: choose one of its ids, "
                f"{self.frame_ids[0]} to {self.frame_ids[-1]}."
            ) from None

    def times(self, rows: int | None = None) -> Float32[np.ndarray, "N"]:
        """Time of each frame, from 0 to 1.

        Args:
            rows: Number of rows of a time table that is indexed by frame id, as the published network's (1000); the
                time is then id / (rows - 1). None spreads the scene's own ids over the whole range.

        Raises:
            SceneError: If an id has no row in the table, or two frames cannot be told apart by their times.
        """
        ids, path = self.frame_ids.astype(np.float64), self.root / "meta.json"
        if rows is None:
            times = ((ids - ids[0]) / (ids[-1] - ids[0])).astype(np.float32)
        elif rows > _MAX_ROWS:
            raise SceneError(
                f"A table of {rows} time rows does not fit into memory (at most {_MAX_ROWS} do): number the frames of "
                f"{path} anew, from 0 on, and set time-rows to more than the largest id."
            )
        elif rows < 2 or ids[-1] > rows - 1:
            remedy = "set time-rows to more than the largest id, or leave it out"
            if ids[-1] >= _MAX_ROWS:
                remedy = "number the frames anew, from 0 on"
            raise SceneError(
                f"{path} has frame id {self.frame_ids[-1]}, which has no row among {rows} time rows: {remedy}."
            )
        else:
            times = (ids / (rows - 1)).astype(np.float32)
        steps = np.diff(times)
        if (steps < _MIN_STEP).any():
            i = int(np.argmin(steps))
            raise SceneError(
                f"{path} has frames {self.frame_ids[i]} and {self.frame_ids[i + 1]} so close, in ids up to "
                f"{self.frame_ids[-1]}, that their times are the same in single precision: number the frames anew."
            )
        return times

    @cached_property
    def frames(self) -> UInt8[np.ndarray, "N height width 3"]:
        """All frames, memory-mapped and read-only; the first access decodes and verifies them.

        Raises:
            SceneError: If a frame is missing, damaged or of another size.
        """
        return open_frames(self.root, self.image_paths, self.width, self.height)

    @cached_property
    def digests(self) -> UInt8[np.ndarray, "N bytes"]:
        """A digest of each frame's pixels, equal where two frames are; no frame is read for them again."""
        return frame_digests(self.frames)

    def frame(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        """A copy of one frame."""
        return np.array(self.frames[index])

    def video_frame_path(self, number: int) -> Path | None:
        """Picture of frame `number` of the video, if there is one."""
        return self._video_files.get(number)

    def video_frame(self, number: int) -> UInt8[np.ndarray, "video_height video_width 3"]:
        """Decodes frame `number` of the video.

        Raises:
            SceneError: If it is missing or damaged.
        """
        return decode_frame(self._video_files.get(number, self.video_dir / usual_name(number)))

    @cached_property
    def video_numbers_available(self) -> Int64[np.ndarray, "M"]:
        """Numbers of the video's frames that exist, ascending."""
        return np.array(list(self._video_files), np.int64)

    @cached_property
    def _video_files(self) -> dict[int, Path]:
        return video_files(self.video_dir)


def load_scene(root: Path | str, check_frames: bool = True, video_dir: Path | str | None = None) -> Scene:
    """Opens an EPIC-Diff scene folder and finds everything that is wrong in it.

    Args:
        root: Folder with ``meta.json`` and ``frames/``.
        check_frames: Decode and verify all frames now (which is remembered, so it costs time once), not at their
            first use.
        video_dir: Folder of the video's frames, if it is not ``ROOT/high_res_video``.

    Raises:
        SceneError: For the first fault, in one sentence with the file and the remedy.
    """
    root = Path(root)
    meta_path = root / "meta.json"
    meta = _read_meta(meta_path)
    require_parts(root)
    frame_ids = _ids(meta_path, meta, "ids_all")
    splits = _splits(meta_path, meta, frame_ids)
    names = [_plain_name(meta_path, name) for name in _per_frame(meta_path, meta, "images", frame_ids)]
    _refuse_twins(meta_path, names, frame_ids)
    nears, fars = _near_far(meta_path, meta, frame_ids)
    poses = _poses(meta_path, _per_frame(meta_path, meta, "poses", frame_ids), frame_ids, float(nears.min()))
    image_paths = tuple(root / "frames" / name for name in names)
    width, height = frame_size(image_paths[0])
    intrinsics = _intrinsics(meta_path, meta, image_paths[0], width, height)
    if video_dir is not None and not Path(video_dir).is_dir():
        raise SceneError(f"{video_dir} is no folder: give the folder of the video's frames, or leave video-dir out.")
    scene = Scene(
        root=root,
        frame_ids=frame_ids,
        image_paths=image_paths,
        camera_to_worlds=poses,
        nears=nears,
        fars=fars,
        intrinsics=intrinsics,
        width=width,
        height=height,
        splits=splits,
        video_numbers=_video_numbers(meta_path, image_paths),
        video_dir=root / "high_res_video" if video_dir is None else Path(video_dir),
    )
    scene.times()
    if check_frames:
        _ = scene.frames
    return scene


def _read_meta(path: Path) -> Meta:
    if not path.exists():
        raise SceneError(
            f"{path} is missing: give the folder of an EPIC-Diff scene (--data, or --scene of `divff import`)."
        )
    return read_json(
        path, Meta, "the index of an EPIC-Diff scene", "mend it, or copy it anew from its source", SceneError
    )


def _ids(path: Path, meta: Meta, key: str) -> np.ndarray:
    ids: list[int] = getattr(meta, key)
    if not ids:
        raise SceneError(f"{path} has no frame in {key}: every split needs at least one.")
    unique = np.unique(np.array(ids, np.int64))
    if len(unique) < len(ids):
        twice = next(i for i in unique if ids.count(int(i)) > 1)
        raise SceneError(f"{path} names frame {twice} twice in {key}: take one away.")
    return unique


def _splits(path: Path, meta: Meta, frame_ids: np.ndarray) -> dict[Split, np.ndarray]:
    ids = {split: _ids(path, meta, f"ids_{split}") for split in SPLITS}
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


def _poses(path: Path, values: list[Any], frame_ids: np.ndarray, near: float) -> np.ndarray:
    poses = np.array(values, np.float64)
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


def _near_far(path: Path, meta: Meta, frame_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    nears, fars = (np.array(_per_frame(path, meta, key, frame_ids), np.float32) for key in ("nears", "fars"))
    bad = np.flatnonzero((nears <= 0) | (nears >= fars) | (fars > _DEPTH_RANGE * nears))
    if len(bad):
        i = bad[0]
        beyond = " and a far of less than a million nears" if 0 < nears[i] < fars[i] else ""
        raise SceneError(
            f"{path} has near {nears[i]:g} and far {fars[i]:g} for frame {frame_ids[i]}: write distances with "
            f"0 < near < far{beyond}."
        )
    return nears, fars


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


def _video_numbers(path: Path, images: Sequence[Path]) -> np.ndarray:
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
    match = re.search(r"(\d+)$", image.stem)
    if match is None or int(match[1]) >= _COUNTABLE:
        raise SceneError(
            f"{path} names the image {image.name}, which ends in no frame number: call it IMG_0000000123.bmp."
        )
    return int(match[1])


def _intrinsics(path: Path, meta: Meta, image: Path, width: int, height: int) -> np.ndarray:
    K = np.array(meta.intrinsics, np.float64)
    if K[0, 0] <= 0 or K[1, 1] <= 0 or K[0, 1] != 0 or K[1, 0] != 0 or not np.array_equal(K[2], (0, 0, 1)):
        raise SceneError(f"{path} has intrinsics that are no pinhole camera: write [[fx,0,cx],[0,fy,cy],[0,0,1]].")
    for key, size in (("image_w", width), ("image_h", height)):
        if getattr(meta, key) not in (None, size):
            raise SceneError(
                f"{image} is {width}x{height} where {path} has {key} = {getattr(meta, key):g}: scale the frames to the "
                "size of the intrinsics, or the intrinsics (and image_w, image_h) to the frames."
            )
    largest = max(width, height)
    if not all(_FOCAL_RANGE[0] * largest <= focal <= _FOCAL_RANGE[1] * largest for focal in (K[0, 0], K[1, 1])):
        raise SceneError(
            f"{path} has focal lengths {K[0, 0]:g} and {K[1, 1]:g} for frames of {width}x{height}, which no camera "
            "has: write them in pixels."
        )
    if max(K[0, 0], K[1, 1]) > WIDEST_PIXEL * min(K[0, 0], K[1, 1]):
        raise SceneError(
            f"{path} has focal lengths {K[0, 0]:g} and {K[1, 1]:g}, which are of one camera only if both are in "
            "pixels: write them so."
        )
    offset = np.abs(K[:2, 2] - (width / 2, height / 2)) / (width, height)
    if (offset > _PRINCIPAL_POINT_TOLERANCE).any():
        raise SceneError(
            f"{image} is {width}x{height}, which does not fit the intrinsics of {path} (principal point "
            f"{K[0, 2]:g}, {K[1, 2]:g}): scale the frames to the intrinsics, or the intrinsics to the frames."
        )
    return K.astype(np.float32)
