"""Freezes what a small network of our own gives, for checks of parity on machines without the published numbers.

The network's weights are not stored: they are drawn from a generator whose numbers never change.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nerfstudio.utils.rich_utils import CONSOLE
from parity_divff import DivffParityConfig, compare
from parity_stages import Parity
from torch import nn

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.autoencoder import Autoencoder, AutoencoderConfig
from divff_nerfstudio.fields.published import PublishedField, PublishedFieldConfig
from divff_nerfstudio.fields.published_heads import PublishedHeads, PublishedHeadsConfig

FIELD = PublishedFieldConfig(
    position_octaves=4,
    direction_octaves=2,
    time_octaves=4,
    trunk_width=32,
    branch_width=16,
    appearance_dim=6,
    time_dim=5,
)
ROWS, RAYS, SAMPLES = 12, 6, (16, 16)
FEATURES, CODE, REGULARISER = 24, 8, 6
"""Lengths of features of both kinds, of their codes and of regularising features."""
GROUPS = (
    "in",
    "train",
    "train_bgcolour",
    "test_f32",
    "loss",
    "loss_geometry_only",
    "grad",
    "pe",
    "lre",
    "relevancy",
    "ae",
)
GRADIENTS = ("l2_norm", "embedding_t.W", "nerf_fine.static_sigma.0.weight", "nerf_coarse.static_rgb.0.weight")
"""Gradients that are kept whole; of all others the norms."""


@dataclass
class FreezeParityConfig(DivffParityConfig):
    """Writes results of a small network, if those of the published one agree on this machine."""

    output: Path = Path("tests/data/parity_frozen.npz")
    """The file to write."""

    def main(self) -> bool:
        """Checks the published numbers first, and writes only if they agree.

        Returns:
            Whether they agree.
        """
        if not super().main():
            return False
        with_weights = self.output.with_name("parity_frozen")
        checkpoint, autoencoder = with_weights.with_suffix(".ckpt"), with_weights.with_suffix(".pth")
        try:
            write_weights(checkpoint, autoencoder)
            np.savez_compressed(self.output, **frozen(checkpoint, autoencoder))  # pyright: ignore[reportArgumentType]
            rows = compare(self.output, checkpoint, autoencoder)
        finally:
            checkpoint.unlink(missing_ok=True)
            autoencoder.unlink(missing_ok=True)
        if failed := [row.name for row in rows if not row.passed]:
            raise DivffError(f"{self.output} does not agree with itself: {', '.join(failed)}.")
        CONSOLE.print(f"Written: {self.output}, {len(rows)} arrays.")
        return True


def write_weights(checkpoint: Path, autoencoder: Path) -> None:
    """Writes the small network and its autoencoder, always the same."""
    field = PublishedField(FIELD, ROWS, torch.zeros(1))
    dimensions = {"image": CODE, "video": FEATURES, "regulariser": REGULARISER}
    heads = PublishedHeads(PublishedHeadsConfig(hidden=FIELD.branch_width), field.encoding_dim, dimensions)
    torch.save({"state_dict": _drawn(field, 1) | _drawn(heads, 2)}, checkpoint)
    sizes = AutoencoderConfig(feature_dim=FEATURES, encoder_widths=(16, CODE), decoder_widths=(12,))
    torch.save(_drawn(Autoencoder(sizes), 3), autoencoder)


def _drawn(module: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Weights of a size that keeps what flows through layers of ReLUs at its scale."""
    chance, weights = np.random.RandomState(seed), {}  # the one generator of NumPy's whose stream is frozen
    for name, value in module.state_dict().items():
        bound = np.sqrt(6 / value.shape[1]) if value.dim() == 2 else 0.2
        numbers = chance.uniform(-bound, bound, tuple(value.shape))
        if "running_var" in name or (value.dim() == 1 and name.endswith("weight")):
            numbers = 1 + numbers
        weights[name] = torch.from_numpy(numbers).to(value.dtype) if value.dim() else torch.zeros_like(value)
    return weights


def frozen(checkpoint: Path, autoencoder: Path) -> dict[str, np.ndarray]:
    """Inputs that are drawn, and what the package makes of them."""
    data = _inputs()
    markers = {f"{group}/": np.zeros(0) for group in GROUPS}
    first = Parity(data | markers, checkpoint, autoencoder, None, SAMPLES)
    data["grad/param_names"] = np.array(
        [name for part in (first.model.field, first.model.semantic) for name, _ in part.named_parameters()]  # pyright: ignore
    )
    found = first.compute()
    kept = {
        name: values.detach().numpy()
        for name, values in found.items()
        if not name.startswith("grad/") or name.removeprefix("grad/") in GRADIENTS
    }
    return data | kept


def _inputs() -> dict[str, np.ndarray]:
    """Rays of two cameras, targets, and inputs of single stages."""
    chance = np.random.RandomState(0)

    def uniform(*shape: int) -> np.ndarray:
        return chance.uniform(-1, 1, shape).astype(np.float32)

    def units(*shape: int) -> np.ndarray:
        values = uniform(*shape)
        return values / np.linalg.norm(values, axis=-1, keepdims=True)

    turn = np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]], np.float32)
    poses = np.stack([np.c_[turn, [0.1, 0.2, 0.3]], np.c_[np.eye(3), [0.0, -0.1, 0.5]]]).astype(np.float32)
    words = {
        f"in/{kind}_{side}": units(n, FEATURES) for kind in ("clip", "video") for side, n in (("pos", 2), ("neg", 4))
    }
    return words | {
        "in/ts": chance.randint(0, ROWS, RAYS),
        "in/cam": np.arange(RAYS) % 2,
        "in/pix_x": chance.randint(0, 32, RAYS),
        "in/pix_y": chance.randint(0, 18, RAYS),
        "in/c2w": poses,
        "in/K": np.array([[30, 0, 16], [0, 30, 9], [0, 0, 1]], np.float32),
        "in/image_wh": np.array([32, 18]),
        "in/near": np.full((RAYS, 1), 0.1, np.float32),
        "in/far": np.full((RAYS, 1), 2.5, np.float32),
        "in/last_sample_colour": np.abs(uniform(RAYS, 3)),
        "loss_in/rgb": np.abs(uniform(RAYS, 3)),
        "loss_in/clip": uniform(RAYS, CODE),
        "loss_in/clip_mask": np.arange(RAYS) % 3 > 0,
        "loss_in/video_patch": units(RAYS, FEATURES),
        "loss_in/dino": uniform(RAYS, REGULARISER),
        "pe/points": uniform(4, 3),
        "pe/dir_in": units(4, 3),
        "lre/indices": np.arange(ROWS),
        "relevancy/embed": units(4, FEATURES),
        "ae/input_512": units(4, FEATURES),
        "ae/decode_in": units(4, CODE),
        "tolerance/names": np.zeros(0, "<U1"),
        "tolerance/max_abs_f32_minus_f64": np.zeros(0, np.float32),
    }
