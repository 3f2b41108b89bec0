"""The regulariser: patch tokens of a picture, and their principal components over all frames."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from sklearn.decomposition import IncrementalPCA
from torch.nn.functional import normalize

from divff_nerfstudio.features.clips import IMAGENET
from divff_nerfstudio.features.encoders import fitted_size, stretched
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.pretrained import EncoderError, load_pretrained, weights_fingerprint
from divff_nerfstudio.features.sources import PreparedSource
from divff_nerfstudio.features.store import FrameFeatures
from divff_nerfstudio.schema import Count, Size

_STATISTICS = {
    "imagenet": IMAGENET,
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass
class PatchConfig:
    """Options of every regulariser that is made of patch tokens."""

    dimension: Size = 64
    """Length of a feature after the principal component analysis; at most the model's own, and the number of patches of
    the whole scene."""
    chunk: Count = 4096
    """Rows that the analysis looks at in one go."""


class PatchTokens(PreparedSource):
    """Patch tokens, reduced to their principal components over all frames, of unit length.

    A subclass implements `prepare`, `tokens` and `settings`, and calls `measure` when its model is loaded.
    """

    kind = "regulariser"
    shared_index = True
    frames_at_once = 16
    config: PatchConfig

    @abstractmethod
    def prepare(self, frame: int) -> UInt8[torch.Tensor, "1 3 height width"]:
        """A frame's picture in the size in which the model sees it, on the CPU."""

    @abstractmethod
    def tokens(self, pictures: UInt8[torch.Tensor, "n 3 height width"]) -> Float[torch.Tensor, "n rows columns length"]:
        """Tokens over the whole of each picture, on the CPU."""

    def measure(self) -> None:
        """Finds out how long tokens and features are, from the first frame."""
        _, rows, columns, self.row_length = self.tokens(self.prepare(0)).shape
        self.dimension = min(self.config.dimension, self.row_length, rows * columns * len(self.pictures.scene))

    def text_encoder(self) -> None:
        """None: no words belong to patch tokens."""

    def encode(self, prepared: Sequence[UInt8[torch.Tensor, "1 3 height width"]]) -> Iterable[FrameFeatures]:
        """Tokens of frames, not yet reduced."""
        tokens = self.tokens(torch.cat(list(prepared)) if len(prepared) > 1 else prepared[0])
        _, rows, columns, length = tokens.shape
        index = np.arange(rows * columns, dtype=np.uint16).reshape(rows, columns)
        return [FrameFeatures(index, each.reshape(-1, length).numpy()) for each in tokens]

    def reduce(self, rows: np.ndarray, folder: Path) -> Iterable[np.ndarray]:
        """One principal component analysis for all frames; then every row in it, of unit length."""
        del folder
        analysis = IncrementalPCA(self.dimension)
        chunks = list(self._chunks(len(rows)))
        for chunk in chunks:
            analysis.partial_fit(rows[chunk].astype(np.float32))
        for chunk in chunks:
            reduced = torch.from_numpy(analysis.transform(rows[chunk].astype(np.float32)))
            yield normalize(reduced, dim=-1).numpy()

    def _chunks(self, count: int) -> Iterable[slice]:
        """Slices that are all at least as long as the analysis needs."""
        starts = list(range(0, max(1, count - self.dimension + 1), max(self.config.chunk, self.dimension)))
        return (slice(start, end) for start, end in zip(starts, [*starts[1:], count], strict=True))


@dataclass
class DinoSourceConfig(PatchConfig):
    """Options of the regulariser by DINOv2."""

    weights: str = "facebook/dinov2-small"
    """DINOv2's name on the Hugging Face hub (the default is ViT-S/14), or a folder with config.json and
    model.safetensors."""
    height: Annotated[int, Field(ge=14, le=8192)] = 266
    """Height at which it sees the picture, in whole patches; the width follows (476x266 for 456x256)."""
    statistics: Literal["imagenet", "half"] = "imagenet"
    """What colours are normalised by: ImageNet's statistics, as in DINOv2's training, or mean and deviation 0.5, as in
    DIV-FF."""


class DinoSource(PatchTokens):
    """The regulariser by DINOv2 (Oquab et al. 2023)."""

    name = "dinov2"
    config: DinoSourceConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, pictures: Pictures, encoder: str, device: torch.device, config: DinoSourceConfig | None = None):
        super().__init__(pictures, encoder, device, config or DinoSourceConfig())
        self.model = self.config.weights
        self.tower: Any = load_pretrained("AutoModel", self.model, "--dinov2.weights")
        if not self.tower.config.model_type.startswith("dinov2"):
            raise EncoderError(
                f"{self.model} holds a {self.tower.config.model_type}: give --dinov2.weights a DINOv2, such as "
                f"{DinoSourceConfig.weights}."
            )
        self.fingerprint = weights_fingerprint(self.tower)
        self.tower.to(device=device, dtype=torch.float16 if device.type == "cuda" else torch.float32)
        self.measure()

    def settings(self) -> dict[str, Any]:
        """Options of tokens and analysis, and which pictures they are made from."""
        return {
            "dimension": self.dimension,
            "height": self.config.height,
            "statistics": self.config.statistics,
            "chunk": self.config.chunk,
            "video_frames": self.pictures.all_in_video,
        }

    def prepare(self, frame: int) -> UInt8[torch.Tensor, "1 3 height width"]:
        """A frame's picture at the height that the model sees."""
        picture = self.pictures.sharpest(frame)
        patch = self.tower.config.patch_size
        height, width, _ = fitted_size(picture, self.config.height, (patch, patch))
        return stretched([picture], (height, width))

    @torch.inference_mode()
    def tokens(self, pictures: UInt8[torch.Tensor, "n 3 height width"]) -> Float[torch.Tensor, "n rows columns length"]:
        """Tokens of the last layer, after its normalisation, over the whole of each picture."""
        count, patch = len(pictures), self.tower.config.patch_size
        grid = pictures.shape[2] // patch, pictures.shape[3] // patch
        mean, std = (value[:, None, None].to(self.device) for value in map(torch.tensor, self._statistics))
        pixels = (pictures.to(self.device).float() / 255 - mean) / std
        registers = getattr(self.tower.config, "num_register_tokens", 0)
        found = self.tower(pixels.to(self.tower.dtype)).last_hidden_state[:, 1 + registers :]
        return found.reshape(count, *grid, -1).float().cpu()

    @property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return _STATISTICS[self.config.statistics]
