"""All figures that a GPU is to reach, in one run, each beside its aim, and beside what the card can do."""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Optional
from unittest import mock

import torch
import tyro
from bench_features import Segments
from bench_splat import Splat
from card_limits import Limits, Precision, Work, work_of
from compare_methods import Compare, iterate
from stopwatch import machine, measure
from timed_training import ready, time_step, time_training

from divff_nerfstudio.errors import DivffError

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
OF_FEATURES = frozenset(("step", "stages", "view", "query", "splat"))
"""Figures that need a scene's features."""
_QUESTION = "mug"


@dataclass
class Sizes:
    """What is measured; smaller where it is only tried out."""

    rays: int = 4096
    """Rays of a step."""
    view: tuple[int, int] = (228, 128)
    """Width and height of the view."""
    seconds: float = 60.0
    """Time after which the geometry is scored."""
    tried: tuple[int, int, int] = (200, 500, 1500)
    """Steps of trainings before that: of one for which kernels are compiled, and two that tell what a step takes."""
    steps: Optional[int] = None  # noqa: UP045
    """Steps of the training with features; None: the method's own."""
    gaussians: int = 300_000
    """Gaussians of `divff-splat`."""
    splat_view: tuple[int, int] = (456, 256)
    """Width and height of its view."""
    repeats: int = 20
    """Of how many runs a median is taken, and of how many steps a tenth of a mean."""
    product: int = 8192
    """Side of the matrices whose product tells what the card can compute."""
    copied: int = 2**31
    """Bytes whose copy tells what it can move."""
    shrink: tyro.conf.Suppress[Callable[[Any], Any] | None] = None
    """Makes a model's configuration smaller."""


@dataclass
class Gpu:
    """Takes the figures of docs/performance.md that need a GPU; prints JSON, with an error in place of what fails."""

    data: Path
    """A scene folder in the EPIC-Diff layout, with its features: 257 frames of 228x128, or near that."""
    compare_minutes: float = 0.0
    """How long divff-paper and divff are trained for the comparison; 0: it is left out."""
    only: tuple[str, ...] = ()
    """Which figures are taken; none given: all."""
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """Whether trainings capture their steps (`step` is taken both ways)."""
    tf32: bool = True
    """Whether they take matrix products in TF32."""
    device: tyro.conf.Suppress[Literal["cuda", "cpu"]] = "cuda"
    """Where; elsewhere than on a GPU it is only tried out."""
    sizes: Sizes = field(default_factory=Sizes)
    """What is measured."""

    def main(self) -> dict[str, Any]:
        """Takes the figures one after the other and prints them.

        Raises:
            DivffError: If the scene has not the features that they need, or one is unknown.
        """
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
        chosen = [name for name in self.only or parts if name != "compare" or self.compare_minutes]
        self._require_features(chosen, parts.keys())
        self._limits = Limits.of(self.device, self.sizes.product, self.sizes.copied, self.sizes.repeats)
        found: dict[str, Any] = {}
        for name in (name for name in parts if name in chosen):
            try:
                found[name] = {"aim": AIMS[name], "found": parts[name]()}
            except Exception as error:  # one that fails shall not take the others with it
                found[name] = {"aim": AIMS[name], "error": f"{type(error).__name__}: {error}"[:300]}
        report = {"machine": machine(), "device": self.device, "limits": vars(self._limits), "figures": found}
        print(json.dumps(report, indent=2))
        return report

    def _require_features(self, chosen: Iterable[str], known: Iterable[str]) -> None:
        if unknown := sorted(set(chosen) - set(known)):
            raise DivffError(f"--only {unknown[0]}: there is no such figure, give some of {', '.join(known)}.")
        asking = [name for name in known if name in OF_FEATURES.intersection(chosen)]
        _, stored = self._config(features=True).pipeline.datamanager.survey()
        if asking and not stored:
            others = " ".join(name for name in known if name not in OF_FEATURES)
            raise DivffError(
                f"{self.data} has no features, of which {', '.join(asking)} are: run `divff extract --data "
                f"{self.data}` first, or take the others (--only {others})."
            )

    # Trainings.

    def _config(self, features: bool, steps: int | None = None) -> Any:
        """The default method on the scene."""
        from divff_nerfstudio.registry import divff

        config: Any = copy.deepcopy(divff.config)
        if self.sizes.shrink is not None:
            self.sizes.shrink(config.pipeline.model)
        config.machine.device_type = self.device
        config.cuda_graphs, config.tf32 = self.cuda_graphs, self.tf32
        data = config.pipeline.datamanager
        data.data = data.dataparser.data = self.data
        data.features = "auto" if features else "none"
        data.train_num_rays_per_batch = self.sizes.rays
        config.max_num_iterations = steps
        return config

    @property
    def _trained_in(self) -> Precision:
        return "high" if self.tf32 else "highest"

    def _step(self) -> dict[str, Any]:
        """A step of each part of the schedule, by a graph where it can be captured and without, optimizers included."""
        parts: dict[str, Any] = {}
        work: dict[str, Work] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, mode in (("one_by_one", "off"), ("captured", "auto")):
                config = self._config(features=True, steps=self.sizes.steps)
                config.cuda_graphs = mode
                trainer = ready(config, folder)
                schedule = trainer.pipeline.model.schedule
                first = {
                    "static_layer": 0,
                    "all_layers": schedule.moving_start_step,
                    "heads": schedule.heads_start_step,
                    "everything": schedule.joint_start_step,
                }
                for part, step in first.items():
                    taken = time_step(trainer, step, 10 * self.sizes.repeats)
                    if part not in work:  # what a graph does cannot be counted
                        work[part] = work_of(partial(iterate, trainer, step))
                    share = self._limits.beside(work[part], taken["seconds"], self._trained_in)
                    parts.setdefault(part, {"step": step})[name] = taken | share
        return {"rays": self.sizes.rays, **parts}

    def _evidence(self, features: bool) -> float:
        """Seconds that it takes to find what moves, which is kept with the scene after the first training."""
        from divff_nerfstudio.evidence import labels

        data = self._pipeline(features).datamanager
        scene, indices = data.train_dataset.scene, data.train_dataset.scene_indices.numpy()
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.object(labels, "cache_folder", lambda root: Path(folder)),
        ):
            begun = time.perf_counter()
            labels.labels(scene, indices, data.feature_stores.get("image"), self.device)
            return time.perf_counter() - begun

    def _trained(self, features: bool, steps: int | None, folder: str) -> tuple[Any, float]:
        """A training of the method, and how many seconds its steps took."""
        trainer = ready(self._config(features, steps), folder, "test")
        return trainer.pipeline, time_training(trainer)

    def _scores(self, pipe: Any) -> dict[str, float]:
        names = ("psnr", "psnr_static_room", "moving_ap", "dynamic_ap", "actor_ap", "object_ap", "affordance_ap")
        found = pipe.get_average_eval_image_metrics()
        return {name: round(float(found[name]), 4) for name in names if name in found}

    def _minute(self) -> dict[str, Any]:
        """Scores of a training of the geometry that is made so long that its steps take that time, and those in half
        precision."""
        evidence = self._evidence(False)
        with tempfile.TemporaryDirectory() as folder:
            (_, _), (short, less), (long, more) = (
                (steps, self._trained(False, steps, folder)[1]) for steps in self.sizes.tried
            )
            a_step = max((more - less) / (long - short), 0.1 * more / long)
            steps = max(1, long + round((self.sizes.seconds - more) / a_step))
            pipe, seconds = self._trained(False, steps, folder)
            length = {"steps": steps, "chosen_by": "seconds_of_steps"}
            found = {**length, **_of_time(seconds, evidence), **self._scores(pipe)}
            pipe.model.config.half_precision = "on"
            return {**found, "half_precision": self._scores(pipe)}

    def _stages(self) -> dict[str, Any]:
        """Time and scores of the whole training, features included, its kernels compiled before."""
        evidence = self._evidence(True)
        with tempfile.TemporaryDirectory() as folder:
            self._trained(True, self.sizes.tried[0], folder)
            pipe, seconds = self._trained(True, self.sizes.steps, folder)
            return {**_of_time(seconds, evidence), **self._scores(pipe)}

    # Views and questions.

    def _pipeline(self, features: bool = True) -> Any:
        """An untrained model on the scene, at the end of its schedule."""
        config = self._config(features)
        config.settle()
        pipe = config.pipeline.setup(device=self.device, test_mode="test")
        pipe.model.update_to_step(pipe.model.schedule.joint_start_step)
        return pipe

    def _camera(self, pipe: Any, size: tuple[int, int]) -> Any:
        camera, _ = pipe.datamanager.next_eval_image(0)
        camera.rescale_output_resolution(size[0] / int(camera.width.flatten()[0]))
        return camera

    def _view(self) -> dict[str, Any]:
        """Views with all outputs, features as colours and an answer among them, and with few, and in half precision."""
        from divff_nerfstudio.models.view import PICTURES

        pipe = self._pipeline()
        camera = self._camera(pipe, self.sizes.view)
        if pipe.query.kinds:
            pipe.query.ask(text=_QUESTION)
        asked: dict[str, Callable[[], Any]] = {
            "all_outputs": lambda: pipe.model.get_outputs_for_camera(camera),
            "pictures": lambda: pipe.model.render(camera, outputs=PICTURES).pictures,
            "colours": lambda: pipe.model.render(camera, outputs=("rgb",)).pictures,
        }
        found: dict[str, Any] = {"outputs": list(asked["all_outputs"]())}
        for name, view in asked.items():
            taken = measure(view, self.sizes.repeats)
            found[name] = taken | self._limits.beside(work_of(view), taken["seconds"], "highest")
        pipe.model.config.half_precision = "on"
        found["half_precision"] = {name: measure(view, self.sizes.repeats) for name, view in asked.items()}
        return found

    def _query(self) -> dict[str, Any]:
        """A phrase that was never asked, about a view that is rendered."""
        from divff_nerfstudio.evaluation.trained_scene import TrainedScene

        pipe = self._pipeline()
        view = TrainedScene(pipe.model, pipe.datamanager, pipe.query).render(self._camera(pipe, self.sizes.view))
        words = (f"{colour} {thing}" for thing in ("mug", "pan", "bowl", "jar") for colour in map(str, range(999)))
        return measure(lambda: view.ask(next(words)), self.sizes.repeats)

    # Other methods.

    def _splat(self) -> dict[str, Any]:
        """Views and steps of divff-splat."""
        width, height = self.sizes.splat_view
        splat = Splat(
            data=self.data,
            gaussians=self.sizes.gaussians,
            width=width,
            height=height,
            repeats=self.sizes.repeats,
            threads=torch.get_num_threads(),
            device=self.device,
        )
        found, work = splat.results()
        for name, each in work.items():
            precision = self._trained_in if name == "between_refinements" else "highest"
            found[name] |= self._limits.beside(each, found[name]["seconds"], precision)
        return found

    def _segments(self) -> dict[str, Any]:
        """SAM 2.1's masks of a picture, with random weights."""
        if self.device != "cuda":
            return Segments(size="tiny", points_per_side=1, repeats=1).results()
        return Segments().results()

    def _compare(self) -> dict[str, Any]:
        """Where in divff-paper's time divff has what divff-paper has in all of it."""
        with tempfile.TemporaryDirectory() as folder:
            compare = Compare(
                data=self.data,
                methods=("divff", "divff-paper"),
                minutes=self.compare_minutes,
                output=Path(folder),
                device=self.device,
                threads=torch.get_num_threads(),
            )
            return compare.main()["reached"]


def _of_time(steps: float, evidence: float) -> dict[str, float]:
    """Seconds of a training: of its steps, of what comes before the first, and of both."""
    found = {"seconds_of_steps": steps, "seconds_of_evidence": evidence, "seconds": steps + evidence}
    return {name: round(value, 2) for name, value in found.items()}
