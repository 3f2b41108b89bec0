"""Baseline after LERF (Kerr et al. 2023) on the frame itself: CLIP of crops of several sizes, without segments."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, normalize

from divff_nerfstudio.evaluation.baselines.base import Baseline
from divff_nerfstudio.evaluation.results import FrameResult, Task
from divff_nerfstudio.features.encoder_loading import load_encoder
from divff_nerfstudio.features.encoders import Encoder
from divff_nerfstudio.features.tiles import Tiles

OVERLAP = 0.5
"""Share of a crop that the next one covers, too."""


class CropFeatures(Baseline):
    """Relevancies of crops by the encoder of the scene's image features; no scale is chosen, their mean is asked."""

    title = "CLIP of crops of the frame itself, as in LERF, without scale"

    def prepare(self, tasks: Mapping[str, Task]) -> None:
        """Loads the encoder that the scene's image features were made with, if it is one of open_clip."""
        self._encoder: Encoder | None = None
        store = self.trained.stores.get("image")
        entry = (store.header.text_encoder or {}) if store is not None else {}
        if "encoder" in entry and any(task.kind == "image" for task in tasks.values()):
            self._encoder = load_encoder(entry["encoder"], self.device)

    def relevancies(self, result: FrameResult, task: Task) -> Float[np.ndarray, "height width classes"] | None:
        """Those of what image features answer; None without an encoder of pictures."""
        if self._encoder is None or task.kind != "image":
            return None
        picture = (result.target * 255).round().clip(0, 255).astype(np.uint8)
        features = crop_features(self._encoder, picture, self.models.clip_shares)
        scores = self.trained.query.relevancies(features, "image", task.annotations.names, decoded=True)
        return (
            interpolate(scores.permute(2, 0, 1)[None], picture.shape[:2], mode="bilinear")[0].permute(1, 2, 0).numpy()
        )


def crop_features(
    encoder: Encoder, picture: UInt8[np.ndarray, "height width 3"], shares: tuple[float, ...]
) -> Float[Tensor, "rows columns dim"]:
    """Mean over the sizes of the embeddings of crops, between their centres interpolated, of unit length.

    Args:
        encoder: Encodes the crops.
        picture: The picture.
        shares: Sides of the crops as shares of the picture's height.

    Returns:
        One feature for every half of the smallest crop.
    """
    height, width = picture.shape[:2]
    finest = Tiles.of(height, width, min(shares), OVERLAP)
    rows, columns = ((torch.arange(n) + 0.5) / n for n in (finest.rows, finest.columns))
    total = torch.zeros(1, encoder.dimension, len(rows), len(columns))
    for share in shares:
        tiles = Tiles.of(height, width, share, OVERLAP)
        cut = tiles.cut(picture[None])[:, 0]
        grid = encoder.encode_images(cut).view(1, tiles.rows, tiles.columns, -1).permute(0, 3, 1, 2)
        # The first crop is centred on the picture's corner: places are counted in strides from there.
        down = rows * height / tiles.stride / max(tiles.rows - 1, 1) * 2 - 1
        across = columns * width / tiles.stride / max(tiles.columns - 1, 1) * 2 - 1
        places = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)[None]
        total += grid_sample(grid, places, mode="bilinear", padding_mode="border", align_corners=True)
    return normalize(total[0].permute(1, 2, 0), dim=-1)
