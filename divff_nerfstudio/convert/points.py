"""Points of the room from a PLY file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from divff_nerfstudio.convert.names import ConvertError
from divff_nerfstudio.errors import stand_in
from divff_nerfstudio.ply import read_vertices
from divff_nerfstudio.schema import MAX_NUMBER


def read_points(path: Path | None) -> Float[np.ndarray, "p 3"]:
    """Vertices of a PLY file; none where there is no file.

    Raises:
        ConvertError: If it is missing, no PLY file, or has a point that is nowhere.
    """
    if path is None:
        return np.empty((0, 3))
    import plyfile

    try:
        vertices = read_vertices(path)
        points = np.stack([np.asarray(vertices[axis], np.float64) for axis in "xyz"], axis=1)
    except FileNotFoundError:
        raise ConvertError(f"{path} is missing: put the points there, or give --points.") from None
    except (plyfile.PlyParseError, KeyError, ValueError, TypeError, OSError, OverflowError, IndexError) as error:
        said = f"{path} is no PLY file with points ({error}): give another as --points."
        raise ConvertError(stand_in(path) or said) from None
    if not (np.abs(points) <= MAX_NUMBER).all():
        raise ConvertError(f"{path} has a point whose position is no finite number: give another as --points.")
    return points
