"""Memory and time by the length of a video, for `bench.py`: a room that a camera circles, with invented features.

Frames are hard links to the few pictures of one round, so that even 20,000 take no room on the disk; each stage runs in
a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from stopwatch import machine

from divff_nerfstudio.features.encoder_loading import load_encoder
from divff_nerfstudio.features.sources import FeatureSource
from divff_nerfstudio.features.store import FrameFeatures

WIDTH, HEIGHT, FOCAL = 64, 36, 40.0
ROUND = 96
"""Poses of the camera's round, each with a picture of its own."""
SEGMENTS = 24
"""Of each frame."""
Stage = Literal["decode", "extract", "start", "first_batch", "train", "evaluate", "view", "viewer", "things"]
QUERY = "blue colander"


def pose(i: int) -> np.ndarray:
    """Camera to world of a place on the round, (3, 4), OpenGL: it looks outward and up and down a little."""
    turn = 2 * np.pi * i / ROUND
    back = np.array([np.cos(turn), 0.25 * np.sin(3 * turn), np.sin(turn)])
    back /= np.linalg.norm(back)
    right = np.cross((0.0, 1.0, 0.0), back)
    right /= np.linalg.norm(right)
    place = 0.6 * np.array([np.sin(turn), 0.2 * np.cos(2 * turn), np.cos(turn)])
    return np.stack((right, np.cross(back, right), back, place), -1)


def walls(i: int) -> np.ndarray:
    """Where each pixel of a pose meets the walls of a room of 4 x 4 x 4, (HEIGHT, WIDTH, 3)."""
    row, column = np.meshgrid(np.arange(HEIGHT) + 0.5, np.arange(WIDTH) + 0.5, indexing="ij")
    local = np.stack(((column - WIDTH / 2) / FOCAL, (HEIGHT / 2 - row) / FOCAL, -np.ones_like(row)), -1)
    camera = pose(i)
    rays = local @ camera[:, :3].T
    ways = (2 * np.sign(rays) - camera[:, 3]) / np.where(np.abs(rays) < 1e-9, 1e-9, rays)
    return camera[:, 3] + rays * ways.min(-1, keepdims=True)


def picture(i: int) -> np.ndarray:
    """What is seen there: waves of colour on the walls."""
    waves = np.sin(walls(i) @ np.array([[3.1, 1.3, 2.2], [2.3, 4.1, 1.7], [1.9, 2.7, 3.7]]))
    return np.round(127.5 + 110 * waves).astype(np.uint8)


def write_scene(root: Path, frames: int) -> None:
    """Writes a scene of so many frames."""
    (root / "frames").mkdir(parents=True)
    (root / "pictures").mkdir()
    for i in range(ROUND):
        Image.fromarray(picture(i)).save(root / "pictures" / f"{i}.bmp")
    names = {str(i): f"IMG_{i:010d}.bmp" for i in range(frames)}
    for i, name in enumerate(names.values()):
        os.link(root / "pictures" / f"{i % ROUND}.bmp", root / "frames" / name)
    ids = range(frames)
    meta = {
        "ids_all": [*ids],
        "ids_train": [i for i in ids if i % 4],
        "ids_val": [i for i in ids if i % 8 == 4],
        "ids_test": [i for i in ids if i % 8 == 0],
        "images": names,
        "poses": {name: pose(int(name) % ROUND).tolist() for name in names},
        "nears": dict.fromkeys(names, 0.5),
        "fars": dict.fromkeys(names, 5.0),
        "intrinsics": [[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]],
    }
    (root / "meta.json").write_text(json.dumps(meta))


class InventedSource(FeatureSource):
    """A feature for each of the coarse blocks of the walls, in the space of the demo encoder, which can ask them."""

    kind = "image"
    name = "invented"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        encoder = load_encoder("demo")
        self.model, self.fingerprint, self.dimension = "demo", encoder.fingerprint, encoder.dimension
        table = np.random.default_rng(0).standard_normal((SEGMENTS, self.dimension)).astype(np.float32)
        self._table = table / np.linalg.norm(table, axis=1, keepdims=True)

    def settings(self) -> dict[str, Any]:
        """None."""
        return {}

    def text_encoder(self) -> dict[str, Any]:
        """The demo encoder's."""
        return {"encoder": "demo", "fingerprint": self.fingerprint, "normalise": True}

    def extract(self, frame: int) -> FrameFeatures:
        """Features of the blocks that the frame shows; it is looked at, as an encoder would."""
        self.pictures.sharpest(frame)
        return FrameFeatures(_blocks(frame % ROUND), self._table)


@lru_cache(maxsize=ROUND)
def _blocks(i: int) -> np.ndarray:
    return ((np.floor(walls(i)).astype(int) @ (1, 5, 7)) % SEGMENTS).astype(np.uint16)


@dataclass
class Long:
    """Measures memory and seconds of each stage of a scene, by its length."""

    frames: tuple[int, ...] = (100, 1000, 5000, 20000)
    """Lengths of the scene."""
    stages: tuple[Stage, ...] = get_args(Stage)
    """What is measured, in the order in which it is done: the frames are decoded (once), features extracted; training
    starts (again, all of it), its first batch (with what is looked for before it), steps; evaluation, a view and an
    answer of an opened run, the viewer; things are found, by the true depth in the rendered one's place, and
    the diary is told."""
    evidence: Literal["off", "on"] = "on"
    """Whether training looks for what moves before its first batch."""
    steps: int = 20
    """Training steps."""
    evaluated: int = 4
    """Held-out frames that are evaluated."""
    rays: int = 1024
    """Rays per step."""
    folder: Path | None = None
    """Where the scenes are made, and stay; None: in a folder for the time."""
    only: Path | None = None
    """A scene that was made before, of which one stage is measured in this process."""

    def main(self) -> None:
        """Makes the scenes and measures each stage of each in a process of its own."""
        torch.set_num_threads(1)
        if self.only is not None:
            print(json.dumps(self._measured(self.only)))
            return
        results = {}
        with tempfile.TemporaryDirectory() as temporary:
            for frames in self.frames:
                root = (self.folder or Path(temporary)) / f"{frames}"
                if not root.exists():
                    write_scene(root, frames)
                results[frames] = {stage: self._in_a_process(root, stage) for stage in self.stages}
                if self.folder is None:
                    shutil.rmtree(root)
        print(json.dumps({"machine": machine(), "unit": "MiB, CPU-seconds", "results": results}, indent=2))

    def _in_a_process(self, root: Path, stage: Stage) -> dict[str, Any]:
        words = {"evidence": self.evidence, "steps": self.steps, "evaluated": self.evaluated, "rays": self.rays}
        options = [word for key, value in words.items() for word in (f"--{key}", str(value))]
        command = [
            sys.executable,
            "-W",
            "ignore",
            str(Path(__file__).with_name("bench.py")),
            "long",
            "--only",
            str(root),
        ]
        done = subprocess.run([*command, "--stages", stage, *options], check=False, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"failed": done.returncode}
        print(f"{root.name} frames, {stage}: {found}", file=sys.stderr, flush=True)
        return found

    def _measured(self, root: Path) -> dict[str, Any]:
        """Runs a stage; what it took beyond what was imported."""
        import divff_nerfstudio.registry  # noqa: F401

        work: Callable[[Path], object] = getattr(self, f"_{self.stages[0]}")
        found: dict[str, float] = {"imports_cpu_seconds": round(time.process_time(), 2), "imports": _status("RssAnon")}
        with _peak() as peak:
            cpu, wall = time.process_time(), time.perf_counter()
            more = work(root)
            found |= {"cpu_seconds": round(time.process_time() - cpu, 2)}
            found |= {"seconds": round(time.perf_counter() - wall, 2)}
        found |= {"anonymous_peak": max(peak), "mapped_at_end": _status("RssFile"), "peak": _status("VmHWM")}
        return found | (more if isinstance(more, dict) else {})

    def _decode(self, root: Path) -> None:
        from divff_nerfstudio.data.scene import load_scene

        load_scene(root)

    def _extract(self, root: Path) -> None:
        from divff_nerfstudio.features.extract import ExtractConfig

        ExtractConfig(root, encoder="demo", sources=("bench_long:InventedSource",), device="cpu").main()

    def _start(self, root: Path) -> None:
        self._pipeline(root, "off").datamanager.next_train(0)

    def _first_batch(self, root: Path) -> dict[str, float]:
        pipeline = self._pipeline(root, self.evidence)
        cpu = time.process_time()
        pipeline.datamanager.next_train(0)
        return {"batch_cpu_seconds": round(time.process_time() - cpu, 2)}

    def _train(self, root: Path) -> None:
        config = self._config(root, self.evidence)
        trainer = config.setup(local_rank=0, world_size=1)
        config.save_config()
        trainer.setup()
        trainer.train()

    def _run(self, root: Path) -> Path:
        return next((root / "runs").glob("**/config.yml"))

    def _evaluate(self, root: Path) -> dict[str, float]:
        from divff_nerfstudio.evaluation.run import Wanted, evaluate
        from divff_nerfstudio.evaluation.runs import load_run

        pipeline = load_run(self._run(root)).pipeline
        cpu = time.process_time()
        wanted = Wanted(tasks=("masks", "objects", "affordances"), frames=self.evaluated)
        evaluate(pipeline.model, pipeline.datamanager, pipeline.query, wanted=wanted)
        return {"evaluation_cpu_seconds": round(time.process_time() - cpu, 2)}

    def _view(self, root: Path) -> dict[str, float]:
        from divff_nerfstudio.evaluation.door import open_run

        scene = open_run(self._run(root))
        opened = time.process_time()
        scene.render(0)
        rendered = time.process_time()
        scene.ask(QUERY, 0)
        parts = {"view": rendered - opened, "answer": time.process_time() - rendered}
        return {f"{name}_cpu_seconds": round(value, 2) for name, value in parts.items()}

    def _viewer(self, root: Path) -> None:
        from threading import Lock

        from nerfstudio.viewer.viewer import Viewer

        from divff_nerfstudio.evaluation.runs import load_run

        run = load_run(self._run(root))
        run.config.viewer.websocket_port = None
        viewer = Viewer(run.config.viewer, root, root, run.pipeline, train_lock=Lock())
        data = run.pipeline.datamanager
        viewer.init_scene(train_dataset=data.train_dataset, train_state="completed", eval_dataset=data.eval_dataset)

    def _things(self, root: Path) -> dict[str, int]:
        from divff_nerfstudio.objects.diary import diary
        from divff_nerfstudio.objects.sightings import Look
        from divff_nerfstudio.objects.things import LookCamera, find_things

        frames = len(list((root / "frames").iterdir()))
        table = np.random.default_rng(0).standard_normal((SEGMENTS, 512)).astype(np.float32)
        table /= np.linalg.norm(table, axis=1, keepdims=True)
        intrinsics = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])

        def looks() -> Iterator[Look]:
            for i in range(frames):
                points, eye = walls(i % ROUND), pose(i % ROUND)[:, 3]
                distance, shares = np.linalg.norm(points - eye, axis=-1), np.zeros((2, HEIGHT, WIDTH))
                yield Look(i, _blocks(i % ROUND), points, distance, shares[0], shares[1], eye)

        cameras = [LookCamera(pose(i % ROUND), intrinsics) for i in range(frames)]
        found = find_things(looks(), lambda _: table.copy(), cameras, root)
        return {"things": len(found.things), "events": len(diary(found))}

    def _config(self, root: Path, evidence: Literal["off", "on"]) -> Any:
        from divff_nerfstudio.models.divff import DivFFModelConfig
        from divff_nerfstudio.registry import divff
        from divff_nerfstudio.trainer import DivFFTrainerConfig

        config = divff.config
        assert isinstance(config, DivFFTrainerConfig) and isinstance(config.pipeline.model, DivFFModelConfig)
        config.machine.device_type = "cuda" if torch.cuda.is_available() else "cpu"
        config.data = config.pipeline.datamanager.data = config.pipeline.datamanager.dataparser.data = root
        config.pipeline.datamanager.features = "auto"
        config.pipeline.datamanager.train_num_rays_per_batch = self.rays
        config.pipeline.model.evidence = evidence
        config.output_dir, config.experiment_name, config.vis = root / "runs", "long", "tensorboard"
        config.max_num_iterations, config.timestamp = self.steps, "run"
        return config

    def _pipeline(self, root: Path, evidence: Literal["off", "on"]) -> Any:
        config = self._config(root, evidence)
        config.settle()
        return config.pipeline.setup(device=config.machine.device_type, test_mode="val")


@contextmanager
def _peak() -> Iterator[list[float]]:
    """Collects how large this process's own memory is, again and again, until the block has ended."""
    found, over = [_status("RssAnon")], threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            found.append(_status("RssAnon"))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
        found.append(_status("RssAnon"))


def _status(name: str) -> float:
    """A size of this process, in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(lines[name].split()[0]) / 2**10, 1)
