"""The end of a training of Gaussians that has left what can be computed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from divff_nerfstudio.errors import DivffError


class DivergenceError(DivffError):
    """Training has left what can be computed."""


def stop_if_diverged(step: int, values: Mapping[str, Tensor]) -> None:
    """Stops if any of these values is not finite.

    Args:
        step: The training step.
        values: Losses or parameters, by name.

    Raises:
        DivergenceError: With their names.
    """
    if wrong := [name for name, value in values.items() if not value.isfinite().all()]:
        raise DivergenceError(
            f"Step {step}: {', '.join(wrong)} not finite: training has diverged. Resume from an earlier checkpoint "
            "with --load-dir and --load-step, and lower learning rates, for example --optimizers.means.optimizer.lr."
        )
