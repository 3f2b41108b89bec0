"""What the checks of parity with files of numbers share: differences, and a table of them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from nerfstudio.utils.rich_utils import CONSOLE
from rich.table import Table
from torch import Tensor

from divff_nerfstudio.errors import DivffError

Row = tuple[str, float, float]
"""An output's name, its largest absolute difference, and the largest that is allowed."""


@contextlib.contextmanager
def reading(npz: Path, what: str) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of a file of numbers, as long as they are looked for what should be among them.

    Raises:
        DivffError: If the file cannot be read, or lacks something.
    """
    try:
        with np.load(npz, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        yield arrays
    except (OSError, ValueError, KeyError) as error:
        raise DivffError(
            f"{npz} holds no numbers of {what} ({error}): give {what.lower()}_tiny.npz or its like."
        ) from None


def weights_of(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The state dict among the arrays of a file of numbers."""
    return {name.removeprefix("sd/"): torch.from_numpy(arrays[name]) for name in arrays if name.startswith("sd/")}


@contextlib.contextmanager
def saved(content: object) -> Iterator[Path]:
    """A file with what is published in such a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "published.pth"
        torch.save(content, path)
        yield path


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
