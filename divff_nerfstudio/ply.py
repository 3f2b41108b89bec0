"""Writing of points and Gaussians as PLY files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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
