"""Fixtures shared by all tests: a tiny scene in the EPIC-Diff layout, and the kitchen where there is one."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

TINY_WIDTH, TINY_HEIGHT, TINY_FRAMES = 24, 16, 8
TINY_CLASSES = ("cup", "undefined", "pan")
TINY_QUERIES = ("#C C takes the cup", "#C C cooks spagethi")


settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", settings.get_profile("steady"), derandomize=False)
settings.load_profile("steady")  # the same examples each time; --hypothesis-profile explore looks for others


def pytest_configure() -> None:
    """One thread for each process and the programs that it starts, however many cores there are."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    cv2.setNumThreads(1)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"  # where the tests' own servers are


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """As many threads as before, whatever a test has set: several add gradients of one code in another order each time,
    which moves last bits."""
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def tiny_poses(count: int) -> np.ndarray:
    """Cameras that turn and move a little, (count, 3, 4)."""
    angles = np.linspace(-0.3, 0.3, count)
    cos, sin, zero, one = np.cos(angles), np.sin(angles), np.zeros(count), np.ones(count)
    rotations = np.array([[cos, zero, sin], [zero, one, zero], [-sin, zero, cos]]).transpose(2, 0, 1)
    return np.concatenate((rotations, np.stack((angles, 0.1 * angles, zero), -1)[:, :, None]), 2)


def write_tiny_scene(root: Path, frames: int = TINY_FRAMES, extras: bool = True) -> Path:
    """Writes a scene; with `extras`, it has all that a scene can have: annotations, video frames, ground truth."""
    generator = np.random.default_rng(0)
    width, height = TINY_WIDTH, TINY_HEIGHT
    ids = [10 + 2 * i for i in range(frames)]
    numbers = [100 + 5 * i for i in range(frames)]
    test, val = ids[0::4], ids[2::4]
    train = [i for i in ids if i not in test + val]
    poses = tiny_poses(frames)
    meta = {
        "ids_all": ids,
        "ids_train": train,
        "ids_val": val,
        "ids_test": test,
        "images": {str(i): f"IMG_{n:010d}.bmp" for i, n in zip(ids, numbers, strict=True)},
        "poses": {str(i): pose.tolist() for i, pose in zip(ids, poses, strict=True)},
        "nears": {str(i): 0.5 + 0.01 * i for i in ids},
        "fars": {str(i): 3.0 + 0.01 * i for i in ids},
        "intrinsics": [[20.0, 0.0, width / 2], [0.0, 21.0, height / 2], [0.0, 0.0, 1.0]],
        "image_w": float(width),
        "image_h": float(height),
    }
    (root / "frames").mkdir(parents=True)
    (root / "meta.json").write_text(json.dumps(meta))
    for number in numbers:
        picture = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / "frames" / f"IMG_{number:010d}.bmp")
    if extras:
        _write_extras(root, numbers, [n for i, n in zip(ids, numbers, strict=True) if i in test])
    return root


def _write_extras(root: Path, numbers: list[int], tests: list[int]) -> None:
    generator = np.random.default_rng(1)
    width, height = TINY_WIDTH, TINY_HEIGHT
    for folder in ("annotations", "high_res_video", "object_annotations", "affordance_annotations"):
        (root / folder).mkdir()
    for number in range(numbers[0], numbers[-1] + 1):
        picture = generator.integers(0, 256, (2 * height, 2 * width, 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / "high_res_video" / f"frame_{number:010d}.jpg")
    for number, filled in zip(tests, (True, False), strict=True):
        mask = np.zeros((height, width), np.uint8)
        mask[10:, 4:12] = filled
        Image.fromarray(mask).save(root / "annotations" / f"IMG_{number:010d}.bmp")
    _write_objects(root / "object_annotations" / "te.json", tests[0])
    masks = np.zeros((height, width, len(TINY_QUERIES)), bool)
    masks[2:6, 3:9, 0] = True
    masks[8:12, 10:20, 1] = True
    content = {"text_queries": list(TINY_QUERIES), "images": {f"IMG_{tests[0]:010d}.jpg": masks}}
    (root / "affordance_annotations" / "aff_annotations.pkl").write_bytes(pickle.dumps(content))
    _write_ground_truth(root / "ground_truth", numbers, tests)


def _write_objects(path: Path, number: int) -> None:
    def region(option: int | None, corners: list[tuple[float, float]]) -> dict:
        xy = [7, *(value for x, y in corners for value in (x * 480 / TINY_WIDTH, y * 270 / TINY_HEIGHT))]
        return {"vid": "1", "flg": 0, "z": [], "xy": xy, "av": {} if option is None else {"1": str(option)}}

    def box(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]

    project = {
        "attribute": {"1": {"aname": "object", "options": {str(i): name for i, name in enumerate(TINY_CLASSES)}}},
        "file": {"1": {"fid": "1", "fname": f"IMG_{number:010d}.jpg"}},
        "metadata": {
            "1_a": region(None, box(2, 2, 10, 8)),
            "1_b": region(1, box(2, 2, 4, 4)),
            "1_c": region(2, box(8, 6, 14, 12)),
        },
    }
    path.write_text(json.dumps(project))


def _write_ground_truth(root: Path, numbers: list[int], tests: list[int]) -> None:
    height, width = TINY_HEIGHT, TINY_WIDTH
    (root / "frames").mkdir(parents=True)
    (root / "background").mkdir()
    layer = np.zeros((height, width), np.uint8)
    layer[10:, 4:12] = 2
    ever = layer.copy()
    ever[2:8, 2:10] = 1
    depth = np.full((height, width), 2.0, np.float32)
    for number in numbers:
        np.savez(root / "frames" / f"IMG_{number:010d}.npz", layer=layer, layer_ever=ever, instance=ever, depth=depth)
    for number in tests:
        Image.new("RGB", (width, height), (90, 80, 70)).save(root / "background" / f"IMG_{number:010d}.png")
        np.savez(root / "background" / f"IMG_{number:010d}.npz", depth=depth, instance=0 * layer)
    names = ("room", "cup", "arm")
    (root / "instances.json").write_text(json.dumps({"instances": [{"id": i, "name": n} for i, n in enumerate(names)]}))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keeps what tests cache out of the user's home."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DIVFF_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(autouse=True)
def own_numbers() -> None:
    """Begins each test with the same random numbers, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what libraries draw from
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Gives Ctrl-C back to pytest where a test has begun a training."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def tiny_scene(tmp_path: Path) -> Path:
    """Folder of a scene of eight frames of 24 x 16 pixels: four to train on, two to validate, two to test."""
    return write_tiny_scene(tmp_path / "tiny")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only an administrator can mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # a caught error may still hold a file of it


@pytest.fixture
def edit_meta(tiny_scene: Path) -> Callable[[Callable[[dict], object]], None]:
    """Changes the tiny scene's ``meta.json`` by a function of its content."""

    def edit(change: Callable[[dict], object]) -> None:
        path = tiny_scene / "meta.json"
        meta = json.loads(path.read_text())
        change(meta)
        path.write_text(json.dumps(meta))

    return edit


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Folder of the numbers that the published code has computed, ``$DIVFF_PARITY_DIR`` or beside the repository."""
    shared = Path(__file__).resolve().parents[2] / "shared" / "parity"
    folder = Path(os.environ.get("DIVFF_PARITY_DIR", shared))
    if not (folder / "divff_reference_a.npz").is_file():
        pytest.skip(f"there are no numbers of the published code at {folder}; name their folder in DIVFF_PARITY_DIR")
    return folder


@pytest.fixture
def kitchen_small() -> Path:
    """Folder of the kitchen at 114 x 64 pixels, from ``$DIVFF_DATA_DIR`` or beside the repository."""
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DIVFF_DATA_DIR", shared)) / "kitchen_small"
    if not (folder / "meta.json").is_file():
        pytest.skip(f"there is no scene at {folder}; name its parent in DIVFF_DATA_DIR")
    return folder
