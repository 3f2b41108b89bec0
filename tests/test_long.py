"""Long videos: what a start opens, reads and keeps does not grow with the number of frames."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_run
from conftest import TINY_HEIGHT, TINY_WIDTH, write_tiny_scene
from PIL import Image

from divff_nerfstudio.data import frames as frames_module
from divff_nerfstudio.data.frames import cache_folder
from divff_nerfstudio.data.remarks import remarks
from divff_nerfstudio.data.scene import load_scene
from divff_nerfstudio.datamanager import DivFFDataManager
from divff_nerfstudio.evaluation import viewpoints
from divff_nerfstudio.evaluation.trained_scene import TrainedScene
from divff_nerfstudio.features.extract import ExtractConfig
from divff_nerfstudio.objects.diary import diary
from divff_nerfstudio.objects.sightings import Look
from divff_nerfstudio.objects.things import LookCamera, find_things

PLAIN = ("plain_source:PlainSource",)
_OPENED: list[Path] = []
_LISTENING: list[bool] = []
sys.addaudithook(lambda event, args: _note(args[0]) if event == "open" and _LISTENING else None)  # it stays for good


def _note(path: Any) -> None:
    if isinstance(path, (str, Path)):
        _OPENED.append(Path(path))


@contextmanager
def opened_in(folder: Path) -> Iterator[list[Path]]:
    """Collects the files of a folder that the block opens."""
    _OPENED.clear()
    _LISTENING.append(True)
    found: list[Path] = []
    try:
        yield found
    finally:
        _LISTENING.clear()
        found += [path.relative_to(folder) for path in _OPENED if path.is_relative_to(folder)]


def started(scene: Path, output: Path) -> DivFFDataManager:
    """The data of a training that is about to begin."""
    config = tiny_run.config(scene, output).pipeline.datamanager
    return config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)


def traced(work: Callable[[], object]) -> int:
    """The most memory that Python and NumPy took at once, in bytes; what is mapped from files is not theirs."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Untouched(np.ndarray):
    """An array whose values nobody may look at."""

    def __getitem__(self, places: Any) -> Any:
        raise AssertionError(f"{places} was looked at")

    def __iter__(self) -> Any:
        raise AssertionError("all was looked at")


def test_a_start_opens_as_many_files_for_a_long_video_as_for_a_short_one(tmp_path: Path) -> None:
    counts = []
    for frames in (8, 120):
        scene = write_tiny_scene(tmp_path / f"{frames}", frames, extras=False)
        tiny_run.write_features(scene, tmp_path / f"encoder{frames}")
        started(scene, tmp_path)  # decodes, once
        with opened_in(scene) as files:
            started(scene, tmp_path).next_train(0)
        assert {path.name for path in files if path.parts[0] == "frames"} == {"IMG_0000000100.bmp"}  # for its size
        counts.append(sorted(path.name.split("-")[0] for path in files))
    assert counts[0] == counts[1]


def test_a_start_reads_no_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = write_tiny_scene(tmp_path / "scene", 24, extras=False)
    load_scene(scene)
    opened = frames_module.open_cache

    def open_cache(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
        found = opened(path, shape)
        return found.view(Untouched) if found is not None and len(shape) == 4 else found

    monkeypatch.setattr(frames_module, "open_cache", open_cache)
    found = load_scene(scene)
    with pytest.raises(AssertionError):
        found.frame(0)
    monkeypatch.setattr(Untouched, "filename", str(next(cache_folder(scene).glob("frames-*.npy"))), raising=False)
    assert remarks(found) == []


def test_equal_pictures_are_told_by_digests_which_are_made_anew_where_they_are_missing(tmp_path: Path) -> None:
    root = write_tiny_scene(tmp_path / "scene", 16, extras=False)
    scene = load_scene(root)
    trained, held_out = (scene.image_paths[scene.splits[split][1]] for split in ("train", "test"))
    Image.open(trained).save(held_out)
    for _ in range(2):
        scene = load_scene(root)
        (sentence,) = remarks(scene)
        assert held_out.name in sentence and trained.name in sentence
        equal = [scene.digests[i].tobytes() == scene.digests[j].tobytes() for i in range(16) for j in range(i)]
        assert sum(equal) == 1
        (kept,) = cache_folder(root).glob("digests-*.npy")
        kept.unlink()


def test_equally_large_cameras_are_not_compared_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nerfstudio.cameras.cameras import Cameras

    taken, usual = [], Cameras.__getitem__
    monkeypatch.setattr(Cameras, "__getitem__", lambda self, places: taken.append(places) or usual(self, places))
    data = started(write_tiny_scene(tmp_path / "scene", 40, extras=False), tmp_path)
    assert len(taken) < 5
    assert len(data.train_dataparser_outputs.cameras) == len(data.train_dataset)


class Cameras:
    """Poses of a scene, on their way through a room."""

    def __init__(self, frames: int):
        poses = np.random.default_rng(0).normal(size=(frames, 3, 4)).cumsum(0)
        poses[:, :, 2] /= np.linalg.norm(poses[:, :, 2], axis=1, keepdims=True)
        self.camera_to_worlds = poses

    def __len__(self) -> int:
        return len(self.camera_to_worlds)


@pytest.mark.parametrize("compared", [10_000, 300])
def test_the_central_frame_is_the_one_nearest_to_all_others(monkeypatch: pytest.MonkeyPatch, compared: int) -> None:
    monkeypatch.setattr(viewpoints, "_COMPARED", compared)
    frames = Cameras(700)
    positions, directions = frames.camera_to_worlds[:, :, 3], -frames.camera_to_worlds[:, :, 2]
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    turned = np.arccos(np.clip(directions @ directions.T, -1, 1))
    far = (apart / apart.mean() + turned / turned.mean()).mean(1)
    found = viewpoints.central_frame(frames)  # pyright: ignore[reportArgumentType]
    assert far[found] <= far.min() * (1 + (0 if compared > 700 else 0.01))


def test_the_central_frame_of_a_long_video_takes_no_memory_for_each_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewpoints, "_COMPARED", 200)
    peaks = []
    for count in (2000, 8000):
        frames = Cameras(count)
        peaks.append(traced(partial(viewpoints.central_frame, frames)))  # pyright: ignore[reportArgumentType]
    assert peaks[1] < 2 * peaks[0] < 2**24


def test_the_nearest_trained_frame_is_found_in_a_long_video() -> None:
    random = np.random.default_rng(0)
    ids = np.sort(random.choice(10_000, 400, replace=False))
    trained = TrainedScene.__new__(TrainedScene)
    trained.scene = SimpleNamespace(frame_ids=ids)  # pyright: ignore[reportAttributeAccessIssue]
    trained.trained = sorted(random.choice(400, 150, replace=False).tolist())
    for index in range(400):
        expected = min(trained.trained, key=lambda i: (abs(int(ids[i] - ids[index])), i))
        assert trained.nearest_trained(index) == expected


FRAME_BYTES = 3 * TINY_HEIGHT * TINY_WIDTH


def test_extraction_takes_no_memory_for_each_frame(tmp_path: Path) -> None:
    scenes = [write_tiny_scene(tmp_path / f"{n}", n, extras=False) for n in (8, 40, 140)]
    for scene in scenes:
        load_scene(scene)  # decodes
    _, short, long = (traced(ExtractConfig(s, sources=PLAIN, own=("columns=5",), device="cpu").main) for s in scenes)
    assert long - short < 100 * FRAME_BYTES


def test_a_start_keeps_less_of_each_frame_than_its_pixels(tmp_path: Path) -> None:
    scenes = [write_tiny_scene(tmp_path / f"{n}", n, extras=False) for n in (40, 140)]
    for scene in scenes:
        started(scene, tmp_path)
    short, long = (traced(partial(started, scene, tmp_path)) for scene in scenes)
    assert long - short < 100 * FRAME_BYTES


def test_finding_things_takes_little_memory_for_each_frame() -> None:
    """Far less than for the pixels, features and points of its segments."""
    size, random = (36, 64), np.random.default_rng(0)
    index = (np.arange(size[0])[:, None] // 12 * 4 + np.arange(size[1]) // 16).astype(np.uint16)
    table = random.standard_normal((12, 256)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    pose = np.column_stack((np.eye(3), np.zeros(3)))
    camera = LookCamera(pose, np.array([[40.0, 0, 32], [0, 40.0, 18], [0, 0, 1]]))
    rows, columns = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5, indexing="ij")
    points = 2 * np.stack(((columns - 32) / 40, (18 - rows) / 40, -np.ones(size)), -1)
    distance = np.linalg.norm(points, axis=-1)

    def found(frames: int) -> None:
        looks = (Look(i, index, points, distance, np.zeros(size), np.zeros(size), np.zeros(3)) for i in range(frames))
        things = find_things(looks, lambda _: table.copy(), [camera] * frames)
        assert [len(thing.frames) for thing in things.things] == [frames] * 12
        assert diary(things) == [] and len(things.things[0].rests[0].points)

    found(10)
    short, long = (traced(partial(found, frames)) for frames in (60, 260))
    assert long - short < 200 * size[0] * size[1]
