"""A look at what nerfstudio's own commands are about to read: their loader of ``config.yml`` builds any Python object.

``ns-eval``, ``ns-render``, ``ns-viewer``, ``ns-export`` and ``ns-train --load-config`` import the registered methods
before they read a file, so that the look can stand here. Files of our methods are read by `run_config`; those of other
methods as before, unless they ask for what no configuration needs.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from enum import Enum
from typing import Any

import yaml

from divff_nerfstudio.files import UnsafeConfigError
from divff_nerfstudio.run_config import names_one_of, parse_config

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
_PLAIN = frozenset(
    ("none", "bool", "str", "unicode", "bytes", "int", "long", "float", "complex", "list", "tuple", "dict")
)


def guard_configs(configs: Sequence[Any]) -> None:
    """Has `yaml.load` look at configurations first, where it would build any object.

    Args:
        configs: Configurations of our methods.
    """
    if getattr(yaml.load, "guards", None) is not None:
        return
    usual = yaml.load

    def load(stream: Any, Loader: Any) -> Any:
        if Loader in (yaml.Loader, yaml.UnsafeLoader) and isinstance(stream, str) and "python/" in stream:
            if names_one_of(stream, configs):
                return parse_config(stream, "The run's config.yml", configs)
            if os.environ.get(TRUST) != "1":
                _look_through(stream)
        return usual(stream, Loader)

    load.guards = configs  # pyright: ignore[reportFunctionMemberAccess]
    yaml.load = load


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
