"""Video-language features of EgoVideo, one per tile of a clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape
from torch import Tensor

from divff_nerfstudio.cache_dirs import weights_dir
from divff_nerfstudio.features.clip_source import ClipSource, ClipSourceConfig
from divff_nerfstudio.features.egovideo.encoder import EgoVideoConfig, find_vocabulary, load_egovideo
from divff_nerfstudio.features.egovideo.weights import FILE, find_weights
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.pretrained import EncoderError


@dataclass
class EgoVideoSourceConfig(ClipSourceConfig, EgoVideoConfig):
    """Options of the video-language features of EgoVideo."""


class EgoVideoSource(ClipSource):
    """What is done here, as EgoVideo sees it.

    Args:
        pictures: Pictures of the scene.
        encoder: Not used: the model is always EgoVideo.
        device: Device to compute on.
        config: Options.

    Raises:
        EncoderError: If the weights are missing or not EgoVideo's.
    """

    name = "egovideo"
    config: EgoVideoSourceConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self, pictures: Pictures, encoder: str, device: torch.device, config: EgoVideoSourceConfig | None = None
    ):
        super().__init__(pictures, encoder, device, config or EgoVideoSourceConfig())
        options = self.config
        self.weights = find_weights(options.weights, pictures.scene.root)
        self.egovideo = load_egovideo(self.weights, options.clip_length, options.gelu, device, options.ignore_unknown)
        self.model, self.fingerprint = self.weights.name, self.egovideo.fingerprint
        self.dimension = self.egovideo.shape.dimension
        try:
            find_vocabulary(options.vocabulary, self.weights)
        except EncoderError as error:
            CONSOLE.print(f"[yellow]The features can be extracted, but not queried: {escape(str(error))}")

    def settings(self) -> dict[str, Any]:
        """Options of clips, tiles and preprocessing."""
        return {**super().settings(), "preprocessing": self.config.preprocessing, "gelu": self.config.gelu}

    def text_encoder(self) -> dict[str, Any]:
        """The text tower of the same file."""
        options = self.config
        usual = self.weights == weights_dir() / FILE
        places = {"weights": None if usual else self.weights, "vocabulary": options.vocabulary}
        return {
            "family": "egovideo",
            "fingerprint": self.egovideo.text_fingerprint,
            "normalise": options.normalise_text,
            "frames": options.clip_length,
            **{name: None if place is None else str(place.absolute()) for name, place in places.items()},
            **({"ignore_unknown": True} if options.ignore_unknown else {}),
        }

    def encode_clips(self, clips: UInt8[np.ndarray, "n length height width 3"]) -> Float[Tensor, "n dim"]:
        """Embeddings of clips, batch by batch."""
        return self.egovideo.encode_clips(clips, self.config.preprocessing, self.config.batch)
