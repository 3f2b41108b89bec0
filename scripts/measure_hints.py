"""How good stored hints of what moves and what is hand are, against a scene's ground truth; prints a table.

python scripts/measure_hints.py --scenes SCENE... [--masks FOLDER] [--pictures FOLDER]

True are, of what moves in 2D, hands and the objects that are on their way in a frame; shadows count as wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Bool, Int8
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image

from divff_nerfstudio.data.ground_truth import GroundTruth, ground_truth
from divff_nerfstudio.data.masks import resize_nearest
from divff_nerfstudio.data.scene import SceneFolder, load_scene
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.hints.planes import NO, YES
from divff_nerfstudio.features.store import HINTS, NO_FEATURE, FeatureStore, store_root

ACTOR = 2
PLANES = ("moving", "hands")
HEAD = ("said yes", "of these right", "said no", "of these right", "of what is found")
_COLOURS = {YES: (255, 60, 60), NO: (60, 60, 255)}
_EVERY = 8


@dataclass
class MeasureHints:
    """Compares hints with the truth, over the training frames."""

    scenes: tuple[Path, ...]
    """Scene folders with ground truth and, unless masks are written, hints."""
    masks: Path | None = None
    """Write true masks of all frames there, in a folder for each scene and plane, and compare nothing: as hints
    (`--hints.moving`, `--hints.hands`) they give an upper bound."""
    pictures: Path | None = None
    """Write every eighth training frame there beside what is said of it: red yes, blue no, black unknown."""

    def main(self) -> None:
        """Prints a row for each scene and plane of which anything is said."""
        if self.masks is None:
            CONSOLE.print("| scene | hints | " + " | ".join(HEAD) + " |", soft_wrap=True)
            CONSOLE.print("|---" * (len(HEAD) + 2) + "|", soft_wrap=True)
        for scene in map(load_scene, self.scenes):
            truth = ground_truth(scene)
            if truth is None:
                raise DivffError(f"{scene.root} has no ground truth: give another scene.")
            if self.masks is None:
                self._compare(scene, truth)
            else:
                _write_masks(scene, truth, self.masks / scene.root.name)

    def _compare(self, scene: SceneFolder, truth: GroundTruth) -> None:
        store = FeatureStore.open(store_root(scene) / HINTS)
        frames = scene.splits["train"].tolist()
        counted = np.zeros((len(PLANES), 5, 2), np.int64)
        for frame in frames:
            for plane, (said, is_so) in enumerate(
                zip(_hints(scene, store, frame), _truth(scene, truth, frame), strict=True)
            ):
                yes, no = said == YES, said == NO
                parts = (yes, is_so[yes], no, ~is_so[no], yes[is_so])
                counted[plane] += [(part.sum(), part.size) for part in parts]
        for name, counts in zip(PLANES, counted, strict=True):
            if counts[(0, 2), 0].any():
                numbers = (f"{right / of:.3f}" if of else "-" for right, of in counts)
                CONSOLE.print(f"| {scene.root.name} | {name} | " + " | ".join(numbers) + " |", soft_wrap=True)
        if self.pictures is not None:
            folder = self.pictures / scene.root.name
            folder.mkdir(parents=True, exist_ok=True)
            for place in range(0, len(frames), _EVERY):
                shown = [scene.frame(frames[place]), *map(_painted, _hints(scene, store, frames[place]))]
                Image.fromarray(np.concatenate(shown, 1)).save(folder / f"{scene.image_paths[frames[place]].stem}.png")


def _hints(scene: SceneFolder, store: FeatureStore, frame: int) -> Int8[np.ndarray, "2 height width"]:
    """What is said of a frame's pixels."""
    index, table = store.frame_features(frame)
    table = np.concatenate((table, np.zeros((1, 2)))).astype(np.int8)  # the last is that of places without a hint
    said = table[np.where(index == NO_FEATURE, len(table) - 1, index)]
    return resize_nearest(said, scene.height, scene.width).transpose(2, 0, 1)


def _truth(scene: SceneFolder, truth: GroundTruth, frame: int) -> Bool[np.ndarray, "2 height width"]:
    """What moves in a frame, and what is hand."""
    number = int(scene.video_numbers[frame])
    on_their_way = [
        entry["id"]
        for entry in truth.instance_table
        if any(first < number < last for first, last in entry.get("motion") or ())
    ]
    hand = truth.layers(frame) == ACTOR
    return np.stack((hand | np.isin(truth.instances(frame), on_their_way), hand))


def _write_masks(scene: SceneFolder, truth: GroundTruth, folder: Path) -> None:
    for frame, path in enumerate(scene.image_paths):
        for name, mask in zip(PLANES, _truth(scene, truth, frame), strict=True):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / name / f"{path.stem}.png")


def _painted(plane: Int8[np.ndarray, "height width"]) -> np.ndarray:
    picture = np.zeros((*plane.shape, 3), np.uint8)
    for state, colour in _COLOURS.items():
        picture[plane == state] = colour
    return picture


if __name__ == "__main__":
    tyro.cli(MeasureHints).main()
