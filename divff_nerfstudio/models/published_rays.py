"""What the published method makes of rays: a coarse pass, and the layers composited at the samples that it led to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from divff_nerfstudio.fields.layers import Layer, LayerSamples, SamplePoints
from divff_nerfstudio.rendering import CLEAR, Composite, accumulate, ray_uncertainty, weights_alone


@dataclass
class CoarsePass:
    """What the coarse network says of rays."""

    depths: Float[Tensor, "rays samples"]
    """Distances along the unit rays, in scene units."""
    density: Float[Tensor, "rays samples"]
    """In 1 / scene unit, without noise."""
    composited: Composite
    """The one layer, with noise in training."""
    colours: Float[Tensor, "rays samples 3"] | None
    """In training only: elsewhere the densities are enough."""

    @property
    def rgb(self) -> Float[Tensor, "rays 3"]:
        """Colours of the rays."""
        assert self.colours is not None
        return accumulate(self.composited.joint, self.colours)


@dataclass
class Rendering:
    """Rays when layers have been composited."""

    coarse: CoarsePass
    """What led to the samples."""
    drawn: Float[Tensor, "rays drawn"]
    """Depths that were drawn from the coarse weights."""
    depths: Float[Tensor, "rays samples"]
    """Those and the coarse ones, ascending."""
    points: SamplePoints
    """Where they are."""
    fields: dict[Layer, LayerSamples]
    """What the fine network says there, with the last sample's override in training."""
    composited: Composite
    """Shares of the layers."""
    min_uncertainty: float
    """Standard deviation of the colours of the static layer."""

    @property
    def uncertainty(self) -> Float[Tensor, "rays"]:
        """Standard deviations of the colours."""
        return ray_uncertainty(self.composited, self.fields, self.min_uncertainty)

    @property
    def shares(self) -> dict[Layer, Float[Tensor, "rays 3"]]:
        """Each layer's share of the colours."""
        return {layer: accumulate(self.composited.weights[layer], self.fields[layer].rgb) for layer in self.fields}

    @property
    def rgb(self) -> Float[Tensor, "rays 3"]:
        """Colours of the rays."""
        return torch.stack(list(self.shares.values())).sum(0)

    @property
    def depth(self) -> Float[Tensor, "rays"]:
        """Sum of the joint weights times the distances; it is not divided by the opacity."""
        return (self.composited.joint * self.depths).sum(-1)

    def alone(self, layer: Layer) -> Float[Tensor, "rays samples"]:
        """Weights of a layer rendered alone."""
        return weights_alone(self.composited.alphas[layer], CLEAR)

    def rgb_alone(self, layer: Layer) -> Float[Tensor, "rays 3"]:
        """Colours of a layer rendered alone."""
        return accumulate(self.alone(layer), self.fields[layer].rgb)
