"""Features from Gaussians: a compact code per pixel, decoded to every kind of features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from divff_nerfstudio.fields.semantic_heads import FeatureDecoder
from divff_nerfstudio.fields.time_code import LowRankTimeCode, octaves_for
from divff_nerfstudio.models.splat.rasterise import MAX_CHANNELS
from divff_nerfstudio.schema import Size


@dataclass
class SplatHeadsConfig:
    """Sizes of the feature codes and of what decodes them."""

    code_dim: Annotated[int, Field(ge=1, le=MAX_CHANNELS - 7)] = 25
    """Length of a Gaussian's code; with colours, masks, uncertainty and depth at most 32 channels, one pass."""
    hidden: Size = 128
    """Width of the decoders."""


class SplatHeads(FeatureDecoder):
    """Decodes rendered codes; the time is joined, for the same place is used for one thing, then for another.

    Args:
        config: Sizes.
        num_frames: Frames of the training split, which bound the frequencies of the time codes.
        dimensions: Length of the features of each kind.
    """

    def __init__(self, config: SplatHeadsConfig, num_frames: int, dimensions: Mapping[str, int]):
        super().__init__()
        self.time_code = LowRankTimeCode(octaves_for(num_frames))
        self.add_heads(config.code_dim + 2 + self.time_code.out_dim, config.hidden, dimensions)

    def code(
        self,
        rendered: Float[Tensor, "rays code"],
        masks: Float[Tensor, "rays 2"],
        time: Float[Tensor, ""],
    ) -> Float[Tensor, "rays joined"]:
        """Codes of rays: what was rendered, how much of it moves, and when it is."""
        return torch.cat((rendered, masks, self.time_code(time.view(1, 1)).expand(len(rendered), -1)), -1)
