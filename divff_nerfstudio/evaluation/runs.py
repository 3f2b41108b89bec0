"""Opens trained runs, and says what they are."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from divff_nerfstudio.checkpoints import CheckpointError, read_run_checkpoint
from divff_nerfstudio.evaluation.trained_scene import TrainedScene
from divff_nerfstudio.run_config import ours_among, read_config
from divff_nerfstudio.run_folder import last_checkpoint, relocate


@dataclass
class Run:
    """A trained run, ready to be asked."""

    config: Any
    """Its configuration, with its folder and its scene's where they lie now."""
    pipeline: Any
    """Data, model and query, in evaluation mode, on the test frames."""
    step: int
    """The checkpoint's step."""


def load_run(load_config: Path, data: Path | None = None) -> Run:
    """Loads a trained run, which may come from a stranger, wherever its folder lies now.

    nerfstudio's own loader executes what the file says, and looks for checkpoints and scene where training had them.

    Args:
        load_config: The run's config.yml.
        data: Folder of its scene; None: where the file says, a relative one seen from any folder above the run.

    Raises:
        RunError: If the scene or a checkpoint is missing, or it is another method's run.
        CheckpointError: If the checkpoint is damaged, not finite, or of another scene or configuration.
        UnsafeConfigError: If the file holds anything that no configuration of ours contains.
    """
    config = read_config(load_config, our_configs())
    folder = Path(load_config).resolve().parent
    checkpoint = last_checkpoint(folder / config.relative_model_dir)
    state = read_run_checkpoint(checkpoint)
    relocate(config, load_config, data)
    pipeline = config.pipeline.setup(device=config.pipeline.model.opened_on(), test_mode="test")
    pipeline.eval()
    try:
        pipeline.load_pipeline(state["pipeline"], state["step"])
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint} cannot be opened: {error}") from None
    pipeline.method_name = config.method_name
    return Run(config, pipeline, state["step"])


def our_configs() -> list[Any]:
    """The configurations of the registered methods that are of this package's kind."""
    from nerfstudio.configs.method_configs import all_methods

    return ours_among(all_methods.values())


def run_facts(pipeline: Any, step: int) -> dict[str, str]:
    """What a report says about a run before its scores: scene, frames, step, features, hardware."""
    scene = pipeline.datamanager.train_dataset.metadata["scene"]
    counts = ", ".join(f"{len(scene.splits[split])} {split}" for split in ("train", "val", "test"))
    windows = getattr(pipeline.datamanager, "windows", None)
    cut = {} if windows is None else {"Windows": f"{len(windows)}, of {len(windows.frames[0])} training frames each"}
    return {
        "Method": getattr(pipeline, "method_name", "divff"),
        "Scene": scene.name,
        "Frames": f"{len(scene)} at {scene.width}x{scene.height} ({counts})",
        **cut,
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


def open_scene(load_config: Path, data: Path | None = None) -> TrainedScene:
    """Loads a trained run as a scene that can be looked at and asked.

    Args:
        load_config: The run's config.yml.
        data: Folder of its scene, if that has moved.

    Raises:
        DivffError: As `load_run`.
    """
    pipeline = load_run(Path(load_config), data).pipeline
    return TrainedScene(pipeline.model, pipeline.datamanager, pipeline.query)
