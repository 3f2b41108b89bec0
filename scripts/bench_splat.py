"""Times the method divff-splat: a pass, a view, its features and a training step, with many Gaussians."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional

import torch
import tyro
from stopwatch import machine, measure

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
    """Of how many runs the median is taken, after one that is not counted."""
    threads: int = 2
    """Threads of PyTorch."""

    device: tyro.conf.Suppress[Literal["auto", "cuda", "cpu"]] = "auto"
    """Where; auto: on a GPU where there is one."""

    def main(self) -> None:
        """Runs all measurements and prints them."""
        print(json.dumps({"machine": machine(), "threads": self.threads, "results": self.results()}, indent=2))

    def results(self) -> dict[str, Any]:
        """All measurements."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        pipeline = self._pipeline()
        model, data = pipeline.model, pipeline.datamanager
        camera, _ = data.next_eval_image(0)
        camera.rescale_output_resolution(self.width / int(camera.width))
        model.update_to_step(model.config.joint_start_step)
        model.eval()
        kind = model.semantic.kinds[0]
        from divff_nerfstudio.fields.layers import LAYERS

        view = model.seen_by(camera)

        @torch.no_grad()
        def colours() -> Any:
            return model.drawing(view, LAYERS).together(codes=False)

        @torch.no_grad()
        def colours_and_features() -> Any:
            parts, _ = model.drawing(view, LAYERS).together(codes=True)
            code = model.semantic.code(parts["rest"], parts["masks"], view.moment.time)
            return model.semantic.decode(code, kind)

        def step() -> None:
            model.train()
            model.zero_grad()
            model.update_to_step(model.config.heads_start_step - 1)
            outputs, batch = self._frame(pipeline)
            torch.stack(list(model.get_loss_dict(outputs, batch).values())).sum().backward()

        results = {
            "gaussians": {layer: len(model.gaussian_layer(layer)) for layer in LAYERS},
            "size": [int(camera.width), int(camera.height)],
            "colours": measure(colours, self.repeats),
            "colours_and_features": measure(colours_and_features, self.repeats),
            "all_outputs": measure(lambda: model.get_outputs_for_camera(camera), self.repeats),
            "geometry_step": measure(step, self.repeats),
        }
        if torch.cuda.is_available():
            results["gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
        return results

    @staticmethod
    def _frame(pipeline: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Outputs of a training frame, without features."""
        camera, batch = pipeline.datamanager.next_train(0)
        return pipeline.model(camera), {"image": batch["image"]}

    def _pipeline(self) -> Any:
        """A trained run's pipeline, or one with Gaussians at random places."""
        from divff_nerfstudio.models.splat.heads import SplatHeads

        if self.load_config is not None:
            from divff_nerfstudio.evaluation.runs import load_run

            pipeline = load_run(self.load_config).pipeline
        else:
            pipeline = self._untrained()
        model = pipeline.model
        if model.semantic is None:
            model.semantic = SplatHeads(model.config.heads, model.num_train_data, {"image": DIMENSION}).to(model.device)
        return pipeline

    def _untrained(self) -> Any:
        from divff_nerfstudio.models.splat.points import random_points, spacing
        from divff_nerfstudio.registry import divff_splat
        from divff_nerfstudio.trainer import DivFFTrainerConfig

        config = copy.deepcopy(divff_splat.config)
        assert isinstance(config, DivFFTrainerConfig)
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        config.machine.device_type = automatic if self.device == "auto" else self.device
        config.pipeline.datamanager.data = self.data
        config.pipeline.datamanager.features = "auto"
        config.settle()
        pipeline: Any = config.pipeline.setup(device=config.machine.device_type, test_mode="test")
        model = pipeline.model
        scene, length = pipeline.datamanager.train_dataset.scene, float(model.space.length)
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
        return pipeline
