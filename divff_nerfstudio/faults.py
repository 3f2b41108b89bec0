"""How errors that a user can mend are shown: as one sentence, also by nerfstudio's commands."""

from __future__ import annotations

import sys
from types import TracebackType

from divff_nerfstudio.files import DivffError


def say(text: str) -> None:
    """Prints text with rich's markup to the standard error, where nothing takes it for a result."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(text)


def tell(error: DivffError) -> None:
    """Prints an error's sentence to the standard error."""
    from rich.markup import escape

    say(f"[bold red]Error:[/] {escape(str(error))}")


def tell_uncaught() -> None:
    """Has the interpreter end with the sentence of a `DivffError` that nothing catches, in place of a stack trace.

    All other errors are shown as before.
    """
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, DivffError):
            tell(error)
        else:
            usual(kind, error, trace)

    sys.excepthook = hook
