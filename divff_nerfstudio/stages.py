"""Long work in stages: what is finished is kept, and what was interrupted goes on."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape

from divff_nerfstudio import __version__
from divff_nerfstudio.atomic import write_text
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.interrupts import run_program
from divff_nerfstudio.locks import locked
from divff_nerfstudio.plugins import module_command
from divff_nerfstudio.schema import Record, Weight, read_json
from divff_nerfstudio.training_folder import checkpoints_in, step_in_name, steps_of


class StageError(DivffError):
    """A stage did not succeed."""


@dataclass(frozen=True)
class Stage:
    """A step that leaves files behind."""

    name: str
    """What it is called on the console and in its marker's file name."""
    purpose: str
    """What it does, in words."""
    run: Callable[[], Any]
    """Does it; returns when its files are complete, raises otherwise."""
    leaves: Path
    """A file of it that the next stages need; where it is gone, the stage is done again."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What its files depend on, as JSON holds it; with other settings it is done again."""
    after: Optional[tuple[str, ...]] = None  # noqa: UP045
    """Names of the stages whose files it uses; None: all before it."""
    typed: str = ""
    """The command that it runs, as a user would type it, where it is one."""
    check: Optional[Callable[[], Optional[str]]] = None  # noqa: UP045
    """Says what is wrong with what it has left, None where nothing is: what is wrong is not finished, however it ended.
    """
    lasting: bool = False
    """Whether it counts as finished whichever version of this package did it."""

    def needs(self, earlier: Sequence[Stage]) -> tuple[str, ...]:
        """Names of the stages whose files it uses, among those before it."""
        return tuple(stage.name for stage in earlier) if self.after is None else self.after


def run_stages(
    stages: Sequence[Stage],
    markers: Path,
    seconds: dict[str, float] | None = None,
    only: Collection[str] | None = None,
) -> None:
    """Runs stages one after the other, leaving out those that an earlier call has finished.

    A stage is done again if its settings have changed, its file is gone, or a stage that it uses is done again.

    Args:
        stages: In their order.
        markers: Folder where a file says of each finished stage with which settings, and how long it took.
        seconds: Gets, as they finish, the seconds that each stage took, in this call or an earlier one.
        only: Names of those that are run; of the others, those that use one of them are then not finished any more.

    Raises:
        DivffError: What a stage raised. A StageError, too, where another process is at the same stages.
    """
    busy = StageError(f"Another process works on the stages in {markers.parent}: wait for it, or end it.")
    with locked(markers, busy, keep=False):
        _run_all(stages, markers, {} if seconds is None else seconds, only)


def _run_all(stages: Sequence[Stage], markers: Path, seconds: dict[str, float], only: Collection[str] | None) -> None:
    for number, stage in enumerate(stages, start=1):
        if only is not None and stage.name not in only:
            continue
        title = f"{number}/{len(stages)} {stage.name}: {stage.purpose}"
        finished = finished_seconds(stage, markers)
        if finished is not None:
            CONSOLE.print(f"[green]{escape(title)}[/] was done before ({finished:.0f} s)")
        else:
            CONSOLE.rule(f"[bold]{escape(title)}")
            finished = _run(stage, stages[number:], markers)
            CONSOLE.print(f"[green]{escape(stage.name)}[/] took {finished:.0f} s")
        seconds[stage.name] = finished


def finished_seconds(stage: Stage, markers: Path) -> float | None:
    """How long a stage took when it was finished; None if it is to be done (again)."""
    marker = _read(_marker(stage, markers))
    try:
        if marker is None or not stage.leaves.exists():
            return None
    except OSError:  # a folder on the way to it may not be entered
        return None
    known = {**marker.settings, "version": __version__} if stage.lasting else marker.settings
    return marker.seconds if known == _settings(stage) and fault_of(stage) is None else None


def fault_of(stage: Stage) -> str | None:
    """What is wrong with what a stage has left, in words; None where nothing is that can be told."""
    try:
        return None if stage.check is None else stage.check()
    except (OSError, ValueError) as error:  # rights, disks, letters that are no UTF-8
        return f"what {stage.name} has left cannot be read ({error})"


def _run(stage: Stage, later: Sequence[Stage], markers: Path) -> float:
    """Runs a stage; the markers of those that use it go first, so that no interruption makes them look finished."""
    stale = [stage]
    for other in later:
        known = {each.name for each in stale}
        if other.after is None or known & set(other.after):
            stale.append(other)
    for each in stale:
        _marker(each, markers).unlink(missing_ok=True)
    start = time.perf_counter()
    stage.run()
    seconds = time.perf_counter() - start
    if (fault := fault_of(stage)) is not None:
        raise StageError(f"{stage.name} has ended, and yet {fault}: see what it says above, and start it again.")
    write_text(_marker(stage, markers), json.dumps({"settings": _settings(stage), "seconds": seconds}))
    return seconds


def _marker(stage: Stage, markers: Path) -> Path:
    return markers / f"{stage.name}.json"


def _settings(stage: Stage) -> dict[str, Any]:
    return {"version": __version__, **stage.settings}


class _Marker(Record, extra="forbid"):
    """What is kept of a finished stage."""

    settings: dict[str, Any]
    seconds: Weight


def _read(marker: Path) -> _Marker | None:
    """A marker's content, or None if there is no readable one: the stage is then done again."""
    try:
        return read_json(marker, _Marker, "a marker of a stage", "delete it", StageError)
    except StageError:
        return None


def run_module(module: str, *arguments: str) -> None:
    """Runs a module of this Python as a program of its own, so that its memory is free again afterwards.

    Raises:
        StageError: If it fails; what it printed stands above.
    """
    if status := run_program(module_command(module, *arguments)):
        command = shlex.join(("python", "-m", module, *arguments))
        raise StageError(
            f"`{command}` ended with status {status}: mend what it says above and start the same command again, which "
            "goes on from here."
        )


def words_to_resume(run: Path) -> tuple[str, ...] | None:
    """What makes ns-train go on with an interrupted training.

    Args:
        run: The training's folder.

    Returns:
        Words for ns-train, none if there is no checkpoint yet; None if the last checkpoint is the final one.
    """
    checkpoints = run / "nerfstudio_models"
    found, steps = checkpoints_in(checkpoints), steps_of(run)
    if not found:
        return ()
    if steps is not None and step_in_name(found[-1]) == steps - 1:
        return None
    return ("--load-dir", str(checkpoints))
