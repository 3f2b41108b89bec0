"""A longer video of a rendered scene: to the end and back, as often as asked, with as much more action.

python scripts/longer_scene.py SCENE LONGER --times 4

Back, hands put things where they were before: all of it could have been filmed. Frames that are held out are so at each
passing, so that no picture of them is trained on. What was moved once counts as moved from then on, as in the published
annotations. Objects' outlines, affordances and the frames between the sampled ones are left out.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from jaxtyping import Float, Int
from PIL import Image

from divff_nerfstudio.atomic import write_text
from divff_nerfstudio.data.scene import SceneFolder, load_scene

TRUTH = "ground_truth"


@dataclass
class LongerScene:
    """Writes the scene."""

    scene: Annotated[Path, tyro.conf.Positional]
    """A scene with ground truth, as of `divff demo-scene`."""
    output: Annotated[Path, tyro.conf.Positional]
    """Folder to be made."""
    times: int = 4
    """How often the video is passed through."""

    def main(self) -> None:
        """Writes frames, cameras, and ground truth of layers, depths and objects' places."""
        scene = load_scene(self.scene)
        for folder in ("frames", "annotations", f"{TRUTH}/frames", f"{TRUTH}/background"):
            (self.output / folder).mkdir(parents=True)
        count, first = len(scene), int(scene.video_numbers[0])
        step = int(scene.video_numbers[1]) - first
        sampled = np.concatenate([_passing(i, np.arange(count)) for i in range(self.times)])
        numbers = first + step * np.arange(len(sampled))
        for index, number, later in zip(sampled, numbers, np.arange(len(sampled)) >= count, strict=True):
            self._copy(scene, int(index), f"IMG_{number:010d}", bool(later))
        held = {split: set(indices.tolist()) for split, indices in scene.splits.items()}
        meta = json.loads((self.scene / "meta.json").read_text("utf-8"))
        ids = [str(i) for i in scene.frame_ids.tolist()]
        meta |= {
            "ids_all": list(range(len(sampled))),
            "images": {str(i): f"IMG_{number:010d}.bmp" for i, number in enumerate(numbers)},
            **{key: {str(i): meta[key][ids[j]] for i, j in enumerate(sampled)} for key in ("nears", "fars", "poses")},
            **{f"ids_{split}": [i for i, j in enumerate(sampled) if j in held[split]] for split in held},
        }
        write_text(self.output / "meta.json", json.dumps(meta))
        # The video's frames: those up to the next sampled one, none of which moves anything at a turning point.
        steps = np.arange(step * count).clip(max=step * (count - 1))
        self._write_motion(np.concatenate([_passing(i, steps) for i in range(self.times)]), first)

    def _copy(self, scene: SceneFolder, index: int, stem: str, later: bool) -> None:
        """A frame, and what is known of it."""
        own = scene.image_paths[index]
        Image.open(own).save(self.output / "frames" / f"{stem}.bmp")
        with np.load(self.scene / TRUTH / "frames" / f"{own.stem}.npz") as found:
            truth = dict(found)
        if later:
            truth["layer"] = truth["layer_ever"]
        np.savez_compressed(self.output / TRUTH / "frames" / f"{stem}.npz", **truth)
        if index in scene.splits["test"]:
            for suffix in ("npz", "png"):
                clean = self.scene / TRUTH / "background" / f"{own.stem}.{suffix}"
                shutil.copyfile(clean, self.output / TRUTH / "background" / f"{stem}.{suffix}")
            mask = (truth["layer"] > 0).astype(np.uint8)
            Image.fromarray(mask).save(self.output / "annotations" / f"{stem}.bmp")

    def _write_motion(self, video: Int[np.ndarray, "video"], first: int) -> None:
        """Where objects and camera are in all frames of the video, and when objects move."""
        numbers = first + np.arange(len(video))
        with np.load(self.scene / TRUTH / "object_poses.npz") as found:
            poses = {name: found[name][video] for name in found.files}
        np.savez_compressed(self.output / TRUTH / "object_poses.npz", **poses)
        with np.load(self.scene / TRUTH / "video_poses.npz") as found:
            cameras = found["c2w"][video]
        np.savez_compressed(self.output / TRUTH / "video_poses.npz", frame=numbers, c2w=cameras)
        table: dict[str, Any] = json.loads((self.scene / TRUTH / "instances.json").read_text("utf-8"))
        for entry in table["instances"]:
            if entry["name"] in poses:
                entry["motion"] = [[first + a, first + b] for a, b in _moves(poses[entry["name"]])]
            elif entry["motion"]:
                entry["motion"] = [[int(numbers[0]), int(numbers[-1])]]
        write_text(self.output / TRUTH / "instances.json", json.dumps(table))


def _passing(number: int, frames: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Frames of one passing: every other one goes back."""
    return frames[::-1] if number % 2 else frames


def _moves(poses: Float[np.ndarray, "video 3 4"]) -> list[tuple[int, int]]:
    """From the last frame before to the first one after each motion."""
    moves = np.abs(np.diff(poses, axis=0)).max(axis=(1, 2)) > 1e-7
    edges = np.flatnonzero(np.diff(np.concatenate([[0], moves.astype(np.int8), [0]])))
    return list(map(tuple, edges.reshape(-1, 2).tolist()))


if __name__ == "__main__":
    tyro.cli(LongerScene).main()
