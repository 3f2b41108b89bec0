"""EgoVideo's video tower: a vision transformer over all patches of a clip at once, as InternVideo2-1B.

Modules bear the names of the published state dict (``visual.*``, ``image_projection``).
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from divff_nerfstudio.features.egovideo.shape import EgoVideoShape

Gelu = Literal["tanh", "erf"]
"""GELU of the perceptrons: its approximation by tanh, as the published features were made with, or the exact one."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * weight over the last axis, in single precision whatever the input's."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*bs width"]) -> Float[Tensor, "*bs width"]:
        """Normalises."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), 1e-6).to(x.dtype)


def split_heads(x: Float[Tensor, "clips tokens width"], heads: int) -> Float[Tensor, "clips heads tokens part"]:
    """The channels of each head."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Float[Tensor, "clips heads tokens part"]) -> Float[Tensor, "clips tokens width"]:
    """The inverse of `split_heads`."""
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Attention among all tokens; queries and keys are normalised over all heads together."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(width), RMSNorm(width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "clips tokens width"]) -> Float[Tensor, "clips tokens width"]:
        """Attends."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (split_heads(part, self.heads) for part in (self.q_norm(q), self.k_norm(k), v))
        return self.proj(join_heads(F.scaled_dot_product_attention(q, k, v)))


class Block(nn.Module):
    """Attention and perceptron (timm's), each normalised before and scaled after."""

    def __init__(self, shape: EgoVideoShape, gelu: Gelu):
        from timm.layers import LayerScale, Mlp

        super().__init__()
        self.norm1, self.ls1 = RMSNorm(shape.width), LayerScale(shape.width, init_values=1.0)
        self.attn = Attention(shape.width, shape.heads)
        self.norm2, self.ls2 = RMSNorm(shape.width), LayerScale(shape.width, init_values=1.0)
        activation = partial(nn.GELU, approximate="tanh" if gelu == "tanh" else "none")
        self.mlp = Mlp(shape.width, shape.hidden, act_layer=activation)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "clips tokens width"]) -> Float[Tensor, "clips tokens width"]:
        """Adds both to the tokens."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class CrossAttention(nn.Module):
    """Attention of given queries to keys and values, with another length at the end."""

    def __init__(self, width: int, heads: int, out: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_bias, self.k_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(3))
        self.proj = nn.Linear(width, out)

    def forward(
        self,
        queries: Float[Tensor, "clips n width"],
        keys: Float[Tensor, "clips tokens width"],
        values: Float[Tensor, "clips tokens width"],
    ) -> Float[Tensor, "clips n out"]:
        """Attends."""
        q = split_heads(self.q(queries) + self.q_bias, self.heads)
        k = split_heads(self.k(keys) + self.k_bias, self.heads)
        v = split_heads(self.v(values) + self.v_bias, self.heads)
        return self.proj(join_heads(F.scaled_dot_product_attention(q, k, v)))


class AttentionPooling(nn.Module):
    """The tokens' mean attends to the tokens."""

    def __init__(self, shape: EgoVideoShape):
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v = (nn.LayerNorm(shape.width) for _ in range(3))
        self.cross_attn = CrossAttention(shape.width, shape.pool_heads, shape.pooled)

    def forward(self, tokens: Float[Tensor, "clips tokens width"]) -> Float[Tensor, "clips pooled"]:
        """Pools."""
        mean = tokens.mean(1, keepdim=True)
        return self.cross_attn(self.norm1_q(mean), self.norm1_k(tokens), self.norm1_v(tokens))[:, 0]


class PatchEmbedding(nn.Module):
    """Patches of each frame as tokens: frame by frame, in a frame row by row."""

    def __init__(self, shape: EgoVideoShape):
        super().__init__()
        kernel = (shape.tubelet, shape.patch, shape.patch)
        self.proj = nn.Conv3d(3, shape.width, kernel, stride=kernel)

    def forward(self, video: Float[Tensor, "clips 3 frames height width"]) -> Float[Tensor, "clips tokens channels"]:
        """Embeds."""
        return self.proj(video).flatten(2).transpose(1, 2)


class VideoTower(nn.Module):
    """Tokens of a clip and their pooled feature.

    Args:
        shape: Sizes.
        gelu: GELU of the perceptrons.
    """

    def __init__(self, shape: EgoVideoShape, gelu: Gelu = "tanh"):
        super().__init__()
        self.patch_embed = PatchEmbedding(shape)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, shape.positions, shape.width))
        self.blocks = nn.ModuleList(Block(shape, gelu) for _ in range(shape.depth))
        self.clip_projector = AttentionPooling(shape)

    def forward(
        self, video: Float[Tensor, "clips 3 frames height width"]
    ) -> tuple[Float[Tensor, "clips tokens width"], Float[Tensor, "clips pooled"]]:
        """Tokens (the class token first) behind the last block, which is not normalised, and the pooled feature."""
        patches = self.patch_embed(video)
        tokens = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), 1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return tokens, self.clip_projector(tokens)


class VideoEncoder(nn.Module):
    """The video tower with its projection into the space that clips and texts share.

    Args:
        shape: Sizes.
        gelu: GELU of the perceptrons.
    """

    def __init__(self, shape: EgoVideoShape, gelu: Gelu = "tanh"):
        super().__init__()
        self.visual = VideoTower(shape, gelu)
        self.image_projection = nn.Parameter(shape.pooled**-0.5 * torch.randn(shape.pooled, shape.dimension))

    def forward(self, video: Float[Tensor, "clips 3 frames height width"]) -> Float[Tensor, "clips dimension"]:
        """Embeddings of clips, not of unit length."""
        return self.visual(video)[1] @ self.image_projection
