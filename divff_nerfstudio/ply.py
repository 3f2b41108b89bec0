"""Points and Gaussians in PLY files."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from divff_nerfstudio.atomic import atomic_path


def write_ply(path: Path, columns: Mapping[str, np.ndarray], comments: Sequence[str] = ()) -> None:
    """Writes a binary, little-endian PLY file of vertices, whole or not at all.

    Args:
        path: The file.
        columns: Properties by name, each (points,), little-endian single precision or bytes.
        comments: Lines for readers of the header.
    """
    from plyfile import PlyData, PlyElement

    records = np.empty(len(next(iter(columns.values()))), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        records[name] = column
    plain = [" ".join(text.encode("ascii", "replace").decode().split()) for text in comments]
    with atomic_path(path) as temporary:
        PlyData([PlyElement.describe(records, "vertex")], byte_order="<", comments=plain).write(str(temporary))


def read_vertices(path: Path) -> Any:
    """The vertices of a PLY file: properties, (points,) each, by name.

    Args:
        path: The file.

    Raises:
        ValueError: If it is no ordinary file, or its header asks for more entries than the file has bytes; before any
            memory is asked for.
        Exception: What plyfile and the disk raise.
    """
    from plyfile import PlyData

    _check_counts(path)
    return PlyData.read(str(path))["vertex"]


def _check_counts(path: Path) -> None:
    """Raises ValueError where a file is none, such as a pipe, or a header asks for more entries than it has bytes."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no ordinary file")
    size = found.st_size
    with path.open("rb") as file:
        for line in file.read(1 << 16).split(b"\n"):
            words = line.split()
            if words[:1] == [b"element"] and len(words) == 3 and (not words[2].isdigit() or int(words[2]) > size):
                raise ValueError("its header asks for more entries than it has")
            if words == [b"end_header"]:
                return
    raise ValueError("it has no header")
