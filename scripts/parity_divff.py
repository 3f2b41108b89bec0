"""Compares the method divff-paper with what the published code has computed, from cameras to gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
import tyro
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.utils.rich_utils import CONSOLE
from rich.table import Table
from torch import Tensor

from divff_nerfstudio.data.epic_diff import pinhole_cameras
from divff_nerfstudio.data.rays import at_origin
from divff_nerfstudio.features.autoencoder import Autoencoder, load_autoencoder
from divff_nerfstudio.fields.layers import LAYERS, LayerSamples
from divff_nerfstudio.fields.published import PUBLISHED_LAYERS, octave_encoding, octave_scales
from divff_nerfstudio.fields.published_checkpoint import read_published
from divff_nerfstudio.files import DivffError
from divff_nerfstudio.published_model import PublishedModel, PublishedModelConfig, Rendering
from divff_nerfstudio.query import relevancy
from divff_nerfstudio.rendering import accumulate, importance_depths
from divff_nerfstudio.schedule import PublishedScheduleConfig

Arrays = dict[str, Tensor]
INPUTS = ("in/", "loss_in/", "tolerance/")
"""Groups of arrays that are not results; the rays among them are computed from the cameras all the same."""
INPUT_NAMES = (
    *("pe/points", "pe/dir_in", "lre/indices", "sample_pdf/bins", "sample_pdf/weights", "nerf_fine/input_218"),
    *("nerf_coarse/input_90", "heads/input", "ae/input_512", "ae/decode_in", "relevancy/embed", "grad/param_names"),
)
HALF, RELATIVE = 2e-4, 1e-5
"""Allowed in the half-precision path, and as a part of losses and gradients."""
TOLERANCES = (("sigma", 1e-4), ("rgbs_", 2e-5), ("encoding_", 2e-5), ("output_", 2e-5), ("alphas", 1e-5), ("z_", 1e-5))
TOLERANCES += (("depth", 1e-5), ("det_", 1e-5))
"""Largest absolute difference by a part of an array's name: densities, colours and features of single samples,
opacities and depths."""
RENDERED = 3e-6
"""Of everything else: weights, rendered colours and features, relevancies."""
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


@dataclass
class DivffParityConfig:
    """Checks the method divff-paper against numbers of the published code; fails where they differ."""

    npz: tyro.conf.Positional[Path]
    """File of numbers, such as divff_reference_a.npz: inputs, intermediate and final outputs."""
    checkpoint: Path
    """The weights that they were computed with."""
    autoencoder: Path
    """The scene's autoencoder that they were computed with."""
    real_autoencoder: Optional[Path] = None  # noqa: UP045
    """The autoencoder of the arrays ae_real; by default autoencoder_real_*.pth beside the file of numbers."""

    def main(self) -> bool:
        """Prints the largest difference of each array.

        Returns:
            Whether all lie within their tolerances, and none is unknown.
        """
        rows = compare(self.npz, self.checkpoint, self.autoencoder, self.real_autoencoder)
        table = Table("array", "shape", "largest difference", "allowed", "", title=f"DIV-FF, {self.npz.name}")
        for row in rows:
            verdict = "ok" if row.passed else "[red]unknown" if row.allowed is None else "[red]differs"
            table.add_row(row.name, str(row.shape), f"{row.difference:.2e}", row.limit, verdict)
        CONSOLE.print(table)
        failed = [row.name for row in rows if not row.passed]
        CONSOLE.print(f"[red]There are differences: {', '.join(failed)}" if failed else f"All {len(rows)} agree.")
        return not failed


@dataclass
class Row:
    """One array of the file, compared."""

    name: str
    """Its name in the file."""
    shape: tuple[int, ...]
    """Its shape."""
    difference: float
    """Largest difference, absolute or as a part of the largest number; infinite if there is nothing to compare."""
    allowed: float | None
    """The largest that is allowed; None for an array that is not known."""
    relative: bool = False
    """Whether these are parts."""
    rounded: bool = False
    """Whether the file holds numbers rounded to half precision: neighbours of these are allowed, too."""
    neighbours: bool = False
    """Whether all of them are equal or neighbours."""

    @property
    def passed(self) -> bool:
        """Whether the array agrees."""
        return self.allowed is not None and (self.difference <= self.allowed or self.neighbours)

    @property
    def limit(self) -> str:
        """What is allowed, in words."""
        if self.allowed is None:
            return ""
        return f"{self.allowed:.1e}{' of it' if self.relative else ' or next half' if self.rounded else ''}"


def compare(npz: Path, checkpoint: Path, autoencoder: Path, real_autoencoder: Path | None = None) -> list[Row]:
    """Computes every array of a file through the package's modules, and compares.

    Raises:
        DivffError: If a file is not what it should be.
    """
    try:
        with np.load(npz, allow_pickle=False) as file:
            data = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise DivffError(f"{npz} cannot be read ({error}): give divff_reference_a.npz or its like.") from None
    if real_autoencoder is None:
        real_autoencoder = next(iter(sorted(npz.parent.glob("autoencoder_real_*.pth"))), None)
    try:
        found = Parity(data, checkpoint, autoencoder, real_autoencoder).compute()
    except KeyError as error:
        raise DivffError(f"{npz} or {checkpoint} lacks {error}: give a file of numbers and its own weights.") from None
    own = dict(zip(map(str, data["tolerance/names"]), data["tolerance/max_abs_f32_minus_f64"], strict=True))
    wanted = [name for name in data if not name.startswith(INPUTS) and name not in INPUT_NAMES]
    return [_row(name, found.get(name), data[name], own) for name in ("in/rays", *wanted)]


def _row(name: str, found: Tensor | None, expected: np.ndarray, own: dict[str, float]) -> Row:
    if found is None:
        return Row(name, expected.shape, float("inf"), None)
    group, short = name.rsplit("/", 1)
    relative = group.startswith(("loss", "grad"))
    allowed = RELATIVE if relative else HALF if group == "test_half" else RENDERED
    if not relative and group != "test_half":
        allowed = next((value for part, value in TOLERANCES if part in short), RENDERED)
    allowed = max(allowed, 4 * float(own.get(short, 0.0))) if not relative else allowed
    values, expected = found.detach().numpy().astype(np.float64), expected.astype(np.float64)
    if values.shape != expected.shape or not np.isfinite(values).all():
        return Row(name, expected.shape, float("inf"), allowed, relative)
    difference = np.abs(values - expected)
    if name == "grad/l2_norm":  # each norm by itself; those of unused parameters are 0
        difference = difference / np.maximum(np.abs(expected), 1e-12)
    elif relative:
        difference = difference / np.abs(expected).max()
    half = np.abs(expected).astype(np.float16)
    # What is rounded to half precision here and there may fall on neighbours, which above 1/4 are farther apart than
    # what is allowed.
    rounded = group == "test_half" and bool((half == np.abs(expected)).all())
    neighbours = rounded and bool((difference <= np.maximum(allowed, np.spacing(half))).all())
    return Row(name, expected.shape, float(difference.max()), allowed, relative, rounded, neighbours)


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

    def compute(self) -> Arrays:
        """Everything that the groups of the file ask for, under its names."""
        groups: dict[str, Callable[[], Arrays]] = {
            "in": self._rays_table,
            "train": lambda: self._rendered(self.trained(), 3),
            "train_bgcolour": lambda: self._rendered(self.trained(self.input("in/last_sample_colour")), 3),
            "test_f32": lambda: self._rendered(self.tested(), 6) | self._tested_only(self.tested()),
            "test_half": lambda: self._rendered(self.tested(True), 6) | self._tested_only(self.tested(True)),
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

    def input(self, name: str) -> Tensor:
        """One array of the file."""
        return torch.from_numpy(self.data[name])

    @cached_property
    def model(self) -> PublishedModel:
        """The model of the method divff-paper with the published weights, without chance."""
        weights = read_published(self.checkpoint)
        samples = self.data["test_f32/z_coarse"].shape[1], self.data["test_f32/z_importance"].shape[1]
        config = PublishedModelConfig(
            fields=weights.field_config,
            heads=replace(weights.heads_config, dimensions=weights.dimensions),
            autoencoder=self.autoencoder,
            schedule=PublishedScheduleConfig(stages="joint"),
            coarse_samples=samples[0],
            importance_samples=samples[1],
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
    def rays(self) -> RayBundle:
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

    def trained(self, end_colours: Tensor | None = None) -> Rendering:
        """The rays in training."""
        self.model.train()
        colours = torch.zeros(len(self.data["in/cam"]), 3) if end_colours is None else end_colours
        self.model.end_colours = lambda rays: colours  # pyright: ignore[reportAttributeAccessIssue]
        return self.model.render(self.rays, LAYERS)

    @torch.no_grad()
    def tested(self, half: bool = False) -> Rendering:
        """The rays in inference; with the cast that the published code makes, which the method never does."""
        self.model.eval()
        fine = self.model.field.nerf_fine
        handle = fine.register_forward_hook(lambda module, inputs, found: _halved(found)) if half else None
        rendering = self.model.render(self.rays, LAYERS)
        if handle is not None:
            handle.remove()
        return rendering

    def _rays_table(self) -> Arrays:
        rays = self.rays
        assert rays.nears is not None and rays.fars is not None
        parts = (rays.origins, rays.directions, rays.nears, rays.fars, torch.zeros_like(rays.origins))
        return {"rays": torch.cat((*parts, rays.metadata["camera_directions"]), -1)}

    def _rendered(self, found: Rendering, channels: int) -> Arrays:
        """What both modes have."""
        composited, coarse = found.composited, found.coarse
        joint, depths = composited.joint, found.depths
        arrays = {
            "z_coarse": coarse.depths,
            "z_importance": found.drawn,
            "z_fine": depths,
            "static_sigmas_coarse": coarse.density,
            "alphas_coarse": coarse.composited.opacity,
            "static_sigmas_fine": found.fields["static"].density,
            "alphas_fine": composited.opacity,
            "static_alphas_fine": composited.alphas["static"],
            "beta": found.uncertainty,
            "depth_fine": found.depth,
        }
        for prefix in ("", "static_"):
            arrays |= {f"{prefix}weights_coarse": coarse.composited.joint, f"{prefix}weights_fine": joint}
        arrays |= {f"static_weights_sum_{name}": arrays[f"weights_{name}"].sum(-1) for name in ("coarse", "fine")}
        with torch.no_grad():
            time_code = self.model.field.time_code(found.points.times)
            assert self.model.semantic is not None
            code = self.model.semantic.code(found.points, found.fields, composited.weights, time_code)
            arrays |= {name: self.model.semantic.decode(code, kind) for name, kind in KINDS.items()}
        for number, (layer, name) in enumerate(PUBLISHED_LAYERS.items()):
            samples, weights = found.fields[layer], composited.weights[layer]
            colours = _marked(samples.rgb, number) if channels == 6 else samples.rgb
            arrays |= {
                f"{name}_weights": weights,
                f"{name}_weights_sum": composited.mask(layer),
                f"{name}_sigmas": samples.density,
                f"{name}_rgbs_fine": colours,
                f"{name}_encoding_first4": samples.encoding[:4],
                f"_rgb_fine_{name}": accumulate(weights, colours),
            }
        arrays["rgb_fine"] = torch.stack([arrays[f"_rgb_fine_{name}"] for name in PUBLISHED_LAYERS.values()]).sum(0)
        if channels == 3:
            assert coarse.colours is not None
            arrays |= {
                "static_rgbs_coarse": coarse.colours,
                "rgb_coarse": coarse.rgb,
                "depth_coarse": (coarse.composited.joint * coarse.depths).sum(-1),
            }
        return arrays

    @torch.no_grad()
    def _tested_only(self, found: Rendering) -> Arrays:
        """Layers alone, and relevancies as a query gets them."""
        arrays: Arrays = {}
        for number, (layer, name) in enumerate(PUBLISHED_LAYERS.items()):
            alone = found.alone[layer]
            arrays[f"rgb_fine_{name}"] = accumulate(alone, _marked(found.fields[layer].rgb, number))
            arrays[f"depth_fine_{name}"] = (alone * found.depths).sum(-1)
        time_code = self.model.field.time_code(found.points.times)
        assert self.model.semantic is not None
        code = self.model.semantic.code(found.points, found.fields, found.composited.weights, time_code)
        for prefix, kind, words in (("", "image", "clip"), ("video_", "video", "video")):
            features = self.model.decode_features(code[None], kind)[0]
            answers = relevancy(features, self.input(f"in/{words}_pos"), self.input(f"in/{words}_neg"))
            arrays[f"raw_{prefix}relevancy"] = answers.T[..., None]
            arrays |= {f"{prefix}relevancy_{i}": answers[:, i : i + 1] for i in range(answers.shape[1])}
        return arrays

    def losses(self, features: bool) -> tuple[Arrays, Arrays]:
        """Losses of a training step, and the gradients of their sum."""
        model = self.model
        model.train()
        model.update_to_step(0)
        model.zero_grad()
        model.end_colours = lambda rays: torch.zeros(rays, 3)  # pyright: ignore[reportAttributeAccessIssue]
        everywhere = torch.ones(len(self.data["in/cam"]), dtype=torch.bool)
        targets = {
            "image": (self.input("loss_in/clip"), self.input("loss_in/clip_mask")),
            "video": (self.input("loss_in/video_patch"), everywhere),
            "regulariser": (self.input("loss_in/dino"), everywhere),
        }
        batch: dict[str, Any] = {"image": self.input("loss_in/rgb")}
        if features:
            batch["features"] = targets
        losses = model.get_loss_dict(model(self.rays), batch)
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
