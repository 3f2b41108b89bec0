"""What feature sources look at: the sharpest picture of a frame, and short clips of the video around it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from concurrent.futures import Future
from functools import cached_property
from threading import Lock

import numpy as np
from jaxtyping import Int64, UInt8

from divff_nerfstudio.data.scene import SceneError, SceneFolder

_REMEMBERED = 64
"""Decoded pictures that are kept; the clips of neighbouring frames share them, so that each is decoded once."""


class Pictures:
    """Pictures of a scene, from the frames of the video where there are any, else from the sampled frames.

    Args:
        scene: The scene.
    """

    def __init__(self, scene: SceneFolder):
        self.scene = scene
        self._frame_of_number = {int(number): i for i, number in enumerate(scene.video_numbers)}
        self._decoded: OrderedDict[int, Future[np.ndarray]] = OrderedDict()
        self._lock = Lock()
        self._video_shape: tuple[int, ...] | None = None

    @cached_property
    def has_video(self) -> bool:
        """Whether the scene has video frames between the sampled ones."""
        return len(self.scene.video_numbers_available) > 0

    @cached_property
    def all_in_video(self) -> bool:
        """Whether the video's frames include every sampled one."""
        return bool(np.isin(self.scene.video_numbers, self.scene.video_numbers_available).all())

    @cached_property
    def numbers(self) -> Int64[np.ndarray, "M"]:
        """Video numbers that clips are made of, ascending."""
        return self.scene.video_numbers_available if self.has_video else np.sort(self.scene.video_numbers)

    @cached_property
    def frames_digest(self) -> str:
        """SHA-256 of the frames' pixels."""
        return hashlib.sha256(self.scene.digests.tobytes()).hexdigest()

    @cached_property
    def video_digest(self) -> str:
        """SHA-256 of the frames' pixels, and of the names and sizes of the video's files, which may be many."""
        files = (self.scene.video_frame_path(int(number)) for number in self.scene.video_numbers_available)
        told = "".join(f"\0{file.name}\0{file.stat().st_size}" for file in files if file is not None)
        return hashlib.sha256((self.frames_digest + told).encode()).hexdigest()

    def sharpest(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        """Picture of the frame with index `i`: the video's, which is larger as a rule, if it has all of them."""
        return self._picture(int(self.scene.video_numbers[i])) if self.all_in_video else self.scene.frame(i)

    def clip_numbers(self, i: int, length: int, stride: int) -> list[int]:
        """Video numbers of the clip that starts at the frame with index `i`.

        At the ends of the video the clip is shifted, so that it lies inside as a whole; a number that is missing is
        replaced by the nearest one that there is.

        Args:
            i: Index of the frame.
            length: Pictures of a clip.
            stride: Video frames from one to the next.
        """
        wanted = int(self.scene.video_numbers[i]) + stride * np.arange(length)
        wanted = wanted + max(0, int(self.numbers[0] - wanted[0]))
        wanted = wanted - max(0, int(wanted[-1] - self.numbers[-1]))
        after = np.searchsorted(self.numbers, wanted).clip(0, len(self.numbers) - 1)
        before = (after - 1).clip(0)
        nearer = np.abs(self.numbers[before] - wanted) <= np.abs(self.numbers[after] - wanted)
        return np.where(nearer, self.numbers[before], self.numbers[after]).tolist()

    def clip(self, i: int, length: int, stride: int) -> UInt8[np.ndarray, "length height width 3"]:
        """The clip of `clip_numbers`, as pictures."""
        return np.stack([self._picture(number) for number in self.clip_numbers(i, length, stride)])

    def _picture(self, number: int) -> UInt8[np.ndarray, "height width 3"]:
        """A picture by its number; threads that want one that is being decoded wait for it."""
        with self._lock:
            if known := number in self._decoded:
                self._decoded.move_to_end(number)
            else:
                self._decoded[number] = Future()
                if len(self._decoded) > _REMEMBERED:
                    self._decoded.popitem(last=False)
            found = self._decoded[number]
        if not known:
            try:
                found.set_result(self._decode(number))
            except BaseException as error:
                with self._lock:
                    self._decoded.pop(number, None)
                found.set_exception(error)
        return found.result()

    def _decode(self, number: int) -> UInt8[np.ndarray, "height width 3"]:
        if self.has_video:
            picture = self.scene.video_frame(number)
            with self._lock:
                self._video_shape = usual = self._video_shape or picture.shape
            if picture.shape != usual:
                (height, width, _), (usual_height, usual_width, _) = picture.shape, usual
                raise SceneError(
                    f"{self.scene.video_frame_path(number)} is {width}x{height}, and other frames of the video are "
                    f"{usual_width}x{usual_height}: cut all of them at one size (`divff convert video-frames`)."
                )
            return picture
        return self.scene.frame(self._frame_of_number[number])
