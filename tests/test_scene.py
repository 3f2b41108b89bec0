"""Scene folders: what is read from a good one, and what is said of a bad one."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_FRAMES, TINY_HEIGHT, TINY_WIDTH, tiny_poses, write_tiny_scene
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import bounded
from PIL import Image

from divff_nerfstudio.cache_dirs import user_cache_dir
from divff_nerfstudio.data import frames as frames_module
from divff_nerfstudio.data.frames import cache_folder, decode_frame, open_frames
from divff_nerfstudio.data.masks import frame_finder
from divff_nerfstudio.data.remarks import remarks, video_remarks
from divff_nerfstudio.data.scene import SceneError, load_scene
from divff_nerfstudio.data.stray_cameras import leaps, strays

EditMeta = Callable[[Callable[[dict], object]], None]


def refused(root: Path, *words: str, **options: object) -> str:
    """Expects one sentence that holds the words."""
    with pytest.raises(SceneError) as error:
        load_scene(root, **options)  # pyright: ignore[reportArgumentType]
    message = str(error.value)
    for word in words:
        assert word in message, message
    assert message.endswith(".") and "\n" not in message
    return message


def test_a_scene_is_read_as_written(tiny_scene: Path) -> None:
    scene = load_scene(tiny_scene)
    assert len(scene) == TINY_FRAMES and (scene.width, scene.height) == (TINY_WIDTH, TINY_HEIGHT)
    assert scene.frame_ids.tolist() == list(range(10, 26, 2))
    assert scene.video_numbers.tolist() == list(range(100, 140, 5))
    assert {split: i.tolist() for split, i in scene.splits.items()} == {
        "train": [1, 3, 5, 7],
        "val": [2, 6],
        "test": [0, 4],
    }
    np.testing.assert_allclose(scene.camera_to_worlds, tiny_poses(TINY_FRAMES), atol=1e-6)
    np.testing.assert_allclose(scene.nears, 0.5 + 0.01 * scene.frame_ids, rtol=1e-6)
    assert scene.index_of(12) == 1
    with pytest.raises(SceneError, match="no frame 11"):
        scene.index_of(11)
    for i, path in enumerate(scene.image_paths):
        np.testing.assert_array_equal(scene.frame(i), np.asarray(Image.open(path)))
    assert isinstance(scene.frames, np.memmap) and not scene.frames.flags.writeable


def test_ids_come_in_any_order(tiny_scene: Path, edit_meta: EditMeta) -> None:
    before = load_scene(tiny_scene)

    def shuffle(meta: dict) -> None:
        for key in ("ids_all", "ids_train", "ids_val", "ids_test"):
            meta[key].reverse()
        meta["poses"] = dict(reversed(meta["poses"].items()))

    edit_meta(shuffle)
    after = load_scene(tiny_scene)
    assert after.image_paths == before.image_paths
    np.testing.assert_array_equal(after.camera_to_worlds, before.camera_to_worlds)
    assert all(np.array_equal(after.splits[split], before.splits[split]) for split in before.splits)


def test_times(tiny_scene: Path) -> None:
    scene = load_scene(tiny_scene)
    np.testing.assert_allclose(scene.times(), np.linspace(0, 1, TINY_FRAMES), atol=1e-6)
    np.testing.assert_allclose(scene.times(rows=1000), scene.frame_ids / 999, rtol=1e-6)
    assert scene.times(rows=25)[-1] == 1.0
    with pytest.raises(SceneError, match=r"frame id 24.*24 time rows"):
        scene.times(rows=24)


@pytest.mark.parametrize("name", ["frame_{:010d}.JPG", "frame_{:010d}.jpeg", "frame_{:06d}.png", "FRAME_{:d}.bmp"])
def test_frames_of_a_video_are_called_in_many_ways(tiny_scene: Path, name: str) -> None:
    folder = tiny_scene / "high_res_video"
    for number in range(100, 136):
        path = folder / f"frame_{number:010d}.jpg"
        picture = Image.open(path).convert("RGB")
        path.unlink()
        picture.save(folder / name.format(number))
    scene = load_scene(tiny_scene)
    assert scene.video_numbers_available.tolist() == list(range(100, 136)) and video_remarks(scene) == []
    assert scene.video_frame_path(101) == folder / name.format(101)
    assert scene.video_frame(101).shape == (2 * TINY_HEIGHT, 2 * TINY_WIDTH, 3)


def test_what_is_odd_among_a_videos_frames_is_said(tiny_scene: Path) -> None:
    folder = tiny_scene / "high_res_video"
    first, second, *rest = sorted(folder.iterdir())
    first.rename(folder / "IMG_0000000100.jpg")
    rest[0].rename(folder / "frame_102.gif")
    Image.new("RGB", (2 * TINY_HEIGHT, 2 * TINY_WIDTH)).save(second)
    scene = load_scene(tiny_scene)
    unread, shape = video_remarks(scene)
    assert "and 1 more in" in unread and "frame_NUMBER.jpg" in unread and len(scene.video_numbers_available) == 34
    assert "frame_0000000101.jpg is 32x48, of another shape than the frames of 24x16" in shape
    second.write_bytes(b"no picture")
    assert len(video_remarks(load_scene(tiny_scene))) == 1


def test_video_frames(tiny_scene: Path, tmp_path: Path) -> None:
    scene = load_scene(tiny_scene)
    assert scene.video_numbers_available.tolist() == list(range(100, 136))
    assert scene.video_frame_path(101) == tiny_scene / "high_res_video" / "frame_0000000101.jpg"
    assert scene.video_frame_path(99) is None
    assert scene.video_frame(101).shape == (2 * TINY_HEIGHT, 2 * TINY_WIDTH, 3)
    with pytest.raises(SceneError, match=r"frame_0000000099.jpg is missing"):
        scene.video_frame(99)
    (tmp_path / "video").mkdir()
    assert load_scene(tiny_scene, video_dir=tmp_path / "video").video_numbers_available.size == 0
    refused(tiny_scene, "nowhere", video_dir=tmp_path / "nowhere")


def test_a_scene_is_shared_by_copies_and_pickled_without_its_frames(tiny_scene: Path) -> None:
    scene = load_scene(tiny_scene)
    assert copy.deepcopy({"scene": scene})["scene"] is scene
    content = pickle.dumps(scene)
    assert len(content) < scene.frames.nbytes
    np.testing.assert_array_equal(pickle.loads(content).frames, scene.frames)


ID = "12"
META_FAULTS: dict[str, tuple[Callable[[dict], object], tuple[str, ...]]] = {
    "no ids": (lambda m: m.pop("ids_val"), ("ids_val: Field required",)),
    "empty split": (lambda m: m["ids_test"].clear(), ("no frame in ids_test",)),
    "empty scene": (lambda m: m["ids_all"].clear(), ("no frame in ids_all",)),
    "unknown id": (lambda m: m["ids_train"].append(99), ("frame 99 in ids_train",)),
    "id twice": (lambda m: m["ids_train"].append(12), ("frame 12 twice in ids_train",)),
    "test trained on": (lambda m: m["ids_train"].append(10), ("frame 10 in ids_train and in ids_test",)),
    "val trained on": (lambda m: m["ids_train"].append(14), ("frame 14 in ids_train and in ids_val",)),
    "val tested": (lambda m: m["ids_val"].append(10), ("frame 10 in ids_val and in ids_test",)),
    "text as id": (lambda m: m["ids_all"].append("x"), ("ids_all.8", "integer")),
    "truth as id": (lambda m: m["ids_all"].append(True), ("ids_all.8", "integer")),
    "ids no list": (lambda m: m.update(ids_all={"10": 1}), ("ids_all", "array")),
    "no pose": (lambda m: m["poses"].pop(ID), ("no entry in poses for frame 12",)),
    "no image": (lambda m: m["images"].pop(ID), ("no entry in images for frame 12",)),
    "no near": (lambda m: m["nears"].pop(ID), ("no entry in nears for frame 12",)),
    "no far": (lambda m: m["fars"].pop(ID), ("no entry in fars for frame 12",)),
    "poses no dictionary": (lambda m: m.update(poses=[1, 2]), ("poses",)),
    "NaN pose": (lambda m: m["poses"][ID][1].__setitem__(3, float("nan")), ("NaN is no finite number",)),
    "pose of text": (lambda m: m["poses"].update({ID: "pose"}), ("poses.12",)),
    "4x4 pose": (lambda m: m["poses"][ID].append([0, 0, 0, 1]), ("poses.12", "at most 3")),
    "ragged pose": (lambda m: m["poses"][ID][0].pop(), ("poses.12.0",)),
    "scaled pose": (lambda m: m["poses"][ID].__setitem__(0, [2, 0, 0, 0]), ("pose of frame 12", "no rotation")),
    "mirrored pose": (
        lambda m: m["poses"].update({ID: [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]}),
        ("pose of frame 12", "no rotation"),
    ),
    "near beyond far": (lambda m: m["nears"].update({ID: 9.0}), ("near 9 ", "frame 12")),
    "near at far": (lambda m: m["nears"].update({ID: 3.0}) or m["fars"].update({ID: 3.0}), ("near 3 and far 3",)),
    "near zero": (lambda m: m["nears"].update({ID: 0.0}), ("near 0 ", "frame 12")),
    "far infinite": (lambda m: m["fars"].update({ID: float("inf")}), ("Infinity is no finite number",)),
    "near text": (lambda m: m["nears"].update({ID: "close"}), ("nears.12", "number")),
    "near none": (lambda m: m["nears"].update({ID: None}), ("nears.12", "number")),
    "far beyond all nears": (lambda m: m["fars"].update({ID: 1e9}), ("far 1e+09", "million nears")),
    "one picture twice": (
        lambda m: m["images"].update({ID: m["images"]["10"]}),
        ("IMG_0000000100.bmp for frames 10 and 12",),
    ),
    "a picture's name with a zero": (lambda m: m["images"].update({ID: "IMG_1\0.bmp"}), ("plain file name",)),
    "a picture's name of a mile": (lambda m: m["images"].update({ID: "9" * 300 + ".bmp"}), ("plain file name",)),
    "poses far away": (
        lambda m: [row.__setitem__(3, row[3] + 1e8) for pose in m["poses"].values() for row in pose],
        ("far from the origin", "1e+08", "subtract"),
    ),
    "a near of nothing": (
        lambda m: [m["nears"].update({i: 1e-6}) or m["fars"].update({i: 0.5}) for i in m["nears"]],
        ("near of 1e-06", "too small", "something to see"),
    ),
    "ids of a long range": (
        lambda m: [
            m["ids_all"].append(10**11),
            m["ids_train"].append(10**11),
            [m[k].update({str(10**11): m[k]["24"]}) for k in ("poses", "nears", "fars")],
            m["images"].update({str(10**11): "IMG_0000000999.bmp"}),
        ],
        ("so close", "number the frames anew"),
    ),
    "focal length of microns": (lambda m: m["intrinsics"][0].__setitem__(0, 4.0e6), ("focal lengths 4e+06",)),
    "path as image": (lambda m: m["images"].update({ID: "../meta.json"}), ("../meta.json", "plain file name")),
    "no number in image": (lambda m: m["images"].update({ID: "first.bmp"}), ("first.bmp", "number")),
    "image gone": (lambda m: m["images"].update({ID: "IMG_1.bmp"}), ("frames/IMG_1.bmp is missing",)),
    "intrinsics short": (lambda m: m["intrinsics"].pop(), ("intrinsics",)),
    "intrinsics NaN": (lambda m: m["intrinsics"][0].__setitem__(0, float("nan")), ("NaN",)),
    "focal negative": (lambda m: m["intrinsics"][0].__setitem__(0, -20.0), ("no pinhole camera",)),
    "focal lengths of two units": (lambda m: m["intrinsics"][1].__setitem__(1, 900.0), ("20 and 900", "in pixels")),
    "one number twice": (lambda m: m["images"].update({ID: "IMG_100.bmp"}), ("IMG_100.bmp", "frame 100 of the video")),
    "skew": (lambda m: m["intrinsics"][0].__setitem__(1, 1.0), ("no pinhole camera",)),
    "another width": (lambda m: m.update(image_w=48), ("24x16", "image_w = 48")),
    "another height": (lambda m: m.update(image_h=32.0), ("24x16", "image_h = 32")),
    "twice the intrinsics": (
        lambda m: m.update(intrinsics=[[40, 0, 24], [0, 42, 16], [0, 0, 1]]),
        ("24x16", "principal point 24, 16"),
    ),
    "half the intrinsics": (
        lambda m: m.update(intrinsics=[[10, 0, 6], [0, 10, 4], [0, 0, 1]]),
        ("24x16", "principal point 6, 4"),
    ),
}


@pytest.mark.parametrize("fault", META_FAULTS)
def test_faults_in_meta_json_are_named(tiny_scene: Path, edit_meta: EditMeta, fault: str) -> None:
    change, words = META_FAULTS[fault]
    edit_meta(change)
    refused(tiny_scene, str(tiny_scene / "meta.json") if "missing" not in words[0] else "", *words)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"ids_all": [1]}', "null"])
def test_a_broken_meta_json_is_named(tiny_scene: Path, content: str) -> None:
    (tiny_scene / "meta.json").write_text(content)
    refused(tiny_scene, str(tiny_scene / "meta.json"))


def test_no_scene_at_all(tmp_path: Path) -> None:
    refused(tmp_path, "meta.json is missing", "--data")
    refused(tmp_path / "nowhere", "nowhere does not exist", "--data")
    (tmp_path / "meta.json").touch()
    refused(tmp_path / "meta.json", "meta.json is a file", "--data")


@settings(max_examples=25)
@given(frame=st.integers(0, TINY_FRAMES - 1), share=st.floats(0, 0.97))
def test_a_truncated_frame_is_named(tmp_path_factory: pytest.TempPathFactory, frame: int, share: float) -> None:
    root = write_tiny_scene(tmp_path_factory.mktemp("cut") / "tiny")
    path = root / "frames" / f"IMG_{100 + 5 * frame:010d}.bmp"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(root, str(path), "truncated or no picture")


def test_missing_frames_are_counted(tiny_scene: Path) -> None:
    for number in (110, 115, 120):
        (tiny_scene / "frames" / f"IMG_{number:010d}.bmp").unlink()
    refused(tiny_scene, "IMG_0000000110.bmp is missing, as are 2 more")


def test_a_frame_of_another_size_is_named(tiny_scene: Path) -> None:
    Image.new("RGB", (12, 8)).save(tiny_scene / "frames" / "IMG_0000000110.bmp")
    refused(tiny_scene, "IMG_0000000110.bmp is 12x8", "24x16")


def test_frames_are_not_touched_before_they_are_needed_if_so_asked(tiny_scene: Path) -> None:
    (tiny_scene / "frames" / "IMG_0000000110.bmp").write_bytes(b"")
    scene = load_scene(tiny_scene, check_frames=False)
    with pytest.raises(SceneError, match="IMG_0000000110"):
        _ = scene.frames


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA"])
def test_pictures_that_mean_colours_are_converted(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGB", (4, 3), (200, 0, 0)).convert(mode)
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode_frame(tmp_path / "a.png"), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("I;16", "png"), ("1", "png"), ("F", "tiff"), ("CMYK", "jpg"), ("LA", "png")]
)
def test_other_pictures_are_refused(tmp_path: Path, mode: str, suffix: str) -> None:
    Image.new(mode, (4, 3)).save(tmp_path / f"a.{suffix}")
    with pytest.raises(SceneError, match=f"image mode {mode}"):
        decode_frame(tmp_path / f"a.{suffix}")


@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_a_damaged_png_is_refused(tmp_path_factory: pytest.TempPathFactory, place: float, change: int) -> None:
    """Where decoding gives other colours, too."""
    path = tmp_path_factory.mktemp("png") / "a.png"
    colours = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    Image.fromarray(colours).save(path)
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 12))] ^= change  # all but the mark of the end
    path.write_bytes(content)
    with pytest.raises(SceneError):
        decode_frame(path)


def test_a_transparent_picture_is_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 3), (1, 2, 3, 100)).save(tmp_path / "a.png")
    with pytest.raises(SceneError, match="image mode RGBA"):
        decode_frame(tmp_path / "a.png")


def only_cache(root: Path) -> Path:
    (path,) = cache_folder(root).glob("frames-*.npy")
    return path


def test_frames_are_decoded_once(tiny_scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = np.array(load_scene(tiny_scene).frames)
    monkeypatch.setattr(frames_module, "decode_frame", lambda path: pytest.fail(f"{path} was decoded again"))
    np.testing.assert_array_equal(load_scene(tiny_scene).frames, first)


def test_a_changed_frame_is_decoded_again(tiny_scene: Path) -> None:
    load_scene(tiny_scene)
    before = only_cache(tiny_scene)
    path = tiny_scene / "frames" / "IMG_0000000110.bmp"
    Image.new("RGB", (TINY_WIDTH, TINY_HEIGHT), (1, 2, 3)).save(path)
    os.utime(path, ns=(1, 1))
    assert (load_scene(tiny_scene).frame(2) == (1, 2, 3)).all()
    assert only_cache(tiny_scene) != before


def test_two_frames_that_change_places_are_decoded_again(tiny_scene: Path) -> None:
    """Same names, sizes and times of writing."""
    one, other = (tiny_scene / "frames" / f"IMG_{number:010d}.bmp" for number in (105, 110))
    for path in (one, other):
        os.utime(path, ns=(10**18, 10**18))
    before = np.array(load_scene(tiny_scene).frames)
    one.rename(tiny_scene / "aside")
    other.rename(one)
    (tiny_scene / "aside").rename(other)
    after = load_scene(tiny_scene).frames
    np.testing.assert_array_equal(after[1], before[2])
    np.testing.assert_array_equal(after[2], before[1])


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_a_picture_that_is_to_be_turned_is_refused(tiny_scene: Path, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (4, 3)).save(tmp_path / "a.jpg", exif=exif)
    with pytest.raises(SceneError, match=f"EXIF orientation {orientation}"):
        decode_frame(tmp_path / "a.jpg")
    exif[0x0112] = 1
    Image.new("RGB", (4, 3)).save(tmp_path / "a.jpg", exif=exif)
    assert decode_frame(tmp_path / "a.jpg").shape == (3, 4, 3)


def test_transparent_colours_of_a_palette_are_refused(tmp_path: Path) -> None:
    picture = Image.new("P", (4, 3))
    picture.save(tmp_path / "a.png", transparency=0)
    with pytest.raises(SceneError, match="transparent places"):
        decode_frame(tmp_path / "a.png")


def test_of_16_bits_a_colour_the_upper_8_are_kept(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.full((3, 4, 3), 0x1234, np.uint16))
    assert (decode_frame(tmp_path / "a.png") == 0x12).all()


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path.name)])
def test_what_stands_in_a_pictures_place_is_refused(tiny_scene: Path, make: Callable[[Path], object]) -> None:
    path = tiny_scene / "frames" / "IMG_0000000110.bmp"
    path.unlink()
    make(path)
    with bounded():
        refused(tiny_scene, str(path))


def test_a_name_that_differs_in_case_is_told(tiny_scene: Path) -> None:
    path = tiny_scene / "frames" / "IMG_0000000110.bmp"
    path.rename(path.with_suffix(".BMP"))
    refused(tiny_scene, str(path), "there is IMG_0000000110.BMP")


def test_keys_that_stand_twice_are_refused(tiny_scene: Path) -> None:
    path = tiny_scene / "meta.json"
    path.write_text(path.read_text().replace('"nears": {', '"nears": {"10": 0.1, ', 1))
    refused(tiny_scene, str(path), "the key '10' twice")


def test_times_of_a_range_a_million_times_its_spacing(tiny_scene: Path, edit_meta: EditMeta) -> None:
    def widen(meta: dict) -> None:
        for key in ("ids_all", "ids_train", "ids_val", "ids_test"):
            meta[key] = [10**6 if i == 24 else i - 10 for i in meta[key]]
        for key in ("images", "poses", "nears", "fars"):
            meta[key] = {str(10**6 if i == "24" else int(i) - 10): value for i, value in meta[key].items()}

    edit_meta(widen)
    scene = load_scene(tiny_scene)
    assert (np.diff(scene.times()) > 1e-6).all()
    for rows in (1000, 10**6, 2 * 10**6):
        with pytest.raises(SceneError, match="number the frames"):
            scene.times(rows)


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-1], lambda content: b"x" * 200])
def test_a_damaged_cache_is_rebuilt(tiny_scene: Path, damage: Callable[[bytes], bytes]) -> None:
    first = np.array(load_scene(tiny_scene).frames)
    cache = only_cache(tiny_scene)
    cache.write_bytes(damage(cache.read_bytes()))
    np.testing.assert_array_equal(load_scene(tiny_scene).frames, first)


def test_what_killed_processes_left_goes_away(tiny_scene: Path) -> None:
    folder = cache_folder(tiny_scene)
    folder.mkdir()
    left, other = folder / ".frames-a.1-0123abcd.tmp.npy", folder / ".frames.npy"
    left.touch()
    other.touch()
    load_scene(tiny_scene)
    assert not left.exists() and other.exists()


def test_a_shared_scene_is_never_written_to(tiny_scene: Path, own_cache: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_scene.rglob("*")}
    tiny_scene.chmod(0o555)
    try:
        scene = load_scene(tiny_scene)
        assert {path: path.stat().st_mtime_ns for path in tiny_scene.rglob("*")} == before
        assert (
            only_cache(tiny_scene).parent == user_cache_dir(tiny_scene) and own_cache in only_cache(tiny_scene).parents
        )
        np.testing.assert_array_equal(scene.frame(0), np.asarray(Image.open(scene.image_paths[0])))
    finally:
        tiny_scene.chmod(0o755)


def test_a_cache_that_cannot_be_written_is_named(tiny_scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiny_scene / "a file").touch()
    monkeypatch.setenv("DIVFF_CACHE_DIR", str(tiny_scene / "a file"))
    tiny_scene.chmod(0o555)
    try:
        refused(tiny_scene, "a file", "DIVFF_CACHE_DIR")
    finally:
        tiny_scene.chmod(0o755)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda meta: meta["ids_all"].append(10**30), ("ids_all", "less than")),
        (lambda meta: meta["poses"][str(meta["ids_all"][0])][1].__setitem__(3, 1e308), ("poses.10.1.3", "less than")),
        (lambda meta: meta["fars"].update({str(meta["ids_all"][0]): 1e300}), ("fars.10", "less than")),
        (lambda meta: meta["intrinsics"][0].__setitem__(0, 1e300), ("intrinsics.0.0", "less than")),
    ],
)
def test_numbers_beyond_all_reason_are_named(tiny_scene: Path, edit_meta, change: Callable, words: tuple) -> None:
    edit_meta(change)
    refused(tiny_scene, "meta.json", *words)


def test_an_image_with_a_number_beyond_all_reason(tiny_scene: Path, edit_meta) -> None:
    edit_meta(lambda meta: meta["images"].update({str(meta["ids_all"][-1]): f"IMG_{10**25}.bmp"}))
    refused(tiny_scene, "meta.json", "no frame number")


def test_a_full_disk_is_said_and_does_not_kill_the_process(tiny_scene: Path, small_disk: Path) -> None:
    (small_disk / "something else").write_bytes(bytes(12000))  # two pages of three are left
    tiny_scene.chmod(0o555)
    code = f"from divff_nerfstudio.data.scene import load_scene; load_scene({str(tiny_scene)!r})"
    try:
        ended = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "DIVFF_CACHE_DIR": str(small_disk)},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        tiny_scene.chmod(0o755)
    assert ended.returncode == 1 and "No space left on device" in ended.stderr and "make room there" in ended.stderr
    assert not list(small_disk.rglob("*.npy"))


def test_threads_at_once_see_whole_frames(tiny_scene: Path) -> None:
    scene = load_scene(tiny_scene, check_frames=False)
    results: list[np.ndarray] = []

    def read() -> None:
        results.append(np.array(open_frames(scene.root, scene.image_paths, scene.width, scene.height)))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6 and all(np.array_equal(result, results[0]) for result in results)
    assert only_cache(tiny_scene).name.startswith("frames-")


def _sum_of_frames(root: Path) -> int:
    return int(load_scene(root).frames.sum())


def test_processes_at_once_see_whole_frames(tiny_scene: Path) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        sums = pool.map(_sum_of_frames, [tiny_scene] * 6, chunksize=1)
    expected = sum(
        int(np.asarray(Image.open(path)).astype(np.int64).sum()) for path in sorted((tiny_scene / "frames").iterdir())
    )
    assert sums == [expected] * 6


def test_the_kitchen(kitchen_small: Path) -> None:
    scene = load_scene(kitchen_small)
    assert len(scene) == 80 and (scene.width, scene.height) == (114, 64)
    assert {split: len(indices) for split, indices in scene.splits.items()} == {"train": 70, "val": 5, "test": 5}
    assert scene.video_numbers[0] == 31


def test_a_camera_that_is_elsewhere_for_one_frame_is_named(tiny_scene: Path, edit_meta: EditMeta) -> None:
    """The usual step is 0.086; frames 10 and 24 are the first and the last."""
    for frame, name in (("10", "IMG_0000000100"), ("12", "IMG_0000000105"), ("24", "IMG_0000000135")):
        for distance, said in ((1.0, None), (9.0, name), (20.0, name)):
            shutil.rmtree(tiny_scene)
            write_tiny_scene(tiny_scene)

            def move(meta: dict, frame: str = frame, distance: float = distance) -> None:
                meta["poses"][frame][0][3] += distance

            edit_meta(move)
            found = remarks(load_scene(tiny_scene))
            assert len(found) == (said is not None), found
            assert said is None or (said in found[0] and "more are such" not in found[0])
        edit_meta(lambda meta, frame=frame: meta["poses"][frame][0].__setitem__(3, 86.0))
        refused(tiny_scene, str(tiny_scene / "meta.json"), f"frame {frame} 8", "mend the pose")


def test_scenes_of_several_places_are_taken() -> None:
    """Many cameras that are alone, or pairs far apart, are no strays; nor is what is near though the rest stands."""
    positions, fars = np.zeros((40, 3)), np.full(40, 2.0)
    positions[:, 0] = np.arange(40) * 0.01
    positions[20:, 1] = 50
    assert not len(strays(positions, fars)) and not len(leaps(positions, fars / 4))
    positions[:, 0] = np.arange(40) * 5
    assert not len(strays(positions, fars))
    positions[:, :2] = 0
    positions[7] = 0.2
    assert not len(strays(positions, fars)) and not len(leaps(positions, fars / 4))
    positions[7] = 9
    assert strays(positions, fars).tolist() == leaps(positions, fars / 4).tolist() == [7]


def test_names_as_an_address_has_them(tiny_scene: Path, edit_meta: EditMeta) -> None:
    path = tiny_scene / "frames" / "IMG_0000000110.bmp"
    path.rename(path.with_name("IMG 0000000110.bmp"))
    edit_meta(lambda meta: meta["images"].__setitem__("14", "IMG%200000000110.bmp"))
    refused(tiny_scene, "IMG%200000000110.bmp is missing", "there is IMG 0000000110.bmp")
    edit_meta(lambda meta: meta["images"].__setitem__("14", "IMG 0000000110.bmp"))
    scene = load_scene(tiny_scene)
    assert scene.video_numbers[2] == 110 and frame_finder(scene)("IMG%20110.png") == 2
