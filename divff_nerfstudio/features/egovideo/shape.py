"""Sizes of EgoVideo's towers: those of the published model, or what a file of weights says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from divff_nerfstudio.checkpoints import layers_of, sizes_of


@dataclass(frozen=True)
class EgoVideoShape:
    """Sizes of both towers; the defaults are those of the published model for clips of four frames."""

    frames: int = 4
    """Frames of a clip."""
    tubelet: int = 1
    """Frames that one token covers."""
    patch: int = 14
    """Side of a patch in pixels."""
    positions: int = 1025
    """Tokens of a clip, the class token included."""
    width: int = 1408
    """Channels of the video tower."""
    depth: int = 40
    """Blocks of the video tower."""
    heads: int = 16
    """Attention heads of each block."""
    hidden: int = 6144
    """Hidden units of each block's perceptron."""
    pool_heads: int = 16
    """Attention heads of the pooling."""
    pooled: int = 768
    """Length of the pooled feature, before its projection."""
    words: int = 30522
    """Entries of the vocabulary."""
    text_width: int = 1024
    """Channels of the text tower."""
    text_layers: int = 19
    """Layers of the text tower that are used."""
    text_heads: int = 16
    """Attention heads of each of these layers."""
    text_hidden: int = 4096
    """Hidden units of each of these layers."""
    text_positions: int = 512
    """Longest text, in word pieces."""
    text_types: int = 2
    """Token types, of which the first is used."""
    dimension: int = 512
    """Length of an embedding of a clip or a text."""

    @property
    def grid(self) -> int:
        """Patches along each side of a frame."""
        return round(((self.positions - 1) * self.tubelet / self.frames) ** 0.5)

    @property
    def image_size(self) -> int:
        """Height and width of a frame in pixels."""
        return self.grid * self.patch

    @property
    def consistent(self) -> bool:
        """Whether tokens, frames and heads go into one another."""
        return (
            self.positions == 1 + self.grid**2 * (self.frames // self.tubelet)
            and self.frames % self.tubelet == 0
            and self.width % self.heads == 0
            and self.width % self.pool_heads == 0
            and self.text_width % self.text_heads == 0
        )


PUBLISHED = EgoVideoShape()
"""The published model."""

_ANCHORS: dict[str, tuple[str | None, ...]] = {
    "visual.pos_embed": (None, "positions", "width"),
    "visual.patch_embed.proj.weight": (None, None, "tubelet", "patch", None),
    "visual.blocks.0.mlp.fc1.weight": ("hidden", None),
    "image_projection": ("pooled", "dimension"),
    "textual.embeddings.word_embeddings.weight": ("words", "text_width"),
    "textual.embeddings.position_embeddings.weight": ("text_positions", None),
    "textual.embeddings.token_type_embeddings.weight": ("text_types", None),
    "textual.encoder.layer.0.intermediate.dense.weight": ("text_hidden", None),
}
"""Tensors whose sizes say what the model's are."""


def infer_shape(
    tensors: Mapping[str, Tensor],
    frames: int = PUBLISHED.frames,
    heads: int = PUBLISHED.heads,
    pool_heads: int = PUBLISHED.pool_heads,
    text_heads: int = PUBLISHED.text_heads,
) -> EgoVideoShape:
    """Sizes of the model that a state dict belongs to.

    What weights cannot tell is given: frames and heads. The text tower ends before the first layer with
    cross-attention, which belongs to the training's matching of both towers. A tensor that is missing, or has not the
    right number of axes, leaves the published size, and is found by whoever compares with the result.

    Args:
        tensors: State dict under the official names, without the prefix ``module.``.
        frames: Frames of a clip.
        heads: Attention heads of the video tower's blocks.
        pool_heads: Attention heads of its pooling.
        text_heads: Attention heads of the text tower.
    """
    found = sizes_of(tensors, _ANCHORS)
    shape = replace(PUBLISHED, **found, frames=frames, heads=heads, pool_heads=pool_heads, text_heads=text_heads)
    depth = len(layers_of(tensors, r"visual\.blocks\.(\d{1,4})\."))
    layers = len(layers_of(tensors, r"textual\.encoder\.layer\.(\d{1,4})\."))
    fused = layers_of(tensors, r"textual\.encoder\.layer\.(\d{1,4})\.crossattention\.")
    # A file that ends early has the published width all the same.
    if shape.width == PUBLISHED.width:
        depth = max(depth, PUBLISHED.depth)
    if shape.text_width == PUBLISHED.text_width and not fused:
        layers = PUBLISHED.text_layers
    return replace(shape, depth=depth, text_layers=min({layers} | fused))
