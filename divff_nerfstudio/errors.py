"""The errors that a user can mend."""

from __future__ import annotations

import errno
from pathlib import Path


class DivffError(RuntimeError):
    """Base of all errors that a user can mend; the message is one sentence with the file and the remedy."""


def first_line(error: BaseException) -> str:
    """What an error of a library says first; its kind where it says nothing."""
    return str(error).strip().split("\n", maxsplit=1)[0] or type(error).__name__


def install_extra(name: str) -> str:
    """How to get what an extra of this package brings, in the words of a remedy; pip alone cannot resolve it."""
    return f"uv pip install -c constraints.txt -e '.[{name}]' in the clone"


class DiskError(OSError, DivffError):
    """A file cannot be written because its disk is full, or a quota or the largest size of a file is reached."""

    def __str__(self) -> str:
        return (
            f"{self.filename} cannot be written ({self.strerror}): make room there, or choose another place, and start "
            "the same line again; what was there before is as it was."
        )


DISK_FULL = frozenset(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name))
"""Numbers of the errors that say so."""
_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGE = (b"<!doctype html", b"<html")


def stand_in(path: Path) -> str | None:
    """The sentence to say of a file in whose place something else lies, as downloads leave it; None: nothing such does.

    Args:
        path: A file that cannot be read as what it should be.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        with path.open("rb") as file:
            start = file.read(512)
    except (OSError, ValueError):
        return None
    if start.startswith(_POINTER):
        return f"{path} is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`."
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGE):
        return f"{path} is a web page, which a download has left in the file's place: fetch the file anew."
    return None
