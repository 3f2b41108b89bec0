"""The method divff-paper on the inputs of a file of numbers of the published code, stage by stage.

Every stage is given what the file says that went into it: the samples lie at the file's depths, are composited with the
file's densities, and features are taken where the file's weights are largest. What one stage rounds otherwise than the
published code did on its machine is so neither magnified by the next one nor turned into another choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from torch import Tensor

from divff_nerfstudio.data.epic_diff import pinhole_cameras
from divff_nerfstudio.data.rays import at_origin
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.autoencoder import Autoencoder, load_autoencoder
from divff_nerfstudio.fields.layers import LAYERS, Layer, LayerSamples
from divff_nerfstudio.fields.published import PUBLISHED_LAYERS, octave_encoding, octave_scales
from divff_nerfstudio.fields.published_checkpoint import read_published
from divff_nerfstudio.models.paper import PublishedModel, PublishedModelConfig
from divff_nerfstudio.models.published_rays import CoarsePass, Rendering
from divff_nerfstudio.models.schedule import PublishedScheduleConfig
from divff_nerfstudio.relevancy import relevancy
from divff_nerfstudio.rendering import (
    Composite,
    accumulate,
    between,
    composite,
    importance_depths,
    open_intervals,
)

Arrays = dict[str, Tensor]
LOSSES = {
    "c_l": "coarse",
    "f_l": "photometric",
    "b_l": "uncertainty",
    "s_l": "density",
    "clip_l": "features_image",
    "dino_l": "features_regulariser",
    "video": "features_video",
}
KINDS = {"clip": "image", "video": "video", "dino": "regulariser"}
SAME_SAMPLES = {"train_bgcolour": "train", "test_half": "test_f32"}
"""Groups that do not hold their depths, and those that have the same."""
KINK = 5e-6
"""Inputs of hidden units this near to 0 are positive on one machine and negative on another."""


@dataclass
class Parity:
    """The package's side of a file of numbers."""

    data: dict[str, np.ndarray]
    """The file."""
    checkpoint: Path
    """Published weights."""
    autoencoder: Path
    """The scene's autoencoder."""
    real_autoencoder: Path | None
    """Of the arrays ae_real."""
    samples: tuple[int, int]
    """Coarse samples of a ray, and samples drawn from their weights."""

    def compute(self) -> Arrays:
        """Everything that the groups of the file ask for, under its names."""
        groups: dict[str, Callable[[], Arrays]] = {
            "in": self._rays_table,
            "train": lambda: self._stages("train"),
            "train_bgcolour": lambda: self._stages("train_bgcolour"),
            "test_f32": lambda: self._stages("test_f32"),
            "test_half": lambda: self._stages("test_half"),
            "loss": lambda: self.losses(True)[0],
            "loss_geometry_only": lambda: self.losses(False)[0],
            "grad": lambda: self.losses(True)[1],
            "pe": self._positional,
            "lre": self._time_codes,
            "sample_pdf": self._drawn,
            "nerf_fine": self._fine,
            "nerf_coarse": self._coarse,
            "heads": self._heads,
            "ae": lambda: self._autoencoded(load_autoencoder(self.autoencoder)),
            "ae_real": self._really_autoencoded,
            "relevancy": self._relevancies,
        }
        present = {name.split("/")[0] for name in self.data}
        return {
            f"{group}/{name}": value
            for group, run in groups.items()
            if group in present
            for name, value in run().items()
        }

    def distributions(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Edges and weights that positions of the file are drawn from, by the positions' names."""
        drawn = {}
        for group in ("train", "test_f32"):
            if f"{group}/z_coarse" in self.data and f"{group}/weights_coarse" in self.data:
                weights = self.input(f"{group}/weights_coarse")[:, 1:-1]
                drawn[f"{group}/z_importance"] = between(self.input(f"{group}/z_coarse")), weights
        rows = [name for name in self.data if name.startswith("sample_pdf/det_")]
        return drawn | {name: (self.input("sample_pdf/bins"), self.input("sample_pdf/weights")) for name in rows}

    def input(self, name: str) -> Tensor:
        """One array of the file."""
        return torch.from_numpy(self.data[name])

    def given(self, name: str, own: Tensor) -> Tensor:
        """What goes into a stage: an array of the file, or the package's own where the file has none."""
        return self.input(name).to(own.dtype) if name in self.data else own

    @cached_property
    def model(self) -> PublishedModel:
        """The model of the method divff-paper with the published weights, without chance."""
        weights = read_published(self.checkpoint)
        config = PublishedModelConfig(
            fields=weights.field_config,
            heads=replace(weights.heads_config, dimensions=weights.dimensions),
            autoencoder=self.autoencoder,
            schedule=PublishedScheduleConfig(stages="joint"),
            coarse_samples=self.samples[0],
            importance_samples=self.samples[1],
            jitter=False,
            density_noise=0.0,
        )
        frames = torch.arange(weights.rows) / (weights.rows - 1)
        bounds = {"nears": torch.full_like(frames, 0.1), "fars": torch.full_like(frames, 10.0)}
        metadata = {"times": frames, **bounds, "time_rows": weights.rows, "all_times": frames}
        metadata |= {f"all_{name}": values for name, values in bounds.items()}
        model = config.setup(scene_box=SceneBox(torch.zeros(2, 3)), num_train_data=weights.rows, metadata=metadata)
        model.field.load_state_dict(weights.field)
        model.semantic.load_state_dict(weights.heads)
        return model

    @cached_property
    def cast(self) -> RayBundle:
        """The rays of the file's cameras and pixels, as nerfstudio makes them of the dataparser's cameras."""
        cameras, pixels = self.input("in/cam"), (self.input("in/pix_y"), self.input("in/pix_x"))
        poses, K = self.input("in/c2w"), self.data["in/K"]
        width, height = (int(size) for size in self.data["in/image_wh"])
        made = pinhole_cameras(poses, K, (width, height), torch.zeros(len(poses), 1), pixel_centres=False)
        coords = torch.stack(pixels, -1) + 0.5
        rays = made.generate_rays(cameras[:, None], coords=coords)
        local = at_origin(made).generate_rays(cameras[:, None], coords=coords)
        rays.metadata = {"camera_directions": local.directions}
        rays.nears, rays.fars = self.input("in/near"), self.input("in/far")
        rays.times = (self.input("in/ts") / (self.model.field.rows - 1))[:, None]
        return rays

    @cached_property
    def rays(self) -> RayBundle:
        """Those rays with the file's own numbers."""
        rays = self.cast
        table = self.given("in/rays", self._rays_table()["rays"])
        local = {"camera_directions": table[:, 11:14]}
        return replace(rays, origins=table[:, :3], directions=table[:, 3:6], metadata=local)

    def _rays_table(self) -> Arrays:
        rays = self.cast
        assert rays.nears is not None and rays.fars is not None
        parts = (rays.origins, rays.directions, rays.nears, rays.fars, torch.zeros_like(rays.origins))
        return {"rays": torch.cat((*parts, rays.metadata["camera_directions"]), -1)}

    # Rays, stage by stage.

    def _stages(self, group: str) -> Arrays:
        """Arrays of one way through the network: sampling, network, compositing, pictures, features."""
        training = group.startswith("train")
        self.model.train(training)
        with torch.no_grad():
            found = self._network(group)
            given = self._recomposited(group, found)
            return {
                **self._sampled(group, found.coarse, given.coarse),
                **self._layers(found, given.composited, channels=3 if training else 6),
                **self._pictures(given, channels=3 if training else 6),
                **self._features(group, given),
            }

    def _network(self, group: str) -> Rendering:
        """The rays through coarse and fine network at the file's depths.

        For `test_half` with the cast that the published code makes, which the method never does.
        """
        self._hold_depths(group)
        black = torch.zeros(len(self.data["in/cam"]), 3)
        colours = self.input("in/last_sample_colour") if group == "train_bgcolour" else black
        self.model.end_colours = lambda rays: colours  # pyright: ignore[reportAttributeAccessIssue]
        fine, halved = self.model.field.nerf_fine, group == "test_half"
        handle = fine.register_forward_hook(lambda module, inputs, found: _halved(found)) if halved else None
        try:
            return self.model.composited_rays(self.rays, LAYERS)
        finally:
            if handle is not None:
                handle.remove()

    def _hold_depths(self, group: str) -> None:
        """Lets the model sample rays where the file has samples."""
        model, source = self.model, SAME_SAMPLES.get(group, group)

        def coarse_depths(rays: RayBundle) -> Tensor:
            return self.given(f"{source}/z_coarse", PublishedModel.coarse_depths(model, rays))

        def drawn_depths(coarse: CoarsePass) -> Tensor:
            return self.given(f"{source}/z_importance", PublishedModel.drawn_depths(model, coarse))

        model.coarse_depths, model.drawn_depths = coarse_depths, drawn_depths  # pyright: ignore[reportAttributeAccessIssue]

    def _recomposited(self, group: str, found: Rendering) -> Rendering:
        """The rays once more, composited from the file's densities, colours and depths."""
        source = "train" if group == "train_bgcolour" else group
        coarse = found.coarse
        density = self.given(f"{source}/static_sigmas_coarse", coarse.density)
        colours = coarse.colours
        coarse = CoarsePass(
            depths=coarse.depths,
            density=density,
            composited=composite({"static": density}, open_intervals(coarse.depths), open_end=True),
            colours=None if colours is None else self.given(f"{source}/static_rgbs_coarse", colours),
        )
        fields: dict[Layer, LayerSamples] = {}
        for layer, name in PUBLISHED_LAYERS.items():
            samples = found.fields[layer]
            sigmas = "static_sigmas_fine" if layer == "static" else f"{name}_sigmas"
            rgb = samples.rgb
            if layer == "static" and group != "train_bgcolour" and f"{group}/static_rgbs_fine" in self.data:
                rgb = self.input(f"{group}/static_rgbs_fine")[..., :3].to(rgb.dtype)
            density = self.given(f"{source}/{sigmas}", samples.density)
            fields[layer] = LayerSamples(density, rgb, samples.encoding, samples.uncertainty)
        composited = self.model.composited(found.depths, fields)
        return replace(found, coarse=coarse, fields=fields, composited=composited)

    def _sampled(self, group: str, coarse: CoarsePass, given: CoarsePass) -> Arrays:
        """Depths, and what the coarse network says at them."""
        source = SAME_SAMPLES.get(group, group)
        weights = self.given(f"{source}/weights_coarse", given.composited.joint)
        shares = Composite({"static": weights}, {"static": weights}, weights, torch.ones_like(weights))
        drawn = PublishedModel.drawn_depths(self.model, replace(given, composited=shares))
        own = self.given(f"{source}/z_importance", drawn)
        arrays = {
            "z_coarse": PublishedModel.coarse_depths(self.model, self.rays),
            "z_importance": drawn,
            "z_fine": torch.cat((coarse.depths, own), -1).sort(-1).values,
            "static_sigmas_coarse": coarse.density,
            "alphas_coarse": given.composited.opacity,
            "weights_coarse": given.composited.joint,
            "static_weights_coarse": given.composited.joint,
            "static_weights_sum_coarse": given.composited.joint.sum(-1),
        }
        if coarse.colours is not None:
            arrays["static_rgbs_coarse"] = coarse.colours
            arrays |= {"rgb_coarse": given.rgb, "depth_coarse": (weights * given.depths).sum(-1)}
        return arrays

    def _layers(self, found: Rendering, composited: Composite, channels: int) -> Arrays:
        """What the fine network says of samples, and the layers' shares in rays."""
        arrays = {
            "static_sigmas_fine": found.fields["static"].density,
            "alphas_fine": composited.opacity,
            "static_alphas_fine": composited.alphas["static"],
            "weights_fine": composited.joint,
            "static_weights_fine": composited.joint,
            "static_weights_sum_fine": composited.joint.sum(-1),
        }
        for number, (layer, name) in enumerate(PUBLISHED_LAYERS.items()):
            samples = found.fields[layer]
            arrays |= {
                f"{name}_weights": composited.weights[layer],
                f"{name}_weights_sum": composited.mask(layer),
                f"{name}_sigmas": samples.density,
                f"{name}_rgbs_fine": _marked(samples.rgb, number) if channels == 6 else samples.rgb,
                f"{name}_encoding_first4": samples.encoding[:4],
            }
        return arrays

    def _pictures(self, given: Rendering, channels: int) -> Arrays:
        """What rays show; outside training each layer alone, too."""
        arrays = {"beta": given.uncertainty, "depth_fine": given.depth}
        shares = []
        for number, (layer, name) in enumerate(PUBLISHED_LAYERS.items()):
            rgb = given.fields[layer].rgb
            colours = _marked(rgb, number) if channels == 6 else rgb
            shares.append(accumulate(given.composited.weights[layer], colours))
            arrays[f"_rgb_fine_{name}"] = shares[-1]
            if channels == 6:
                alone = given.alone(layer)
                arrays[f"rgb_fine_{name}"] = accumulate(alone, colours)
                arrays[f"depth_fine_{name}"] = (alone * given.depths).sum(-1)
        return arrays | {"rgb_fine": torch.stack(shares).sum(0)}

    def _features(self, group: str, given: Rendering) -> Arrays:
        """Features where the file's weights are largest; outside training relevancies as a query gets them."""
        assert self.model.semantic is not None
        time_code = self.model.field.time_code(given.points.times)
        weights = self._weights(group, given.composited.weights)
        code = self.model.semantic.code(given.points, given.fields, weights, time_code)
        arrays = {name: self.model.semantic.decode(code, kind) for name, kind in KINDS.items()}
        if group.startswith("train"):
            return arrays
        names = {kind: name for name, kind in KINDS.items()}
        parts = [self.given(f"{group}/{names[kind]}", arrays[names[kind]]) for kind in self.model.semantic.dimensions]
        for prefix, kind, words in (("", "image", "clip"), ("video_", "video", "video")):
            features = self.model.decode_features(torch.cat(parts, -1)[None], kind)[0]
            answers = relevancy(features, self.input(f"in/{words}_pos"), self.input(f"in/{words}_neg"))
            arrays[f"raw_{prefix}relevancy"] = answers.T[..., None]
            arrays |= {f"{prefix}relevancy_{i}": answers[:, i : i + 1] for i in range(answers.shape[1])}
        return arrays

    def _weights(self, group: str, own: dict[Layer, Tensor]) -> dict[Layer, Tensor]:
        """The layers' weights with the file's values and our gradients."""
        source = "train" if group == "train_bgcolour" else group
        return {
            layer: self.given(f"{source}/{name}_weights", own[layer].detach()) + (own[layer] - own[layer].detach())
            for layer, name in PUBLISHED_LAYERS.items()
        }

    def kinks(self) -> dict[str, np.ndarray]:
        """What gradients differ by when units as near to 0 as rounding may bring them count as active, or do not."""
        sides = [self.losses(True, active_above=threshold)[1] for threshold in (-KINK, KINK)]
        apart = {name: (sides[0][name] - sides[1][name]).abs().double() for name in sides[0]}
        return {f"grad/{name}": values.numpy() for name, values in apart.items()}

    def losses(self, features: bool, active_above: float = 0.0) -> tuple[Arrays, Arrays]:
        """Losses of a training step, and the gradients of their sum.

        Args:
            features: With those of features.
            active_above: Gradients go through hidden units whose input is larger.
        """
        model = self.model
        model.train()
        model.update_to_step(0)
        model.zero_grad()
        model.end_colours = lambda rays: torch.zeros(rays, 3)  # pyright: ignore[reportAttributeAccessIssue]
        self._hold_depths("train")
        model._code = (
            lambda rays, state, detach: PublishedModel._code(  # pyright: ignore[reportAttributeAccessIssue]
                model, rays, (*state[:2], self._weights("train", state[2])), detach
            )
        )
        everywhere = torch.ones(len(self.data["in/cam"]), dtype=torch.bool)
        targets = {
            "image": (self.input("loss_in/clip"), self.input("loss_in/clip_mask")),
            "video": (self.input("loss_in/video_patch"), everywhere),
            "regulariser": (self.input("loss_in/dino"), everywhere),
        }
        batch: dict[str, Any] = {"image": self.input("loss_in/rgb")}
        if features:
            batch["features"] = targets
        relu = torch.nn.functional.relu
        torch.nn.functional.relu = lambda values, inplace=False: _Relu.apply(values, active_above)
        try:
            losses = model.get_loss_dict(model(self.rays), batch)
        finally:
            torch.nn.functional.relu = relu
        total = torch.stack(list(losses.values())).sum()
        arrays = {name: losses[own][None] for name, own in LOSSES.items() if own in losses} | {"total": total[None]}
        total.backward()
        assert model.semantic is not None
        parameters = [*model.field.named_parameters(), *model.semantic.named_parameters()]
        gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters}
        if "grad/param_names" in self.data:
            names = [str(name) for name in self.data["grad/param_names"]]
            gradients["l2_norm"] = torch.stack([gradients[name].norm() for name in names])
        return arrays, gradients

    def _positional(self) -> Arrays:
        sizes = self.model.field.config
        return {
            "xyz_63": octave_encoding(self.input("pe/points"), sizes.position_octaves),
            "dir_27": octave_encoding(self.input("pe/dir_in"), sizes.direction_octaves),
            "xyz_freqs": octave_scales(sizes.position_octaves),
        }

    @torch.no_grad()
    def _time_codes(self) -> Arrays:
        table = self.model.field.embedding_t
        times = (self.input("lre/indices") / (self.model.field.rows - 1))[:, None]
        basis = table.basis(times)
        return {"t_normalised": basis[:, :1], "basis_21": basis, "L": table(times)}

    def _drawn(self) -> Arrays:
        edges, weights = self.input("sample_pdf/bins"), self.input("sample_pdf/weights")
        counts = [int(name.split("_")[-1]) for name in self.data if name.startswith("sample_pdf/det_")]
        return {f"det_{count}": importance_depths(edges, weights, count, jitter=False) for count in counts}

    @torch.no_grad()
    def _fine(self) -> Arrays:
        field = self.model.field
        inputs, places = self.input("nerf_fine/input_218"), 3 * (2 * field.config.position_octaves + 1)
        directions = 3 * (2 * field.config.direction_octaves + 1)
        parts = inputs.split([places, directions, field.config.appearance_dim, field.config.time_dim, places], -1)
        found = field.nerf_fine(parts[0][:, None], *parts[1:4], parts[4][:, None])
        outputs = []
        for layer in LAYERS:
            samples = found[layer]
            outputs += [samples.rgb[:, 0], samples.density]
            outputs += [] if samples.uncertainty is None else [samples.uncertainty]
        outputs += [found[layer].encoding[:, 0] for layer in LAYERS]
        return {"output_398": torch.cat(outputs, -1)}

    @torch.no_grad()
    def _coarse(self) -> Arrays:
        field = self.model.field
        inputs, places = self.input("nerf_coarse/input_90"), 3 * (2 * field.config.position_octaves + 1)
        positions, directions = inputs[:, None, :places], inputs[:, places:]
        density, colours = field.nerf_coarse(positions, directions)
        alone, _ = field.nerf_coarse(positions, None)
        return {"output_4": torch.cat((colours[:, 0], density), -1), "sigma_only": alone}

    @torch.no_grad()
    def _heads(self) -> Arrays:
        assert self.model.semantic is not None
        inputs = self.input("heads/input")
        return {
            f"{name}_{published}_{self.model.semantic.dimensions[kind]}": self.model.semantic.head(layer, kind)(inputs)
            for layer, name in PUBLISHED_LAYERS.items()
            for published, kind in KINDS.items()
        }

    @torch.no_grad()
    def _autoencoded(self, autoencoder: Autoencoder) -> Arrays:
        features = self.input("ae/input_512")
        codes, whole = autoencoder.encode(features), autoencoder(features)
        return {
            f"encode_{autoencoder.code_dim}": codes,
            f"decode_{autoencoder.feature_dim}": autoencoder.decode(codes),
            f"forward_{autoencoder.feature_dim}": whole,
            "decode_out": autoencoder.decode(self.input("ae/decode_in")),
        }

    def _really_autoencoded(self) -> Arrays:
        if self.real_autoencoder is None:
            raise DivffError("The file has arrays ae_real: name their autoencoder with --real-autoencoder.")
        return self._autoencoded(load_autoencoder(self.real_autoencoder))

    def _relevancies(self) -> Arrays:
        features = self.input("relevancy/embed")
        arrays = {}
        for words in ("clip", "video"):
            likely = relevancy(features, self.input(f"in/{words}_pos"), self.input(f"in/{words}_neg")).T
            arrays[words] = torch.stack((likely, 1 - likely), -1)
        return arrays


class _Relu(torch.autograd.Function):
    """ReLU whose gradient begins elsewhere than at 0."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, above: float) -> Tensor:
        ctx.save_for_backward(values > above)
        return values.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient * ctx.saved_tensors[0], None


def _marked(rgb: Tensor, layer: int) -> Tensor:
    """Colours, and three channels that tell the layer."""
    marks = torch.zeros_like(rgb)
    marks[..., layer] = 1
    return torch.cat((rgb, marks), -1)


def _halved(found: dict[Any, LayerSamples]) -> dict[Any, LayerSamples]:
    """Layers rounded to half precision; their densities are summed in it, too."""

    def rounded(values: Tensor) -> Tensor:
        return values.half().float()

    return {
        layer: LayerSamples(
            samples.density.half(),
            rounded(samples.rgb),
            rounded(samples.encoding),
            None if samples.uncertainty is None else rounded(samples.uncertainty),
        )
        for layer, samples in found.items()
    }
