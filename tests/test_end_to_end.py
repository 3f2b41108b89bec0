"""nerfstudio's own commands as typed, on a tiny scene with random features."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import small_scene
import tiny_run
import torch
from waiting import PATIENCE

from divff_nerfstudio.evaluation.runs import our_configs
from divff_nerfstudio.run_config import read_config

sys.path.append(str(Path(__file__).parent.parent / "scripts"))
from viewer_page import serve

SIZES = {
    "fields.static-resolutions": "8 16",
    "fields.dynamic-resolutions": "8",
    "heads.resolutions": "8",
    "heads.hidden": "16",
    "num-samples": "8",
    "num-proposal-samples": "12",
}
STEPS = 12
RENDERED = ("rgb", "rgb_static", "depth", "mask_moving", "features_pca", "relevancy", "relevancy_overlay")
OVERLAID = ("rgb", "relevancy_overlay")


@dataclass
class Run:
    """A finished training, and the commands that are being run on it, two at a time: each takes long to start."""

    folder: Path
    env: dict[str, str]
    method: str = "divff"
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2))
    started: dict[str, Future[None]] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        """The training's config.yml."""
        return self.folder / "outputs" / "tiny" / self.method / "run" / "config.yml"

    def command(self, name: str, *words: object) -> None:
        """Runs one of nerfstudio's commands; what it printed is shown where it fails."""
        program = Path(sys.executable).with_name(name)
        done = subprocess.run(
            [str(program), *map(str, words)],
            cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=3 * PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{name} failed:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"

    def start(self, what: str, name: str, *words: object) -> None:
        """Begins a command on the training, which writes to the path `what` below the folder."""
        fixed = ("--load-config", self.config, "--output-path", self.folder / what)
        self.started[what] = self.pool.submit(self.command, name, *words, *fixed)

    def output(self, what: str) -> Path:
        """Where a command has written to, when it has ended well."""
        self.started[what].result()
        return self.folder / what


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """`ns-train divff` with a query in its configuration, and what is then typed."""
    root = tmp_path_factory.mktemp("end_to_end")
    env = {**os.environ, "DIVFF_CACHE_DIR": str(root / "cache"), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    scene = small_scene.write(root / "scene")
    tiny_run.write_features(scene, root / "encoder")
    options = {
        "--data": scene,
        "--output-dir": root / "outputs",
        "--experiment-name": "tiny",
        "--timestamp": "run",
        "--vis": "tensorboard",
        "--max-num-iterations": STEPS,
        "--machine.device-type": "cpu",
        "--pipeline.datamanager.train-num-rays-per-batch": 64,
        "--pipeline.query.text": "mug",
    }
    words = [word for pair in options.items() for word in pair]
    sizes = [word for name, value in SIZES.items() for word in (f"--pipeline.model.{name}", *value.split())]
    found = Run(root, env)
    found.command("ns-train", "divff", *words, *sizes)
    (root / "path.json").write_text(json.dumps(camera_path()))
    pictures = ("--image-format", "png", "--output-format", "images", "--rendered-output-names", *OVERLAID)
    with found.pool:
        found.start("scores.json", "ns-eval", "--render-output-path", root / "figures")
        found.start("dataset", "ns-render", "dataset", "--image-format", "png", "--rendered-output-names", *RENDERED)
        found.start("between", "ns-render", "interpolate", "--interpolation-steps", 2, *pictures)
        found.start("path", "ns-render", "camera-path", "--camera-path-filename", root / "path.json", *pictures)
        found.start("spiral.mp4", "ns-render", "spiral", "--seconds", 0.25, "--rendered-output-names", *OVERLAID)
        yield found


def camera_path() -> dict:
    """One view at two times, and again at the first."""
    pose = np.eye(4).reshape(-1).tolist()
    keys = [{"camera_to_world": pose, "fov": 40, "aspect": 1.5, "render_time": time} for time in (0.0, 1.0, 0.0)]
    return {"render_height": 24, "render_width": 36, "seconds": 1, "camera_path": keys}


def read_pictures(folder: Path) -> list[np.ndarray]:
    return [imageio.imread(path) for path in sorted(folder.rglob("*.png"))]


@pytest.mark.slow
def test_train_writes_a_settled_config_and_one_safe_checkpoint(run: Run):
    text = run.config.read_text()
    assert "implementation: planes" in text and "text: mug" in text and not re.search(r"moving_start_step: 0\b", text)
    read_config(run.config, our_configs())
    models = run.config.parent / "nerfstudio_models"
    assert [path.name for path in models.iterdir()] == [f"step-{STEPS - 1:09d}.ckpt"]
    state = torch.load(next(models.iterdir()), weights_only=True)
    assert state["step"] == STEPS - 1 and any("semantic" in name for name in state["pipeline"])


@pytest.mark.slow
def test_eval_scores_the_test_frames(run: Run):
    results = json.loads(run.output("scores.json").read_text())["results"]
    assert {"psnr", "ssim", "moving_ap", "object_miou", "affordance_miou"} <= results.keys()
    assert all(np.isfinite(value) for value in results.values())
    assert len(read_pictures(run.folder / "figures")) >= len(small_scene.TEST)


@pytest.mark.slow
def test_render_dataset_gives_every_output_of_the_test_frames(run: Run):
    output = run.output("dataset")
    for name in RENDERED:
        pictures = read_pictures(output / "test" / name)
        assert len(pictures) == len(small_scene.TEST), name
        assert all(picture.shape[:2] == (small_scene.HEIGHT, small_scene.WIDTH) for picture in pictures)


@pytest.mark.slow
def test_interpolate_and_spiral_show_the_answer_beside_the_view(run: Run):
    between = read_pictures(run.output("between"))
    assert len(between) > 1
    for picture in between:
        assert picture.shape == (small_scene.HEIGHT, 2 * small_scene.WIDTH, 3)
        assert (picture[:, : small_scene.WIDTH] != picture[:, small_scene.WIDTH :]).any()
    assert len(imageio.imread(run.output("spiral.mp4"))) == 6


@pytest.mark.slow
def test_camera_path_obeys_the_time_of_each_keyframe(run: Run):
    first, later, again = read_pictures(run.output("path"))
    assert (first != later).any() and (first == again).all()


@pytest.mark.slow
def test_viewer_starts_answers_and_stops(run: Run):
    concurrent.futures.wait(run.started.values())
    command = ["ns-viewer", "--load-config", run.config, "--viewer.websocket-host", "127.0.0.1"]
    with serve(command, run.folder / "viewer.log", env=run.env) as server:
        page = urllib.request.urlopen(server.url, timeout=PATIENCE).read()
        assert b"<html" in page.lower()
        assert server.alive and "Traceback" not in server.said, server.said[-6000:]


@pytest.mark.slow
def test_other_methods_start_hardly_later_with_the_plugin():
    code = """
import sys
from nerfstudio.plugins import registry_dataparser
registry_dataparser.discover_dataparsers = lambda: ({}, {})
from nerfstudio.plugins import registry
registry.discover_methods = lambda: ({}, {})
import nerfstudio.configs.method_configs
assert not any(name.startswith("divff") for name in sys.modules)
before = len(sys.modules)
import divff_nerfstudio.registry, divff_nerfstudio.data.epic_diff
print(before, len(sys.modules) - before)
print([name for name in ("open_clip", "skimage", "sklearn", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts, heavy = done.stdout.splitlines()
    before, more = map(int, counts.split())
    assert 0 < more < before / 8 and heavy == "[]", "what takes the time of a start is the number of modules"
