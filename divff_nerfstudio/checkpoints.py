"""Reading weights that other programs have saved, without running anything that their files say."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from divff_nerfstudio.errors import DivffError, stand_in
from divff_nerfstudio.schema import MAX_COUNT

Shape = tuple[int, ...]


class CheckpointError(DivffError):
    """A checkpoint cannot be read, or does not fit what it is read for."""


class _Inert(dict):
    """Stands where a file names a class that is neither imported nor needed: takes everything and does nothing."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Forgets the state."""


_UNNEEDED = (
    "argparse.Namespace",
    *(
        f"{package}.{name}"
        for package in ("pytorch_lightning", "lightning.pytorch")
        for name in (
            "callbacks.model_checkpoint.ModelCheckpoint",
            "callbacks.early_stopping.EarlyStopping",
            "callbacks.lr_monitor.LearningRateMonitor",
            "utilities.parsing.AttributeDict",
        )
    ),
)
"""Classes that Lightning's checkpoints name (as keys of "callbacks", or around hyper-parameters)."""


def read_checkpoint(path: Path | str, mapped: bool = False) -> Any:
    """Reads what `torch.save` has written, on the CPU, whatever device it was saved on.

    Only tensors and plain data are built; Lightning's own classes are replaced by empty ones, and a file that names
    any other function or class is refused before it is called.

    Args:
        path: The file, in the zip format or in the one before it.
        mapped: Map tensors into memory where the format allows it, so that only those which are used are read.

    Raises:
        CheckpointError: If it is missing, damaged, no such file, or asks for anything else.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: give the checkpoint file in it.")
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}: see where the checkpoint lies.")
    stand_ins = [(_Inert, name) for name in _UNNEEDED]
    try:
        with torch.serialization.safe_globals(stand_ins):  # pyright: ignore[reportArgumentType]
            mapped = mapped and zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged or hostile file may fail in any way
        if asked := re.search(r"GLOBAL (\S+) (was not an allowed|whose module)", str(error)):
            raise CheckpointError(
                f"{path} is refused because it asks for {asked[1]}, which no file of weights needs: none of it was run."
            ) from None
        raise CheckpointError(
            stand_in(path)
            or f"{path} is no readable checkpoint (damaged, cut short, or something else): fetch it anew."
        ) from None


def require_whole(path: Path | str) -> None:
    """Refuses a file of weights that was cut short.

    The zip format has its directory at the end; the format before it must be read to the end.

    Args:
        path: The file.

    Raises:
        CheckpointError: If it is no whole file of `torch.save`.
    """
    if not zipfile.is_zipfile(path):
        read_checkpoint(path)


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Reads the weights of a checkpoint: its "state_dict" where it has one, else what the file itself holds.

    Args:
        path: See `read_checkpoint`.

    Returns:
        As `weights_of`.

    Raises:
        CheckpointError: As `read_checkpoint` and `weights_of`.
    """
    return weights_of(path, read_checkpoint(path))


def weights_of(path: Path | str, content: Any) -> dict[str, Tensor]:
    """The weights in what `read_checkpoint` has read.

    Args:
        path: The file, for messages.
        content: What it holds.

    Returns:
        The tensors by name, floating ones in single precision.

    Raises:
        CheckpointError: If there are no named tensors, or one is not finite.
    """
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if (
        not isinstance(weights, dict)
        or not weights
        or not all(isinstance(name, str) and _has_values(value) for name, value in weights.items())
    ):
        raise CheckpointError(
            f"{path} holds no dictionary of named tensors: give a checkpoint with a state_dict, or a state_dict."
        )
    weights = {
        name: value.detach().float() if value.is_floating_point() else value.detach() for name, value in weights.items()
    }
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path} has values that are not finite in {', '.join(broken)}: take an earlier one.")
    return weights


def read_run_checkpoint(path: Path | str) -> dict[str, Any]:
    """Reads a checkpoint that a training of ours has written.

    Args:
        path: See `read_checkpoint`.

    Returns:
        What it holds: the "step", a number, and the "pipeline", tensors by name, among others.

    Raises:
        CheckpointError: As `read_checkpoint`, or if it is no checkpoint of a run.
    """
    state = read_checkpoint(path)
    step = state.get("step") if isinstance(state, dict) else None
    first = -1  # that of geometry that was imported
    if (
        not isinstance(step, int)
        or isinstance(step, bool)
        or not first <= step <= MAX_COUNT
        or not isinstance(state.get("pipeline"), dict)
    ):
        raise CheckpointError(
            f"{path} is no checkpoint of a run: give one that ns-train wrote; those that were published are taken over "
            "by `divff import`."
        )
    return state


def require_sound(state: Mapping[Any, Any], like: Mapping[str, Tensor]) -> None:
    """Refuses a state with what is no tensor, has other types of numbers, or is not finite.

    Args:
        state: What a checkpoint holds.
        like: A state with the types that it should have, by name.

    Raises:
        CheckpointError: With the first name that is wrong.
    """
    for name, value in state.items():
        if not isinstance(name, str) or not _has_values(value):
            raise CheckpointError(f"The checkpoint's {str(name)[:80]} is no tensor with values: take an earlier one.")
        if name in like and value.dtype != like[name].dtype:
            kinds = f"{str(value.dtype).removeprefix('torch.')} where {str(like[name].dtype).removeprefix('torch.')}"
            raise CheckpointError(f"The checkpoint's {name} holds {kinds} belongs: give it as ns-train wrote it.")
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(f"The checkpoint's {name} has values that are not finite: take an earlier one.")


def _has_values(value: Any) -> bool:
    """Whether it is an ordinary tensor with a value of its own at every place.

    A few bytes may be said to be a tensor of any size, by strides of zero, which would take its memory when it is used.
    """
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def require_shapes(path: Path | str, what: str, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Compares the names and shapes of weights with those that are needed.

    Args:
        path: The file, for the message.
        what: What the file should hold, for the message.
        found: Shapes in the file.
        expected: Shapes that are needed.

    Raises:
        CheckpointError: With every unknown, missing and misshapen name.
    """
    faults = {
        "unknown": [name for name in found if name not in expected],
        "missing": [name for name in expected if name not in found],
        "of another shape": [
            f"{name} {tuple(found[name])} instead of {tuple(shape)}"
            for name, shape in expected.items()
            if name in found and tuple(found[name]) != tuple(shape)
        ],
    }
    if any(faults.values()):
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names)
        raise CheckpointError(f"{path} is no {what} ({listed}): give one that is.")


def sizes_of(tensors: Mapping[str, Tensor], anchors: Mapping[str, tuple[str | None, ...]]) -> dict[str, int]:
    """Sizes of a network that its weights tell.

    Args:
        tensors: Weights by name.
        anchors: For some weights, what the length of each of their axes is called; None: of no meaning here.

    Returns:
        Sizes by what they are called. A weight that is missing, or has not the right number of axes, tells none.
    """
    found: dict[str, int] = {}
    for name, axes in anchors.items():
        if name in tensors and tensors[name].ndim == len(axes):
            sizes = zip(axes, tensors[name].shape, strict=True)
            found.update({axis: size for axis, size in sizes if axis is not None})
    return found


def layers_of(tensors: Mapping[str, Tensor], pattern: str) -> set[int]:
    """Numbers of the layers that weights belong to.

    Their count says how many layers there are, not the highest: a file may number one as it likes.

    Args:
        tensors: Weights by name.
        pattern: How a layer's names begin, with its number as a group.
    """
    matches = (re.match(pattern, name) for name in tensors)
    return {int(match[1]) for match in matches if match}
