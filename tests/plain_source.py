"""A source without a model, as a user writes one: rows that are told by frame and cell, and faults on demand."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from divff_nerfstudio.features.autoencoder import (
    AutoencoderConfig,
    load_autoencoder,
    save_autoencoder,
    train_autoencoder,
)
from divff_nerfstudio.features.sources import FeatureSource
from divff_nerfstudio.features.store import FrameFeatures
from divff_nerfstudio.features.text import PhraseEncoder


@dataclass
class PlainConfig:
    """Options."""

    rows: int = 3
    """Rows of cells."""
    columns: int = 2
    """Columns of the index."""
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
        index = np.arange(self.config.rows, dtype=np.uint16)[:, None].repeat(self.config.columns, axis=1)
        return FrameFeatures(index, table + frame)


class PlainWords(PhraseEncoder):
    """Colours of the words for them."""

    COLOURS: ClassVar = {"red": [1, 0, 0], "green": [0, 1, 0], "blue": [0, 0, 1]}

    def __init__(self, entry):
        self.name, self.fingerprint, self.dimension = entry["tint"], entry["fingerprint"], 3

    def encode_text(self, phrases):
        return torch.tensor([self.COLOURS.get(phrase, [1, 1, 1]) for phrase in phrases]).float()


class AskedSource(PlainSource):
    """Features that can be asked in words, which bring their text encoder and what they are held against."""

    name = "asked"
    negatives = ("grey",)

    def text_encoder(self):
        return {"family": "plain_source:PlainWords", "tint": "any", "fingerprint": self.fingerprint}


class TornSource(PlainSource):
    """Is killed when part of a frame is written."""

    name = "plain"

    def extract(self, frame):
        if os.environ.get("TORN_IN") == str(frame):
            from divff_nerfstudio.features.store import growing

            def tear(file, content):
                file.write(content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)

            growing._write = tear
        return super().extract(frame)


class VideoSource(PlainSource):
    """The same for clips."""

    kind = "video"
    shared_index = True

    def extract(self, frame):
        self.pictures.clip(frame, 4, 8)
        return super().extract(frame)


class CodedSource(PlainSource):
    """Rows that are reduced at the end, by an autoencoder of them that is trained for some epochs."""

    kind = "regulariser"
    name = "coded"
    row_length, dimension = 3, 2

    def reduce(self, rows, folder):
        state, path = folder / "autoencoder-training.pth", folder / "autoencoder.pth"
        if not path.exists():
            sizes = AutoencoderConfig(feature_dim=3, encoder_widths=(2,), decoder_widths=(), epochs=12)
            save_autoencoder(train_autoencoder(rows, sizes, state=state), path)
        state.unlink(missing_ok=True)
        autoencoder = load_autoencoder(path)
        for row in rows:
            yield autoencoder.encode(torch.from_numpy(row[None].astype(np.float32))).numpy()


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
