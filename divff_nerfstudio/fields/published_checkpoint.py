"""Checkpoints of NeuralDiff and DIV-FF: which network their shapes describe, and whether all of it is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from divff_nerfstudio.checkpoints import CheckpointError, Shape, read_checkpoint, require_shapes, weights_of
from divff_nerfstudio.fields.published import PUBLISHED_LAYERS, FieldSizeError, PublishedField, PublishedFieldConfig
from divff_nerfstudio.fields.published_heads import HIDDEN_LAYERS, PublishedHeads, PublishedHeadsConfig
from divff_nerfstudio.schema import OptionError, check_options

_NETS: Mapping[str, str] = {
    "image": "static_lerf.clip_net",
    "video": "static_video.egovideo_net",
    "regulariser": "static_video.dino_net",
}
"""Where the head of each kind of features is in a checkpoint, for the static layer."""
_MAX_SIZE = 10_000
"""Larger widths, and tables for more frames, are taken for a fault before memory is asked for."""


@dataclass(frozen=True)
class PublishedCheckpoint:
    """The weights of an official checkpoint, and the network that they belong to."""

    path: Path
    """The file."""
    field: dict[str, Tensor]
    """Weights of `PublishedField`, by name."""
    heads: dict[str, Tensor]
    """Weights of `PublishedHeads`, by name; none in a checkpoint of geometry alone."""
    field_config: PublishedFieldConfig
    """Sizes of the field."""
    heads_config: PublishedHeadsConfig
    """Sizes of the heads."""
    rows: int
    """Rows of the tables of codes: one more than the largest frame id."""
    dimensions: dict[str, int]
    """Length of the features of each kind that there is a head for."""
    step: int | None
    """Training steps behind it, where it says how many."""


def read_published(path: Path | str) -> PublishedCheckpoint:
    """Reads an official checkpoint of NeuralDiff (geometry alone) or DIV-FF (with heads, or without).

    Nothing but the weights is needed of it: sizes come from their shapes.

    Args:
        path: What PyTorch-Lightning has written, or a state_dict.

    Raises:
        CheckpointError: If it cannot be read, or is something else; every name that is unknown, missing or of another
            shape is told.
    """
    path = Path(path)
    content = read_checkpoint(path)
    weights = weights_of(path, content)
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    rows = _size(shapes, "embedding_a.weight", 0, 1000)
    field_config, heads_config = _field_config(shapes), _heads_config(shapes)
    dimensions = {
        kind: _size(shapes, f"{net}.{2 * HIDDEN_LAYERS[kind]}.weight", 0, 1)
        for kind, net in _NETS.items()
        if any(_kind_of(name) == kind for name in shapes)
    }
    times = torch.zeros(1)
    try:
        with torch.device("meta"):  # their names and shapes are all that is asked for: no value is drawn for them
            field = PublishedField(field_config, rows, times)
            heads = PublishedHeads(heads_config, field.encoding_dim, dimensions) if dimensions else None
    except FieldSizeError as error:
        raise CheckpointError(f"{path} has a network that cannot work. {error}") from None
    names = {name: tuple(value.shape) for name, value in field.state_dict().items()}
    head_names = {name: tuple(value.shape) for name, value in heads.state_dict().items()} if heads is not None else {}
    require_shapes(path, "checkpoint of NeuralDiff or DIV-FF", shapes, names | head_names)
    if rows < 2:
        raise CheckpointError(f"{path} has tables of {rows} row, which is no video: give another checkpoint.")
    for config in (field_config, heads_config):
        try:
            check_options(config)
        except OptionError as error:
            fault = str(error).rstrip(".")
            raise CheckpointError(
                f"{path} has a network that cannot work ({fault}): give another checkpoint."
            ) from None
    return PublishedCheckpoint(
        path=path,
        field={name: weights[name] for name in names},
        heads={name: weights[name] for name in head_names},
        field_config=field_config,
        heads_config=heads_config,
        rows=rows,
        dimensions=dimensions,
        step=_step(content),
    )


def _size(shapes: Mapping[str, Shape], name: str, axis: int, otherwise: int) -> int:
    """Length of a weight's axis, or another one where the weight is missing, is no matrix or is beyond all reason."""
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) == 2 and min(shape) > 0 and shape[axis] <= _MAX_SIZE else otherwise


def _octaves(encoded: int, dim: int, otherwise: int) -> int:
    """How many octaves give an encoding of that length, if any number does."""
    octaves, rest = divmod(encoded - dim, 2 * dim)
    return octaves if octaves >= 0 and rest == 0 else otherwise


def _field_config(shapes: Mapping[str, Shape]) -> PublishedFieldConfig:
    """Sizes of the field; those of the published one where they cannot be told."""
    usual = PublishedFieldConfig()
    trunk = _size(shapes, "nerf_fine.xyz_encoding_1.0.weight", 0, usual.trunk_width)
    appearance = _size(shapes, "embedding_a.weight", 1, usual.appearance_dim)
    directions = _size(shapes, "nerf_fine.dir_encoding.0.weight", 1, 0) - trunk - appearance
    return PublishedFieldConfig(
        position_octaves=_octaves(
            _size(shapes, "nerf_fine.xyz_encoding_1.0.weight", 1, 0), 3, otherwise=usual.position_octaves
        ),
        direction_octaves=_octaves(directions, 3, otherwise=usual.direction_octaves),
        time_octaves=_octaves(_size(shapes, "embedding_t.W", 0, 0), 1, otherwise=usual.time_octaves),
        trunk_width=trunk,
        branch_width=_size(shapes, "nerf_fine.dir_encoding.0.weight", 0, usual.branch_width),
        appearance_dim=appearance,
        time_dim=_size(shapes, "embedding_t.W", 1, usual.time_dim),
    )


def _heads_config(shapes: Mapping[str, Shape]) -> PublishedHeadsConfig:
    """Sizes of the heads; those of the published ones where they cannot be told."""
    first = next((name for net in _NETS.values() if (name := f"{net}.0.weight") in shapes), "")
    return PublishedHeadsConfig(hidden=_size(shapes, first, 0, PublishedHeadsConfig().hidden))


def _kind_of(name: str) -> str | None:
    """The kind of features whose head a weight belongs to, in whichever layer."""
    layer, _, rest = name.partition("_")
    if layer not in PUBLISHED_LAYERS.values():
        return None
    return next((kind for kind, net in _NETS.items() if rest.startswith(net.partition("_")[2] + ".")), None)


def _step(content: Any) -> int | None:
    step = content.get("global_step") if isinstance(content, dict) else None
    return step if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None
