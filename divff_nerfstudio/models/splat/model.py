"""The model of divff-splat: three sets of Gaussians, rasterised together, with features as compact codes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Optional

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from torch import Tensor, nn

from divff_nerfstudio.card import OnHost, is_card
from divff_nerfstudio.data.scene import SceneFolder
from divff_nerfstudio.datamanager import DivFFDataManagerConfig
from divff_nerfstudio.fields.actor import ActorShadow
from divff_nerfstudio.fields.layers import LAYERS, Layer
from divff_nerfstudio.fields.next_in_time import nearest_frame
from divff_nerfstudio.fields.space import SceneSpace
from divff_nerfstudio.former_names import ROWS, formerly
from divff_nerfstudio.models.base import CODE, LayeredModel, LayeredModelConfig
from divff_nerfstudio.models.schedule import PhasesConfig
from divff_nerfstudio.models.separation import (
    SeparationConfig,
    layer_losses,
    room_loss,
    structural_loss,
    uncertain_photometric,
)
from divff_nerfstudio.models.splat.densification import Densification
from divff_nerfstudio.models.splat.density_control import DensityControlConfig, Observation, observations
from divff_nerfstudio.models.splat.divergence import stop_if_diverged
from divff_nerfstudio.models.splat.drawing import MOVING, Drawing
from divff_nerfstudio.models.splat.gaussians import (
    ROW_GROUPS,
    ActorGaussians,
    DynamicGaussians,
    GaussianLayer,
    StaticGaussians,
)
from divff_nerfstudio.models.splat.heads import SplatHeads, SplatHeadsConfig
from divff_nerfstudio.models.splat.points import first_points, place
from divff_nerfstudio.models.splat.rasterise import missing_for_kernels, require_kernels
from divff_nerfstudio.models.splat.splats import Splats, mean_opacity
from divff_nerfstudio.models.splat.views import RasterCamera, pixel_cameras
from divff_nerfstudio.models.view import PICTURES, RenderError
from divff_nerfstudio.schema import Amount, Count, Octaves, Positive, Size, Weight
from divff_nerfstudio.training_folder import TrainingError


@dataclass
class SplatModelConfig(SeparationConfig, PhasesConfig, LayeredModelConfig):
    """Options of the model of Gaussians."""

    steps_by_device: ClassVar[Mapping[str, int]] = {"cuda": 15000, "cpu": 3000}
    """Training steps, a frame each, unless said otherwise."""
    gaussians_by_device: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "cuda": {"static_start": 50000, "max_static": 300000, "max_dynamic": 60000, "max_actor": 40000},
        "cpu": {"static_start": 5000, "max_static": 8000, "max_dynamic": 3000, "max_actor": 2000},
    }
    """Numbers of Gaussians, unless said otherwise."""
    static_share: ClassVar[float] = 0.2
    """Part of the training at which the room of Gaussians is joined, which begins at random places."""

    _target: type = field(default_factory=lambda: SplatModel)
    """target class to instantiate"""
    near_scale: Annotated[Positive, formerly("--pipeline.model.nearest")] = 0.1
    """Depth under which nothing is rendered, in units of the frame's near."""
    room_near_scale: Annotated[Weight, formerly("--pipeline.model.room-from")] = 0.7
    """Depth, in units of the frame's near, under which training frames show nothing of the static layer: where a room
    begins is known, and what is nearer is somebody."""
    points: Optional[Path] = None  # noqa: UP045
    """Points that the static layer starts from: a PLY file (such as one exported from a run of divff), or points3D.bin
    or .txt of COLMAP, in the poses' coordinates. None: those in the scene's folder, else random ones."""
    static_start: Optional[Count] = None  # noqa: UP045
    """Random points that the static layer starts from where there are no others; of others, at most `max_static` are
    taken. None: by device."""
    max_static: Annotated[Optional[Count], formerly("--pipeline.model.static-most")] = None  # noqa: UP045
    """Gaussians that the static layer may have. None: by device, settled when training starts."""
    max_dynamic: Annotated[Optional[Count], formerly("--pipeline.model.dynamic-most")] = None  # noqa: UP045
    """Gaussians that the dynamic layer may have. None: by device."""
    max_actor: Annotated[Optional[Count], formerly("--pipeline.model.actor-most")] = None  # noqa: UP045
    """Gaussians that the actor may have. None: by device."""
    densification: Annotated[DensityControlConfig, formerly("--pipeline.model.density")] = field(
        default_factory=DensityControlConfig
    )
    """When Gaussians are split, duplicated and removed."""
    seed_rounds: Amount = 6
    """How often moving Gaussians are put where the picture is wrong, from the end of the static layer's first part to
    the middle of the geometry's."""
    seed_frames: Count = 48
    """Training frames that are looked at each time."""
    degree: Literal[0, 1, 2, 3] = 0
    """Degree of the spherical harmonics. Above 0, what moves can hide in a room that looks different from each side."""
    actor_octaves: Octaves = 5
    """Frequencies of the actor's encoded places."""
    hidden: Size = 64
    """Width of the actor's network and of the shadow's."""
    shadow: bool = True
    """Whether the actor casts a shadow on the static layer."""
    max_uncertainty: Annotated[Positive, formerly("--pipeline.model.largest-uncertainty")] = 0.3
    """Bound of a Gaussian's uncertainty."""
    heads: SplatHeadsConfig = field(default_factory=SplatHeadsConfig)
    """Sizes of the feature codes and their decoders."""
    structural_weight: Weight = 1.0
    """Weight of `structural_loss` once all layers are trained."""
    opacity_weight: Weight = 0.01
    """Weight of the moving layers' mean opacity."""
    persistence_weight: Weight = 0.3
    """Cost of a pixel explained by a dynamic Gaussian that is there at all moments: such things are static."""
    persistence_moments: Size = 8
    """Moments at which temporal opacities are looked at."""
    motion_weight: Weight = 0.01
    """Weight of the dynamic Gaussians' mean motion within their durations: what can rest, rests."""
    regulariser_weight: Weight = 0.3
    """Weight of the regulariser's loss."""

    def opened_on(self) -> torch.device:
        """On the CPU also where gsplat cannot run on the card."""
        return torch.device("cpu") if missing_for_kernels() else super().opened_on()

    def settle(self, device: Literal["cuda", "cpu"], steps: int | None, data: DivFFDataManagerConfig) -> int:
        """Settles steps and numbers of Gaussians by device; see `LayeredModelConfig`.

        Raises:
            TrainingError: If the file of points is missing.
            KernelsError: If gsplat cannot run on this machine's GPU.
        """
        self.settle_evidence()
        self.settle_hints(data)
        if self.points is not None and not self.points.is_file():
            raise TrainingError(f"{self.points} does not exist: give a PLY file or COLMAP's points3D as points.")
        if device == "cuda":
            require_kernels()
        for name, count in self.gaussians_by_device[device].items():
            setattr(self, name, getattr(self, name) or count)
        steps = steps or self.steps_by_device[device]
        self.settle_phases(steps)
        return steps

    def max_gaussians(self, layer: Layer) -> int:
        """Gaussians that a layer may have; none before that is settled."""
        return {"static": self.max_static, "dynamic": self.max_dynamic, "actor": self.max_actor}[layer] or 0


class SplatModel(LayeredModel):
    """Renders a scene's three sets of Gaussians at any time, and the features that were distilled into them.

    Rays are the pixels of whole frames, row by row; everything else is as in other methods.

    Attributes:
        observed: What the last training step has seen of the Gaussians, for `Densification`.
    """

    config: SplatModelConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    camera_types = (CameraType.PERSPECTIVE,)
    former_parameters: ClassVar[Mapping[str, str]] = ROWS
    eye: Tensor

    def populate_modules(self) -> None:
        """Puts the static layer's first Gaussians where the scene has points; the moving layers begin empty."""
        super().populate_modules()
        config, metadata = self.config, self.kwargs["metadata"]
        self.space = SceneSpace(self.scene_box.aabb, float(self.train_fars.median()))
        frames, code, bound = self.num_train_data, config.heads.code_dim, config.max_uncertainty
        self.layers = nn.ModuleDict(
            {
                "static": StaticGaussians(code, config.degree),
                "dynamic": DynamicGaussians(code, config.degree, frames, bound),
                "actor": ActorGaussians(code, config.degree, frames, bound, config.actor_octaves, config.hidden),
            }
        )
        self.actor_shadow = ActorShadow(self.gaussian_layer("actor"), config.hidden) if config.shadow else None  # pyright: ignore
        dimensions: dict[str, int] = dict(metadata.get("feature_dims", {}))
        self.semantic = SplatHeads(config.heads, frames, dimensions) if dimensions else None
        scene: SceneFolder = metadata["scene"]
        points = first_points(scene, config.points, config.static_start or 0, config.max_gaussians("static"))
        place(points, self.gaussian_layer("static"), self.space.length)
        centres = scene.camera_to_worlds[scene.splits["train"], :, 3]
        self.register_buffer("eye", torch.from_numpy(centres.mean(0)).float(), persistent=False)
        self.observed: dict[Layer, Observation] = {}
        self._on_host = OnHost()

    def gaussian_layer(self, layer: Layer) -> GaussianLayer:
        """One layer's Gaussians."""
        return self.layers[layer]  # pyright: ignore[reportReturnType]

    def gaussians_at(self, camera: Cameras) -> dict[Layer, Splats]:
        """The Gaussians of each layer that live at a camera's time, in the world, in lengths of the scene."""
        drawn = self.drawing(self.seen_by(camera), LAYERS).splats
        splats: dict[Layer, Splats] = {layer: each.without_hidden() for layer, each in drawn.items()}
        return {layer: each for layer, each in splats.items() if len(each)}

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """Takes on the number of Gaussians that a state of the model has."""
        for name in LAYERS:
            if (means := state.get(f"layers.{name}.rows.means")) is not None:
                self.gaussian_layer(name).make_room(len(means))

    # The schedule.

    def get_param_groups(self) -> dict[str, list[Any]]:
        """Parameters by what they are; each row of each layer is a group of its own for gsplat's strategies."""
        groups: dict[str, list[Any]] = {}
        # By their former names: checkpoints tell states of optimizers apart by their places alone.
        former = {name: former for former, name in ROWS.items()}
        for layer in LAYERS:
            rows = self.gaussian_layer(layer).rows
            for name in sorted(rows, key=lambda name: former.get(name, name)):
                groups.setdefault(ROW_GROUPS.get(name, name), []).append({"params": [rows[name]]})
        rows = {id(group["params"][0]) for each in groups.values() for group in each}
        others = [parameter for parameter in self.layers.parameters() if id(parameter) not in rows]
        groups["networks"] = [*others, *(self.actor_shadow.parameters() if self.actor_shadow is not None else ())]
        if self.semantic is not None:
            groups["heads"] = list(self.semantic.parameters())
        return groups

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Changes the number of Gaussians after each step."""
        adapt = Densification(self, training_callback_attributes).adapt
        return [TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], adapt, update_every_num_iters=1)]

    # Rendering.

    def get_outputs(self, ray_bundle: Cameras | RayBundle) -> dict[str, Any]:  # pyright: ignore
        """Renders all pixels of a view.

        Args:
            ray_bundle: One camera, with or without a time; or rays, of which each is the one pixel of a camera, without
                the actor: see `RayModel`.

        Returns:
            In training what the losses need; otherwise `PICTURES` and, once features are trained, the pixels' code.
        """
        wanted = {*PICTURES, CODE} if self.features_trained else {*PICTURES}
        if isinstance(ray_bundle, RayBundle):
            views = map(self.seen_by, pixel_cameras(ray_bundle))
            pixels = [self._pictures(view, ("static", "dynamic"), None, wanted) for view in views]
            return {name: torch.cat([each[name] for each in pixels]) for name in pixels[0]}
        view = self.seen_by(ray_bundle)
        return self._training_outputs(view) if self.training else self._pictures(view, LAYERS, None, wanted)

    def seen_by(self, camera: Cameras) -> RasterCamera:
        """What Gaussians are drawn for: the view of one camera."""
        return RasterCamera.of(camera, self.space.known_length(), self.config.default_time, self.device)

    def _checked(self, camera: Cameras) -> Cameras:
        camera = super()._checked(camera)
        if camera.distortion_params is not None and bool(camera.distortion_params.any()):
            raise RenderError("Gaussians are drawn without distortion: leave the camera's distortion out.")
        return camera

    def _view_of(
        self, camera: Cameras, layers: tuple[Layer, ...], box: OrientedBox | None, wanted: Collection[str]
    ) -> dict[str, Float[Tensor, "height width channels"]]:
        """Pictures of a view."""
        view = self.seen_by(camera)
        outputs = self._pictures(view, layers, box, wanted)
        return {name: output.view(view.height, view.width, -1) for name, output in outputs.items()}

    def drawing(self, view: RasterCamera, layers: tuple[Layer, ...]) -> Drawing:
        """The Gaussians of layers in a view."""
        actor, shadow = self.gaussian_layer("actor"), self.actor_shadow
        # By the layer's own number: what of it can be seen is not known on a card.
        unshadowed = shadow is None or "actor" not in layers or len(actor) == 0
        return Drawing(
            view,
            {layer: self.gaussian_layer(layer).at(view.moment) for layer in layers},
            self.config.near_scale * self._near(view),
            self.config.min_uncertainty,
            None if unshadowed else partial(shadow, actor),  # pyright: ignore[reportArgumentType]
        )

    def _near(self, view: RasterCamera) -> float:
        """Where the room begins at a time, in lengths of the scene."""
        times, nears = (self._on_host(name, getattr(self, name)) for name in ("train_times", "train_nears"))
        return float(nears[nearest_frame(times, torch.tensor([view.moment.known_time]))] / self.space.known_length())

    def _lasting(self, splats: Splats) -> Float[Tensor, "gaussians"]:
        """How much of each dynamic Gaussian that is seen there is at all times."""
        layer = self.gaussian_layer("dynamic")
        assert isinstance(layer, DynamicGaussians)
        return layer.lasting(self.config.persistence_moments)[splats.ids]

    def _training_outputs(self, view: RasterCamera) -> dict[str, Any]:
        codes = self.semantic is not None and self.features_trained
        layers: tuple[Layer, ...] = ("static",) if self.static_only else LAYERS
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.geometry_frozen):
            drawing = self.drawing(view, layers)
        splats = drawing.splats
        static = splats["static"]
        splats["static"] = static.select(
            view.depths(static.means) > self.config.room_near_scale * self._near(view), view.moment
        )
        if self.geometry_frozen:
            for name, each in splats.items():
                splats[name] = replace(each, codes=self.gaussian_layer(name).rows["codes"][each.ids])
        if self.geometry_frozen and drawing.shadow is not None:
            drawing.shadow = drawing.shadow.detach()
        parts, facts = drawing.together(codes, None if codes else self._lasting)
        rgb, alpha, masks = parts["rgb"], parts["accumulation"], parts["masks"]
        outputs: dict[str, Any] = {
            # A random background: nothing may hide in black behind the room.
            "rgb": rgb + (1 - alpha)[:, None] * torch.rand_like(rgb),
            "uncertainty": parts["uncertainty"],
            "masks": dict(zip(MOVING, masks.unbind(-1), strict=True)) if len(layers) > 1 else {},
            "lasting": parts["rest"][:, 0] if "dynamic" in splats and not codes else None,
            "size": (view.height, view.width),
            "splats": splats,
            "enclosed": alpha,
        }
        if codes:
            assert self.semantic is not None
            joined = masks.detach() if self.features_detached else masks
            outputs[CODE] = self.semantic.code(parts["rest"], joined, view.moment.time)
        if not self.geometry_frozen:
            self.observed |= observations(facts, splats)
            if len(layers) > 1:
                outputs |= drawing.static_alone(drawing.shadow)
        return outputs

    def _pictures(
        self, view: RasterCamera, layers: tuple[Layer, ...], box: OrientedBox | None, wanted: Collection[str]
    ) -> dict[str, Tensor]:
        """Pictures of a view, and its code, if they are wanted; (rays, channels) each."""
        drawing = self.drawing(view, layers)
        if box is not None:
            for name, each in drawing.splats.items():
                drawing.splats[name] = each.select(box.within(each.means * self.space.length), view.moment)
        pictures = drawing.pictures(wanted, lambda codes, masks: self.semantic.code(codes, masks, view.moment.time))
        if "depth" in pictures:
            pictures["depth"] = pictures["depth"] * self.space.length
        return pictures

    # Losses.

    def get_loss_dict(
        self, outputs: dict[str, Any], batch: dict[str, Any], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Losses of a frame; features at those of its pixels that the batch has targets for."""
        if CODE in outputs and "pixels" in batch:
            outputs = outputs | {CODE: outputs[CODE][batch["pixels"].to(self.device)]}
        losses = super().get_loss_dict(outputs, batch, metrics_dict)
        # On a card, for whose answer one would have to wait, the trainer looks now and then.
        looks = self.training and losses and not is_card(self.device)
        if looks and not torch.stack(list(losses.values())).sum().isfinite():
            stop_if_diverged(self.step, losses)
        return losses

    def _geometry_losses(self, outputs: dict[str, Any], target: Tensor) -> dict[str, Tensor]:
        config = self.config
        losses = {"enclosure": config.enclosure_weight * (1 - outputs["enclosed"]).mean()}
        evidence, hints = outputs.get("evidence"), outputs.get("hints")
        if self.static_only:
            losses["photometric"] = room_loss(config, outputs["rgb"], target, evidence, hints)
            return losses
        losses["photometric"] = uncertain_photometric(outputs["rgb"], target, outputs["uncertainty"])
        losses["structure"] = config.structural_weight * structural_loss(outputs["rgb"], target, *outputs["size"])
        losses |= layer_losses(
            config,
            config.mask_weight * self.schedule.ramp(self.step),
            outputs["masks"],
            outputs["rgb_static"],
            None if self.actor_shadow is None else outputs["shadow"],
            target,
            evidence,
            hints=hints,
        )
        if outputs["lasting"] is not None:
            losses["persistence"] = config.persistence_weight * outputs["lasting"].mean()
        opacity = mean_opacity(each for layer, each in outputs["splats"].items() if layer != "static")
        if opacity is not None:
            losses["opacity"] = config.opacity_weight * opacity
        motions = self.gaussian_layer("dynamic").rows["motions"]
        if len(motions):
            losses["motion"] = config.motion_weight * motions.abs().sum((1, 2)).mean()
        return losses
