"""The default model: rays -> proposal samples -> fast fields -> compositing -> outputs (after DIV-FF)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor, nn

from divff_nerfstudio.card import is_card
from divff_nerfstudio.data.windows import Windows
from divff_nerfstudio.datamanager import DivFFDataManagerConfig
from divff_nerfstudio.evidence.labels import ENDS_KNOWN
from divff_nerfstudio.fields.layered import LayeredField, LayeredFieldConfig
from divff_nerfstudio.fields.layers import Layer, SamplePoints
from divff_nerfstudio.fields.semantic_heads import SemanticHeads, SemanticHeadsConfig
from divff_nerfstudio.fields.space import SceneSpace
from divff_nerfstudio.fields.windowed import WindowedField
from divff_nerfstudio.former_names import formerly
from divff_nerfstudio.generators import weighted_draw
from divff_nerfstudio.models.base import LayeredModelConfig
from divff_nerfstudio.models.moved_mask import moved_mask
from divff_nerfstudio.models.rays import RayModel, clear_space_loss, distortion_loss, proposal_loss
from divff_nerfstudio.models.schedule import PhasesConfig, Schedule
from divff_nerfstudio.models.separation import (
    SeparationConfig,
    before_loss,
    layer_losses,
    persistence_loss,
    placed_mask,
    resting_loss,
    room_loss,
    uncertain_photometric,
)
from divff_nerfstudio.models.view import pictures_of
from divff_nerfstudio.rendering import (
    accumulate,
    composite,
    expected_depth,
    head_positions,
    midpoints,
    points_of,
    ray_uncertainty,
    sample_rays,
    transmittance,
    weights_alone,
)
from divff_nerfstudio.schema import Positive, Share, Size, Weight

_CARRIED_OPAQUE = 0.3
"""What it costs that nothing is where an object is carried, beside what is drawn before it."""


@dataclass
class DivFFModelConfig(SeparationConfig, PhasesConfig, LayeredModelConfig):
    """Options of the default model."""

    steps_by_device: ClassVar[Mapping[str, int]] = {"cuda": 10000, "cpu": 5000}
    """Training steps, unless said otherwise."""
    rays_by_device: ClassVar[Mapping[str, int]] = {"cuda": 4096, "cpu": 512}
    """Rays per step, unless said otherwise."""
    windowed: ClassVar[bool] = True

    _target: type = field(default_factory=lambda: DivFFModel)
    """target class to instantiate"""
    fields: LayeredFieldConfig = field(default_factory=LayeredFieldConfig)
    """Sizes of the three fields."""
    heads: SemanticHeadsConfig = field(default_factory=SemanticHeadsConfig)
    """Sizes of the semantic heads."""
    num_proposal_samples: Size = 48
    """Intervals of the proposal on each ray."""
    num_samples: Size = 24
    """Samples of the fields on each ray."""
    near_scale: Annotated[Positive, formerly("--pipeline.model.nearest")] = 0.1
    """Where rays start, in units of their frame's near: the actor is closer than the room."""
    far_scale: Annotated[Positive, formerly("--pipeline.model.farthest")] = 1.25
    """Where rays end, in units of their frame's far, which is measured along the optical axis."""
    distortion_weight: Weight = 0.1
    """Weight of `distortion_loss` of the static layer."""
    clear_weight: Weight = 0.1
    """Weight of `clear_space_loss` of the static layer; 0 where the scene's near is only a guess, and the room may be
    nearer than half of it."""
    proposal_weight: Weight = 10.0
    """Weight of the proposal's loss."""
    dynamic_density_weight: Weight = 0.01
    """Weight of the dynamic layer's mean density (DIV-FF)."""
    actor_density_weight: Weight = 0.003
    """Weight of the actor's mean density (DIV-FF)."""
    persistence_weight: Weight = 0.3
    """Weight of `persistence_loss`."""
    persistence_points: Size = 256
    """Points at which it is measured, per step."""
    persistence_moments: Size = 8
    """Moments at which it is measured, per point."""
    elsewhere_share: Share = 0.25
    """What the dynamic layer's mask counts, held against evidence, where it is far from the place at which the pixel's
    segment rests or is carried; 1: as much as there."""
    resting_weight: Weight = 0.3
    """Weight of `resting_loss`, with evidence."""
    left_weight: Weight = 0.1
    """Weight of its counterpart, for places that an object has left or has not come to yet."""
    carried_weight: Weight = 0.3
    """Weight of what objects cost that hands carry elsewhere than where they were found (`before_loss`, and a share of
    `resting_loss`)."""
    resting_points: Size = 64
    """Points at which it is measured, per step."""
    regulariser_weight: Weight = 0.3
    """Weight of the regulariser's loss."""
    rgb_while_heads: Literal["off", "on"] = "off"
    """Whether geometry goes on training while the heads are trained on it, detached."""
    half_precision: Literal["off", "on"] = "off"
    """Whether the networks of views multiply in bfloat16 on a CUDA card; densities, compositing and training do not."""

    def settle(self, device: Literal["cuda", "cpu"], steps: int | None, data: DivFFDataManagerConfig) -> int:
        """Settles steps, rays and sizes by device; see `LayeredModelConfig`."""
        self.fields.settle(device)
        steps = steps or self.steps_by_device[device] * data.windows
        data.train_num_rays_per_batch = data.train_num_rays_per_batch or self.rays_by_device[device]
        self.settle_phases(steps, data.windows)
        self.settle_hints(data)
        if self.settle_evidence():
            self.fields.carried = True
        return steps

    def staged(self) -> Schedule:
        """The schedule, in which geometry may go on beside the heads."""
        staged = super().staged()
        return staged if self.rgb_while_heads == "off" else staged._replace(heads_alone_until=0)


class DivFFModel(RayModel):
    """Three fast fields, the actor's shadow, and semantic heads on a code per ray."""

    config: DivFFModelConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    field: LayeredField | WindowedField
    filmed_times: Tensor
    filmed_poses: Tensor

    @property
    def uncapturable(self) -> str | None:
        """See `LayeredModel.uncapturable`."""
        if self.windows is not None:
            return "its steps are of each window of the video in turn"
        if self.config.fields.implementation != "planes":
            return f"{self.config.fields.implementation} encodings have not been captured"
        return None

    def populate_modules(self) -> None:
        """Builds the fields and heads from the configuration and the training frames' times, nears and fars."""
        super().populate_modules()
        metadata = self.kwargs["metadata"]
        space = SceneSpace(self.scene_box.aabb, float(self.train_fars.median()))
        if self.config.fields.carried:  # where the head was is known of frames that are held out, too
            order = torch.argsort(metadata["all_times"])
            self.register_buffer("filmed_times", metadata["all_times"][order].float(), persistent=False)
            self.register_buffer("filmed_poses", metadata["all_poses"][order].float(), persistent=False)
        self.windows: Windows | None = metadata.get("windows")
        if self.windows is None:
            self.field = LayeredField(self.config.fields, space, self.num_train_data)
        else:
            self.field = WindowedField(self.config.fields, space, self.windows)
            self.register_buffer("train_windows", torch.tensor(self.windows.spans))  # a checkpoint is of these
        dimensions: dict[str, int] = dict(metadata.get("feature_dims", {}))
        implementation = self.config.fields.implementation
        self.semantic = (
            SemanticHeads(
                self.config.heads,
                space,
                implementation,
                self.config.fields.encoding_dim,
                self.field.time_dim,
                dimensions,
            )
            if dimensions
            else None
        )

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of "grids", "networks", "actor" and, with features, "heads"."""
        groups = self.field.param_groups()
        if self.semantic is not None:
            groups["heads"] = list(self.semantic.parameters())
        return groups

    def paces(self, step: int) -> dict[str, float]:
        """Cost of moving masks, and exponent of the proposal's weights: trust in it grows over the static layer's first
        steps."""
        anneal = min(1.0, 0.1 + step / max(1, self.schedule.moving_start_step))
        return {"mask_weight": self.config.mask_weight * self.schedule.ramp(step), "anneal": anneal}

    # Rendering.

    @property
    def in_half(self) -> bool:
        """Whether the networks of views multiply in bfloat16."""
        return self.config.half_precision == "on" and is_card(self.device)

    def along(self, rays: RayBundle, layers: tuple[Layer, ...], wanted: Collection[str]) -> dict[str, Any]:
        """As `RayModel.along`; rays of a video in windows are rendered by the window that their time belongs to, and in
        training by the one that the step is of."""
        if self.windows is None:
            return super().along(rays, layers, wanted)
        assert isinstance(self.field, WindowedField)
        if self.training:
            self.field.turn_to(self.windows.of_step(self.step))
            return super().along(rays, layers, wanted)
        if rays.times is None:
            rays = replace(rays, times=torch.full_like(rays.origins[..., :1], self.config.default_time))
        assert rays.times is not None
        windows = torch.from_numpy(self.windows.at(rays.times[..., 0].cpu().numpy())).to(rays.times.device)
        found: dict[str, Tensor] = {}
        for window in windows.unique().tolist():
            chosen = windows == window
            self.field.turn_to(window)
            for name, part in super().along(rays[chosen], layers, wanted).items():
                whole = found.setdefault(name, part.new_empty(*rays.shape, *part.shape[1:]))
                whole[chosen] = part
        return found

    def _render(self, rays: RayBundle, layers: tuple[Layer, ...], wanted: Collection[str]) -> dict[str, Any]:
        config = self.config
        if self.static_only:
            layers = ("static",)
        samples, proposal = sample_rays(
            rays,
            lambda points: self.field.proposal(
                points.positions.reshape(-1, 3),
                points.camera_positions.reshape(-1, 3),
                points.per_sample(points.times),
            ),
            config.num_proposal_samples,
            config.num_samples,
            anneal=self.paced("anneal") if self.training else 1.0,
            training=self.training,
        )
        assert samples.deltas is not None
        points, distances = points_of(rays, samples), midpoints(samples)
        if self.config.fields.carried and not self.training:
            assert rays.times is not None
            points.head_positions = head_positions(points.positions, rays.times, self.filmed_times, self.filmed_poses)
        fields = self.field(points, layers, all_at_rest=self.static_only)
        composited = composite({layer: fields[layer].density for layer in layers}, samples.deltas[..., 0])
        # Training follows the losses back in the order of what is computed here, to the last bit.
        joint = self.training or "rgb" in wanted
        shares = {layer: accumulate(composited.weights[layer], fields[layer].rgb) for layer in layers if joint}

        @cache
        def room() -> tuple[Tensor, Tensor]:
            """Weights of the static layer alone, and their sums."""
            alone = weights_alone(composited.alphas["static"])
            return alone, alone.sum(-1)

        def static_alone() -> Tensor:
            alone, enclosed = room()
            return accumulate(alone, fields["static"].rgb) / enclosed.clamp_min(1e-2)[:, None]

        rgb_static = static_alone() if self.training else None
        shadow = None
        if joint and "actor" in layers:
            depth = expected_depth(room()[0].detach(), distances)
            shadow = self.field.shadow(rays.metadata["camera_directions"] * depth[:, None], points.times)
            shares["static"] = shares["static"] * (1 - shadow)[:, None]

        def in_room(layer: Layer) -> Tensor:
            weights = weights_alone(composited.alphas[layer]) * transmittance(composited.alphas["static"])
            return accumulate(weights, fields[layer].rgb)

        def moved() -> Tensor:
            assert samples.deltas is not None
            return moved_mask(
                composited.weights["dynamic"],
                fields["dynamic"].density,
                points.positions,
                distances,
                samples.deltas[..., 0],
                points.times,
                self.field.dynamic_at,
            )

        state = (points, fields, composited.weights)
        if not self.training:
            made: dict[str, Callable[[], Tensor]] = {
                "rgb": lambda: torch.stack(list(shares.values())).sum(0),
                "depth": lambda: expected_depth(composited.total, distances),
                "accumulation": lambda: composited.total.sum(-1),
                "rgb_static": static_alone,
                **{f"rgb_{layer}": partial(in_room, layer) for layer in layers if layer != "static"},
                **({"mask_moved": moved} if "dynamic" in layers else {}),
                "uncertainty": lambda: ray_uncertainty(composited, fields, config.min_uncertainty),
            }
            return {**pictures_of(wanted, composited, made), "state": state}
        total, (alone, enclosed) = composited.total, room()
        accumulation = total.sum(-1)
        rgb = torch.stack(list(shares.values())).sum(0)
        uncertainty = ray_uncertainty(composited, fields, config.min_uncertainty)
        # A random background: nothing may hide in black behind the room.
        rgb = rgb + (1 - accumulation)[:, None] * torch.rand_like(rgb)
        return {
            "rgb": rgb,
            "uncertainty": uncertainty,
            "shadow": shadow,
            "rgb_static": rgb_static,
            "enclosed": enclosed,
            "masks": {layer: composited.mask(layer) for layer in layers if layer != "static"},
            "densities": {layer: fields[layer].density for layer in layers},
            "dynamic_weights": composited.weights.get("dynamic"),
            "rays": rays,
            "distances": distances,
            "points": points,
            "proposal": (proposal, samples, total, alone),
            "state": state,
        }

    # Losses.

    def _geometry_losses(self, outputs: dict[str, Any], target: Tensor) -> dict[str, Tensor]:
        config = self.config
        losses = {"proposal": config.proposal_weight * proposal_loss(*outputs["proposal"])}
        _, samples, _, alone = outputs["proposal"]
        losses["distortion"] = config.distortion_weight * distortion_loss(samples, alone)
        nears = outputs["rays"].nears / config.near_scale
        losses["clear_space"] = config.clear_weight * clear_space_loss(outputs["distances"], alone, nears)
        losses["enclosure"] = config.enclosure_weight * (1 - outputs["enclosed"]).mean()
        evidence, hints = outputs.get("evidence"), outputs.get("hints")
        if self.static_only:
            losses["photometric"] = room_loss(config, outputs["rgb"], target, evidence, hints)
            return losses
        losses["photometric"] = uncertain_photometric(outputs["rgb"], target, outputs["uncertainty"])
        densities, at, placed = outputs["densities"], None, None
        if "resting" in outputs:
            at = outputs["resting"][:, 0] / -outputs["rays"].metadata["camera_directions"][:, 2]
            placed = placed_mask(outputs["dynamic_weights"], outputs["distances"], at, config.elsewhere_share)
        losses["density"] = (
            config.dynamic_density_weight * densities["dynamic"].mean()
            + config.actor_density_weight * densities["actor"].mean()
        )
        losses |= layer_losses(
            config,
            self.paced("mask_weight"),
            outputs["masks"],
            outputs["rgb_static"],
            outputs["shadow"] if config.fields.shadow else None,
            target,
            evidence,
            placed,
            hints,
        )
        if at is not None:
            losses |= self._placed(outputs, at)
        if config.persistence_weight > 0:
            losses["persistence"] = config.persistence_weight * self._persistence(outputs)
        return losses

    def _placed(self, outputs: dict[str, Any], at: Tensor) -> dict[str, Tensor]:
        """What objects cost that are not drawn where they were found, weighed.

        Args:
            outputs: With "evidence" and "resting" of the batch.
            at: Distances of their places along the rays, 0 where they are not known.
        """
        config = self.config
        losses: dict[str, Tensor] = {}
        sure = (2 * outputs["evidence"][:, 0] - 1).clamp_min(0) * (at > 0)
        rests = outputs["resting"][:, 1] <= outputs["resting"][:, 2]
        if max(config.resting_weight, config.left_weight) > 0:
            losses["resting"] = self._resting(outputs, at, sure * rests)
        if config.fields.carried and config.carried_weight > 0:
            carried = sure * ~rests
            before = before_loss(outputs["dynamic_weights"], outputs["distances"], at, carried)
            losses["carried"] = config.carried_weight * (before + _CARRIED_OPAQUE * self._carried(outputs, at, carried))
        return losses

    def _carried(self, outputs: dict[str, Any], at: Tensor, sure: Tensor) -> Tensor:
        """`resting_loss` of what hands carry at places at which objects were found to be carried, at that moment alone.

        The dynamic layer, asked as well, would keep objects where they only pass.

        Args:
            outputs: With "rays".
            at: Distances of these places along the rays.
            sure: How sure it is that an object is carried there.
        """
        drawn, rays = weighted_draw(sure + 1e-6, min(self.config.resting_points, len(sure))), outputs["rays"]
        there = at[drawn, None]
        points = SamplePoints(
            (rays.origins[drawn] + there * rays.directions[drawn])[:, None],
            (there * rays.metadata["camera_directions"][drawn])[:, None],
            rays.directions[drawn],
            outputs["points"].times[drawn],
        )
        density = self.field.carried_density(points)[:, 0]
        return resting_loss(1 - torch.exp(-density * self._thickness), sure[drawn])

    def _resting(self, outputs: dict[str, Any], at: Tensor, sure: Tensor) -> Tensor:
        """`resting_loss` at places where objects were found to rest, drawn by how sure it is that they are objects, and
        its counterpart at times at which they are not there, weighed.

        Args:
            outputs: With "resting" of the batch.
            at: Distances of these places along the rays.
            sure: How sure it is that an object rests there.
        """
        config, rays = self.config, outputs["rays"]
        drawn = weighted_draw(sure + 1e-6, min(config.resting_points, len(sure)))
        positions = rays.origins[drawn] + at[drawn, None] * rays.directions[drawn]
        first, last = self.field.span
        since, until, earliest, latest = outputs["resting"][drawn, 1:].clamp(first, last).unbind(-1)
        then, any_time = torch.lerp(since, until, torch.rand_like(since)), torch.rand_like(since)
        any_time = first + (last - first) * any_time
        density = self.field.dynamic_density(positions, torch.stack((then, any_time), -1))
        there, other = (1 - torch.exp(-density * self._thickness)).unbind(-1)
        frame = max(1 / self.num_train_data, ENDS_KNOWN)
        away = (any_time < earliest - frame) | (any_time > latest + frame)
        resting, left = resting_loss(there, sure[drawn]), resting_loss(1 - other, sure[drawn] * away)
        return config.resting_weight * resting + config.left_weight * left

    @property
    def _thickness(self) -> float:
        """Over which opacity of the dynamic layer is measured, in scene units."""
        return self.field.space.known_length() / 100

    def _persistence(self, outputs: dict[str, Any]) -> Tensor:
        """`persistence_loss` at points drawn where the dynamic layer is seen, times how much of it is seen."""
        config, points = self.config, outputs["points"]
        weights = outputs["dynamic_weights"].reshape(-1)
        drawn = weighted_draw(weights.detach() + 1e-6, min(config.persistence_points, len(weights)))
        positions = points.positions.reshape(-1, 3)[drawn]
        moments, device = config.persistence_moments, positions.device
        times = (torch.rand(len(drawn), 1, device=device) + torch.arange(moments, device=device)[None]) / moments
        first, last = self.field.span
        times = first + (last - first) * times
        elsewhen = self.field.dynamic_density(positions, times)
        loss = persistence_loss(
            outputs["densities"]["dynamic"].reshape(-1)[drawn],
            elsewhen,
            depth=self._thickness,
        )
        return loss * weights.sum() / len(points.times)
