"""The door for a run's ``config.yml``: our own configuration classes with plain values, and nothing else.

nerfstudio writes the file as Python objects and reads it with a YAML loader that builds any object and calls any
function. Here the file only chooses among classes that the registered methods' configurations consist of; a name in it
is looked up, never imported, and every value must be what its field's type says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Union

import yaml
from nerfstudio.engine.optimizers import AdamOptimizerConfig, RAdamOptimizerConfig
from nerfstudio.engine.schedulers import (
    CosineDecaySchedulerConfig,
    ExponentialDecaySchedulerConfig,
    MultiStepSchedulerConfig,
)
from nerfstudio.utils.rich_utils import CONSOLE

from divff_nerfstudio.config_values import MAX_NODES, ConfigBuilder, FaultError, full_name, shortened
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.autoencoder import AutoencoderConfig
from divff_nerfstudio.former_names import CLASSES
from divff_nerfstudio.plugins import classes_named, is_allowed
from divff_nerfstudio.schema import check_options

ALTERNATIVES: tuple[type, ...] = (
    AdamOptimizerConfig,
    RAdamOptimizerConfig,
    ExponentialDecaySchedulerConfig,
    CosineDecaySchedulerConfig,
    MultiStepSchedulerConfig,
    AutoencoderConfig,
)
"""Classes that may stand where a registered method has another one or none; each holds numbers alone."""
MAX_BYTES, MAX_DEPTH = 2**20, 32
"""Of a file; those of our runs have 20 kB and 8 levels."""
_PACKAGE = "divff_nerfstudio."


class UnsafeConfigError(DivffError):
    """A ``config.yml`` cannot be read, or asks for what no configuration of ours contains."""


def ours_among(configs: Iterable[Any]) -> list[Any]:
    """Those configurations that are of this package's kind, whoever wrote their methods."""
    return [each for each in configs if any(kind.__module__.startswith(_PACKAGE) for kind in type(each).__mro__)]


def allowed_classes(configs: Sequence[Any]) -> dict[str, type]:
    """The classes that a ``config.yml`` may name: those that configurations consist of, and `ALTERNATIVES`.

    Args:
        configs: Configurations of the registered methods.

    Returns:
        Dataclasses and enumerations by their full names, and by those that they had in earlier versions.
    """
    found: dict[str, type] = {full_name(kind): kind for kind in ALTERNATIVES}

    def visit(value: Any) -> None:
        if is_dataclass(value) and not isinstance(value, type):
            found[full_name(type(value))] = type(value)
            for entry in fields(value):
                visit(getattr(value, entry.name))
        elif isinstance(value, Enum):
            found[full_name(type(value))] = type(value)
        elif isinstance(value, Mapping):
            for each in value.values():
                visit(each)
        elif isinstance(value, (list, tuple)):
            for each in value:
                visit(each)

    for config in configs:
        visit(config)
    for former, now in CLASSES.items():
        moved = [name for name in found if f"{name}.".startswith(f"{now}.")]
        found |= {former + name.removeprefix(now): found[name] for name in moved}
    return found


def read_config(path: Path | str, configs: Sequence[Any]) -> Any:
    """Reads a run's ``config.yml``, which may come from a stranger.

    Options that it lacks get their defaults; those that this version does not know are left out, which is said.

    Args:
        path: The file.
        configs: Configurations of the registered methods.

    Returns:
        A configuration of the class of one of them.

    Raises:
        UnsafeConfigError: If the file is missing, too large, no YAML, or holds anything but our configuration classes
            with values of their fields' types, in one sentence that names the place.
    """
    path = Path(path)
    remedy = "use the config.yml that ns-train wrote"
    try:
        if not path.is_file():
            raise FaultError("there is no such file")
        if path.stat().st_size > MAX_BYTES:
            raise FaultError(f"it has {path.stat().st_size} bytes, and at most {MAX_BYTES} are read")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UnsafeConfigError(f"{path} is refused because it is no UTF-8 text: {remedy}.") from None
    except OSError as error:
        raise UnsafeConfigError(f"{path} cannot be read ({error.strerror or error}): see to its rights.") from None
    except FaultError as fault:
        raise UnsafeConfigError(f"{path} is refused because {fault}: {remedy}.") from None
    return parse_config(text, str(path), configs)


def parse_config(text: str, place: str, configs: Sequence[Any]) -> Any:
    """As `read_config`, of a text.

    Args:
        text: The content of a ``config.yml``.
        place: The file's name, for messages.
        configs: Configurations of the registered methods.

    Raises:
        UnsafeConfigError: As `read_config`.
    """
    try:
        builder = ConfigBuilder(allowed_classes(configs))
        config = builder.build(_composed(text), Union[tuple(type(each) for each in configs)], "")  # noqa: UP007
        _check_meaning(config)
    except (FaultError, yaml.YAMLError, RecursionError) as error:
        reason = str(error) if isinstance(error, FaultError) else "it is not readable YAML"
        raise UnsafeConfigError(
            f"{place} is refused because {reason}: use the config.yml that ns-train wrote."
        ) from None
    if builder.unknown:
        CONSOLE.print(
            f"{place} has options that this version does not know and leaves out: {', '.join(builder.unknown[:8])}"
            f"{' and more' if len(builder.unknown) > 8 else ''}.",
            markup=False,
        )
    vars(config)["read_from_file"] = True  # a training that begins with it must not write where it came from
    return config


def names_one_of(text: str, configs: Sequence[Any]) -> bool:
    """Whether a ``config.yml`` says that it is of one of these configurations, by its class or its method's name."""
    root = re.search(r"python/\w+(?:/\w+)?:([\w.]+)", text)
    method = re.search(r"^method_name: *['\"]?([\w-]+)", text, re.MULTILINE)
    classes, methods = {full_name(type(each)) for each in configs}, {each.method_name for each in configs}
    return (root is not None and root[1] in classes) or (method is not None and method[1] in methods)


def _composed(text: str) -> yaml.Node:
    """The document's nodes; nothing is built of them."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or count > MAX_NODES:
            raise FaultError("it is longer or nested deeper than any run's")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is None:
        raise FaultError("it is empty")
    return node


def leading_out(config: Any) -> str | None:
    """Name of the option of a run by which something would be written outside of its folder; None if there is none."""
    places = {
        "relative_model_dir": config.relative_model_dir,
        "logging.relative_log_dir": config.logging.relative_log_dir,
        "viewer.relative_log_filename": Path(config.viewer.relative_log_filename),
    }
    return next((name for name, place in places.items() if place.is_absolute() or ".." in place.parts), None)


def _check_meaning(config: Any) -> None:
    """Refuses numbers out of range, and what would name code or open this machine to others."""
    try:
        check_options(config)
    except ValueError as error:
        raise FaultError(str(error).rstrip(".")) from None
    except RuntimeError as error:
        raise FaultError(str(error).rstrip(".")) from None
    if config.viewer.make_share_url:
        raise FaultError("viewer.make_share_url would open the viewer to the world, which only a command line may")
    if name := leading_out(config):
        raise FaultError(f"{name} leads out of the run")
    options = config.pipeline.datamanager.extract_options
    if foreign := [name for name in classes_named([options]) if not is_allowed(name)]:
        raise FaultError(
            f"pipeline.datamanager.extract_options names {shortened(foreign[0])}, which files may not "
            "(DIVFF_PLUGINS in the environment allows it)"
        )
