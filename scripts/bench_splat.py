"""Times the method divff-splat: views, with features, too, and training steps, with many Gaussians."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional

import torch
import tyro
from card_limits import Work, work_of
from compare_methods import iterate
from stopwatch import machine, measure, measure_stretch
from timed_training import ready, time_steps

DIMENSION = 512
"""Length of the features that are decoded where the scene has none."""


@dataclass
class Splat:
    """Times Gaussians of a trained run, or of a scene at random places; prints JSON."""

    data: Optional[Path] = None  # noqa: UP045
    """A scene folder in the EPIC-Diff layout: Gaussians at random places in its cameras' frustums."""
    load_config: Optional[Path] = None  # noqa: UP045
    """The config.yml of a run of divff-splat, in place of a scene."""
    gaussians: int = 10000
    """Gaussians at random places: a tenth of them each in the moving layers."""
    width: int = 114
    """Width of the view, in pixels."""
    height: int = 64
    """Height of the view, in pixels."""
    repeats: int = 5
    """Of how many views the median is taken, after one that is not counted, and of how many steps the mean."""
    threads: int = 2
    """Threads of PyTorch."""

    device: tyro.conf.Suppress[Literal["auto", "cuda", "cpu"]] = "auto"
    """Where; auto: on a GPU where there is one."""

    def main(self) -> None:
        """Runs all measurements and prints them."""
        print(json.dumps({"machine": machine(), "threads": self.threads, "results": self.results()[0]}, indent=2))

    def results(self) -> tuple[dict[str, Any], dict[str, Work]]:
        """All measurements, and what some of them compute and move."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._trained(folder) if self.data is None else self._untrained(folder)
            views, work = self._views(trainer.pipeline)
            results = {"gaussians": self._counts(trainer.pipeline.model), **views}
            steps, work["between_refinements"] = self._steps(trainer)
            results |= steps
        if torch.cuda.is_available():
            results["gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
        return results, work

    @staticmethod
    def _counts(model: Any) -> dict[str, int]:
        from divff_nerfstudio.fields.layers import LAYERS

        return {layer: len(model.gaussian_layer(layer)) for layer in LAYERS}

    def _views(self, pipeline: Any) -> tuple[dict[str, Any], dict[str, Work]]:
        """Views of a camera that was not seen before: its colours, with features, and all that there is."""
        from divff_nerfstudio.fields.layers import LAYERS
        from divff_nerfstudio.models.splat.heads import SplatHeads

        model = pipeline.model
        heads, step = model.semantic, model.step
        if heads is None:
            model.semantic = SplatHeads(model.config.heads, model.num_train_data, {"image": DIMENSION}).to(model.device)
        model.update_to_step(model.config.joint_start_step)
        model.eval()
        camera, _ = pipeline.datamanager.next_eval_image(0)
        camera.rescale_output_resolution(self.width / int(camera.width))
        kind = model.semantic.kinds[0]
        if pipeline.query.kinds:
            pipeline.query.ask(text="mug")

        @torch.no_grad()
        def colours() -> Any:
            return model.drawing(model.seen_by(camera), LAYERS).together(codes=False)

        @torch.no_grad()
        def colours_and_features() -> Any:
            view = model.seen_by(camera)
            parts, _ = model.drawing(view, LAYERS).together(codes=True)
            code = model.semantic.code(parts["rest"], parts["masks"], view.moment.time)
            return model.semantic.decode(code, kind)

        def all_outputs() -> Any:
            return model.get_outputs_for_camera(camera)

        views: dict[str, Callable[[], Any]] = {
            "colours": colours,
            "colours_and_features": colours_and_features,
            "all_outputs": all_outputs,
        }
        found = {name: measure(view, self.repeats) for name, view in views.items()}
        size = {"size": [int(camera.width), int(camera.height)], "outputs": list(all_outputs())}
        work = {name: work_of(view) for name, view in views.items()}
        model.semantic = heads
        model.update_to_step(step)
        return {**size, **found}, work

    def _steps(self, trainer: Any) -> tuple[dict[str, Any], Work]:
        """Steps of the geometry from the frame to the optimizers, and one behind which Gaussians are refined."""
        every, schedule = trainer.pipeline.model.config.densification.every, trainer.pipeline.model.schedule
        middle = (schedule.moving_start_step + schedule.heads_start_step) // 2
        refined = max(1, middle // every) * every
        time_steps(trainer, refined + 1, 3)
        between = time_steps(trainer, refined + 4, self.repeats)
        refining = measure_stretch(lambda: iterate(trainer, refined + every), 1)
        work = work_of(lambda: iterate(trainer, refined + every + 1))
        mean = {name: (between[name] * (every - 1) + refining[name]) / every for name in between}
        found = {
            "geometry_step": {name: round(value, 7) for name, value in mean.items()},
            "between_refinements": between,
            "with_refinement": refining,
            "gaussians_refined": self._counts(trainer.pipeline.model),
        }
        return found, work

    def _trained(self, folder: str) -> Any:
        """A trainer that goes on with the run."""
        from divff_nerfstudio.evaluation.runs import our_configs
        from divff_nerfstudio.run_config import read_config

        assert self.load_config is not None
        config = read_config(self.load_config, our_configs())
        config.load_dir = self.load_config.parent / config.relative_model_dir
        return ready(self._placed(config), folder)

    def _placed(self, config: Any) -> Any:
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        config.machine.device_type = automatic if self.device == "auto" else self.device
        return config

    def _untrained(self, folder: str) -> Any:
        """A trainer of Gaussians at random places."""
        from divff_nerfstudio.models.splat.points import random_points, spacing
        from divff_nerfstudio.registry import divff_splat

        config: Any = self._placed(copy.deepcopy(divff_splat.config))
        data = config.pipeline.datamanager
        data.data = data.dataparser.data = self.data
        data.features = "auto"
        trainer = ready(config, folder)
        model = trainer.pipeline.model
        scene, length = trainer.pipeline.datamanager.train_dataset.scene, float(model.space.length)
        shares = {"static": 0.8, "dynamic": 0.1, "actor": 0.1}
        for name, share in shares.items():
            positions, colours = random_points(scene, round(share * self.gaussians))
            positions = positions / length
            layer = model.gaussian_layer(name)
            own = {"durations": positions.new_zeros(len(positions))} if name == "dynamic" else {}
            rows = layer.new_rows(positions, 0.5 * spacing(positions), colours, opacity=0.5, **own)
            layer.make_room(len(positions))
            for row, values in rows.items():
                layer.rows[row].data = values.to(model.device)
        return trainer
