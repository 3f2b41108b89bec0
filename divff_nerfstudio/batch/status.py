"""Where the scenes of a batch stand, as a table, from what lies in its folder: no batch need be at work."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from rich.markup import escape
from rich.table import Table

from divff_nerfstudio.batch.records import (
    HEARTBEAT,
    BatchRecord,
    Heartbeat,
    SceneRecord,
    State,
    batch_record,
    read_record,
    scene_folder,
    states,
)
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.faults import shown
from divff_nerfstudio.locks import is_locked, take_lock

COLOURS = {
    "finished": "green",
    "running": "cyan",
    "queued": "blue",
    "waiting": "default",
    "failed": "red",
    "interrupted": "yellow",
}


@dataclass(frozen=True)
class SceneStatus:
    """Where a scene stands."""

    record: SceneRecord
    """What it is."""
    state: State
    """Where it stands, as the batch has it."""
    standing: str
    """The same in a word; "queued" where its job was handed over and has given no sign of life yet, "interrupted" where
    it was being worked at and no batch is at work any more."""
    sign: Heartbeat | None
    """The last sign of life of its job."""

    @property
    def behind(self) -> set[str]:
        """Steps that are done: its job does them in their order."""
        steps = self.record.steps
        at_work = self.sign is not None and self.state.standing == "running" and self.sign.step in steps
        return {*self.state.seconds, *(steps[: steps.index(self.sign.step)] if self.sign and at_work else ())}

    @property
    def age(self) -> str:
        """How long ago the last sign of life came, of what is at work."""
        if self.sign is None or self.standing != "running":
            return ""
        return f"{max(0.0, time.time() - self.sign.at):.0f} s ago"

    @property
    def progress(self) -> str:
        """What is being done, and how far that is."""
        if self.standing not in ("running", "interrupted") or self.sign is None:
            return f"{len(self.behind)} of {len(self.record.steps)} steps"
        beat = self.sign.beat
        if beat is None:
            return self.sign.step
        told = f"{self.sign.step} {beat.done}" + (f" of {beat.of}" if beat.of else "")
        return told + (f", loss {beat.loss:.4g}" if beat.loss is not None else "")

    @property
    def memory(self) -> str:
        """The largest memory of its command, and on the card."""
        beat = None if self.sign is None or self.standing != "running" else self.sign.beat
        sizes = () if beat is None else (beat.memory, beat.card_memory)
        return " + ".join(f"{size / 2**30:.1f}" for size in sizes if size is not None)


@dataclass(frozen=True)
class BatchStatus:
    """Where a batch stands."""

    record: BatchRecord
    """What it is made of."""
    at_work: bool
    """Whether one is at work in its folder."""
    scenes: tuple[SceneStatus, ...]
    """Its scenes."""

    @property
    def counts(self) -> Counter[str]:
        """How many scenes stand how."""
        return Counter(scene.standing for scene in self.scenes)

    @property
    def seconds_left(self) -> float | None:
        """How long the rest will take if it goes as what is finished has gone; None where nothing tells that."""
        times, lefts = _mean_seconds(scene.state.seconds for scene in self.scenes), [0.0]
        for scene in self.scenes:
            if scene.standing in ("finished", "failed"):
                continue
            steps = [step for step in scene.record.steps if step not in scene.behind]
            if any(step not in times for step in steps):
                return None
            lefts.append(sum(times[step] * (1 - _share(scene, step)) for step in steps))
        if not self.at_work:
            return None
        return max(sum(lefts) / self._places, *lefts)  # the last scenes have no use for the others' places

    @property
    def _places(self) -> int:
        """How many jobs run at once: those that do, where others wait in a queue."""
        places = min(self.record.at_once, len(self.scenes))
        running = self.counts["running"] if self.counts["queued"] else 0
        return max(1, min(places, running or places))


def batch_status(folder: Path, at_work: bool | None = None) -> BatchStatus:
    """Looks at a batch's folder.

    Args:
        folder: The folder.
        at_work: Whether a batch is at work in it; None: is looked for, which tells nothing to the batch itself.

    Raises:
        DivffError: If it is none of a batch.
    """
    record = batch_record(folder)
    found, at_work = states(folder, record), is_at_work(folder) if at_work is None else at_work
    scenes = []
    for scene in record.scenes:
        state = found[scene.name]
        sign = read_record(scene_folder(folder, scene.name) / HEARTBEAT, Heartbeat)
        standing: str = state.standing
        if state.standing == "running":
            sign = sign if sign is not None and state.job in ("", sign.job) else None
            standing = ("running" if sign is not None or not state.job else "queued") if at_work else "interrupted"
        scenes.append(SceneStatus(scene, state, standing, sign))
    return BatchStatus(record, at_work, tuple(scenes))


def is_at_work(folder: Path) -> bool:
    """Whether a batch is at work in a folder."""
    busy = DivffError("at work")
    try:
        take_lock(folder / "batch", busy).release()
    except DivffError:
        return True
    except OSError:  # a folder of somebody else's, or a disk that is only read here
        return is_locked(folder / "batch")
    return False


def _mean_seconds(all_seconds: Iterable[Mapping[str, float]]) -> Mapping[str, float]:
    """The mean time of each step, over the scenes that have it behind them."""
    sums: dict[str, list[float]] = {}
    for seconds in all_seconds:
        for step, value in seconds.items():
            sums.setdefault(step, []).append(value)
    return {step: mean(values) for step, values in sums.items()}


def _share(scene: SceneStatus, step: str) -> float:
    """How much of a step is done."""
    sign = scene.sign
    if sign is None or sign.step != step or sign.beat is None or not sign.beat.of:
        return 0.0
    return min(1.0, sign.beat.done / sign.beat.of)


COLUMNS: dict[str, Callable[[SceneStatus], str]] = {
    "Scene": lambda scene: escape(scene.record.name),
    "Standing": lambda scene: f"[{COLOURS[scene.standing]}]{scene.standing}[/]",
    "At": lambda scene: escape(scene.progress),
    "Tried": lambda scene: str(scene.state.attempts or ""),
    "Memory, GB": lambda scene: scene.memory,
    "Last sign": lambda scene: scene.age,
    "What went wrong": lambda scene: escape(shown(scene.state.sentence)),
}
"""The table's columns: title, and what rich shows of a scene."""


def status_table(status: BatchStatus) -> Table:
    """The scenes as a table."""
    table = Table(caption=escape(summary(status)), caption_justify="left")
    for title in COLUMNS:
        table.add_column(title, overflow="fold")
    for scene in status.scenes:
        table.add_row(*(cell(scene) for cell in COLUMNS.values()))
    return table


def summary(status: BatchStatus) -> str:
    """How many scenes stand how, and when the rest may be finished."""
    parts = [f"{count} {standing}" for standing, count in sorted(status.counts.items())]
    text = f"{len(status.scenes)} scenes: {', '.join(parts)}."
    left = status.seconds_left
    if not status.at_work:
        rest = status.counts["finished"] < len(status.scenes)
        return text + (" No batch is at work here: start the same line again, and it goes on." if rest else "")
    if left is None:
        return text + " When it will be finished cannot be told before each step was done once."
    return text + f" It will be finished in about {told_duration(left)}, if the rest is like what is done."


def told_duration(seconds: float) -> str:
    """A duration in words: "3 h 20 min"."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    days, hours = minutes // 1440, minutes // 60
    if days > 1:
        return f"{days} days {hours % 24} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
