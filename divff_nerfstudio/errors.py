"""The errors that a user can mend."""

from __future__ import annotations

import errno


class DivffError(RuntimeError):
    """Base of all errors that a user can mend; the message is one sentence with the file and the remedy."""


class DiskError(OSError, DivffError):
    """A file cannot be written because its disk is full, or a quota or the largest size of a file is reached."""

    def __str__(self) -> str:
        return (
            f"{self.filename} cannot be written ({self.strerror}): make room there, or choose another place, and start "
            "the same line again; what was there before is as it was."
        )


DISK_FULL = frozenset(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name))
"""Numbers of the errors that say so."""
