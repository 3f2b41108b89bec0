"""The state of the viewer's panel as a file, so that a film shows what the viewer showed.

nerfstudio's Render tab writes a camera path, ``SCENE/camera_paths/NAME.json``, and nothing of what was asked. The panel
writes its state beside it, to ``SCENE/camera_paths/panel/NAME.json`` (a folder of its own, since the tab offers every
JSON file beside its paths as one of them). Its content::

    {
      "format": "divff-panel-state",
      "version": 1,
      "query": {"text": "mug; bowl", "features": "image", "threshold": 0.53, ...},   fields of `QueryConfig`
      "visibility": {"hide_actor": true, "hide_dynamic": false},
      "output": "relevancy_overlay",                                                 the output that was shown
      "examples": {"[point 1]": {"image": {"feature": [...], "level": 0.8}}}         what was pointed at
    }
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch

from divff_nerfstudio.files import DivffError, atomic_path
from divff_nerfstudio.query import EXAMPLE_NAME, Example, Query, QueryConfig, QueryError, split_phrases

FORMAT, VERSION = "divff-panel-state", 1
_CHOICES = {"features": ("image", "video")}


class PanelStateError(DivffError):
    """A file is not a saved state of the panel."""


class Switches(Protocol):
    """Layers to leave out: the model's `Visibility`."""

    hide_actor: bool
    hide_dynamic: bool


def panel_state_path(camera_path: Path | str) -> Path:
    """Where the panel's state lies that belongs to a camera path."""
    camera_path = Path(camera_path)
    return camera_path.parent / "panel" / camera_path.name


@dataclass(frozen=True)
class PanelState:
    """What the panel was set to."""

    query: QueryConfig
    """What was asked, and how."""
    hide_actor: bool = False
    """Whether the camera wearer was left out."""
    hide_dynamic: bool = False
    """Whether the objects that move were left out."""
    output: str = "rgb"
    """Name of the output that was shown."""
    examples: dict[str, dict[str, Example]] = field(default_factory=dict)
    """What was pointed at, by phrase and kind of features; those that the query names."""

    @classmethod
    def of(cls, query: Query, visibility: Switches, output: str) -> PanelState:
        """The state of a query and its switches."""
        named = {phrase: query.examples[phrase] for phrase in query.phrases if phrase in query.examples}
        return cls(query.config, visibility.hide_actor, visibility.hide_dynamic, output, named)

    def apply(self, query: Query, visibility: Switches) -> None:
        """Asks and hides what was asked and hidden.

        Raises:
            QueryError: If the query cannot be answered in this run; nothing is changed then.
        """
        self.ask(query)
        visibility.hide_actor, visibility.hide_dynamic = self.hide_actor, self.hide_dynamic

    def ask(self, query: Query) -> None:
        """Asks what was asked.

        Raises:
            QueryError: If the query cannot be answered in this run; nothing is changed then.
        """
        before = dict(query.examples)
        query.examples.update(self.examples)
        try:
            query.ask(**{name: getattr(self.query, name) for name in _FIELDS})
        except QueryError:
            query.examples = before
            raise

    def save(self, path: Path | str) -> None:
        """Writes the state; a file that is there is replaced whole."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "query": {name: value for name, value in asdict(self.query).items() if name in _FIELDS},
            "visibility": {"hide_actor": self.hide_actor, "hide_dynamic": self.hide_dynamic},
            "output": self.output,
            "examples": {
                phrase: {
                    kind: {"feature": example.feature.tolist(), "level": example.level}
                    for kind, example in kinds.items()
                }
                for phrase, kinds in self.examples.items()
            },
        }
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


_FIELDS = tuple(each.name for each in fields(QueryConfig) if each.name not in ("_target", "presets"))


def load_panel_state(path: Path | str) -> PanelState:
    """Reads a saved state.

    Raises:
        PanelStateError: If the file is not there, or is not one that `PanelState.save` writes.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise ValueError(f"it is no {FORMAT} of version {VERSION}")
        visibility = content["visibility"]
        return PanelState(
            query=_query(content["query"]),
            hide_actor=_of_type(visibility["hide_actor"], bool, "hide_actor"),
            hide_dynamic=_of_type(visibility["hide_dynamic"], bool, "hide_dynamic"),
            output=_of_type(content["output"], str, "output"),
            examples={phrase: _example(phrase, kinds) for phrase, kinds in content["examples"].items()},
        )
    except FileNotFoundError as error:
        raise PanelStateError(f"{path} does not exist: save it with the viewer's panel.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, QueryError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise PanelStateError(
            f"{path} is no saved state of the panel ({reason}): save it anew in the viewer."
        ) from error


def _query(values: dict[str, Any]) -> QueryConfig:
    """A query's configuration from plain data; fields that are missing keep their defaults."""
    given, plain = QueryConfig(), {}
    for name, value in values.items():
        if name not in _FIELDS:
            raise ValueError(f"query has no field {name}")
        kind = type(getattr(given, name))
        if kind is tuple:
            plain[name] = tuple(_of_type(item, str, name) for item in _of_type(value, list, name))
        elif kind is float:
            plain[name] = _finite(value, name)
        else:
            plain[name] = _of_type(value, kind, name)
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ValueError(f"{name} is {value!r}, not one of {', '.join(_CHOICES[name])}")
    split_phrases(plain.get("text", ""))
    return QueryConfig(**plain)


def _example(phrase: str, kinds: dict[str, Any]) -> dict[str, Example]:
    if not EXAMPLE_NAME.fullmatch(phrase):
        raise ValueError(f"{phrase!r} names no point")
    examples = {}
    for kind, parts in kinds.items():
        feature = torch.tensor([_finite(value, "feature") for value in parts["feature"]])
        if abs(float(feature.norm()) - 1) > 1e-2:
            raise ValueError(f"the feature of {phrase} is not of unit length")
        level = _finite(parts["level"], "level")
        if not level < 1:
            raise ValueError(f"the level of {phrase} is not below 1")
        examples[kind] = Example(feature, level)
    return examples


def _of_type(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}, not of type {kind.__name__}")
    return value


def _finite(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"{name} is {value!r}, not a number")
    return float(value)
