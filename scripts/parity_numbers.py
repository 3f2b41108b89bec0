"""What the checks of parity with files of numbers share: differences, and a table of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from nerfstudio.utils.rich_utils import CONSOLE
from rich.table import Table
from torch import Tensor

Row = tuple[str, float, float]
"""An output's name, its largest absolute difference, and the largest that is allowed."""


def difference(found: dict[str, Tensor], name: str, expected: np.ndarray) -> float:
    """Largest absolute difference of an output; infinite where it is missing or of another shape."""
    wanted = torch.from_numpy(expected)
    same = name in found and found[name].shape == wanted.shape
    return float((found[name] - wanted).abs().max()) if same else float("inf")


def passes(title: str, rows: Sequence[Row]) -> bool:
    """Prints the difference of each output, and says whether all lie within their tolerances."""
    table = Table("output", "largest difference", "allowed", "", title=title)
    passed = True
    for name, found, allowed in rows:
        good = found <= allowed
        passed &= good
        table.add_row(name, f"{found:.2e}", f"{allowed:.0e}", "ok" if good else "[red]differs")
    CONSOLE.print(table)
    CONSOLE.print("All agree." if passed else "[red]There are differences.")
    return passed
