"""What the C library does with memory that is given back: kept for what comes next, or returned to the system."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's numbers of its parameters (malloc.h)."""


def keep_freed_memory() -> None:
    """Has this process keep what it frees, from now on.

    glibc maps each large block anew and returns it at once, and the system clears its pages each time: a training step
    on a CPU does little else with half of its time, and several threads wait for each other. What is kept is used
    again; a process takes what it needed at its peak, as before. Elsewhere than in glibc nothing is changed.
    """
    if (set_parameter := _in_glibc("mallopt")) is not None:
        set_parameter(_MMAP_THRESHOLD, 2**30)
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
