"""Choosing the frames of a video that a reconstruction is made from: evenly in motion, and sharp."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from divff_nerfstudio.convert.names import ConvertError
from divff_nerfstudio.convert.pictures import rgb

WIDTH = 320
"""Of the pictures that motion and sharpness are measured on."""
_CORNERS = 150
_REST = 0.05
"""Share of the mean motion that every frame counts at least, so that a head at rest is seen now and then, too."""


def measure(frames: Iterable[tuple[int, Any]]) -> Float[np.ndarray, "n 2"]:
    """How far the picture has moved since the frame before, and how sharp it is.

    Motion is the median length of the optical flow of corners (Lucas-Kanade), in widths of the picture; sharpness the
    variance of the Laplacian. Two frames are held at a time.

    Args:
        frames: Frames of a video in order, as `VideoFrames.decode` gives them.
    """
    import cv2

    measured, before = [], None
    for _, frame in frames:
        height = max(16, round(WIDTH * frame.height / frame.width))
        grey = cv2.cvtColor(rgb(frame, WIDTH, height), cv2.COLOR_RGB2GRAY)
        sharpness = float(cv2.Laplacian(grey, cv2.CV_32F).var())
        measured.append((0.0 if before is None else _motion(before, grey), sharpness))
        before = grey
    return np.array(measured, np.float64).reshape(-1, 2)


def _motion(before: np.ndarray, grey: np.ndarray) -> float:
    import cv2

    corners = cv2.goodFeaturesToTrack(before, _CORNERS, 0.01, 7)
    if before.shape != grey.shape or corners is None:
        return 0.0
    moved, found, _ = cv2.calcOpticalFlowPyrLK(before, grey, corners, np.empty_like(corners))
    lengths = np.linalg.norm((moved - corners).reshape(-1, 2), axis=1)[found.reshape(-1) == 1]
    # Where no corner is found again, the picture has moved farther than can be followed.
    return float(np.median(lengths)) / WIDTH if len(lengths) else 0.25


def choose(measured: Float[np.ndarray, "n 2"], count: int) -> Int64[np.ndarray, "k"]:
    """The sharpest frame in each of `count` stretches of equal motion.

    Args:
        measured: Motion and sharpness of each frame.
        count: Number of frames to choose; all where there are fewer.

    Returns:
        Their numbers, ascending, the first frame of the video being 1; fewer where the picture moves by more than a
        stretch from one frame to the next.
    """
    motion, sharpness = measured.T
    if len(motion) <= count:
        return np.arange(1, len(motion) + 1)
    path = np.cumsum(np.maximum(motion, max(_REST * float(motion.mean()), 1e-9)))
    stretch = np.minimum((path / path[-1] * count).astype(np.int64), count - 1)
    order = np.lexsort((-sharpness, stretch))
    first = np.concatenate(([True], np.diff(stretch[order]) > 0))
    return np.sort(order[first]) + 1


def choose_from_video(video: Any, path: Path, count: int, fewest: int) -> Int64[np.ndarray, "k"]:
    """Numbers of the frames of a video that a reconstruction is made from.

    Args:
        video: What is decoded, as `VideoFrames`.
        path: What is named in errors.
        count: Number of frames to choose.
        fewest: Frames that it needs at least.

    Raises:
        ConvertError: If the video cannot be read, is too short or does not move.
    """
    from rich.progress import track

    measured = measure(track(video.decode(), description="Looking for sharp frames"))
    if len(measured) < fewest:
        raise ConvertError(
            f"{path} has {len(measured)} of the frames that are asked for where {fewest} are needed: give a longer "
            "one, or ask for more of it."
        )
    if measured[:, 0].sum() < 0.05:
        raise ConvertError(
            f"{path} hardly moves, and only a moving camera tells where things are: give a video of somebody who walks."
        )
    return choose(measured, count)
