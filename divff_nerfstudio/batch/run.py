"""Runs a batch in its folder: one at a time, with a line where a scene's standing changes, and a page at the end."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Optional

from pydantic import Field
from rich.markup import escape

from divff_nerfstudio.batch.engines import Engine, EngineName, Room, this_machine
from divff_nerfstudio.batch.entries import Needs
from divff_nerfstudio.batch.page import save_page
from divff_nerfstudio.batch.plans import Plan
from divff_nerfstudio.batch.processes import Patience
from divff_nerfstudio.batch.records import BATCH, BatchRecord, RunRecord, SceneRecord, State, write_record
from divff_nerfstudio.batch.status import batch_status, summary
from divff_nerfstudio.batch.supervision import Limits, Supervisor
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.locks import locked
from divff_nerfstudio.schema import Count, Positive

PAGE = "index.html"
"""Name of the page in a batch's folder."""
_USUAL_GIGABYTES = 8.0
_USUAL_CPUS = 4


@dataclass
class BatchOptions:
    """How jobs are run, whatever they do."""

    engine: EngineName = "local"
    """What runs the jobs: processes of this machine, as many as its cores, memory and cards allow; Slurm, started where
    jobs are submitted from; or Ray."""
    at_once: Optional[Count] = None  # noqa: UP045
    """How many jobs run at once, at most."""
    cpus: Optional[Count] = None  # noqa: UP045
    """Cores for each job; by default up to 4."""
    gigabytes: Optional[Positive] = None  # noqa: UP045
    """Memory for each job; by default 8, less where this machine has less."""
    gpus: Optional[Annotated[int, Field(ge=0, le=64)]] = None  # noqa: UP045
    """Cards for each job; by default one where there are any, and on Slurm."""
    minutes: Optional[Count] = None  # noqa: UP045
    """Time for each job, behind which Slurm ends it and it goes on later; by default a day."""
    slurm: tuple[str, ...] = ()
    """What else Slurm is told: partition=gpu account=lab."""
    ray: Optional[str] = None  # noqa: UP045
    """Address of a Ray cluster; by default that of RAY_ADDRESS, else one is started on this machine."""
    attempts: Count = 3
    """How often a job is started that was killed, gave no sign of life, or was lost with its machine."""
    silence: Positive = 900.0
    """Seconds without a sign of life after which a command is ended."""
    grace: Positive = 60.0
    """Seconds that a command gets to save what it has when it is ended."""
    poll: Annotated[float, Field(ge=0.05, le=600)] = 2.0
    """Seconds between two looks at the jobs."""

    def started(self, folder: Path) -> tuple[Engine, Needs]:
        """The engine, and what steps need where nothing is said.

        Raises:
            DivffError: If the engine cannot be used.
        """
        room = None if self.engine == "slurm" else this_machine()
        needs = self._needs(room)
        jobs = folder / "jobs"
        if self.engine == "ray":
            from divff_nerfstudio.batch.ray_engine import RayEngine

            return RayEngine(jobs, self.cluster, room, self.at_once), needs
        from divff_nerfstudio.batch.submitit_engines import LocalEngine, SlurmEngine

        if room is None:
            return SlurmEngine(jobs, self.slurm, self.at_once, say), needs
        return LocalEngine(jobs, room, self.at_once), needs

    @property
    def cluster(self) -> str | None:
        """Address of the Ray cluster that is there already."""
        return self.ray or os.environ.get("RAY_ADDRESS") or None

    def _needs(self, room: Room | None) -> Needs:
        cards = 1 if room is None or room.cards or (self.engine == "ray" and self.cluster) else 0
        cpus, gigabytes = _USUAL_CPUS, _USUAL_GIGABYTES
        if room is not None:
            cpus = max(1, min(_USUAL_CPUS, room.cpus // max(1, len(room.cards) or room.cpus // 2)))
            gigabytes = min(_USUAL_GIGABYTES, max(0.5, room.gigabytes / 2))
        return Needs(
            cpus=self.cpus or cpus,
            gigabytes=self.gigabytes or gigabytes,
            gpus=cards if self.gpus is None else self.gpus,
            minutes=self.minutes,
        )

    def limits(self) -> Limits:
        """How much is borne."""
        return Limits(self.attempts, Patience(self.silence, self.grace), self.poll)


def run_batch(plans: Sequence[Plan], engine: Engine, output: Path, options: BatchOptions, made_of: str) -> None:
    """Runs what is not finished, and writes the page.

    Args:
        plans: What is done for each scene.
        engine: Runs the jobs.
        output: The batch's folder.
        options: How they are run.
        made_of: What the batch was made of, for its page.

    Raises:
        DivffError: If another batch is at work in the folder, or scenes have failed.
    """
    busy = DivffError(f"Another batch is at work in {output}: wait for it, or give another --output.")
    with locked(output / "batch", busy):
        scenes = [_scene_record(plan) for plan in plans]
        at_once = min(len(plans), options.at_once or _places(options, plans))
        record = BatchRecord(manifest=made_of, engine=options.engine, at_once=at_once, scenes=scenes)
        write_record(output / BATCH, record)
        supervisor = Supervisor(
            plans,
            engine,
            options.limits(),
            lambda name, state: _tell(name, state, options.engine),
            lambda jobs: _tell_end(jobs, options.grace, engine),
        )
        try:
            states = supervisor.run()
        except KeyboardInterrupt:
            if left := supervisor.at_work:  # of a second one
                say(f"{left} jobs were told to end and may still be at work: the same line waits for them and goes on.")
            else:
                say("All jobs have ended, and what they have saved is kept: the same line goes on from there.")
            raise
        finally:
            status = batch_status(output, at_work=False)
            save_page(output / PAGE, status, output)
    say(f"{summary(status)} The page is {output / PAGE}.")
    failed = {name: state for name, state in states.items() if state.standing == "failed"}
    if failed:
        name, state = next(iter(failed.items()))
        raise DivffError(
            f"{len(failed)} of {len(plans)} scenes have failed, the first is {name}: {state.sentence} Mend that and "
            "start the same line again: what is finished stays."
        )


def _places(options: BatchOptions, plans: Sequence[Plan]) -> int:
    """How many jobs may run at once, for telling when the rest will be finished."""
    if options.engine == "slurm" or (options.engine == "ray" and options.cluster):
        return len(plans)  # who looks at the batch sees how many do run
    room, needs = this_machine(), plans[0].phases[0][0].needs
    places = [room.cpus // (needs.cpus or 1)]
    places += [int(room.gigabytes // (needs.gigabytes or 1))] if math.isfinite(room.gigabytes) else []
    places += [len(room.cards) // needs.gpus] if needs.gpus else []
    return max(1, min(places))


def _scene_record(plan: Plan) -> SceneRecord:
    scores = {step.after[0]: str(step.leaves.parent) for step in plan.steps if step.kind == "evaluate"}
    runs = [
        RunRecord(method=step.method, run=str(step.leaves.parent), scores=scores.get(step.name))
        for step in plan.steps
        if step.method
    ]
    return SceneRecord(name=plan.name, scene=str(plan.scene), steps=[step.name for step in plan.steps], runs=runs)


def _tell(name: str, state: State, engine: EngineName) -> None:
    """Prints a line where a scene's standing changes."""
    # A cluster may have it wait: whether it runs, `divff batch status` tells by its signs of life.
    standing = "handed over" if state.standing == "running" and engine != "local" else state.standing
    again = f" (attempt {state.attempts})" if state.standing == "running" and state.attempts > 1 else ""
    say(f"{name}: {standing}{again}" + (f": {state.sentence}" if state.sentence else ""))


def _tell_end(jobs: int, grace: float, engine: Engine) -> None:
    """Prints what is waited for, so that nobody takes it for hanging."""
    if jobs:
        own = engine.grace
        seconds = 2 * grace if own is None else min(own, 2 * grace)
        say(f"{jobs} jobs are told to end, for which they get {seconds:g} s: what they have by then is saved.")


def say(text: str) -> None:
    """Prints a text as it is."""
    from nerfstudio.utils.rich_utils import CONSOLE

    CONSOLE.print(escape(text), soft_wrap=True, highlight=False)
