"""Opens trained runs, and says what they are."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from divff_nerfstudio.checkpoints import CheckpointError, read_run_checkpoint
from divff_nerfstudio.evaluation.trained_scene import TrainedScene
from divff_nerfstudio.files import DivffError
from divff_nerfstudio.run_config import read_config

_CHECKPOINT = re.compile(r"step-(\d{9,12})\.ckpt")


class RunError(DivffError):
    """A run directory is not what a command needs."""


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
    _relocate(config, folder)
    _find_scene(config, Path(load_config), folder, data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = config.pipeline.setup(device=device, test_mode="test")
    pipeline.eval()
    try:
        pipeline.load_pipeline(state["pipeline"], state["step"])
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint} cannot be opened: {error}") from None
    pipeline.method_name = config.method_name
    return Run(config, pipeline, state["step"])


def open_run(load_config: Path, data: Path | None = None) -> tuple[Any, int]:
    """As `load_run`.

    Returns:
        The pipeline in evaluation mode, on the test frames, and the checkpoint's step.
    """
    run = load_run(load_config, data)
    return run.pipeline, run.step


def our_configs() -> list[Any]:
    """The configurations of this package's registered methods."""
    from nerfstudio.configs.method_configs import all_methods

    return [config for config in all_methods.values() if type(config).__module__.startswith("divff_nerfstudio.")]


def last_checkpoint(folder: Path) -> Path:
    """The checkpoint of the largest step in a run's folder of checkpoints; other files there are left alone.

    Raises:
        RunError: If there is none.
    """
    named = ((_CHECKPOINT.fullmatch(path.name), path) for path in folder.glob("*") if path.is_file())
    found = [(int(match[1]), path) for match, path in named if match]
    if not found:
        raise RunError(f"{folder} has no checkpoint: train the scene with `ns-train divff`.")
    return max(found)[1]


def _relocate(config: Any, folder: Path) -> None:
    """Moves the places inside the run to where its folder lies now."""
    old = config.get_base_dir()
    config.run_dir = folder
    for owner in (config.pipeline.datamanager, config.pipeline.datamanager.dataparser, config.pipeline.model):
        for entry in fields(owner):
            value = getattr(owner, entry.name)
            if isinstance(value, Path) and value.is_relative_to(old) and value != old:
                setattr(owner, entry.name, folder / value.relative_to(old))


def _find_scene(config: Any, load_config: Path, folder: Path, data: Path | None) -> None:
    """Settles where the scene, and what else lies outside of the run, is."""
    manager = config.pipeline.datamanager
    parser = manager.dataparser
    written = manager.data if manager.data is not None else parser.data
    scene = (_seen_from(folder, written, "meta.json") or written) if data is None else Path(data)
    if not (scene / "meta.json").is_file():
        hint = "give its folder with --data" if data is None else "see to --data"
        raise RunError(f"The scene of {load_config} is not at {scene} (there is no meta.json): {hint}.")
    manager.data = parser.data = scene.absolute()
    for owner, name in ((parser, "video_dir"), (manager, "feature_dir"), (config.pipeline.model, "autoencoder")):
        place = getattr(owner, name, None)
        if place is None:
            continue
        if place.is_relative_to(written) and not place.exists():
            place = manager.data / place.relative_to(written)
        setattr(owner, name, _seen_from(folder, place) or place)


def _seen_from(folder: Path, place: Path, inside: str = "") -> Path | None:
    """A place as seen from the folders above a run, the nearest first, then from here; None if it is nowhere."""
    candidates = (above / place for above in (*folder.parents, Path.cwd()))
    return next((path for path in candidates if (path / inside if inside else path).exists()), None)


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


def open_scene(load_config: Path, data: Path | None = None) -> TrainedScene:
    """Loads a trained run as a scene that can be looked at and asked.

    Args:
        load_config: The run's config.yml.
        data: Folder of its scene, if that has moved.

    Raises:
        DivffError: As `load_run`.
    """
    pipeline, _ = open_run(Path(load_config), data)
    return TrainedScene(pipeline.model, pipeline.datamanager, pipeline.query)
