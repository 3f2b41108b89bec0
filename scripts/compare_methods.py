"""Trains methods on one scene for the same time, and draws how good they are after how much time and arithmetic."""

from __future__ import annotations

import copy
import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from nerfstudio.engine.callbacks import TrainingCallbackLocation
from nerfstudio.engine.trainer import Trainer, TrainerConfig, writer
from nerfstudio.utils.rich_utils import CONSOLE
from torch.utils.flop_counter import FlopCounterMode

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.data.epic_diff import EpicDiffDataParserConfig
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.resumption import random_state, restore_random_state

SCORES = {"psnr": "PSNR (dB)", "moving_ap": "moving mask (AP)", "psnr_static_room": "static room (PSNR, dB)"}
"""What is compared, and how the plot calls it."""
_SETTINGS = ("data", "minutes", "at", "frames", "device", "threads", "features", "seed")


@dataclass
class Compare:
    """Trains methods for the same time on the same frames, device and threads; the time of evaluations is not counted.

    A method goes on from its last evaluation where it was stopped; one that is finished is not trained again.
    """

    data: Path
    """A scene folder in the EPIC-Diff layout."""
    methods: tuple[str, ...] = ("divff", "divff-paper")
    """Names of registered methods; the last one is what the others are held against."""
    minutes: float = 10.0
    """Minutes of training of each method; one whose own schedule is shorter ends with it."""
    iterations: tuple[int, ...] = ()
    """Length of the methods' schedules in steps, in their order. 0, or left out: the method's own."""
    at: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
    """Shares of the time after which the methods are evaluated."""
    frames: int = 0
    """Held-out frames that are looked at, evenly spaced. 0: all of them."""
    output: Path = Path("outputs/compare")
    """Folder for compare.json, compare.png and the runs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto: a GPU where there is one."""
    threads: int = 1
    """Threads of PyTorch."""
    features: bool = False
    """Whether the scene's features are distilled, too."""
    seed: int = 0
    """Seed of each method."""

    def main(self) -> dict[str, Any]:
        """Trains, writes compare.json after each evaluation, and draws compare.png at the end.

        Returns:
            What compare.json holds.

        Raises:
            DivffError: If a method is not registered, or the folder holds a comparison with other settings.
        """
        torch.set_num_threads(self.threads)
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        lengths = (*self.iterations, *[0] * len(self.methods))
        configs = {name: registered(name) for name in self.methods}
        report = self._report()
        for name, length in zip(self.methods, lengths, strict=False):
            record = report["methods"].setdefault(name, {"iterations": length, "finished": False, "points": []})
            if record["iterations"] != length:
                raise DivffError(f"{self._json} has {name} with another number of iterations: choose another --output.")
            if not record["finished"]:
                self._train(configs[name], record, lambda: self._write(report))
        report["reached"] = reached({name: report["methods"][name]["points"] for name in self.methods})
        self._write(report)
        with atomic_path(self.output / "compare.png") as temporary:
            plot(report["methods"], temporary)
        for score, entry in report["reached"].items():
            for name, share in entry["share_of_time"].items():
                told = "not reached" if share is None else f"reached after {share:.1%} of the time"
                CONSOLE.print(f"{score} {entry['value']:.2f} of {self.methods[-1]}: {told} by {name}")
        CONSOLE.print(f"The curves lie in {self._json} and compare.png beside it.")
        return report

    @property
    def _json(self) -> Path:
        return self.output / "compare.json"

    def _report(self) -> dict[str, Any]:
        """The report to go on with: a new one, or that of the folder."""
        settings = {name: getattr(self, name) for name in _SETTINGS} | {"data": str(self.data.resolve())}
        settings["at"] = list(self.at)
        if not self._json.is_file():
            gpu = torch.cuda.get_device_name() if self.device == "cuda" else None
            return {"settings": settings, "gpu": gpu, "methods": {}}
        report = json.loads(self._json.read_text(encoding="utf-8"))
        other = [name for name, value in settings.items() if report["settings"].get(name) != value]
        if other:
            raise DivffError(
                f"{self._json} was made with another {', '.join(other)}: choose another --output, or remove it."
            )
        return report

    def _write(self, report: dict[str, Any]) -> None:
        with atomic_path(self._json) as temporary:
            temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")

    def _config(self, config: TrainerConfig, length: int, resume: bool) -> TrainerConfig:
        """A registered configuration for this comparison."""
        config = copy.deepcopy(config)
        config.machine.device_type = "cuda" if self.device == "cuda" else "cpu"
        config.machine.seed = self.seed
        config.vis = "tensorboard"
        config.output_dir, config.experiment_name, config.timestamp = self.output, "runs", "compared"
        if length:
            config.max_num_iterations = length
        data: Any = config.pipeline.datamanager
        if not isinstance(data.dataparser, EpicDiffDataParserConfig):
            data.dataparser = EpicDiffDataParserConfig()
        data.data = data.dataparser.data = self.data
        if not self.features and hasattr(data, "features"):
            data.features = "none"
        if resume:
            config.load_dir = config.get_checkpoint_dir()
        return config

    def _train(self, registered_config: TrainerConfig, record: dict[str, Any], write: Callable[[], None]) -> None:
        """Trains a method to the end of the time or of its schedule."""
        points: list[dict[str, Any]] = record["points"]
        config = self._config(registered_config, record["iterations"], bool(points))
        torch.manual_seed(self.seed)
        trainer: Trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup(test_mode="test")
        if not points:
            config.save_config()
        self._thin(trainer)
        step, last = trainer._start_step, config.max_num_iterations
        spent = {key: points[-1][key] if points else 0.0 for key in ("seconds", "cpu_seconds", "flop")}
        for target in sorted(60 * self.minutes * share for share in self.at):
            if spent["seconds"] >= target:
                continue
            if step >= last:
                break
            flop, first = flop_of_step(trainer, step), step
            while step < last and (step == first or spent["seconds"] < target):
                wall, cpu = time.perf_counter(), time.process_time()
                iterate(trainer, step)
                if self.device == "cuda":
                    torch.cuda.synchronize()
                spent["seconds"] += time.perf_counter() - wall
                spent["cpu_seconds"] += time.process_time() - cpu
                spent["flop"] += flop
                step += 1
            scores = trainer.pipeline.get_average_eval_image_metrics(step=step - 1)
            trainer.save_checkpoint(step - 1)
            scores = {key: float(value) for key, value in scores.items() if math.isfinite(value)}
            points.append({"step": step, **spent, "flop_per_step": flop, **scores})
            told = "  ".join(f"{key} {scores[key]:.3f}" for key in SCORES if key in scores)
            CONSOLE.print(f"{config.method_name}: step {step}, {spent['seconds']:.0f} s  {told}")
            write()
        record["finished"] = True
        record["parameters"] = sum(parameter.numel() for parameter in trainer.pipeline.model.parameters())
        writer.EVENT_WRITERS.clear()
        writer.EVENT_STORAGE.clear()

    def _thin(self, trainer: Trainer) -> None:
        """Leaves only some of the held-out frames to be evaluated."""
        loader: Any = getattr(trainer.pipeline.datamanager, "fixed_indices_eval_dataloader", None)
        if self.frames and hasattr(loader, "image_indices"):
            there = list(loader.image_indices)
            count = min(self.frames, len(there))
            loader.image_indices = [there[(2 * i + 1) * len(there) // (2 * count)] for i in range(count)]


def registered(name: str) -> TrainerConfig:
    """The configuration of a method that nerfstudio finds.

    Raises:
        DivffError: If there is none of that name.
    """
    from nerfstudio.configs.method_configs import all_methods

    if name not in all_methods:
        raise DivffError(f"There is no method {name}: install its package, or choose from {', '.join(all_methods)}.")
    return all_methods[name]


def iterate(trainer: Trainer, step: int) -> None:
    """One training step as nerfstudio does it, without logging."""
    trainer.step = step
    trainer.pipeline.train()
    for callback in trainer.callbacks:
        callback.run_callback_at_location(step, location=TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
    trainer.train_iteration(step)
    for callback in trainer.callbacks:
        callback.run_callback_at_location(step, location=TrainingCallbackLocation.AFTER_TRAIN_ITERATION)


def flop_of_step(trainer: Trainer, step: int) -> int:
    """Arithmetic of a training step, forward and backward; it is not taken, and nothing is drawn for it."""
    resident = bool(trainer.pipeline.datamanager.resident)
    state = random_state(resident)
    trainer.pipeline.train()
    with flop_counter() as counter:
        _, losses, _ = trainer.pipeline.get_train_loss_dict(step=step)
        functools.reduce(torch.add, losses.values()).backward()
    trainer.optimizers.zero_grad_all()
    restore_random_state(state, resident)
    return counter.get_total_flops()


def flop_counter() -> FlopCounterMode:
    """Counts the matrix products of a step, forward and backward, and the weighted sums of planes' rows."""
    bag: Any = torch.ops.aten

    def rows_times_channels(rows: torch.Size, channels: int) -> int:
        return 2 * math.prod(rows) * channels

    return FlopCounterMode(
        display=False,
        custom_mapping={
            bag._embedding_bag: lambda table, rows, *_, **__: rows_times_channels(rows, table[-1]),
            bag._embedding_bag_backward: lambda grad, rows, *_, **__: rows_times_channels(rows, grad[-1]),
            bag._embedding_bag_per_sample_weights_backward: lambda grad, _, rows, *__, **___: rows_times_channels(
                rows, grad[-1]
            ),
            torch.ops.divff.rows_gradient: lambda grad, rows, *_, **__: rows_times_channels(rows, grad[-1]),
        },
    )


def reached(curves: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """When each method has first been as good as the last method is at its end.

    Args:
        curves: Points by method, in the order of time.

    Returns:
        For each score of the last method's last point its value, and for the other methods the share of the last
        method's seconds and FLOP that they needed; None where they did not get there.
    """
    *others, reference = curves
    if not curves[reference]:
        return {}
    end = curves[reference][-1]
    found = {}
    for score in (score for score in SCORES if score in end):
        entry: dict[str, Any] = {"value": end[score], "share_of_time": {}, "share_of_flop": {}}
        for name in others:
            first = next((point for point in curves[name] if point.get(score, -math.inf) >= end[score]), None)
            for share, key in (("share_of_time", "seconds"), ("share_of_flop", "flop")):
                entry[share][name] = first[key] / end[key] if first is not None and end[key] else None
        found[score] = entry
    return found


def plot(methods: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws every score against seconds and against FLOP, both on logarithmic axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scores = [name for name in SCORES if any(name in point for each in methods.values() for point in each["points"])]
    figure = Figure(figsize=(4.2 * max(1, len(scores)), 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, max(1, len(scores)), squeeze=False)
    for row, (key, label) in zip(axes, (("seconds", "seconds of training"), ("flop", "FLOP of training")), strict=True):
        for axis, score in zip(row, scores, strict=False):
            for name, record in methods.items():
                seen = [(point[key], point[score]) for point in record["points"] if score in point]
                axis.plot(*zip(*seen, strict=True), marker="o", markersize=4, label=name) if seen else None
            axis.set_xscale("log")
            axis.set_xlabel(label)
            axis.set_ylabel(SCORES[score])
            axis.grid(alpha=0.3)
            axis.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    tyro.cli(Compare).main()
