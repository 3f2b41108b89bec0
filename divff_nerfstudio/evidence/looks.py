"""The segments of a frame that vote together, and how they look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8

from divff_nerfstudio.data.masks import resize_nearest
from divff_nerfstudio.data.scene import SceneFolder
from divff_nerfstudio.features.outlines import OutlineSegmenterConfig
from divff_nerfstudio.features.store import NO_FEATURE, FeatureStore

_MIN_FEATURE_SPREAD = 0.17
"""Least distance of unit features of one thing (a cosine of 0.985)."""
_MIN_COLOUR_SPREAD = 4.0
"""Least distance of colours of one thing, mean and deviation in CIELAB."""


class Segments(Protocol):
    """What votes together."""

    min_spreads: Sequence[float]
    """Least distance of looks of one thing, of each sort."""

    def split(self, scene: SceneFolder, frame: int) -> tuple[Int[np.ndarray, "height width"], int]:
        """The segment of each pixel of a frame, -1 where there is none, and how many there are."""
        ...

    def looks(
        self, scene: SceneFolder, frame: int, segments: Int[np.ndarray, "height width"]
    ) -> Sequence[Float[np.ndarray, "segments dim"]]:
        """How they look, by each sort of looks."""
        ...


class StoredSegments:
    """Segments with stored features, which look like these and like their colours: an encoder that does not know the
    scene's world takes one thing for another."""

    min_spreads: Sequence[float] = (_MIN_FEATURE_SPREAD, _MIN_COLOUR_SPREAD)

    def __init__(self, store: FeatureStore):
        self._store = store

    def split(self, scene: SceneFolder, frame: int) -> tuple[Int[np.ndarray, "height width"], int]:
        """See `Segments`."""
        index, table = self._store.frame_features(frame)
        local = resize_nearest(index, scene.height, scene.width)
        return np.where(local == NO_FEATURE, -1, local.astype(np.int32)), len(table)

    def looks(
        self, scene: SceneFolder, frame: int, segments: Int[np.ndarray, "height width"]
    ) -> Sequence[Float[np.ndarray, "segments dim"]]:
        """Features of unit length, and colours."""
        table = self._store.frame_features(frame)[1]
        features = table / np.maximum(np.linalg.norm(table, axis=-1, keepdims=True), 1e-6)
        return features, _colours(scene.frame(frame), segments, len(table))


class OutlinedRegions:
    """Regions between learned outlines, which look like their colours."""

    min_spreads: Sequence[float] = (_MIN_COLOUR_SPREAD,)

    def __init__(self) -> None:
        self._segmenter = OutlineSegmenterConfig().setup()

    def split(self, scene: SceneFolder, frame: int) -> tuple[Int[np.ndarray, "height width"], int]:
        """See `Segments`."""
        segments = self._segmenter.segment(scene.frame(frame))
        return segments, int(segments.max()) + 1

    def looks(
        self, scene: SceneFolder, frame: int, segments: Int[np.ndarray, "height width"]
    ) -> Sequence[Float[np.ndarray, "segments dim"]]:
        """Colours."""
        return (_colours(scene.frame(frame), segments, int(segments.max()) + 1),)


def _colours(
    picture: UInt8[np.ndarray, "height width 3"], segments: Int[np.ndarray, "height width"], number: int
) -> Float[np.ndarray, "segments 6"]:
    """Mean and deviation of each segment's colours in CIELAB."""
    from skimage.color import rgb2lab

    inside = segments >= 0
    colours, places = rgb2lab(picture)[inside], segments[inside]
    pixels = np.maximum(np.bincount(places, minlength=number), 1)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(places, channel, number) / pixels for channel in values.T], -1)

    means = mean(colours)
    return np.concatenate((means, mean((colours - means[places]) ** 2) ** 0.5), -1)
