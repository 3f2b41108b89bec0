"""EgoVideo's published weights: found, checked as a whole, and loaded tower by tower."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from divff_nerfstudio.cache_dirs import weights_dir
from divff_nerfstudio.checkpoints import read_checkpoint, require_shapes
from divff_nerfstudio.features.egovideo.shape import PUBLISHED, infer_shape
from divff_nerfstudio.features.egovideo.text import TextTower
from divff_nerfstudio.features.egovideo.video import Gelu, VideoEncoder
from divff_nerfstudio.features.pretrained import EncoderError, weights_fingerprint

FILE = "ckpt_4frames.pth"
URL = "https://drive.google.com/file/d/1k6f1eRdcL17IvXtdX_J8WxNbju2Ms3AW"
"""Where people fetch the weights ("EgoVideo-4frames")."""

_UNUSED = re.compile(
    r"visual\.(clip_pos_embed|clip_decoder\.\d+|final_clip_decoder)(\.|$)"
    r"|textual\.(pooler\.|embeddings\.position_ids$|encoder\.layer\.(?P<layer>\d+)\.)"
    r"|logit_scale$"
)
"""Parts of the published file that neither tower needs: heads of the training, and the layers behind the first 19."""
Part = TypeVar("Part", bound=nn.Module)


def find_weights(path: Path | None, scene: Path | None = None) -> Path:
    """The file of weights.

    Args:
        path: As the user gave it; None: in the folder ``weights`` beside the scene or beside its parent, where
            `divff download` puts it, else in `weights_dir`.
        scene: Folder of the scene.

    Raises:
        EncoderError: If there is none; the message says what to fetch and where to put it.
    """
    usual = weights_dir() / FILE
    above = [] if scene is None else [folder / "weights" / FILE for folder in scene.resolve().parents[:2]]
    found = next((place for place in above if place.is_file()), usual) if path is None else Path(path)
    if not found.is_file():
        raise EncoderError(
            f"{found} is missing: fetch EgoVideo-4frames ({URL}, 5.6 GB, by hand), put it there as {FILE}, or give its "
            "place with --egovideo.weights, or extract other video features (--sources clip-tiles)."
        )
    return found


class EgoVideoWeights:
    """A file of weights, opened and checked; tensors are read from the disk when a tower is made of them.

    Args:
        path: State dict as published: flat, with or without the prefix ``module.``.
        frames: Frames of a clip.
        heads: Attention heads of the video tower's blocks, of its pooling, and of the text tower.
        ignore_unknown: Load a file that holds more than is known.

    Raises:
        CheckpointError: If it is missing or damaged, or is not EgoVideo's: every tensor that is missing, unknown or of
            another shape is named.
        EncoderError: If it belongs to clips of another number of frames.
    """

    def __init__(
        self,
        path: Path,
        frames: int = PUBLISHED.frames,
        heads: tuple[int, int, int] = (PUBLISHED.heads, PUBLISHED.pool_heads, PUBLISHED.text_heads),
        ignore_unknown: bool = False,
    ):
        self.path = path
        self._tensors = _read(path)
        self.shape = infer_shape(self._tensors, frames, *heads)
        expected = self._expected(VideoEncoder) | self._expected(TextTower)
        found = {
            name: tuple(tensor.shape)
            for name, tensor in self._tensors.items()
            if name in expected or not (ignore_unknown or self._unused(name))
        }
        require_shapes(path, f"state dict of EgoVideo-4frames ({URL})", found, expected)
        if not self.shape.consistent:
            raise EncoderError(
                f"{path} has {self.shape.positions} positions, which do not belong to clips of {frames} frames: give "
                "--egovideo.clip-length as the weights were trained for."
            )

    def video(self, gelu: Gelu, device: torch.device, dtype: torch.dtype) -> VideoEncoder:
        """The video tower with its projection."""
        with torch.device("meta"):
            encoder = VideoEncoder(self.shape, gelu)
        return self._filled(encoder, device, dtype)

    def text(self, device: torch.device, dtype: torch.dtype) -> TextTower:
        """The text tower with its projection."""
        with torch.device("meta"):
            encoder = TextTower(self.shape)
        return self._filled(encoder, device, dtype)

    def fingerprint(self, part: type[VideoEncoder] | type[TextTower]) -> str:
        """SHA-256 of the weights of one tower."""
        return weights_fingerprint({name: self._tensors[name] for name in self._expected(part)})

    def _filled(self, encoder: Part, device: torch.device, dtype: torch.dtype) -> Part:
        state = {name: self._tensors[name].to(device=device, dtype=dtype) for name in encoder.state_dict()}
        encoder.load_state_dict(state, assign=True)
        return encoder.eval().requires_grad_(False)

    def _expected(self, part: type[VideoEncoder] | type[TextTower]) -> dict[str, tuple[int, ...]]:
        with torch.device("meta"):
            return {name: tuple(tensor.shape) for name, tensor in part(self.shape).state_dict().items()}

    def _unused(self, name: str) -> bool:
        match = _UNUSED.match(name)
        return match is not None and (match["layer"] is None or int(match["layer"]) >= self.shape.text_layers)


def _read(path: Path) -> dict[str, Tensor]:
    """State dict without the prefix; nothing is read yet where the file can be mapped into memory."""
    content = read_checkpoint(path, mapped=True)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise EncoderError(f"{path} holds no flat dictionary of weights: fetch EgoVideo-4frames ({URL}).")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
