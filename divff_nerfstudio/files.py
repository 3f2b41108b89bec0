"""Reading and writing files safely: atomic writes, checked configs, places for caches."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import os
import platform
import re
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import yaml


class DivffError(RuntimeError):
    """Base of all errors that a user can mend; the message is one sentence with the file and the remedy."""


class UnsafeConfigError(DivffError):
    """A ``config.yml`` asks for Python objects that no configuration of ours contains."""


def split_words(text: str, option: str) -> list[str]:
    """Words of options for another command, quoted as in a shell.

    Args:
        text: The words in one text.
        option: Where a user gave it.

    Raises:
        DivffError: If a quotation does not end.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise DivffError(f"{option} {text!r} cannot be taken apart ({error}): close the quotation.") from None


class DiskError(OSError, DivffError):
    """A file cannot be written because its disk is full, or a quota or the largest size of a file is reached."""

    def __str__(self) -> str:
        return (
            f"{self.filename} cannot be written ({self.strerror}): make room there, or choose another place, and start "
            "the same line again; what was there before is as it was."
        )


DISK_FULL = frozenset(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name))
"""Numbers of the errors that say so."""
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


def is_writable(folder: Path) -> bool:
    """Whether files may be made in `folder`, by its mode bits, too: an administrator passes every other check."""
    return folder.is_dir() and bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)


def user_cache_dir(scene_root: Path | str) -> Path:
    """Place for what is computed from a scene whose own folder must not be written to.

    It lies in `_cache_base` and is not made here.

    Args:
        scene_root: Folder of the scene; two scenes of one name in different places get different folders.
    """
    root = Path(scene_root).resolve()
    return _cache_base() / f"{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:12]}"


def weights_dir() -> Path:
    """Place for weights of other people's models, ``weights`` in `_cache_base`. It is not made here."""
    return _cache_base() / "weights"


def _cache_base() -> Path:
    """``$DIVFF_CACHE_DIR``, else ``$XDG_CACHE_HOME/divff``, else ``~/.cache/divff``.

    Where a home cannot be written to, it is in the folder for temporary files.
    """
    chosen = os.environ.get("DIVFF_CACHE_DIR")
    if chosen:
        return Path(chosen)
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    existing = next((folder for folder in (home, *home.parents) if folder.exists()), home)
    return (home if is_writable(existing) else Path(tempfile.gettempdir())) / "divff"


_PLAIN_TAGS = frozenset(
    f"python/{name}"
    for name in ("none", "bool", "str", "unicode", "bytes", "int", "long", "float", "complex", "list", "tuple", "dict")
)
_OURS = ("nerfstudio", "divff_nerfstudio")
_OPTIMIZERS = ("torch.optim",)
_PATHS = frozenset(("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"))
_FUNCTIONS = frozenset(
    f"nerfstudio.data.utils.nerfstudio_collate.{name}" for name in ("nerfstudio_collate", "variable_res_collate")
)


def _class_of(name: str, packages: tuple[str, ...]) -> type | None:
    """The class called `name`, if it is defined in one of `packages`."""

    def inside(module: str) -> bool:
        return any(module == package or module.startswith(package + ".") for package in packages)

    module, _, attribute = name.rpartition(".")
    if not inside(module):
        return None
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception:  # importing may fail in any way, and what cannot be imported is refused
        return None
    return found if isinstance(found, type) and inside(found.__module__) else None


def _tag_is_safe(tag: str) -> bool:
    kind, _, name = tag.partition(":")
    if not kind.startswith("python/"):
        return True
    if kind in _PLAIN_TAGS:
        return True
    if kind == "python/name":
        return name in _FUNCTIONS or _class_of(name, _OURS + _OPTIMIZERS) is not None
    if kind == "python/object":
        found = _class_of(name, _OURS)
        return found is not None and is_dataclass(found)
    if kind == "python/object/apply":
        module, _, attribute = name.rpartition(".")
        if module in ("pathlib", "pathlib._local"):
            return attribute in _PATHS
        if name == "collections.OrderedDict":
            return True
        found = _class_of(name, _OURS)
        return found is not None and issubclass(found, Enum)
    return False


def _is_enum_member(tag: str, content: Sequence[yaml.Event]) -> bool:
    """Whether a call of getattr does no more than name a member of an enumeration, as Python up to 3.11.3 writes it."""
    if tag != "python/object/apply:builtins.getattr" or len(content) < 3:
        return False
    owner, member, end = content
    if not (isinstance(owner, yaml.ScalarEvent) and isinstance(member, yaml.ScalarEvent) and member.tag is None):
        return False
    found = _class_of((owner.tag or "").removeprefix("tag:yaml.org,2002:python/name:"), _OURS)
    if found is None or not issubclass(found, Enum):
        return False
    return member.value in found.__members__ and isinstance(end, yaml.SequenceEndEvent)


def check_config_yaml(path: Path | str) -> None:
    """Refuses a run's ``config.yml`` that could execute code when nerfstudio reads it.

    nerfstudio reads it with a YAML loader that builds any Python object and calls any function. Those of our runs name
    configuration dataclasses, classes of nerfstudio and of this package, optimizers, enumerations and paths only.

    Args:
        path: The file.

    Raises:
        UnsafeConfigError: If it names anything else, or is no YAML.
    """
    path = Path(path)

    def refuse(reason: str) -> NoReturn:
        raise UnsafeConfigError(f"{path} is refused because {reason}: use the config.yml that ns-train wrote.")

    if not path.is_file():
        refuse("there is no such file")
    try:
        events = list(yaml.parse(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader))
        anchors: dict[str, yaml.Event] = {}
        for number, event in enumerate(events):
            if not isinstance(event, yaml.AliasEvent) and getattr(event, "anchor", None):
                anchors[event.anchor] = event
            tag = getattr(event, "tag", None)
            if tag is None:
                continue
            short = tag.removeprefix("tag:yaml.org,2002:")
            content = [
                anchors.get(each.anchor, each) if isinstance(each, yaml.AliasEvent) else each
                for each in events[number + 1 : number + 4]
            ]
            if not _tag_is_safe(short) and not _is_enum_member(short, content):
                refuse(f"it asks for {short}, which no configuration of ours contains")
    except (yaml.YAMLError, UnicodeDecodeError):
        refuse("it is not readable YAML")
