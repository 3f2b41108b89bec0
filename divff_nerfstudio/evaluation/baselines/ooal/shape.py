"""Sizes of an OOAL network, read off its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

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


def infer_shape(tensors: Mapping[str, Tensor], heads: int = OoalShape.heads, text_heads: int = 8) -> OoalShape:
    """The sizes that weights have; the published ones where a weight is missing.

    Args:
        tensors: Weights by their published names.
        heads: Attention heads of DINOv2.
        text_heads: Attention heads of the text transformer.
    """

    def size(name: str, axis: int, default: int) -> int:
        tensor = tensors.get(name)
        return tensor.shape[axis] if tensor is not None and tensor.ndim > axis else default

    def count(prefix: str, default: int) -> int:
        numbers = {int(found[1]) for name in tensors if (found := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))}
        return max(numbers) + 1 if numbers else default

    usual, block, layer = OoalShape(), "dino_model.blocks.0", "aff_text_encoder.transformer.resblocks"
    return OoalShape(
        patch=size("dino_model.patch_embed.proj.weight", 3, usual.patch),
        positions=size("dino_model.pos_embed", 1, usual.positions),
        width=size("dino_model.pos_embed", 2, usual.width),
        hidden=size(f"{block}.mlp.fc1.weight", 0, usual.hidden),
        depth=count("dino_model.blocks", usual.depth),
        heads=heads,
        merged=size("merge_weight", 0, usual.merged),
        embedding=size("lln_norm_1.weight", 0, usual.embedding),
        embedder_hidden=size("embedder.fc1.weight", 0, usual.embedder_hidden),
        text_width=size("aff_text_encoder.positional_embedding", 1, usual.text_width),
        text_hidden=size(f"{layer}.0.mlp.c_fc.weight", 0, usual.text_hidden),
        text_layers=count(layer, usual.text_layers),
        text_heads=text_heads,
        context=size("aff_text_encoder.positional_embedding", 0, usual.context),
        learned=size("prompt_learner.ctx", 0, usual.learned),
        classes=size("prompt_learner.token_prefix", 0, usual.classes),
        decoder_layers=count("seg_decoder.decoder.layers", usual.decoder_layers),
        decoder_hidden=size("seg_decoder.decoder.layers.0.linear1.weight", 0, usual.decoder_hidden),
    )
