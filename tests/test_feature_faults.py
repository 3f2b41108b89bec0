"""What may go wrong amid an extraction: nothing finished is lost, nothing half-written read, one sentence says why."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import open_clip
import pytest
from huggingface_hub import constants
from PIL import Image, ImageOps
from plain_source import PlainSource
from rich.progress import Progress
from test_feature_encoders import write_scene
from waiting import PATIENCE

from divff_nerfstudio import cli
from divff_nerfstudio.data.scene import SceneError, SceneFolder, load_scene
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.extract import ExtractConfig
from divff_nerfstudio.features.patches import DinoSourceConfig
from divff_nerfstudio.features.pretrained import EncoderError
from divff_nerfstudio.features.store import FeatureStore, FeatureStoreError, FeatureWriter, growing

FRAMES = 6


@pytest.fixture
def scene_root(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "scene", frames=FRAMES, video=20)


def config(root: Path, *sources: str, **options) -> ExtractConfig:
    names = tuple(f"plain_source:{name}" for name in sources or ("PlainSource",))
    return ExtractConfig(data=root, sources=names, device="cpu", **options)


def contents(root: Path, kind: str = "image") -> list[tuple[bytes, bytes]]:
    store = FeatureStore.open(root / "features" / kind)
    return [tuple(part.tobytes() for part in store.frame_features(i)) for i in range(len(store))]  # pyright: ignore


@pytest.fixture
def unbroken(tmp_path: Path) -> list[tuple[bytes, bytes]]:
    root = write_scene(tmp_path / "unbroken", frames=FRAMES, video=20)
    config(root).main()
    return contents(root)


def test_features_of_pictures_that_were_replaced_are_told(scene_root):
    """Under the same ids and in the same size; frames of the video that were taken away since tell nothing."""
    config(scene_root).main()
    store = FeatureStore.open(scene_root / "features" / "image")
    assert store.other_frames(load_scene(scene_root)) is None
    header = json.loads((store.directory / "header.json").read_text())
    (store.directory / "header.json").write_text(json.dumps({**header, "pictures": "0" * 64}))
    of_video = FeatureStore.open(store.directory)
    assert "other pictures" in str(of_video.other_frames(load_scene(scene_root)))
    frame = load_scene(scene_root).image_paths[2]
    with Image.open(frame) as picture:
        ImageOps.invert(picture.convert("RGB")).save(frame)
    assert "other pictures" in str(store.other_frames(load_scene(scene_root)))
    shutil.rmtree(scene_root / "high_res_video")
    assert of_video.other_frames(load_scene(scene_root)) is None


@pytest.mark.parametrize(("source", "variable"), [("PlainSource", "KILLED_IN"), ("TornSource", "TORN_IN")])
def test_killed_in_the_middle_of_a_frame(scene_root, unbroken, source, variable, monkeypatch):
    here = str(Path(__file__).parent)
    command = [sys.executable, "-m", "divff_nerfstudio.cli", "extract", "--data", str(scene_root)]
    done = subprocess.run(
        [*command, "--device", "cpu", "--sources", f"plain_source:{source}"],
        env={**os.environ, variable: "3", "PYTHONPATH": here},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(FeatureStoreError, match="no feature store"):
        FeatureStore.open(scene_root / "features" / "image")
    extracted = count_frames(monkeypatch)
    config(scene_root, source).main()
    assert extracted == [3, 4, 5]
    assert contents(scene_root) == unbroken


def count_frames(monkeypatch) -> list[int]:
    from plain_source import PlainSource

    extracted: list[int] = []
    original = PlainSource.extract
    monkeypatch.setattr(PlainSource, "extract", lambda self, frame: (extracted.append(frame), original(self, frame))[1])
    return extracted


@pytest.mark.parametrize("fails_at", [1, 3, 4, 12, 19, 20, 21])
def test_disk_full(scene_root, unbroken, monkeypatch, fails_at):
    """A disk that takes half of one write: of a table, an index, the progress, or a head at the end."""
    writes, original = [], growing._write

    def write(file, content):
        writes.append(len(content))
        if len(writes) == fails_at:
            original(file, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(file, content)

    monkeypatch.setattr(growing, "_write", write)
    kept = min((fails_at - 1) // 3, FRAMES)
    if fails_at <= 20:
        with pytest.raises(FeatureStoreError) as error:
            config(scene_root).main()
        message = str(error.value)
        assert "No space left on device" in message and "make room" in message and "\n" not in message
        assert f"{kept} of {FRAMES} frames are kept" in message
        assert not (scene_root / "features" / "image").exists()
    extracted = count_frames(monkeypatch)
    config(scene_root).main()
    assert extracted == list(range(kept if fails_at <= 20 else 0, FRAMES))
    assert contents(scene_root) == unbroken


def test_a_small_disk(small_disk, scene_root, unbroken):
    """The same on a real file system without room."""
    with pytest.raises(FeatureStoreError, match=r"No space left.* [1-5] of 6 frames are kept: make room"):
        config(scene_root, output=small_disk, own=("columns=400",)).main()
    with pytest.raises(FeatureStoreError, match="No space left"):
        config(scene_root, output=small_disk, own=("columns=400",)).main()
    subprocess.run(["mount", "-o", "remount,size=10M", str(small_disk)], check=True)
    config(scene_root, output=small_disk, own=("columns=400",)).main()
    assert len(FeatureStore.open(small_disk / "image")) == FRAMES


def test_a_truncated_store_is_named(scene_root, capsys):
    config(scene_root).main()
    table = scene_root / "features" / "image" / "table.npy"
    os.truncate(table, table.stat().st_size - 4)
    words = ["extract", "--data", str(scene_root), "--device", "cpu", "--sources", "plain_source:PlainSource"]
    assert cli.main(words) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "table.npy is truncated" in said and "run `divff extract" in said
    assert cli.main([*words, "--overwrite"]) == 0
    assert len(contents(scene_root)) == FRAMES


def test_the_second_extraction_stops_or_waits(scene_root, unbroken, monkeypatch):
    from plain_source import PlainSource

    started, waits, go_on = threading.Event(), threading.Event(), threading.Event()
    original, extracted = PlainSource.extract, []

    def slow(self, frame):
        extracted.append(frame)
        started.set()
        assert go_on.wait(PATIENCE)
        return original(self, frame)

    monkeypatch.setattr(PlainSource, "extract", slow)
    monkeypatch.setattr(FeatureWriter, "_tell_waiting", lambda self: waits.set())
    first = threading.Thread(target=lambda: config(scene_root).main())
    first.start()
    assert started.wait(PATIENCE)
    with pytest.raises(FeatureStoreError, match=r"Another extraction is writing .*wait") as error:
        config(scene_root).main()
    assert "\n" not in str(error.value)
    second = threading.Thread(target=lambda: config(scene_root, wait=True).main())
    second.start()
    assert waits.wait(PATIENCE) and extracted == [0]
    go_on.set()
    first.join(PATIENCE)
    second.join(PATIENCE)
    assert extracted == list(range(FRAMES)) and contents(scene_root) == unbroken


def test_a_corrupt_jpeg_in_the_middle(scene_root, unbroken, monkeypatch):
    picture = scene_root / "high_res_video" / "frame_0000000010.jpg"
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SceneError, match=picture.name) as error:
        config(scene_root).main()
    assert "copy it anew" in str(error.value)
    picture.write_bytes(whole)
    extracted = count_frames(monkeypatch)
    config(scene_root).main()
    assert extracted == [3, 4, 5] and contents(scene_root) == unbroken


def test_weights_that_cannot_be_had(scene_root, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    options = {"data": scene_root, "sources": ("plain_source:PlainSource", "regulariser"), "device": "cpu"}
    with pytest.raises(EncoderError) as error:
        ExtractConfig(**options, dinov2=DinoSourceConfig(weights="facebook/dinov2-small-absent")).main()
    message = str(error.value)
    assert "fetch config.json and model.safetensors from https://huggingface.co/facebook/dinov2-small-absent" in message
    assert "--dinov2.weights FOLDER" in message and "\n" not in message
    assert not list((scene_root / "features").glob("[a-z]*")), "it is said before anything is extracted"

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "create_model", refuse)
    with pytest.raises(EncoderError, match="--encoder ViT-B-16/PATH_OF_THE_FILE"):
        ExtractConfig(data=scene_root, sources=("image",), device="cpu").main()


@pytest.mark.parametrize("sources", [("regulariser",), ("image",)])
def test_a_hub_that_cannot_be_reached_is_said_at_once(scene_root, monkeypatch, sources):
    """The hub's own library tries again and again, for a minute."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    attempts, connect = [], socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda self, place: (attempts.append(place), connect(self, place)))
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        for _ in range(2):
            with pytest.raises(EncoderError, match=rf"{endpoint} cannot be reached.*: fetch .* where there is a"):
                ExtractConfig(data=scene_root, sources=sources, device="cpu").main()
        assert set(attempts) == {nobody_listens.getsockname()} and len(attempts) <= 4
    assert constants.HF_HUB_OFFLINE is False, "what others in this process fetch is theirs to say"


def test_a_card_that_is_not_there_is_told(scene_root, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(DivffError, match=r"--device cuda: torch finds no CUDA card here .* give --device cpu\."):
        ExtractConfig(scene_root, "demo", device="cuda").main()


def test_no_source_at_all(scene_root):
    with pytest.raises(DivffError, match="--sources names nothing"):
        ExtractConfig(data=scene_root, encoder="demo", sources=()).main()


def test_what_takes_long_before_the_first_frame_is_shown(scene_root, monkeypatch, capsys):
    made = PlainSource.__init__

    def look(self, *arguments):
        shown.extend(task.description for task in progress[0].tasks)
        made(self, *arguments)

    shown: list[str] = []
    progress: list[Progress] = []
    monkeypatch.setattr(PlainSource, "__init__", look)
    entered = Progress.__enter__
    monkeypatch.setattr(Progress, "__enter__", lambda self: (progress.append(self), entered(self))[1])
    config(scene_root, "PlainSource").main()
    assert shown == ["image features (loading its model)"]
    assert [task.description for task in progress[0].tasks] == ["image features"]


def test_every_differing_setting_is_named_before_anything_is_extracted(scene_root, monkeypatch):
    config(scene_root, "PlainSource").main()
    before, extracted = contents(scene_root), count_frames(monkeypatch)
    with pytest.raises(FeatureStoreError) as error:
        config(scene_root, "VideoSource", "PlainSource", own=("rows=4", "scale=2")).main()
    assert "settings.rows: 3 -> 4" in str(error.value) and "settings.scale: 1.0 -> 2.0" in str(error.value)
    assert "--overwrite" in str(error.value) and "--output" in str(error.value)
    assert extracted == [] and contents(scene_root) == before


def test_overwriting_keeps_what_is_as_asked(scene_root, monkeypatch):
    config(scene_root, "PlainSource", "VideoSource").main()
    extracted = count_frames(monkeypatch)
    config(scene_root, "PlainSource", "VideoSource", overwrite=True).main()
    assert extracted == []
    config(scene_root, own=("rows=4",), overwrite=True).main()
    assert extracted == list(range(FRAMES))


def test_a_start_without_a_frame_binds_nobody(scene_root, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    options = {"data": scene_root, "device": "cpu", "dinov2": DinoSourceConfig(weights="someone/absent")}
    with pytest.raises(EncoderError):
        ExtractConfig(**options, sources=("regulariser", "plain_source:VideoSource")).main()
    assert (scene_root / "features" / ".video.partial").is_dir()
    config(scene_root, "VideoSource", own=("rows=4",)).main()
    assert FeatureStore.open(scene_root / "features" / "video").header.settings["rows"] == 4


def test_each_picture_is_decoded_once_per_source(scene_root, monkeypatch):
    decoded: list[int] = []
    original = SceneFolder.video_frame
    monkeypatch.setattr(
        SceneFolder, "video_frame", lambda self, number: (decoded.append(number), original(self, number))[1]
    )
    for source in ("PlainSource", "VideoSource"):
        decoded.clear()
        config(scene_root, source).main()
        assert decoded and len(decoded) == len(set(decoded))


def test_wrong_options_and_sources_of_ones_own(scene_root):
    for sources, options, said in (
        (("PlainSource",), {"own": ("rows",)}, "NAME=VALUE"),
        (("PlainSource",), {"own": ("rows=many",)}, "mend --own"),
        (("PlainSource", "TornSource"), {}, "both give image features"),
        (("WrongSource",), {}, "no usable features of frame 0"),
        (("Kindless",), {}, "lacks a name or a kind"),
    ):
        with pytest.raises(DivffError, match=said):
            config(scene_root, *sources, **options).main()
    with pytest.raises(DivffError, match="source of your own"):
        ExtractConfig(data=scene_root, sources=("patches",), own=("rows=3",)).main()


def test_remains_of_a_replaced_store_are_removed(scene_root):
    """A process killed between the last renames and the last removals has left a whole store."""
    config(scene_root).main()
    folder = scene_root / "features" / "image"
    (folder / "rows.npy").write_bytes(b"0")
    (folder.parent / ".image.replaced").mkdir()
    config(scene_root).main()
    assert not (folder / "rows.npy").exists() and not (folder.parent / ".image.replaced").exists()


def test_killed_before_the_last_rename(scene_root, unbroken, monkeypatch):
    config(scene_root, own=("rows=4",)).main()
    original = Path.rename

    def rename(self, target):
        if self.name == ".image.partial":
            raise KeyboardInterrupt
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        config(scene_root, overwrite=True).main()
    monkeypatch.undo()
    extracted = count_frames(monkeypatch)
    config(scene_root).main()
    assert extracted == [] and contents(scene_root) == unbroken
    assert np.array_equal(sorted(path.name for path in (scene_root / "features").glob("*")), [".image.lock", "image"])


def test_a_writer_goes_on_after_a_full_disk(tmp_path, monkeypatch):
    from test_feature_store import header, random_frame

    random = np.random.default_rng(0)
    frames = [random_frame(random, 3, 4, (5, 7)) for _ in range(3)]
    with FeatureWriter(tmp_path / "image", header()) as writer:
        writer.append(frames[0])
        with monkeypatch.context() as patch:
            patch.setattr(growing, "_write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
            with pytest.raises(FeatureStoreError, match="1 of 3 frames are kept"):
                writer.append(frames[1])
        for frame in frames[1:]:
            writer.append(frame)
        store = writer.finish()
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(store.frame_features(i)[1], frame.table)
