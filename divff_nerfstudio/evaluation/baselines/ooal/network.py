"""The OOAL network: DINOv2's patches, decoded by the names of affordances into a map of each.

Modules and weights are named as in the published file. Shapes: B pictures, N patches, C classes.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from divff_nerfstudio.evaluation.baselines.ooal.shape import DECODER_HEADS, OoalShape
from divff_nerfstudio.evaluation.baselines.ooal.text import PromptEncoder, PromptLearner
from divff_nerfstudio.evaluation.baselines.ooal.vision import Dino

_MAP_SCALE = 512**-0.5
"""Factor of the similarities in a map, whatever the width."""


class GatedAttention(nn.Module):
    """Attention of classes to patches, held down where the picture's class token sees nothing of use.

    Args:
        width: Length of keys and queries, a multiple of the number of heads.
    """

    def __init__(self, width: int):
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self, text: Float[Tensor, "B C dim"], patches: Float[Tensor, "B N dim"], cls: Float[Tensor, "B dim"]
    ) -> tuple[Float[Tensor, "B C dim"], Float[Tensor, "B heads C N"], Float[Tensor, "B 1 1 N"]]:
        """What the classes attend to, the scores before the softmax, and the gate of each patch."""
        query, key, value = (
            linear(values).unflatten(-1, (DECODER_HEADS, -1)).transpose(1, 2)
            for linear, values in ((self.q, text), (self.k, patches), (self.v, patches))
        )
        scale = query.shape[-1] ** -0.5
        scores = query @ key.mT * scale
        # The class token is a query as it is, not projected; gated weights no longer sum to 1, as published.
        whole = cls.unflatten(-1, (DECODER_HEADS, -1))[:, :, None]
        gate = torch.sigmoid((whole @ key.mT * scale).mean(1, keepdim=True))
        attended = (scores.softmax(-1) * gate) @ value
        return self.proj(attended.transpose(1, 2).flatten(2)), scores, gate


class _DecoderLayer(nn.Module):
    def __init__(self, shape: OoalShape):
        super().__init__()
        width = shape.embedding
        self.multihead_attn = GatedAttention(width)
        self.linear1 = nn.Linear(width, shape.decoder_hidden)
        self.linear2 = nn.Linear(shape.decoder_hidden, width)
        self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, text: Tensor, patches: Tensor, cls: Tensor) -> Tensor:
        text = self.norm2(text + self.multihead_attn(text, patches, cls)[0])
        return self.norm3(text + self.linear2(relu(self.linear1(text))))


class Ooal(nn.Module):
    """The network, for inference.

    Args:
        shape: Sizes.
    """

    def __init__(self, shape: OoalShape):
        super().__init__()
        self.shape = shape
        width, embedding = shape.width, shape.embedding
        self.merge_weight = nn.Parameter(torch.zeros(shape.merged))
        within = nn.Linear(width, shape.embedder_hidden), nn.Linear(shape.embedder_hidden, embedding)
        self.embedder = nn.Sequential(
            OrderedDict(norm=nn.LayerNorm(width), fc1=within[0], gelu=nn.GELU(), fc2=within[1])
        )
        self.dino_model = Dino(shape)
        self.prompt_learner = PromptLearner(shape)
        self.aff_text_encoder = PromptEncoder(shape)
        layers = nn.ModuleList(_DecoderLayer(shape) for _ in range(shape.decoder_layers))
        self.seg_decoder = nn.ModuleDict({"decoder": nn.ModuleDict({"layers": layers})})
        self.lln_linear = nn.ModuleList(nn.Linear(width, width) for _ in range(shape.merged))
        self.lln_norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(shape.merged))
        self.lln_norm_1, self.lln_norm_2 = nn.LayerNorm(embedding), nn.LayerNorm(embedding)
        self.linear_cls = nn.Linear(width, embedding)

    def encode_text(
        self, tokens: Float[Tensor, "C context dim"], ends: Int[Tensor, "C"]
    ) -> Float[Tensor, "C embedding"]:
        """Embeddings of classes from the tokens of their prompts, see `TokenRows`."""
        return self.lln_norm_2(self.aff_text_encoder(self.prompt_learner(tokens), ends))

    def maps(
        self, images: Float[Tensor, "B 3 height width"], text: Float[Tensor, "C embedding"]
    ) -> Float[Tensor, "B C rows columns"]:
        """Probability of each class at each patch; classes do not compete.

        Args:
            images: Pictures, normalised by ImageNet's mean and deviation, sides multiples of the patch.
            text: See `encode_text`.
        """
        blocks = self.dino_model(images)
        merged = torch.stack(
            [
                weight * norm(linear(patches))
                for weight, norm, linear, (patches, _) in zip(
                    self.merge_weight.softmax(0), self.lln_norm, self.lln_linear, blocks, strict=True
                )
            ]
        ).sum(0)
        patches = self.lln_norm_1(self.embedder(merged))
        cls = self.linear_cls(blocks[-1][1])
        classes = text.expand(len(images), -1, -1)
        for layer in self.seg_decoder["decoder"]["layers"]:  # pyright: ignore[reportIndexIssue]
            classes = layer(classes, patches, cls)
        found = torch.sigmoid(classes @ patches.mT * _MAP_SCALE)
        return found.unflatten(2, (images.shape[2] // self.shape.patch, -1))

    def forward(
        self, images: Float[Tensor, "B 3 height width"], text: Float[Tensor, "C embedding"]
    ) -> Float[Tensor, "B C height width"]:
        """The maps at the pictures' size."""
        return interpolate(self.maps(images, text), images.shape[2:], mode="bilinear")


def unused_shapes(shape: OoalShape) -> dict[str, tuple[int, ...]]:
    """Weights that the published file holds and the computation never uses."""
    width, found = shape.embedding, {"dino_model.mask_token": (1, shape.width)}
    for number in range(shape.decoder_layers):
        layer = f"seg_decoder.decoder.layers.{number}"
        found |= {
            f"{layer}.norm1.weight": (width,),
            f"{layer}.norm1.bias": (width,),
            f"{layer}.self_attn.in_proj_weight": (3 * width, width),
            f"{layer}.self_attn.in_proj_bias": (3 * width,),
            f"{layer}.self_attn.out_proj.weight": (width, width),
            f"{layer}.self_attn.out_proj.bias": (width,),
        }
    return found
