"""Writing of files and folders that are there whole or not at all, and removing what killed writers have left."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from divff_nerfstudio.errors import DISK_FULL, DiskError, DivffError

_PROBE_BYTES = 1 << 20


@contextlib.contextmanager
def atomic_path(path: Path | str, sync: bool = True) -> Iterator[Path]:
    """Gives a temporary path beside `path` that takes its place when the block ends without an error.

    Readers see the old content or the whole new one, never a part, and two writers do not mix. The temporary name
    keeps the suffix, since many writers choose the format by it. A directory may be written, too; it takes the place
    only of a path that does not exist yet. After an error nothing is left of what was written; what writers of the same
    path have left that were killed, on this machine, goes first.

    Args:
        path: Where the content shall be. Its folder is made if necessary.
        sync: Wait until a file is on the disk. Without, a power failure may leave an empty one, and what killed
            writers have left stays: only for files of which there are thousands, and that can be made again.

    Yields:
        The path to write to; it does not exist yet.

    Raises:
        DiskError: If the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{_machine()}{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if sync:
            remove_left_behind(path.parent, path)
        yield temporary
        if sync and temporary.is_file():
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        if isinstance(error, DivffError) or (number := _disk_fault(error, temporary)) is None:
            raise
        raise DiskError(number, os.strerror(number), str(path)) from error
    finally:
        remove(temporary)


def write_text(path: Path | str, text: str, sync: bool = True) -> None:
    """Writes a text as UTF-8, whole or not at all: see `atomic_path`."""
    with atomic_path(path, sync) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it, if it is there and that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(FileNotFoundError, PermissionError):
        path.unlink()


def remove_unfinished(folder: Path, pattern: str = "*") -> None:
    """Removes what killed writers have left of the paths in a folder, wherever they ran.

    Only for who has the lock on all that is written there under such names: another writer would lose its work.

    Args:
        folder: The folder; what lies deeper stays.
        pattern: Names of the paths without their suffixes, as of `Path.glob`.
    """
    for path in folder.glob(f".{pattern}.tmp*"):
        if _UNFINISHED.fullmatch(path.name):
            remove(path)


_UNFINISHED = re.compile(r"\.(?P<stem>.+)\.(?P<process>\d+)-(?P<machine>[0-9a-f]{0,8})[0-9a-f]{8}\.tmp(?P<suffix>.*)")


def remove_left_behind(folder: Path, path: Path | None = None) -> None:
    """Removes what writers have left that ran on this machine and are no more.

    Args:
        folder: Folder in which they wrote; what lies deeper stays.
        path: What they wrote; None: anything.
    """
    if os.name != "posix":  # elsewhere a process cannot be asked after without ending it
        return
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith("." if path is None else f".{path.stem}.")]
    for name in names:
        found = _UNFINISHED.fullmatch(name)
        if found is None or (path is not None and (found["stem"], found["suffix"]) != (path.stem, path.suffix)):
            continue
        if found["machine"] == _machine() and not _runs(int(found["process"])):
            remove(folder / name)


def _runs(process: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@lru_cache
def _machine() -> str:
    """Eight digits for where numbers of processes mean the same: this machine, or this container of it."""
    marks = [platform.node()]
    for read in (
        lambda: Path("/etc/machine-id").read_text(encoding="utf-8"),
        lambda: str(Path("/proc/self/ns/pid").readlink()),
    ):
        with contextlib.suppress(OSError):
            marks.append(read())
    return hashlib.sha256("\n".join(marks).encode()).hexdigest()[:8]


def _disk_fault(error: OSError | RuntimeError, temporary: Path) -> int | None:
    """Number of the error that says that the disk is full, if that is why writing failed.

    Some writers tell it without its number (NumPy, Pillow, torch): then a little more is written, which the system
    answers.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in DISK_FULL else None
    if not temporary.exists():
        return None
    try:
        with (temporary / "probe" if temporary.is_dir() else temporary).open("ab") as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as found:
        return found.errno if found.errno in DISK_FULL else None
    return None
