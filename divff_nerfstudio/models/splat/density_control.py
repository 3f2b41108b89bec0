"""The number of Gaussians: gsplat's strategy per layer, within a limit, and new ones where the picture is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn

from divff_nerfstudio.fields.layers import Layer
from divff_nerfstudio.former_names import formerly
from divff_nerfstudio.models.splat.gaussians import GaussianLayer
from divff_nerfstudio.models.splat.splats import Splats
from divff_nerfstudio.schema import Count, Positive, Share, Weight

_NEVER = 1 << 30


@dataclass
class DensityControlConfig:
    """When Gaussians are split, duplicated and removed."""

    every: Annotated[Count, formerly("--pipeline.model.density.every")] = 100
    """Steps between two refinements of a layer."""
    gradient: Annotated[Weight, formerly("--pipeline.model.density.gradient")] = 0.0004
    """Mean gradient of a centre, in half widths of the picture, from which on a Gaussian is split or duplicated."""
    large: Annotated[Positive, formerly("--pipeline.model.density.large")] = 0.01
    """Size, in lengths of the scene, from which on it is split, under which it is duplicated."""
    transparent: Annotated[Share, formerly("--pipeline.model.density.transparent")] = 0.02
    """Opacity under which it is removed."""
    huge: Annotated[Positive, formerly("--pipeline.model.density.huge")] = 0.5
    """Size, in lengths of the scene, above which it is removed."""


class Observation:
    """What a rasterisation says of the Gaussians of a layer.

    Args:
        facts: Those of the rasterisation, with the gradient of "means2d" kept.
        start: First of the layer's Gaussians among those rasterised.
        ids: Rows of the layer's parameters.
    """

    def __init__(self, facts: Mapping[str, Any], start: int, ids: Int[Tensor, "gaussians"]):
        self._facts, self._start, self.ids = facts, start, ids

    def of_layer(self, count: int) -> dict[str, Any]:
        """The facts that gsplat's strategy reads, of all of a layer's Gaussians; those not rasterised are not seen."""
        part = slice(self._start, self._start + len(self.ids))
        seen, centres = self._facts["radii"][0, part], self._facts["means2d"]
        radii = torch.zeros(1, count, dtype=seen.dtype, device=seen.device)
        gradients = centres.new_zeros(1, count, 2)
        radii[0, self.ids] = seen
        if centres.grad is not None:
            gradients[0, self.ids] = centres.grad[0, part]
        return {
            "width": self._facts["width"],
            "height": self._facts["height"],
            "n_cameras": 1,
            "radii": radii,
            "gaussian_ids": None,
            "means2d": SimpleNamespace(grad=gradients),
        }


def observations(facts: Mapping[str, Any], splats: Mapping[Layer, Splats]) -> dict[Layer, Observation]:
    """What a rasterisation says of each layer, for refinement after the step; nothing where none is followed back."""
    if not facts["means2d"].requires_grad:
        return {}
    facts["means2d"].retain_grad()
    found, start = {}, 0
    for name, each in splats.items():
        found[name] = Observation(facts, start, each.ids)
        start += len(each)
    return found


def refine(
    layer: GaussianLayer,
    optimizers: Mapping[str, Any],
    observation: Observation,
    step: int,
    max_gaussians: int,
    config: DensityControlConfig,
) -> None:
    """Takes a step of gsplat's default strategy for one layer.

    Args:
        layer: The layer; its parameters are replaced.
        optimizers: See `row_optimizers`.
        observation: What the step's rasterisation says of the layer.
        step: Steps since the layer began.
        max_gaussians: How many there may be: where there is little room, only those of the largest gradients grow.
        config: When Gaussians are split, duplicated and removed.
    """
    if step <= 0 or len(layer) == 0:
        return
    if step % config.every:
        layer.gradients, layer.sightings = _gathered(layer, observation.of_layer(len(layer)))
        return
    from gsplat import DefaultStrategy

    facts = observation.of_layer(len(layer))
    strategy = DefaultStrategy(
        prune_opa=config.transparent,
        grow_grad2d=max(config.gradient, _min_gradient(layer, facts, max_gaussians)),
        grow_scale3d=config.large,
        refine_start_iter=0,
        refine_stop_iter=step + 1,
        refine_every=config.every,
        # Opacities are never reset, from which a short training does not recover: the layers' costs prune.
        reset_every=_NEVER,
    )
    rows, views = layer.rows, dict(optimizers)
    state: dict[str, Any] = {"grad2d": layer.gradients, "count": layer.sightings, "scene_scale": 1.0}
    strategy.step_post_backward(rows, views, state, step, facts)  # pyright: ignore
    layer.gradients, layer.sightings = state["grad2d"], state["count"]
    discard(layer, optimizers, rows["scales"].detach().amax(-1).exp() > config.huge)


@torch.no_grad()
def _gathered(layer: GaussianLayer, facts: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Sums of the gradients of a layer's centres, and in how many pictures they were seen, this step's among them.

    As gsplat's strategy gathers them, which asks the device which were seen.
    """
    seen = (facts["radii"][0] > 0).to(layer.gradients)
    half = torch.stack([torch.full_like(seen, facts[side] / 2) for side in ("width", "height")], -1)
    return layer.gradients + seen * (facts["means2d"].grad[0] * half).norm(dim=-1), layer.sightings + seen


def _min_gradient(layer: GaussianLayer, facts: dict[str, Any], max_gaussians: int) -> float:
    """The mean gradient, this step's among it, above which there are no more Gaussians than the layer has room for."""
    summed, sightings = _gathered(layer, facts)
    room, mean = max(0, max_gaussians - len(layer)), summed / sightings.clamp_min(1)
    return 0.0 if room >= len(mean) else float(mean.sort(descending=True).values[room])


def discard(layer: GaussianLayer, optimizers: Mapping[str, Any], gone: Bool[Tensor, "gaussians"]) -> None:
    """Removes Gaussians from a layer; its parameters are replaced.

    Args:
        layer: The layer.
        optimizers: See `row_optimizers`.
        gone: Which ones.
    """
    from gsplat.strategy.ops import remove

    if not gone.any():
        return
    state = {"grad2d": layer.gradients, "count": layer.sightings}
    remove(layer.rows, dict(optimizers), state, gone)  # pyright: ignore[reportArgumentType]
    layer.gradients, layer.sightings = state["grad2d"], state["count"]


def append(layer: GaussianLayer, optimizers: Mapping[str, Any], new: Mapping[str, Tensor]) -> None:
    """Adds Gaussians to a layer; its parameters are replaced.

    Args:
        layer: The layer.
        optimizers: See `row_optimizers`.
        new: Their rows, see `GaussianLayer.new_rows`.
    """
    from gsplat.strategy.ops import _update_param_with_optimizer

    count = len(new["means"])
    _update_param_with_optimizer(
        lambda name, row: nn.Parameter(torch.cat((row, new[name].to(row)))),
        lambda _, value: torch.cat((value, value.new_zeros(count, *value.shape[1:]))),
        layer.rows,  # pyright: ignore[reportArgumentType]
        dict(optimizers),
    )
    layer.gradients, layer.sightings = (F.pad(kept, (0, count)) for kept in (layer.gradients, layer.sightings))


def row_optimizers(layer: GaussianLayer, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Any]:
    """For each of a layer's rows what looks like an optimizer of it alone, as gsplat's operations want it.

    Args:
        layer: The layer.
        optimizers: Those of the whole model; each row is a parameter group of its own in one of them.
    """
    owners = {
        id(group["params"][0]): SimpleNamespace(param_groups=[group], state=optimizer.state)
        for optimizer in optimizers
        for group in optimizer.param_groups
    }
    return {name: owners[id(row)] for name, row in layer.rows.items()}
