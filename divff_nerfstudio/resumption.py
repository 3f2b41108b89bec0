"""What a training is gone on with: written whole, random generators and all, and looked at before it is made use of."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.optim import Optimizer

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.checkpoints import CheckpointError
from divff_nerfstudio.errors import DivffError, first_line
from divff_nerfstudio.training_folder import TrainingError, step_in_name

MAX_STEPS = 10**9
"""Steps have nine digits in the names of checkpoints."""
STATE = frozenset(("step", "pipeline", "optimizers", "schedulers", "scalers", "random"))
"""What a checkpoint holds."""


def require_run(path: Path, state: Any) -> None:
    """Refuses what is no checkpoint of a run, and one whose step cannot be.

    Args:
        path: The file.
        state: What was read from it.

    Raises:
        TrainingError: If it is none.
        CheckpointError: If its step is none, or another one than its name tells.
    """
    if not isinstance(state, dict) or not state.keys() >= STATE:
        raise TrainingError(
            f"{path} is no checkpoint of a run: give one that ns-train wrote; those that were published are "
            "taken over by `divff import`."
        )
    step, named = state["step"], step_in_name(path)
    first = -1 if state["optimizers"] == {} else 0  # weights that were imported have no step behind them
    if not isinstance(step, int) or isinstance(step, bool) or not first <= step < MAX_STEPS:
        raise CheckpointError(f"{path} says that {step!r} is its step, which cannot be: take an earlier checkpoint.")
    if named is not None and named != max(step, 0):
        raise CheckpointError(
            f"{path} holds step {step}, not the one that its name tells: give it the name of its step, or take "
            "another checkpoint."
        )


@contextlib.contextmanager
def telling_damage(path: Path) -> Iterator[None]:
    """Says of a file which does not hold what it should that it is damaged, wherever that is found out."""
    try:
        yield
    except DivffError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise CheckpointError(f"{path} is damaged ({what}): take an earlier checkpoint.") from error


def require_optimizers(path: Path, states: Mapping[str, Any], optimizers: Mapping[str, Optimizer]) -> None:
    """Refuses states of optimizers that do not fit their parameters, or hold values that are not finite.

    Args:
        path: The file, for messages.
        states: What it holds, by the optimizers' names; those that it lacks begin anew.
        optimizers: Those of the run, with the parameters that were loaded.

    Raises:
        CheckpointError: If one does not fit.
    """

    def refuse(what: str) -> CheckpointError:
        return CheckpointError(f"{path} does not fit this run ({what}): take another checkpoint.")

    if unknown := sorted(states.keys() - optimizers.keys()):
        raise refuse(f"it has an optimizer {unknown[0]}, which the run has not")
    for name, state in states.items():
        own, groups = optimizers[name].param_groups, state["param_groups"]
        if [len(group["params"]) for group in own] != [len(group["params"]) for group in groups]:
            raise refuse(f"its optimizer {name} has other parameters")
        numbers = [number for group in groups for number in group["params"]]
        parameters = dict(zip(numbers, (each for group in own for each in group["params"]), strict=True))
        if not _is_finite([{key: value for key, value in group.items() if key != "params"} for group in groups]):
            raise refuse(f"the settings of its optimizer {name} are not finite")
        for number, moments in state["state"].items():
            for key, value in moments.items():
                what = f"{key} of its optimizer {name}"
                if key == "step":
                    if not 0 <= float(value) < MAX_STEPS:
                        raise refuse(f"{what} is {float(value):g}")
                    continue
                parameter = parameters[number]
                if (value.shape, value.dtype) != (parameter.shape, parameter.dtype):
                    raise refuse(f"{what} is of another shape or type than its parameter")
                if not bool(value.isfinite().all()):
                    raise refuse(f"{what} is not finite")


def require_finite(path: Path, state: Any, what: str) -> None:
    """Refuses numbers that are not finite, in lists and dictionaries, too.

    Raises:
        CheckpointError: If there is one.
    """
    if not _is_finite(state):
        raise CheckpointError(f"{path} has values that are not finite in its {what}: take an earlier checkpoint.")


def _is_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    return not isinstance(value, (float, complex)) or math.isfinite(abs(value))


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint under a temporary name and renames it.

    The temporary file lies outside the folder of checkpoints, in which nerfstudio's commands take every file, even one
    that a killed process has left, for a checkpoint.

    Raises:
        TrainingError: If it cannot be written; what was there before stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.parent.resolve().parent / path.name  # on its disk, where the folder is a link
        with atomic_path(unfinished) as temporary:
            torch.save(state, temporary)
        unfinished.replace(path)
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be written ({error.strerror or error}): make room there, and go on from the checkpoint "
            f"before it, if there is one, with --load-dir {path.parent}"
        ) from error


def random_state(resident: bool) -> dict[str, Tensor]:
    """State of torch's generators, from which all sampling comes.

    Args:
        resident: Whether batches are drawn in the memory of the device, by its generator.
    """
    state = {"cpu": torch.get_rng_state(), "resident": torch.tensor(resident)}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Tensor], resident: bool) -> None:
    """Restores what `random_state` has returned; a generator of an absent device is left out.

    Args:
        state: The state.
        resident: Whether batches are drawn in the memory of the device now.
    """
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    before = bool(state.get("resident", resident))
    if before != resident:
        CONSOLE.print(
            f"Frames {'lay' if before else 'did not lie'} in the memory of the device before, which now is otherwise: "
            "batches are drawn by another generator than in an unbroken run. If that matters, stop, and give "
            f"--pipeline.datamanager.resident {'on' if before else 'off'}."
        )
