"""EgoVideo as an encoder of clips and of the phrases that are asked of their features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import normalize

from divff_nerfstudio.cache_dirs import weights_dir
from divff_nerfstudio.features.clips import IMAGENET, ClipPreprocessing
from divff_nerfstudio.features.egovideo.text import TextTower
from divff_nerfstudio.features.egovideo.tokenizer import WordPieces
from divff_nerfstudio.features.egovideo.video import Gelu, VideoEncoder
from divff_nerfstudio.features.egovideo.weights import EgoVideoWeights, find_weights
from divff_nerfstudio.features.pretrained import EncoderError, unreachable_hub
from divff_nerfstudio.features.text import PhraseEncoder
from divff_nerfstudio.schema import Amount

VOCABULARY = "bert-uncased-vocab.txt"
_REPOSITORY = "google-bert/bert-large-uncased"
_BATCH = {"cpu": 2, "cuda": 32}

Preprocessing = Literal["egovideo", "divff"]
_PREPROCESSING = {
    "egovideo": ClipPreprocessing(*IMAGENET, fit="crop"),
    "divff": ClipPreprocessing((0.5,) * 3, (0.5,) * 3, fit="stretch"),
}


@dataclass
class EgoVideoConfig:
    """Options of EgoVideo."""

    weights: Path | None = None
    """The file ckpt_4frames.pth; None: in the folder weights beside the scene, or in that of the user's cache
    (~/.cache/divff)."""
    vocabulary: Path | None = None
    """vocab.txt of bert-large-uncased, which queries need; None: bert-uncased-vocab.txt or vocab.txt beside the
    weights, else from Hugging Face."""
    preprocessing: Preprocessing = "egovideo"
    """What the model sees: egovideo, as it was trained (ImageNet statistics, shorter side 224, centre crop), or divff,
    as DIV-FF's published fields learnt it (mean and standard deviation 0.5, stretched to 224x224)."""
    gelu: Gelu = "tanh"
    """Activation of the video tower: tanh as in the published features, erf as in the model's code without its fused
    kernels."""
    batch: Amount = 0
    """Clips that are encoded at a time; 0: 32 on a GPU, 2 on a CPU."""
    normalise_text: bool = True
    """Whether embeddings of phrases have unit length (DIV-FF's have not)."""
    ignore_unknown: bool = False
    """Load a file of weights that holds more than EgoVideo's does."""


class EgoVideo:
    """The video tower on a device: in half precision on a GPU, in single precision elsewhere.

    Args:
        weights: The checked file.
        gelu: Activation of the video tower.
        device: Device to compute on.

    Attributes:
        fingerprint: SHA-256 of the video tower's weights.
        text_fingerprint: SHA-256 of the text tower's, which is not loaded here.
    """

    def __init__(self, weights: EgoVideoWeights, gelu: Gelu, device: torch.device):
        self.fingerprint = weights.fingerprint(VideoEncoder)
        self.text_fingerprint = weights.fingerprint(TextTower)
        self.shape, self.device = weights.shape, device
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.model = weights.video(gelu, device, self.dtype)

    @torch.inference_mode()
    def encode_clips(
        self,
        clips: UInt8[np.ndarray, "n frames height width 3"],
        preprocessing: Preprocessing = "egovideo",
        batch: int = 0,
    ) -> Float[Tensor, "n dim"]:
        """Embeddings of unit length of clips, in single precision, on the CPU.

        Args:
            clips: Pictures of each clip.
            preprocessing: See `EgoVideoConfig`.
            batch: Clips at a time; memory does not grow with `n` otherwise.
        """
        batch = batch or _BATCH.get(self.device.type, 2)
        prepare = _PREPROCESSING[preprocessing]
        found = [torch.zeros(0, self.shape.dimension)]
        for start in range(0, len(clips), batch):
            pictures = prepare(clips[start : start + batch], self.shape.image_size, self.device)
            found.append(self.model(pictures.transpose(1, 2).to(self.dtype)).float().cpu())
        return normalize(torch.cat(found), dim=-1)


@lru_cache(maxsize=1)
def load_egovideo(path: Path, frames: int, gelu: Gelu, device: torch.device, ignore_unknown: bool = False) -> EgoVideo:
    """Loads the video tower; the last one is remembered.

    Args:
        path: File of weights.
        frames: Frames of a clip.
        gelu: Activation.
        device: Device to compute on.
        ignore_unknown: Load a file that holds more than is known.

    Raises:
        EncoderError: If the file cannot be used.
    """
    return EgoVideo(EgoVideoWeights(path, frames, ignore_unknown=ignore_unknown), gelu, device)


def find_vocabulary(path: Path | None, weights: Path) -> Path:
    """The file with the text tower's vocabulary.

    Args:
        path: As the user gave it, if so.
        weights: File of weights; the vocabulary may lie beside it.

    Raises:
        EncoderError: If it is not to be had; the message says what to fetch and where to put it.
    """
    if path is not None:
        return Path(path)
    near = [folder / name for folder in (weights.parent, weights_dir()) for name in (VOCABULARY, "vocab.txt")]
    found = next((place for place in near if place.is_file()), None)
    if found is not None:
        return found
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(_REPOSITORY, "vocab.txt", local_files_only=unreachable_hub() is not None))
    except Exception as error:  # whatever a download may raise
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise EncoderError(
            f"The vocabulary of EgoVideo's text tower cannot be had ({reason}): fetch vocab.txt from "
            f"https://huggingface.co/{_REPOSITORY}, put it at {near[0]}, or give its place with --egovideo.vocabulary."
        ) from None


class EgoVideoPhrases(PhraseEncoder):
    """The text tower, as a store's header asks for it.

    Args:
        entry: "weights" and "vocabulary" (paths, or null for their usual places), besides what all entries have.

    Raises:
        EncoderError: If one of the files is missing or does not fit.
    """

    def __init__(self, entry: dict[str, Any]):
        self.name = "EgoVideo"
        given = entry.get("weights")
        moved = given is not None and not Path(given).is_file()
        path = find_weights(None if given is None or moved else Path(given))
        weights = EgoVideoWeights(path, entry.get("frames", 4), ignore_unknown=bool(entry.get("ignore_unknown")))
        self.fingerprint = weights.fingerprint(TextTower)
        self.dimension = weights.shape.dimension
        vocabulary = entry.get("vocabulary")
        self._words = WordPieces.read(
            find_vocabulary(None if vocabulary is None else Path(vocabulary), path), weights.shape.words
        )
        self._model = weights.text(torch.device("cpu"), torch.float32)

    @torch.inference_mode()
    def encode_text(self, phrases: Sequence[str]) -> Float[Tensor, "phrases dim"]:
        """Embeddings of phrases, of the length that the tower gives them."""
        return self._model(*self._words(phrases))
