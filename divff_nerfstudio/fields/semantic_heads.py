"""Semantic heads: features of the three layers, distilled from image- and video-language encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from divff_nerfstudio.fields.encodings import GridEncoding, Implementation
from divff_nerfstudio.fields.layers import LAYERS, Layer, LayerSamples, SamplePoints
from divff_nerfstudio.fields.networks import Network
from divff_nerfstudio.fields.space import SceneSpace
from divff_nerfstudio.schema import Resolutions, Size


@dataclass
class SemanticHeadsConfig:
    """Sizes of the semantic heads."""

    resolutions: Resolutions = (32, 96)
    """Resolutions of the planes that tell apart places of equal colour."""
    channels: Size = 16
    """Channels per resolution."""
    hidden: Size = 128
    """Width of the heads."""
    samples: Size = 8
    """Samples of largest weight whose encodings are summed, per ray."""


class FeatureDecoder(nn.Module):
    """Networks that decode codes of rays to features, one for each kind."""

    heads: nn.ModuleDict

    def add_heads(self, code_dim: int, width: int, dimensions: Mapping[str, int]) -> None:
        """Makes the networks, where in the order of modules they belong.

        Args:
            code_dim: Length of the codes.
            width: Width of the networks.
            dimensions: Length of the features of each kind.
        """
        self.heads = nn.ModuleDict(
            {
                kind: Network(code_dim, num_layers=3, layer_width=width, out_dim=size)
                for kind, size in dimensions.items()
            }
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of features that are rendered."""
        return tuple(self.heads)

    def decode(self, code: Float[Tensor, "*bs code"], kind: str) -> Float[Tensor, "*bs dim"]:
        """Features of one kind, of unit length."""
        return nn.functional.normalize(self.heads[kind](code), dim=-1)


class SemanticHeads(FeatureDecoder):
    """Renders one code per ray from the layers' encodings, and decodes it to every kind of features.

    The code is a weighted sum over samples; everything behind it is computed once per ray, not once per sample.

    Args:
        config: Sizes.
        space: The scene's units.
        implementation: Encoding of places.
        encoding_dim: Length of the layers' encodings.
        time_dim: Length of the time codes.
        dimensions: Length of the features of each kind.
    """

    def __init__(
        self,
        config: SemanticHeadsConfig,
        space: SceneSpace,
        implementation: Implementation,
        encoding_dim: int,
        time_dim: int,
        dimensions: Mapping[str, int],
    ):
        super().__init__()
        self.config = config
        self.space = space
        self.grid = GridEncoding(implementation, config.resolutions, config.channels)
        self.in_world: tuple[Layer, ...] = ("static", "dynamic")
        self.encoding_dim = encoding_dim
        code_dim = len(LAYERS) * (encoding_dim + 1) + len(self.in_world) * self.grid.out_dim + time_dim
        self.code_dim = code_dim
        self.add_heads(code_dim, config.hidden, dimensions)

    def code(
        self,
        points: SamplePoints,
        samples: Mapping[Layer, LayerSamples],
        weights: Mapping[Layer, Float[Tensor, "rays samples"]],
        time_code: Float[Tensor, "rays dim"],
    ) -> Float[Tensor, "rays code"]:
        """Code of rays: sums of each layer's encodings and places, its mask, and when it is. Hidden layers are zero."""
        rays = len(time_code)
        parts = []
        for layer in LAYERS:
            if layer not in samples:
                size = self.encoding_dim + 1 + (self.grid.out_dim if layer in self.in_world else 0)
                parts.append(time_code.new_zeros(rays, size))
                continue
            count = min(self.config.samples, weights[layer].shape[-1])
            top, which = weights[layer].topk(count, -1)
            parts.append(weights[layer].sum(-1, keepdim=True))
            parts.append(torch.einsum("rs,rsd->rd", top, _pick(samples[layer].encoding, which)))
            if layer in self.in_world:
                positions = self.space.to_unit_cube(_pick(points.positions, which).reshape(-1, 3))
                parts.append(torch.einsum("rs,rsd->rd", top, self.grid(positions).view(rays, count, -1)))
        return torch.cat((*parts, time_code), -1)


def _pick(
    values: Float[Tensor, "rays samples dim"], which: Float[Tensor, "rays count"]
) -> Float[Tensor, "rays count dim"]:
    return torch.gather(values, 1, which[..., None].expand(-1, -1, values.shape[-1]))
