"""Values of a ``config.yml``'s YAML nodes, each by the type of the field that it is for."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig

from divff_nerfstudio.former_names import OPTIMIZERS, former_options

LATER = frozenset(
    (
        *("max_num_iterations", "train_num_rays_per_batch", "steps_per_epoch", "memory_mb"),
        *("static_start", "max_static", "max_dynamic", "max_actor"),
    )
)
"""Options for which earlier versions wrote 0 where it was not settled yet what they are: None stands for that."""
MAX_NODES = 20_000
"""Of a file; those of our runs have 400 values."""
_PATHS = re.compile(r"pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path")
_YAML = "tag:yaml.org,2002:"
_OBJECT, _CALL, _NAME, _TUPLE = (f"{_YAML}python/{kind}" for kind in ("object:", "object/apply:", "name:", "tuple"))
_GROUP = {"optimizer": AdamOptimizerConfig.__mro__[1], "scheduler": ExponentialDecaySchedulerConfig.__mro__[1]}
_TARGET = "_target"


class FaultError(ValueError):
    """What is wrong with a value, in words."""


class ConfigBuilder:
    """Builds values of nodes, each by the type of the field that it is for."""

    def __init__(self, allowed: Mapping[str, type]):
        self.allowed = allowed
        self.unknown: list[str] = []
        self._built = 0

    def build(self, node: yaml.Node, hint: Any, place: str) -> Any:
        """The value of a node.

        Args:
            node: The node.
            hint: Type that it must be of.
            place: Names of the fields that lead to it, dots between.
        """
        self._built += 1
        if self._built > MAX_NODES:
            raise FaultError("it refers to itself again and again")
        if get_origin(hint) is Annotated:
            return self.build(node, get_args(hint)[0], place)
        if get_origin(hint) in (Union, types.UnionType):
            return self._one_of(node, get_args(hint), place)
        if isinstance(hint, type) and (is_dataclass(hint) or node.tag.startswith(_OBJECT)):
            return self._object(node, hint, place)
        if isinstance(hint, type) and issubclass(hint, Enum):
            return self._member(node, hint, place)
        if isinstance(hint, type) and issubclass(hint, Path):
            return self._path(node, place)
        if get_origin(hint) in (tuple, list):
            return self._sequence(node, hint, place)
        if get_origin(hint) is dict:
            return self._mapping(node, get_args(hint)[1], place)
        return self._scalar(node, hint, place)

    def _one_of(self, node: yaml.Node, hints: Sequence[Any], place: str) -> Any:
        fault = None
        if node.tag.startswith(_OBJECT) and (kind := self.allowed.get(node.tag.removeprefix(_OBJECT))) is not None:
            plain = [get_args(hint)[0] if get_origin(hint) is Annotated else hint for hint in hints]
            hints = [hint for hint in plain if isinstance(hint, type) and issubclass(kind, hint)] or plain
        for hint in sorted(hints, key=lambda hint: hint is str):
            known = len(self.unknown)
            try:
                return self.build(node, hint, place)
            except FaultError as error:
                del self.unknown[known:]
                if fault is None or hint is not types.NoneType:
                    fault = error
        raise fault or _mismatch(place, node)

    def _object(self, node: yaml.Node, hint: type, place: str) -> Any:
        if not isinstance(node, yaml.MappingNode) or not node.tag.startswith(_OBJECT):
            raise _mismatch(place, node)
        kind = self.allowed.get(node.tag.removeprefix(_OBJECT))
        if kind is None or not is_dataclass(kind):
            raise FaultError(f"it asks for {shortened(node.tag)}, which no configuration of ours contains")
        if not issubclass(kind, hint):
            raise FaultError(f"{place or 'its root'} is a {kind.__name__} where a {hint.__name__} belongs")
        hints = _hints(kind)
        values: dict[str, Any] = {}
        renamed = former_options(hints)
        for key, value in node.value:
            name = _text(key)
            name = renamed.get(name, name)
            inner = f"{place}.{name}" if place else name
            if name in values:
                raise FaultError(f"it has {shortened(inner)} twice")
            if name == _TARGET:  # what a configuration sets up is said by its class alone
                if not isinstance(value, yaml.ScalarNode) or not value.tag.startswith(_NAME):
                    raise _mismatch(inner, value)
            elif name not in hints:
                self._look_at_unknown(value, inner)
            elif name == "optimizers" and not place:
                values[name] = self._optimizers(value, inner)
            elif name == "collate_fn":
                self._same_function(value, kind, inner)
            else:
                built = self.build(value, hints[name], inner)
                values[name] = None if name in LATER and built == 0 else built
        lacking = [each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING]
        if missing := [name for name in lacking if name not in values]:
            raise FaultError(f"{place or 'it'} lacks {missing[0]}")
        return kind(**values)

    def _look_at_unknown(self, node: yaml.Node, place: str) -> None:
        """An option of another version is left out; it may be plain, and no more."""
        plain = isinstance(node, yaml.ScalarNode) and not node.tag.startswith(f"{_YAML}python/")
        if not plain and not (isinstance(node, yaml.SequenceNode) and node.tag in (_TUPLE, f"{_YAML}seq")):
            raise FaultError(f"it has {shortened(place)}, which no configuration of ours contains")
        for each in node.value if isinstance(node, yaml.SequenceNode) else ():
            if not isinstance(each, yaml.ScalarNode) or each.tag.startswith(f"{_YAML}python/"):
                raise FaultError(f"it has {shortened(place)}, which no configuration of ours contains")
        self.unknown.append(place)

    def _optimizers(self, node: yaml.Node, place: str) -> dict[str, Any]:
        groups = {}
        for former, group in self._pairs(node, place):
            name = OPTIMIZERS.get(former, former)
            if name in groups:
                raise FaultError(f"it has {place}.{shortened(name)} twice")
            parts = self._pairs(group, f"{place}.{name}")
            if {part for part, _ in parts} != _GROUP.keys():
                raise FaultError(f"{place}.{shortened(name)} does not consist of optimizer and scheduler")
            groups[name] = {
                part: self.build(value, Union[_GROUP[part], None], f"{place}.{name}.{part}")  # noqa: UP007
                for part, value in parts
            }
        return groups

    def _same_function(self, node: yaml.Node, kind: type, place: str) -> None:
        """A function stays the one that the class has."""
        usual: Any = next(each.default for each in fields(kind) if each.name == place.rpartition(".")[2])
        if node.tag != f"{_NAME}{full_name(usual)}":
            raise FaultError(f"it asks for {shortened(node.tag)}, which no configuration of ours contains")

    def _member(self, node: yaml.Node, hint: type[Enum], place: str) -> Enum:
        """A member of an enumeration: by its value, or by its name as Python up to 3.11.3 writes it."""
        if isinstance(node, yaml.SequenceNode) and self.allowed.get(node.tag.removeprefix(_CALL)) is hint:
            for member in hint:
                if [str(member.value)] == [_text(each) for each in node.value]:
                    return member
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_CALL}builtins.getattr" and len(node.value) == 2:
            owner, name = node.value
            if owner.tag == f"{_NAME}{full_name(hint)}" and _text(name) in hint.__members__:
                return hint[_text(name)]
        raise _mismatch(place, node)

    def _path(self, node: yaml.Node, place: str) -> Path:
        """A path, written as text or in parts on any system."""
        if isinstance(node, yaml.ScalarNode) and node.tag == f"{_YAML}str":
            parts, kind = [node.value], ""
        elif isinstance(node, yaml.SequenceNode) and _PATHS.fullmatch(kind := node.tag.removeprefix(_CALL)):
            parts = [_text(each) for each in node.value]
        else:
            raise _mismatch(place, node)
        if any("\0" in part for part in parts) or sum(map(len, parts)) > 4096:
            raise FaultError(f"{place} is no path")
        return Path(PureWindowsPath(*parts).as_posix()) if "Windows" in kind else Path(*parts)

    def _sequence(self, node: yaml.Node, hint: Any, place: str) -> tuple | list:
        if not isinstance(node, yaml.SequenceNode) or node.tag not in (_TUPLE, f"{_YAML}seq"):
            raise _mismatch(place, node)
        inner = get_args(hint)
        endless = get_origin(hint) is list or (len(inner) == 2 and inner[1] is Ellipsis)
        if not endless and len(inner) != len(node.value):
            raise FaultError(f"{place} has {len(node.value)} values instead of {len(inner)}")
        kinds = [inner[0]] * len(node.value) if endless else inner
        built = (self.build(each, kind, place) for each, kind in zip(node.value, kinds, strict=True))
        return list(built) if get_origin(hint) is list else tuple(built)

    def _mapping(self, node: yaml.Node, hint: Any, place: str) -> dict[str, Any]:
        return {name: self.build(value, hint, f"{place}.{name}") for name, value in self._pairs(node, place)}

    def _pairs(self, node: yaml.Node, place: str) -> list[tuple[str, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode) or node.tag != f"{_YAML}map":
            raise _mismatch(place, node)
        pairs = [(_text(key), value) for key, value in node.value]
        if len({name for name, _ in pairs}) < len(pairs):
            raise FaultError(f"{place} has a key twice")
        return pairs

    def _scalar(self, node: yaml.Node, hint: Any, place: str) -> Any:
        if not isinstance(node, yaml.ScalarNode) or not node.tag.startswith(_YAML) or "python/" in node.tag:
            raise _mismatch(place, node)
        try:
            value = _SCALARS.construct_object(node)
        except (yaml.YAMLError, ValueError, TypeError, OverflowError):
            raise _mismatch(place, node) from None
        if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
            value = _number(value)  # 0 for 0.0, and 1e-3, which YAML takes for text
        if isinstance(value, float) and not math.isfinite(value):
            raise FaultError(f"{place} is not finite")
        wanted = get_args(hint) if get_origin(hint) is Literal else ()
        fits = any(value == each and type(value) is type(each) for each in wanted) if wanted else type(value) is hint
        if not fits and not (hint is types.NoneType and value is None):
            raise _mismatch(place, node)
        return value


_SCALARS = yaml.constructor.SafeConstructor()


def _number(value: int | str) -> float | str:
    try:
        return float(value)
    except (ValueError, OverflowError):
        return str(value)


def _text(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode) or "python/" in node.tag:
        raise FaultError(f"it asks for {shortened(node.tag)}, which no configuration of ours contains")
    return node.value


def _mismatch(place: str, node: yaml.Node) -> FaultError:
    if "python/" in node.tag and node.tag != _TUPLE:
        return FaultError(f"it asks for {shortened(node.tag)}, which no configuration of ours contains there")
    value = shortened(node.value) if isinstance(node, yaml.ScalarNode) else "a list or table"
    return FaultError(f"{place or 'its root'} is {value}, which that option cannot be")


def full_name(kind: type | Callable) -> str:
    """Module and name of a class or function."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {entry.name: hints[entry.name] for entry in fields(kind) if entry.name != _TARGET}


def shortened(text: str) -> str:
    """A text of a file for a message."""
    text = repr(text.removeprefix(_YAML))[1:-1]
    return text if len(text) <= 100 else text[:97] + "..."
