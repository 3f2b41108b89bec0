"""Whether the frames of a video are those that a scene's sampled frames were taken from, and if not, how far off."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

from divff_nerfstudio.convert.names import ConvertError
from divff_nerfstudio.data.scene import SceneFolder
from divff_nerfstudio.evenly import evenly_spaced

CHECKED = 24
"""Sampled frames that are compared."""
REACH = 60
"""Frames that a video may be off, to either side, for the offset to be found."""
EARLY = 4
"""Compared frames after which a wrong video is recognised, before all of it is read."""
SIMILAR = 0.8
"""Correlation below which two pictures are not the same."""
CLEARLY = 0.01
"""How much better another offset must be than none; neighbouring frames of a head at rest are all alike."""
_WIDTH, _HEIGHT = 64, 36


def thumbnail(picture: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "pixels"]:
    """A small grey picture of mean 0 and length 1, so that the product of two is their correlation."""
    import cv2

    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    if grey.shape[1] > _WIDTH:
        grey = cv2.resize(grey, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA)
    else:
        grey = cv2.resize(grey, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_LINEAR)
    values = grey.astype(np.float32).ravel()
    values -= values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-6)


@dataclass(frozen=True)
class Found:
    """The best offset, and how alike the pictures are with it and without."""

    offset: int
    """Frames by which the video's number is larger than the scene's for the same picture."""
    correlation: float
    """Mean correlation at that offset."""
    unmoved: float
    """Mean correlation at offset 0."""


class Alignment:
    """Compares a few sampled frames of a scene with the video's frames around their numbers."""

    def __init__(self, scene: SceneFolder, source: Path, given: int = 0):
        self.scene = scene
        self.source = source
        self.given = given
        chosen = evenly_spaced(len(scene), CHECKED)
        self.numbers: Int64[np.ndarray, "k"] = scene.video_numbers[chosen]
        self.samples = np.stack([thumbnail(scene.frame(int(i))) for i in chosen])
        self.correlations: Float[np.ndarray, "k offsets"] = np.full((len(chosen), 2 * REACH + 1), np.nan)
        self._looked_early = False

    def wants(self, number: int) -> bool:
        """Whether a frame of the video is compared with anything."""
        return bool((np.abs(self.numbers - number) <= REACH).any())

    def add(self, number: int, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """Compares a frame of the video, which come in ascending order.

        Raises:
            ConvertError: As soon as it is clear that the video does not fit.
        """
        near = np.flatnonzero(np.abs(self.numbers - number) <= REACH)
        self.correlations[near, number - self.numbers[near] + REACH] = self.samples[near] @ thumbnail(picture)
        if not self._looked_early and (number - self.numbers >= REACH).sum() >= min(EARLY, len(self.numbers)):
            self._looked_early = True
            self.check()

    def found(self) -> Found:
        """The best offset so far."""
        seen = np.isfinite(self.correlations)
        rows = seen.any(1)
        counts = seen[rows].sum(0)
        means = np.nansum(self.correlations[rows], axis=0) / np.maximum(counts, 1)
        means[counts < max(1, rows.sum() // 2)] = -1
        best = int(np.argmax(means))
        return Found(best - REACH, float(means[best]), float(means[REACH]))

    def check(self) -> None:
        """Compares what has come so far.

        Raises:
            ConvertError: If the pictures do not line up; the sentence says the offset at which they do.
        """
        if not np.isfinite(self.correlations).any():
            raise ConvertError(
                f"{self.source} has none of the frames {self.numbers[0]} to {self.numbers[-1]} of {self.scene.root}: "
                "give the video that the scene was taken from."
            )
        found = self.found()
        if found.correlation < SIMILAR:
            raise ConvertError(
                f"{self.source} does not show what {self.scene.root} shows (correlation {found.correlation:.2f} at "
                f"best, within {REACH} frames): give the video that the scene was taken from."
            )
        if found.offset and found.correlation > found.unmoved + CLEARLY:
            raise ConvertError(
                f"{self.source} is off by {found.offset:+d} frames from {self.scene.root} (correlation "
                f"{found.correlation:.3f} there, {found.unmoved:.3f} as it is): if that is right, give --offset "
                f"{self.given + found.offset}."
            )
