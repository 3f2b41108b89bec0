"""Which code of others is imported: classes that a user has named, installed or allowed, and none that a file names.

A scene or a run may come from a stranger. What its files say is looked up among names that are known, and the working
directory, which may be a stranger's folder, is never a place to import from.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import TypeVar

from divff_nerfstudio.errors import DivffError

ENTRY_POINTS = "divff_nerfstudio.plugins"
"""Entry point group by which an installed package offers classes under names of their own."""
ALLOWED = "DIVFF_PLUGINS"
"""Environment variable with the classes, ``module:Class`` and commas between, that files may ask for."""
_CLASS_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_LAUNCH = "import sys; sys.path[:] = filter(None, sys.path); import runpy; del sys.argv[0]; " + (
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)
"""Runs a module as ``python -m`` does, with the working directory off the path before anything is imported."""

T = TypeVar("T")


class PluginError(DivffError):
    """A class of somebody else's cannot be used, or may not."""


def plugin_class(
    name: str, base: type[T], what: str, registered: Mapping[str, str], also: Iterable[str] = ()
) -> type[T]:
    """The class that a user has named, on the command line or in Python.

    Args:
        name: A registered name, one of an installed package's entry points, or ``module:Class``.
        base: Class that it must be derived from.
        what: What it is, in words.
        registered: The package's own, ``module:Class`` by name.
        also: Further names that a user may give, for the message.

    Raises:
        PluginError: If it cannot be imported or is not derived from `base`.
    """
    target = registered.get(name) or _installed().get(name) or name
    known = (*also, *registered)
    choice = f"choose from {', '.join(known)}, or give your own as module:Class" if known else "give module:Class"
    if not _CLASS_NAME.fullmatch(target):
        raise PluginError(f"There is no {what} {name}: {choice}.")
    return _imported(target, base, what, choice)


def class_of_file(name: str, base: type[T], what: str, registered: Mapping[str, str]) -> type[T]:
    """The class that a file names, which may come from a stranger.

    Args:
        name: A registered name, or that of a class which the user has installed or allowed.
        base: Class that it must be derived from.
        what: What it is and for what, in words.
        registered: The package's own, ``module:Class`` by name.

    Raises:
        PluginError: If it is not registered, and the user's own configuration does not allow it; nothing is imported
            then. Or if it is allowed and cannot be imported.
    """
    own, installed = set(registered.values()), _installed()
    target = registered.get(name) or installed.get(name) or name
    if target not in own and not is_allowed(name):
        hint = (
            f"if you know and trust that code, allow it by {ALLOWED}={name} in the environment, its folder in "
            "PYTHONPATH"
            if _CLASS_NAME.fullmatch(name)
            else f"install the package that offers it in the entry point group {ENTRY_POINTS}"
        )
        raise PluginError(
            f"The {what} is to be {name!r:.120}, which is none of this package's ({', '.join(registered)}), and files "
            f"do not decide what is imported: {hint}."
        )
    return _imported(target, base, what, "install it, or put its folder in PYTHONPATH")


def is_allowed(name: str) -> bool:
    """Whether a file may ask for a class: by an entry point of an installed package or by the user's `ALLOWED`."""
    listed = (each.strip() for each in os.environ.get(ALLOWED, "").split(","))
    installed = _installed()
    return name in installed or name in installed.values() or name in set(filter(None, listed))


def classes_named(words: Iterable[str]) -> list[str]:
    """The classes, ``module:Class``, that words of a command line name."""
    return [part for word in words for part in re.split(r"[=,\s]", word) if _CLASS_NAME.fullmatch(part)]


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this Python as a program of its own, as ``python -m`` does.

    ``python -m`` would put the working directory first among the places to import from.
    """
    return [sys.executable, "-c", _LAUNCH, module, *arguments]


def _installed() -> dict[str, str]:
    """Classes that installed packages offer, ``module:Class`` by name."""
    return {entry.name: entry.value for entry in entry_points(group=ENTRY_POINTS)}


def _imported(target: str, base: type[T], what: str, choice: str) -> type[T]:
    module, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        missing = isinstance(error, ImportError)
        place = "; a module in the working directory is found with PYTHONPATH=. before the command" if missing else ""
        raise PluginError(f"The {what} {target} cannot be imported ({error}){place}: {choice}.") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise PluginError(f"{target} is no {base.__name__}: derive it from {base.__module__}:{base.__qualname__}.")
    return found
