"""All figures that a GPU is to reach, in one run, each beside its aim and what the step moves and computes."""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

import torch
import tyro
from bench_features import Segments
from bench_splat import Splat
from compare_methods import Compare
from stopwatch import machine, measure
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

AIMS = {
    "step": "5 ms",
    "minute": "moving_ap 0.85, psnr 22",
    "stages": "180 s",
    "view": "10 ms",
    "query": "5 ms",
    "splat": "200 pictures/s, step 12 ms",
    "compare": "5 % of the time",
    "segments": "2 s",
}
"""What each figure is to reach on one H100."""


@dataclass
class Sizes:
    """What is measured; smaller where it is only tried out."""

    rays: int = 4096
    """Rays of a step."""
    view: tuple[int, int] = (228, 128)
    """Width and height of the view."""
    seconds: float = 60.0
    """Time after which the geometry is scored."""
    steps: Optional[int] = None  # noqa: UP045
    """Steps of the training with features; None: the method's own."""
    gaussians: int = 300_000
    """Gaussians of `divff-splat`."""
    splat_view: tuple[int, int] = (456, 256)
    """Width and height of its view."""
    repeats: int = 20
    """Of how many runs a median is taken."""
    shrink: tyro.conf.Suppress[Callable[[Any], Any] | None] = None
    """Makes a model's configuration smaller."""


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, as if nothing were kept in a cache between them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs an operation and counts its tensors; views cost nothing."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = tree_leaves((args, kwargs, result))
            self.bytes += sum(each.numel() * each.element_size() for each in tensors if isinstance(each, Tensor))
        return result


@dataclass
class Gpu:
    """Takes the figures of docs/performance.md that need a GPU; prints JSON, with an error in place of what fails."""

    data: Path
    """A scene folder in the EPIC-Diff layout: 257 frames of 228x128, or near that."""
    compare_minutes: float = 0.0
    """How long divff-paper and divff are trained for the comparison; 0: it is left out."""
    only: tuple[str, ...] = ()
    """Which figures are taken; none given: all."""
    cuda_graphs: Literal["on", "off"] = "off"
    """Whether trainings (`minute`, `stages`) capture their steps."""
    device: tyro.conf.Suppress[Literal["cuda", "cpu"]] = "cuda"
    """Where; elsewhere than on a GPU it is only tried out."""
    sizes: Sizes = field(default_factory=Sizes)
    """What is measured."""

    def main(self) -> dict[str, Any]:
        """Takes the figures one after the other and prints them."""
        torch.manual_seed(0)
        parts: dict[str, Callable[[], Any]] = {
            "step": self._step,
            "view": self._view,
            "query": self._query,
            "minute": self._minute,
            "stages": self._stages,
            "splat": self._splat,
            "segments": self._segments,
            "compare": self._compare,
        }
        found: dict[str, Any] = {}
        for name, take in parts.items():
            if self.only and name not in self.only:
                continue
            try:
                found[name] = {"aim": AIMS[name], "found": take()}
            except Exception as error:  # one that fails shall not take the others with it
                found[name] = {"aim": AIMS[name], "error": f"{type(error).__name__}: {error}"[:300]}
        report = {"machine": machine(), "device": self.device, "figures": found}
        print(json.dumps(report, indent=2))
        return report

    def _config(self, features: bool, steps: int | None = None) -> Any:
        """The default method on the scene."""
        from divff_nerfstudio.registry import divff

        config: Any = copy.deepcopy(divff.config)
        if self.sizes.shrink is not None:
            self.sizes.shrink(config.pipeline.model)
        config.machine.device_type, config.vis = self.device, "tensorboard"
        config.cuda_graphs = self.cuda_graphs
        data = config.pipeline.datamanager
        data.data = data.dataparser.data = self.data
        data.features = "all" if features else "none"
        data.train_num_rays_per_batch = self.sizes.rays
        config.max_num_iterations = steps
        return config

    def _pipeline(self, features: bool = False) -> Any:
        """An untrained model on the scene."""
        config = self._config(features)
        config.settle()
        return config.pipeline.setup(device=self.device, test_mode="val")

    def _step(self) -> dict[str, Any]:
        """A step of all layers, the optimizer included, and what it moves and computes."""
        pipe = self._pipeline()
        step = pipe.model.train().schedule.moving_start_step
        parameters = [parameter for group in pipe.get_param_groups().values() for parameter in group]
        optimizer = torch.optim.Adam(parameters, lr=1e-4, eps=1e-15)

        def run() -> None:
            optimizer.zero_grad()
            _, losses, _ = pipe.get_train_loss_dict(step)
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()

        taken = measure(run, self.sizes.repeats)
        with FlopCounterMode(display=False) as flops, Traffic() as traffic:
            run()
        return {"rays": self.sizes.rays, **taken, "flop": flops.get_total_flops(), "bytes": traffic.bytes}

    def _camera(self, pipe: Any, size: tuple[int, int]) -> Any:
        camera, _ = pipe.datamanager.next_eval_image(0)
        camera.rescale_output_resolution(size[0] / int(camera.width.flatten()[0]))
        return camera

    def _view(self) -> dict[str, Any]:
        """A view with all outputs, of the geometry alone, and the same in half precision."""
        pipe = self._pipeline()
        pipe.model.update_to_step(pipe.model.schedule.joint_start_step)
        camera = self._camera(pipe, self.sizes.view)
        taken = {}
        for half in ("off", "on"):
            pipe.model.config.half_precision = half
            taken[half] = measure(lambda: pipe.model.get_outputs_for_camera(camera), self.sizes.repeats)
        return {**taken["off"], "half_precision": taken["on"]}

    def _query(self) -> dict[str, Any]:
        """A phrase that was never asked, about a view that is rendered."""
        from divff_nerfstudio.evaluation.trained_scene import TrainedScene

        pipe = self._pipeline(features=True)
        pipe.model.update_to_step(pipe.model.schedule.joint_start_step)
        view = TrainedScene(pipe.model, pipe.datamanager, pipe.query).render(self._camera(pipe, self.sizes.view))
        words = (f"{colour} {thing}" for thing in ("mug", "pan", "bowl", "jar") for colour in map(str, range(999)))
        return measure(lambda: view.ask(next(words)), self.sizes.repeats)

    def _trained(self, features: bool, steps: int | None, folder: str) -> tuple[Any, float]:
        """A training of the method as `ns-train` does it, and how long its steps took."""
        from nerfstudio.utils import writer

        config = self._config(features, steps)
        config.output_dir, config.experiment_name, config.timestamp = Path(tempfile.mkdtemp(dir=folder)), "bench", "run"
        config.viewer.quit_on_train_completion = True
        config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 1 << 30
        writer.EVENT_WRITERS.clear()
        writer.GLOBAL_BUFFER.clear()
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        begun = time.perf_counter()
        trainer.train()
        return trainer.pipeline, time.perf_counter() - begun

    def _scores(self, pipe: Any) -> dict[str, float]:
        names = ("psnr", "psnr_static_room", "moving_ap", "dynamic_ap", "actor_ap", "object_ap", "affordance_ap")
        found = pipe.get_average_eval_image_metrics()
        return {name: round(float(found[name]), 4) for name in names if name in found}

    def _minute(self) -> dict[str, Any]:
        """Scores of a training of the geometry whose length is chosen to take so long, and those in half precision."""
        with tempfile.TemporaryDirectory() as folder:
            tried = 200 if self.sizes.steps is None else self.sizes.steps
            _, taken = self._trained(False, tried, folder)
            steps = max(1, round(tried * self.sizes.seconds / taken))
            pipe, seconds = self._trained(False, steps, folder)
            scores: dict[str, Any] = self._scores(pipe)
            pipe.model.config.half_precision = "on"
            scores["half_precision"] = self._scores(pipe)
            return {"steps": steps, "seconds": round(seconds, 2), **scores}

    def _stages(self) -> dict[str, Any]:
        """Time and scores of the whole training, features included."""
        with tempfile.TemporaryDirectory() as folder:
            pipe, seconds = self._trained(True, self.sizes.steps, folder)
            return {"seconds": round(seconds, 2), **self._scores(pipe)}

    def _splat(self) -> dict[str, Any]:
        """Pictures and steps of divff-splat."""
        width, height = self.sizes.splat_view
        splat = Splat(
            data=self.data,
            gaussians=self.sizes.gaussians,
            width=width,
            height=height,
            repeats=self.sizes.repeats,
            device=self.device,
        )
        return splat.results()

    def _segments(self) -> dict[str, Any]:
        """SAM 2.1's masks of a picture, with random weights."""
        if self.device != "cuda":
            return Segments(size="tiny", points_per_side=1, repeats=1).results()
        return Segments().results()

    def _compare(self) -> dict[str, Any] | None:
        """Where in divff-paper's time divff has what divff-paper has in all of it."""
        if not self.compare_minutes:
            return None
        with tempfile.TemporaryDirectory() as folder:
            compare = Compare(
                data=self.data,
                methods=("divff", "divff-paper"),
                minutes=self.compare_minutes,
                output=Path(folder),
                device=self.device,
            )
            return compare.main()["reached"]
