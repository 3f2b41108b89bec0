"""Options that are typed beside ``ns-train --load-config FILE``, which takes the file's in place of all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from divff_nerfstudio.run_folder import RunError

_KEPT = re.compile(
    r"load_(dir|step|checkpoint)|timestamp|experiment_name|output_dir|max_num_iterations|steps_per_\w+|vis|"
    r"save_only_latest_checkpoint|machine\.device_type|(viewer|logging)\..+"
)
"""What another training may have otherwise: from where it goes on, where and how often it is written, how long it is,
who looks on, and what computes it."""
_SCENE = ("data", "pipeline.datamanager.data", "pipeline.datamanager.dataparser.data")
"""Where the scene may be typed; nerfstudio lets each before the next decide."""


def take_typed(config: Any, typed: Any, usual: Any, path: Path) -> None:
    """Has a configuration that was read from a file keep what was typed beside it.

    Args:
        config: The one that was read; it is changed.
        typed: The one that was typed.
        usual: What the latter is where nothing is typed: its method as it is registered.
        path: The file, for errors.

    Raises:
        RunError: If another method is typed, or an option that the file decides.
    """
    if typed.method_name != config.method_name:
        raise RunError(
            f"{path} is of a run of {config.method_name}, and {typed.method_name} was typed: type `ns-train "
            f"{config.method_name}`."
        )
    given = [name for name in differing(typed, usual) if name != "load_config"]
    others = [name for name in given if not _KEPT.fullmatch(name) and name not in _SCENE]
    if others:
        option = others[0].replace("_", "-")
        raise RunError(
            f"--load-config takes the options of {path}, and --{option} is typed beside it: leave it out, or type all "
            "options without --load-config."
        )
    scene = next((name for name in _SCENE if name in given), None)
    taken = {name: name for name in given} | ({} if scene is None else dict.fromkeys(_SCENE, scene))
    for name, source in taken.items():
        *parts, last = name.split(".")
        setattr(reduce(getattr, parts, config), last, reduce(getattr, source.split("."), typed))
    if typed.timestamp != usual.timestamp:
        config.read_from_file = False  # its folder is chosen


def differing(typed: Any, usual: Any, prefix: str = "") -> Iterator[str]:
    """Names of the options in which two configurations differ, with dots between."""
    for entry in fields(typed):
        one, other = getattr(typed, entry.name), getattr(usual, entry.name, None)
        if is_dataclass(one) and not isinstance(one, type) and type(one) is type(other):
            yield from differing(one, other, f"{prefix}{entry.name}.")
        elif one != other:
            yield f"{prefix}{entry.name}"
