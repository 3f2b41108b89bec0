"""Trainings for the benchmarks, made and run as `ns-train` does it, without evaluations between their steps."""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from compare_methods import iterate
from nerfstudio.engine.trainer import writer
from stopwatch import measure_stretch, wait

from divff_nerfstudio.captured_steps import FIRST_CHECKS, WARM_UP

_NEVER = 1 << 30


def ready(config: Any, folder: str, test_mode: Literal["val", "test"] = "val") -> Any:
    """A trainer that is ready to begin, in a run of its own; where others have gone before, too.

    Args:
        config: Its configuration, which is changed.
        folder: Folder for the run.
        test_mode: Split that is evaluated.
    """
    config.output_dir, config.experiment_name, config.timestamp = Path(tempfile.mkdtemp(dir=folder)), "bench", "run"
    config.vis, config.viewer.quit_on_train_completion = "tensorboard", True
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = _NEVER
    writer.EVENT_WRITERS.clear()
    writer.GLOBAL_BUFFER.clear()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup(test_mode)
    return trainer


def time_step(trainer: Any, step: int, count: int) -> dict[str, Any]:
    """The mean time of a step, taken again and again after its kernels are compiled and it is captured, if it is.

    Args:
        trainer: Ready to begin.
        step: Its place in the schedule.
        count: Steps that are timed.
    """
    for _ in range(WARM_UP + 2):
        iterate(trainer, step)
    if trainer.by_graph:  # behind the steps that are taken both ways
        for _ in range(max(FIRST_CHECKS)):
            iterate(trainer, step)
    return {**measure_stretch(lambda: iterate(trainer, step), count), "by_graph": trainer.by_graph}


def time_steps(trainer: Any, first: int, count: int) -> dict[str, float]:
    """The mean time of steps one after the other.

    Args:
        trainer: Ready to begin, or at work.
        first: The first of them.
        count: How many.
    """
    steps = itertools.count(first)
    return measure_stretch(lambda: iterate(trainer, next(steps)), count)


def time_training(trainer: Any) -> float:
    """Seconds that a training takes, from its first step to its last checkpoint."""
    begun = time.perf_counter()
    trainer.train()
    wait()
    return time.perf_counter() - begun
