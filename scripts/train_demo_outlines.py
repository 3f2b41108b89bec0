"""Trains the network that finds outlines for the demo encoder, from scratch, on views of random kitchens.

Usage: ``python scripts/train_demo_outlines.py --samples FOLDER --minutes 25``. The views are rendered once (they stay
in the folder); the weights are written beside the demo encoder's. Prints one JSON object: how whole the segments of
kitchens held out from training are, for some thresholds, beside those of the segmenter that goes by colour.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from demo_encoder_samples import FIRST_OBJECT, HAND
from demo_outline_samples import Views, load_views
from jaxtyping import Float, Int, UInt8
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.features.outlines import OFFSETS, OUTLINES, OutlineNetwork, OutlineSegmenterConfig
from divff_nerfstudio.features.segments import ColourSegmenterConfig

MIN_PIXELS = 35
"""Objects of fewer pixels do not count as visible."""


@dataclass
class TrainConfig:
    """Options of the training."""

    samples: Path = Path("demo_outline_samples")
    """Folder of the rendered views; they are rendered if it has none."""
    kitchens: int = 176
    """How many random kitchens the views come from; every eighth is held out."""
    output: Path = OUTLINES
    """File to write the weights to."""
    begin_with: Path | None = None
    """File of weights to go on from; None: from scratch."""
    minutes: float = 25.0
    """How long to train, in minutes of processor time."""
    batch: int = 8
    """Cuts of pictures a step."""
    side: int = 128
    """Height and width of a cut, pixels."""
    learning_rate: float = 3e-3
    """The highest, after the first twentieth of the time."""
    edge_weight: float = 3.0
    """Weight of pairs of pixels that show different things over those that show the same, for neighbours."""
    processes: int = 2
    """Processes to render with."""
    seed: int = 0
    """Of everything random."""


class Cuts:
    """Draws cuts of views as training sees them.

    Args:
        views: What to draw from.
        config: Options.
    """

    def __init__(self, views: Views, config: TrainConfig):
        self.views, self.config = views, config
        self.random = np.random.default_rng(config.seed)

    def batch(self) -> tuple[Float[Tensor, "B 3 side side"], Int[Tensor, "B side side"]]:
        """Pictures, and the instance of each pixel."""
        cuts = [self._cut() for _ in range(self.config.batch)]
        pictures = torch.from_numpy(np.stack([picture for picture, _ in cuts])).permute(0, 3, 1, 2)
        instances = torch.from_numpy(np.stack([instance for _, instance in cuts]).astype(np.int64))
        return pictures.contiguous(memory_format=torch.channels_last), instances

    def _cut(self) -> tuple[Float[np.ndarray, "side side 3"], UInt8[np.ndarray, "side side"]]:
        random, side = self.random, self.config.side
        chosen = int(random.integers(len(self.views.pictures)))
        picture, instances = self.views.pictures[chosen], self.views.instances[chosen]
        if random.random() < 0.5:
            picture = enlarged(picture)
        row, column = (int(random.integers(size - side + 1)) for size in instances.shape)
        picture = picture[row : row + side, column : column + side].astype(np.float32)
        instances = instances[row : row + side, column : column + side]
        if random.random() < 0.5:
            picture, instances = picture[:, ::-1], instances[:, ::-1]
        light = np.exp(random.normal(0, 0.15) + random.normal(0, 0.06, 3)).astype(np.float32)
        noise = random.uniform(0, 5) * random.standard_normal(picture.shape, np.float32)
        return np.clip(picture * light + noise, 0, 255), instances


def enlarged(picture: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """A picture as it comes out of a segmenter that enlarges one of half the size."""
    image = Image.fromarray(picture)
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return np.asarray(half.resize(image.size, Image.Resampling.BILINEAR))


def loss_of(logits: Float[Tensor, "B offsets h w"], instances: Int[Tensor, "B h w"], edge_weight: float) -> Tensor:
    """Cross-entropy of what is foreseen for each pair of pixels, mean over offsets."""
    height, width = instances.shape[1:]
    total = logits.new_zeros(())
    for (down, right), values in zip(OFFSETS, logits.unbind(1), strict=True):
        differ = instances[:, : height - down, : width - right] != instances[:, down:, right:]
        weight = 1 + (edge_weight - 1) * differ if down + right == 1 else None
        foreseen = values[:, : height - down, : width - right]
        total = total + binary_cross_entropy_with_logits(foreseen, differ.float(), weight)
    return total / len(OFFSETS)


def train(config: TrainConfig) -> None:
    """Trains, writes the weights and prints how whole the segments are."""
    torch.manual_seed(config.seed)
    views, held_out = load_views(config.samples, config.kitchens, config.processes)
    network, cuts = OutlineNetwork().to(memory_format=torch.channels_last), Cuts(views, config)
    if config.begin_with is not None:
        network.load_state_dict({key: value.float() for key, value in load_file(config.begin_with).items()})
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    start, step, recent = time.process_time(), 0, 0.0
    while (done := (time.process_time() - start) / (60 * config.minutes)) < 1:
        rate = min(20 * done, 0.5 + 0.5 * np.cos(np.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * max(rate, 0.01)
        pictures, instances = cuts.batch()
        loss = loss_of(network(pictures), instances, config.edge_weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step, recent = step + 1, 0.98 * recent + 0.02 * loss.item()
        if step % 100 == 0:
            CONSOLE.print(f"{step} steps, {done:.0%}, loss {recent:.4f}")
            save(network, config.output)
    network.eval()
    save(network, config.output)
    CONSOLE.print_json(json.dumps({"steps": step, **measured(held_out, config.output)}))


def save(network: OutlineNetwork, path: Path) -> None:
    """Writes the weights, in half precision."""
    with atomic_path(path) as temporary:
        save_file({key: value.half().contiguous() for key, value in network.state_dict().items()}, temporary)


def measured(held_out: Views, weights: Path) -> dict[str, dict[str, float]]:
    """How whole objects are in the segments of held out kitchens, by each segmenter, in two sizes."""
    results = {"colour": wholeness(held_out, ColourSegmenterConfig().setup().segment)}
    for different in (0.4, 0.5, 0.6):
        segmenter = OutlineSegmenterConfig(different=different).setup(weights=weights)
        results[f"outlines {different}"] = wholeness(held_out, segmenter.segment)
    return results


def wholeness(
    views: Views, segment: Callable[[UInt8[np.ndarray, "h w 3"]], Int[np.ndarray, "h w"]], every: int = 2
) -> dict[str, float]:
    """Mean of the best IoU of any segment with each visible object, in pictures of 228x128 and of half that size; and
    how many segments a picture has."""
    best: dict[str, list[float]] = {"full": [], "half": []}
    counts = []
    for picture, instances in zip(views.pictures[::every], views.instances[::every], strict=True):
        height, width = instances.shape
        small = np.asarray(Image.fromarray(picture).resize((width // 2, height // 2), Image.Resampling.BOX))
        for size, shown in (("full", picture), ("half", small)):
            segments = torch.from_numpy(segment(shown))[None, None].float()
            segments = interpolate(segments, (height, width), mode="nearest-exact")[0, 0].numpy().astype(int)
            areas = np.bincount(segments.ravel())
            counts.append(len(areas))
            for number in np.unique(instances[(instances >= FIRST_OBJECT) & (instances < HAND)]):
                mask = instances == number
                if mask.sum() >= MIN_PIXELS:
                    shared = np.bincount(segments[mask], minlength=len(areas))
                    best[size].append(float((shared / (areas + mask.sum() - shared)).max()))
    figures = {f"{size}_mean_best_iou": float(np.mean(found)) for size, found in best.items()}
    return figures | {"segments_per_picture": float(np.mean(counts))}


if __name__ == "__main__":
    train(tyro.cli(TrainConfig))
