"""Jobs by submitit: processes on this machine, and arrays of Slurm."""

from __future__ import annotations

import contextlib
import getpass
import importlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from divff_nerfstudio.batch.engines import EngineError, Handle, Room, working_in
from divff_nerfstudio.batch.entries import Needs
from divff_nerfstudio.batch.records import HEARTBEAT, Heartbeat, read_record
from divff_nerfstudio.batch.worker import Job, end_program, run_job
from divff_nerfstudio.interrupts import handled

_WEEK = 7 * 24 * 60
_SLURM_SECONDS = 60
_ARRAY = 1000
"""Jobs of an array, at most: as many as Slurm takes where nobody has set MaxArraySize."""
_PASSING = re.compile(r"timed? ?out|contact|temporar|connection|communication|MaxSubmit", re.IGNORECASE)
"""What sbatch says where it may take the same jobs a little later."""
_PASSED_AFTER = 3600.0
"""Seconds after which such a refusal counts as one for good."""


@dataclass(frozen=True)
class Call:
    """A job as submitit calls it; after a time-out, or where it gives way to another, it is called again."""

    job: Job
    """The job."""

    def __call__(self) -> None:
        """Does the job."""
        run_job(self.job)

    def checkpoint(self) -> Any:
        """Called shortly before a time-out: the command saves what it has, and the job is queued again."""
        end_program(self.job)
        return _submitit().helpers.DelayedSubmission(self)


def _submitit() -> Any:
    try:
        return importlib.import_module("submitit")
    except ImportError:
        raise EngineError(
            "Batches need the package submitit, which is not installed: uv pip install submitit (or the extra `batch`)."
        ) from None


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Has processes that are started ignore Ctrl-C, which reaches all of a terminal: the batch ends its jobs itself."""
    with handled(signal.SIG_IGN, (signal.SIGINT,)):
        yield


@dataclass(frozen=True)
class _Running:
    """A job that was started on this machine."""

    given: Any
    """What submitit knows it by."""
    job: Job
    """The job."""
    cards: tuple[str, ...]
    """Its cards."""


class LocalEngine:
    """Runs jobs on this machine, as many at once as its cores, its memory and its cards allow.

    Args:
        folder: Where submitit's files lie.
        room: What there is for them.
        at_once: How many run at once, at most; None: as many as there is room for.
    """

    settle = 1.0

    def __init__(self, folder: Path, room: Room, at_once: int | None = None):
        self._folder, self._room, self._at_once = folder, room, at_once
        with working_in(folder):
            self._executor = _submitit().LocalExecutor(folder)
        self._jobs: dict[Handle, _Running] = {}

    def refuse(self, needs: Needs) -> str | None:
        """See `Engine`."""
        return self._room.refuse(needs)

    def submit(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Handle]]:
        """See `Engine`."""
        for job in jobs:
            cards = self._place(job.needs)
            if cards is None:
                break  # those behind it wait, too: a large job would never have its turn otherwise
            environment = (("CUDA_VISIBLE_DEVICES", ",".join(cards)), *_threads(job.needs))
            minutes = job.needs.minutes or _WEEK
            self._executor.update_parameters(timeout_min=minutes, signal_delay_s=int(job.patience.grace) + 10)
            with working_in(self._folder), _deaf_to_ctrl_c():
                given = self._executor.submit(Call(replace(job, environment=(*job.environment, *environment))))
            self._jobs[given.job_id] = _Running(given, job, cards)
            yield job, given.job_id

    def _place(self, needs: Needs) -> tuple[str, ...] | None:
        """The cards for a job; None where there is no room for it now."""
        if self._at_once is not None and len(self._jobs) >= self._at_once:
            return None
        running = list(self._jobs.values())
        busy = {card for each in running for card in each.cards}
        free = [card for card in self._room.cards if card not in busy]
        cpus = self._room.cpus - sum(each.job.needs.cpus or 0 for each in running)
        gigabytes = self._room.gigabytes - sum(each.job.needs.gigabytes or 0 for each in running)
        if (needs.gpus or 0) > len(free) or (needs.cpus or 0) > cpus or (needs.gigabytes or 0) > gigabytes:
            return None
        return tuple(free[: needs.gpus or 0])

    def over(self, handles: Sequence[Handle]) -> set[Handle]:
        """See `Engine`."""
        ended = {handle for handle in handles if handle not in self._jobs or self._jobs[handle].given.done()}
        for handle in ended:
            self._jobs.pop(handle, None)
        return ended

    def reason(self, handle: Handle) -> str | None:
        """See `Engine`: what has happened stands in the job's outcome."""
        return None

    def end(self, handle: Handle) -> None:
        """See `Engine`: submitit's process passes the signal on to the job."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(handle), signal.SIGTERM)

    def kill(self, handle: Handle) -> None:
        """See `Engine`: without the job, submitit's process ends, too."""
        if handle not in self._jobs:
            return
        job = self._jobs[handle].job
        sign = read_record(job.plan.folder / HEARTBEAT, Heartbeat)
        process = sign.process if sign is not None and sign.job == job.id else int(handle)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)

    def close(self) -> None:
        """See `Engine`."""


def _threads(needs: Needs) -> tuple[tuple[str, str], ...]:
    """How many threads a command has: else each takes all cores, and jobs side by side wait for each other."""
    if not needs.cpus or "OMP_NUM_THREADS" in os.environ:
        return ()
    return (("OMP_NUM_THREADS", str(needs.cpus)),)


class SlurmEngine:
    """Hands jobs to Slurm, those with equal needs as one array.

    Args:
        folder: Where submitit's files lie, on a disk that all machines see.
        options: What else Slurm is told, each as NAME=VALUE: partition=gpu, account=lab.
        at_once: How many jobs Slurm is handed at once, at most; None: all.
    """

    settle = 30.0

    def __init__(self, folder: Path, options: Sequence[str] = (), at_once: int | None = None):
        if shutil.which("sbatch") is None or shutil.which("squeue") is None:
            raise EngineError("There is no Slurm here (no sbatch): start the batch where jobs are submitted from.")
        self._folder, self._at_once = folder, at_once
        self._options = dict(map(_named, options))
        self._handed: set[Handle] = set()
        self._refused_since: float | None = None
        with working_in(folder):
            self._executor = _submitit().SlurmExecutor(folder, max_num_timeout=20)

    def refuse(self, needs: Needs) -> str | None:
        """See `Engine`: Slurm refuses at the submission what no partition has."""
        return None

    def submit(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Handle]]:
        """See `Engine`."""
        room = len(jobs) if self._at_once is None else max(0, self._at_once - len(self._handed))
        groups: dict[Needs, list[Job]] = {}
        for job in jobs[:room]:
            groups.setdefault(job.needs, []).append(job)
        arrays = [group[i : i + _ARRAY] for group in groups.values() for i in range(0, len(group), _ARRAY)]
        for group in arrays:
            self._tell(group[0].needs, int(group[0].patience.grace) + 30)
            try:
                with working_in(self._folder):
                    given = self._given(group)
            except (subprocess.CalledProcessError, _submitit().core.utils.FailedJobError) as error:
                if self._passes(_short(error)):
                    return  # the jobs wait, and are handed over at another look
                raise EngineError(f"Slurm refuses the jobs ({_short(error)}): mend the needs, or --slurm.") from None
            self._refused_since = None
            self._handed.update(each.job_id for each in given)
            yield from ((job, each.job_id) for job, each in zip(group, given, strict=True))

    def _passes(self, told: str) -> bool:
        """Whether a refusal may pass by itself: Slurm does not answer, or has as many of a user's jobs as it takes."""
        if self._refused_since is None:
            self._refused_since = time.monotonic()
        return bool(_PASSING.search(told)) and time.monotonic() - self._refused_since < _PASSED_AFTER

    def _given(self, group: Sequence[Job]) -> list[Any]:
        with self._executor.batch():
            return [self._executor.submit(Call(job)) for job in group]

    def _tell(self, needs: Needs, delay: int) -> None:
        """Sets what the next jobs need, and nothing of what those before them did."""
        self._executor.parameters.clear()
        said: dict[str, Any] = {"job_name": "divff", "time": needs.minutes or 24 * 60, "signal_delay_s": delay}
        said |= {"cpus_per_task": needs.cpus} if needs.cpus else {}
        said |= {"mem": f"{round(needs.gigabytes * 1024)}M"} if needs.gigabytes else {}
        said |= {"gpus_per_node": needs.gpus} if needs.gpus else {}
        said |= {"array_parallelism": _ARRAY}  # submitit's own bound is 256
        known = set(_submitit().SlurmExecutor._valid_parameters())
        more = {key: value for key, value in self._options.items() if key not in known}
        try:
            self._executor.update_parameters(
                **said,
                **{key: value for key, value in self._options.items() if key in known},
                additional_parameters={"requeue": True, **more},
            )
        except (TypeError, ValueError) as error:
            raise EngineError(f"--slurm is not as Slurm takes it ({_short(error)}): mend it.") from None

    def over(self, handles: Sequence[Handle]) -> set[Handle]:
        """See `Engine`; while Slurm does not answer, nothing is over."""
        found = _slurm("squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}")
        ended = set() if found is None else set(handles) - set(found.split())
        self._handed -= ended
        return ended

    def reason(self, handle: Handle) -> str | None:
        """See `Engine`."""
        found = re.search(r"\bJobState=(\S+)", _slurm("scontrol", "show", "job", "--oneliner", handle) or "")
        return found[1] if found else None

    def end(self, handle: Handle) -> None:
        """See `Engine`: Slurm sends SIGTERM, and after its KillWait SIGKILL."""
        _slurm("scancel", handle)

    def kill(self, handle: Handle) -> None:
        """See `Engine`."""
        _slurm("scancel", "--signal=KILL", handle)

    def close(self) -> None:
        """See `Engine`."""


def _named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[a-z][a-z_-]*", name):
        raise EngineError(f"--slurm {text} is no NAME=VALUE: write for example partition=gpu.")
    return name.replace("-", "_"), value


def _slurm(*command: str) -> str | None:
    """What a command of Slurm's prints; None where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SLURM_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        time.sleep(1)
        return None


def _short(error: BaseException) -> str:
    return " ".join(str(getattr(error, "stderr", None) or error).split())[:300]
