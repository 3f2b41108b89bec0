"""What a batch writes down of each scene, beside what its commands leave: heartbeat, outcome, and where it stands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field

from divff_nerfstudio.atomic import write_text
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.heartbeat import Beat
from divff_nerfstudio.schema import Amount, Label, Record, Weight, Words, read_json

HEARTBEAT, OUTCOME, STATE, LOG, BATCH = "heartbeat.json", "outcome.json", "state.json", "log.txt", "batch.json"
"""Names of files in a scene's folder; that of the batch lies in its own folder."""
End = Literal["finished", "failed", "hung", "killed", "memory", "ended"]
"""How a job has ended: its commands' work is done; one of them has failed, has given no sign of life, was killed, or
had not enough memory; or the job was told to end."""
AGAIN: tuple[End, ...] = ("hung", "killed", "ended")
"""Ends after which a job is tried again."""
Standing = Literal["waiting", "running", "finished", "failed"]

Kind = TypeVar("Kind", bound=Record)


class Heartbeat(Record, extra="forbid"):
    """A sign of life of a scene's job."""

    job: Words
    """Which job of the batch it is."""
    count: Amount
    """How many signs it has given: what watches from another machine compares no clocks."""
    at: Weight
    """When, in seconds since 1970, for who reads it."""
    machine: str
    """Name of the machine."""
    process: Amount
    """Number of the job's process there."""
    step: str = ""
    """Name of the step that is being done."""
    program: Amount | None = None
    """Number of the process of the step's command."""
    beat: Beat | None = None
    """What the command tells of itself."""


class Outcome(Record, extra="forbid"):
    """How a job has ended."""

    job: Words
    """Which job of the batch it was."""
    end: End
    """How."""
    sentence: str = ""
    """What went wrong, and what to do."""
    step: str = ""
    """In which step."""


class State(Record, extra="forbid"):
    """Where a scene stands."""

    standing: Standing = "waiting"
    """Whether it is waiting, being worked at, finished or failed."""
    sentence: str = ""
    """What went wrong, where it has failed."""
    attempts: Amount = 0
    """How often a job of its phase was started."""
    phase: Amount = 0
    """Which of its phases it is at."""
    since: Weight = 0.0
    """When the standing changed, in seconds since 1970."""
    job: str = ""
    """The job that is at it, if one is; not in those of earlier versions."""
    seconds: dict[str, Weight] = Field(default_factory=dict)
    """How long each finished step took."""


class RunRecord(Record, extra="forbid"):
    """A training of a scene."""

    method: str
    run: str
    """Its folder."""
    scores: str | None = None
    """Folder of its evaluation, if there is to be one."""


class SceneRecord(Record, extra="forbid"):
    """A scene of a batch, for who looks at it from outside."""

    name: Label
    scene: str
    """Its folder; earlier versions wrote the manifest's."""
    steps: list[str]
    """Names of its steps."""
    runs: list[RunRecord] = Field(default_factory=list)


class BatchRecord(Record):
    """A batch: what it was made of; that of an earlier version says more."""

    manifest: str
    engine: str
    at_once: Amount = 1
    """How many jobs run at once, at most."""
    scenes: list[SceneRecord]


def write_record(path: Path, record: Record, sync: bool = True) -> None:
    """Writes a record, whole or not at all."""
    write_text(path, json.dumps(record.model_dump(), allow_nan=False), sync=sync)


def read_record(path: Path, kind: type[Kind]) -> Kind | None:
    """Reads a record; None where there is none that can be read."""
    try:
        return read_json(path, kind, "a note of a batch", "delete it")
    except DivffError:
        return None


def batch_record(folder: Path) -> BatchRecord:
    """What a batch was made of.

    Raises:
        DivffError: If the folder is none of a batch.
    """
    return read_json(folder / BATCH, BatchRecord, "the index of a batch", "give the --output of a `divff batch`")


def scene_folder(batch: Path, name: str) -> Path:
    """Folder of a scene's notes."""
    return batch / "scenes" / name


def states(batch: Path, record: BatchRecord) -> Mapping[str, State]:
    """Where the scenes stand, by name."""
    found = {scene.name: read_record(scene_folder(batch, scene.name) / STATE, State) for scene in record.scenes}
    return {name: state or State() for name, state in found.items()}
