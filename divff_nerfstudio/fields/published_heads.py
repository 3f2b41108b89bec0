"""The semantic heads of DIV-FF (Mur-Labadia 2025), under the names of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.configs.base_config import InstantiateConfig
from torch import Tensor, nn

from divff_nerfstudio.fields.layers import Layer, LayerSamples, SamplePoints
from divff_nerfstudio.fields.published import PUBLISHED_LAYERS
from divff_nerfstudio.schema import Size


@dataclass
class PublishedHeadsConfig(InstantiateConfig):
    """Sizes of the published semantic heads."""

    _target: type = field(default_factory=lambda: PublishedHeads)
    """target class to instantiate"""
    hidden: Size = 128
    """Width of the heads."""
    samples: Size = 32
    """Samples of largest weight, per ray and layer, from which features are rendered."""
    dimensions: dict[str, Size] = field(default_factory=dict)
    """Length of the features by kind, where the scene has none of that kind to take it from (imported weights)."""


HIDDEN_LAYERS: Mapping[str, int] = {"image": 5, "video": 4, "regulariser": 1}
"""Hidden layers of the head of each kind."""


class PublishedHeads(nn.Module):
    """Renders features of every kind from the layers' encodings.

    Its state_dict holds the published names: `static_lerf.clip_net.*`, `static_video.egovideo_net.*`,
    `static_video.dino_net.*`, and so for `transient` and `person`.

    Args:
        config: Sizes.
        encoding_dim: Length of the layers' encodings.
        dimensions: Length of the features of each kind.
    """

    def __init__(self, config: PublishedHeadsConfig, encoding_dim: int, dimensions: Mapping[str, int]):
        super().__init__()
        self.config = config
        self.dimensions = {kind: dimensions[kind] for kind in HIDDEN_LAYERS if kind in dimensions}
        for name in PUBLISHED_LAYERS.values():
            nets = {
                kind: _head(encoding_dim, config.hidden, HIDDEN_LAYERS[kind], dim)
                for kind, dim in self.dimensions.items()
            }
            language, video = nn.Module(), nn.Module()
            for part, kind, net in (
                (language, "image", "clip_net"),
                (video, "video", "egovideo_net"),
                (video, "regulariser", "dino_net"),
            ):
                if kind in nets:
                    part.add_module(net, nets[kind])
            self.add_module(f"{name}_lerf", language)
            self.add_module(f"{name}_video", video)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of features that are rendered."""
        return tuple(self.dimensions)

    def head(self, layer: Layer, kind: str) -> nn.Sequential:
        """The network of one layer and kind: linear layers with ReLU between them."""
        name = PUBLISHED_LAYERS[layer]
        if kind == "image":
            return getattr(self, f"{name}_lerf").clip_net
        video = getattr(self, f"{name}_video")
        return video.egovideo_net if kind == "video" else video.dino_net

    def code(
        self,
        points: SamplePoints,
        samples: Mapping[Layer, LayerSamples],
        weights: Mapping[Layer, Float[Tensor, "rays samples"]],
        time_code: Float[Tensor, "rays dim"],
    ) -> Float[Tensor, "rays code"]:
        """Features of rays, of all kinds, before they are brought to unit length.

        Each layer's weighted sum over its samples of largest weight; the three sums are added. A head's last layer is
        linear: it is applied to the sum, its bias times the sum of the weights, which is the same.
        """
        totals = dict.fromkeys(self.dimensions, torch.zeros(()))
        for layer, found in samples.items():
            count = min(self.config.samples, weights[layer].shape[-1])
            top, which = weights[layer].topk(count, -1, sorted=False)
            encoding = torch.gather(found.encoding, 1, which[..., None].expand(-1, -1, found.encoding.shape[-1]))
            for kind in self.dimensions:
                *hidden, last = self.head(layer, kind)
                values = encoding
                for module in hidden:
                    values = F.relu(values, inplace=True) if isinstance(module, nn.ReLU) else module(values)
                summed = torch.einsum("rs,rsd->rd", top, values)
                assert isinstance(last, nn.Linear)
                rendered = F.linear(summed, last.weight) + top.sum(-1, keepdim=True) * last.bias
                totals[kind] = totals[kind] + rendered
        return torch.cat([totals[kind] for kind in self.dimensions], -1)

    def decode(self, code: Float[Tensor, "*bs code"], kind: str) -> Float[Tensor, "*bs dim"]:
        """Features of one kind, of unit length."""
        parts = dict(zip(self.dimensions, code.split(list(self.dimensions.values()), -1), strict=True))
        return F.normalize(parts[kind], dim=-1)


def _head(inputs: int, width: int, hidden: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(hidden):
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
