"""An EPIC-Diff scene folder as a validated index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from divff_nerfstudio.data.frames import SceneError, decode_frame, frame_digests, frame_size, open_frames
from divff_nerfstudio.data.meta import (
    SPLITS,
    Split,
    ids_of,
    intrinsics_of,
    names_of,
    near_far,
    poses_of,
    read_meta,
    splits_of,
    video_numbers_of,
)
from divff_nerfstudio.data.scene_parts import require_parts
from divff_nerfstudio.data.stray_cameras import require_together
from divff_nerfstudio.data.video_files import video_files, video_name

__all__ = ["SPLITS", "SceneError", "SceneFolder", "Split", "load_scene"]

_MAX_ROWS = 10**6
"""Larger time tables do not fit into memory beside a network."""
_MIN_STEP = 2.5e-7
"""Times closer than that, as shares of the video, are the same in single precision or nearly so."""


@dataclass(frozen=True, eq=False)
class SceneFolder:
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

    def __deepcopy__(self, memo: dict) -> SceneFolder:
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
        return decode_frame(self._video_files.get(number, self.video_dir / video_name(number)))

    @cached_property
    def video_numbers_available(self) -> Int64[np.ndarray, "M"]:
        """Numbers of the video's frames that exist, ascending."""
        return np.array(list(self._video_files), np.int64)

    @cached_property
    def _video_files(self) -> dict[int, Path]:
        return video_files(self.video_dir)


def load_scene(root: Path | str, check_frames: bool = True, video_dir: Path | str | None = None) -> SceneFolder:
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
    meta = read_meta(meta_path)
    require_parts(root)
    frame_ids = ids_of(meta_path, meta, "ids_all")
    splits = splits_of(meta_path, meta, frame_ids)
    names = names_of(meta_path, meta, frame_ids)
    nears, fars = near_far(meta_path, meta, frame_ids)
    poses = poses_of(meta_path, meta, frame_ids, float(nears.min()))
    require_together(meta_path, frame_ids, poses[:, :, 3].astype(np.float64), fars.astype(np.float64))
    image_paths = tuple(root / "frames" / name for name in names)
    width, height = frame_size(image_paths[0])
    intrinsics = intrinsics_of(meta_path, meta, image_paths[0], width, height)
    if video_dir is not None and not Path(video_dir).is_dir():
        raise SceneError(f"{video_dir} is no folder: give the folder of the video's frames, or leave video-dir out.")
    scene = SceneFolder(
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
        video_numbers=video_numbers_of(meta_path, image_paths),
        video_dir=root / "high_res_video" if video_dir is None else Path(video_dir),
    )
    scene.times()
    if check_frames:
        _ = scene.frames
    return scene
