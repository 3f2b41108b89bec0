"""Benchmarks of features at the size of a published scene, for `bench.py`.

Scene and stores are made of random pictures and random segments, so that nothing has to be downloaded or extracted.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from stopwatch import machine, measure

from divff_nerfstudio.features.store import FeatureStore, FeatureWriter, FrameFeatures, StoreHeader

WIDTH, HEIGHT = 456, 256
KINDS: dict[str, tuple[int, int, tuple[int, int] | None]] = {
    "image": (512, 120, None),
    "video": (512, 91, (7, 13)),
    "regulariser": (64, 646, (19, 34)),
}
"""Of each kind: length of a feature, features per frame, and the grid they lie on (none: segments of any shape)."""
MEMORY_AIM, LOOKUP_AIM = 3.0, 0.005
"""GiB above the model, and seconds, that are to be kept below."""


def random_segments(random: np.random.Generator, count: int) -> np.ndarray:
    """Segments of the pixels of a frame: the blocks of a coarse random map, some without a segment."""
    coarse = random.integers(-1, count, (16, 24))
    rows, columns = np.arange(HEIGHT) * 16 // HEIGHT, np.arange(WIDTH) * 24 // WIDTH
    return coarse[rows[:, None], columns].astype(np.uint16)


def write_store(folder: Path, kind: str, frames: int) -> None:
    """Writes a store of random features."""
    dimension, count, grid = KINDS[kind]
    header = StoreHeader(
        kind, "random", "none", "0", dimension, list(range(frames)), [HEIGHT, WIDTH], shared_index=grid is not None
    )
    random = np.random.default_rng(0)
    table = random.standard_normal((count, dimension), np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    with FeatureWriter(folder / kind, header) as writer:
        for _ in range(frames):
            index = random_segments(random, count) if grid is None else np.arange(count, dtype=np.uint16).reshape(grid)
            writer.append(FrameFeatures(index, table[random.permutation(count)]))
        writer.finish()


def write_scene(root: Path, frames: int) -> None:
    """Writes a scene of random pictures with a store of each kind."""
    (root / "frames").mkdir(parents=True)
    random = np.random.default_rng(0)
    picture = random.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    names = {str(i): f"IMG_{i:010d}.bmp" for i in range(frames)}
    for i, name in enumerate(names.values()):
        Image.fromarray(np.roll(picture, i, axis=1)).save(root / "frames" / name)
    poses = {key: [[1.0, 0, 0, 0.001 * int(key)], [0, 1.0, 0, 0], [0, 0, 1.0, 0]] for key in names}
    ids = list(range(frames))
    meta = {
        "ids_all": ids,
        "ids_train": [i for i in ids if i % 4],
        "ids_val": [i for i in ids if i % 8 == 4],
        "ids_test": [i for i in ids if i % 8 == 0],
        "images": names,
        "poses": poses,
        "nears": dict.fromkeys(names, 0.1),
        "fars": dict.fromkeys(names, 5.0),
        "intrinsics": [[400.0, 0, WIDTH / 2], [0, 400.0, HEIGHT / 2], [0, 0, 1]],
    }
    (root / "meta.json").write_text(json.dumps(meta))
    for kind in KINDS:
        write_store(root / "features", kind, frames)


def report(results: dict[str, object]) -> None:
    """Prints results with the machine they were measured on."""
    print(json.dumps({"machine": machine(), "threads": torch.get_num_threads(), "results": results}, indent=2))


@dataclass
class Lookup:
    """Times the look-up of random rays in a store of each kind."""

    frames: int = 1000
    """Frames of the stores."""
    rays: int = 4096
    """Rays per look-up."""
    repeats: int = 30
    """Of how many look-ups the median is taken."""
    threads: int = 1
    """Threads of PyTorch; waiting for a second one costs more than it helps in so little work."""

    def main(self) -> None:
        """Makes the stores and measures."""
        torch.set_num_threads(self.threads)
        random, results = np.random.default_rng(0), {}
        with tempfile.TemporaryDirectory() as folder:
            for kind in KINDS:
                write_store(Path(folder), kind, self.frames)
                store = FeatureStore.open(Path(folder) / kind)

                def fetch(store: FeatureStore = store) -> object:
                    limits = (self.frames, HEIGHT, WIDTH)
                    return store.lookup(*(random.integers(0, limit, self.rays) for limit in limits))

                results[kind] = measure(fetch, self.repeats)
        report({"rays": self.rays, "frames": self.frames, "aim_seconds": LOOKUP_AIM, **results})


@dataclass
class Memory:
    """Measures the resident memory of training with all kinds of features, above that of the same on a few frames."""

    frames: int = 1000
    """Frames of the scene."""
    batches: int = 400
    """Batches that are drawn, so that nearly all of the stores has been looked at."""
    steps: int = 2
    """Training steps of all losses."""
    rays: int = 1024
    """Rays per batch."""
    scene: Path | None = None
    """A scene that was made before; what is measured is then this process alone."""

    def main(self) -> None:
        """Makes two scenes and measures each in a process of its own."""
        if self.scene is not None:
            print(json.dumps(self.resident()))
            return
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, frames in (("model", 8), ("scene", self.frames)):
                scene = Path(folder) / name
                write_scene(scene, frames)
                words = {"scene": scene, "batches": self.batches, "steps": self.steps, "rays": self.rays}
                options = [word for key, value in words.items() for word in (f"--{key}", str(value))]
                command = [sys.executable, str(Path(__file__).with_name("bench.py")), "memory", *options]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[name] = json.loads(done.stdout.splitlines()[-1])
        above = {key: round(found["scene"][key] - found["model"][key], 3) for key in found["scene"]}
        report({"frames": self.frames, "unit": "GiB", "aim_peak": MEMORY_AIM, **found, "above_the_model": above})

    def resident(self) -> dict[str, float]:
        """Draws batches and trains; resident memory of this process afterwards and at its peak, in GiB."""
        pipeline = self._pipeline()
        model, data = pipeline.model, pipeline.datamanager
        step = model.config.joint_start_step + 1
        for _ in range(self.batches):
            data.next_train(step)
        model.train()
        for _ in range(self.steps):
            model.zero_grad()
            _, losses, _ = pipeline.get_train_loss_dict(step)
            torch.stack(list(losses.values())).sum().backward()
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        names = {"peak": "VmHWM", "anonymous": "RssAnon", "mapped_files": "RssFile"}
        return {name: int(lines[key].split()[0]) / 2**20 for name, key in names.items()}

    def _pipeline(self):
        from divff_nerfstudio.registry import divff
        from divff_nerfstudio.trainer import DivFFTrainerConfig

        config = copy.deepcopy(divff.config)
        assert isinstance(config, DivFFTrainerConfig) and self.scene is not None
        config.machine.device_type = "cuda" if torch.cuda.is_available() else "cpu"
        config.pipeline.datamanager.data = self.scene
        config.pipeline.datamanager.train_num_rays_per_batch = self.rays
        config.settle()
        return config.pipeline.setup(device=config.machine.device_type, test_mode="val")


@dataclass
class Segments:
    """Times SAM 2.1's automatic masks of one picture, with the published settings."""

    size: str = "large"
    """Size of the model, with random weights: tiny, small, base-plus or large."""
    weights: str = ""
    """A folder with weights; they decide how many masks there are to compare."""
    repeats: int = 3
    """Of how many pictures the median is taken."""
    points_per_side: int = 32
    """Points along each side of the grid."""

    def main(self) -> None:
        """Makes the model, measures and prints."""
        report(self.results())

    def results(self) -> dict[str, object]:
        """Makes the model and measures."""
        from divff_nerfstudio.features.sam import SamSegmenterConfig, mask_nms

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        random = np.random.default_rng(0)
        with tempfile.TemporaryDirectory() as folder:
            weights = self.weights or random_sam(Path(folder), self.size)
            config = SamSegmenterConfig(weights=weights, points_per_side=self.points_per_side)
            if not self.weights:  # masks of random weights are neither good nor stable
                config.predicted_iou, config.stability = -9.0, 0.3
            segmenter = config.setup().to(device)
            picture = random.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            counts = []
            taken = measure(lambda: counts.append(len(segmenter.masks(picture))), self.repeats)
        masks = torch.from_numpy(np.stack([random_segments(random, 4) == 0 for _ in range(1000)])).to(device)
        scores = torch.rand(len(masks), device=device)
        nms = measure(lambda: mask_nms(masks, scores, 0.7), self.repeats)
        named = self.weights or f"random, hiera-{self.size}"
        return {"weights": named, "masks": counts[-1], "picture": taken, "nms_of_1000_masks": nms}


def random_sam(folder: Path, size: str) -> str:
    """Writes SAM 2.1 of a size with random weights."""
    import transformers

    widths = {"tiny": 96, "small": 96, "base-plus": 112, "large": 144}
    blocks = {"tiny": [1, 2, 7, 2], "small": [1, 2, 11, 2], "base-plus": [2, 3, 16, 3], "large": [2, 6, 36, 4]}
    attended = {"tiny": [5, 7, 9], "small": [7, 10, 13], "base-plus": [12, 16, 20], "large": [23, 33, 43]}
    stages = [widths[size] * 2**k for k in range(4)]
    heads = [(2 if size in ("base-plus", "large") else 1) * 2**k for k in range(4)]
    backbone = {
        "hidden_size": widths[size],
        "num_attention_heads": heads[0],
        "blocks_per_stage": blocks[size],
        "embed_dim_per_stage": stages,
        "num_attention_heads_per_stage": heads,
        "window_size_per_stage": [8, 4, 16, 8] if size == "large" else [8, 4, 14, 7],
        "global_attention_blocks": attended[size],
    }
    vision = {"backbone_config": backbone, "backbone_channel_list": stages[::-1]}
    transformers.Sam2Model(transformers.Sam2Config(vision_config=vision)).save_pretrained(folder)
    return str(folder)
