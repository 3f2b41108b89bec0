"""Measures methods on the machine at hand.

python scripts/bench.py steps --data SCENE [--rays 1024] [--width 228 --height 128]
    what runs per step and per view; prints JSON
python scripts/bench.py compare --data SCENE --methods divff divff-paper --minutes N
    how good methods are after how much time; writes JSON and a plot
python scripts/bench.py published [--rays 1024] [--width 228 --height 128]
    the published network beside a straightforward version of it; prints JSON
python scripts/bench.py splat --data SCENE [--gaussians 10000] [--width 114 --height 64]
    views, features and steps of divff-splat; prints JSON
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from bench_published import Published
from bench_splat import Splat
from compare_methods import Compare
from timing import measure


@dataclass
class Bench:
    """Times a training step of the geometry, a rendered view and a feature look-up of the method divff."""

    data: Path
    """A scene folder in the EPIC-Diff layout."""
    rays: int = 1024
    """Rays per training step."""
    width: int = 228
    """Width of the rendered view, in pixels."""
    height: int = 128
    """Height of the rendered view, in pixels."""
    repeats: int = 5
    """Of how many runs the median is taken, after one that is not counted."""
    threads: int = 1
    """Threads of PyTorch."""

    def main(self) -> None:
        """Runs all measurements and prints them."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        pipeline = self._pipeline()
        model, data = pipeline.model, pipeline.datamanager
        model.train()
        model.update_to_step(model.config.static_until)

        def step() -> None:
            model.zero_grad()
            _, losses, _ = pipeline.get_train_loss_dict(model.config.static_until)
            torch.stack(list(losses.values())).sum().backward()

        camera, _ = data.next_eval_image(0)
        camera.rescale_output_resolution(self.width / int(camera.width))
        results = {
            "geometry_step": {"rays": self.rays, **measure(self.repeats, step)},
            "render_view": {
                "width": int(camera.width),
                "height": int(camera.height),
                **measure(self.repeats, lambda: model.get_outputs_for_camera(camera)),
            },
            "next_batch": measure(self.repeats, lambda: data.next_train(0)),
        }
        for kind, store in data.feature_stores.items():
            draw = [torch.randint(size, (4096,)).numpy() for size in (len(store), *store.header.image_size)]
            results[f"lookup_4096_{kind}"] = measure(self.repeats, lambda store=store, draw=draw: store.lookup(*draw))
        print(json.dumps({"machine": _machine(), "threads": self.threads, "results": results}, indent=2))

    def _pipeline(self):
        from divff_nerfstudio.registry import divff
        from divff_nerfstudio.trainer import DivFFTrainerConfig

        config = divff.config
        assert isinstance(config, DivFFTrainerConfig)
        config.machine.device_type = "cuda" if torch.cuda.is_available() else "cpu"
        config.pipeline.datamanager.data = self.data
        config.pipeline.datamanager.train_num_rays_per_batch = self.rays
        config.settle()
        return config.pipeline.setup(device=config.machine.device_type, test_mode="test")


def _machine() -> dict[str, object]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "gpu": gpu}


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict(
        {"steps": Bench, "compare": Compare, "published": Published, "splat": Splat}
    ).main()
