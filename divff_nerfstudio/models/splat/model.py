"""The model of divff-splat: three sets of Gaussians, rasterised together, with features as compact codes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Optional

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from torch import Tensor, nn

from divff_nerfstudio.card import OnHost, is_card
from divff_nerfstudio.data.scene import Scene
from divff_nerfstudio.datamanager import DivFFDataManagerConfig
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.fields.actor import ActorShadow
from divff_nerfstudio.fields.layers import LAYERS, Layer
from divff_nerfstudio.fields.space import SceneSpace
from divff_nerfstudio.models.base import CODE, LayeredModel, LayeredModelConfig, nearest_frame
from divff_nerfstudio.models.schedule import PhasesConfig
from divff_nerfstudio.models.separation import (
    SeparationConfig,
    layer_losses,
    room_loss,
    structural_loss,
    uncertain_photometric,
)
from divff_nerfstudio.models.splat.density import DensityConfig, Observation, append, discard, refine, row_optimizers
from divff_nerfstudio.models.splat.gaussians import (
    ActorGaussians,
    DynamicGaussians,
    GaussianLayer,
    Splats,
    StaticGaussians,
    mean_opacity,
)
from divff_nerfstudio.models.splat.heads import SplatHeads, SplatHeadsConfig
from divff_nerfstudio.models.splat.permanence import Sightings
from divff_nerfstudio.models.splat.points import find_points, random_points, read_points, spacing
from divff_nerfstudio.models.splat.rasterise import rasterization, require_kernels
from divff_nerfstudio.models.splat.seeds import Residuals, actor_seeds, dynamic_seeds
from divff_nerfstudio.models.splat.views import View
from divff_nerfstudio.models.view import PICTURES, RenderError
from divff_nerfstudio.schema import Amount, Count, Octaves, Positive, Size, Weight
from divff_nerfstudio.training_folder import TrainingError

ROW_GROUPS = {
    "middles": "lives",
    "extents": "lives",
    "edges": "lives",
    "turns": "motions",
}
"""Groups of optimizers of rows that do not have one of their own name."""


class DivergenceError(DivffError):
    """Training has left what can be computed."""


@dataclass
class SplatModelConfig(SeparationConfig, PhasesConfig, LayeredModelConfig):
    """Options of the model of Gaussians."""

    steps_by_device: ClassVar[Mapping[str, int]] = {"cuda": 15000, "cpu": 3000}
    """Training steps, a frame each, unless said otherwise."""
    gaussians_by_device: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "cuda": {"static_start": 50000, "static_most": 300000, "dynamic_most": 60000, "actor_most": 40000},
        "cpu": {"static_start": 5000, "static_most": 8000, "dynamic_most": 3000, "actor_most": 2000},
    }
    """Numbers of Gaussians, unless said otherwise."""
    static_share: ClassVar[float] = 0.2
    """Part of the training at which the room of Gaussians is joined, which begins at random places."""

    _target: type = field(default_factory=lambda: SplatModel)
    """target class to instantiate"""
    nearest: Positive = 0.1
    """Depth under which nothing is rendered, in units of the frame's near."""
    room_from: Weight = 0.7
    """Depth, in units of the frame's near, under which training frames show nothing of the static layer: where a room
    begins is known, and what is nearer is somebody."""
    points: Optional[Path] = None  # noqa: UP045
    """Points that the static layer starts from: a PLY file (such as one exported from a run of divff), or points3D.bin
    or .txt of COLMAP, in the poses' coordinates. None: those in the scene's folder, else random ones."""
    static_start: Optional[Count] = None  # noqa: UP045
    """Random points that the static layer starts from where there are no others; of others, at most `static_most` are
    taken. None: by device."""
    static_most: Optional[Count] = None  # noqa: UP045
    """Gaussians that the static layer may have. None: by device, settled when training starts."""
    dynamic_most: Optional[Count] = None  # noqa: UP045
    """Gaussians that the dynamic layer may have. None: by device."""
    actor_most: Optional[Count] = None  # noqa: UP045
    """Gaussians that the actor may have. None: by device."""
    density: DensityConfig = field(default_factory=DensityConfig)
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
    largest_uncertainty: Positive = 0.3
    """Bound of a Gaussian's uncertainty."""
    heads: SplatHeadsConfig = field(default_factory=SplatHeadsConfig)
    """Sizes of the feature codes and their decoders."""
    structural_weight: Weight = 1.0
    """Weight of `structural_loss` once all layers are trained."""
    opacity_weight: Weight = 0.01
    """Weight of the moving layers' mean opacity."""
    persistence_weight: Weight = 0.3
    """Cost of a pixel explained by a dynamic Gaussian that lives at all moments: such things are static."""
    persistence_moments: Size = 8
    """Moments at which lives are looked at."""
    motion_weight: Weight = 0.01
    """Weight of the dynamic Gaussians' mean motion within their lives: what can rest, rests."""
    regulariser_weight: Weight = 0.3
    """Weight of the regulariser's loss."""

    def settle(self, device: Literal["cuda", "cpu"], steps: int | None, data: DivFFDataManagerConfig) -> int:
        """Settles steps and numbers of Gaussians by device; see `LayeredModelConfig`.

        Raises:
            TrainingError: If the file of points is missing.
            KernelsError: If gsplat cannot run on this machine's GPU.
        """
        self.settle_evidence(data)
        if self.points is not None and not self.points.is_file():
            raise TrainingError(f"{self.points} does not exist: give a PLY file or COLMAP's points3D as points.")
        if device == "cuda":
            require_kernels()
        for name, count in self.gaussians_by_device[device].items():
            setattr(self, name, getattr(self, name) or count)
        steps = steps or self.steps_by_device[device]
        self.settle_phases(steps)
        return steps

    def most(self, layer: Layer) -> int:
        """Gaussians that a layer may have; none before that is settled."""
        return {"static": self.static_most, "dynamic": self.dynamic_most, "actor": self.actor_most}[layer] or 0


class SplatModel(LayeredModel):
    """Renders a scene's three sets of Gaussians at any time, and the features that were distilled into them.

    Rays are the pixels of whole frames, row by row; everything else is as in other methods.
    """

    config: SplatModelConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    camera_types = (CameraType.PERSPECTIVE,)
    eye: Tensor

    def populate_modules(self) -> None:
        """Puts the static layer's first Gaussians where the scene has points; the moving layers begin empty."""
        super().populate_modules()
        config, metadata = self.config, self.kwargs["metadata"]
        self.space = SceneSpace(self.scene_box.aabb, float(self.train_fars.median()))
        frames, code, bound = self.num_train_data, config.heads.code_dim, config.largest_uncertainty
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
        scene: Scene = metadata["scene"]
        self._place(scene)
        centres = scene.camera_to_worlds[scene.splits["train"], :, 3]
        self.register_buffer("eye", torch.from_numpy(centres.mean(0)).float(), persistent=False)
        self._seen: dict[Layer, Observation] = {}
        self._on_host = OnHost()

    def gaussian_layer(self, layer: Layer) -> GaussianLayer:
        """One layer's Gaussians."""
        return self.layers[layer]  # pyright: ignore[reportReturnType]

    def gaussians_at(self, camera: Cameras) -> dict[Layer, Splats]:
        """The Gaussians of each layer that live at a camera's time, in the world, in lengths of the scene."""
        view = self._seen_by(camera)
        return {layer: splats for layer, splats in self._splats(view, LAYERS).items() if len(splats)}

    def _place(self, scene: Scene) -> None:
        """Puts the static layer's first Gaussians."""
        config, layer = self.config, self.gaussian_layer("static")
        path = config.points or find_points(scene)
        # Training checks that there are points; whoever opens a checkpoint needs none.
        if path is None or not path.is_file():
            positions, colours = random_points(scene, config.static_start or 0)
        else:
            positions, colours = read_points(path)
            chosen = torch.randperm(len(positions))[: config.most("static")]
            positions, colours = positions[chosen], colours[chosen]
        positions = positions / self.space.length
        layer.make_room(len(positions))
        for name, row in layer.new_rows(positions, spacing(positions), colours, opacity=0.1).items():
            layer.rows[name].data = row

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """Takes on the number of Gaussians that a state of the model has."""
        for name in LAYERS:
            if (means := state.get(f"layers.{name}.rows.means")) is not None:
                self.gaussian_layer(name).make_room(len(means))

    # The schedule.

    @property
    def _actor_alone(self) -> int:
        """Rounds of seeds in which the actor has its first try at what is wrong: arms that rest could be objects."""
        return self.config.seed_rounds // 3

    def get_param_groups(self) -> dict[str, list[Any]]:
        """Parameters by what they are; each row of each layer is a group of its own for gsplat's strategies."""
        groups: dict[str, list[Any]] = {}
        for layer in LAYERS:
            for name, row in self.gaussian_layer(layer).rows.items():
                groups.setdefault(ROW_GROUPS.get(name, name), []).append({"params": [row]})
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
        return [
            TrainingCallback(
                [TrainingCallbackLocation.AFTER_TRAIN_ITERATION],
                self._adapt,
                update_every_num_iters=1,
                args=[training_callback_attributes],
            )
        ]

    def _adapt(self, attributes: TrainingCallbackAttributes, step: int) -> None:
        """Refines the layers, and puts moving Gaussians where the picture is wrong."""
        config, seen = self.config, self._seen
        self._seen = {}
        if step >= self.schedule.heads_from:
            return
        assert attributes.optimizers is not None and attributes.pipeline is not None
        optimizers = attributes.optimizers.optimizers.values()
        if step % config.density.every == 0:
            self._diverged(
                {f"{layer} {name}": row for layer in seen for name, row in self.gaussian_layer(layer).rows.items()}
            )
        if step < 0.85 * self.schedule.heads_from:
            for name, observation in seen.items():
                layer = self.gaussian_layer(name)
                since = step if name == "static" else step - self.schedule.static_until
                refine(layer, row_optimizers(layer, optimizers), observation, since, config.most(name), config.density)
        pause = max(1, (self.schedule.heads_from - self.schedule.static_until) // (2 * max(1, config.seed_rounds)))
        done, late = divmod(step + 1 - max(1, self.schedule.static_until), pause)
        if late == 0 and 0 <= done < config.seed_rounds:
            data: Any = attributes.pipeline.datamanager
            self._seed(data.train_dataset, list(optimizers), done)

    @torch.no_grad()
    def _seed(self, dataset: Any, optimizers: list[torch.optim.Optimizer], done: int) -> None:
        """Adds moving Gaussians where training frames differ from what is rendered."""
        config = self.config
        self.eval()
        residuals, sightings = Residuals(), Sightings()
        for index in torch.randperm(len(dataset))[: config.seed_frames].tolist():
            view = self._seen_by(dataset.cameras[index : index + 1])
            target = torch.from_numpy(dataset.get_numpy_image(index)).to(self.device).reshape(-1, 3) / 255.0
            splats = self._splats(view, LAYERS)
            parts, _, shadow = self._joint(view, splats, codes=False)
            depth = self._look_at_room(view, splats["static"], shadow, target, parts["masks"][:, 1], sightings)
            residuals.add(view, target, (parts["rgb"] - target).abs().mean(-1), depth)
        self.train()
        moving: tuple[tuple[Layer, Any], ...] = (("dynamic", dynamic_seeds), ("actor", actor_seeds))
        for name, seeds in moving:
            layer, most = self.gaussian_layer(name), config.most(name)
            # Half of what may be, spread over the rounds; the other half is for refinement.
            count = min(most - len(layer), most // (2 * config.seed_rounds) * (2 if done == 0 else 1))
            if count > 0 and (name == "actor" or done >= self._actor_alone):
                append(layer, row_optimizers(layer, optimizers), seeds(layer, residuals, count))
        if done > 0:
            self._give_lives(sightings, optimizers)

    def _look_at_room(
        self,
        view: View,
        static: Splats,
        shadow: Tensor | None,
        target: Float[Tensor, "rays 3"],
        actor: Float[Tensor, "rays"],
        sightings: Sightings,
    ) -> Float[Tensor, "rays"]:
        """Notes what a training frame shows where static Gaussians are, beside the actor.

        Returns:
            Depth of the static layer, in lengths of the scene.
        """
        colours = static.colours if shadow is None else static.colours * (1 - shadow)[:, None]
        with torch.enable_grad():
            probes = colours.new_zeros(len(static), 5, requires_grad=True)
            values = [colours, view.depths(static.means)[:, None], probes]
            image, alpha, _ = self._rasterise(view, {"static": static}, values)
            room, weighed = image.split((4, 5), -1)
        room = room.detach() / alpha[:, None].clamp_min(1e-2)
        error = (room[:, :3] - target).abs().mean(-1, keepdim=True)
        looked_at = torch.cat((torch.ones_like(error), error, target), -1) * (1 - actor).clamp_min(0)[:, None]
        # The derivative by a Gaussian's value is its weight in each pixel.
        (sums,) = torch.autograd.grad(weighed, probes, looked_at)
        sightings.add(view.moment.time, static.ids, len(self.gaussian_layer("static")), sums)
        return room[:, 3]

    def _give_lives(self, sightings: Sightings, optimizers: list[torch.optim.Optimizer]) -> None:
        """Moves Gaussians that are not always there from the static to the dynamic layer, and fills their places."""
        static, dynamic = self.gaussian_layer("static"), self.gaussian_layer("dynamic")
        assert isinstance(dynamic, DynamicGaussians)
        stays = sightings.stays(self.config.most("dynamic") - len(dynamic))
        if not len(stays.ids):
            return
        kept = {name: row.detach()[stays.ids] for name, row in static.rows.items()}
        lives = dynamic.rows_of_lives(stays.starts, stays.ends)
        append(dynamic, row_optimizers(dynamic, optimizers), dynamic.filled({**kept, **lives}))
        gone = torch.zeros(len(static), dtype=torch.bool, device=self.device)
        gone[stays.ids] = True
        away = F.normalize(kept["means"] - self.eye / self.space.length, dim=-1)
        sizes = kept["scales"].exp().amax(-1)
        # One that leaves and comes back has two stays, and one place.
        once = torch.from_numpy(np.sort(np.unique(stays.ids.cpu().numpy(), return_index=True)[1])).to(self.device)
        means, sizes = (kept["means"] + 2 * sizes[:, None] * away)[once], sizes[once]
        behind = static.new_rows(means, sizes, stays.behind[once], opacity=0.5)
        discard(static, row_optimizers(static, optimizers), gone)
        append(static, row_optimizers(static, optimizers), behind)

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
            views = map(self._seen_by, _pixels(ray_bundle))
            pixels = [self._pictures(view, ("static", "dynamic"), None, wanted) for view in views]
            return {name: torch.cat([each[name] for each in pixels]) for name in pixels[0]}
        view = self._seen_by(ray_bundle)
        return self._training_outputs(view) if self.training else self._pictures(view, LAYERS, None, wanted)

    def _seen_by(self, camera: Cameras) -> View:
        return View.of(camera, self.space.known_length(), self.config.default_time, self.device)

    def _checked(self, camera: Cameras) -> Cameras:
        camera = super()._checked(camera)
        if camera.distortion_params is not None and bool(camera.distortion_params.any()):
            raise RenderError("Gaussians are drawn without distortion: leave the camera's distortion out.")
        return camera

    def _view_of(
        self, camera: Cameras, layers: tuple[Layer, ...], box: OrientedBox | None, wanted: Collection[str]
    ) -> dict[str, Float[Tensor, "height width channels"]]:
        """Pictures of a view."""
        view = self._seen_by(camera)
        outputs = self._pictures(view, layers, box, wanted)
        return {name: output.view(view.height, view.width, -1) for name, output in outputs.items()}

    def _splats(self, view: View, layers: tuple[Layer, ...]) -> dict[Layer, Splats]:
        """The Gaussians of layers in a view; a layer may have none."""
        return {layer: self.gaussian_layer(layer).at(view.moment) for layer in layers}

    def _shaded(self, view: View, splats: Mapping[Layer, Splats]) -> tuple[Tensor, Tensor | None]:
        """Colours of Gaussians with the actor's shadow on the static ones, and that shadow."""
        colours = {layer: each.colours for layer, each in splats.items()}
        shadow = None
        if self.actor_shadow is not None and len(splats.get("actor", ())) and len(splats["static"]):
            places = view.in_camera(splats["static"].means.detach())
            times = view.moment.time.view(1, 1).expand(len(places), 1)
            shadow = self.actor_shadow(self.gaussian_layer("actor"), places, times)
            colours["static"] = colours["static"] * (1 - shadow)[:, None]
        return torch.cat(list(colours.values())), shadow

    def _rasterise(
        self, view: View, splats: Mapping[Layer, Splats], values: list[Float[Tensor, "gaussians channels"]]
    ) -> tuple[Float[Tensor, "rays channels"], Float[Tensor, "rays"], dict[str, Any]]:
        """Composites values of Gaussians, in one pass.

        Returns:
            The sums, the sums of the weights, and the rasteriser's facts.
        """
        image, alpha, facts = rasterization(
            *(torch.cat([getattr(each, name) for each in splats.values()]) for name in _GEOMETRY),
            colors=torch.cat(values, -1),
            viewmats=view.world_to_camera[None],
            Ks=view.camera_matrix[None],
            width=view.width,
            height=view.height,
            near_plane=self.config.nearest * self._near(view),
        )
        return image[0].flatten(0, 1), alpha.flatten(), facts

    def _near(self, view: View) -> float:
        """Where the room begins at a time, in lengths of the scene."""
        times, nears = (self._on_host(name, getattr(self, name)) for name in ("train_times", "train_nears"))
        return float(nears[nearest_frame(times, torch.tensor([view.moment.known_time]))] / self.space.known_length())

    def _joint(
        self, view: View, splats: Mapping[Layer, Splats], codes: bool
    ) -> tuple[dict[str, Tensor], dict[str, Any], Tensor | None]:
        """Renders layers together: what every picture is made of, the rasteriser's facts, and the shadow."""
        colours, shadow = self._shaded(view, splats)
        marks = [
            torch.cat([each.opacities.new_full((len(each),), float(name == layer)) for name, each in splats.items()])
            for layer in _MOVING
        ]
        uncertainties = torch.cat([each.uncertainties for each in splats.values()])
        depths = view.depths(torch.cat([each.means for each in splats.values()]))
        values = [colours, torch.stack((*marks, uncertainties, depths), -1)]
        if codes:
            values.append(torch.cat([each.codes for each in splats.values()]))
        elif self.training and "dynamic" in splats:
            lasting = torch.zeros_like(uncertainties)
            start = len(splats["static"])
            lasting[start : start + len(splats["dynamic"])] = self._lasting(splats["dynamic"])
            values.append(lasting[:, None])
        image, alpha, facts = self._rasterise(view, splats, values)
        parts = {
            "rgb": image[:, :3],
            "masks": image[:, 3:5],
            "uncertainty": self.config.least_uncertainty + image[:, 5],
            "depth": image[:, 6] / alpha.clamp_min(1e-6),
            "accumulation": alpha,
            "rest": image[:, 7:],
        }
        return parts, facts, shadow

    def _lasting(self, splats: Splats) -> Float[Tensor, "gaussians"]:
        """How much of each dynamic Gaussian there is at the one of some moments at which there is least."""
        layer = self.gaussian_layer("dynamic")
        assert isinstance(layer, DynamicGaussians)
        moments = self.config.persistence_moments
        times = (torch.rand(moments, device=self.device) + torch.arange(moments, device=self.device)) / moments
        return layer.lives(times).amin(0)[splats.ids]

    def _training_outputs(self, view: View) -> dict[str, Any]:
        codes = self.semantic is not None and self.features_trained
        layers: tuple[Layer, ...] = ("static",) if self.static_only else LAYERS
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.geometry_frozen):
            splats = self._splats(view, layers)
        static = splats["static"]
        splats["static"] = static.select(
            view.depths(static.means) > self.config.room_from * self._near(view), view.moment
        )
        if self.geometry_frozen:
            for name, each in splats.items():
                splats[name] = replace(each, codes=self.gaussian_layer(name).rows["codes"][each.ids])
        parts, facts, shadow = self._joint(view, splats, codes)
        rgb, alpha, masks = parts["rgb"], parts["accumulation"], parts["masks"]
        outputs: dict[str, Any] = {
            # A random background: nothing may hide in black behind the room.
            "rgb": rgb + (1 - alpha)[:, None] * torch.rand_like(rgb),
            "uncertainty": parts["uncertainty"],
            "masks": dict(zip(_MOVING, masks.unbind(-1), strict=True)) if len(layers) > 1 else {},
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
            self._observe(splats, facts)
            if len(layers) > 1:
                outputs |= self._static_alone(view, splats, shadow)
        return outputs

    def _static_alone(self, view: View, splats: Mapping[Layer, Splats], shadow: Tensor | None) -> dict[str, Tensor]:
        """The static layer without its shadow, where it is closed, and the shadow as it would be seen on it."""
        static = splats["static"]
        taken = torch.zeros_like(static.opacities) if shadow is None else shadow
        image, alpha, _ = self._rasterise(view, {"static": static}, [static.colours, taken[:, None]])
        full = image / alpha.clamp_min(1e-2)[:, None]
        return {"rgb_static": full[:, :3], "shadow": full[:, 3], "enclosed": alpha}

    def _observe(self, splats: Mapping[Layer, Splats], facts: dict[str, Any]) -> None:
        """Keeps what refinement reads after the step."""
        if not facts["means2d"].requires_grad:
            return
        facts["means2d"].retain_grad()
        start = 0
        for name, each in splats.items():
            self._seen[name] = Observation(facts, start, each.ids)
            start += len(each)

    def _pictures(
        self, view: View, layers: tuple[Layer, ...], box: OrientedBox | None, wanted: Collection[str]
    ) -> dict[str, Tensor]:
        """Pictures of a view, and its code, if they are wanted; (rays, channels) each."""
        splats = self._splats(view, layers)
        if box is not None:
            for name, each in splats.items():
                splats[name] = each.select(box.within(each.means * self.space.length), view.moment)
        moving: list[Layer] = [layer for layer in _MOVING if f"rgb_{layer}" in wanted]
        pictures: dict[str, Tensor] = {f"rgb_{layer}": self._in_room(view, splats, layer) for layer in moving}
        if "rgb_static" in wanted:
            pictures["rgb_static"] = self._static_alone(view, splats, None)["rgb_static"]
        outputs: dict[str, Tensor] = {}
        if set(wanted) - {f"rgb_{layer}" for layer in LAYERS}:
            parts, _, _ = self._joint(view, splats, CODE in wanted)
            pictures |= {
                "rgb": parts["rgb"],
                "accumulation": parts["accumulation"][:, None],
                **{f"mask_{layer}": mask for layer, mask in zip(_MOVING, parts["masks"].split(1, -1), strict=True)},
                "mask_moving": parts["masks"].sum(-1, keepdim=True),
                "uncertainty": parts["uncertainty"][:, None],
            }
            outputs["depth"] = parts["depth"][:, None] * view.directions()[1] * self.space.length
            if CODE in wanted:
                assert self.semantic is not None
                outputs[CODE] = self.semantic.code(parts["rest"], parts["masks"], view.moment.time)
        outputs |= {name: picture.clamp(0, 1) for name, picture in pictures.items()}
        return {name: output for name, output in outputs.items() if name in wanted}

    def _in_room(self, view: View, splats: Mapping[Layer, Splats], layer: Layer) -> Float[Tensor, "rays 3"]:
        """A moving layer alone, where the static layer does not hide it."""
        if layer not in splats or not len(splats[layer]):
            return view.intrinsics.new_zeros(view.height * view.width, 3)
        both: dict[Layer, Splats] = {"static": splats["static"], layer: splats[layer]}
        colours = [torch.zeros_like(splats["static"].colours), splats[layer].colours]
        return self._rasterise(view, both, [torch.cat(colours)])[0]

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
            self._diverged(losses)
        return losses

    def _diverged(self, values: Mapping[str, Tensor]) -> None:
        """Stops if any of these values is not finite.

        Raises:
            DivergenceError: With their names.
        """
        if wrong := [name for name, value in values.items() if not value.isfinite().all()]:
            raise DivergenceError(
                f"Step {self.step}: {', '.join(wrong)} not finite: training has diverged. Resume from an earlier "
                "checkpoint with --load-dir and --load-step, and lower learning rates, for example "
                "--optimizers.means.optimizer.lr."
            )

    def _geometry_losses(self, outputs: dict[str, Any], target: Tensor) -> dict[str, Tensor]:
        config = self.config
        losses = {"enclosure": config.enclosure_weight * (1 - outputs["enclosed"]).mean()}
        evidence = outputs.get("evidence")
        if self.static_only:
            losses["photometric"] = room_loss(config, outputs["rgb"], target, evidence)
            return losses
        losses["photometric"] = uncertain_photometric(outputs["rgb"], target, outputs["uncertainty"])
        losses["structure"] = config.structural_weight * structural_loss(outputs["rgb"], target, *outputs["size"])
        losses |= layer_losses(
            config,
            self.schedule.ramp(self.step),
            outputs["masks"],
            outputs["rgb_static"],
            None if self.actor_shadow is None else outputs["shadow"],
            target,
            evidence,
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


def _pixels(rays: RayBundle) -> Iterator[Cameras]:
    """Cameras of one pixel, each of which looks along a ray."""
    origins, directions = rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3)
    times = None if rays.times is None else rays.times.reshape(-1, 1)
    for i, (origin, direction) in enumerate(zip(origins, directions, strict=True)):
        ahead = direction if bool(direction.isfinite().all()) else origin.new_tensor((0.0, 0.0, -1.0))
        back = -F.normalize(ahead, dim=0)
        least = F.one_hot(back.abs().argmin(), 3).to(back)
        right = F.normalize(torch.linalg.cross(least, back), dim=0)
        pose = torch.stack((right, torch.linalg.cross(back, right), back, origin), -1)
        yield Cameras(
            camera_to_worlds=pose[None],
            fx=_FAR_SIGHT,
            fy=_FAR_SIGHT,
            cx=0.5,
            cy=0.5,
            width=1,
            height=1,
            times=None if times is None else times[i : i + 1],
        )


_FAR_SIGHT = 500.0
"""Focal length, in pixels, of a camera whose one pixel is a ray."""
_MOVING: tuple[Layer, Layer] = ("dynamic", "actor")
_GEOMETRY = ("means", "quats", "scales", "opacities")
