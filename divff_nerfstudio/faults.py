"""How errors that a user can mend are shown: as one sentence, also by nerfstudio's commands."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from types import TracebackType

from divff_nerfstudio.errors import DISK_FULL, DivffError


def show_any_text() -> None:
    """Has letters that the output's encoding does not have written as codes, where they would end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Prints text with rich's markup to the standard error, where nothing takes it for a result."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(text)


def shown(text: str) -> str:
    """A text that may hold a stranger's words, such as names of files, without what commands a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def tell(error: DivffError) -> None:
    """Prints an error's sentence to the standard error."""
    from rich.markup import escape

    say(f"[bold red]Error:[/] {escape(shown(str(error)))}")


def mendable(error: BaseException) -> DivffError | None:
    """An error as one that a user can mend; None if it is a fault of the program."""
    if isinstance(error, DivffError):
        return error
    if _is_lack_of_memory(error):
        reason = " ".join(str(error).split())[:160]
        return DivffError(
            f"The memory is not enough{f' ({reason})' if reason else ''}: ask for smaller pictures or less at a time "
            "(--cell-height, --cloud.views, --pipeline.model.eval-num-rays-per-chunk in config.yml, an encoder's "
            "batch), or end other programs."
        )
    if _is_loop(error):
        return DivffError(f"{str(error).removeprefix(_LOOP)} is a link to itself: give the place that it is to name.")
    if (package := _left_out(error)) is not None:
        return DivffError(
            f"This command needs the package {package}, a part of nerfstudio that is not installed here: "
            f"uv pip install {package}."
        )
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return DivffError(
            f"{error.filename or 'A file'} cannot be written ({error.strerror}): make room on its disk and start the "
            "same line again."
        )
    if isinstance(error, OSError) and not isinstance(error, (BlockingIOError, ChildProcessError)):
        named = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return DivffError(
            f"{named or 'A file or a connection'} cannot be used ({error.strerror or error}): see to the path, its "
            "rights and its disk."
        )
    return None


def _is_lack_of_memory(error: BaseException) -> bool:
    words = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in words or "can't allocate memory" in words)
    )


_LOOP = "Symlink loop from "
"""How Python up to 3.12 begins to tell of a path that never ends."""


def _is_loop(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith(_LOOP)


LEFT_OUT = {
    "comet_ml": "comet-ml",
    "wandb": "wandb",
    "open3d": "open3d",
    "pymeshlab": "pymeshlab",
    "xatlas": "xatlas",
    "gdown": "gdown",
    "plotly": "plotly",
    "newrawpy": "newrawpy",
    "nuscenes": "nuscenes-devkit",
    "pyngrok": "pyngrok",
}
"""Packages, by what is imported, that nerfstudio asks for and our install leaves out."""


def _left_out(error: BaseException) -> str | None:
    """The package to install for an import that failed; None if it is no part of nerfstudio that is left out."""
    if not isinstance(error, ModuleNotFoundError):
        return None
    return LEFT_OUT.get((error.name or "").partition(".")[0])


def _is_about_what_was_typed(error: BaseException) -> bool:
    """Whether a file cannot be used that stands in the command line."""
    if not isinstance(error, OSError) or not isinstance(error.filename, (str, os.PathLike)):
        return False
    words = {part for word in sys.argv[1:] for part in (word, word.partition("=")[2]) if part}
    return Path(error.filename) in {Path(word) for word in words}


def tell_uncaught() -> None:
    """Has the interpreter end with a sentence for an error that nothing catches, in place of a stack trace.

    It does so for a `DivffError`, for a lack of memory, for a full disk, for a file that was typed and cannot be used,
    and for a part of nerfstudio that is not installed, and tells a Ctrl-C while programs start in a word; all other
    errors are shown as before.
    """
    usual = sys.excepthook
    if usual.__module__ == __name__:
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        full = isinstance(error, OSError) and error.errno in DISK_FULL
        known = isinstance(error, DivffError) or full or _is_lack_of_memory(error) or _is_loop(error)
        known = known or _left_out(error) is not None
        told = mendable(error) if known or _is_about_what_was_typed(error) else None
        if told is not None:
            tell(told)
        elif isinstance(error, KeyboardInterrupt):
            say("Interrupted.")
        else:
            usual(kind, error, trace)

    sys.excepthook = hook
