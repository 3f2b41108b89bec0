"""Work beside the viewer's own threads, of which only the newest piece counts."""

from __future__ import annotations

import threading
from collections.abc import Callable

Job = Callable[[], None]


class Latest:
    """A thread that does one job after another; a job that waits is replaced by a newer one.

    So typing leaves no queue behind it: whatever is under way ends, then the newest job is done.

    Args:
        name: Name of the thread.
        failed: Called with what a job has raised; the thread goes on.
    """

    def __init__(self, name: str, failed: Callable[[Exception], None]):
        self._name, self._failed = name, failed
        self._condition = threading.Condition()
        self._waiting: Job | None = None
        self._busy = False
        self._thread: threading.Thread | None = None

    def submit(self, job: Job) -> None:
        """Has a job done soon, in place of one that still waits."""
        with self._condition:
            self._waiting = job
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._condition.notify()

    @property
    def outdated(self) -> bool:
        """Whether a newer job waits: a long one asks now and then, and gives way."""
        return self._waiting is not None

    @property
    def idle(self) -> bool:
        """Whether nothing is under way or waits."""
        with self._condition:
            return not self._busy and self._waiting is None

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting is not None)
                job, self._waiting, self._busy = self._waiting, None, True
            try:
                assert job is not None
                job()
            except Exception as error:  # the thread must live on, and the user see what happened
                self._failed(error)
            with self._condition:
                self._busy = False
