"""The published model: rays -> coarse and importance samples -> network -> compositing -> outputs (DIV-FF)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Optional

import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from torch import Tensor, nn

from divff_nerfstudio.card import free_bytes
from divff_nerfstudio.data.rays import at_origin
from divff_nerfstudio.datamanager import DivFFDataManagerConfig
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.autoencoder import Autoencoder, AutoencoderConfig, load_autoencoder
from divff_nerfstudio.fields.layers import LAYERS, Layer, LayerSamples
from divff_nerfstudio.fields.next_in_time import nearest_frame
from divff_nerfstudio.fields.published import PublishedField, PublishedFieldConfig
from divff_nerfstudio.fields.published_heads import HIDDEN_LAYERS, PublishedHeads, PublishedHeadsConfig
from divff_nerfstudio.former_names import formerly
from divff_nerfstudio.models.base import LayeredModelConfig
from divff_nerfstudio.models.partial_steps import step_in_parts
from divff_nerfstudio.models.published_rays import CoarsePass, Rendering
from divff_nerfstudio.models.rays import CUT, RayModel
from divff_nerfstudio.models.schedule import PublishedScheduleConfig, Schedule, StagedCosineConfig
from divff_nerfstudio.models.separation import weighted_error
from divff_nerfstudio.models.view import pictures_of
from divff_nerfstudio.rendering import (
    Composite,
    between,
    composite,
    even_depths,
    importance_depths,
    open_intervals,
    points_at,
)
from divff_nerfstudio.schema import Count, Positive, Size, Weight
from divff_nerfstudio.training_folder import TrainingError


class PublishedModelError(DivffError):
    """The published model cannot be built from what it is given."""


@dataclass
class PublishedModelConfig(LayeredModelConfig):
    """Options of the published model."""

    usual_memory_mb: ClassVar[int] = 128
    """Memory for the activations of a chunk of rays, unless said otherwise."""
    rays_per_step: ClassVar[int] = 1024
    """Rays per step on any device, unless said otherwise."""

    _target: type = field(default_factory=lambda: PublishedModel)
    """target class to instantiate"""
    eval_num_rays_per_chunk: int = 32768
    """Rays handed over at a time; how many of them are rendered at once follows from memory-mb."""
    mean_over_all_rays: bool = True
    """Take the mean of features' losses over all rays, also over those without a target, which count as 0."""
    fields: PublishedFieldConfig = field(default_factory=PublishedFieldConfig)
    """Sizes of the network."""
    heads: PublishedHeadsConfig = field(default_factory=PublishedHeadsConfig)
    """Sizes of the semantic heads."""
    schedule: PublishedScheduleConfig = field(default_factory=PublishedScheduleConfig)
    """Stages of the training."""
    autoencoder: Optional[Path] = None  # noqa: UP045  (tyro and pyright agree on this form in Python 3.10)
    """The scene's autoencoder: the image head learns its codes of the scene's image features, and what is asked is held
    against the decoded ones. It is kept in the checkpoint. Without one the features are learnt as they are."""
    autoencoder_sizes: Optional[AutoencoderConfig] = None  # noqa: UP045
    """Its sizes, settled when training starts."""
    coarse_samples: Size = 64
    """Samples of the coarse network on each ray."""
    importance_samples: Size = 64
    """Samples that are drawn from the coarse weights, of which the fine network sees all."""
    jitter: bool = True
    """Draw depths at random in training."""
    density_noise: Weight = 1.0
    """Standard deviation of the noise on the coarse density in training."""
    end_density: Weight = 100.0
    """Static density of the last sample in training, where the colour is random, so that no black background is learnt.
    0: as the network has it."""
    share_epsilon: Positive = 1e-6
    """Added to the summed density where a layer's part of it is taken. NeuralDiff adds nothing: 1e-20 stands for that,
    which changes no density that single precision tells from 0."""
    min_uncertainty: Annotated[Positive, formerly("--pipeline.model.least-uncertainty")] = 0.03
    """Standard deviation of the colours of the static layer."""
    density_weight: Weight = 0.01
    """Weight of the mean densities of the dynamic layer and of the actor."""
    bounds: Literal["frames", "training"] = "frames"
    """Near and far of a view: those of the scene's frame next in time, or of the training frame next in time."""
    memory_mb: Optional[Count] = None  # noqa: UP045
    """Memory for the activations of the rays that are rendered at once. None: on a GPU a third of what is free at the
    first time, elsewhere 128."""
    compile: bool = False
    """Compile the networks with torch.compile (CUDA)."""

    def settle(self, device: Literal["cuda", "cpu"], steps: int | None, data: DivFFDataManagerConfig) -> int:
        """Settles the stages from the scene's size and features, and the autoencoder's sizes; see `LayeredModelConfig`.

        Raises:
            TrainingError: If heads shall be trained and there are no features.
        """
        del device
        data.train_num_rays_per_batch = data.train_num_rays_per_batch or self.rays_per_step
        if self.schedule.steps_per_epoch is None:
            pixels, features = data.survey()
            if self.schedule.stages == "heads" and not features:
                raise TrainingError(
                    "The scene has no features to train semantic heads on: extract them with `divff extract`."
                )
            self.schedule.settle(pixels, data.train_num_rays_per_batch, features, steps)
        if self.autoencoder is not None and self.autoencoder_sizes is None:
            self.autoencoder_sizes = load_autoencoder(self.autoencoder).config
        return steps or self.schedule.steps

    def settle_scheduler(self, scheduler: Any, steps: int) -> None:
        """Settles the stages of a learning rate; one of another course keeps its own length."""
        if isinstance(scheduler, StagedCosineConfig):
            scheduler.epochs, scheduler.steps_per_epoch = self.schedule.epochs, self.schedule.steps_per_epoch

    def opened_autoencoder(self) -> Autoencoder | None:
        """The autoencoder from its file; where that is gone, one of its sizes for a checkpoint to fill."""
        if self.autoencoder is not None and (self.autoencoder_sizes is None or self.autoencoder.is_file()):
            found = load_autoencoder(self.autoencoder)
            self.autoencoder_sizes = found.config
            return found
        if self.autoencoder_sizes is not None:
            return Autoencoder(self.autoencoder_sizes).eval().requires_grad_(False)
        return None

    def staged(self) -> Schedule:
        """The schedule of its stages."""
        return self.schedule.staged()


class PublishedModel(RayModel):
    """The published network with its sampling, compositing, losses and schedule.

    Attributes:
        autoencoder: Of the scene's image features, frozen, if the model was given one.
    """

    config: PublishedModelConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    field: PublishedField
    semantic: PublishedHeads | None
    all_times: Tensor
    all_nears: Tensor
    all_fars: Tensor

    def populate_modules(self) -> None:
        """Builds the network, the heads for the scene's features, and the autoencoder.

        Raises:
            PublishedModelError: If frames have no rows in the network's tables, or the features fit no head.
        """
        super().populate_modules()
        metadata, config = self.kwargs["metadata"], self.config
        if metadata.get("time_rows") is None:
            raise PublishedModelError(
                "The published network has a table with a row per frame id: set its number of rows with "
                "--pipeline.datamanager.dataparser.time-rows (1000 in the published checkpoints)."
            )
        order = torch.argsort(metadata["all_times"].flatten())
        for name in ("times", "nears", "fars"):
            self.register_buffer(f"all_{name}", metadata[f"all_{name}"].flatten()[order].float(), persistent=False)
        self._free_at_first: int | None = None
        self.field = PublishedField(config.fields, metadata["time_rows"], self.train_times)
        self.autoencoder = config.opened_autoencoder()
        dimensions = {**config.heads.dimensions, **metadata.get("feature_dims", {})}
        if self.autoencoder is not None and "image" in dimensions:
            if dimensions["image"] not in (self.autoencoder.feature_dim, self.autoencoder.code_dim):
                raise PublishedModelError(
                    f"The scene's image features have {dimensions['image']} values where the autoencoder "
                    f"{config.autoencoder} reads {self.autoencoder.feature_dim}: give the one that was trained on them."
                )
            dimensions["image"] = self.autoencoder.code_dim
        self.semantic = PublishedHeads(config.heads, self.field.encoding_dim, dimensions) if dimensions else None
        if config.compile:
            self.field.nerf_coarse.compile()
            self.field.nerf_fine.compile()

    def train(self, mode: bool = True) -> PublishedModel:
        """Sets the mode of everything but the autoencoder, whose statistics stay."""
        super().train(mode)
        if self.autoencoder is not None:
            self.autoencoder.eval()
        return self

    # The schedule.

    @property
    def heads_begin_on_loaded_geometry(self) -> bool:
        """Whether a checkpoint of geometry alone is one to train new heads on."""
        return self.config.schedule.stages == "heads"

    def update_to_step(self, step: int) -> None:
        """Takes the place in the schedule that belongs to a step."""
        super().update_to_step(step)
        frozen = self.semantic is not None and self.schedule.networks_frozen(step)
        for parameter in self.field.networks():
            parameter.requires_grad_(not frozen)

    @property
    def uncapturable(self) -> str | None:
        """See `LayeredModel.uncapturable`."""
        return None

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of "networks", "codes" and, with features, "heads"."""
        groups = {"networks": self.field.networks(), "codes": self.field.codes()}
        if self.semantic is not None:
            groups["heads"] = list(self.semantic.parameters())
        return groups

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Begins the second stage with fresh optimizers."""

        def refresh(step: int) -> None:
            if step == self.schedule.heads_start_step and training_callback_attributes.optimizers is not None:
                for optimizer in training_callback_attributes.optimizers.optimizers.values():
                    optimizer.state.clear()

        return [TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], refresh)]

    # Rendering.

    @property
    def rays_at_once(self) -> int:
        """Rays whose activations fit into the memory for them."""
        config, fields = self.config, self.config.fields
        coarse, fine = config.coarse_samples, config.coarse_samples + config.importance_samples
        encoded = 2 * len(LAYERS) * (2 * fields.position_octaves + 1)
        picked = 0 if self.semantic is None else len(LAYERS) * config.heads.samples * config.heads.hidden
        if self.training:  # all that is kept until the gradients are known
            trunk = encoded + 9 * fields.trunk_width
            floats = coarse * (trunk + fields.branch_width) + fine * (trunk + 9 * fields.branch_width)
            floats += picked * (1 + sum(HIDDEN_LAYERS.values()))
        else:
            floats = fine * (encoded + 3 * fields.trunk_width + 4 * fields.branch_width) + 3 * picked
        return max(16, self._activation_bytes() // (4 * floats))

    def _activation_bytes(self) -> int:
        """Memory for activations. On a card it stays what it was at first, so that batches go on being split alike."""
        if self.config.memory_mb:
            return self.config.memory_mb * 2**20
        if self._free_at_first is None:
            self._free_at_first = free_bytes(self.device)
        return self._free_at_first // 3 if self._free_at_first else self.config.usual_memory_mb * 2**20

    def along(self, rays: RayBundle, layers: tuple[Layer, ...], wanted: Collection[str]) -> dict[str, Any]:
        """Renders rays: in training all at once, otherwise as many at a time as fit into memory."""
        if self.training:
            return super().along(rays, layers, wanted)
        size, along = self.rays_at_once, super().along
        parts = [along(rays[start : start + size], layers, wanted) for start in range(0, len(rays), size)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _camera_directions(self, camera: Cameras, rays: RayBundle) -> Float[Tensor, "*bs 3"]:
        """Unit directions of a camera's rays in its own frame: those of the same camera at the origin.

        The highest octave magnifies what rounding would leave of the pose, were it rotated back.
        """
        return at_origin(camera).generate_rays(camera_indices=0, keep_shape=True).directions

    def _frame_bounds(self, times: Float[Tensor, "*bs 1"]) -> tuple[Float[Tensor, "*bs 1"], Float[Tensor, "*bs 1"]]:
        """Near and far of the scene's frame next in time, or of the training frame, as the configuration says."""
        if self.config.bounds == "training":
            return super()._frame_bounds(times)
        nearest = nearest_frame(self.all_times, times)
        return self.all_nears[nearest], self.all_fars[nearest]

    def composited_rays(self, rays: RayBundle, layers: tuple[Layer, ...]) -> Rendering:
        """Samples rays and composites layers.

        Args:
            rays: Rays with nears, fars and times, and "camera_directions" in their metadata.
            layers: The layers to render.
        """
        coarse = self._coarse(rays)
        drawn = self.drawn_depths(coarse)
        depths = torch.cat((coarse.depths, drawn), -1).sort(-1).values
        points = points_at(rays, depths)
        fields = self.field(points, layers)
        if self.training and self.config.end_density > 0:
            fields["static"] = self._ended(fields["static"])
        if (cut := rays.metadata.get(CUT)) is not None:
            fields = {layer: _closed(found, cut) for layer, found in fields.items()}
        composited = self.composited(depths, fields)
        return Rendering(coarse, drawn, depths, points, fields, composited, self.config.min_uncertainty)

    def coarse_depths(self, rays: RayBundle) -> Float[Tensor, "rays samples"]:
        """Distances of the coarse samples along unit rays, in scene units."""
        return even_depths(rays, self.config.coarse_samples, self.training and self.config.jitter)

    def drawn_depths(self, coarse: CoarsePass) -> Float[Tensor, "rays drawn"]:
        """Distances that are drawn from the coarse weights, in scene units."""
        midpoints, weights = between(coarse.depths), coarse.composited.joint[:, 1:-1].detach()
        return importance_depths(
            midpoints, weights, self.config.importance_samples, self.training and self.config.jitter
        )

    def composited(self, depths: Float[Tensor, "rays samples"], fields: dict[Layer, LayerSamples]) -> Composite:
        """Shares of layers whose samples lie at distances along unit rays."""
        densities: dict[Layer, Tensor] = {layer: found.density for layer, found in fields.items()}
        intervals = open_intervals(depths)
        return composite(densities, intervals, open_end=True, share_epsilon=self.config.share_epsilon)

    def _coarse(self, rays: RayBundle) -> CoarsePass:
        depths = self.coarse_depths(rays)
        density, colours = self.field.coarse(points_at(rays, depths), colours=self.training)
        noisy = density
        if self.training and self.config.density_noise > 0:
            noisy = torch.relu(density + self.config.density_noise * torch.randn_like(density))
        composited = composite({"static": noisy}, open_intervals(depths), open_end=True)
        return CoarsePass(depths, density, composited, colours)

    def _ended(self, static: LayerSamples) -> LayerSamples:
        """The static layer, opaque and of a random colour at the last sample, through which nothing is learnt."""
        density = torch.cat(
            (static.density[:, :-1], torch.full_like(static.density[:, :1], self.config.end_density)), -1
        )
        rgb = torch.cat((static.rgb[:, :-1], self.end_colours(len(density))[:, None]), 1)
        return LayerSamples(density, rgb, static.encoding)

    def end_colours(self, rays: int) -> Float[Tensor, "rays 3"]:
        """Colours of the last samples in training."""
        return torch.rand(rays, 3, device=self.device)

    def _render(self, rays: RayBundle, layers: tuple[Layer, ...], wanted: Collection[str]) -> dict[str, Any]:
        found = self.composited_rays(rays, layers)
        state = (found.points, found.fields, found.composited.weights)
        if self.training:
            uncertainty = found.uncertainty  # first, which the gradients' last bits depend on
            return {
                "rgb": found.rgb,
                "rgb_coarse": found.coarse.rgb,
                "uncertainty": uncertainty,
                "masks": {layer: found.composited.mask(layer) for layer in LAYERS if layer != "static"},
                "densities": {layer: samples.density for layer, samples in found.fields.items()},
                "state": state,
            }
        made: dict[str, Callable[[], Tensor]] = {
            "rgb": lambda: found.rgb,
            "depth": lambda: found.depth,
            "accumulation": lambda: found.composited.joint.sum(-1),
            **{f"rgb_{layer}": partial(found.rgb_alone, layer) for layer in layers},
            "uncertainty": lambda: found.uncertainty,
        }
        return {**pictures_of(wanted, found.composited, made), "state": state}

    def _features(self, code: Float[Tensor, "*bs code"], kind: str) -> Float[Tensor, "*bs dim"]:
        """Features of one kind that can be asked: image features are decoded by the autoencoder."""
        features = super()._features(code, kind)
        return self.autoencoder.decode(features) if kind == "image" and self.autoencoder is not None else features

    # Losses.

    def training_step(
        self, rays: RayBundle, batch: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        """One step on a batch of rays, of which as many at a time are followed back as fit into memory.

        All losses are means over rays, so that those of parts add up, and so do their gradients.
        """
        step, size = super().training_step, self.rays_at_once
        if size >= len(rays) or not self.config.mean_over_all_rays:
            return step(rays, batch)
        return {}, *step_in_parts(step, [each for each in self.parameters() if each.requires_grad], rays, batch, size)

    def _geometry_losses(self, outputs: dict[str, Any], target: Tensor) -> dict[str, Tensor]:
        densities, uncertainty = outputs["densities"], outputs["uncertainty"]
        return {
            "coarse": 0.5 * (outputs["rgb_coarse"] - target).square().mean(),
            "photometric": weighted_error(outputs["rgb"], target, uncertainty),
            "uncertainty": uncertainty.log().mean(),
            "density": self.config.density_weight * (densities["dynamic"].mean() + densities["actor"].mean()),
        }

    def _feature_losses(self, code: Tensor, features: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Losses of features, of the image features' codes where there is an autoencoder."""
        encoder = self.autoencoder
        if encoder is not None and "image" in features and features["image"][0].shape[-1] == encoder.feature_dim:
            target, valid = features["image"]
            features = {**features, "image": (encoder.encode(target), valid)}
        return super()._feature_losses(code, features)


def _closed(samples: LayerSamples, cut: Bool[Tensor, "rays 1"]) -> LayerSamples:
    """Samples of which the last one, behind which the ray is open, shows nothing where a crop cuts the ray."""
    last = samples.density[:, -1:].masked_fill(cut, 0.0)
    return replace(samples, density=torch.cat((samples.density[:, :-1], last), -1))
