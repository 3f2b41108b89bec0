"""Ctrl-C and SIGTERM (Slurm, Docker, a shutdown): both end work in order, and the exit status tells which it was."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TerminatedError(KeyboardInterrupt):
    """SIGTERM has come; whatever a Ctrl-C closes in order is closed by it, too."""


def exit_status(number: int) -> int:
    """Status of a process that a signal has ended, as shells tell it: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + number


def say_at_once(text: str) -> None:
    """Prints a line to the standard error from a handler of signals, which may have interrupted another print."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


@contextlib.contextmanager
def handled(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers, numbers: Sequence[int] = SIGNALS
) -> Iterator[None]:
    """Has a handler called on Ctrl-C and SIGTERM while the block runs; elsewhere than in the main thread none is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in usual.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)


def raise_once() -> Callable[[int, FrameType | None], None]:
    """A handler that raises KeyboardInterrupt, or its `TerminatedError`.

    What comes while that is under way must not break off the closing of files: a SIGTERM is ignored then, as where a
    Ctrl-C reaches a program and the one that has started it, which passes it on. A Ctrl-C is obeyed each time.
    """
    raised = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        if number == signal.SIGINT:
            raised = True
            raise KeyboardInterrupt
        if not raised:
            raised = True
            raise TerminatedError

    return handler


def run_program(command: Sequence[str]) -> int:
    """Runs a program that saves what it has when it is ended, and gives it the time to do so.

    Args:
        command: The program and its words.

    Returns:
        Its exit status.

    Raises:
        KeyboardInterrupt: When this process was interrupted, after the program has ended.
    """
    with subprocess.Popen(command) as program:
        try:
            return program.wait()
        except BaseException:  # Ctrl-C goes to the program, too, where both are in a terminal; SIGTERM does not
            if os.name == "posix":
                program.terminate()
            program.wait()
            raise


def end_in_order() -> None:
    """Has Ctrl-C and SIGTERM end this process with its status from now on, whatever catches a KeyboardInterrupt.

    nerfstudio's launcher does, and ends with 0.
    """
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    say_at_once("Interrupted.")
    raise SystemExit(exit_status(number))
