"""Losses by which a video comes apart into three layers, shared by fields and Gaussians."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, Optional

import torch
from jaxtyping import Float
from nerfstudio.configs.base_config import PrintableConfig
from torch import Tensor

from divff_nerfstudio.card import sent
from divff_nerfstudio.datamanager import DivFFDataManagerConfig
from divff_nerfstudio.fields.layers import Layer
from divff_nerfstudio.former_names import formerly
from divff_nerfstudio.schema import Positive, Share, Weight

PLACED = 0.08
"""How far from where it was found an object may be drawn, relative to its distance."""

_EVIDENCE_WEIGHT = 1.0


@dataclass
class SeparationConfig(PrintableConfig):
    """Options of what tells the layers apart, for fields and Gaussians."""

    min_uncertainty: Annotated[Positive, formerly("--pipeline.model.least-uncertainty")] = 0.03
    """Standard deviation of the colours of the static layer (DIV-FF)."""
    photometric_static_weight: Weight = 10.0
    """Weight of the absolute error while the static layer is trained alone."""
    mask_weight: Weight = 0.1
    """Cost of a pixel that a moving layer explains; it rises over a quarter of the geometry, from static-first on."""
    evidence: Literal["off", "on", "auto"] = "off"
    """Whether what moves is looked for before anything is trained, see docs/separation.md; auto: yes, and hands carry
    it."""
    evidence_weight: Optional[Weight] = _EVIDENCE_WEIGHT  # noqa: UP045
    """Weight of `evidence_loss`, with evidence; None, in runs of a former version: 1."""
    evidence_against: Share = 0.9
    """Weight, in it, of a layer's mask where it is not (Layered Motion Fusion: 1.0 against 1.1)."""
    hints: Literal["off", "on", "auto"] = "off"
    """Whether stored hints of what moves and what is hand are used (`divff extract --sources hints`). "auto" is settled
    when training starts: on where there are any."""
    hint_weight: Weight = 1.1
    """Weight of hints for the layer that a pixel belongs to (Layered Motion Fusion)."""
    hint_against_weight: Weight = 1.0
    """Weight of hints against the layers that it does not belong to (Layered Motion Fusion)."""
    static_weight: Weight = 3.0
    """Weight of the static layer's own absolute error where nothing moves: without it, a shadow over everything and a
    room that is brighter by as much look the same."""
    enclosure_weight: Weight = 0.1
    """Weight of pixels that see through the static layer: a room is closed, also behind the actor."""
    shadow_weight: Weight = 3.0
    """Weight of `shadow_loss`."""
    shadow_tolerance: Positive = 0.04
    """How far, in colour, a shadowed room may be from a darker multiple of itself."""

    def settle_evidence(self) -> bool:
        """Settles "auto"; whether it was that."""
        if self.evidence != "auto":
            return False
        self.evidence = "on"
        return True

    def settle_hints(self, data: DivFFDataManagerConfig) -> None:
        """Settles "auto"."""
        if self.hints == "auto":
            self.hints = "on" if data.has_hints() else "off"


def room_loss(
    config: SeparationConfig,
    rgb: Float[Tensor, "rays 3"],
    target: Float[Tensor, "rays 3"],
    evidence: Float[Tensor, "rays 2"] | None,
    hints: Float[Tensor, "rays 2"] | None = None,
) -> Float[Tensor, ""]:
    """What the static layer alone is trained by: its absolute error, where no evidence or hint is of something that
    moves."""
    error = (rgb - target).abs().mean(-1)
    return config.photometric_static_weight * (_room(target, evidence, hints) * error).mean()


def layer_losses(
    config: SeparationConfig,
    mask_weight: float | Tensor,
    masks: Mapping[Layer, Float[Tensor, "rays"]],
    rgb_static: Float[Tensor, "rays 3"],
    shadow: Float[Tensor, "rays"] | None,
    target: Float[Tensor, "rays 3"],
    evidence: Float[Tensor, "rays 2"] | None,
    placed: Float[Tensor, "rays"] | None = None,
    hints: Float[Tensor, "rays 2"] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """What tells the layers apart once all are trained, weighed.

    Args:
        config: The weights.
        mask_weight: Cost of moving masks, as much of it as is due.
        masks: Shares of dynamic layer and actor in each pixel, in this order.
        rgb_static: Colour of the static layer alone, unshadowed.
        shadow: Share of its light that the actor takes; None: no shadow is modelled.
        target: Colour seen.
        evidence: Chances that the pixel shows dynamic layer and actor; None: nothing was looked for.
        placed: The dynamic layer's mask as far as it is where evidence has found it; None: wherever it is.
        hints: Whether the pixel moves in 2D and is hand, see `fusion_losses`; None: nobody said.
    """
    moving, room = torch.stack(list(masks.values())).sum(0), _room(target, evidence, hints)
    losses = {"mask": mask_weight * moving.mean()}
    apart = room * (1 - moving.detach()).clamp_min(0) * (rgb_static - target).abs().mean(-1)
    losses["static"] = config.static_weight * apart.mean()
    if evidence is not None:
        pulled = masks if placed is None else {**masks, "dynamic": placed}
        weight = _EVIDENCE_WEIGHT if config.evidence_weight is None else config.evidence_weight
        losses["evidence"] = weight * evidence_loss(pulled.values(), evidence, config.evidence_against)
    if hints is not None:
        belongs, against = fusion_losses(masks["dynamic"], masks["actor"], hints)
        losses["hints"] = config.hint_weight * belongs + config.hint_against_weight * against
    if shadow is not None:
        taken = shadow_loss(shadow, moving * room, rgb_static, target, config.shadow_tolerance)
        losses["shadow"] = config.shadow_weight * taken
    return losses


def _room(
    target: Float[Tensor, "rays 3"],
    evidence: Float[Tensor, "rays 2"] | None,
    hints: Float[Tensor, "rays 2"] | None,
) -> Float[Tensor, "rays"]:
    """Chance that a pixel shows the room: none where a hint says that it moves or is hand."""
    room = torch.ones_like(target[:, 0]) if evidence is None else 1 - evidence.sum(-1)
    return room if hints is None else room * (hints <= 0).all(-1)


def uncertain_photometric(
    rgb: Float[Tensor, "rays 3"], target: Float[Tensor, "rays 3"], uncertainty: Float[Tensor, "rays"]
) -> Float[Tensor, ""]:
    """Negative log-likelihood of colours under a normal distribution (NeRF-W, Martin-Brualla 2021; DIV-FF)."""
    return weighted_error(rgb, target, uncertainty) + uncertainty.log().mean()


def weighted_error(
    rgb: Float[Tensor, "rays 3"], target: Float[Tensor, "rays 3"], uncertainty: Float[Tensor, "rays"]
) -> Float[Tensor, ""]:
    """Mean squared error in units of the variance, halved: the part of the likelihood that has the target in it."""
    return ((rgb - target).square() / (2 * uncertainty[:, None].square())).mean()


def structural_loss(
    rgb: Float[Tensor, "rays 3"], target: Float[Tensor, "rays 3"], height: int, width: int
) -> Float[Tensor, ""]:
    """One minus the structural similarity of a frame (Wang 2004) to its target, as in 3D Gaussian splatting.

    Args:
        rgb: All pixels of a frame, row by row.
        target: What they should be.
        height: Rows.
        width: Pixels in a row.
    """
    from pytorch_msssim import ssim

    first, second = (image.view(1, height, width, 3).permute(0, 3, 1, 2) for image in (rgb, target))
    if min(height, width) == 1:  # ssim takes sides of one pixel away: a line twice has the line's similarity
        twice = (1, 1, 2 if height == 1 else 1, 2 if width == 1 else 1)
        first, second = first.repeat(twice), second.repeat(twice)
    window = min(11, 2 * ((min(height, width) - 1) // 2) + 1)
    return 1 - ssim(first, second, data_range=1.0, win=_window(window, rgb.device))


@lru_cache
def _window(size: int, device: torch.device) -> Float[Tensor, "3 1 1 size"]:
    """Weights of a line of pixels, for each colour (Wang 2004: a Gaussian of 1.5 pixels), kept on the device."""
    weights = torch.exp(-(torch.arange(size, dtype=torch.float) - size // 2).square() / (2 * 1.5**2))
    return sent((weights / weights.sum()).repeat(3, 1, 1, 1), device)


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
    min_density = torch.minimum(elsewhen.amin(-1), here)
    return (1 - torch.exp(-min_density * depth)).mean()


def evidence_loss(
    masks: Iterable[Float[Tensor, "rays"]], evidence: Float[Tensor, "rays layers"], against: float
) -> Float[Tensor, ""]:
    """Pulls the moving layers' masks to what was found of their pixels before (as Layered Motion Fusion does, 2025).

    Cross entropy, weighed by how sure the evidence is: a chance of a half says nothing.

    Args:
        masks: Each layer's share of each pixel, in the evidence's order.
        evidence: Chance that the pixel shows the layer.
        against: Weight of pixels that do not, relative to those that do.
    """
    total = torch.zeros((), device=evidence.device)
    for mask, chance in zip(masks, evidence.unbind(-1), strict=True):
        shown, sure = mask.clamp(1e-3, 1 - 1e-3), 2 * chance - 1
        total = total - (sure.clamp_min(0) * shown.log() + against * (-sure).clamp_min(0) * (1 - shown).log()).mean()
    return total


def fusion_losses(
    dynamic: Float[Tensor, "rays"], actor: Float[Tensor, "rays"], hints: Float[Tensor, "rays 2"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Fuses hints of 2D into the layers' masks: for the layer that a pixel belongs to, and against the others
    (positive and negative fusion of Layered Motion Fusion, 2025).

    A hand is the actor's. What moves and is no hand is carried, which is the dynamic layer's; what moves and may be
    either belongs to one of both. What is no hand, or does not move and is not known to be one, is not the actor's.
    That something does not move says nothing of the dynamic layer, whose objects rest most of the time.

    Args:
        dynamic: The dynamic layer's share of each pixel.
        actor: The actor's.
        hints: Whether the pixel moves in 2D, and whether it is hand: 1 yes, -1 no, 0 unknown.

    Returns:
        Cross entropies, each a mean over all rays, of which those without a hint count 0.
    """
    moves, hand = hints.unbind(-1)
    is_hand, no_hand, moved = hand > 0, hand < 0, moves > 0
    either = moved & (hand == 0)
    belongs = is_hand * _surprise(actor) + (moved & no_hand) * _surprise(dynamic) + either * _surprise(dynamic + actor)
    not_actors = no_hand | ((moves < 0) & (hand == 0))
    against = is_hand * _surprise(1 - dynamic) + not_actors * _surprise(1 - actor)
    return belongs.mean(), against.mean()


def _surprise(share: Float[Tensor, "rays"]) -> Float[Tensor, "rays"]:
    """What it costs that a share is not 1."""
    return -share.clamp(1e-3, 1 - 1e-3).log()


def placed_mask(
    weights: Float[Tensor, "rays samples"],
    distances: Float[Tensor, "rays samples"],
    found: Float[Tensor, "rays"],
    elsewhere: float,
) -> Float[Tensor, "rays"]:
    """A layer's mask, of which what lies elsewhere than it was found counts less.

    Args:
        weights: The layer's weights.
        distances: Of the samples.
        found: Distances at which it was found; 0 where that is not known.
        elsewhere: What weights count that are far from there.
    """
    off = (distances - found[:, None]) / found.clamp_min(1e-6)[:, None]
    near = elsewhere + (1 - elsewhere) * torch.exp(-(off / PLACED).square() / 2)
    return (weights * torch.where(found[:, None] > 0, near, 1.0)).sum(-1)


def before_loss(
    weights: Float[Tensor, "rays samples"],
    distances: Float[Tensor, "rays samples"],
    found: Float[Tensor, "rays"],
    chance: Float[Tensor, "rays"],
) -> Float[Tensor, ""]:
    """Wants nothing of a layer before the place at which an object was found that is seen there: what is drawn at half
    its distance hides the place, so that no pull towards it is felt.

    Args:
        weights: The layer's weights.
        distances: Of the samples.
        found: Distances at which objects were found; 0 where that is not known.
        chance: That what was found is an object.
    """
    before = distances < (1 - 3 * PLACED) * found[:, None]
    return (chance * (weights * before).sum(-1)).mean()


def resting_loss(opacity: Float[Tensor, "points"], chance: Float[Tensor, "points"]) -> Float[Tensor, ""]:
    """Wants an object to be where it was found, as long as it was found there; of transparencies, to be gone otherwise.

    Args:
        opacity: Of the dynamic layer, or of what hands carry, over a thickness, there at a moment of that time; or 1
            less it, at another.
        chance: That what was found is an object.
    """
    return -(chance * (opacity + 1e-3).log()).mean()


def shadow_loss(
    shadow: Float[Tensor, "rays"],
    moving: Float[Tensor, "rays"],
    static_rgb: Float[Tensor, "rays 3"],
    target: Float[Tensor, "rays 3"],
    tolerance: float,
) -> Float[Tensor, ""]:
    """Attributes to shadow what looks like one, and keeps the moving layers from drawing it.

    A shadow scales all channels of what it falls on alike. Where the target is a darker multiple of the static layer's
    colour, that multiple is what the shadow should leave, and opacity of the moving layers costs as much as is taken.

    Args:
        shadow: Share of the static layer's light that is taken.
        moving: Sum of the moving layers' masks.
        static_rgb: Colour of the static layer alone, unshadowed.
        target: Colour seen.
        tolerance: Difference of colour, from the best multiple, at which the evidence has fallen to 1/e.
    """
    static_rgb = static_rgb.detach()
    scale = (target * static_rgb).sum(-1) / static_rgb.square().sum(-1).clamp_min(1e-4)
    taken = 1 - scale.clamp(0, 1)
    difference = (target - (1 - taken)[:, None] * static_rgb).abs().mean(-1)
    evidence = torch.exp(-(difference / tolerance).square())
    return (evidence * ((shadow - taken).abs() + taken * moving)).mean()
