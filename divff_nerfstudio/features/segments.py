"""What a segmenter is, and one without learned weights: regions of one colour, put together to things."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from jaxtyping import Bool, Float, Int, UInt8
from nerfstudio.configs.base_config import InstantiateConfig
from PIL import Image
from pydantic import Field

from divff_nerfstudio.data.masks import resize_nearest
from divff_nerfstudio.schema import Positive, Share, Weight


class Segmenter(ABC):
    """Finds segments in a picture."""

    ahead: bool = False
    """Whether several threads may ask for segments while the features of earlier frames are computed."""

    def to(self, device: torch.device) -> Segmenter:
        """Moves the segmenter's model, if it has one."""
        del device
        return self

    @abstractmethod
    def segment(self, picture: UInt8[np.ndarray, "height width 3"]) -> Int[np.ndarray, "height width"]:
        """The segment of each pixel, from 0 on; -1 where there is none."""

    def masks(self, picture: UInt8[np.ndarray, "height width 3"]) -> Bool[np.ndarray, "n height width"]:
        """The whole of each segment, hidden parts too; a pixel of several belongs to the last of them.

        Those of `segment`, unless a segmenter finds segments that overlap.
        """
        segments = self.segment(picture)
        return segments[None] == np.arange(segments.max() + 1)[:, None, None]

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Name and options, for the store's header."""


@dataclass
class ColourSegmenterConfig(InstantiateConfig):
    """Options of the segmenter that goes by colour."""

    _target: tyro.conf.Suppress[type] = field(default_factory=lambda: ColourSegmenter)
    """target class to instantiate"""
    working_height: Annotated[int, Field(ge=16, le=8192)] = 256
    """Pictures are segmented at this height; the other lengths in pixels refer to it."""
    scale: Positive = 400.0
    """How readily regions grow (Felzenszwalb and Huttenlocher 2004, their k) at the working height; in lower pictures,
    whose edges enlarging has softened, it is reduced in proportion."""
    sigma: Annotated[float, Field(ge=0, le=100)] = 0.8
    """Standard deviation of the blur before, in pixels."""
    min_size: Annotated[int, Field(ge=0, le=2**26)] = 150
    """Smallest region, in pixels."""
    surface_share: Share = 0.01
    """A region with more than this share of the picture is a surface of the room; no other region is added to it unless
    it has nearly the same colour."""
    same_colour: Weight = 7.0
    """Neighbours whose mean colours differ by less than this (CIELAB, lightness counts 0.6) become one."""
    enclosed: Share = 0.5
    """A region that shares more than this part of its outline with one neighbour belongs to it (a label on a can, the
    inside of a cup)."""
    thin: Weight = 1.5
    """A region with less than this many pixels per pixel of its outline is no thing of its own but the blur at an edge,
    or a shadow's rim; it belongs to the neighbour most like it."""


class ColourSegmenter(Segmenter):
    """Graph-based segmentation, whose regions are then merged by colour and by enclosure.

    Args:
        config: Options.
    """

    ahead = True

    def __init__(self, config: ColourSegmenterConfig):
        self.config = config

    def settings(self) -> dict[str, Any]:
        """Name and options."""
        options = asdict(self.config)
        del options["_target"]
        return {"name": "colour", **options}

    def segment(self, picture: UInt8[np.ndarray, "height width 3"]) -> Int[np.ndarray, "height width"]:
        """The segment of each pixel; every pixel has one."""
        from skimage.color import rgb2lab
        from skimage.segmentation import felzenszwalb

        height, width = picture.shape[:2]
        working = (max(1, round(width * self.config.working_height / height)), self.config.working_height)
        resized = np.asarray(Image.fromarray(picture).resize(working, Image.Resampling.BILINEAR))
        scale = self.config.scale * min(1.0, height / self.config.working_height)
        regions = felzenszwalb(resized, scale=scale, sigma=self.config.sigma, min_size=self.config.min_size)
        regions = self._merge(regions, rgb2lab(resized) * np.array([0.6, 1.0, 1.0]))
        return np.unique(resize_nearest(regions, height, width), return_inverse=True)[1].reshape(height, width)

    def _merge(self, regions: Int[np.ndarray, "h w"], colours: Float[np.ndarray, "h w 3"]) -> Int[np.ndarray, "h w"]:
        """Merges pairs of neighbours, the smallest regions first, until none is left that belongs together."""
        while True:
            regions = np.unique(regions, return_inverse=True)[1].reshape(regions.shape)
            count = int(regions.max()) + 1
            area = np.bincount(regions.ravel(), minlength=count)
            sums = [np.bincount(regions.ravel(), colours[..., k].ravel(), count) for k in range(3)]
            mean = np.stack(sums, axis=-1) / area[:, None]
            shared, outline = self._outlines(regions, count)
            distance = np.linalg.norm(mean[:, None] - mean[None], axis=-1)
            together = self._belongs(shared, distance, area > self.config.surface_share * regions.size)
            together |= (area < self.config.thin * outline)[:, None] & (shared > 0)
            score = np.where(together, shared + 1 / (1 + distance), -1)
            target, taken = np.arange(count), np.zeros(count, bool)
            for region in np.argsort(area):
                if taken[region]:
                    continue
                best = int(np.argmax(np.where(taken, -1, score[region])))
                if score[region, best] > 0 and not taken[best]:
                    target[region] = best
                    taken[[region, best]] = True
            if not taken.any():
                return regions
            regions = target[regions]

    def _belongs(
        self, shared: Float[np.ndarray, "n n"], distance: Float[np.ndarray, "n n"], surface: Bool[np.ndarray, "n"]
    ) -> Bool[np.ndarray, "n n"]:
        """Whether the first region belongs to the second."""
        same, enclosed = self.config.same_colour, self.config.enclosed
        things = ~surface[:, None] & ~surface[None]
        parts = ((distance < same) & (shared > 0.15)) | (shared > enclosed)
        pieces = (distance < same / 2) & (shared > np.where(surface[:, None], 0, 0.3))
        return np.where(things, parts, pieces) & (shared > 0)

    @staticmethod
    def _outlines(
        regions: Int[np.ndarray, "h w"], count: int
    ) -> tuple[Float[np.ndarray, "count count"], Float[np.ndarray, "count"]]:
        """Part of the first region's outline that it shares with the second, and the outlines' lengths.

        The picture's border belongs to the outline.
        """
        length = np.zeros((count, count))
        for first, second in ((regions[:, :-1], regions[:, 1:]), (regions[:-1], regions[1:])):
            differ = first != second
            pairs = np.bincount(first[differ] * count + second[differ], minlength=count * count).reshape(count, count)
            length += pairs + pairs.T
        border = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
        outline = length.sum(axis=1) + np.bincount(border, minlength=count)
        return length / np.maximum(outline, 1)[:, None], outline
