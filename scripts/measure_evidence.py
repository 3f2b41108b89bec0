"""How good evidence of what moves is before anything is trained, against a scene's ground truth; prints a table.

python scripts/measure_evidence.py --scenes KITCHEN DEMO

Average precision over the training frames, in which objects count before they are first moved, too; and how far off the
depths are of pixels of objects that are found to rest, and how many have one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Bool, Float
from nerfstudio.utils.rich_utils import CONSOLE

from divff_nerfstudio.data.ground_truth import GroundTruth, ground_truth
from divff_nerfstudio.data.scene import SceneFolder, load_scene
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.evaluation.metrics import average_precision
from divff_nerfstudio.evidence.labels import Labels, labels
from divff_nerfstudio.features.store import FeatureStore, store_root

DYNAMIC, ACTOR = 1, 2
HEAD = (
    "moving",
    "dynamic",
    "actor",
    "chance of objects on objects",
    "elsewhere",
    "objects with a depth",
    "depth off, median",
    "90 %",
)


@dataclass
class MeasureEvidence:
    """Looks for what moves by colours alone, and by the segments of stored image features."""

    scenes: tuple[Path, ...]
    """Scene folders with ground truth."""
    features: tuple[Path, ...] = ()
    """Folder of each scene's stores. None: where `divff extract` puts them."""

    def main(self) -> None:
        """Prints a row for each scene and kind of segments."""
        CONSOLE.print("| scene | segments | " + " | ".join(HEAD) + " |", soft_wrap=True)
        CONSOLE.print("|---" * (len(HEAD) + 2) + "|", soft_wrap=True)
        for scene, root in zip(map(load_scene, self.scenes), self.features or [None] * len(self.scenes), strict=True):
            stored = store_root(scene, root) / "image"
            for store in (None, *([FeatureStore.open(stored)] if stored.is_dir() else ())):
                segments = (
                    "by outlines, no features" if store is None else f"{store.header.source} ({store.header.model})"
                )
                numbers = (f"{number:.2g}" if number < 0.1 else f"{number:.2f}" for number in scores(scene, store))
                CONSOLE.print(f"| {scene.root.name} | {segments} | " + " | ".join(numbers) + " |", soft_wrap=True)


def scores(scene: SceneFolder, store: FeatureStore | None) -> tuple[float, ...]:
    """The numbers of `HEAD` for a scene.

    Raises:
        DivffError: If the scene has no ground truth, or its video is too short to tell anything.
    """
    truth, train = ground_truth(scene), scene.splits["train"]
    found = labels(scene, train, store)
    if truth is None or found is None:
        raise DivffError(f"{scene.root} has no ground truth, or too few frames: give another scene.")
    chances, depths, layers, true_depths = (np.stack(part) for part in zip(*_frames(scene, truth, found), strict=True))
    placed = (layers == DYNAMIC) & (chances[..., 0] > 0.5) & (depths > 0)
    off = np.abs(depths - true_depths)[placed] / true_depths[placed]
    return (
        _mean_ap(chances.sum(-1), layers > 0),
        _mean_ap(chances[..., 0], layers == DYNAMIC),
        _mean_ap(chances[..., 1], layers == ACTOR),
        float(chances[layers == DYNAMIC, 0].mean()),
        float(chances[layers != DYNAMIC, 0].mean()),
        float(placed.sum() / max(1, (layers == DYNAMIC).sum())),
        *(float(np.quantile(off, share)) if len(off) else float("nan") for share in (0.5, 0.9)),
    )


def _frames(scene: SceneFolder, truth: GroundTruth, found: Labels) -> Iterator[tuple[np.ndarray, ...]]:
    """Of each training frame chances, depths, true layers and true depths."""
    train = scene.splits["train"]
    times = torch.from_numpy(scene.times()[train])
    for k, index in enumerate(train.tolist()):
        codes = torch.from_numpy(np.array(found.codes[k])).flatten(0, 1).float() / 255
        chances = found.chances(codes).view(scene.height, scene.width, 2).numpy()
        depths = found.resting(codes, torch.tensor([k]), times)[:, 0].view(scene.height, scene.width).numpy()
        yield chances, depths, truth.layers_ever(index), truth.depth(index)


def _mean_ap(shares: Float[np.ndarray, "frames height width"], masks: Bool[np.ndarray, "frames height width"]) -> float:
    """Mean over the frames that have anything to find."""
    found = [average_precision(share, mask) for share, mask in zip(shares, masks, strict=True) if mask.any()]
    return float(np.mean([each for each in found if each is not None]))


if __name__ == "__main__":
    tyro.cli(MeasureEvidence).main()
