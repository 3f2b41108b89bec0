"""Compositing of three layers along rays (DIV-FF section 3; NeuralDiff, Tschernezki 2021)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.model_components.ray_samplers import LogSampler, PDFSampler
from torch import Tensor

from divff_nerfstudio.fields.layers import Layer, LayerSamples, SamplePoints
from divff_nerfstudio.fields.next_in_time import frames_around

CLEAR = 1e-10
"""Share of light that an opaque sample lets through in the published compositing."""
OPEN_END = 100.0
"""Length of the last interval in the published compositing, in scene units."""
SPREAD = 0.1
"""Share of the samples that is spread evenly over the proposal's intervals, in case it has missed something."""
BEHIND = 0.4
"""Samples for the room by itself, relative to those for all that the ray meets."""


@dataclass
class Composite:
    """Shares of the layers in rays."""

    weights: dict[Layer, Float[Tensor, "rays samples"]]
    """Weight of each layer's samples in the joint render."""
    alphas: dict[Layer, Float[Tensor, "rays samples"]]
    """Opacity of each layer's samples, in the joint render and when it is rendered alone."""
    opacity: Float[Tensor, "rays samples"]
    """Joint opacity of the samples."""
    transmittance: Float[Tensor, "rays samples"]
    """Share of light that reaches each sample through all layers."""

    @property
    def joint(self) -> Float[Tensor, "rays samples"]:
        """Weights of the samples as of one medium."""
        return self.opacity * self.transmittance

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
    densities: Mapping[Layer, Float[Tensor, "rays samples"]],
    deltas: Float[Tensor, "rays samples"],
    open_end: bool = False,
    share_epsilon: float = 1e-6,
) -> Composite:
    """Weights of layers that share their rays.

    With s the sum of the densities, the joint opacity is 1 - exp(-delta s), and a layer's opacity is its part of s of
    it; the transmittance comes from the joint opacity.

    Args:
        densities: In 1 / scene unit, not negative.
        deltas: Lengths of the intervals, in scene units.
        open_end: The last interval has no end (`OPEN_END`): there each layer has the opacity of its own density, so
            that the weights of all layers may sum to more than 1 (DIV-FF).
        share_epsilon: Added to the sum of which a layer has its part (1e-6 in DIV-FF, nothing in NeuralDiff).
    """
    summed = sum(densities.values(), torch.zeros(()))
    optical = summed * deltas
    opacity = 1 - torch.exp(-optical)
    share = opacity / (summed + share_epsilon)
    alphas: dict[Layer, Tensor] = {layer: density * share for layer, density in densities.items()}
    if open_end:
        for layer, density in densities.items():
            last = 1 - torch.exp(-density[:, -1:] * deltas[:, -1:])
            alphas[layer] = torch.cat((alphas[layer][:, :-1], last), -1)
        # As a product, in which the last interval has no part: so long, it would round the others away in a sum.
        reached = transmittance(opacity, CLEAR)
    else:
        # Summed without the sample itself: taken off again, a dense one would leave nothing of those before it.
        reached = torch.exp(-F.pad(torch.cumsum(optical[:, :-1], -1), (1, 0)))
    weights: dict[Layer, Tensor] = {layer: alpha * reached for layer, alpha in alphas.items()}
    return Composite(weights=weights, alphas=alphas, opacity=opacity, transmittance=reached)


def weights_alone(alphas: Float[Tensor, "rays samples"], floor: float = 1e-7) -> Float[Tensor, "rays samples"]:
    """Weights of one layer rendered alone: its opacities of the joint render under its own transmittance (DIV-FF)."""
    return alphas * transmittance(alphas, floor)


def transmittance(alphas: Float[Tensor, "rays samples"], floor: float = 1e-7) -> Float[Tensor, "rays samples"]:
    """Share of light that reaches each sample through those before it, each of which lets `floor` more through."""
    clear = _Products.apply(1 - alphas[:, :-1] + floor)
    return torch.cat((torch.ones_like(alphas[:, :1]), clear), -1)  # pyright: ignore[reportCallIssue, reportArgumentType]


class _Products(torch.autograd.Function):
    """Products of all factors up to each; none of them is 0, which PyTorch's own gradient asks the device for."""

    @staticmethod
    def forward(ctx: Any, factors: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        products = torch.cumprod(factors, -1)
        ctx.save_for_backward(factors, products)
        return products

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        factors, products = ctx.saved_tensors
        return (grad * products).flip(-1).cumsum(-1).flip(-1) / factors


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
    composited: Composite, samples: Mapping[Layer, LayerSamples], min_uncertainty: float
) -> Float[Tensor, "rays"]:
    """Standard deviation of a ray's colour: weighted sums of moving layers and `min_uncertainty` (NeRF-W, DIV-FF)."""
    weights = next(iter(composited.weights.values()))
    total = torch.full_like(weights[:, 0], min_uncertainty)
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
    anneal: float | Tensor = 1.0,
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
    first.train(training)
    second = PDFSampler(include_original=False, single_jitter=True, histogram_padding=SPREAD / num_proposal)
    second.train(training)
    with rays.origins.device:  # on which the sampler would else wait for what it makes on the host
        coarse = first(rays, num_samples=num_proposal)
    everything, room = (
        coarse.get_weights(found.view(-1, num_proposal, 1)) for found in density(points_of(rays, coarse))
    )
    drawn = torch.pow(((everything + BEHIND * room) / (1 + BEHIND)).detach(), anneal)
    return second(rays, coarse, drawn, num_samples=num_samples), ProposalSamples(coarse, everything, room)


def points_of(rays: RayBundle, samples: RaySamples) -> SamplePoints:
    """World and camera positions of samples."""
    return points_at(rays, midpoints(samples))


def head_positions(
    positions: Float[Tensor, "rays samples 3"],
    times: Float[Tensor, "rays 1"],
    filmed: Float[Tensor, "frames"],
    poses: Float[Tensor, "frames 3 4"],
) -> Float[Tensor, "rays samples 3"]:
    """Points in the frame of the camera that filmed, wherever they are looked at from.

    Args:
        positions: World, in scene units.
        times: When, in [0, 1].
        filmed: Times of the frames, ascending.
        poses: Their cameras to world; between two of them the pose is between theirs.
    """
    earlier, later = frames_around(filmed, times[:, 0])
    span = (filmed[later] - filmed[earlier]).clamp_min(1e-9)
    share = ((times[:, 0] - filmed[earlier]) / span).clamp(0, 1)[:, None, None]
    pose = torch.lerp(poses[earlier], poses[later], share)
    right = F.normalize(pose[..., 0], dim=-1)
    back = F.normalize(torch.linalg.cross(right, pose[..., 1], dim=-1), dim=-1)
    axes = torch.stack((right, torch.linalg.cross(back, right, dim=-1), back), -1)
    return (positions - pose[:, None, :, 3]) @ axes


def points_at(rays: RayBundle, depths: Float[Tensor, "rays samples"]) -> SamplePoints:
    """World and camera positions at distances along rays, in scene units."""
    distances = depths[..., None]
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


def even_depths(rays: RayBundle, count: int, jitter: bool) -> Float[Tensor, "rays count"]:
    """Depths from near to far, both included, at even distances (NeRF's coarse samples).

    Args:
        rays: Rays with nears and fars.
        count: Depths on each ray.
        jitter: Draw each between the midpoints to its neighbours.
    """
    assert rays.nears is not None and rays.fars is not None
    steps = torch.linspace(0, 1, count, device=rays.origins.device)
    depths = rays.nears * (1 - steps) + rays.fars * steps
    if not jitter:
        return depths
    midpoints = between(depths)
    lower = torch.cat((depths[:, :1], midpoints), -1)
    upper = torch.cat((midpoints, depths[:, -1:]), -1)
    return lower + (upper - lower) * torch.rand_like(depths)


def between(depths: Float[Tensor, "rays samples"]) -> Float[Tensor, "rays samples-1"]:
    """The midpoints of neighbouring depths."""
    return (depths[:, :-1] + depths[:, 1:]) / 2


def importance_depths(
    edges: Float[Tensor, "rays edges"], weights: Float[Tensor, "rays edges-1"], count: int, jitter: bool
) -> Float[Tensor, "rays count"]:
    """Depths drawn by the inverse of the weights' distribution function (NeRF, section 5.2; constants of DIV-FF).

    Args:
        edges: Ends of the intervals, ascending.
        weights: Weights of the intervals; each is raised by 1e-5.
        count: Depths on each ray.
        jitter: Draw uniformly at random; otherwise at even steps of the distribution, both ends included.
    """
    raised = weights + 1e-5
    share = F.pad(torch.cumsum(raised / raised.sum(-1, keepdim=True), -1), (1, 0))
    if jitter:
        wanted = torch.rand(len(share), count, device=share.device)
    else:
        wanted = torch.linspace(0, 1, count, device=share.device).expand(len(share), -1).contiguous()
    above = torch.searchsorted(share, wanted, right=True)
    below = (above - 1).clamp_min(0)
    above = above.clamp_max(share.shape[-1] - 1)
    low, high = share.gather(-1, below), share.gather(-1, above)
    # An interval that is hardly ever hit gives its beginning.
    width = torch.where(high - low < 1e-5, torch.ones_like(low), high - low)
    start, end = edges.gather(-1, below), edges.gather(-1, above)
    return start + (wanted - low) / width * (end - start)


def open_intervals(depths: Float[Tensor, "rays samples"]) -> Float[Tensor, "rays samples"]:
    """Distance from each depth to the next, and `OPEN_END` behind the last."""
    return torch.cat((depths[:, 1:] - depths[:, :-1], torch.full_like(depths[:, :1], OPEN_END)), -1)
