"""A fixed basis that shows high-dimensional features as colours, the same for every image and time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_SAMPLES, _OUTLIERS = 20_000, 0.02
"""About so many rows are looked at, evenly spaced; so large a share of them may be clipped at each end of a direction.
"""


@dataclass(frozen=True)
class FeatureBasis:
    """Three directions of feature space and the range of the values along them.

    A basis that is fitted anew for every image changes its colours from frame to frame; this one is fitted once, to the
    features that were distilled.
    """

    mean: Float[Tensor, "dim"]
    """Mean of the features."""
    directions: Float[Tensor, "dim 3"]
    """Principal directions, as unit columns."""
    low: Float[Tensor, "3"]
    """Value along each direction that is shown as 0."""
    high: Float[Tensor, "3"]
    """Value along each direction that is shown as 1."""

    def to(self, device: torch.device | str) -> FeatureBasis:
        """The same basis on another device."""
        return FeatureBasis(*(part.to(device) for part in (self.mean, self.directions, self.low, self.high)))


@torch.no_grad()
def fit_feature_basis(table: Float[Tensor, "rows dim"] | np.ndarray) -> FeatureBasis:
    """Fits the three principal directions of a table of features.

    Args:
        table: Features, one a row, of any float type; of a memory-mapped array only the rows looked at are read.

    Returns:
        The basis. The sign of a direction makes its largest component positive, so that two fits agree.

    Raises:
        ValueError: If the table has no row, or fewer than three columns.
    """
    rows, dimension = table.shape
    if rows == 0 or dimension < 3:
        raise ValueError(f"a basis of colours needs rows of at least three values, not a table of {rows} x {dimension}")
    step = max(1, rows // _SAMPLES)
    chosen = table[step // 2 :: step]
    chosen = (torch.from_numpy(np.array(chosen)) if isinstance(chosen, np.ndarray) else chosen).float()
    mean = chosen.mean(dim=0)
    centred = chosen - mean
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -3:].flip(-1)
    largest = directions.abs().argmax(dim=0)
    directions = directions * directions.gather(0, largest[None]).sign()
    along = centred @ directions
    low, high = torch.quantile(along, along.new_tensor([_OUTLIERS, 1 - _OUTLIERS]), dim=0)
    return FeatureBasis(mean, directions, low, high)


def project(features: Float[Tensor, "*bs dim"], basis: FeatureBasis) -> Float[Tensor, "*bs 3"]:
    """Shows features as colours.

    Args:
        features: What to show.
        basis: From `fit_feature_basis`, on the same device.

    Returns:
        Colours in [0, 1].
    """
    along = (features - basis.mean) @ basis.directions
    return ((along - basis.low) / (basis.high - basis.low).clamp_min(1e-8)).clamp(0, 1)
