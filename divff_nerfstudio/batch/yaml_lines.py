"""YAML whose values are plain texts, lists and mappings, and know in which line they stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from divff_nerfstudio.schema import MAX_DEPTH

_FAST: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
"""In C, where PyYAML was built with it, and ten times as fast. Faults are told by the one in Python."""


class YamlFaultError(ValueError):
    """What is wrong with a text, in words that begin with the line."""


@dataclass(frozen=True)
class Lined:
    """What a YAML text holds."""

    value: Any
    """Texts, and lists and dictionaries of them; all that is no list or mapping is a text, as it was written, and what
    stands empty is left out."""
    lines: dict[tuple[str | int, ...], int] = field(default_factory=dict)
    """The line of each value, from 1, by the keys and numbers that lead to it."""

    def line(self, place: tuple[str | int, ...]) -> int:
        """The line of a value, or of what it is missing from."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read_yaml(text: str) -> Lined:
    """Reads YAML without building any object of Python's.

    Raises:
        YamlFaultError: If it is none, has a key twice, tags, or a name for a value that is used elsewhere, with which a
            short text can stand for an endless one.
    """
    try:
        root = _composed(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        raise YamlFaultError(f"line {line}: it is no YAML ({error.problem or error.context})") from None
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, YamlFaultError):
            raise
        raise YamlFaultError(f"line 1: it is no YAML ({str(error).splitlines()[0]})") from None
    lined = Lined(None if root is None else _plain(root))
    if root is not None:
        lined.lines.update(_lines(root, ()))
    return lined


def _composed(text: str) -> yaml.Node | None:
    try:
        _refuse_tricks(text, _FAST)
        return yaml.compose(text, Loader=_FAST)
    except (yaml.YAMLError, ValueError):
        _refuse_tricks(text, yaml.BaseLoader)
        return yaml.compose(text, Loader=yaml.BaseLoader)


def _refuse_tricks(text: str, loader: Any) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise YamlFaultError(f"line {line}: its lists are nested too deep")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise YamlFaultError(f"line {line}: names for values (& and *) are not taken, write the value itself")
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!":
            raise YamlFaultError(f"line {line}: tags such as {tag[:60]} are not taken")


def _plain(node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        content: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise YamlFaultError(f"line {line}: a key is no word")
            if key.value in content:
                raise YamlFaultError(f"line {line}: it has the key {key.value[:80]!r} twice")
            content[key.value] = _plain(value)
        return {key: value for key, value in content.items() if value is not None}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(each) for each in node.value]
    assert isinstance(node, yaml.ScalarNode)
    return None if not node.style and node.value in ("", "~", "null") else node.value


def _lines(node: yaml.Node, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], int]]:
    yield place, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*place, key.value), key.start_mark.line + 1
            yield from ((at, line) for at, line in _lines(value, (*place, key.value)) if len(at) > len(place) + 1)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _lines(value, (*place, number))
