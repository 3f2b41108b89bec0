"""A look at what nerfstudio's own commands are about to read: their loader of ``config.yml`` builds any Python object.

``ns-eval``, ``ns-render``, ``ns-viewer``, ``ns-export`` and ``ns-train --load-config`` import the registered methods
before they read a file, so that the look can stand here. Files of our methods are read by `run_config`, and their runs
opened where they lie; those of other methods as before, unless they ask for what no configuration needs.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from divff_nerfstudio.checkpoints import read_run_checkpoint
from divff_nerfstudio.faults import tell_uncaught
from divff_nerfstudio.process import prepare_process
from divff_nerfstudio.run_config import UnsafeConfigError, names_one_of, ours_among, parse_config
from divff_nerfstudio.run_folder import RunError, last_checkpoint, relocate
from divff_nerfstudio.typed_options import take_typed

TRUST = "DIVFF_TRUST_CONFIGS"
"""Environment variable: 1 lets nerfstudio read files of other methods unseen."""
_CALLS = re.compile(r"pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path|collections\.OrderedDict|builtins\.getattr")
_NAMES = frozenset(("collections", "pathlib"))
_REFUSED = frozenset(
    (
        "nerfstudio.configs.external_methods.ExternalMethodTrainerConfig",  # offers to run its "package" in a shell
        "nerfstudio.data.dataparsers.minimal_dataparser.MinimalDataParserConfig",  # unpickles what it reads
    )
)
_YAML = "tag:yaml.org,2002:python/"
_NAMED = re.compile("python/|%")
"""Without one of these a text names no object: letters of a tag are also written as codes, or parted by a directive."""
_PLAIN = frozenset(
    ("none", "bool", "str", "unicode", "bytes", "int", "long", "float", "complex", "list", "tuple", "dict")
)


def guard_configs(configs: Sequence[Any]) -> None:
    """Has `yaml.load` look at configurations first, where it would build any object.

    Args:
        configs: Configurations of our methods; those of our kind that others have registered by then are known, too.
    """
    if getattr(yaml.load, "guards", None) is not None:
        return
    usual = yaml.load

    def load(stream: Any, Loader: Any) -> Any:
        path, named = _opens(sys._getframe(1)), isinstance(stream, str) and _NAMED.search(stream) is not None
        if path is not None and not named:
            tell_uncaught()
            raise UnsafeConfigError(
                f"{path} is refused because it describes no training: use the config.yml that ns-train wrote."
            )
        if Loader in (yaml.Loader, yaml.UnsafeLoader) and named:
            registered = getattr(sys.modules.get("nerfstudio.configs.method_configs"), "all_methods", {})
            known = [*configs, *ours_among(registered.values())]
            if names_one_of(stream, known):
                prepare_process()
                return _opened(stream, sys._getframe(1), known)
            if os.environ.get(TRUST) != "1":
                try:
                    _look_through(stream)
                except UnsafeConfigError:
                    tell_uncaught()
                    raise
        return usual(stream, Loader)

    load.guards = configs  # pyright: ignore[reportFunctionMemberAccess]
    yaml.load = load


def _opens(caller: FrameType) -> Path | None:
    """The file that nerfstudio opens a run by, where it is its `eval_setup` that calls; that passes the text alone."""
    path = caller.f_locals.get("config_path") if caller.f_code.co_name == "eval_setup" else None
    return path if isinstance(path, Path) else None


def _begins_with(caller: FrameType) -> Path | None:
    """The file whose options a training shall have, where it is ``ns-train --load-config`` that calls."""
    if (caller.f_globals.get("__name__"), caller.f_code.co_name) != ("nerfstudio.scripts.train", "main"):
        return None
    path = getattr(caller.f_locals.get("config"), "load_config", None)
    return path if isinstance(path, Path) else None


def _opened(text: str, caller: FrameType, configs: Sequence[Any]) -> Any:
    """The configuration of a run of ours; where it is opened, with its checkpoint and its scene where they lie now.

    nerfstudio looks for both where training had them, and takes any file among the checkpoints for one. A training with
    its options gets its scene, but has a folder of its own.
    """
    path, begins_with = _opens(caller), _begins_with(caller)
    place = path or begins_with
    config = parse_config(text, "The run's config.yml" if place is None else str(place), configs)
    if path is not None:
        checkpoint = last_checkpoint(path.resolve().parent / config.relative_model_dir)
        read_run_checkpoint(checkpoint)
        config.load_step = int(checkpoint.stem.rpartition("-")[2])
    if place is not None:
        folder = config.run_dir
        with contextlib.suppress(RunError):  # another scene may still be told
            relocate(config, place)
        if begins_with is not None:
            config.run_dir, typed = folder, caller.f_locals["config"]
            usual = next((each for each in configs if each.method_name == typed.method_name), None)
            if usual is not None:
                take_typed(config, typed, usual, begins_with)
    return config


def _look_through(text: str) -> None:
    """Refuses what no configuration of any method needs: calls, modules of Python's own, methods to be installed."""
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        tag = getattr(event, "tag", None) or ""
        if tag.startswith(_YAML) and not _is_usual(*tag.removeprefix(_YAML).partition(":")[::2]):
            raise UnsafeConfigError(
                f"The run's config.yml is refused because it asks for {tag.removeprefix(_YAML)[:100]}, which no run "
                f"needs: use the file that ns-train wrote, or set {TRUST}=1 if you know and trust it."
            )


def _is_usual(kind: str, name: str) -> bool:
    """Whether a tag is what configurations consist of; nothing is imported to find out."""
    if kind in _PLAIN:
        return True
    if kind == "object/apply":
        return _CALLS.fullmatch(name) is not None or _is_enum(name)
    package = name.partition(".")[0]
    foreign = package not in sys.modules or (package in sys.stdlib_module_names and package not in _NAMES)
    return kind in ("object", "name") and not foreign and name not in _REFUSED


def _is_enum(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    found = getattr(sys.modules.get(module), attribute, None)
    return isinstance(found, type) and issubclass(found, Enum)
