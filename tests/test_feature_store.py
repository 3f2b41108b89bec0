"""The feature store: what is written is found again, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import bounded

from divff_nerfstudio.cache_dirs import features_dir
from divff_nerfstudio.features.autoencoder import Autoencoder, AutoencoderConfig, save_autoencoder
from divff_nerfstudio.features.store import (
    NO_FEATURE,
    FeatureStore,
    FeatureStoreError,
    FeatureWriter,
    FrameFeatures,
    ResidentStore,
    StoreHeader,
    store_root,
    stores_of,
)
from divff_nerfstudio.features.store import reader as store_module


def header(frames: int = 3, dimension: int = 4, image_size: tuple[int, int] = (6, 8), **changes) -> StoreHeader:
    return StoreHeader(
        kind="image",
        source="test",
        model="none",
        fingerprint="0" * 64,
        dimension=dimension,
        frame_ids=list(range(0, 2 * frames, 2)),
        image_size=list(image_size),
        settings={"tiles": {"size": 0.3}},
        **changes,
    )


def random_frame(random: np.random.Generator, rows: int, dimension: int, shape: tuple[int, int]) -> FrameFeatures:
    index = random.integers(-1, rows, shape)
    index = np.where(index < 0, NO_FEATURE, index).astype(np.uint16)
    return FrameFeatures(index, random.normal(size=(rows, dimension)).astype(np.float16).astype(np.float32))


def write(directory: Path, head: StoreHeader, frames: list[FrameFeatures]) -> FeatureStore:
    with FeatureWriter(directory, head) as writer:
        for frame in frames:
            writer.append(frame)
        return writer.finish()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    frames=st.integers(1, 4),
    dimension=st.integers(1, 9),
    image_size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    index_size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    shared=st.booleans(),
)
def test_lookup_equals_reference_per_ray(tmp_path_factory, seed, frames, dimension, image_size, index_size, shared):
    if (index_size[0] < index_size[1]) != (image_size[0] < image_size[1]):
        index_size = index_size[::-1]  # an index that lies across the picture is refused
    random = np.random.default_rng(seed)
    written = [random_frame(random, int(random.integers(0, 6)), dimension, index_size) for _ in range(frames)]
    if shared:
        rows = max(len(written[0].table), 1)
        index = random_frame(random, rows, 1, index_size).index
        written = [FrameFeatures(index, random.normal(size=(rows, dimension)).astype(np.float16)) for _ in written]
    directory = tmp_path_factory.mktemp("store") / "image"
    store = write(directory, header(frames, dimension, image_size, shared_index=shared), written)

    frame = random.integers(0, frames, 50)
    row, col = random.integers(0, image_size[0], 50), random.integers(0, image_size[1], 50)
    features, valid = store.lookup(torch.from_numpy(frame), torch.from_numpy(row), torch.from_numpy(col))
    assert features.dtype == torch.float32 and features.shape == (50, dimension)
    resident = ResidentStore(store, "cpu").lookup(*(torch.from_numpy(each) for each in (frame, row, col)))
    assert torch.equal(resident[0], features) and torch.equal(resident[1], valid)
    for n in range(50):
        i = int((row[n] + 0.5) / image_size[0] * index_size[0])
        j = int((col[n] + 0.5) / image_size[1] * index_size[1])
        local = written[frame[n]].index[i, j]
        assert bool(valid[n]) == (local != NO_FEATURE)
        expected = np.zeros(dimension) if local == NO_FEATURE else written[frame[n]].table[local]
        np.testing.assert_array_equal(features[n].numpy(), expected)


def test_frame_features_are_what_was_written(tmp_path):
    random = np.random.default_rng(0)
    frames = [random_frame(random, rows, 4, (5, 7)) for rows in (2, 0, 3)]
    store = write(tmp_path / "image", header(), frames)
    for i, frame in enumerate(frames):
        index, table = store.frame_features(i)
        np.testing.assert_array_equal(index, frame.index)
        np.testing.assert_array_equal(table, frame.table)


def steps_of(work) -> int:
    """How many steps Python takes for some work, however fast the machine is."""
    steps = 0

    def trace(frame, event, argument):
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return steps


def test_lookup_of_a_batch_has_no_loop_over_its_rays(tmp_path):
    random = np.random.default_rng(0)
    frames = [random_frame(random, 100, 512, (128, 228)) for _ in range(20)]
    store = write(tmp_path / "image", header(20, 512, (128, 228)), frames)
    rays = [torch.from_numpy(random.integers(0, high, 4096)) for high in (20, 128, 228)]
    counts = (1, 64, 4096)  # the first one is for what happens once: Python 3.12 begins to count behind it
    found = [steps_of(lambda count=count: store.lookup(*(each[:count] for each in rays))) for count in counts]
    assert 0 < found[1] == found[2]


def test_finished_store_appears_at_once(tmp_path):
    random = np.random.default_rng(0)
    frames = [random_frame(random, 3, 4, (5, 7)) for _ in range(3)]
    with FeatureWriter(tmp_path / "image", header()) as writer:
        for frame in frames:
            writer.append(frame)
            assert not (tmp_path / "image").exists()
        with pytest.raises(FeatureStoreError, match="no feature store"):
            FeatureStore.open(tmp_path / "image")
        writer.finish()
    assert len(FeatureStore.open(tmp_path / "image")) == 3
    with FeatureWriter(tmp_path / "image", header()) as writer:
        assert writer.finished and len(writer) == 3


def test_unfinished_frames_cannot_be_finished(tmp_path):
    with FeatureWriter(tmp_path / "image", header()) as writer:
        writer.append(random_frame(np.random.default_rng(0), 3, 4, (5, 7)))
        with pytest.raises(ValueError, match="1 of 3"):
            writer.finish()


@pytest.mark.parametrize("shared", [False, True])
def test_goes_on_after_being_stopped_in_the_middle_of_a_frame(tmp_path, shared):
    random = np.random.default_rng(0)
    frames = [random_frame(random, 3, 4, (5, 7)) for _ in range(3)]
    if shared:
        frames = [replace(frame, index=frames[0].index) for frame in frames]
    head = header(shared_index=shared)
    with FeatureWriter(tmp_path / "image", head) as writer:
        writer.append(frames[0])
        writer.append(frames[1])
    partial = tmp_path / ".image.partial"
    for name in ("table.npy", "index.npy", "progress"):  # half-written parts of the third frame
        with (partial / name).open("ab") as file:
            file.write(b"\xff" * 9)
    with FeatureWriter(tmp_path / "image", head) as writer:
        assert len(writer) == 2
        writer.append(frames[2])
        store = writer.finish()
    for i, frame in enumerate(frames):
        index, table = store.frame_features(i)
        np.testing.assert_array_equal(index, frame.index)
        np.testing.assert_array_equal(table, frame.table)
    assert sorted(path.name for path in (tmp_path / "image").iterdir()) == [
        "header.json",
        "index.npy",
        "offsets.npy",
        "table.npy",
    ]


def test_lost_bytes_step_back_to_the_last_whole_frame(tmp_path):
    random = np.random.default_rng(0)
    with FeatureWriter(tmp_path / "image", header()) as writer:
        writer.append(random_frame(random, 3, 4, (5, 7)))
        writer.append(random_frame(random, 3, 4, (5, 7)))
    table = tmp_path / ".image.partial" / "table.npy"
    os.truncate(table, table.stat().st_size - 1)
    with FeatureWriter(tmp_path / "image", header()) as writer:
        assert len(writer) == 1


def test_killed_writer_loses_nothing(tmp_path):
    script = textwrap.dedent("""
        import signal
        import sys
        import numpy as np
        from divff_nerfstudio.features.store import FeatureWriter, FrameFeatures, StoreHeader

        head = StoreHeader("image", "test", "none", "0", 4, list(range(1000)), [6, 8])
        writer = FeatureWriter(sys.argv[1], head)
        for number in range(1000):
            writer.append(FrameFeatures(np.zeros((6, 8), np.uint16), np.full((1, 4), number)))
            if number == 20:
                print("started", flush=True)
        signal.pause()
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "image")],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    head = StoreHeader("image", "test", "none", "0", 4, list(range(1000)), [6, 8])
    with FeatureWriter(tmp_path / "image", head) as writer:
        assert len(writer) >= 20


def test_reduced_rows(tmp_path):
    random = np.random.default_rng(0)
    frames = [random_frame(random, 3, 10, (5, 7)) for _ in range(3)]
    with FeatureWriter(tmp_path / "image", header(), row_length=10) as writer:
        for frame in frames:
            writer.append(frame)
        with pytest.raises(ValueError, match="reduced"):
            writer.finish()
        store = writer.finish(lambda rows, _: (rows[at : at + 2, :4] for at in range(0, len(rows), 2)))
    assert not (tmp_path / "image" / "rows.npy").exists()
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(store.frame_features(i)[1], frame.table[:, :4])


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_named(tmp_path, finished):
    frame = random_frame(np.random.default_rng(0), 3, 4, (5, 7))
    with FeatureWriter(tmp_path / "image", header()) as writer:
        for _ in range(3 if finished else 1):
            writer.append(frame)
        if finished:
            writer.finish()
    assert header().differences(replace(header(), settings={"tiles": {"size": 0.3, "widths": (1, 2)}})) == [
        "settings.tiles.widths: absent -> [1, 2]"
    ]
    other = replace(header(), settings={"tiles": {"size": 0.25}}, model="ViT-B-16", fingerprint="1")
    with pytest.raises(FeatureStoreError) as error:
        FeatureWriter(tmp_path / "image", other)
    assert "settings.tiles.size: 0.3 -> 0.25" in str(error.value)
    assert "model: none -> ViT-B-16" in str(error.value)
    assert "--overwrite" in str(error.value)
    with FeatureWriter(tmp_path / "image", other, overwrite=True) as writer:
        assert len(writer) == 0
        for _ in range(3):
            writer.append(frame)
        assert writer.finish().header == other


def test_the_first_of_many_differences_are_told(tmp_path):
    """Another model brings hundreds of other settings with it."""
    with FeatureWriter(tmp_path / "image", header()) as writer:
        writer.append(FrameFeatures(np.zeros((6, 8), np.uint16), np.ones((1, 4), np.float16)))
    other = replace(header(), source="clip", settings={f"word {i}": str(i) for i in range(300)})
    with pytest.raises(FeatureStoreError, match=r"settings \(source: test -> clip; ([^;]*; ){3}and \d+ more\): choose"):
        FeatureWriter(tmp_path / "image", other)


def test_weights_that_were_moved_are_the_same_and_other_pictures_are_not(tmp_path):
    first = replace(header(), model="a.pt", text_encoder={"family": "egovideo", "fingerprint": "7", "weights": "/a"})
    moved = replace(first, model="b.pt", text_encoder={**(first.text_encoder or {}), "weights": "/b"})
    assert first.differences(moved) == []
    assert first.differences(replace(moved, fingerprint="8")) == [
        f"fingerprint: {first.fingerprint} -> 8",
        "model: a.pt -> b.pt",
    ]
    unknown = replace(first, text_encoder={"family": "egovideo", "weights": "/b"})
    assert "text_encoder.weights: /a -> /b" in first.differences(unknown)
    seen = replace(first, pictures="0" * 64)
    assert first.differences(seen) == seen.differences(first) == []
    assert seen.differences(replace(seen, pictures="1" * 64)) == ["pictures: other ones than these"]
    assert seen.differences(replace(seen, pictures="0" * 64)) == []


def test_two_writers_do_not_mix(tmp_path):
    with (
        FeatureWriter(tmp_path / "image", header()),
        pytest.raises(FeatureStoreError, match="Another extraction"),
    ):
        FeatureWriter(tmp_path / "image", header())
    FeatureWriter(tmp_path / "image", header()).close()


@pytest.mark.parametrize("name", ["table.npy", "offsets.npy", "index.npy", "header.json"])
@pytest.mark.parametrize("keep", [0, 0.5, -1])
def test_truncated_files_are_refused_in_one_sentence(tmp_path, name, keep):
    random = np.random.default_rng(0)
    write(tmp_path / "image", header(), [random_frame(random, 3, 4, (5, 7)) for _ in range(3)])
    path = tmp_path / "image" / name
    size = path.stat().st_size
    os.truncate(path, size - 1 if keep < 0 else int(size * keep))
    with pytest.raises(FeatureStoreError, match=name) as error:
        FeatureStore.open(tmp_path / "image")
    assert "divff extract" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"encoder": "demo", "fingerprint": "f", "normalise": True},
        {"family": "oracle", "dimension": 4, "aliases": {"cup": "mug"}},
        {"family": "xclip", "weights": "base"},
        {"family": "egovideo", "frames": 4},
        {"family": "ours", "size": 3},
    ],
)
def test_text_encoders_are_read_as_they_were_written(tmp_path, entry):
    random = np.random.default_rng(0)
    written = dataclasses.replace(header(), text_encoder=entry)
    write(tmp_path / "image", written, [random_frame(random, 3, 4, (5, 7)) for _ in range(3)])
    assert FeatureStore.open(tmp_path / "image").header.text_encoder == entry


def test_header_of_another_store_is_refused(tmp_path):
    random = np.random.default_rng(0)
    write(tmp_path / "image", header(), [random_frame(random, 3, 4, (5, 7)) for _ in range(3)])
    path = tmp_path / "image" / "header.json"
    content = json.loads(path.read_text())
    for name, value in (("dimension", 5), ("frame_ids", [0, 2]), ("format", 0)):
        path.write_text(json.dumps({**content, name: value}))
        with pytest.raises(FeatureStoreError):
            FeatureStore.open(tmp_path / "image")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", None), ("dimension", "4"), ("dimension", True), ("frame_ids", "012"), ("frame_ids", [0, 2, None]),
        ("image_size", [6]), ("image_size", [0, 8]), ("image_size", 6), ("settings", []), ("text_encoder", "demo"),
        ("text_encoder", {}), ("text_encoder", {"encoder": 5}), ("text_encoder", {"encoder": "demo", "normalise": 0}),
        ("text_encoder", {"family": ["oracle"]}), ("text_encoder", {"family": "oracle", "dimension": 2**40}),
        ("text_encoder", {"family": "xclip", "encoder": "demo"}), ("text_encoder", {"family": "egovideo", "frames": 0}),
        ("text_encoder", {"family": "oracle", "dimension": 4, "aliases": {"cup": 1}}),
        ("negatives", "object"), ("shared_index", "no"), ("decoder", "../autoencoder.pth"), ("decoder", 3),
    ],
)  # fmt: skip
def test_an_entry_of_another_type_is_named(tmp_path, name, value):
    random = np.random.default_rng(0)
    write(tmp_path / "image", header(), [random_frame(random, 3, 4, (5, 7)) for _ in range(3)])
    path = tmp_path / "image" / "header.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(FeatureStoreError, match=f"header.json is not the header .*{name}"):
        FeatureStore.open(tmp_path / "image")


def test_a_place_that_points_beyond_its_frames_table_is_found(tmp_path):
    """Not the row of the next frame that lies there."""
    random = np.random.default_rng(0)
    write(tmp_path / "image", header(), [random_frame(random, 3, 4, (6, 8)) for _ in range(3)])
    index = np.load(tmp_path / "image" / "index.npy")
    index[1, 2, 3] = 3
    np.save(tmp_path / "image" / "index.npy", index)
    with pytest.raises(FeatureStoreError, match=r"index\.npy points beyond the table.*divff extract"):
        FeatureStore.open(tmp_path / "image")


def resaved(folder: Path, name: str, change) -> None:
    np.save(folder / name, change(np.load(folder / name)))


STORE_FAULTS = {
    "rows and columns exchanged": ("index.npy", lambda a: a.transpose(0, 2, 1).copy(), "changed places"),
    "Fortran's order": ("index.npy", np.asfortranarray, "order"),
    "signed": ("index.npy", lambda a: a.astype(np.int16), "int16"),
    "a frame less": ("index.npy", lambda a: a[:-1], "planes"),
    "no pixel": ("index.npy", lambda a: a[:, :0], "no pixel"),
    "objects": ("table.npy", lambda a: a.astype(object), "damaged"),
    "single precision": ("table.npy", lambda a: a.astype(np.float32), "float32"),
    "NaN": (
        "table.npy",
        lambda a: np.where(a == a.min(), np.nan, a).astype(a.dtype),
        "finite",
    ),
    "infinity": ("table.npy", lambda a: np.where(a == a.max(), np.inf, a).astype(a.dtype), "finite"),
    "another length": ("table.npy", lambda a: (a * 1.1).astype(a.dtype), "unit length"),
    "zero": ("table.npy", lambda a: a * 0, "unit length"),
    "offsets that go back": ("offsets.npy", lambda a: a[[0, 2, 1, 3]], "does not fit the table"),
    "offsets in half": ("offsets.npy", lambda a: a.astype(np.int32), "int32"),
}


@pytest.mark.parametrize("fault", STORE_FAULTS)
def test_arrays_that_are_not_what_was_written_are_refused(tmp_path, fault):
    random = np.random.default_rng(0)
    frames = [random_frame(random, 3, 4, (12, 20)) for _ in range(3)]
    frames = [replace(f, table=f.table / np.linalg.norm(f.table, axis=1, keepdims=True)) for f in frames]
    write(tmp_path / "image", replace(header(image_size=(24, 40)), source="segments"), frames)
    FeatureStore.open(tmp_path / "image")
    name, change, words = STORE_FAULTS[fault]
    resaved(tmp_path / "image", name, change)
    for _ in range(2):
        with pytest.raises(FeatureStoreError, match=f"{name} .*{words}.*divff extract"):
            FeatureStore.open(tmp_path / "image")


def test_a_store_is_looked_through_once(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    write(tmp_path / "image", header(), [random_frame(random, 3, 4, (5, 7)) for _ in range(3)])
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "check_table", lambda *_: pytest.fail("it was looked through again"))
        FeatureStore.open(tmp_path / "image")
    looked = []
    monkeypatch.setattr(store_module, "check_table", lambda *_: looked.append(1))
    os.utime(tmp_path / "image" / "table.npy", ns=(1, 1))
    FeatureStore.open(tmp_path / "image")
    assert looked == [1]


@pytest.mark.parametrize("name", ["header.json", "table.npy", "index.npy", "offsets.npy"])
def test_pipes_and_folders_in_a_store(tmp_path, name):
    random = np.random.default_rng(0)
    for make in (os.mkfifo, Path.mkdir):
        write(tmp_path / make.__name__, header(), [random_frame(random, 3, 4, (5, 7)) for _ in range(3)])
        (tmp_path / make.__name__ / name).unlink()
        make(tmp_path / make.__name__ / name)
        with bounded(), pytest.raises(FeatureStoreError, match=f"{name} .*no ordinary file"):
            FeatureStore.open(tmp_path / make.__name__)


def test_the_decoder_must_fit_the_codes(tmp_path):
    random = np.random.default_rng(0)
    store = write(tmp_path / "image", header(), [random_frame(random, 3, 4, (5, 7)) for _ in range(3)])
    replace(store.header, decoder="autoencoder.pth").write(tmp_path / "image" / "header.json")
    with pytest.raises(FeatureStoreError, match=r"autoencoder\.pth is missing"):
        FeatureStore.open(tmp_path / "image")
    for width, fits in ((4, True), (5, False)):
        sizes = AutoencoderConfig(feature_dim=6, encoder_widths=(width,), decoder_widths=(5,))
        save_autoencoder(Autoencoder(sizes), tmp_path / "image" / "autoencoder.pth")
        if fits:
            assert FeatureStore.open(tmp_path / "image").decode(torch.ones(2, 4)).shape == (2, 6)
        else:
            with pytest.raises(FeatureStoreError, match="does not decode codes of length 4"):
                FeatureStore.open(tmp_path / "image")


def test_bad_frames_are_refused(tmp_path):
    table = np.ones((2, 4), np.float32)
    with FeatureWriter(tmp_path / "image", header()) as writer:
        for index, rows in (
            (np.full((5, 7), 2), table),
            (np.zeros((5, 7)), np.ones((2, 5))),
            (np.zeros((5, 7)), table * np.nan),
        ):
            with pytest.raises(ValueError):
                writer.append(FrameFeatures(index.astype(np.uint16), rows))
        assert len(writer) == 0


def test_store_root_leaves_a_protected_scene_alone(tmp_path, monkeypatch):
    class FakeScene:
        root = tmp_path / "scene"

    FakeScene.root.mkdir()
    monkeypatch.setenv("DIVFF_CACHE_DIR", str(tmp_path / "cache"))
    assert store_root(FakeScene) == FakeScene.root / "features"  # pyright: ignore[reportArgumentType]
    FakeScene.root.chmod(0o555)
    assert tmp_path / "cache" in store_root(FakeScene).parents  # pyright: ignore[reportArgumentType]
    assert store_root(FakeScene, tmp_path / "own") == tmp_path / "own"  # pyright: ignore[reportArgumentType]


def test_a_protected_scene_keeps_its_own_features(tmp_path, monkeypatch):
    """As on a disk that a group shares; what its user has extracted since comes first."""
    monkeypatch.setenv("DIVFF_CACHE_DIR", str(tmp_path / "cache"))
    scene = tmp_path / "scene"
    for kind in ("image", "video"):
        (scene / "features" / kind).mkdir(parents=True)
        (scene / "features" / kind / "header.json").touch()
    assert stores_of(scene) == {kind: scene / "features" / kind for kind in ("image", "video")}
    scene.chmod(0o555)
    assert stores_of(scene) == {kind: scene / "features" / kind for kind in ("image", "video")}
    own = features_dir(scene) / "video"
    own.mkdir(parents=True)
    (own / "header.json").touch()
    assert stores_of(scene) == {"image": scene / "features" / "image", "video": own}
    assert stores_of(scene, tmp_path) == {}
