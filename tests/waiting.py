"""Waits for what other threads and programs do: by what has happened, never by how long that takes."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from divff_nerfstudio.viewer.background import Latest

PATIENCE = 300.0
"""Seconds after which something hangs; on a machine with other work, all that does not may take minutes."""


def until(condition: Callable[[], object], what: str = "what is waited for") -> None:
    """Waits until a condition holds.

    Args:
        condition: Is asked again and again.
        what: What it is, for the message.

    Raises:
        AssertionError: If it does not hold in `PATIENCE` seconds.
    """
    end = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < end, f"{what} did not happen"
        sleep(0.01)


def until_idle(lane: Latest) -> None:
    """Waits until a thread of the panel has nothing under way, and nothing that waits."""
    until(lambda: lane.idle, "the end of a job")
