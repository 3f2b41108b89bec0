"""Places that are to be written, looked at before work begins."""

from __future__ import annotations

import os
from pathlib import Path

from divff_nerfstudio.errors import DivffError


class OutputError(DivffError):
    """Something cannot be written where it shall be."""


def check_output_file(path: Path, suffix: str, option: str = "--output") -> Path:
    """Finds out whether a file can be written, or replaced.

    Args:
        path: The file.
        suffix: How its name ends: its format, and what keeps another file from being replaced by mistake.
        option: What the path was given by.

    Returns:
        The path.

    Raises:
        OutputError: If not.
    """
    if path.suffix.lower() != suffix:
        raise OutputError(f"{option} is {path}: give a file whose name ends in {suffix}.")
    if _at(path, path.is_dir, option):
        raise OutputError(f"{path} is a folder where {option} is to be a file: give a file in it.")
    check_output_folder(path.parent, option)
    return path


def check_output_folder(path: Path, option: str = "--output") -> Path:
    """Finds out whether files can be written into a folder, which need not exist yet.

    Args:
        path: The folder.
        option: What the path was given by.

    Returns:
        The path.

    Raises:
        OutputError: If not.
    """
    there = path.absolute()
    while not _at(path, there.exists, option) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise OutputError(f"{there} is a file where {option} needs a folder: give another path.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"Nothing can be written into {there}, as {option} asks: give another path.")
    return path


def _at(path: Path, look: object, option: str) -> bool:
    """What a look at the disk says.

    Raises:
        OutputError: If the system does not take the path for one.
    """
    try:
        return look()  # pyright: ignore[reportCallIssue]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{option} cannot be {str(path)[:200]} ({reason}): give another path.") from None
