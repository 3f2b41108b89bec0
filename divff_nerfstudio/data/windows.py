"""Overlapping windows of a long video, each of which is trained with moving layers of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from divff_nerfstudio.data.scene import SceneError, SceneFolder

MIN_FRAMES = 6
"""Training frames of a window, at least."""
MAX_OVERLAP = 0.5
"""Largest part of a window that one of its neighbours may see, too: a moment then belongs to two windows at most."""


@dataclass(frozen=True)
class Windows:
    """The windows of a video, in the order of time."""

    frames: tuple[range, ...]
    """Training frames of each, counted within their split."""
    spans: tuple[tuple[float, float], ...]
    """Times of each window's first and last frame; the first window begins, and the last ends, with the video."""

    def __len__(self) -> int:
        return len(self.frames)

    def of_step(self, step: int) -> int:
        """The window that a training step is of: each in turn, so that a resumed training goes on where it was."""
        return step % len(self)

    def at(self, times: Float[np.ndarray, "*times"]) -> Int[np.ndarray, "*times"]:
        """The windows that tell of moments: where two overlap, up to the middle of what they share the earlier one."""
        borders = [(self.spans[i][1] + self.spans[i + 1][0]) / 2 for i in range(len(self) - 1)]
        return np.searchsorted(np.array(borders), times)


def cut_windows(scene: SceneFolder, times: Float[np.ndarray, "frames"], count: int, overlap: float) -> Windows:
    """Cuts a video into windows of the same number of training frames.

    Args:
        scene: The scene.
        times: Time of each of its frames.
        count: How many windows.
        overlap: Part of a window that each of its neighbours sees, too, up to `MAX_OVERLAP`.

    Raises:
        SceneError: If a window would have fewer training frames than `MIN_FRAMES`.
    """
    train = scene.splits["train"]
    length = len(train) / (count - (count - 1) * overlap)
    starts = [i * (1 - overlap) * length for i in range(count)]
    ends = [start + length for start in starts[:-1]] + [len(train)]
    frames = tuple(range(round(start), round(end)) for start, end in zip(starts, ends, strict=True))
    if (shortest := min(map(len, frames))) < MIN_FRAMES:
        raise SceneError(
            f"{scene.root} has {len(train)} training frames, of which one of {count} windows would get {shortest} and "
            f"needs {MIN_FRAMES}: lower --pipeline.datamanager.windows, or leave it out."
        )
    spans = [(float(times[train[window[0]]]), float(times[train[window[-1]]])) for window in frames]
    spans[0], spans[-1] = (float(times[0]), spans[0][1]), (spans[-1][0], float(times[-1]))
    return Windows(frames, tuple(spans))
