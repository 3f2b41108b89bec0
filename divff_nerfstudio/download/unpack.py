"""Unpacking parts of an archive from a stranger: every path is checked before anything is written."""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from divff_nerfstudio.files import DivffError, atomic_path

MOST_MEMBERS = 2_000_000
"""An archive with more entries than this is refused."""
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError, NotImplementedError,
    ValueError,
)  # fmt: skip


class ArchiveError(DivffError):
    """An archive is damaged, or wants something that no data set needs."""


@dataclass(frozen=True)
class Member:
    """A regular file in an archive."""

    name: PurePosixPath
    """Its path, checked: relative, without '..'."""
    size: int
    """Bytes, unpacked."""
    open: Callable[[], IO[bytes]] = field(repr=False)
    """Opens its content."""


@dataclass(frozen=True)
class Unpacked:
    """What has become of the members that were asked for."""

    written: int
    """Files written."""
    present: int
    """Files that were there already, of the same size."""
    kept: tuple[Path, ...]
    """Files that were there with another size, and stay."""


def _checked_name(archive: Path, name: str) -> PurePosixPath:
    """A member's path as a relative one."""
    path = PurePosixPath(name)
    first = path.parts[0] if path.parts else ""
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or ":" in first:
        raise ArchiveError(
            f"{archive} holds the path {name!r}, which leads out of the folder it is unpacked into: do not use it, "
            "fetch it anew from its publisher."
        )
    return path


@contextmanager
def open_archive(archive: Path, largest: int) -> Iterator[list[Member]]:
    """Opens a zip or tar archive and checks everything in it by name and size.

    Args:
        archive: The file; its kind is told by its content.
        largest: Bytes that it may unpack to, at most.

    Yields:
        Its regular files.

    Raises:
        ArchiveError: If it is damaged, holds a path that leads out, a link, a device, a path twice, or too much.
    """
    try:
        with archive.open("rb") as file:
            start = file.read(4)
        if start.startswith(b"PK"):
            with zipfile.ZipFile(archive) as opened:
                yield _checked(archive, _zip_members(archive, opened), largest)
        else:
            with tarfile.open(archive) as opened:
                yield _checked(archive, _tar_members(archive, opened), largest)
    except _DAMAGE as error:
        raise ArchiveError(f"{archive} is truncated or no archive ({error}): delete it and fetch it anew.") from None


def check_archive(archive: Path, largest: int) -> None:
    """Raises ArchiveError where `open_archive` would."""
    with open_archive(archive, largest):
        pass


def _checked(archive: Path, members: Iterator[Member], largest: int) -> list[Member]:
    total, checked, names = 0, [], set()
    for member in members:
        total += member.size
        if total > largest or len(checked) >= MOST_MEMBERS:
            raise ArchiveError(
                f"{archive} unpacks to more than {largest / 1e9:.1f} GB or {MOST_MEMBERS} files, which no data set "
                "here has: do not use it, fetch it anew from its publisher."
            )
        if member.name in names:
            raise ArchiveError(f"{archive} holds {member.name} twice: do not use it, fetch it from its publisher.")
        names.add(member.name)
        checked.append(member)
    return checked


def _refuse_kind(archive: Path, name: str, kind: str) -> ArchiveError:
    return ArchiveError(
        f"{archive} holds {name!r}, which is {kind} and not a plain file: do not use it, fetch it from its publisher."
    )


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[Member]:
    for info in opened.infolist():
        name = _checked_name(archive, info.orig_filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refuse_kind(archive, info.filename, "a link" if kind == stat.S_IFLNK else "a device")
        if info.flag_bits & 1:
            raise ArchiveError(f"{archive} is encrypted: fetch it anew from its publisher.")
        if not info.is_dir():
            yield Member(name, info.file_size, lambda info=info: opened.open(info))


def _tar_members(archive: Path, opened: tarfile.TarFile) -> Iterator[Member]:
    for info in opened:
        name = _checked_name(archive, info.name)
        if info.isdir():
            continue
        if not info.isreg():
            raise _refuse_kind(archive, info.name, "a link" if info.issym() or info.islnk() else "a device")
        yield Member(name, info.size, lambda info=info: _opened(opened, info))


def _opened(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = opened.extractfile(info)
    if file is None:
        raise tarfile.ReadError(f"{info.name} cannot be read")
    return file


def _differs(member: Member, target: Path) -> bool:
    """Whether a file of the archive's size has another content."""
    with member.open() as source, target.open("rb") as file:
        while chunk := source.read(1 << 20):
            if chunk != file.read(len(chunk)):
                return True
    return False


def unpack(
    archive: Path,
    root: Path,
    place: Callable[[PurePosixPath], PurePosixPath | None],
    largest: int,
    overwrite: bool = False,
) -> Unpacked:
    """Unpacks what is asked for, each file as a whole or not at all; what is there already is not written again.

    Args:
        archive: The zip or tar archive.
        root: Folder to unpack into.
        place: From a path in the archive to the path below `root`, or None where it is not asked for.
        largest: Bytes that the archive may unpack to, at most.
        overwrite: Replace files that differ from the archive's; otherwise those of another size stay, and those of the
            same size count as there already.

    Raises:
        ArchiveError: As by `open_archive`, before anything is written; or if a file in it is damaged; or if there is
            no room.
    """
    from rich.progress import track

    with open_archive(archive, largest) as members:
        wanted, present, kept = [], 0, []
        for member in members:
            relative = place(member.name)
            if relative is None:
                continue
            target = root.joinpath(*_checked_name(archive, str(relative)).parts)
            if (
                target.is_file()
                and target.stat().st_size == member.size
                and not (overwrite and _differs(member, target))
            ):
                present += 1
            elif target.exists() and not overwrite:
                kept.append(target)
            else:
                wanted.append((member, target))
        _ensure_inside(archive, root, [target for _, target in wanted])
        root.mkdir(parents=True, exist_ok=True)
        needed, free = sum(member.size for member, _ in wanted), shutil.disk_usage(root).free
        if needed > free:
            raise ArchiveError(
                f"{root} has {free / 1e9:.1f} GB free where {archive.name} needs {needed / 1e9:.1f}: make room there."
            )
        for member, target in track(wanted, description=f"Unpacking {archive.name}", disable=not wanted):
            with member.open() as source, atomic_path(target, sync=False) as temporary, temporary.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
                if file.tell() != member.size:
                    raise EOFError(f"{member.name} ends early")
        return Unpacked(len(wanted), present, tuple(kept))


def _ensure_inside(archive: Path, root: Path, targets: list[Path]) -> None:
    """Refuses targets that a link on this disk would lead out of `root`."""
    base = root.resolve()
    for parent in {target.parent for target in targets}:
        if not parent.resolve().is_relative_to(base):
            raise ArchiveError(
                f"{parent} leads out of {root} by a link, so {archive.name} is not unpacked there: remove the link."
            )
