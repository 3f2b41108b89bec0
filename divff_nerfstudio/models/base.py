"""What all methods share: views, outputs under fixed names, decoding of features, and answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Optional

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components import renderers
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor

from divff_nerfstudio.datamanager import DivFFDataManagerConfig
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.pca import FeatureBasis, project
from divff_nerfstudio.fields.layers import LAYERS, Layer
from divff_nerfstudio.models.schedule import Schedule
from divff_nerfstudio.models.separation import feature_loss, uncertain_photometric
from divff_nerfstudio.rendering import Composite, Visibility
from divff_nerfstudio.schema import Positive, Share, Weight

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
HEADS = {"hotspot": "video"}
"""Kinds of targets that another kind's head is compared with."""
_CODE, _CROP = "code", "crop"
CUT = "cut"
"""Key of a ray bundle's metadata: which rays end where a crop does, before their frame's far."""

_LARGEST_SIDE = 32768
_OVERSHOT = 0.2
"""Times leave 0 to 1 by less than this where splines run through times that lie within."""

Answer = Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]
"""Adds outputs to a view's pictures from its features by kind: see `Query.answer`."""


class RenderError(DivffError):
    """A view cannot be rendered."""


@dataclass
class LayeredModelConfig(ModelConfig):
    """Options that all methods have."""

    _target: type = field(default_factory=lambda: LayeredModel)
    """target class to instantiate"""
    enable_collider: bool = False
    """Near and far come with the rays."""
    eval_num_rays_per_chunk: int = 4096
    """Rays rendered at a time."""
    nearest: Positive = 1.0
    """Where rays start, in units of their frame's near."""
    farthest: Positive = 1.0
    """Where rays end, in units of their frame's far."""
    default_time: Share = 0.5
    """Time in [0, 1] of cameras that have none (ns-render interpolate)."""
    image_weight: Weight = 1.0
    """Weight of the image-language features' loss."""
    video_weight: Weight = 1.0
    """Weight of the video-language features' loss."""
    hotspot_weight: Weight = 0.0
    """Weight of their loss where hands meet objects, against the whole clip's feature (0 as in DIV-FF)."""
    regulariser_weight: Weight = 1.0
    """Weight of the regulariser's loss."""
    mean_over_all_rays: bool = False
    """Take the mean of features' losses over all rays, also over those without a target, which count as 0."""

    @abstractmethod
    def settle(self, device: Literal["cuda", "cpu"], steps: int | None, data: DivFFDataManagerConfig) -> int:
        """Settles what depends on the device, the length of the training and the scene; what was chosen stays.

        Args:
            device: Kind of device that is trained on.
            steps: Step at which training ends; None: as the method has it.
            data: Options of the data, which are settled, too.

        Returns:
            The step at which training ends.

        Raises:
            TrainingError: If the options make no sense.
        """

    def settle_scheduler(self, scheduler: Any, steps: int) -> None:
        """Settles the options of a learning rate's course for a training of so many steps."""
        scheduler.max_steps = steps
        scheduler.warmup_steps = min(scheduler.warmup_steps, steps // 2)  # it divides by what is left of them

    @abstractmethod
    def staged(self) -> Schedule:
        """When what is trained; before it is settled, everything from the start."""


class LayeredModel(Model):
    """Renders a scene's three layers at any time, and the features that were distilled into them.

    A method says how rays become samples, layers and outputs (`_render`), and what they should be (`_geometry_losses`).

    Attributes:
        field: The layers.
        semantic: The semantic heads, or None without features.
        visibility: Layers to leave out of pictures.
        answer: Adds outputs to a view from its features, if anything is asked; set from above.
        feature_basis: Fixed basis in which features are shown as colours; set from above.
    """

    config: LayeredModelConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    camera_types: ClassVar[tuple[CameraType, ...] | None] = None
    """Kinds of cameras that are rendered; None: all that nerfstudio casts rays of."""
    field: Any
    semantic: Any
    train_times: Tensor
    train_nears: Tensor
    train_fars: Tensor
    train_poses: Tensor

    def populate_modules(self) -> None:
        """Takes over the training frames' times, nears and fars."""
        super().populate_modules()
        metadata = self.kwargs["metadata"]
        order = torch.argsort(metadata["times"].flatten())
        for name in ("times", "nears", "fars"):
            self.register_buffer(f"train_{name}", metadata[name].flatten()[order].float())
        if "poses" in metadata:  # that a checkpoint knows its scene again
            self.register_buffer("train_poses", metadata["poses"][order].float())
        nearest, farthest = self.config.nearest, self.config.farthest
        if not bool((self.train_nears * nearest < self.train_fars * farthest).all()):
            raise RenderError(
                f"Rays would end before they begin: lower --pipeline.model.nearest ({nearest:g}) or raise "
                f"--pipeline.model.farthest ({farthest:g})."
            )
        self.visibility = Visibility()
        self.answer: Answer | None = None
        self.feature_basis: FeatureBasis | None = None
        self.step = 0

    # The schedule.

    @property
    def schedule(self) -> Schedule:
        """When what is trained."""
        return self.config.staged()

    @property
    def static_only(self) -> bool:
        """Whether the static layer is being trained alone."""
        return self.training and self.schedule.static_only(self.step)

    @property
    def features_trained(self) -> bool:
        """Whether the semantic heads have been, or are being, trained."""
        return self.semantic is not None and self.schedule.heads_trained(self.step)

    @property
    def features_detached(self) -> bool:
        """Whether features are rendered without teaching what they are rendered from."""
        return self.schedule.detached(self.step)

    @property
    def geometry_frozen(self) -> bool:
        """Whether only the heads are being trained."""
        return self.semantic is not None and self.schedule.heads_alone(self.step)

    @property
    def heads_begin_on_loaded_geometry(self) -> bool:
        """Whether a checkpoint of geometry alone is one to train new heads on."""
        return False

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """Takes on the sizes of a state of the model that is about to be loaded, where they vary."""

    def update_to_step(self, step: int) -> None:
        """Takes the place in the schedule that belongs to a step."""
        self.step = step

    # Rendering.

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:  # pyright: ignore
        """Renders rays.

        Args:
            ray_bundle: Rays with "camera_directions" in their metadata; near, far and time may be missing.

        Returns:
            In training what the losses need; otherwise `PICTURES` and, once features are trained, the rays' code.
        """
        if "camera_directions" not in ray_bundle.metadata:
            return self._outputs_of_no_camera(ray_bundle)
        rays = self._bounded(ray_bundle)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not (self.training and self.geometry_frozen)):
            rendered = self._render(rays)
        if self.semantic is not None and self.features_trained:
            rendered[_CODE] = self._code(rays, rendered.pop("state"), self.training and self.features_detached)
        else:
            rendered.pop("state")
        return rendered

    def _outputs_of_no_camera(self, rays: RayBundle) -> dict[str, Tensor]:
        """Renders rays that belong to no camera, so that nothing is seen of the actor, whose place depends on it.

        ``ns-render --render-nearest-camera`` asks so, even in the direction from a camera to itself, which is none.
        """
        rays = replace(rays, directions=torch.nan_to_num(rays.directions))
        rays.metadata = {**rays.metadata, "camera_directions": rays.directions}
        hidden, self.visibility.hide_actor = self.visibility.hide_actor, True
        try:
            return self.get_outputs(rays)
        finally:
            self.visibility.hide_actor = hidden

    def _bounded(self, rays: RayBundle) -> RayBundle:
        """Rays with a time, and with the near and far of the training frame next in time, widened, and cropped."""
        times, nears, fars = rays.times, rays.nears, rays.fars
        if times is None:
            times = torch.full_like(rays.origins[..., :1], self.config.default_time)
        if nears is None or fars is None:
            nears, fars = self._frame_bounds(times)
        nears, fars, metadata = nears * self.config.nearest, fars * self.config.farthest, rays.metadata
        if _CROP in metadata:
            enter, leave = metadata[_CROP].split(1, -1)
            metadata = {**metadata, CUT: (leave < fars) | (enter >= fars)}
            # A ray that misses the box keeps an interval too thin to show anything.
            nears = nears.maximum(enter.minimum(fars))
            fars = fars.minimum(leave).maximum(nears * (1 + 1e-5))
        return replace(rays, times=times, nears=nears, fars=fars, metadata=metadata)

    def _frame_bounds(self, times: Float[Tensor, "*bs 1"]) -> tuple[Float[Tensor, "*bs 1"], Float[Tensor, "*bs 1"]]:
        """Near and far of the training frame next in time."""
        nearest = nearest_frame(self.train_times, times)
        return self.train_nears[nearest], self.train_fars[nearest]

    @abstractmethod
    def _render(self, rays: RayBundle) -> dict[str, Any]:
        """What `get_outputs` gives, and in "state" the points, layers and weights that features are rendered from."""

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
        pictures = self._on_background({name: outputs[name] for name in PICTURES})
        if code is None or self.semantic is None:
            return pictures
        if self.feature_basis is not None and "image" in self.semantic.kinds:
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
        return {kind: self.decode_features(code, kind) for kind in self.semantic.kinds}

    def decode_features(self, code: Float[Tensor, "height width code"], kind: str) -> Float[Tensor, "height width dim"]:
        """Features of one kind from a view's code."""
        return torch.cat(list(self._decoded(code, kind)))

    def _decoded(self, code: Tensor, kind: str) -> Iterator[Tensor]:
        """Features of a view, some rows at a time."""
        assert self.semantic is not None
        rows = max(1, 16384 // code.shape[1])
        for part in code.split(rows):
            yield self._features(part, kind)

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """A view with the share of each pixel that is seen as its fourth channel; nothing lies behind it."""
        seen = outputs["accumulation"]
        return torch.cat(((outputs[output_name] / seen.clamp_min(1e-6)).clamp(0, 1), seen), -1)

    def _on_background(self, pictures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pictures over the colour that a crop asks for where nothing is."""
        background = renderers.BACKGROUND_COLOR_OVERRIDE
        if isinstance(background, Tensor):
            clear = 1 - pictures["accumulation"]
            pictures["rgb"] = (pictures["rgb"] + clear * background.to(clear)).clamp(0, 1)
        return pictures

    def _view(self, camera: Cameras, obb_box: OrientedBox | None) -> dict[str, Tensor]:
        """All outputs of a view, whichever device the camera comes from."""
        camera = self._checked(camera).to(self.device)
        box = None if obb_box is None else OrientedBox(*(part.to(self.device) for part in _parts(obb_box)))
        was_training = self.training
        self.eval()
        try:
            return self._view_of(camera, box)
        finally:
            self.train(was_training)

    def _checked(self, camera: Cameras) -> Cameras:
        """A camera that can be rendered, its time within 0 to 1.

        Raises:
            RenderError: If it cannot.
        """
        kind = CameraType(int(camera.camera_type.flatten()[0]))
        if self.camera_types is not None and kind not in self.camera_types:
            names = " and ".join(each.name.lower() for each in self.camera_types)
            raise RenderError(
                f"This method renders {names} cameras, not {kind.name.lower()} ones: choose another camera type, or a "
                "run of `ns-train divff`."
            )
        sides = [int(getattr(camera, name).flatten()[0]) for name in ("height", "width")]
        if not all(1 <= side <= _LARGEST_SIDE for side in sides):
            raise RenderError(
                f"A picture of {sides[1]}x{sides[0]} pixels cannot be rendered: give sizes from 1 to {_LARGEST_SIDE}."
            )
        numbers = torch.cat([getattr(camera, name).flatten() for name in ("camera_to_worlds", "fx", "fy", "cx", "cy")])
        if not bool(numbers.isfinite().all()) or not float(torch.cat((camera.fx, camera.fy)).min()) > 0:
            raise RenderError("A camera has numbers that are not finite, or no focal length: mend its file.")
        if camera.times is None:
            return camera
        time = float(camera.times.flatten()[0])
        if not -_OVERSHOT <= time <= 1 + _OVERSHOT:
            raise RenderError(f"A camera's time is {time:g}: give one from 0 to 1.")
        if not 0 <= time <= 1:
            camera = camera[...]
            camera.times = torch.full_like(camera.fx, min(max(time, 0.0), 1.0))
        return camera

    def _view_of(self, camera: Cameras, box: OrientedBox | None) -> dict[str, Tensor]:
        """All outputs of a view, with directions in the camera's own frame."""
        rays = camera.generate_rays(camera_indices=0, keep_shape=True, obb_box=box)
        rays.metadata = {"camera_directions": self._camera_directions(camera, rays)}
        if rays.nears is not None and rays.fars is not None:
            rays.metadata[_CROP] = torch.cat((rays.nears, rays.fars), -1)
            rays.nears = rays.fars = None
        return self.get_outputs_for_camera_ray_bundle(rays)

    def _features(self, code: Float[Tensor, "*bs code"], kind: str) -> Float[Tensor, "*bs dim"]:
        """Features of one kind that can be asked, of unit length."""
        return self.semantic.decode(code, kind)

    def _camera_directions(self, camera: Cameras, rays: RayBundle) -> Float[Tensor, "*bs 3"]:
        """Unit directions of a camera's rays in its own frame."""
        rotation = camera.camera_to_worlds.reshape(-1, camera.camera_to_worlds.shape[-2], 4)[0, :3, :3]
        return rays.directions @ rotation.to(rays.directions)

    # Losses.

    def training_step(
        self, rays: RayBundle, batch: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        """One step on a batch of rays.

        Returns:
            Outputs, losses, whose sum is to be followed back, and metrics.
        """
        outputs = self(rays)
        metrics = self.get_metrics_dict(outputs, batch)
        return outputs, self.get_loss_dict(outputs, batch, metrics), metrics

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
        if "evidence" in batch:
            outputs["evidence"] = batch["evidence"].to(self.device)
        losses = {} if self.geometry_frozen else self._geometry_losses(outputs, target)
        if _CODE in outputs and "features" in batch:
            losses |= self._feature_losses(outputs[_CODE], batch["features"])
        return losses

    @abstractmethod
    def _geometry_losses(self, outputs: dict[str, Any], target: Tensor) -> dict[str, Tensor]:
        """Losses of everything but features."""

    def _feature_losses(self, code: Tensor, features: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        assert self.semantic is not None
        weights = {
            "image": self.config.image_weight,
            "video": self.config.video_weight,
            "hotspot": self.config.hotspot_weight,
            "regulariser": self.config.regulariser_weight,
        }
        over_all = self.config.mean_over_all_rays
        return {
            f"features_{kind}": weights[kind]
            * feature_loss(kind, self.semantic.decode(code, HEADS.get(kind, kind)), target, valid, over_all)
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


def pictures_of(
    rgb: Float[Tensor, "rays 3"],
    depth: Float[Tensor, "rays"],
    accumulation: Float[Tensor, "rays"],
    layers: Mapping[Layer, Float[Tensor, "rays 3"]],
    composited: Composite,
    uncertainty: Float[Tensor, "rays"],
) -> dict[str, Tensor]:
    """`PICTURES` of rays, in [0, 1] except for depth; black and 0 for a layer that is not rendered.

    Args:
        rgb: Colours of the joint render.
        depth: Distances along the unit rays, in scene units.
        accumulation: Shares of light that come from any layer.
        layers: Colours of each layer alone.
        composited: Whose masks are shown.
        uncertainty: Standard deviations of the colours.
    """
    masks = {layer: composited.mask(layer)[:, None] for layer in LAYERS if layer != "static"}
    pictures = {"rgb": rgb, "accumulation": accumulation[:, None]}
    pictures |= {f"rgb_{layer}": layers.get(layer, torch.zeros_like(rgb)) for layer in LAYERS}
    pictures |= {f"mask_{layer}": mask for layer, mask in masks.items()}
    pictures |= {"mask_moving": masks["dynamic"] + masks["actor"], "uncertainty": uncertainty[:, None]}
    return {"depth": depth[:, None]} | {name: picture.clamp(0, 1) for name, picture in pictures.items()}


def _parts(box: OrientedBox) -> tuple[Tensor, Tensor, Tensor]:
    return box.R, box.T, box.S


class _LazyFeatures(dict[str, Tensor]):
    """A view's features by kind, decoded when asked for."""

    def __init__(self, model: LayeredModel, code: Tensor):
        super().__init__()
        self._model, self._code = model, code

    def __contains__(self, kind: object) -> bool:
        return isinstance(kind, str) and self._model.semantic is not None and kind in self._model.semantic.kinds

    def __missing__(self, kind: str) -> Tensor:
        if kind not in self:
            raise KeyError(kind)
        return self._model.decode_features(self._code, kind)


def nearest_frame(sorted_times: Float[Tensor, "frames"], times: Float[Tensor, "*bs 1"]) -> Tensor:
    """Index of the frame next in time, of earlier and later equally near ones the earlier."""
    later = torch.searchsorted(sorted_times, times.contiguous()).clamp(1, max(1, len(sorted_times) - 1))
    later = later.clamp_max(len(sorted_times) - 1)
    earlier = (later - 1).clamp_min(0)
    closer = (times - sorted_times[earlier]) <= (sorted_times[later] - times)
    return torch.where(closer, earlier, later)
