"""Sizes of an OOAL network, read off its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from divff_nerfstudio.checkpoints import layers_of, sizes_of

DECODER_HEADS = 8
"""Attention heads of the decoder, whatever its width."""


@dataclass(frozen=True)
class OoalShape:
    """Sizes of the network; the defaults are the published ones."""

    patch: int = 14
    """Side of a patch of DINOv2 in pixels."""
    positions: int = 1370
    """Positions of DINOv2: a square grid and the class token."""
    width: int = 768
    """Width of DINOv2."""
    hidden: int = 3072
    """Width of its perceptrons."""
    depth: int = 12
    """Blocks of DINOv2."""
    heads: int = 12
    """Attention heads of DINOv2; weights do not tell them."""
    merged: int = 3
    """How many of the last blocks are merged."""
    embedding: int = 512
    """Width of what patches and classes are compared in."""
    embedder_hidden: int = 512
    """Width inside the perceptron that leads there."""
    text_width: int = 512
    """Width of CLIP's text transformer."""
    text_hidden: int = 2048
    """Width of its perceptrons."""
    text_layers: int = 12
    """Layers of CLIP's text transformer."""
    text_heads: int = 8
    """Its attention heads; weights do not tell them."""
    context: int = 77
    """Tokens of a prompt."""
    learned: int = 8
    """Learned vectors in a prompt, behind its start."""
    classes: int = 36
    """Classes that the network was trained on."""
    decoder_layers: int = 2
    """Layers of the decoder."""
    decoder_hidden: int = 2048
    """Width of its perceptrons."""

    @property
    def side(self) -> int:
        """Rows, and columns, of the grid of positions."""
        return round((self.positions - 1) ** 0.5)


_ANCHORS: dict[str, tuple[str | None, ...]] = {
    "dino_model.patch_embed.proj.weight": (None, None, None, "patch"),
    "dino_model.pos_embed": (None, "positions", "width"),
    "dino_model.blocks.0.mlp.fc1.weight": ("hidden", None),
    "merge_weight": ("merged",),
    "lln_norm_1.weight": ("embedding",),
    "embedder.fc1.weight": ("embedder_hidden", None),
    "aff_text_encoder.positional_embedding": ("context", "text_width"),
    "aff_text_encoder.transformer.resblocks.0.mlp.c_fc.weight": ("text_hidden", None),
    "prompt_learner.ctx": ("learned", None),
    "prompt_learner.token_prefix": ("classes", None, None),
    "seg_decoder.decoder.layers.0.linear1.weight": ("decoder_hidden", None),
}
"""Weights whose sizes say what the network's are."""
_LAYERS = {
    "depth": r"dino_model\.blocks\.(\d{1,4})\.",
    "text_layers": r"aff_text_encoder\.transformer\.resblocks\.(\d{1,4})\.",
    "decoder_layers": r"seg_decoder\.decoder\.layers\.(\d{1,4})\.",
}
"""How the names of each part's layers begin."""


def infer_shape(
    tensors: Mapping[str, Tensor], heads: int = OoalShape.heads, text_heads: int = OoalShape.text_heads
) -> OoalShape:
    """The sizes that weights have; the published ones where a weight is missing.

    Args:
        tensors: Weights by their published names.
        heads: Attention heads of DINOv2.
        text_heads: Attention heads of the text transformer.
    """
    counted = {part: len(layers_of(tensors, pattern)) for part, pattern in _LAYERS.items()}
    told = sizes_of(tensors, _ANCHORS) | {part: count for part, count in counted.items() if count}
    return OoalShape(**told, heads=heads, text_heads=text_heads)
