"""What runs the jobs of a batch: a small interface, with which schedulers that people have are used."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from divff_nerfstudio.batch.entries import Needs
from divff_nerfstudio.batch.worker import Job
from divff_nerfstudio.errors import DivffError

EngineName = Literal["local", "slurm", "ray"]
_CONTROL_GROUP = Path("/sys/fs/cgroup")
Handle = str
"""What an engine calls a job that it was given."""


class EngineError(DivffError):
    """An engine cannot be used, or cannot do what a manifest asks for."""


class Engine(Protocol):
    """Runs jobs; it keeps no books of what is finished."""

    settle: float
    """Seconds that a job's files may take to be seen here after its end, as on shared disks."""

    @property
    def grace(self) -> float | None:
        """Seconds after which the engine itself kills a job that was told to end; None where it does not."""
        ...

    def refuse(self, needs: Needs) -> str | None:
        """Says why no job with such needs could ever run, or None."""
        ...

    def submit(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Handle]]:
        """Takes as many of the jobs as it has room for, and tells of each as it does: a later one may be refused."""
        ...

    def over(self, handles: Sequence[Handle]) -> set[Handle]:
        """Which jobs are no longer waiting or running."""
        ...

    def reason(self, handle: Handle) -> str | None:
        """What the engine says of how a job has ended; None where it does not tell."""
        ...

    def end(self, handle: Handle) -> None:
        """Has a job save what it has, and end."""
        ...

    def kill(self, handle: Handle) -> None:
        """Ends a job at once, which has not ended when it was told to."""
        ...

    def close(self) -> None:
        """Lets go of the engine; no job runs any more."""
        ...


@dataclass(frozen=True)
class Room:
    """What a machine has for jobs."""

    cpus: int
    """Cores."""
    gigabytes: float
    """Memory that is free."""
    cards: tuple[str, ...]
    """Cards, by what CUDA_VISIBLE_DEVICES calls them."""

    def refuse(self, needs: Needs) -> str | None:
        """Says why no job with such needs could ever run here, or None."""
        for what, asked, there in (
            ("cores", needs.cpus or 0, self.cpus),
            ("GB of memory", needs.gigabytes or 0, self.gigabytes),
            ("cards", needs.gpus or 0, len(self.cards)),
        ):
            if asked > there:
                return f"it asks for {asked:g} {what}, and this machine has {there:g} free"
        return None


def this_machine() -> Room:
    """What this process may use of its machine."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Room(cpus, _free_gigabytes(), _cards())


def _free_gigabytes() -> float:
    """Memory that is free, of the machine and of the control group; boundless where the system does not tell."""
    found = float("inf")
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text("utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                found = int(line.split()[1]) / 2**20
    for folder, limit_file, used_file, cached in (
        (_CONTROL_GROUP, "memory.max", "memory.current", "inactive_file"),
        (_CONTROL_GROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):
            limit, taken = (int((folder / name).read_text("utf-8")) for name in (limit_file, used_file))
            told = dict(line.split() for line in (folder / "memory.stat").read_text("utf-8").splitlines())
            found = min(found, (limit - taken + int(told.get(cached, 0))) / 2**30)  # files kept in memory make room
    return max(found, 0.0)


def _cards() -> tuple[str, ...]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(part.strip() for part in chosen.split(",") if part.strip() and part.strip() != "-1")
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return ()
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Has processes start in a folder of ours: Python imports from where it is started, which may be anyone's."""
    folder.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
