"""The published network side by side with a straightforward version of itself: same weights, rays and samples."""

from __future__ import annotations

import copy
import json
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Optional

import torch
import torch.nn.functional as F
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from stopwatch import machine
from torch import Tensor, nn

from divff_nerfstudio.fields.layers import LAYERS, Layer, LayerSamples, SamplePoints
from divff_nerfstudio.fields.published import CoarseNetwork, FineNetwork, PublishedField, octave_encoding
from divff_nerfstudio.fields.published_heads import PublishedHeads, PublishedHeadsConfig
from divff_nerfstudio.models.paper import PublishedModel, PublishedModelConfig
from divff_nerfstudio.models.schedule import PublishedScheduleConfig


class StraightCoarse(CoarseNetwork):
    """Every layer by itself, inputs put side by side for every sample."""

    def forward(self, positions: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        assert directions is not None
        hidden, final = _straight_trunk(self, positions)
        features = self.dir_encoding(torch.cat((final, _per_sample(directions, positions)), -1))
        return self.static_sigma(hidden)[..., 0], self.static_rgb(features)


class StraightFine(FineNetwork):
    """Every layer by itself, inputs put side by side for every sample, the actor's filled up with zeros."""

    def forward(
        self,
        positions: Tensor,
        directions: Tensor,
        appearance: Tensor,
        time: Tensor,
        camera_positions: Tensor | None,
        layers: Sequence[Layer] = LAYERS,
    ) -> dict[Layer, LayerSamples]:
        assert camera_positions is not None
        hidden, final = _straight_trunk(self, positions)
        times = _per_sample(time, positions)
        filled = final.new_zeros(*final.shape[:2], final.shape[-1] - camera_positions.shape[-1])
        static = self.dir_encoding(
            torch.cat((final, _per_sample(directions, positions), _per_sample(appearance, positions)), -1)
        )
        found: dict[Layer, LayerSamples] = {
            "static": LayerSamples(self.static_sigma(hidden)[..., 0], self.static_rgb(static), static)
        }
        inputs: tuple[tuple[Layer, str, Tensor], ...] = (
            ("dynamic", "transient", torch.cat((final, times), -1)),
            ("actor", "person", torch.cat((camera_positions, times, filled), -1)),
        )
        for layer, name, values in inputs:
            encoding = getattr(self, f"{name}_encoding")(values)
            sigma, rgb, beta = (getattr(self, f"{name}_{output}")(encoding) for output in ("sigma", "rgb", "beta"))
            found[layer] = LayerSamples(sigma[..., 0], rgb, encoding, beta[..., 0])
        return {layer: found[layer] for layer in layers}


class StraightField(PublishedField):
    """Encodes points in the world and before the camera wherever there are points, and always asks for colours."""

    def coarse(self, points: SamplePoints, colours: bool) -> tuple[Tensor, Tensor | None]:
        octave_encoding(points.camera_positions, self.config.position_octaves)
        return super().coarse(points, colours=True)


class StraightHeads(PublishedHeads):
    """Applies heads to every sample, and sums what they give."""

    def code(
        self,
        points: SamplePoints,
        samples: Mapping[Layer, LayerSamples],
        weights: Mapping[Layer, Tensor],
        time_code: Tensor,
    ) -> Tensor:
        totals = dict.fromkeys(self.dimensions, torch.zeros(()))
        for layer, found in samples.items():
            top, which = weights[layer].topk(self.config.samples, -1)
            encoding = torch.gather(found.encoding, 1, which[..., None].expand(-1, -1, found.encoding.shape[-1]))
            for kind in self.dimensions:
                totals[kind] = totals[kind] + (self.head(layer, kind)(encoding) * top[..., None]).sum(1)
        return torch.cat([totals[kind] for kind in self.dimensions], -1)


def _straight_trunk(net: CoarseNetwork | FineNetwork, positions: Tensor) -> tuple[Tensor, Tensor]:
    hidden = positions
    for layer in range(1, 9):
        joined = torch.cat((positions, hidden), -1) if layer == 5 else hidden
        hidden = getattr(net, f"xyz_encoding_{layer}")(joined)
    return hidden, net.xyz_encoding_final(hidden)


def _per_sample(values: Tensor, positions: Tensor) -> Tensor:
    return values[:, None].expand(-1, positions.shape[1], -1)


class StraightModel(PublishedModel):
    """The model on these, with a fixed number of rays at a time, and all rays of a training step at once."""

    @property
    def rays_at_once(self) -> int:
        return 4096


def straightened(model: PublishedModel) -> StraightModel:
    """A copy of a model with the same weights, computed in a straightforward way."""
    copied = copy.deepcopy(model)
    kinds: tuple[tuple[nn.Module | None, type[nn.Module]], ...] = (
        (copied, StraightModel),
        (copied.field, StraightField),
        (copied.field.nerf_coarse, StraightCoarse),
        (copied.field.nerf_fine, StraightFine),
        (copied.semantic, StraightHeads),
    )
    for module, kind in kinds:
        if module is not None:
            module.__class__ = kind  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(copied, StraightModel)
    return copied


@dataclass
class Published:
    """Times a training step with all heads, and a rendered view with features, of both versions in turns."""

    what: tuple[Literal["step", "view"], ...] = ("step", "view")
    """What is measured."""
    rays: int = 1024
    """Rays per training step."""
    width: int = 228
    """Width of the view, in pixels."""
    height: int = 128
    """Height of the view, in pixels."""
    repeats: int = 3
    """Of how many runs of each the median is taken, after one that is not counted."""
    threads: int = 1
    """Threads of PyTorch."""
    memory_mb: Optional[int] = None  # noqa: UP045
    """Memory of a chunk of rays. None: by device."""
    compile: bool = False
    """Compile the networks of the fast version."""
    versions: tuple[Literal["fast", "straightforward"], ...] = ("fast", "straightforward")
    """One of them alone tells its peak memory."""
    dimensions: dict[str, int] = field(default_factory=lambda: {"image": 128, "video": 512, "regulariser": 64})
    """Length of the features by kind."""

    def run(self) -> dict[str, object]:
        """Measures, and gives the figures."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        models: dict[str, PublishedModel] = {"fast": self._model()}
        models["straightforward"] = straightened(models["fast"])
        models = {name: models[name] for name in self.versions}
        results: dict[str, object] = {}
        if "step" in self.what:
            batch, rays = self._batch(), self._rays()
            steps = {name: self._step(model, rays, batch) for name, model in models.items()}
            results["training_step"] = {"rays": self.rays, **_in_turns(steps, self.repeats)}
        if "view" in self.what:
            camera = self._camera()
            views = {
                name: lambda model=model: dict(model.render(camera, outputs=("features",)).features)
                for name, model in models.items()
            }
            results["view"] = {"width": self.width, "height": self.height, **_in_turns(views, self.repeats)}
        results["peak_memory_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        return results

    @property
    def _device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    def _model(self) -> PublishedModel:
        frames = torch.arange(1000) / 999
        bounds = {"nears": torch.full_like(frames, 0.5), "fars": torch.full_like(frames, 4.0)}
        metadata = {"times": frames, **bounds, "time_rows": 1000, "all_times": frames, "feature_dims": self.dimensions}
        metadata |= {f"all_{name}": values for name, values in bounds.items()}
        config = PublishedModelConfig(
            heads=PublishedHeadsConfig(),
            schedule=PublishedScheduleConfig(stages="joint"),
            memory_mb=self.memory_mb,
            compile=self.compile,
        )
        model = config.setup(scene_box=SceneBox(torch.zeros(2, 3)), num_train_data=1000, metadata=metadata)
        assert isinstance(model, PublishedModel)
        return model.to(self._device)

    def _camera(self) -> Cameras:
        pose, focal = torch.eye(4)[None, :3], 0.85 * self.width
        middle = (self.width / 2, self.height / 2)
        time_code = torch.tensor([[0.5]])
        return Cameras(pose, focal, focal, *middle, self.width, self.height, times=time_code).to(self._device)

    def _rays(self) -> RayBundle:
        directions = F.normalize(torch.randn(self.rays, 3) - torch.tensor([0, 0, 4.0]), dim=-1)
        rays = RayBundle(torch.zeros(self.rays, 3), directions, torch.ones(self.rays, 1)).to(self._device)
        rays.metadata = {"camera_directions": rays.directions}
        rays.times = (torch.randint(1000, (self.rays, 1)) / 999).to(self._device)
        return rays

    def _batch(self) -> dict[str, object]:
        valid = torch.ones(self.rays, dtype=torch.bool, device=self._device)
        targets = {
            kind: (F.normalize(torch.randn(self.rays, dim), dim=-1).to(self._device), valid)
            for kind, dim in self.dimensions.items()
        }
        return {"image": torch.rand(self.rays, 3).to(self._device), "features": targets}

    def _step(self, model: PublishedModel, rays: RayBundle, batch: dict[str, object]) -> Callable[[], object]:
        def step() -> None:
            model.train()
            model.update_to_step(0)
            model.zero_grad()
            _, losses, _ = model.training_step(rays, batch)
            torch.stack(list(losses.values())).sum().backward()

        return step

    def main(self) -> None:
        """Prints the figures as JSON."""
        print(json.dumps({"machine": machine(), "threads": self.threads, "results": self.run()}, indent=2))


def _in_turns(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU-seconds (wall seconds on CUDA) of each, one after the other so that both see the same machine."""
    cuda = torch.cuda.is_available()
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter() if cuda else time.process_time()
            run()
            if cuda:
                torch.cuda.synchronize()
            spent[name].append((time.perf_counter() if cuda else time.process_time()) - start)
    unit = "seconds" if cuda else "cpu_seconds"
    medians = {name: statistics.median(values[1:] or values) for name, values in spent.items()}
    figures = {f"{name}_{unit}": round(value, 4) for name, value in medians.items()}
    if len(medians) == 2:
        figures["ratio"] = round(medians["fast"] / medians["straightforward"], 3)
    return figures
