"""EgoVideo's text tower: the first layers of a BERT encoder (Devlin et al. 2019), read out at the first token.

Modules bear the names of the published state dict (``textual.*``, ``text_projection``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from divff_nerfstudio.features.egovideo.shape import EgoVideoShape
from divff_nerfstudio.features.egovideo.video import join_heads, split_heads

_EPS = 1e-12
_HIDDEN = -10000.0
"""Added to the scores of padding."""


def _joined(width: int, out: int) -> nn.ModuleDict:
    """A linear layer, and the normalisation of its sum with what went around it."""
    return nn.ModuleDict({"dense": nn.Linear(width, out), "LayerNorm": nn.LayerNorm(out, eps=_EPS)})


class TextEmbeddings(nn.Module):
    """Embeddings of word pieces and of their places."""

    def __init__(self, shape: EgoVideoShape):
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.words, shape.text_width)
        self.position_embeddings = nn.Embedding(shape.text_positions, shape.text_width)
        self.token_type_embeddings = nn.Embedding(shape.text_types, shape.text_width)
        self.LayerNorm = nn.LayerNorm(shape.text_width, eps=_EPS)

    def forward(self, ids: Int[Tensor, "texts length"]) -> Float[Tensor, "texts length width"]:
        """Embeds; every token is of the first type."""
        places = self.position_embeddings.weight[: ids.shape[1]] + self.token_type_embeddings.weight[0]
        return self.LayerNorm(self.word_embeddings(ids) + places)


class TextLayer(nn.Module):
    """Attention and perceptron, each normalised after it is added."""

    def __init__(self, shape: EgoVideoShape):
        super().__init__()
        width = shape.text_width
        self.heads = shape.text_heads
        parts = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(parts), "output": _joined(width, width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, shape.text_hidden)})
        self.output = _joined(shape.text_hidden, width)

    def forward(
        self, x: Float[Tensor, "texts length width"], scores: Float[Tensor, "texts 1 1 length"]
    ) -> Float[Tensor, "texts length width"]:
        """Applies both; `scores` are added to those of the keys."""
        q, k, v = (split_heads(part(x), self.heads) for part in self.attention["self"].children())
        attended = join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=scores))
        x = self._join(self.attention["output"], attended, x)
        return self._join(self.output, F.gelu(self.intermediate["dense"](x)), x)

    @staticmethod
    def _join(parts: nn.Module, branch: Tensor, x: Tensor) -> Tensor:
        dense, norm = parts.children()
        return norm(x + dense(branch))


class TextTower(nn.Module):
    """Hidden states of texts.

    Args:
        shape: Sizes.
    """

    def __init__(self, shape: EgoVideoShape):
        super().__init__()
        self.embeddings = TextEmbeddings(shape)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(TextLayer(shape) for _ in range(shape.text_layers))})

    def forward(
        self, ids: Int[Tensor, "texts length"], mask: Int[Tensor, "texts length"]
    ) -> Float[Tensor, "texts length width"]:
        """Hidden states behind the last layer; `mask` is 1 where there is a word piece, 0 where there is padding."""
        x = self.embeddings(ids)
        scores = ((1 - mask) * _HIDDEN).to(x.dtype)[:, None, None]
        for layer in self.encoder["layer"].children():
            x = layer(x, scores)
        return x


class TextEncoder(nn.Module):
    """The text tower with its projection into the space that clips and texts share.

    Args:
        shape: Sizes.
    """

    def __init__(self, shape: EgoVideoShape):
        super().__init__()
        self.textual = TextTower(shape)
        self.text_projection = nn.Parameter(shape.text_width**-0.5 * torch.randn(shape.text_width, shape.dimension))

    def forward(
        self, ids: Int[Tensor, "texts length"], mask: Int[Tensor, "texts length"]
    ) -> Float[Tensor, "texts dimension"]:
        """Embeddings of texts, not of unit length."""
        return self.textual(ids, mask)[:, 0] @ self.text_projection
