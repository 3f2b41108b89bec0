"""The job of a scene, on whatever machine an engine runs it: its steps one after the other, each under watch."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from divff_nerfstudio.batch.entries import Needs, StepName
from divff_nerfstudio.batch.plans import Plan, Step
from divff_nerfstudio.batch.processes import POLL, Ended, Patience, signal_group, watch
from divff_nerfstudio.batch.records import (
    HEARTBEAT,
    LOG,
    OUTCOME,
    End,
    Heartbeat,
    Outcome,
    write_record,
)
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.heartbeat import Beat
from divff_nerfstudio.interrupts import TerminatedError, handled
from divff_nerfstudio.locks import locked
from divff_nerfstudio.plugins import module_command
from divff_nerfstudio.stages import StageError, run_stages, words_to_resume

SMALLER: dict[StepName, str] = {
    "convert": "lower --num-frames in its convert options",
    "extract": "a smaller model, or fewer --sources at a time, in its extract options",
    "train": "lower --pipeline.datamanager.train-num-rays-per-batch in its train options",
    "evaluate": "fewer --baselines in its evaluate options, or a lower eval_num_rays_per_chunk in its run's config.yml",
    "export": "lower --cloud.views in its export options",
}
"""What to do where memory is not enough for a step, besides giving it more."""
SIGN_SECONDS = 5.0
"""Time between two signs of life of a job, which lie on a disk that all jobs share."""
_LACKS = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|std::bad_alloc|\bMemoryError\b|memory is not enough|"
    r"oom[-_ ]kill",
    re.IGNORECASE,
)
_SAID = re.compile(r"^\s*Error: |^Traceback \(most recent call last\)", re.MULTILINE)
"""How what a program that could say why it fails has said begins: sentences of our commands, and what Python tells."""
_HELPER_DIED = re.compile(r"killed by signal|exited unexpectedly|terminated abruptly")
"""What Python tells where the system has killed a process that it has started."""
BEGINNINGS = ("--load-dir", "--load-checkpoint", "--load-step")
"""Options of a training that tell what it begins with, and no more what it goes on from."""
PROGRAM = "program"
"""Name of the note of which process a scene's command is."""
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)


class StepError(StageError):
    """A step of a scene did not succeed."""

    def __init__(self, end: End, step: str, sentence: str):
        super().__init__(sentence)
        self.end: End = end
        self.step = step


@dataclass(frozen=True)
class Job:
    """Steps of a scene that are done by one process."""

    id: str
    """What tells it from all other jobs."""
    plan: Plan
    """All that is done for the scene."""
    phase: int
    """Which of its phases this is."""
    patience: Patience = field(default_factory=Patience)
    """How long its commands are waited for."""
    environment: tuple[tuple[str, str], ...] = ()
    """Variables that its commands get."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """Its steps."""
        return self.plan.phases[self.phase]

    @property
    def needs(self) -> Needs:
        """What it needs of a machine."""
        return self.steps[0].needs


def run_job(job: Job, told_by: int = signal.SIGTERM) -> None:
    """Does a job; how it ended is written down beside its heartbeat, and nothing is raised.

    Args:
        job: The job.
        told_by: The signal by which its engine tells it to end.
    """
    with _told_to_end(told_by):
        try:
            Worker(job).run()
            outcome = Outcome(job=job.id, end="finished")
        except StepError as error:
            outcome = Outcome(job=job.id, end=error.end, sentence=str(error), step=error.step)
        except (DivffError, OSError, ValueError) as error:
            outcome = Outcome(job=job.id, end="failed", sentence=str(error))
        except KeyboardInterrupt:
            outcome = Outcome(job=job.id, end="ended", sentence="Its job was told to end; it goes on from there.")
    write_record(job.plan.folder / OUTCOME, outcome)


@contextlib.contextmanager
def _told_to_end(told_by: int) -> Any:
    """Has a signal end the job in order, once; others do nothing: a Ctrl-C is for the batch, which ends its jobs."""
    told = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if number == told_by and not told:
            told = True
            raise TerminatedError

    with handled(end):
        yield


class Worker:
    """Does a job.

    Args:
        job: The job.
    """

    def __init__(self, job: Job):
        self.job, self.folder = job, job.plan.folder
        self._count, self._last, self._step = 0, float("-inf"), ""
        self._told: tuple[str, bool] | None = None

    def run(self) -> None:
        """Does the steps that are not finished.

        Raises:
            StepError: If one does not succeed.
            KeyboardInterrupt: If the job was told to end; its command has then saved what it had.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        busy = DivffError("unused")
        waits = "\nAnother job is at this scene, and is waited for.\n"
        with locked(self.folder / "job", busy, waiting=lambda: self._note(waits)):
            self.give_sign()  # not before: who is heard must not fall silent, and the heartbeat is the other job's
            end_program(self.job, self.give_sign)  # that a killed job of this scene may have left
            stages = [step.stage(self._do) for step in self.job.plan.steps]
            run_stages(stages, self.folder / "stages", only={step.name for step in self.job.steps})

    def give_sign(self, program: int | None = None, beat: Beat | None = None) -> None:
        """Writes a sign of life of the job, if the last is some time ago or its step has begun, or begun to tell."""
        now = time.monotonic()
        news = (self._step, beat is None)
        if now - self._last < SIGN_SECONDS and news == self._told:
            return
        self._count, self._last, self._told = self._count + 1, now, news
        sign = Heartbeat(
            job=self.job.id,
            count=self._count,
            at=time.time(),
            machine=platform.node(),
            process=os.getpid(),
            step=self._step,
            program=program,
            beat=beat,
        )
        with contextlib.suppress(OSError):  # a full disk is told where it stops the work
            write_record(self.folder / HEARTBEAT, sign, sync=False)

    def _do(self, step: Step) -> None:
        """Runs a step's command, from its last checkpoint if it has one.

        Raises:
            StepError: If what it should leave is not there, or not whole.
        """
        self._step = step.name
        resumed = () if step.resumes is None else words_to_resume(step.resumes)
        if resumed is None and (fault := step.check()) is not None:  # what it ends with has been broken since
            raise StepError("failed", step.name, f"{fault}: delete it, and start the same line again.")
        if resumed is None or (step.once and step.check() is None):
            return
        if step.requires is not None and (fault := step.requires()) is not None:
            raise StepError("failed", step.name, f"{fault}.")
        before = _stamp(step.leaves)
        own = _without(step.words[1:], BEGINNINGS) if resumed else step.words[1:]
        words = (*step.words[:1], *resumed, *own)
        self._note(f"\n$ {step.typed}\n")
        with tempfile.TemporaryDirectory(prefix="divff-") as own:  # on this machine's own disk
            ended = watch(
                module_command(step.module, *words),
                self.job.plan.base,
                self.folder / LOG,
                Path(own) / "signs.json",
                self.job.patience,
                self._look,
                dict(self.job.environment),
            )
        (self.folder / PROGRAM).unlink(missing_ok=True)
        fault = step.check()
        if fault is None and (ended.status == 0 or _stamp(step.leaves) != before):
            return
        raise self._error(step, ended, fault or "it has left nothing new")

    def _look(self, program: int, beat: Beat | None) -> None:
        note = self.folder / PROGRAM
        if not note.is_file():
            note.write_text(f"{platform.node()}\n{program}\n{_started(program)}", "utf-8")
        self.give_sign(program, beat)

    def _note(self, text: str) -> None:
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(text)

    def _error(self, step: Step, ended: Ended, fault: str) -> StepError:
        """How a step has failed, in a sentence."""
        log = self.folder / LOG
        if ended.hung:
            return StepError(
                "hung",
                step.name,
                f"{step.name} gave no sign of life for {self.job.patience.silence:g} s and was ended: see {log}, and "
                "give a longer --silence if it was at work.",
            )
        said = last_words(ended.told)
        # What the system has killed may have been of another job of this machine: who could say why it fails is heard.
        killed = ended.lacked_memory and (not _SAID.search(ended.told) or _HELPER_DIED.search(ended.told))
        if ended.status != 0 and (killed or _LACKS.search(ended.told)):
            return StepError("memory", step.name, lack_of_memory(step, ended.told))
        if ended.status in _KILLED:
            return StepError(
                "killed",
                step.name,
                f"{step.name} was killed (SIGKILL), as systems do where memory is not enough: "
                f"{_more_memory(step)}; {log} has the rest.",
            )
        if ended.status < 0:
            name = signal.Signals(-ended.status).name
            return StepError("killed", step.name, f"{step.name} was ended by {name}: see {log}.")
        if ended.status == 0:
            return StepError("failed", step.name, f"{step.name} ended with status 0, and yet {fault}: see {log}.")
        return StepError("failed", step.name, said or f"{step.name} ended with status {ended.status}: see {log}.")


def end_program(job: Job, meanwhile: Callable[[], None] | None = None) -> None:
    """Ends the command of a job that runs on this machine: SIGTERM, at which it saves what it has, then SIGKILL.

    Args:
        job: The job, or a later one of its scene.
        meanwhile: Called while it is waited for.
    """
    program = job.plan.folder / PROGRAM
    with contextlib.suppress(OSError, ValueError):
        machine, number, started = program.read_text("utf-8").split("\n")
        if machine == platform.node() and started and started == _started(int(number)):
            signal_group(int(number), signal.SIGTERM)
            deadline = time.monotonic() + job.patience.grace
            while time.monotonic() < deadline and _started(int(number)) == started:
                time.sleep(POLL)
                if meanwhile is not None:
                    meanwhile()
            signal_group(int(number), signal.SIGKILL)
    program.unlink(missing_ok=True)


def lack_of_memory(step: Step, told: str = "") -> str:
    """What to say where memory was not enough for a step."""
    found = next((line.strip() for line in reversed(told.splitlines()) if _LACKS.search(line)), "")
    reason = f" ({found[:200]})" if found else ""
    return f"The memory was not enough for {step.name}{reason}: {_more_memory(step)}."


def _more_memory(step: Step) -> str:
    asked = f"more than the {step.needs.gigabytes:g} asked for" if step.needs.gigabytes else "what it needs"
    return f"give it {asked} (gigabytes in the manifest, or --gigabytes), or {SMALLER[step.kind]}"


def last_words(told: str) -> str:
    """The sentence that a command has ended with: that of its error, or its last line."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    for number in reversed(range(len(lines))):
        if lines[number].startswith("Error: "):
            return " ".join(lines[number:]).removeprefix("Error: ")[:2000]
    return lines[-1][:500] if lines else ""


def _started(process: int) -> str:
    """When a process was started, as the system counts; empty where there is none."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in ("Z", "X") else fields[19]
    return ""


def _without(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """What is typed without some options and the one value of each."""
    left, value = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        if name.replace("_", "-") in options:
            value = not equals
        elif not value:
            left.append(word)
        else:
            value = False
    return left


def _stamp(path: Path) -> tuple[int, int] | None:
    if not path.exists():
        return None
    state = path.stat()
    return state.st_ino, state.st_mtime_ns
