"""Unpacking parts of an archive from a stranger: every path is checked before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from divff_nerfstudio.archives import ArchiveError, Member, checked_name, open_archive
from divff_nerfstudio.atomic import atomic_path, remove_left_behind


@dataclass(frozen=True)
class Unpacked:
    """What has become of the members that were asked for."""

    written: int
    """Files written."""
    present: int
    """Files that were there already, of the same size."""
    kept: tuple[Path, ...]
    """Files that were there with another size, and stay."""


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
    max_bytes: int,
    overwrite: bool = False,
) -> Unpacked:
    """Unpacks what is asked for, each file as a whole or not at all; what is there already is not written again.

    Args:
        archive: The zip or tar archive.
        root: Folder to unpack into.
        place: From a path in the archive to the path below `root`, or None where it is not asked for.
        max_bytes: Bytes that the archive may unpack to, at most.
        overwrite: Replace files that differ from the archive's; otherwise those of another size stay, and those of the
            same size count as there already.

    Raises:
        ArchiveError: As by `open_archive`, before anything is written; or if a file in it is damaged; or if there is
            no room.
    """
    from rich.progress import track

    with open_archive(archive, max_bytes) as members:
        wanted, present, kept = [], 0, []
        for member in members:
            relative = place(member.name)
            if relative is None:
                continue
            target = root.joinpath(*checked_name(archive, str(relative)).parts)
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
        for folder in {target.parent for _, target in wanted if target.parent.is_dir()}:
            remove_left_behind(folder)
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
