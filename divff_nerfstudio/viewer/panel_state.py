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
from typing import Annotated, Literal, Optional, Protocol

import torch
from pydantic import Field, field_validator

from divff_nerfstudio.atomic import write_text
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.query import MAX_NEGATIVES, AskedKind, Query, QueryConfig, QueryError, split_phrases
from divff_nerfstudio.relevancy import EXAMPLE_NAME, Example
from divff_nerfstudio.schema import MAX_LABEL, Number, Positive, Record, Share, Text, Words, read_json

FORMAT, VERSION = "divff-panel-state", 1


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
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


_FIELDS = tuple(each.name for each in fields(QueryConfig) if each.name not in ("_target", "presets"))


_Negatives = Annotated[tuple[Words, ...], Field(max_length=MAX_NEGATIVES)]


class _Question(Record, extra="forbid"):
    """Fields of `QueryConfig`; those that are missing keep their defaults."""

    text: Text = ""
    features: AskedKind = "image"
    negatives_image: _Negatives = ()
    negatives_video: _Negatives = ()
    prefix_video: Annotated[str, Field(max_length=MAX_LABEL)] = ""
    unit_video_text: bool = True
    temperature: Positive = 10.0
    threshold: Share = 0.53
    strength: Share = 1.0
    contour: Optional[bool] = None  # noqa: UP045

    @field_validator("text")
    @classmethod
    def _few(cls, text: str) -> str:
        try:
            split_phrases(text)
        except QueryError as error:
            raise ValueError(str(error).rstrip(".")) from None
        return text


class _Hidden(Record, extra="forbid"):
    hide_actor: bool
    hide_dynamic: bool


class _Point(Record, extra="forbid"):
    """Something that was pointed at."""

    feature: Annotated[tuple[Number, ...], Field(min_length=1, max_length=65536)]
    level: Annotated[float, Field(ge=-1, lt=1)]

    @field_validator("feature")
    @classmethod
    def _of_unit_length(cls, feature: tuple[float, ...]) -> tuple[float, ...]:
        if abs(math.hypot(*feature) - 1) > 1e-2:
            raise ValueError("should be of unit length")
        return feature


class _State(Record, extra="forbid"):
    format: Literal["divff-panel-state"]
    version: Literal[1]
    query: _Question
    visibility: _Hidden
    output: str
    examples: dict[Annotated[str, Field(pattern=rf"^{EXAMPLE_NAME.pattern}$")], dict[AskedKind, _Point]]


def load_panel_state(path: Path | str) -> PanelState:
    """Reads a saved state.

    Raises:
        PanelStateError: If the file is not there, or is not one that `PanelState.save` writes.
    """
    content = read_json(path, _State, "a saved state of the panel", "save it anew in the viewer", PanelStateError)
    return PanelState(
        query=QueryConfig(**content.query.model_dump(exclude_unset=True)),
        hide_actor=content.visibility.hide_actor,
        hide_dynamic=content.visibility.hide_dynamic,
        output=content.output,
        examples={
            phrase: {kind: Example(torch.tensor(point.feature), point.level) for kind, point in kinds.items()}
            for phrase, kinds in content.examples.items()
        },
    )
