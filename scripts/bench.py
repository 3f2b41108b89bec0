"""Measures on the machine at hand; prints JSON.

python scripts/bench.py steps --data SCENE [--rays 1024] [--width 228 --height 128]
    what runs per step and per view
python scripts/bench.py lookup
    rays' features, fetched from stores of 1000 frames of 456x256
python scripts/bench.py memory
    resident memory of training on such a scene with all kinds of features
python scripts/bench.py segments [--size large] [--weights FOLDER]
    SAM 2.1's automatic masks of a picture of 456x256
python scripts/bench.py compare --data SCENE --methods divff divff-paper --minutes N
    how good methods are after how much time; writes a plot, too
python scripts/bench.py published [--rays 1024] [--width 228 --height 128]
    the published network beside a straightforward version of it
python scripts/bench.py splat --data SCENE [--gaussians 10000] [--width 114 --height 64]
    views, features and steps of divff-splat
python scripts/bench.py long [--frames 100 1000 5000 20000] [--stages start view]
    memory and time of each stage by the length of a video
python scripts/bench.py gpu --data SCENE
    all figures that a GPU is to reach, beside their aims
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from bench_features import Lookup, Memory, Segments
from bench_gpu import Gpu
from bench_long import Long
from bench_published import Published
from bench_splat import Splat
from compare_methods import Compare
from stopwatch import machine, measure

from divff_nerfstudio.errors import DivffError


@dataclass
class Bench:
    """Times a training step of the geometry, a rendered view, another query on it and a feature look-up of divff."""

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
        model.update_to_step(model.config.moving_start_step)

        def step() -> None:
            model.zero_grad()
            _, losses, _ = pipeline.get_train_loss_dict(model.config.moving_start_step)
            torch.stack(list(losses.values())).sum().backward()

        camera, _ = data.next_eval_image(0)
        camera.rescale_output_resolution(self.width / int(camera.width))
        results = {
            "geometry_step": {"rays": self.rays, **measure(step, self.repeats)},
            "render_view": {
                "width": int(camera.width),
                "height": int(camera.height),
                **measure(lambda: model.get_outputs_for_camera(camera), self.repeats),
            },
            "next_batch": measure(lambda: data.next_train(0), self.repeats),
        }
        if "image" in pipeline.query.kinds:
            results["another_query"] = self._query(pipeline, camera)
            results["viewer_query"] = self._viewer_query(pipeline, camera)
        for kind, store in data.feature_stores.items():
            draw = [torch.randint(size, (4096,)).numpy() for size in (len(store), *store.header.image_size)]
            results[f"lookup_4096_{kind}"] = measure(lambda store=store, draw=draw: store.lookup(*draw), self.repeats)
        print(json.dumps({"machine": machine(), "threads": self.threads, "results": results}, indent=2))

    def _query(self, pipeline, camera) -> dict[str, float]:
        """A question to a view whose features have been decoded by one before, its phrase encoded already."""
        from divff_nerfstudio.evaluation.trained_scene import TrainedScene

        pipeline.model.update_to_step(pipeline.model.config.heads_start_step)
        view = TrainedScene(pipeline.model, pipeline.datamanager, pipeline.query).render(camera)
        return measure(lambda: view.ask("mug"), self.repeats)

    def _viewer_query(self, pipeline, camera) -> dict[str, object]:
        """A question that was never asked before, about a view that the viewer has rendered: encoded and answered."""
        from divff_nerfstudio.models.view import FEATURES
        from divff_nerfstudio.query import Query
        from divff_nerfstudio.viewer.views import ViewCache, Visibility

        query: Query = pipeline.query
        pipeline.model.update_to_step(pipeline.model.config.joint_start_step)
        pipeline.model.eval()
        views = ViewCache(
            pipeline.model,
            Visibility(),
            state=lambda: None,
            answer=lambda view: query.answer(view.pictures, view.features),
            seen=lambda client, view: None,
            client=lambda: 0,
            wanted=lambda: ("rgb", FEATURES),
        )
        words = (
            f"{colour} {thing}" for thing in ("mug", "pan", "bowl") for colour in ("red", "blue", "green", "white")
        )

        def ask() -> None:
            query.ask(text=next(words), features=query.kinds[0], contour=True)
            assert "relevancy_overlay" in views.outputs(camera)

        ask()
        measured = measure(ask, self.repeats)
        assert views.rendered == 1
        return {"width": int(camera.width), "height": int(camera.height), **measured}

    def _pipeline(self):
        from divff_nerfstudio.registry import divff
        from divff_nerfstudio.trainer import DivFFTrainerConfig

        config = copy.deepcopy(divff.config)
        assert isinstance(config, DivFFTrainerConfig)
        config.machine.device_type = "cuda" if torch.cuda.is_available() else "cpu"
        config.pipeline.datamanager.data = self.data
        config.pipeline.datamanager.features = "auto"
        config.pipeline.datamanager.train_num_rays_per_batch = self.rays
        config.settle()
        return config.pipeline.setup(device=config.machine.device_type, test_mode="test")


if __name__ == "__main__":
    commands = {
        "steps": Bench,
        "lookup": Lookup,
        "memory": Memory,
        "segments": Segments,
        "compare": Compare,
        "published": Published,
        "splat": Splat,
        "long": Long,
        "gpu": Gpu,
    }
    chosen = tyro.extras.subcommand_cli_from_dict(commands)
    try:
        chosen.main()
    except DivffError as error:
        raise SystemExit(f"Error: {error}") from None
