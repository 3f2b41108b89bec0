"""Losses of the three layers and of the semantic heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.model_components.losses import lossfun_outer, ray_samples_to_sdist
from torch import Tensor

from divff_nerfstudio.rendering import ProposalSamples


def uncertain_photometric(
    rgb: Float[Tensor, "rays 3"], target: Float[Tensor, "rays 3"], uncertainty: Float[Tensor, "rays"]
) -> Float[Tensor, ""]:
    """Negative log-likelihood of colours under a normal distribution (NeRF-W, Martin-Brualla 2021; DIV-FF)."""
    squared = (rgb - target).square()
    return (squared / (2 * uncertainty[:, None].square())).mean() + uncertainty.log().mean()


def proposal_loss(
    proposal: ProposalSamples, samples: RaySamples, weights: Float[Tensor, "rays samples"]
) -> Float[Tensor, ""]:
    """Teaches the proposal to bound the weights of what it leads to (mip-NeRF 360, equation 13)."""
    bound = lossfun_outer(
        ray_samples_to_sdist(samples).detach(),
        weights.detach(),
        ray_samples_to_sdist(proposal.samples),
        proposal.weights[..., 0],
    )
    return bound.mean()


def persistence_loss(
    here: Float[Tensor, "points"],
    elsewhen: Float[Tensor, "points moments"],
    depth: float,
) -> Float[Tensor, ""]:
    """How opaque the dynamic layer is at places where it is at all times: such things belong to the static layer.

    The least of several moments is taken, so that an object that rests and is once moved costs nothing where it comes
    from and where it goes, which the lesser of only two moments does not forgive.

    Args:
        here: Density of the dynamic layer at points drawn where it is seen, at their rays' times.
        elsewhen: Its density at the same places at moments spread over the video.
        depth: Thickness over which opacity is measured, in scene units.
    """
    least = torch.minimum(elsewhen.amin(-1), here)
    return (1 - torch.exp(-least * depth)).mean()


def feature_loss(
    kind: str,
    rendered: Float[Tensor, "rays dim"],
    target: Float[Tensor, "rays dim"],
    valid: Bool[Tensor, "rays"],
) -> Float[Tensor, ""]:
    """Distillation loss of one kind of features (DIV-FF), summed over channels and averaged over rays with a target.

    Huber (delta 1.25) for language features, squared error for the regulariser.
    """
    if kind == "regulariser":
        error = (rendered - target).square()
    else:
        error = F.huber_loss(rendered, target, delta=1.25, reduction="none")
    return (error.sum(-1) * valid).sum() / valid.sum().clamp_min(1)
