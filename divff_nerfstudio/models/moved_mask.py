"""What has been moved by some time: what the dynamic layer shows where it has not been from the first moment on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_MOMENTS = 12
"""Earlier moments that are looked at, spread evenly."""
_REACH = 0.05
"""How far from its mean distance along the ray the layer counts, relative to that distance: an object, blurred."""
_SHOWN = 0.02
"""Rays with less of the layer show nothing that could have been moved."""
_MIN_OPACITY = 0.05
"""Opacity below which nothing is compared."""
_COLOUR_SPREAD = 0.15
"""Difference of colours, in [0, 1] each, at which something is hardly the same any more (exp(-1/2))."""


def moved_mask(
    weights: Float[Tensor, "rays samples"],
    densities: Float[Tensor, "rays samples"],
    positions: Float[Tensor, "rays samples 3"],
    distances: Float[Tensor, "rays samples"],
    lengths: Float[Tensor, "rays samples"],
    times: Float[Tensor, "rays 1"],
    layer_at: Callable[
        [Float[Tensor, "points 3"], Float[Tensor, "points moments"]],
        tuple[Float[Tensor, "points moments"], Float[Tensor, "points moments 3"]],
    ],
) -> Float[Tensor, "rays"]:
    """The dynamic layer's mask, but for what has been at its place from the first moment on: that is yet to be moved.

    Annotations of moved objects count them from their first move on (EPIC-Diff), where the layer has them always. What
    is carried is nowhere at rest, and counts wholly; so does what lies where something of other colours was before.

    Args:
        weights: Of the layer's samples in the joint render.
        densities: The layer's, with what is carried, 1 / scene unit.
        positions: World, scene units.
        distances: Along the unit rays, scene units.
        lengths: Of the samples' intervals, scene units.
        times: When the rays look.
        layer_at: Density and colour of what rests in the layer, at places and moments.

    Returns:
        At most the layer's mask.
    """
    mask = weights.sum(-1)
    middle = (weights * distances).sum(-1) / mask.clamp_min(1e-6)
    shown = (mask > _SHOWN)[:, None] & ((distances - middle[:, None]).abs() < _REACH * middle[:, None])
    rays, samples = shown.nonzero(as_tuple=True)
    if not len(rays):
        return torch.zeros_like(mask)
    steps = torch.arange(_MOMENTS + 1, device=times.device) / _MOMENTS
    moments = times.clamp_min(0) * steps
    density, colours = layer_at(positions[rays, samples], moments[rays])
    resting = density * lengths[rays, samples, None]
    optical = resting.new_zeros(len(mask), _MOMENTS + 1).index_add_(0, rays, resting)
    seen = colours.new_zeros(len(mask), _MOMENTS + 1, 3).index_add_(0, rays, resting[..., None] * colours)
    seen = seen / optical.clamp_min(1e-6)[..., None]
    alike = torch.exp(-(seen - seen[:, -1:]).square().sum(-1) / (2 * _COLOUR_SPREAD**2))
    everything = torch.where(shown, densities * lengths, 0.0).sum(-1, keepdim=True)
    opacities, opacity = 1 - torch.exp(-optical), (1 - torch.exp(-everything)).clamp_min(_MIN_OPACITY)
    # Of what rests there now, as much as has been there at each of the moments.
    stayed = (opacities * alike).amin(-1) / opacity[:, 0]
    return mask * (1 - stayed.clamp(0, 1))
