"""The model: rays -> samples -> fields -> compositing -> outputs (DIV-FF, Mur-Labadia 2025)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Optional

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor, nn

from divff_nerfstudio.features.pca import FeatureBasis, project
from divff_nerfstudio.fields.layered import LayeredField, LayeredFieldConfig
from divff_nerfstudio.fields.layers import LAYERS, Layer
from divff_nerfstudio.fields.semantic_heads import SemanticHeads, SemanticHeadsConfig
from divff_nerfstudio.fields.space import SceneSpace
from divff_nerfstudio.losses import feature_loss, persistence_loss, proposal_loss, shadow_loss, uncertain_photometric
from divff_nerfstudio.rendering import (
    Visibility,
    accumulate,
    composite,
    expected_depth,
    midpoints,
    points_of,
    ray_uncertainty,
    sample_rays,
    transmittance,
    weights_alone,
)

PICTURES = (
    "rgb",
    "depth",
    "accumulation",
    "rgb_static",
    "rgb_dynamic",
    "rgb_actor",
    "mask_dynamic",
    "mask_actor",
    "mask_moving",
    "uncertainty",
)
"""What every view is rendered to, in the viewer's order. Depth is the distance along the unit ray, in scene units."""
_CODE, _CROP = "code", "crop"

Answer = Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]
"""Adds outputs to a view's pictures from its features by kind: see `Query.answer`."""


@dataclass
class DivFFModelConfig(ModelConfig):
    """Options of the model."""

    _target: type = field(default_factory=lambda: DivFFModel)
    """target class to instantiate"""
    enable_collider: bool = False
    """Near and far come with the rays."""
    eval_num_rays_per_chunk: int = 4096
    """Rays rendered at a time."""
    fields: LayeredFieldConfig = field(default_factory=LayeredFieldConfig)
    """Sizes of the three fields."""
    heads: SemanticHeadsConfig = field(default_factory=SemanticHeadsConfig)
    """Sizes of the semantic heads."""
    num_proposal_samples: int = 48
    """Intervals of the proposal on each ray."""
    num_samples: int = 24
    """Samples of the fields on each ray."""
    nearest: float = 0.1
    """Where rays start, in units of their frame's near: the actor is closer than the room."""
    farthest: float = 1.25
    """Where rays end, in units of their frame's far, which is measured along the optical axis."""
    default_time: float = 0.5
    """Time in [0, 1] of cameras that have none (ns-render interpolate)."""
    static_until: int = 0
    """Step up to which the static layer is trained alone. 0: settled when training starts."""
    heads_from: int = 0
    """Step from which the semantic heads are trained, on detached geometry. 0: settled when training starts."""
    joint_from: int = 0
    """Step from which everything is trained together. 0: settled when training starts."""
    least_uncertainty: float = 0.03
    """Standard deviation of the colours of the static layer (DIV-FF)."""
    photometric_static_weight: float = 10.0
    """Weight of the absolute error while the static layer is trained alone."""
    proposal_weight: float = 10.0
    """Weight of the proposal's loss."""
    dynamic_density_weight: float = 0.01
    """Weight of the dynamic layer's mean density (DIV-FF)."""
    actor_density_weight: float = 0.003
    """Weight of the actor's mean density (DIV-FF)."""
    mask_weight: float = 0.1
    """Cost of a ray that a moving layer explains; it rises over a quarter of the geometry, from static-first on."""
    persistence_weight: float = 0.3
    """Weight of `persistence_loss`."""
    persistence_points: int = 256
    """Points at which it is measured, per step."""
    persistence_moments: int = 8
    """Moments at which it is measured, per point."""
    static_weight: float = 3.0
    """Weight of the static layer's own absolute error where nothing moves: without it, a shadow over everything and a
    room that is brighter by as much look the same."""
    enclosure_weight: float = 0.1
    """Weight of rays that leave the static layer: a room is closed, also behind the actor."""
    shadow_weight: float = 3.0
    """Weight of `shadow_loss`."""
    shadow_tolerance: float = 0.04
    """How far, in colour, a shadowed room may be from a darker multiple of itself."""
    image_weight: float = 1.0
    """Weight of the image-language features' loss."""
    video_weight: float = 1.0
    """Weight of the video-language features' loss."""
    regulariser_weight: float = 0.3
    """Weight of the regulariser's loss."""
    rgb_while_heads: Literal["off", "on"] = "off"
    """Whether geometry goes on training while the heads are trained on it, detached."""


class DivFFModel(Model):
    """Renders a scene's three layers at any time, and the features that were distilled into them.

    Attributes:
        visibility: Layers to leave out of pictures.
        answer: Adds outputs to a view from its features, if anything is asked; set from above.
        feature_basis: Fixed basis in which features are shown as colours; set from above.
    """

    config: DivFFModelConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    train_times: Tensor
    train_nears: Tensor
    train_fars: Tensor

    def populate_modules(self) -> None:
        """Builds the fields and heads from the configuration and the training frames' times, nears and fars."""
        super().populate_modules()
        metadata = self.kwargs["metadata"]
        order = torch.argsort(metadata["times"].flatten())
        for name in ("times", "nears", "fars"):
            self.register_buffer(f"train_{name}", metadata[name].flatten()[order].float())
        space = SceneSpace(self.scene_box.aabb, float(self.train_fars.median()))
        self.field = LayeredField(self.config.fields, space, self.num_train_data)
        dimensions: dict[str, int] = dict(metadata.get("feature_dims", {}))
        implementation = self.config.fields.implementation
        assert implementation != "auto"
        self.semantic = (
            SemanticHeads(
                self.config.heads,
                space,
                implementation,
                self.config.fields.encoding_dim,
                self.field.dynamic.time_code.out_dim,
                dimensions,
            )
            if dimensions
            else None
        )
        self.visibility = Visibility()
        self.answer: Answer | None = None
        self.feature_basis: FeatureBasis | None = None
        self.step = 0

    # The schedule.

    @property
    def static_only(self) -> bool:
        """Whether the static layer is being trained alone."""
        return self.training and self.step < self.config.static_until

    @property
    def features_trained(self) -> bool:
        """Whether the semantic heads have been, or are being, trained."""
        return self.semantic is not None and self.step >= self.config.heads_from

    @property
    def geometry_frozen(self) -> bool:
        """Whether only the heads are being trained."""
        config = self.config
        return self.features_trained and self.step < config.joint_from and config.rgb_while_heads == "off"

    def update_to_step(self, step: int) -> None:
        """Takes the place in the schedule that belongs to a step."""
        self.step = step

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of "grids", "networks", "actor" and, with features, "heads"."""
        groups = self.field.param_groups()
        if self.semantic is not None:
            groups["heads"] = list(self.semantic.parameters())
        return groups

    # Rendering.

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:  # pyright: ignore
        """Renders rays.

        Args:
            ray_bundle: Rays with "camera_directions" in their metadata; near, far and time may be missing.

        Returns:
            In training what the losses need; otherwise `PICTURES` and, once features are trained, the rays' code.
        """
        rays = self._bounded(ray_bundle)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not (self.training and self.geometry_frozen)):
            rendered = self._render(rays)
        if self.semantic is not None and self.features_trained:
            detach = self.training and self.step < self.config.joint_from
            rendered[_CODE] = self._code(rays, rendered.pop("state"), detach)
        else:
            rendered.pop("state")
        return rendered

    def _bounded(self, rays: RayBundle) -> RayBundle:
        """Rays with a time, and with the near and far of the training frame next in time, widened, and cropped."""
        times, nears, fars = rays.times, rays.nears, rays.fars
        if times is None:
            times = torch.full_like(rays.origins[..., :1], self.config.default_time)
        if nears is None or fars is None:
            nears, fars = (values[_nearest(self.train_times, times)] for values in (self.train_nears, self.train_fars))
        nears, fars = nears * self.config.nearest, fars * self.config.farthest
        if _CROP in rays.metadata:
            enter, leave = rays.metadata[_CROP].split(1, -1)
            # A ray that misses the box keeps an interval too thin to show anything.
            nears = nears.maximum(enter.minimum(fars))
            fars = fars.minimum(leave).maximum(nears * (1 + 1e-5))
        return replace(rays, times=times, nears=nears, fars=fars)

    def _render(self, rays: RayBundle) -> dict[str, Any]:
        config = self.config
        layers: tuple[Layer, ...] = LAYERS if self.training else self.visibility.layers
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
            anneal=self._anneal(),
            training=self.training,
        )
        assert samples.deltas is not None
        points, distances = points_of(rays, samples), midpoints(samples)
        fields = self.field(points, layers, all_at_rest=self.static_only)
        composited = composite({layer: fields[layer].density for layer in layers}, samples.deltas[..., 0])
        shares = {layer: accumulate(composited.weights[layer], fields[layer].rgb) for layer in layers}
        alone = weights_alone(composited.alphas["static"])
        enclosed = alone.sum(-1)
        static_alone = accumulate(alone, fields["static"].rgb) / enclosed.clamp_min(1e-2)[:, None]
        shadow = None
        if "actor" in layers:
            depth = expected_depth(alone.detach(), distances)
            shadow = self.field.shadow(rays.metadata["camera_directions"] * depth[:, None], points.times)
            shares["static"] = shares["static"] * (1 - shadow)[:, None]
        total = composited.total
        accumulation = total.sum(-1)
        rgb = torch.stack(list(shares.values())).sum(0)
        state = (points, fields, composited.weights)
        uncertainty = ray_uncertainty(composited, fields, config.least_uncertainty)
        if self.training:
            # A random background: nothing may hide in black behind the room.
            rgb = rgb + (1 - accumulation)[:, None] * torch.rand_like(rgb)
            return {
                "rgb": rgb,
                "uncertainty": uncertainty,
                "shadow": shadow,
                "rgb_static": static_alone,
                "enclosed": enclosed,
                "masks": {layer: composited.mask(layer) for layer in layers if layer != "static"},
                "densities": {layer: fields[layer].density for layer in layers},
                "dynamic_weights": composited.weights.get("dynamic"),
                "points": points,
                "proposal": (proposal, samples, total, alone),
                "state": state,
            }
        pictures = {
            "rgb": rgb,
            "depth": expected_depth(total, distances)[:, None],
            "accumulation": accumulation[:, None],
            "rgb_static": static_alone,
        }
        in_room = transmittance(composited.alphas["static"])
        for layer in ("dynamic", "actor"):
            pictures[f"rgb_{layer}"] = (
                accumulate(weights_alone(composited.alphas[layer]) * in_room, fields[layer].rgb)
                if layer in layers
                else torch.zeros_like(rgb)
            )
        masks = {layer: composited.mask(layer)[:, None] for layer in ("dynamic", "actor")}
        pictures |= {f"mask_{layer}": mask for layer, mask in masks.items()}
        pictures["mask_moving"] = masks["dynamic"] + masks["actor"]
        pictures["uncertainty"] = uncertainty[:, None]
        return {name: picture.clamp(0, 1) if name != "depth" else picture for name, picture in pictures.items()} | {
            "state": state
        }

    def _anneal(self) -> float:
        """Exponent of the proposal's weights: trust in it grows over the static layer's first steps."""
        if not self.training:
            return 1.0
        return min(1.0, 0.1 + self.step / max(1, self.config.static_until))

    def _code(self, rays: RayBundle, state: Any, detach: bool) -> Tensor:
        """Codes of rays that the semantic heads decode."""
        assert self.semantic is not None and rays.times is not None
        points, fields, weights = state
        time_code = self.field.time_code(rays.times)
        if detach:
            time_code = time_code.detach()
            weights = {layer: weight.detach() for layer, weight in weights.items()}
            for samples in fields.values():
                samples.encoding = samples.encoding.detach()
        return self.semantic.code(points, fields, weights, time_code)

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: Optional[OrientedBox] = None) -> dict[str, Tensor]:  # noqa: UP045
        """Renders a view.

        Args:
            camera: One camera, with or without a time.
            obb_box: Part of the scene to render, if not all of it.

        Returns:
            `PICTURES` in their order, each (height, width, channels); once features are trained "features_pca", and
            what `answer` adds.
        """
        outputs = self._view(camera, obb_box)
        code = outputs.pop(_CODE, None)
        pictures = {name: outputs[name] for name in PICTURES}
        if code is None or self.semantic is None:
            return pictures
        if self.feature_basis is not None and "image" in self.semantic.heads:
            basis = self.feature_basis.to(code.device)
            pictures["features_pca"] = torch.cat([project(part, basis) for part in self._decoded(code, "image")])
        if self.answer is not None:
            pictures |= self.answer(pictures, _LazyFeatures(self, code))  # pyright: ignore[reportArgumentType]
        return pictures

    @torch.no_grad()
    def render_features(self, camera: Cameras) -> dict[str, Float[Tensor, "height width dim"]]:
        """Features of a view by kind, of unit length; nothing while they are untrained."""
        code = self._view(camera, None).get(_CODE)
        if code is None or self.semantic is None:
            return {}
        return {kind: self.decode_features(code, kind) for kind in self.semantic.heads}

    def decode_features(self, code: Float[Tensor, "height width code"], kind: str) -> Float[Tensor, "height width dim"]:
        """Features of one kind from a view's code."""
        return torch.cat(list(self._decoded(code, kind)))

    def _decoded(self, code: Tensor, kind: str) -> Iterator[Tensor]:
        """Features of a view, some rows at a time."""
        assert self.semantic is not None
        rows = max(1, 16384 // code.shape[1])
        for part in code.split(rows):
            yield self.semantic.decode(part, kind)

    def _view(self, camera: Cameras, obb_box: OrientedBox | None) -> dict[str, Tensor]:
        """All outputs of a view, with directions in the camera's own frame."""
        was_training = self.training
        self.eval()
        rays = camera.generate_rays(camera_indices=0, keep_shape=True, obb_box=obb_box)
        rotation = camera.camera_to_worlds.reshape(-1, camera.camera_to_worlds.shape[-2], 4)[0, :3, :3]
        rays.metadata = {"camera_directions": rays.directions @ rotation.to(rays.directions)}
        if rays.nears is not None and rays.fars is not None:
            rays.metadata[_CROP] = torch.cat((rays.nears, rays.fars), -1)
            rays.nears = rays.fars = None
        outputs = self.get_outputs_for_camera_ray_bundle(rays)
        self.train(was_training)
        return outputs

    # Losses.

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        """PSNR of a batch of rays, and how much of it the moving layers explain."""
        error = (outputs["rgb"].detach() - batch["image"].to(self.device)).square().mean()
        metrics = {"psnr": -10 * torch.log10(error.clamp_min(1e-10))}
        masks = outputs.get("masks") or {
            layer: outputs[f"mask_{layer}"] for layer in ("dynamic", "actor") if f"mask_{layer}" in outputs
        }
        return metrics | {f"share_{layer}": mask.detach().mean() for layer, mask in masks.items()}

    def get_loss_dict(
        self, outputs: dict[str, Any], batch: dict[str, Any], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Losses of a batch of rays, of the part of the schedule that the current step is in."""
        target = batch["image"].to(self.device)
        if not self.training:
            error = uncertain_photometric(outputs["rgb"], target, outputs["uncertainty"][..., 0])
            return {"photometric": error}
        losses = {} if self.geometry_frozen else self._geometry_losses(outputs, target)
        if _CODE in outputs and "features" in batch:
            losses |= self._feature_losses(outputs[_CODE], batch["features"])
        return losses

    def _geometry_losses(self, outputs: dict[str, Any], target: Tensor) -> dict[str, Tensor]:
        config = self.config
        losses = {"proposal": config.proposal_weight * proposal_loss(*outputs["proposal"])}
        losses["enclosure"] = config.enclosure_weight * (1 - outputs["enclosed"]).mean()
        if self.static_only:
            losses["photometric"] = config.photometric_static_weight * (outputs["rgb"] - target).abs().mean()
            return losses
        losses["photometric"] = uncertain_photometric(outputs["rgb"], target, outputs["uncertainty"])
        densities, masks = outputs["densities"], outputs["masks"]
        losses["density"] = (
            config.dynamic_density_weight * densities["dynamic"].mean()
            + config.actor_density_weight * densities["actor"].mean()
        )
        rise = max(1, (config.heads_from - config.static_until) // 4)
        ramp = min(1.0, (self.step - config.static_until) / rise)
        losses["mask"] = config.mask_weight * ramp * torch.stack([mask.mean() for mask in masks.values()]).sum()
        moving = torch.stack(list(masks.values())).sum(0)
        apart = (1 - moving.detach()).clamp_min(0) * (outputs["rgb_static"] - target).abs().mean(-1)
        losses["static"] = config.static_weight * apart.mean()
        if config.fields.shadow:
            losses["shadow"] = config.shadow_weight * shadow_loss(
                outputs["shadow"],
                torch.stack(list(masks.values())).sum(0),
                outputs["rgb_static"],
                target,
                config.shadow_tolerance,
            )
        if config.persistence_weight > 0:
            losses["persistence"] = config.persistence_weight * self._persistence(outputs)
        return losses

    def _persistence(self, outputs: dict[str, Any]) -> Tensor:
        """`persistence_loss` at points drawn where the dynamic layer is seen, times how much of it is seen."""
        config, points = self.config, outputs["points"]
        weights = outputs["dynamic_weights"].reshape(-1)
        drawn = torch.multinomial(weights.detach() + 1e-6, min(config.persistence_points, len(weights)))
        positions = points.positions.reshape(-1, 3)[drawn]
        moments = config.persistence_moments
        times = (torch.rand(len(drawn), 1) + torch.arange(moments)[None]) / moments
        elsewhen = self.field.dynamic_density(positions, times.to(positions))
        loss = persistence_loss(
            outputs["densities"]["dynamic"].reshape(-1)[drawn],
            elsewhen,
            depth=float(self.field.space.length) / 100,
        )
        return loss * weights.sum() / len(points.times)

    def _feature_losses(self, code: Tensor, features: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        assert self.semantic is not None
        weights = {
            "image": self.config.image_weight,
            "video": self.config.video_weight,
            "regulariser": self.config.regulariser_weight,
        }
        return {
            f"features_{kind}": weights[kind] * feature_loss(kind, self.semantic.decode(code, kind), target, valid)
            for kind, (target, valid) in features.items()
        }

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR of a view, and pictures to log: the view beside its target, and the layers side by side."""
        target = batch["image"].to(outputs["rgb"])
        error = float((outputs["rgb"] - target).square().mean().clamp_min(1e-10).log10())
        pictures = {
            "img": torch.cat((target, outputs["rgb"]), 1),
            "layers": torch.cat([outputs[f"rgb_{layer}"] for layer in LAYERS], 1),
        }
        return {"psnr": -10 * error}, pictures


class _LazyFeatures(dict[str, Tensor]):
    """A view's features by kind, decoded when asked for."""

    def __init__(self, model: DivFFModel, code: Tensor):
        super().__init__()
        self._model, self._code = model, code

    def __contains__(self, kind: object) -> bool:
        return isinstance(kind, str) and self._model.semantic is not None and kind in self._model.semantic.heads

    def __missing__(self, kind: str) -> Tensor:
        if kind not in self:
            raise KeyError(kind)
        return self._model.decode_features(self._code, kind)


def _nearest(sorted_times: Float[Tensor, "frames"], times: Float[Tensor, "*bs 1"]) -> Tensor:
    """Index of the frame next in time, of earlier and later equally near ones the earlier."""
    later = torch.searchsorted(sorted_times, times.contiguous()).clamp(1, max(1, len(sorted_times) - 1))
    later = later.clamp_max(len(sorted_times) - 1)
    earlier = (later - 1).clamp_min(0)
    closer = (times - sorted_times[earlier]) <= (sorted_times[later] - times)
    return torch.where(closer, earlier, later)
