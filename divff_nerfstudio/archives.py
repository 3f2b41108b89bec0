"""Archives from strangers: everything in a zip or tar is looked at by name and size before anything is read."""

from __future__ import annotations

import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from divff_nerfstudio.errors import DivffError, stand_in

MAX_MEMBERS = 2_000_000
"""An archive with more entries than this is refused."""
DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError, NotImplementedError,
    ValueError, OverflowError,
)  # fmt: skip
"""What the standard library raises where an archive is damaged."""

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")
"""How files begin that gzip, bzip2 and xz have compressed."""


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


def is_litter(path: PurePosixPath) -> bool:
    """Whether a file is what file managers leave behind: hidden (``._NAME`` of a Mac), ``Thumbs.db`` and the like."""
    return (
        "__MACOSX" in path.parts
        or path.name in ("Thumbs.db", "desktop.ini")
        or any(part.startswith(".") for part in path.parts)
    )


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def checked_name(archive: Path, name: str) -> PurePosixPath:
    """A member's path as a relative one."""
    path = PurePosixPath(name)
    first = path.parts[0] if path.parts else ""
    if not _is_text(name):
        raise ArchiveError(f"{archive} holds the path {name!r}, which is no UTF-8 text: pack it anew with plain names.")
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or ":" in first:
        raise ArchiveError(
            f"{archive} holds the path {name!r}, which leads out of the folder it is unpacked into: do not use it, "
            "fetch it anew from its publisher."
        )
    return path


@contextmanager
def open_archive(archive: Path, max_bytes: int) -> Iterator[list[Member]]:
    """Opens a zip or tar archive and checks everything in it by name and size.

    Args:
        archive: The file; its kind is told by its content.
        max_bytes: Bytes that it may unpack to, at most.

    Yields:
        Its regular files, but for those that `is_litter` tells.

    Raises:
        ArchiveError: If it is damaged, holds a path that leads out, a link, a device, a path twice, or too much.
    """
    try:
        with archive.open("rb") as file:
            start = file.read(4)
        if start.startswith(b"PK"):
            with zipfile.ZipFile(archive) as opened:
                yield _checked(archive, _zip_members(archive, opened), max_bytes)
        else:
            with tarfile.open(archive) as opened:
                yield _checked(archive, _tar_members(archive, opened), max_bytes)
    except DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")
        said = f"{archive} is truncated or no archive ({reason}): delete it and fetch it anew."
        raise ArchiveError(stand_in(archive) or said) from None


def is_compressed_tar(path: Path) -> bool:
    """Whether an archive can only be read from its beginning on."""
    with path.open("rb") as file:
        return file.read(6).startswith(_COMPRESSED)


def check_archive(archive: Path, max_bytes: int) -> None:
    """Raises ArchiveError where `open_archive` would."""
    with open_archive(archive, max_bytes):
        pass


def _checked(archive: Path, members: Iterator[Member], max_bytes: int) -> list[Member]:
    total, checked, names = 0, [], set()
    for member in members:
        total += member.size
        if total > max_bytes or len(checked) >= MAX_MEMBERS:
            raise ArchiveError(
                f"{archive} unpacks to more than {max_bytes / 1e9:.1f} GB or {MAX_MEMBERS} files, which no data set "
                "here has: do not use it, fetch it anew from its publisher."
            )
        if (folded := str(member.name).casefold()) in names:
            raise ArchiveError(
                f"{archive} holds {member.name} twice, or with capitals and without: do not use it, fetch it from its "
                "publisher, or pack it anew."
            )
        names.add(folded)
        checked.append(member)
    return checked


def _refuse_kind(archive: Path, name: str, kind: str) -> ArchiveError:
    return ArchiveError(
        f"{archive} holds {name!r}, which is {kind} and not a plain file: do not use it, fetch it from its publisher."
    )


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[Member]:
    for info in opened.infolist():
        written = info.orig_filename.replace("\\", "/")  # some programs of Windows write their own separator
        name = checked_name(archive, written)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refuse_kind(archive, info.filename, "a link" if kind == stat.S_IFLNK else "a device")
        if info.flag_bits & 1:
            raise ArchiveError(f"{archive} is encrypted: fetch it anew from its publisher.")
        if not written.endswith("/") and not is_litter(name):
            yield Member(name, info.file_size, lambda info=info: opened.open(info))


def _tar_members(archive: Path, opened: tarfile.TarFile) -> Iterator[Member]:
    for info in opened:
        name = checked_name(archive, info.name)
        if info.isdir() or is_litter(name):
            continue
        if not info.isreg():
            raise _refuse_kind(archive, info.name, "a link" if info.issym() or info.islnk() else "a device")
        yield Member(name, info.size, lambda info=info: _opened(opened, info))
    while opened.fileobj is not None and opened.fileobj.read(1 << 20):
        pass  # what is compressed has its checksum at its end


def _opened(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = opened.extractfile(info)
    if file is None:
        raise tarfile.ReadError(f"{info.name} cannot be read")
    return file
