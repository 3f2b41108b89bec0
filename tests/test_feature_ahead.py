"""Frames are prepared ahead by threads and encoded several at a time, and come out as one by one."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from test_feature_encoders import write_encoder, write_scene
from waiting import PATIENCE

from divff_nerfstudio.data.scene import SceneError, load_scene
from divff_nerfstudio.features import extract
from divff_nerfstudio.features.ahead import ahead, features_of
from divff_nerfstudio.features.extract import _FramesASecond
from divff_nerfstudio.features.hotspots import HotspotSource
from divff_nerfstudio.features.open_clip_source import PatchSource, SegmentSource, SegmentSourceConfig, TileSource
from divff_nerfstudio.features.pictures import Pictures

CPU = torch.device("cpu")


class Recorded:
    """A source that records what it is asked for; its device only says so."""

    def __init__(self, device: str, frames_at_once: int):
        self.device, self.frames_at_once = SimpleNamespace(type=device), frames_at_once
        self.parts: list[list[int]] = []

    def prepare(self, frame: int) -> int:
        return 10 * frame

    def encode(self, prepared):
        self.parts.append(list(prepared))
        return (each + 1 for each in prepared)


@pytest.mark.parametrize(("device", "parts"), [("cpu", [1, 1, 1, 1, 1]), ("cuda", [2, 2, 1])])
def test_frames_are_encoded_together_on_a_gpu(device, parts):
    source = Recorded(device, 2)
    assert list(features_of(source, range(3, 8))) == [31, 41, 51, 61, 71]  # pyright: ignore[reportArgumentType]
    assert [len(part) for part in source.parts] == parts
    assert [each for part in source.parts for each in part] == [30, 40, 50, 60, 70]
    assert list(features_of(source, range(0))) == []  # pyright: ignore[reportArgumentType]


def test_threads_work_ahead_at_the_same_time_within_bounds():
    both, begun = threading.Barrier(2), []

    def work(item: int) -> int:
        begun.append(item)
        if item < 2:
            both.wait(PATIENCE)  # either alone would wait for ever
        return item

    results = ahead(work, range(20), workers=2, max_pending=4)
    assert next(results) == 0 and next(results) == 1
    assert max(begun) < 6
    results.close()
    assert len(begun) < 8 and not any(thread.name.startswith("ahead") for thread in threading.enumerate())


def test_frames_a_second_are_told():
    now = [0.0]
    with Progress(_FramesASecond(), console=Console(file=io.StringIO()), get_time=lambda: now[0]) as progress:
        task = progress.add_task("", total=6)
        shown = []
        for now[0] in (0.0, 2.0, 4.0, 6.0, 6.5, 7.0):
            progress.advance(task)
            shown.append(_FramesASecond().render(progress.tasks[0]).plain)
    assert shown == ["", "0.5 frames/s", "0.5 frames/s", "0.5 frames/s", "0.615 frames/s", "0.714 frames/s"]


def test_an_extraction_tells_them(tmp_path, monkeypatch):
    columns = []
    monkeypatch.setattr(extract, "Progress", lambda *given, **options: columns.extend(given) or Progress(*given))
    root, encoder = write_scene(tmp_path / "scene", frames=3), write_encoder(tmp_path / "encoder")
    extract.ExtractConfig(root, encoder, ("patches",), device="cpu").main()
    assert any(isinstance(column, _FramesASecond) for column in columns)


def test_what_fails_ahead_is_told_where_its_result_would_come():
    results = ahead(lambda item: 1 // item, [1, 1, 0, 1], workers=2, max_pending=4)
    assert next(results) == 1 and next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_picture_that_several_threads_want_is_decoded_once(tmp_path, monkeypatch):
    pictures = Pictures(load_scene(write_scene(tmp_path / "scene", video=20)))
    decode, numbers, go = pictures._decode, [], threading.Event()

    def slowly(number):
        numbers.append(number)
        go.wait(PATIENCE)
        return decode(number)

    monkeypatch.setattr(pictures, "_decode", slowly)
    results = ahead(lambda frame: pictures.clip(frame, 2, 4), [0, 0, 0], workers=3, max_pending=3)
    threading.Timer(0.05, go.set).start()
    first, *others = results
    assert all(np.array_equal(first, other) for other in others)
    assert len(numbers) == len(set(numbers)) == 2


def test_a_picture_that_could_not_be_read_is_tried_again(tmp_path, monkeypatch):
    pictures = Pictures(load_scene(write_scene(tmp_path / "scene")))
    decode = pictures._decode
    monkeypatch.setattr(pictures, "_decode", lambda number: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        pictures.clip(0, 1, 1)
    monkeypatch.setattr(pictures, "_decode", decode)
    assert pictures.clip(0, 1, 1).shape[0] == 1


def test_frames_of_a_video_that_were_cut_at_two_sizes_are_named(tmp_path):
    scene = load_scene(write_scene(tmp_path / "scene", video=20))
    path = scene.video_frame_path(int(scene.video_numbers_available[9]))
    assert path is not None
    with Image.open(path) as picture:
        picture.resize((picture.width // 2, picture.height // 2)).save(path)
    pictures = Pictures(load_scene(scene.root))
    with pytest.raises(SceneError, match=f"{path.name} is .*cut all of them at one size"):
        for frame in range(len(scene)):
            pictures.clip(frame, 4, 1)


def sources(tmp_path: Path) -> list:
    root = write_scene(tmp_path / "scene", frames=5, video=20)
    pictures, encoder = Pictures(load_scene(root)), write_encoder(tmp_path / "encoder")
    colour = SegmentSourceConfig(segmenter="colour", min_share=0.0, tiles=True)
    later = SegmentSourceConfig(segmenter="test_feature_sam:Overlapping", min_share=0.0, tiles=True)
    return [
        SegmentSource(pictures, encoder, CPU, colour),
        SegmentSource(pictures, encoder, CPU, later),
        TileSource(pictures, encoder, CPU),
        TileSource(pictures, write_encoder(tmp_path / "plain", clip_tower=False), CPU),
        PatchSource(pictures, encoder, CPU),
    ]


def test_several_frames_at_once_give_what_each_gives_alone(tmp_path):
    for source in sources(tmp_path):
        alone = [source.extract(frame) for frame in range(5)]
        for together in (False, True):
            if hasattr(source, "encoder"):
                source.encoder._together = together  # as on a GPU
            found = list(source.encode([source.prepare(frame) for frame in range(5)]))
            for one, other in zip(alone, found, strict=True):
                np.testing.assert_array_equal(one.index, other.index)
                np.testing.assert_allclose(one.table, other.table, atol=2e-6)
        if hasattr(source, "encoder"):
            source.encoder._together = False


def test_hotspots_of_several_frames_keep_their_frames():
    clips = SimpleNamespace(encode_clips=lambda clips: torch.tensor(clips[:, 0, 0, 0]))
    made = SimpleNamespace(dimension=2, clips=clips)
    index, clip = np.zeros((2, 2), np.uint16), np.zeros((1, 4, 2, 2, 3), np.float32)
    prepared = [(index, None), (index, clip + 1), (index, None), (index, clip + 2)]
    tables = [features.table for features in HotspotSource.encode(made, prepared)]  # pyright: ignore[reportArgumentType]
    assert [len(table) for table in tables] == [0, 1, 0, 1]
    assert (tables[1] == 1).all() and (tables[3] == 2).all()
