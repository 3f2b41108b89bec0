"""Compares the method divff-paper with what the published code has computed, from cameras to gradients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import tyro
from nerfstudio.utils.rich_utils import CONSOLE
from parity_stages import Parity
from rich.table import Table
from torch import Tensor

from divff_nerfstudio.errors import DivffError

INPUTS = ("in/", "loss_in/", "tolerance/")
"""Groups of arrays that are not results; the rays among them are computed from the cameras all the same."""
INPUT_NAMES = (
    *("pe/points", "pe/dir_in", "lre/indices", "sample_pdf/bins", "sample_pdf/weights", "nerf_fine/input_218"),
    *("nerf_coarse/input_90", "heads/input", "ae/input_512", "ae/decode_in", "relevancy/embed", "grad/param_names"),
)
HALF, RELATIVE = 2e-4, 1e-5
"""Allowed in the half-precision path, and as a part of losses and gradients."""
TOLERANCES = (("sigma", 1e-4), ("rgbs_", 2e-5), ("encoding_", 2e-5), ("output_", 2e-5), ("alphas", 1e-5), ("z_", 1e-5))
TOLERANCES += (("depth", 1e-5), ("det_", 1e-5))
"""Largest absolute difference by a part of an array's name: densities, colours and features of single samples,
opacities and depths."""
RENDERED = 3e-6
"""Of everything else: weights, rendered colours and features, relevancies."""
SHARE = 1e-6
"""Difference of a distribution's values that single precision explains."""
LEAST = 1e-5
"""An interval with a smaller share of the distribution gives its beginning (DIV-FF)."""


@dataclass
class DivffParityConfig:
    """Checks the method divff-paper against numbers of the published code; fails where they differ."""

    npz: tyro.conf.Positional[Path]
    """File of numbers, such as divff_reference_a.npz: inputs, intermediate and final outputs."""
    checkpoint: Path
    """The weights that they were computed with."""
    autoencoder: Path
    """The scene's autoencoder that they were computed with."""
    real_autoencoder: Optional[Path] = None  # noqa: UP045
    """The autoencoder of the arrays ae_real; by default autoencoder_real_*.pth beside the file of numbers."""

    def main(self) -> bool:
        """Prints the largest difference of each array.

        Returns:
            Whether all lie within their tolerances, and none is unknown.
        """
        rows = compare(self.npz, self.checkpoint, self.autoencoder, self.real_autoencoder)
        table = Table("array", "shape", "largest difference", "allowed", "", title=f"DIV-FF, {self.npz.name}")
        for row in rows:
            verdict = "ok" if row.passed else "[red]unknown" if row.allowed is None else "[red]differs"
            table.add_row(row.name, str(row.shape), f"{row.difference:.2e}", row.limit, verdict)
        CONSOLE.print(table)
        failed = [row.name for row in rows if not row.passed]
        CONSOLE.print(f"[red]There are differences: {', '.join(failed)}" if failed else f"All {len(rows)} agree.")
        return not failed


@dataclass
class Row:
    """One array of the file, compared."""

    name: str
    """Its name in the file."""
    shape: tuple[int, ...]
    """Its shape."""
    difference: float
    """Largest difference, absolute or as a part of the largest number; infinite if there is nothing to compare."""
    allowed: float | None
    """The largest that is allowed; None for an array that is not known."""
    relative: bool = False
    """Whether these are parts."""
    rounded: bool = False
    """Whether the file holds numbers rounded to half precision: neighbours of these are allowed, too."""
    neighbours: bool = False
    """Whether all of them are equal or neighbours."""

    @property
    def passed(self) -> bool:
        """Whether the array agrees."""
        return self.allowed is not None and (self.difference <= self.allowed or self.neighbours)

    @property
    def limit(self) -> str:
        """What is allowed, in words."""
        if self.allowed is None:
            return ""
        return f"{self.allowed:.1e}{' of it' if self.relative else ' or next half' if self.rounded else ''}"


def compare(npz: Path, checkpoint: Path, autoencoder: Path, real_autoencoder: Path | None = None) -> list[Row]:
    """Computes every array of a file through the package's modules, and compares.

    Raises:
        DivffError: If a file is not what it should be.
    """
    try:
        with np.load(npz, allow_pickle=False) as file:
            data = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise DivffError(f"{npz} cannot be read ({error}): give divff_reference_a.npz or its like.") from None
    if real_autoencoder is None:
        real_autoencoder = next(iter(sorted(npz.parent.glob("autoencoder_real_*.pth"))), None)
    try:
        samples = data["test_f32/z_coarse"].shape[1], data["test_f32/z_importance"].shape[1]
        parity = Parity(data, checkpoint, autoencoder, real_autoencoder, samples)
        found = parity.compute()
    except KeyError as error:
        raise DivffError(f"{npz} or {checkpoint} lacks {error}: give a file of numbers and its own weights.") from None
    own = dict(zip(map(str, data["tolerance/names"]), data["tolerance/max_abs_f32_minus_f64"], strict=True))
    wanted = [name for name in data if not name.startswith(INPUTS) and name not in INPUT_NAMES]
    drawn, kinks = parity.distributions(), parity.kinks() if any(name.startswith("grad/") for name in wanted) else {}
    return [
        _drawn_row(name, found.get(name), data[name], *drawn[name])
        if name in drawn
        else _row(name, found.get(name), data[name], own, kinks.get(name))
        for name in ("in/rays", *wanted)
    ]


def _drawn_row(name: str, found: Tensor | None, expected: np.ndarray, edges: Tensor, weights: Tensor) -> Row:
    """Positions drawn from a distribution: ours and the file's both lie where it has the value that was drawn."""
    if found is None or tuple(found.shape) != expected.shape or not found.isfinite().all():
        return Row(name, expected.shape, float("inf"), allowed_difference(name))
    apart = [
        misplaced(np.asarray(positions, np.float64), edges.double().numpy(), weights.double().numpy()).max()
        for positions in (found.numpy(), expected)
    ]
    return Row(name, expected.shape, float(max(apart)), allowed_difference(name))


def misplaced(positions: np.ndarray, edges: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How far positions lie from those at which a distribution has the values 0, ..., 1 in even steps.

    Where the distribution is flat, a value that is rounded otherwise is reached far away. So it is the values that
    are compared: a position is right if the distribution's value there is the wanted one but for `SHARE`. Intervals of
    a share below `LEAST` give their beginning, or the right position where rounding takes them above it.

    Args:
        positions: (rays, count), drawn without chance.
        edges: (rays, intervals + 1), ends of the intervals, ascending.
        weights: (rays, intervals), before 1e-5 is added to each.

    Returns:
        (rays, count), in units of the edges.
    """
    raised = weights + 1e-5
    shares = np.cumsum(raised, -1) / raised.sum(-1, keepdims=True)
    shares = np.concatenate((np.zeros_like(shares[:, :1]), shares), -1)
    wanted = np.linspace(0, 1, positions.shape[1])
    apart = np.empty_like(positions)
    for row, (share, edge) in enumerate(zip(shares, edges, strict=True)):
        low, high = (np.interp(np.clip(wanted + slack, 0, 1), share, edge) for slack in (-SHARE, SHARE))
        inside = np.clip(np.searchsorted(share, wanted - SHARE, side="right") - 1, 0, len(edge) - 2)
        low = np.where(np.diff(share)[inside] < LEAST + SHARE, np.minimum(low, edge[inside]), low)
        apart[row] = np.maximum(0, np.maximum(low - positions[row], positions[row] - high))
    return apart


def allowed_difference(name: str) -> float:
    """Largest absolute difference of an array that is allowed on any machine."""
    group, short = name.rsplit("/", 1)
    if group == "test_half":
        return HALF
    return next((value for part, value in TOLERANCES if part in short), RENDERED)


def _row(
    name: str, found: Tensor | None, expected: np.ndarray, own: dict[str, float], kinks: np.ndarray | None = None
) -> Row:
    if found is None:
        return Row(name, expected.shape, float("inf"), None)
    group, short = name.rsplit("/", 1)
    relative = group.startswith(("loss", "grad"))
    allowed = RELATIVE if relative else max(allowed_difference(name), 4 * float(own.get(short, 0.0)))
    values, expected = found.detach().numpy().astype(np.float64), expected.astype(np.float64)
    if values.shape != expected.shape or not np.isfinite(values).all():
        return Row(name, expected.shape, float("inf"), allowed, relative)
    difference = np.abs(values - expected)
    if name == "grad/l2_norm":  # each norm by itself; those of unused parameters are 0
        scale = np.maximum(np.abs(expected), 1e-12)
    else:
        scale = np.abs(expected).max() if relative else 1.0
    difference = difference / scale
    if kinks is not None:
        allowed += 2 * float((kinks / scale).max())
    half = np.abs(expected).astype(np.float16)
    # What is rounded to half precision here and there may fall on neighbours, which above 1/4 are farther apart than
    # what is allowed.
    rounded = group == "test_half" and bool((half == np.abs(expected)).all())
    neighbours = rounded and bool((difference <= np.maximum(allowed, np.spacing(half))).all())
    return Row(name, expected.shape, float(difference.max()), allowed, relative, rounded, neighbours)
