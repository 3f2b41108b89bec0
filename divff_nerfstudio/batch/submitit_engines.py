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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from divff_nerfstudio.batch.engines import EngineError, Handle, Room, working_in
from divff_nerfstudio.batch.entries import Needs
from divff_nerfstudio.batch.records import HEARTBEAT, Heartbeat, read_record
from divff_nerfstudio.batch.worker import Job, end_program, run_job
from divff_nerfstudio.interrupts import handled

_WEEK = 7 * 24 * 60
_SLURM_SECONDS = 60
_USUAL_KILL_WAIT = 30.0
_ARRAY = 1000
"""Jobs of an array, at most: as many as Slurm takes where nobody has set MaxArraySize."""
_FULL = re.compile(
    r"\b(QOS|Assoc)(Max|Grp)Submit\w*Limit\b|job submit limit|temporarily unable to accept job|"
    r"Resource temporarily unavailable",
    re.IGNORECASE,
)
"""What sbatch says where there are as many jobs as a user, or all of them, may have: fewer at a time may do."""
_PASSING = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Connection refused|Connection timed out|"
    r"Zero Bytes were transmitted|Communication connection failure|Transport endpoint is not connected|"
    r"Slurm backup controller in standby mode",
    re.IGNORECASE,
)
"""What sbatch says where Slurm does not answer. Phrases of Slurm's own: a name of the user's is none."""
_PAUSES = (30.0, 300.0)
"""Seconds between two tries after refusals, the first and the longest: a controller that has too much to do is not to
be asked at each look."""
_PASSED_AFTER = 3600.0
"""Seconds after which such a refusal counts as one for good, where no job is left whose end could make room."""
_LEFT = re.compile(r"[0-9a-f]{32}\.pkl|\.submission_file_[0-9a-f]{32}\.sh")
"""Names of what submitit writes for jobs, until these are taken."""
_NUMBERS = ("array_parallelism", "nodes", "ntasks_per_node", "signal_delay_s")
"""What submitit reckons with, and takes as numbers alone."""
_OWN_OPTIONS = {
    "time": "--minutes",
    "mem": "--gigabytes",
    "cpus_per_task": "--cpus",
    "gpus_per_node": "--gpus",
}
"""Options of Slurm that a job's needs say, which are each step's own."""


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


@contextlib.contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Has a Ctrl-C wait until the block is done, and not end the programs that it starts: jobs whose handles nobody has
    could not be ended.
    """
    came = False

    def keep(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True

    try:
        with handled(keep, (signal.SIGINT,)):
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))  # which programs inherit
            try:
                yield
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    finally:
        if came:
            raise KeyboardInterrupt


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
    grace = None

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
        say: Is told, once of each reason, that jobs wait to be handed over.
    """

    settle = 30.0

    def __init__(
        self,
        folder: Path,
        options: Sequence[str] = (),
        at_once: int | None = None,
        say: Callable[[str], object] = lambda text: None,
    ):
        if shutil.which("sbatch") is None or shutil.which("squeue") is None:
            raise EngineError("There is no Slurm here (no sbatch): start the batch where jobs are submitted from.")
        self._folder, self._at_once, self._say = folder, at_once, say
        self._options = dict(map(_named, options))
        self._handed: set[Handle] = set()
        self._array = _ARRAY  # jobs of an array: fewer where Slurm refuses as many
        self._refused_since: float | None = None
        self._tried, self._pause = 0.0, 0.0
        self._told: set[bool] = set()
        with working_in(folder):
            self._executor = _submitit().SlurmExecutor(folder, max_num_timeout=20)

    @property
    def grace(self) -> float | None:
        """See `Engine`: Slurm's KillWait."""
        found = re.search(r"^KillWait\s*=\s*(\d+)", _slurm("scontrol", "show", "config") or "", re.MULTILINE)
        return float(found[1]) if found else _USUAL_KILL_WAIT

    def refuse(self, needs: Needs) -> str | None:
        """See `Engine`: Slurm refuses at the submission what no partition has."""
        return None

    def submit(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Handle]]:
        """See `Engine`."""
        if time.monotonic() - self._tried < self._pause:
            return
        room = len(jobs) if self._at_once is None else max(0, self._at_once - len(self._handed))
        groups: dict[Needs, list[Job]] = {}
        for job in jobs[:room]:
            groups.setdefault(job.needs, []).append(job)
        for needs, group in groups.items():
            self._tell(needs, int(group[0].patience.grace) + 30)
            left = group
            while left:
                array = left[: self._array]
                with _ctrl_c_later():  # also while they are told of: what was handed over is ended with the batch
                    given = self._taken(array, len(jobs))
                    if given is None:
                        if self._array < len(array):
                            continue
                        return  # the jobs wait, and are handed over at another look
                    yield from zip(array, given, strict=True)
                left = left[len(array) :]
                self._array = min(_ARRAY, 2 * self._array)

    def _taken(self, array: Sequence[Job], waiting: int) -> list[Handle] | None:
        """Hands jobs over.

        Returns:
            What Slurm calls them; None where it does not take them now: `_array` is then less if fewer may do.

        Raises:
            EngineError: If it will not take them later, either.
        """
        try:
            with working_in(self._folder):
                given = [each.job_id for each in self._given(array)]
        except (subprocess.CalledProcessError, _submitit().core.utils.FailedJobError) as error:
            self._tidy()
            self._judge(_short(error), len(array), waiting)
            return None
        self._refused_since, self._pause = None, 0.0
        self._handed.update(given)
        return given

    def _judge(self, told: str, size: int, waiting: int) -> None:
        """What follows from a refusal: smaller arrays, a pause, or an error where it does not pass by itself."""
        full = bool(_FULL.search(told))
        if full and size > 1:
            self._array = size // 2
            return
        now = time.monotonic()
        self._refused_since = now if self._refused_since is None else self._refused_since
        if not full and not _PASSING.search(told):
            raise EngineError(f"Slurm refuses the jobs ({told}): mend the needs, or --slurm.")
        # While some are handed over, their ends may make room, and giving up would end them, too.
        if not self._handed and now - self._refused_since >= _PASSED_AFTER:
            mend = "hand it fewer (--at-once), or wait for your other jobs" if full else "start the batch again later"
            raise EngineError(f"Slurm has taken no job for {_PASSED_AFTER / 60:g} min ({told}): {mend}.")
        self._tried, self._pause = now, min(max(_PAUSES[0], 2 * self._pause), _PAUSES[1])
        if full not in self._told:
            self._told.add(full)
            fewer = "; --at-once hands it fewer from the start" if full else ""
            self._say(f"Slurm does not take {waiting} jobs now ({told}): they wait, and it is asked again{fewer}.")

    def _tidy(self) -> None:
        """Removes what submitit has written for jobs that were refused; of those that were taken it has renamed it."""
        for path in self._folder.iterdir():
            if _LEFT.fullmatch(path.name) and not path.is_symlink():
                path.unlink(missing_ok=True)

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
        said |= {key: value for key, value in self._options.items() if key in known}
        more = {key: value for key, value in self._options.items() if key not in known}
        try:
            said |= {key: int(said[key]) for key in _NUMBERS if key in said}
            self._executor.update_parameters(**said, additional_parameters={"requeue": True, **more})
        except (TypeError, ValueError) as error:
            raise EngineError(f"--slurm is not as Slurm takes it ({_short(error)}): mend it.") from None

    def over(self, handles: Sequence[Handle]) -> set[Handle]:
        """See `Engine`; while Slurm does not answer, nothing is over."""
        found = _slurm("squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}")
        ended = set() if found is None else set(handles) - set(found.split())
        self._handed -= ended
        self._pause = min(self._pause, _PAUSES[0]) if ended else self._pause  # there may be room again
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
    name = name.replace("-", "_")
    if name in _OWN_OPTIONS:
        raise EngineError(f"--slurm {text} is what each step needs: give {_OWN_OPTIONS[name]} instead.")
    return name, value


def _slurm(*command: str) -> str | None:
    """What a command of Slurm's prints; None where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SLURM_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        time.sleep(1)
        return None


def _short(error: BaseException) -> str:
    return " ".join(str(getattr(error, "stderr", None) or error).split())[:300]
