"""What the C library does with memory that is given back: kept for what comes next, or returned to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's numbers of its parameters (malloc.h)."""


def keep_freed_memory() -> None:
    """Has this process keep what it frees, from now on.

    glibc maps each large block anew and returns it at once, and the system clears its pages each time, on which a
    training step on a CPU spends a third of its time, while several threads wait for each other. What is kept is used
    again, but the process stays as large as it has once been, until `return_freed_memory`. Elsewhere than in glibc, and
    where the user has settled it by glibc's variables, nothing is changed.
    """
    settled = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if settled or (set_parameter := _in_glibc("mallopt")) is None:
        return
    # Older versions refuse more than 32 MiB. What is taken first ends glibc's own adjusting: it must be this.
    if set_parameter(_MMAP_THRESHOLD, 2**30) or set_parameter(_MMAP_THRESHOLD, 2**25):
        set_parameter(_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Gives what has been freed back to the system, where this is glibc; others do it by themselves."""
    if (trim := _in_glibc("malloc_trim")) is not None:
        trim(0)


@cache
def _in_glibc(name: str) -> ctypes._NamedFuncPointer | None:
    """A function of glibc; None where the C library is another."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return getattr(library, name, None) if hasattr(library, "gnu_get_libc_version") else None
