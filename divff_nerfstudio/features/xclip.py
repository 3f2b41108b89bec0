"""X-CLIP (Ni et al. 2022, in transformers) as a second source of video-language features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import normalize

from divff_nerfstudio.features.clip_source import ClipSource, ClipSourceConfig
from divff_nerfstudio.features.clips import ClipPreprocessing
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.pretrained import EncoderError, load_companions, load_pretrained, weights_fingerprint
from divff_nerfstudio.features.text import PhraseEncoder
from divff_nerfstudio.schema import Amount, Size

_OPTION = "--xclip.weights"
_BATCH = {"cpu": 4, "cuda": 64}


@dataclass
class XClipSourceConfig(ClipSourceConfig):
    """Options of the video-language features of X-CLIP."""

    clip_length: Size = 8
    """Pictures of a clip; as the weights were trained for."""
    clip_stride: Size = 4
    """Video frames from one picture of a clip to the next."""
    weights: str = "microsoft/xclip-base-patch32"
    """Name of the model on the Hugging Face hub, or a folder with its files."""
    batch: Amount = 0
    """Clips that are encoded at a time; 0: 64 on a GPU, 4 on a CPU."""


class XClip:
    """The model with what belongs to it: in half precision on a GPU, in single precision elsewhere.

    Texts are embedded without regard to any clip: what the model's prompts would add to a text for one clip has no
    meaning for a field, which many clips have taught.

    Args:
        name: See `XClipSourceConfig.weights`.
        device: Device to compute on.

    Raises:
        EncoderError: If the model is not to be had.
    """

    def __init__(self, name: str, device: torch.device):
        self.model = load_pretrained("XCLIPModel", name, _OPTION)
        self.fingerprint = weights_fingerprint(self.model)
        statistics, self._tokenizer = load_companions(("AutoImageProcessor", "CLIPTokenizer"), name, _OPTION)
        self._prepare = ClipPreprocessing(tuple(statistics.image_mean), tuple(statistics.image_std))
        vision = self.model.config.vision_config
        self.frames, self.image_size = int(vision.num_frames), int(vision.image_size)
        self.dimension = int(self.model.config.projection_dim)
        self._context = int(self.model.config.text_config.max_position_embeddings)
        self.device = device
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.model.to(device=device, dtype=self.dtype)

    @torch.inference_mode()
    def encode_clips(
        self, clips: UInt8[np.ndarray, "n frames height width 3"], batch: int = 0
    ) -> Float[Tensor, "n dim"]:
        """Embeddings of unit length of clips, single precision, on the CPU; `batch` of them at a time."""
        batch = batch or _BATCH.get(self.device.type, 4)
        found = [torch.zeros(0, self.dimension)]
        for start in range(0, len(clips), batch):
            pictures = self._prepare(clips[start : start + batch], self.image_size, self.device)
            found.append(self._video(pictures.to(self.dtype)).float().cpu())
        return normalize(torch.cat(found), dim=-1)

    def _video(self, pictures: Float[Tensor, "n frames 3 height width"]) -> Float[Tensor, "n dim"]:
        """Frames one by one, then together; `get_video_features` of transformers 4.57 fails."""
        each = self.model.vision_model(pixel_values=pictures.flatten(0, 1)).pooler_output
        frames = self.model.visual_projection(each).unflatten(0, pictures.shape[:2])
        return self.model.mit(frames, return_dict=True).pooler_output

    @torch.inference_mode()
    def encode_text(self, phrases: Sequence[str]) -> Float[Tensor, "phrases dim"]:
        """Embeddings of phrases, of the length that the model gives them, single precision, on the CPU."""
        words = self._tokenizer(
            list(phrases), padding=True, truncation=True, max_length=self._context, return_tensors="pt"
        )
        return self.model.get_text_features(**words.to(self.device)).float().cpu()


@lru_cache(maxsize=1)
def load_xclip(name: str, device: torch.device) -> XClip:
    """Loads a model; the last one is remembered. See `XClip`."""
    return XClip(name, device)


class XClipSource(ClipSource):
    """What is done here, as X-CLIP sees it.

    Args:
        pictures: Pictures of the scene.
        encoder: Not used: the model is that of the options.
        device: Device to compute on.
        config: Options.

    Raises:
        EncoderError: If the model is not to be had, or takes clips of another length.
    """

    name = "xclip"
    config: XClipSourceConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, pictures: Pictures, encoder: str, device: torch.device, config: XClipSourceConfig | None = None):
        super().__init__(pictures, encoder, device, config or XClipSourceConfig())
        self.xclip = load_xclip(self.config.weights, device)
        self.model, self.fingerprint = self.config.weights, self.xclip.fingerprint
        self.dimension = self.xclip.dimension
        if self.config.clip_length != self.xclip.frames:
            raise EncoderError(
                f"{self.config.weights} takes clips of {self.xclip.frames} pictures, not {self.config.clip_length}: "
                f"give --xclip.clip-length {self.xclip.frames}."
            )

    def text_encoder(self) -> dict[str, Any]:
        """The same model's text tower."""
        return {"family": "xclip", "weights": self.config.weights, "fingerprint": self.fingerprint, "normalise": True}

    def encode_clips(self, clips: UInt8[np.ndarray, "n length height width 3"]) -> Float[Tensor, "n dim"]:
        """Embeddings of clips, batch by batch."""
        return self.xclip.encode_clips(clips, self.config.batch)


class XClipPhrases(PhraseEncoder):
    """The text tower, as a store's header asks for it; the entry's "weights" name the model."""

    def __init__(self, entry: dict[str, Any]):
        self.name = entry["weights"]
        self._xclip = load_xclip(self.name, torch.device("cpu"))
        self.fingerprint, self.dimension = self._xclip.fingerprint, self._xclip.dimension

    def encode_text(self, phrases: Sequence[str]) -> Float[Tensor, "phrases dim"]:
        """Embeddings of phrases."""
        return self._xclip.encode_text(phrases)
