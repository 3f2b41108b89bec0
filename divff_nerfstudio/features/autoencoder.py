"""A scene's autoencoder (DIV-FF): image-language features as short codes, which fields learn and queries decode."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from jaxtyping import Float
from nerfstudio.configs.base_config import InstantiateConfig
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.checkpoints import (
    CheckpointError,
    Shape,
    read_checkpoint,
    read_weights,
    require_shapes,
    require_sound,
)
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.generators import DrawingFrom
from divff_nerfstudio.schema import Count, Positive, Size, Weight

Table = Float[Tensor, "rows dim"] | Float[np.ndarray, "rows dim"]


@dataclass
class AutoencoderConfig(InstantiateConfig):
    """Sizes of an autoencoder, and how it is trained; the published ones by default."""

    _target: tyro.conf.Suppress[type] = field(default_factory=lambda: Autoencoder)
    """target class to instantiate"""
    feature_dim: Size = 512
    """Length of a feature."""
    encoder_widths: Annotated[tuple[Size, ...], Field(min_length=1)] = (256, 128)
    """Outputs of the encoder's layers; the last one is the length of a code."""
    decoder_widths: tuple[Size, ...] = (196, 256, 256)
    """Outputs of the decoder's layers before the last, which gives a feature."""
    epochs: Count = 100
    """How often training goes through all features."""
    learning_rate: Positive = 1e-4
    """Step size of Adam."""
    batch_size: Annotated[int, Field(ge=2, le=2**20)] = 64
    """Features per step."""
    cosine_weight: Weight = 0.001
    """Weight of 1 - cosine similarity over channels, beside the mean squared difference."""
    candidates: Count = 4
    """Of how many last epochs the best one on the training features is kept."""


class Autoencoder(nn.Module):
    """Features of unit length to codes of unit length and back.

    The encoder is Linear (BatchNorm, ReLU, Linear)*, the decoder Linear (ReLU, Linear)*. Names and shapes of the
    weights are those of the published files.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        encoder: list[nn.Module] = []
        width = config.feature_dim
        for following in config.encoder_widths:
            if encoder:
                encoder += [nn.BatchNorm1d(width), nn.ReLU()]
            encoder.append(nn.Linear(width, following))
            width = following
        decoder: list[nn.Module] = []
        for following in (*config.decoder_widths, config.feature_dim):
            if decoder:
                decoder.append(nn.ReLU())
            decoder.append(nn.Linear(width, following))
            width = following
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)

    @property
    def feature_dim(self) -> int:
        """Length of a feature."""
        return self.config.feature_dim

    @property
    def code_dim(self) -> int:
        """Length of a code."""
        return self.config.encoder_widths[-1]

    def encode(self, features: Float[Tensor, "*batch feature_dim"]) -> Float[Tensor, "*batch code_dim"]:
        """Codes of features, of unit length."""
        codes = self.encoder(features.reshape(-1, self.feature_dim))
        return F.normalize(codes, dim=-1).view(*features.shape[:-1], self.code_dim)

    def decode(self, codes: Float[Tensor, "*batch code_dim"]) -> Float[Tensor, "*batch feature_dim"]:
        """Features of codes, of unit length; codes are taken as they are."""
        return F.normalize(self.decoder(codes), dim=-1)

    def forward(self, features: Float[Tensor, "*batch feature_dim"]) -> Float[Tensor, "*batch feature_dim"]:
        """What is left of features after encoding and decoding."""
        return self.decode(self.encode(features))


def autoencoder_config(shapes: Mapping[str, Shape]) -> AutoencoderConfig | None:
    """Sizes of an autoencoder from the shapes of its weights.

    Args:
        shapes: Shapes by name.

    Returns:
        The configuration, or None if encoder or decoder has no linear layer.
    """

    def layers(part: str) -> list[Shape]:
        found = {
            int(match[1]): shape
            for name, shape in shapes.items()
            if (match := re.fullmatch(rf"{part}\.(\d+)\.weight", name)) and len(shape) == 2 and min(shape) > 0
        }
        return [found[number] for number in sorted(found)]

    encoder, decoder = layers("encoder"), layers("decoder")
    if not encoder or not decoder:
        return None
    return AutoencoderConfig(
        feature_dim=encoder[0][1],
        encoder_widths=tuple(shape[0] for shape in encoder),
        decoder_widths=tuple(shape[0] for shape in decoder[:-1]),
    )


def load_autoencoder(path: Path | str, device: torch.device | str = "cpu") -> Autoencoder:
    """Loads an autoencoder that `save_autoencoder` or the published code has saved, in evaluation mode.

    Args:
        path: The file, a state_dict.
        device: Where it shall be, whatever device it was saved on.

    Raises:
        CheckpointError: If it cannot be read, or is something else; every name that is unknown, missing or of another
            shape is told.
    """
    weights = read_weights(path)
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    config = autoencoder_config(shapes)
    if config is None:
        raise CheckpointError(
            f"{path} is no autoencoder, which has encoder.0.weight and decoder.0.weight (it has "
            f"{', '.join(sorted(shapes))}): give the scene's best_ckpt.pth."
        )
    # Without first values: a thread of the viewer may load it, and a training in another draws from the generator.
    with torch.device("meta"):
        autoencoder = Autoencoder(config)
    expected = {name: tuple(value.shape) for name, value in autoencoder.state_dict().items()}
    require_shapes(path, "autoencoder", shapes, expected)
    if any((value < 0).any() for name, value in weights.items() if name.endswith("running_var")):
        raise CheckpointError(
            f"{path} has a variance below zero, which makes codes that are not finite: fetch it anew."
        )
    autoencoder.load_state_dict(weights, strict=True, assign=True)
    return autoencoder.to(device).eval().requires_grad_(False)


def save_autoencoder(autoencoder: Autoencoder, path: Path | str) -> None:
    """Writes an autoencoder as the published code does: a state_dict, whole or not at all."""
    state = {name: value.detach().cpu() for name, value in autoencoder.state_dict().items()}
    with atomic_path(path) as temporary, temporary.open("wb") as file:  # of a path, the name would be in the file
        torch.save(state, file)


def autoencoder_loss(
    output: Float[Tensor, "batch dim"], target: Float[Tensor, "batch dim"], cosine_weight: float
) -> Float[Tensor, ""]:
    """Mean squared difference, and `cosine_weight` times the mean of 1 - cosine similarity over channels."""
    return F.mse_loss(output, target) + cosine_weight * (1 - F.cosine_similarity(output, target, dim=-1).mean())


def train_autoencoder(
    table: Table,
    config: AutoencoderConfig | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    report: Callable[[int, float], None] | None = None,
    state: Path | None = None,
) -> Autoencoder:
    """Trains an autoencoder on a scene's features (DIV-FF's losses and schedule).

    Only a batch of the table is in memory at a time. The global random generator is left as it is.

    Args:
        table: The features, of any float type; a memory-mapped array is read row by row.
        config: Sizes and schedule; its feature_dim is taken from the table.
        device: Where to train.
        seed: Of initial weights and order; equal seeds give equal weights on one device.
        report: Called after each epoch with its number from 1 on and the mean loss over it.
        state: File that is written after each epoch, and from which an interrupted training of the same table and
            configuration goes on.

    Returns:
        The best of the last epochs, in evaluation mode.

    Raises:
        CheckpointError: If there are fewer than two features, training has led to values that are not finite, or the
            file of an interrupted training is damaged.
    """
    config = copy.deepcopy(config or AutoencoderConfig())
    config.feature_dim = table.shape[1]
    if len(table) < 2 or config.epochs < 1:
        raise CheckpointError("An autoencoder is trained on two features or more, for one epoch or more: extract some.")
    with DrawingFrom(torch.Generator().manual_seed(seed)):
        autoencoder = Autoencoder(config)
    autoencoder.to(device)
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=config.learning_rate)
    best, best_loss, done = None, float("inf"), 0
    if state is not None and state.is_file():
        best, best_loss, done = _go_on(state, autoencoder, optimizer, order)
    for epoch in range(done + 1, config.epochs + 1):
        autoencoder.train()
        total = torch.zeros((), device=device)
        for rows in torch.randperm(len(table), generator=order).split(config.batch_size):
            if len(rows) < 2:  # batch statistics need two
                continue
            batch = _rows(table, rows, device)
            loss = autoencoder_loss(autoencoder(batch), batch, config.cosine_weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
        mean = float(total) / len(table)
        if not math.isfinite(mean):
            raise CheckpointError(
                f"The autoencoder's loss is not finite in epoch {epoch}: look for values in the features that are not, "
                "or give a smaller --segments.autoencoder.learning-rate."
            )
        if report is not None:
            report(epoch, mean)
        if epoch > config.epochs - config.candidates:
            loss = evaluate_autoencoder(autoencoder, table, config.cosine_weight)
            if loss < best_loss:
                best, best_loss = copy.deepcopy(autoencoder.state_dict()), loss
        if state is not None:
            content = {"autoencoder": autoencoder.state_dict(), "optimizer": optimizer.state_dict()}
            content |= {"order": order.get_state(), "best": best, "best_loss": best_loss, "epoch": epoch}
            with atomic_path(state) as temporary:
                torch.save(content, temporary)
    if best is None:
        raise CheckpointError(
            "No epoch of the autoencoder is a candidate: give more --segments.autoencoder.candidates."
        )
    autoencoder.load_state_dict(best)
    return autoencoder.eval().requires_grad_(False)


def _go_on(
    state: Path, autoencoder: Autoencoder, optimizer: torch.optim.Optimizer, order: torch.Generator
) -> tuple[dict[str, Tensor] | None, float, int]:
    """Takes up an interrupted training: the best weights so far, their loss, and the epochs that are done."""
    try:
        found = read_checkpoint(state)
        require_sound(found["autoencoder"], autoencoder.state_dict())
        autoencoder.load_state_dict(found["autoencoder"])
        optimizer.load_state_dict(found["optimizer"])
        order.set_state(found["order"])
        return found["best"], float(found["best_loss"]), int(found["epoch"])
    except (DivffError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{state} is no state of this autoencoder's training ({error}): remove it, and start the same line again."
        ) from error


@torch.no_grad()
def evaluate_autoencoder(autoencoder: Autoencoder, table: Table, cosine_weight: float = 0.001) -> float:
    """Mean of `autoencoder_loss` over a table of features, in evaluation mode, in which it leaves the autoencoder."""
    autoencoder.eval()
    device = next(autoencoder.parameters()).device
    total = 0.0
    for rows in torch.arange(len(table)).split(4096):
        batch = _rows(table, rows, device)
        total += float(autoencoder_loss(autoencoder(batch), batch, cosine_weight)) * len(rows)
    return total / len(table)


def _rows(table: Table, rows: Tensor, device: torch.device | str) -> Float[Tensor, "batch dim"]:
    chosen = table[rows] if isinstance(table, Tensor) else torch.from_numpy(np.asarray(table[rows.numpy()]))
    return chosen.to(device, torch.float32)
