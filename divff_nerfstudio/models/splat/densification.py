"""How many Gaussians there are in training, and where: refined, put where pictures are wrong, given durations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.engine.callbacks import TrainingCallbackAttributes
from torch import Tensor

from divff_nerfstudio.fields.layers import LAYERS, Layer
from divff_nerfstudio.models.splat.density_control import append, discard, refine, row_optimizers
from divff_nerfstudio.models.splat.divergence import stop_if_diverged
from divff_nerfstudio.models.splat.drawing import Drawing
from divff_nerfstudio.models.splat.gaussians import DynamicGaussians
from divff_nerfstudio.models.splat.permanence import Sightings
from divff_nerfstudio.models.splat.seeds import Residuals, actor_seeds, dynamic_seeds
from divff_nerfstudio.training_folder import TrainingError

if TYPE_CHECKING:
    from divff_nerfstudio.models.splat.model import SplatModel

_COVERED = 0.05
"""Share of a pixel from which on its room has a depth."""


class Densification:
    """Changes the number of a model's Gaussians after each training step.

    Args:
        model: The model.
        attributes: Its optimizers, and the pipeline that has the training frames.

    Raises:
        TrainingError: If gradients are scaled or clipped, by which the number is decided.
    """

    def __init__(self, model: SplatModel, attributes: TrainingCallbackAttributes):
        self._model, self._attributes = model, attributes
        if attributes.grad_scaler is not None and attributes.grad_scaler.is_enabled():
            raise TrainingError(
                "divff-splat decides by gradients where Gaussians are added, and takes them as they are: leave "
                "--mixed-precision and --use-grad-scaler out."
            )
        made = {} if attributes.optimizers is None else attributes.optimizers.config
        if clipped := [name for name, group in made.items() if group["optimizer"].max_norm is not None]:
            raise TrainingError(
                f"--optimizers.{clipped[0]}.optimizer.max-norm: gradients of Gaussians, whose number changes, are not "
                "clipped: leave it out, and give a smaller --optimizers.*.optimizer.lr where training is to be calmer."
            )

    def adapt(self, step: int) -> None:
        """Refines the layers, and puts moving Gaussians where the picture is wrong.

        Args:
            step: The step that was taken.
        """
        model, config, schedule = self._model, self._model.config, self._model.schedule
        seen, model.observed = model.observed, {}
        if step >= schedule.heads_start_step:
            return
        attributes = self._attributes
        assert attributes.optimizers is not None and attributes.pipeline is not None
        optimizers = attributes.optimizers.optimizers.values()
        if step % config.densification.every == 0:
            stop_if_diverged(
                step,
                {f"{layer} {name}": row for layer in seen for name, row in model.gaussian_layer(layer).rows.items()},
            )
        if step < 0.85 * schedule.heads_start_step:
            for name, observation in seen.items():
                layer = model.gaussian_layer(name)
                since = step if name == "static" else step - schedule.moving_start_step
                refine(
                    layer,
                    row_optimizers(layer, optimizers),
                    observation,
                    since,
                    config.max_gaussians(name),
                    config.densification,
                )
        pause = max(1, (schedule.heads_start_step - schedule.moving_start_step) // (2 * max(1, config.seed_rounds)))
        done, late = divmod(step + 1 - max(1, schedule.moving_start_step), pause)
        if late == 0 and 0 <= done < config.seed_rounds:
            data: Any = attributes.pipeline.datamanager
            self._seed(data.train_dataset, list(optimizers), done)

    @torch.no_grad()
    def _seed(self, dataset: Any, optimizers: list[torch.optim.Optimizer], done: int) -> None:
        """Adds moving Gaussians where training frames differ from what is rendered."""
        model, config = self._model, self._model.config
        model.eval()
        residuals, sightings = Residuals(), Sightings()
        for index in torch.randperm(len(dataset))[: config.seed_frames].tolist():
            drawing = model.drawing(model.seen_by(dataset.cameras[index : index + 1]), LAYERS)
            target = torch.from_numpy(dataset.get_numpy_image(index)).to(model.device).reshape(-1, 3) / 255.0
            parts, _ = drawing.together(codes=False)
            depth = self._look_at_room(drawing, target, parts["masks"][:, 1], sightings)
            residuals.add(drawing.view, target, (parts["rgb"] - target).abs().mean(-1), depth)
        model.train()
        # The actor has the first try at what is wrong: arms that rest could be objects.
        alone = config.seed_rounds // 3
        moving: tuple[tuple[Layer, Any], ...] = (("dynamic", dynamic_seeds), ("actor", actor_seeds))
        for name, seeds in moving:
            layer, limit = model.gaussian_layer(name), config.max_gaussians(name)
            # Half of what may be, spread over the rounds; the other half is for refinement.
            count = min(limit - len(layer), limit // (2 * config.seed_rounds) * (2 if done == 0 else 1))
            if count > 0 and (name == "actor" or done >= alone):
                append(layer, row_optimizers(layer, optimizers), seeds(layer, residuals, count))
        if done > 0:
            give_durations(model, sightings, optimizers)

    def _look_at_room(
        self,
        drawing: Drawing,
        target: Float[Tensor, "rays 3"],
        actor: Float[Tensor, "rays"],
        sightings: Sightings,
    ) -> Float[Tensor, "rays"]:
        """Notes what a training frame shows where static Gaussians are, beside the actor.

        Returns:
            Depth of the static layer, in lengths of the scene.
        """
        view, static, shadow = drawing.view, drawing.splats["static"], drawing.shadow
        colours = static.colours if shadow is None else static.colours * (1 - shadow)[:, None]
        with torch.enable_grad():
            probes = colours.new_zeros(len(static), 5, requires_grad=True)
            values = [colours, view.depths(static.means)[:, None], probes]
            image, alpha, _ = drawing.composite(values, ("static",))
            room, weighed = image.split((4, 5), -1)
        room = room.detach() / alpha[:, None].clamp_min(1e-2)
        error = (room[:, :3] - target).abs().mean(-1, keepdim=True)
        looked_at = torch.cat((torch.ones_like(error), error, target), -1) * (1 - actor).clamp_min(0)[:, None]
        # The derivative by a Gaussian's value is its weight in each pixel.
        (sums,) = torch.autograd.grad(weighed, probes, looked_at)
        sightings.add(view.moment.time, static.ids, len(self._model.gaussian_layer("static")), sums)
        return depths_of_room(room[:, 3], alpha)


def depths_of_room(depths: Float[Tensor, "rays"], alpha: Float[Tensor, "rays"]) -> Float[Tensor, "rays"]:
    """Depths of a view's room; where it has none, that of the middle of what it has: nothing is ever at the camera.

    Args:
        depths: Of its Gaussians, in lengths of the scene, where there are any.
        alpha: How much of it is there.
    """
    there = alpha > _COVERED
    middle = depths[there].median() if bool(there.any()) else torch.ones((), device=depths.device)
    return torch.where(there, depths, middle)


def give_durations(model: SplatModel, sightings: Sightings, optimizers: list[torch.optim.Optimizer]) -> None:
    """Moves Gaussians that are not always there from the static to the dynamic layer, and fills their places."""
    static, dynamic = model.gaussian_layer("static"), model.gaussian_layer("dynamic")
    assert isinstance(dynamic, DynamicGaussians)
    stays = sightings.stays(model.config.max_gaussians("dynamic") - len(dynamic))
    if not len(stays.ids):
        return
    kept = {name: row.detach()[stays.ids] for name, row in static.rows.items()}
    spans = dynamic.rows_of_spans(stays.starts, stays.ends)
    append(dynamic, row_optimizers(dynamic, optimizers), dynamic.filled({**kept, **spans}))
    gone = torch.zeros(len(static), dtype=torch.bool, device=model.device)
    gone[stays.ids] = True
    away = F.normalize(kept["means"] - model.eye / model.space.length, dim=-1)
    sizes = kept["scales"].exp().amax(-1)
    # One that leaves and comes back has two stays, and one place.
    once = torch.from_numpy(np.sort(np.unique(stays.ids.cpu().numpy(), return_index=True)[1])).to(model.device)
    means, sizes = (kept["means"] + 2 * sizes[:, None] * away)[once], sizes[once]
    behind = static.new_rows(means, sizes, stays.behind[once], opacity=0.5)
    discard(static, row_optimizers(static, optimizers), gone)
    append(static, row_optimizers(static, optimizers), behind)
