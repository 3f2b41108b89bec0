"""Curves in TensorBoard's files, without which a training goes on where their disk is full."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE


class PatientWriter:
    """Hands on to another writer of curves until that can write no more.

    Args:
        behind: nerfstudio's writer.
    """

    def __init__(self, behind: Any):
        self._behind = behind
        self._ended = False

    def __getattr__(self, method: str) -> Callable[..., None]:
        """A method of nerfstudio's writers."""
        return partial(self._write, method)

    def _write(self, method: str, *event: Any) -> None:
        if self._ended:
            return
        try:
            getattr(self._behind, method)(*event)
        except OSError as error:
            self._ended = True
            CONSOLE.print(
                f"[yellow]The curves of this training end here, and it goes on without them ({error}): make room on "
                "the disk of its folder, where its checkpoints are to lie, too.",
                soft_wrap=True,
            )
            with contextlib.suppress(Exception):  # what is left is tried again at the end, and fails again
                self._behind.tb_writer.close()


def have_patience() -> None:
    """Puts a `PatientWriter` before each of nerfstudio's writers to TensorBoard's files."""
    for number, found in enumerate(writer.EVENT_WRITERS):
        if isinstance(found, writer.TensorboardWriter):
            writer.EVENT_WRITERS[number] = PatientWriter(found)
