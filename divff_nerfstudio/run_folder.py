"""A run's folder, and where it and what it was trained on lie now."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.schema import read_text

KEPT = "things"
"""Folder beside a run's config.yml in which rendered depths are kept, and what is told of things."""
_MAX_BYTES = 2**20
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


def scene_named(load_config: Path) -> Path | None:
    """Folder of the scene that a run names, read off its config.yml without building anything.

    Args:
        load_config: The run's config.yml.

    Returns:
        None where the file does not say it plainly, or the scene is not there: `relocate` tells why.
    """
    folder = Path(load_config).resolve().parent
    try:
        node = yaml.compose(read_text(load_config, _MAX_BYTES), Loader=yaml.SafeLoader)
        manager = _entry(_entry(node, "pipeline"), "datamanager")
        for owner in (manager, _entry(manager, "dataparser")):
            parts = _entry(owner, "data")
            if isinstance(parts, yaml.SequenceNode) and parts.value:
                scene = _found(folder, folder, Path(*(str(part.value) for part in parts.value)), "meta.json")
                return scene if (scene / "meta.json").is_file() else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    return None


def _entry(node: yaml.Node | None, key: str) -> yaml.Node | None:
    """What stands under a key of a mapping; None if there is none."""
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)


def relocate(config: Any, load_config: Path, data: Path | None = None) -> None:
    """Settles where a run, its scene, and what else lies outside of it, are now.

    Args:
        config: The run's configuration, which is changed.
        load_config: Its config.yml.
        data: Folder of its scene; None: where the file says, a relative one seen from any folder above the run.

    Raises:
        RunError: If the scene is missing.
    """
    folder, old = Path(load_config).resolve().parent, config.get_base_dir()
    _move(config, folder, old)
    _find_scene(config, Path(load_config), folder, old, data)


def resolve_places(config: Any) -> None:
    """Has a run name its places so that it opens from every working directory.

    Args:
        config: The run's configuration, which is changed: relative places are those seen from here.
    """
    manager = config.pipeline.datamanager
    owners = (
        (config, ("data", "output_dir", "load_dir", "load_checkpoint")),
        (manager, ("data", "feature_dir")),
        (manager.dataparser, ("data", "video_dir")),
        (config.pipeline.model, ("autoencoder", "points")),
    )
    for owner, names in owners:
        for name in names:
            if (place := getattr(owner, name, None)) is not None:
                # A link stays what the user calls the place by; only what lies above a folder needs to be looked up.
                setattr(owner, name, place.resolve() if ".." in place.parts else place.absolute())


def _move(config: Any, folder: Path, old: Path) -> None:
    """Moves the places inside the run to where its folder lies now."""
    config.run_dir = folder
    if config.load_dir is not None and config.load_dir.is_relative_to(old):  # that of an imported run
        config.load_dir = folder / config.load_dir.relative_to(old)
    for owner in (config.pipeline.datamanager, config.pipeline.datamanager.dataparser, config.pipeline.model):
        for entry in fields(owner):
            value = getattr(owner, entry.name)
            if isinstance(value, Path) and value.is_relative_to(old) and value != old:
                setattr(owner, entry.name, folder / value.relative_to(old))


def _find_scene(config: Any, load_config: Path, folder: Path, old: Path, data: Path | None) -> None:
    """Settles where the scene, and what else lies outside of the run, is."""
    manager = config.pipeline.datamanager
    parser = manager.dataparser
    written = manager.data if manager.data is not None else parser.data
    scene = _found(folder, old, written, "meta.json") if data is None else Path(data)
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
        setattr(owner, name, _found(folder, old, place))


def _found(folder: Path, old: Path, place: Path, inside: str = "") -> Path:
    """Where a place that a run names is now; as it is named if it is nowhere.

    It is looked for where it is named, a relative one as seen from the folders above the run, the nearest first, then
    from here; then where it lies if it was moved together with the run.

    Args:
        folder: The run's folder.
        old: Where that was when it was trained.
        place: The place as it is named.
        inside: What must be in it.
    """
    candidates = [above / place for above in (*folder.parents, Path.cwd())]
    if place.is_absolute() and old.is_absolute():
        candidates.append(Path(os.path.normpath(folder / os.path.relpath(place, old))))
    return next((path for path in candidates if (path / inside if inside else path).exists()), place)
