"""DINOv2 (Oquab et al. 2023) under its own names, as far as OOAL needs it: blocks of timm.

Positions are stretched here, by the rule that DINOv2 was trained with; timm has another.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from divff_nerfstudio.evaluation.baselines.ooal.shape import OoalShape

_OFFSET = 0.1
"""Added to the rows and columns of patches before the positions are stretched, as DINOv2 was trained."""


class Dino(nn.Module):
    """The vision transformer.

    Args:
        shape: Sizes.
    """

    def __init__(self, shape: OoalShape):
        from timm.layers import LayerNorm  # with an epsilon of 1e-6
        from timm.models.vision_transformer import Block

        super().__init__()
        self.shape = shape
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.positions, shape.width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, shape.width, shape.patch, shape.patch)})
        ratio = shape.hidden / shape.width
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, ratio, qkv_bias=True, init_values=1.0, norm_layer=LayerNorm)
            for _ in range(shape.depth)
        )
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> list[tuple[Float[Tensor, "batch patches dim"], Float[Tensor, "batch dim"]]]:
        """Normed tokens of the patches, and of the class, behind each of the last blocks, the oldest first."""
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.cls_token.expand(len(images), -1, -1), patches), dim=1)
        tokens = tokens + self._positions(images.shape[2], images.shape[3])
        found = []
        for number, block in enumerate(self.blocks):
            tokens = block(tokens)
            if number >= len(self.blocks) - self.shape.merged:
                normed = self.norm(tokens)
                found.append((normed[:, 1:], normed[:, 0]))
        return found

    def _positions(self, height: int, width: int) -> Float[Tensor, "1 tokens dim"]:
        """Positions of the class token and of the patches; the grid is stretched to a picture of another size."""
        side, rows, columns = self.shape.side, height // self.shape.patch, width // self.shape.patch
        if (rows, columns) == (side, side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        # By factors, not to a size: the positions that are sampled follow from the factors, offset included.
        factors = ((rows + _OFFSET) / side, (columns + _OFFSET) / side)
        grid = interpolate(grid, scale_factor=factors, mode="bicubic")
        return torch.cat((self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)), dim=1)
