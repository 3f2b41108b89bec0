"""A source without a model, as a user writes one: rows that are told by frame and cell, and faults on demand."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import numpy as np

from divff_nerfstudio.features.sources import FeatureSource
from divff_nerfstudio.features.store import FrameFeatures


@dataclass
class PlainConfig:
    """Options."""

    rows: int = 3
    """Rows of cells."""
    scale: float = 1.0
    """Factor of the features."""


class PlainSource(FeatureSource):
    """Mean colours of cells; the environment says in which frame the process shall be killed."""

    kind = "image"
    name = "plain"
    model, fingerprint, dimension = "none", "none", 3
    config_class = PlainConfig

    def settings(self):
        self.config = self.config or PlainConfig()
        return {"rows": self.config.rows, "scale": self.config.scale}

    def extract(self, frame):
        picture = self.pictures.sharpest(frame) / 255
        table = np.array([cell.mean((0, 1)) for cell in np.array_split(picture, self.config.rows)]) * self.config.scale
        if os.environ.get("KILLED_IN") == str(frame):
            os.kill(os.getpid(), signal.SIGKILL)
        index = np.arange(self.config.rows, dtype=np.uint16)[:, None].repeat(2, axis=1)
        return FrameFeatures(index, table + frame)


class TornSource(PlainSource):
    """Is killed when part of a frame is written."""

    name = "plain"

    def extract(self, frame):
        if os.environ.get("TORN_IN") == str(frame):
            from divff_nerfstudio.features import store

            def tear(file, content):
                file.write(content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)

            store._write = tear
        return super().extract(frame)


class VideoSource(PlainSource):
    """The same for clips."""

    kind = "video"
    shared_index = True

    def extract(self, frame):
        self.pictures.clip(frame, 4, 8)
        return super().extract(frame)


class WrongSource(PlainSource):
    """Gives an index that points beyond its table."""

    def extract(self, frame):
        return FrameFeatures(np.full((2, 2), 7, np.uint16), np.zeros((3, 3)))


class Kindless(FeatureSource):
    """Lacks what a source must say of itself."""

    def settings(self):
        return {}

    def extract(self, frame):
        raise NotImplementedError
