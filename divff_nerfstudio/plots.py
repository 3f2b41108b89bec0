"""Plots that are drawn alike on every machine, whatever settings of Matplotlib lie around."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from divff_nerfstudio.atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def plot(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Gives a figure to draw on, which is written as PNG when the block ends.

    A matplotlibrc in the working directory, which may be a stranger's folder, could start programs: none is heeded.

    Args:
        path: The picture's file.
        width: In inches.
        height: In inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
