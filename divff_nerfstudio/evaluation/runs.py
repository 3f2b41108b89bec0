"""Opens trained runs, and says what they are."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from divff_nerfstudio.evaluation.trained_scene import TrainedScene
from divff_nerfstudio.files import DivffError, check_config_yaml

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig


class RunError(DivffError):
    """A run directory is not what a command needs."""


def open_run(load_config: Path) -> tuple[Any, int]:
    """Loads a trained run, wherever its folder lies now.

    nerfstudio's own loader executes what the file says and looks for the checkpoints below the folder that training
    was started in; here the file is checked first, and the checkpoints are those beside it.

    Args:
        load_config: The run's config.yml.

    Returns:
        The pipeline in evaluation mode, on the test frames, and the checkpoint's step.

    Raises:
        RunError: If there is no checkpoint, or it is another method's run.
        UnsafeConfigError: If the file asks for anything that no run of ours needs.
    """
    check_config_yaml(load_config)
    folder = load_config.resolve().parent

    methods: list[str] = []

    def relocated(config: TrainerConfig) -> TrainerConfig:
        methods.append(str(config.method_name))
        config.output_dir, config.experiment_name, config.method_name, config.timestamp = folder, ".", ".", "."
        if not any(config.get_checkpoint_dir().glob("step-*.ckpt")):
            raise RunError(f"{config.get_checkpoint_dir()} has no checkpoint: train the scene with `ns-train divff`.")
        return config

    from nerfstudio.utils.eval_utils import eval_setup

    _, pipeline, _, step = eval_setup(load_config, update_config_callback=relocated)
    if not hasattr(pipeline, "query"):
        raise RunError(f"{load_config} is no run of divff: give the config.yml that `ns-train divff` wrote.")
    pipeline.method_name = methods[0]  # pyright: ignore[reportArgumentType]
    return pipeline, step


def run_facts(pipeline: Any, step: int) -> dict[str, str]:
    """What a report says about a run before its scores: scene, frames, step, features, hardware."""
    scene = pipeline.datamanager.train_dataset.metadata["scene"]
    counts = ", ".join(f"{len(scene.splits[split])} {split}" for split in ("train", "val", "test"))
    return {
        "Method": getattr(pipeline, "method_name", "divff"),
        "Scene": scene.name,
        "Frames": f"{len(scene)} at {scene.width}x{scene.height} ({counts})",
        "Training steps": str(step + 1),
        "Features": ", ".join(_described(pipeline, kind) for kind in pipeline.query.kinds) or "none",
        "Hardware": hardware(),
    }


def _described(pipeline: Any, kind: str) -> str:
    """A kind of features, and what made them."""
    store = getattr(pipeline.datamanager, "feature_stores", {}).get(kind)
    return kind if store is None else f"{kind} by {store.header.source} ({store.header.model})"


def training_seconds(folder: Path) -> float | None:
    """How long the training of a run took, by the clock in its event files; None where they do not tell.

    Args:
        folder: Folder of the run. A resumed training has several files, whose durations are added.
    """
    paths = sorted(folder.glob("events.out.tfevents.*"))
    if not paths:
        return None
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    clocks = [[getattr(event, "wall_time", 0.0) for event in EventFileLoader(str(path)).Load()] for path in paths]
    return sum(clock[-1] - clock[0] for clock in clocks if clock) or None


def hardware() -> str:
    """The processors at hand, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{usable} CPU cores ({platform.machine()})"


def open_scene(load_config: Path) -> TrainedScene:
    """Loads a trained run as a scene that can be looked at and asked.

    Args:
        load_config: The run's config.yml.

    Raises:
        RunError: If there is no checkpoint, or it is another method's run.
        UnsafeConfigError: If the file asks for anything that no run of ours needs.
    """
    pipeline, _ = open_run(Path(load_config))
    return TrainedScene(pipeline.model, pipeline.datamanager, pipeline.query)
