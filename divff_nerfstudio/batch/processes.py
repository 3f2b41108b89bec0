"""A program under watch: it is ended where it gives no sign of life, and with it all that it has started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from divff_nerfstudio.heartbeat import FILE, Beat, read_beat

POLL = 0.25
"""Seconds between two looks at a program."""
_TAIL_BYTES = 16384
_BUSY, _BUSY_SHARE = 0.05, 0.01
"""CPU-seconds that count as a sign of life, and as a share of the time since the last one: a thread that only looks
whether something has come, in a program that hangs, is none."""
_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux: the signal that a process gets when the one that has started it ends."""


@dataclass(frozen=True)
class Ended:
    """How a program has ended."""

    status: int
    """Its exit status; negative, the number of the signal that has killed it."""
    hung: bool
    """Whether it was ended because it gave no sign of life."""
    told: str
    """The last of what it has printed."""
    lacked_memory: bool
    """Whether the system has killed something for lack of memory meanwhile."""


@dataclass(frozen=True)
class Patience:
    """How long a program is waited for."""

    silence: float = 900.0
    """Seconds without a sign of life after which it is ended."""
    grace: float = 60.0
    """Seconds between SIGTERM, at which it saves what it has, and SIGKILL."""


def watch(
    command: Sequence[str],
    folder: Path,
    log: Path,
    signs: Path,
    patience: Patience,
    on_look: Callable[[int, Beat | None], None],
    environment: Mapping[str, str],
) -> Ended:
    """Runs a program until it ends, or is ended.

    A sign of life is what it writes by `heartbeat.beat`. Before the first one, behind the last of those that it counts,
    and where it never writes any, it is enough that it computes or prints.

    Args:
        command: The program and its words.
        folder: Where it is run.
        log: File to which what it prints is added.
        signs: File for its signs of life.
        patience: How long it is waited for.
        on_look: Called now and then with its number and its last sign of life.
        environment: Variables that it gets besides this process's.
    """
    signs.unlink(missing_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    killed_before = memory_kills()
    with log.open("ab") as out:
        start = out.tell()
        program = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment, FILE: str(signs), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that a Ctrl-C reaches the batch alone, and all of it can be ended at once
            preexec_fn=_prepare if os.name == "posix" else None,  # noqa: PLW1509  (it calls the system alone)
        )
    hung = False
    try:
        life = _Life(program.pid, signs, log)
        while _waits(program):
            on_look(program.pid, life.beat)
            if life.silent_for() > patience.silence:
                hung = True
                end_group(program, patience.grace)
                break
    finally:
        end_group(program, patience.grace)
    with log.open("rb") as printed:
        printed.seek(max(start, log.stat().st_size - _TAIL_BYTES))
        told = printed.read().decode("utf-8", errors="replace")
    return Ended(program.returncode, hung, told, memory_kills() > killed_before)


def _waits(program: subprocess.Popen[bytes]) -> bool:
    """Waits a moment; whether the program still runs."""
    try:
        program.wait(POLL)
    except subprocess.TimeoutExpired:
        return True
    return False


class _Life:
    """Finds out since when a program gives no sign of life."""

    def __init__(self, process: int, signs: Path, log: Path):
        self.process, self.signs, self.log = process, signs, log
        self.beat: Beat | None = None
        self._seen: object = None
        self._cpu, self._printed, self._last = 0.0, 0, time.monotonic()

    def silent_for(self) -> float:
        """Seconds since the last sign of life."""
        now = time.monotonic()
        with contextlib.suppress(OSError):
            state = self.signs.stat()
            seen = (state.st_ino, state.st_mtime_ns)
            if seen != self._seen:
                self._seen, self.beat, self._last = seen, read_beat(self.signs) or self.beat, now
        if self.beat is None or self.beat.done == self.beat.of:
            cpu, printed = cpu_seconds(self.process), self.log.stat().st_size
            busy = max(_BUSY, _BUSY_SHARE * (now - self._last))
            if cpu > self._cpu + busy or printed > self._printed:
                self._cpu, self._printed, self._last = cpu, printed, now
        return now - self._last


def end_group(program: subprocess.Popen[bytes], grace: float) -> None:
    """Ends a program and all that it has started: SIGTERM, and SIGKILL after a while."""
    if program.poll() is None:
        signal_group(program.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(grace)
    signal_group(program.pid, signal.SIGKILL)
    program.wait()


def signal_group(leader: int, number: int) -> None:
    """Sends a signal to the processes that a program has started, and to itself, if they are still there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def _prepare() -> None:
    """Has a command get SIGTERM when the job that has started it is killed, and none of what Slurm tells jobs alone.

    Before a job's time is over, Slurm sends the signal that says so to all of its processes, and it kills those that
    know nothing of it.
    """
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)


def cpu_seconds(session: int) -> float:
    """CPU time of the processes of a session, and of those that they have ended; 0 where the system does not tell."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text("utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[3]) == session:
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_kills() -> int:
    """How many processes the system has killed in this one's control group for lack of memory; 0 where it is untold."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines():
            _, kinds, place = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            root = Path("/sys/fs/cgroup/memory" if kinds else "/sys/fs/cgroup")
            name = "memory.oom_control" if kinds else "memory.events"
            for folder in (root / place.lstrip("/"), root):
                if (folder / name).is_file():
                    words = (folder / name).read_text("utf-8").split()
                    return int(words[words.index("oom_kill") + 1])
    return 0
