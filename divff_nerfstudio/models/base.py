"""What all methods share: options, the place in the schedule, views, decoding of features, and their losses."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Optional, Protocol

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components import renderers
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor

from divff_nerfstudio.card import free_bytes
from divff_nerfstudio.datamanager import DivFFDataManagerConfig
from divff_nerfstudio.features.pca import FeatureBasis, project
from divff_nerfstudio.fields.layers import LAYERS, Layer
from divff_nerfstudio.fields.next_in_time import nearest_frame
from divff_nerfstudio.former_names import formerly
from divff_nerfstudio.models.distillation import HEADS, feature_loss
from divff_nerfstudio.models.schedule import Schedule
from divff_nerfstudio.models.separation import uncertain_photometric
from divff_nerfstudio.models.view import (
    EVERYTHING,
    FEATURES,
    FEATURES_PCA,
    PICTURES,
    Features,
    RenderedView,
    RenderError,
    checked_camera,
    checked_layers,
    checked_outputs,
)
from divff_nerfstudio.schema import Positive, Share, Weight

CODE = "code"
"""Output in which rays have what their features are decoded from."""
LOGGED = ("rgb", *(f"rgb_{layer}" for layer in LAYERS))
"""Pictures that are looked at while training."""
_PIXELS = 16384
"""Pixels whose features are decoded at a time, at least."""
_BYTES_OF_A_PIXEL = 2**15
"""What the activations of a pixel take at most while its features are decoded."""
_TURN = threading.RLock()
"""One view at a time: rendering sets the model's mode, and viewer and training have threads of their own."""


class Answers(Protocol):
    """Says what a question finds in a view: `Query`."""

    @property
    def outputs(self) -> Collection[str]:
        """Names of the outputs that it adds; none while nothing is asked."""
        ...

    def answer(self, outputs: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs to add to a view's pictures, from its features by kind."""
        ...


@dataclass
class LayeredModelConfig(ModelConfig):
    """Options that all methods have."""

    _target: type = field(default_factory=lambda: LayeredModel)
    """target class to instantiate"""
    enable_collider: bool = False
    """Near and far come with the rays."""
    eval_num_rays_per_chunk: int = 4096
    """Rays rendered at a time."""
    near_scale: Annotated[Positive, formerly("--pipeline.model.nearest")] = 1.0
    """Where rays start, in units of their frame's near."""
    far_scale: Annotated[Positive, formerly("--pipeline.model.farthest")] = 1.0
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
    windowed: ClassVar[bool] = False
    """Whether the method has moving layers for each window of a video (`DivFFDataManagerConfig.windows`)."""

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

    def opened_on(self) -> torch.device:
        """Where a run is opened: on a card, if there is one on which the method runs."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def settle_scheduler(self, scheduler: Any, steps: int) -> None:
        """Settles the options of a learning rate's course for a training of so many steps."""
        scheduler.max_steps = steps
        scheduler.warmup_steps = min(scheduler.warmup_steps, steps // 2)  # it divides by what is left of them

    @abstractmethod
    def staged(self) -> Schedule:
        """When what is trained; before it is settled, everything from the start."""

    def heads_go_on_by(self, step: int) -> str:
        """What to give so that heads, which a longer schedule would let rest, are trained from a step on."""
        del step
        return "the number of steps that it was to have"


class LayeredModel(Model):
    """Renders a scene's three layers at any time, and the features that were distilled into them.

    A method says how a camera's view becomes pictures (`_view_of`), what training computes (`get_outputs`), and what
    that should be (`_geometry_losses`).

    Attributes:
        field: The layers.
        semantic: The semantic heads, or None without features.
        query: What nerfstudio's views are asked, if anything; set from above.
        read_outputs: Names of the outputs that are read of nerfstudio's views; None: all. Set from above.
        feature_basis: Fixed basis in which features are shown as colours; set from above.
        paces_on_device: The `paces` as tensors, while a step that is captured, or may be, is taken; set from above.
    """

    config: LayeredModelConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    camera_types: ClassVar[tuple[CameraType, ...] | None] = None
    """Kinds of cameras that are rendered; None: all that nerfstudio casts rays of."""
    former_parameters: ClassVar[Mapping[str, str]] = {}
    """Last parts of parameters' names in checkpoints of earlier versions, and what they are called now."""
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
        near, far = self.config.near_scale, self.config.far_scale
        if not bool((self.train_nears * near < self.train_fars * far).all()):
            raise RenderError(
                f"Rays would end before they begin: lower --pipeline.model.near-scale ({near:g}) or raise "
                f"--pipeline.model.far-scale ({far:g})."
            )
        self.query: Answers | None = None
        self.read_outputs: Collection[str] | None = None
        self.feature_basis: FeatureBasis | None = None
        self.step = 0
        self.paces_on_device: Mapping[str, Tensor] | None = None

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

    def paces(self, step: int) -> dict[str, float]:
        """Numbers that follow the step within a part of the schedule, by name."""
        return {}

    def paced(self, name: str) -> float | Tensor:
        """One of the `paces` at the current step, from the device's memory if they lie there."""
        return self.paces(self.step)[name] if self.paces_on_device is None else self.paces_on_device[name]

    @property
    def uncapturable(self) -> str | None:
        """Why no training step of a part of the schedule, captured as a CUDA graph, stands for all of it, in words;
        None if steps differ in nothing but batch, random numbers, learning rates and `paces`."""
        return "it changes in size while it is trained"

    # Rendering.

    @property
    def available(self) -> tuple[str, ...]:
        """What of `EVERYTHING` there is at present: of features nothing before they are trained."""
        if self.semantic is None or not self.features_trained:
            return PICTURES
        coloured = self.feature_basis is not None and "image" in self.semantic.kinds
        return EVERYTHING if coloured else (*PICTURES, FEATURES)

    @torch.no_grad()
    def render(
        self,
        camera: Cameras,
        layers: Collection[Layer] = LAYERS,
        box: OrientedBox | None = None,
        outputs: Collection[str] = EVERYTHING,
    ) -> RenderedView:
        """Renders a view.

        Args:
            camera: One camera on any device, with or without a time.
            layers: The layers that are seen; the static one always is.
            box: Part of the scene that is seen, if not all of it.
            outputs: What is asked for, of `EVERYTHING`; the rest is not computed, nor what is not `available`.

        Raises:
            RenderError: If the camera or the layers cannot be rendered, or an output is unknown.
        """
        checked, layers = self._checked(camera.to("cpu")), checked_layers(layers)
        outputs = checked_outputs(outputs) & {*self.available}
        box = None if box is None else OrientedBox(*(part.to(self.device) for part in (box.R, box.T, box.S)))
        background = renderers.BACKGROUND_COLOR_OVERRIDE
        behind = background if isinstance(background, Tensor) and "rgb" in outputs else None
        wanted = {name for name in PICTURES if name in outputs} | ({"accumulation"} if behind is not None else set())
        if outputs & {FEATURES, FEATURES_PCA}:
            wanted.add(CODE)
        with _TURN:
            was_training = self.training
            self.eval()
            try:
                found = self._view_of(checked, layers, box, wanted)
            finally:
                self.train(was_training)
        if behind is not None:
            found["rgb"] = (found["rgb"] + (1 - found["accumulation"]) * behind.to(found["rgb"])).clamp(0, 1)
        pictures = {name: found[name] for name in PICTURES if name in outputs}
        if (code := found.get(CODE)) is None:
            return RenderedView(camera, pictures, Features())
        if FEATURES_PCA in outputs:
            assert self.feature_basis is not None
            basis = self.feature_basis = self.feature_basis.to(code.device)
            pictures[FEATURES_PCA] = self._decoded(code, "image", lambda features: project(features, basis))
        asked = FEATURES in outputs
        decoded = Features(self.semantic.kinds, lambda kind: self.decode_features(code, kind)) if asked else Features()
        return RenderedView(camera, pictures, decoded)

    def get_outputs_for_camera(self, camera: Cameras, obb_box: Optional[OrientedBox] = None) -> dict[str, Tensor]:  # noqa: UP045
        """A view of all layers as nerfstudio asks for one: the pictures that are read, and what the query finds."""
        view = self.render(camera, box=obb_box, outputs=self._read())
        if self.query is None or not view.features:
            return view.pictures
        return view.pictures | self.query.answer(view.pictures, view.features)

    def _read(self) -> Collection[str]:
        """What nerfstudio's views are rendered for. A name that there is not is answered with all that there are."""
        if self.read_outputs is None:
            return EVERYTHING
        read, answers = {*self.read_outputs}, set()
        if self.query is not None and FEATURES in self.available:
            answers = {*self.query.outputs}
        if not read <= answers | {*self.available} - {FEATURES}:
            return EVERYTHING
        return read - answers | ({"rgb", FEATURES} if read & answers else set())

    @abstractmethod
    def _view_of(
        self, camera: Cameras, layers: tuple[Layer, ...], box: OrientedBox | None, wanted: Collection[str]
    ) -> dict[str, Float[Tensor, "height width channels"]]:
        """Pictures of a view, and its code if that is wanted; the camera is in the host's memory."""

    def _checked(self, camera: Cameras) -> Cameras:
        """A camera, in the host's memory, that can be rendered: see `checked_camera`."""
        return checked_camera(camera, self.camera_types)

    def _frame_bounds(self, times: Float[Tensor, "*bs 1"]) -> tuple[Float[Tensor, "*bs 1"], Float[Tensor, "*bs 1"]]:
        """Near and far of the training frame next in time."""
        nearest = nearest_frame(self.train_times, times)
        return self.train_nears[nearest], self.train_fars[nearest]

    def decode_features(self, code: Float[Tensor, "height width code"], kind: str) -> Float[Tensor, "height width dim"]:
        """Features of one kind from a view's code."""
        return self._decoded(code, kind, lambda features: features)

    def _decoded(self, code: Tensor, kind: str, made: Callable[[Tensor], Tensor]) -> Tensor:
        """What is made of a view's features, some rows at a time: on a card all at once, if its memory allows that."""
        pixels = max(_PIXELS, (free_bytes(code.device) or 0) // 4 // _BYTES_OF_A_PIXEL)
        parts = [made(self._features(part, kind)) for part in code.split(max(1, pixels // code.shape[1]))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _features(self, code: Float[Tensor, "*bs code"], kind: str) -> Float[Tensor, "*bs dim"]:
        """Features of one kind that can be asked, of unit length."""
        return self.semantic.decode(code, kind)

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """A view with the share of each pixel that is seen as its fourth channel; nothing lies behind it."""
        seen = outputs["accumulation"]
        return torch.cat(((outputs[output_name] / seen.clamp_min(1e-6)).clamp(0, 1), seen), -1)

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
        outputs |= {name: batch[name].to(self.device) for name in ("evidence", "resting", "hints") if name in batch}
        losses = {} if self.geometry_frozen else self._geometry_losses(outputs, target)
        if CODE in outputs and "features" in batch:
            losses |= self._feature_losses(outputs[CODE], batch["features"])
        return losses

    @abstractmethod
    def _geometry_losses(self, outputs: dict[str, Any], target: Tensor) -> dict[str, Tensor]:
        """Losses of everything but features."""

    def _feature_losses(self, code: Tensor, features: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        assert self.semantic is not None
        over_all = self.config.mean_over_all_rays
        return {
            f"features_{kind}": getattr(self.config, f"{kind}_weight")
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
            "layers": torch.cat([outputs[name] for name in LOGGED[1:]], 1),
        }
        return {"psnr": -10 * error}, pictures
