"""A run's folder, and where it and what it was trained on lie now."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from divff_nerfstudio.errors import DivffError

_CHECKPOINT = re.compile(r"step-(\d{9,12})\.ckpt")


class RunError(DivffError):
    """A run directory is not what a command needs."""


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


def relocate(config: Any, load_config: Path, data: Path | None = None) -> None:
    """Settles where a run, its scene, and what else lies outside of it, are now.

    Args:
        config: The run's configuration, which is changed.
        load_config: Its config.yml.
        data: Folder of its scene; None: where the file says, a relative one seen from any folder above the run.

    Raises:
        RunError: If the scene is missing.
    """
    folder = Path(load_config).resolve().parent
    _move(config, folder)
    _find_scene(config, Path(load_config), folder, data)


def _move(config: Any, folder: Path) -> None:
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
