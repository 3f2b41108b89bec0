"""Compositing of three layers along rays (DIV-FF section 3; NeuralDiff, Tschernezki 2021)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.model_components.ray_samplers import LogSampler, PDFSampler
from torch import Tensor

from divff_nerfstudio.fields.layers import LAYERS, Layer, LayerSamples, SamplePoints

SPREAD = 0.1
"""Share of the samples that is spread evenly over the proposal's intervals, in case it has missed something."""
BEHIND = 0.4
"""Samples for the room by itself, relative to those for all that the ray meets."""


@dataclass
class Visibility:
    """Which moving layers to leave out of pictures. Shared with the viewer, read at every render."""

    hide_actor: bool = False
    """Render the scene without the camera wearer."""
    hide_dynamic: bool = False
    """Render the scene without what moves."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers to render."""
        hidden = {"actor": self.hide_actor, "dynamic": self.hide_dynamic}
        return tuple(layer for layer in LAYERS if not hidden.get(layer, False))


@dataclass
class Composite:
    """Shares of the layers in rays."""

    weights: dict[Layer, Float[Tensor, "rays samples"]]
    """Weight of each layer's samples in the joint render."""
    alphas: dict[Layer, Float[Tensor, "rays samples"]]
    """Opacity of each layer's samples, in the joint render and when it is rendered alone."""

    @property
    def total(self) -> Float[Tensor, "rays samples"]:
        """Weights of all layers together."""
        return sum(self.weights.values(), torch.zeros(()))  # pyright: ignore[reportReturnType]

    def mask(self, layer: Layer) -> Float[Tensor, "rays"]:
        """Sum of a layer's weights; zero for a layer that is not rendered."""
        if layer not in self.weights:
            return torch.zeros_like(next(iter(self.weights.values()))[:, 0])
        return self.weights[layer].sum(-1)


def composite(
    densities: Mapping[Layer, Float[Tensor, "rays samples"]], deltas: Float[Tensor, "rays samples"]
) -> Composite:
    """Weights of layers that share their rays.

    With s the sum of the densities, the joint opacity is 1 - exp(-delta s), and a layer's opacity is its part of s of
    it; the transmittance comes from the joint opacity.

    Args:
        densities: In 1 / scene unit, not negative.
        deltas: Lengths of the intervals, in scene units.
    """
    summed = sum(densities.values(), torch.zeros(()))
    optical = summed * deltas
    share = (1 - torch.exp(-optical)) / (summed + 1e-6)
    transmittance = torch.exp(-(torch.cumsum(optical, -1) - optical))
    alphas: dict[Layer, Tensor] = {layer: density * share for layer, density in densities.items()}
    return Composite(weights={layer: alpha * transmittance for layer, alpha in alphas.items()}, alphas=alphas)


def weights_alone(alphas: Float[Tensor, "rays samples"]) -> Float[Tensor, "rays samples"]:
    """Weights of one layer rendered alone: its opacities of the joint render under its own transmittance (DIV-FF)."""
    return alphas * transmittance(alphas)


def transmittance(alphas: Float[Tensor, "rays samples"]) -> Float[Tensor, "rays samples"]:
    """Share of light that reaches each sample through those before it."""
    clear = torch.cumprod(1 - alphas[:, :-1] + 1e-7, -1)
    return torch.cat((torch.ones_like(alphas[:, :1]), clear), -1)


def accumulate(
    weights: Float[Tensor, "rays samples"], values: Float[Tensor, "rays samples dim"]
) -> Float[Tensor, "rays dim"]:
    """Weighted sum of samples' values along rays."""
    return torch.einsum("rs,rsd->rd", weights, values)


def expected_depth(
    weights: Float[Tensor, "rays samples"], distances: Float[Tensor, "rays samples"]
) -> Float[Tensor, "rays"]:
    """Mean distance along the unit ray, over what the ray meets."""
    return (weights * distances).sum(-1) / weights.sum(-1).clamp_min(1e-6)


def ray_uncertainty(
    composited: Composite, samples: Mapping[Layer, LayerSamples], least: float
) -> Float[Tensor, "rays"]:
    """Standard deviation of a ray's colour: the moving layers' weighted sums, plus `least` (NeRF-W, DIV-FF)."""
    weights = next(iter(composited.weights.values()))
    total = torch.full_like(weights[:, 0], least)
    for layer, sample in samples.items():
        if sample.uncertainty is not None:
            total = total + (composited.weights[layer] * sample.uncertainty).sum(-1)
    return total


@dataclass
class ProposalSamples:
    """A proposal and what it led to, for the loss that teaches it."""

    samples: RaySamples
    """Intervals of the proposal."""
    weights: Float[Tensor, "rays samples 1"]
    """Its weights."""
    room_weights: Float[Tensor, "rays samples 1"]
    """Weights of its room, as if nothing were before it."""


def sample_rays(
    rays: RayBundle,
    density: Callable[[SamplePoints], tuple[Float[Tensor, "points"], Float[Tensor, "points"]]],
    num_proposal: int,
    num_samples: int,
    anneal: float = 1.0,
    training: bool = True,
) -> tuple[RaySamples, ProposalSamples]:
    """Draws samples where a proposal says that there is something (mip-NeRF 360, Barron 2022).

    The proposal's intervals are spaced by the logarithm of the distance, since hands are near and rooms are far. Some
    samples go to the room behind the hands, which is rendered alone, too.

    Args:
        rays: Rays with nears, fars and times, and "camera_directions" in their metadata.
        density: Density of the proposal: of everything, and of its room.
        num_proposal: Intervals of the proposal.
        num_samples: Intervals that are returned.
        anneal: Exponent of the proposal's weights, below 1 while it is still unreliable.
        training: Whether to draw at random.
    """
    first = LogSampler(single_jitter=True)
    second = PDFSampler(include_original=False, single_jitter=True, histogram_padding=SPREAD / num_proposal)
    first.train(training)
    second.train(training)
    coarse = first(rays, num_samples=num_proposal)
    everything, room = (
        coarse.get_weights(found.view(-1, num_proposal, 1)) for found in density(points_of(rays, coarse))
    )
    drawn = torch.pow(((everything + BEHIND * room) / (1 + BEHIND)).detach(), anneal)
    return second(rays, coarse, drawn, num_samples=num_samples), ProposalSamples(coarse, everything, room)


def points_of(rays: RayBundle, samples: RaySamples) -> SamplePoints:
    """World and camera positions of samples."""
    distances = midpoints(samples)[..., None]
    assert rays.times is not None
    return SamplePoints(
        positions=rays.origins[:, None] + rays.directions[:, None] * distances,
        camera_positions=rays.metadata["camera_directions"][:, None] * distances,
        directions=rays.directions,
        times=rays.times,
    )


def midpoints(samples: RaySamples) -> Float[Tensor, "rays samples"]:
    """Distances of samples along their rays, in scene units."""
    return (samples.frustums.starts[..., 0] + samples.frustums.ends[..., 0]) / 2
