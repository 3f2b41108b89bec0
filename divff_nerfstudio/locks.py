"""Locks that keep two processes from writing one thing; they end with their process, however that ends."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.heartbeat import beat

Lock = filelock.BaseFileLock
"""A lock that was taken; its method ``release`` lets go of it."""
_SIGN_SECONDS = 5.0
"""Time between two signs of life while a lock is waited for."""


def lock_path(path: Path) -> Path:
    """The file that is locked for a file or folder: hidden, beside it."""
    return path.with_name(f".{path.name}.lock")


def take_lock(path: Path, busy: DivffError, waiting: Callable[[], object] | None = None) -> Lock:
    """Takes the lock on a file or folder, which need not exist yet.

    A lock that a killed process has left does not count, nor does the file that stays behind a lock. Threads of one
    process keep each other out as processes do.

    Args:
        path: What is to be written. Its folder is made if necessary.
        busy: Raised where another process has the lock.
        waiting: Says that another process has it, and that this one waits for it; None: `busy` is raised.

    Returns:
        The lock, to be let go of by its method ``release``.

    Raises:
        DivffError: `busy`.
        OSError: If the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(lock_path(path), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if waiting is None:
            raise busy from None
        waiting()
        _wait(lock)
    return lock


def _wait(lock: Lock) -> None:
    """Waits for a lock, with signs of life: hours may pass in order, which would look like a program that hangs."""
    while True:
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=_SIGN_SECONDS)
            return
        beat(0, 0)  # nothing is counted, so that what follows may compute without counting


def is_locked(path: Path) -> bool:
    """Whether a process has the lock on a file or folder, asked by one that may only read there."""
    if sys.platform == "win32":
        return False
    import fcntl

    with contextlib.suppress(OSError), lock_path(path).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def locked(
    path: Path, busy: DivffError, waiting: Callable[[], object] | None = None, keep: bool = True
) -> Iterator[None]:
    """Has the lock on a file or folder while the block runs.

    Args:
        path: See `take_lock`.
        busy: See `take_lock`.
        waiting: See `take_lock`.
        keep: Leave the lock's file behind. Without, it goes with the lock, where nobody wants to see it (on Windows,
            which removes no open file, it stays): who has opened it meanwhile finds that out, and takes another.

    Raises:
        DivffError: As `take_lock`.
        OSError: As `take_lock`.
    """
    lock = take_lock(path, busy, waiting)
    try:
        yield
    finally:
        if not keep and sys.platform != "win32":
            lock_path(path).unlink(missing_ok=True)
        lock.release()
