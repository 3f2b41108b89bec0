"""Reconstructions of others become scenes: poses, pictures, bounds, splits, and what is refused."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import room
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from divff_nerfstudio.cli import main
from divff_nerfstudio.convert import layout
from divff_nerfstudio.convert.cameras import CameraError, Pinhole, SourceCamera, common_pinhole
from divff_nerfstudio.convert.colmap import read_colmap
from divff_nerfstudio.convert.layout import SceneOptions, ray_bounds, splits_of
from divff_nerfstudio.convert.names import ConvertError
from divff_nerfstudio.convert.pictures import FolderFrames
from divff_nerfstudio.convert.posed import PosedFrames, opengl_poses, posed_frames, rigid_poses
from divff_nerfstudio.convert.staging import fingerprint, staged
from divff_nerfstudio.data.scene import SceneFolder, load_scene


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    return room.write_frames(tmp_path_factory.mktemp("room") / "images")


def as_colmap(root: Path, frames: Path) -> list[str]:
    room.write_colmap(root / "model" / "sparse" / "0")
    return ["colmap", str(root / "model"), "--images", str(frames)]


def as_nerfstudio(root: Path, frames: Path) -> list[str]:
    return ["nerfstudio", str(room.write_transforms(root / "data"))]


def as_epic_fields(root: Path, frames: Path) -> list[str]:
    with tarfile.open(root / "P28_101.tar", "w") as archive:
        for path in sorted(room.write_frames(root / "jpeg", ".jpg").iterdir()):
            archive.add(path, f"./{path.name}")
    shutil.rmtree(root / "jpeg")
    path = room.write_epic_fields(root / "P28_101.json")
    return ["epic-fields", str(path), "--frames", str(root / "P28_101.tar")]


KINDS = {"colmap": as_colmap, "nerfstudio": as_nerfstudio, "epic-fields": as_epic_fields}


def convert(words: list[str], output: Path, *options: str) -> int:
    return main(["convert", *words[:2], str(output), *words[2:], *options])


def pinhole_of(scene: SceneFolder, width: int) -> Pinhole:
    K = scene.intrinsics.astype(float)
    own = Pinhole(scene.width, scene.height, K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    return own.resized(width)


def psnr(picture: np.ndarray, truth: np.ndarray) -> float:
    return -10 * np.log10(((picture.astype(float) - truth) ** 2).mean() / 255**2)


def averaged(pose: np.ndarray, pinhole: Pinhole) -> np.ndarray:
    large = room.view(pose, pinhole.directions(3)).astype(float)
    return large.reshape(pinhole.height, 3, pinhole.width, 3, 3).mean((1, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_reconstruction_becomes_a_scene(tmp_path, frames, kind):
    words = KINDS[kind](tmp_path, frames)
    assert convert(words, tmp_path / "scene", "--width", "80", "--split", "3") == 0
    scene = load_scene(tmp_path / "scene")
    assert (scene.width, scene.height, len(scene)) == (80, 45, room.COUNT)
    assert scene.video_numbers.tolist() == room.numbers()
    truth = np.stack([room.every_pose()[number] for number in room.numbers()])
    assert np.abs(scene.camera_to_worlds - truth).max() < 1e-5
    for i in range(0, len(scene), 4):
        assert psnr(scene.frame(i), averaged(truth[i], pinhole_of(scene, 80))) > 35
    first, last = room.numbers()[0], room.numbers()[-1]
    assert scene.video_numbers_available.tolist() == list(range(first, last + 1))
    between = scene.video_frame(first + 2)
    assert between.shape == (90, 160, 3)
    assert psnr(between, averaged(room.every_pose()[first + 2], pinhole_of(scene, 160))) > 30
    held = {split: scene.frame_ids[indices].tolist() for split, indices in scene.splits.items()}
    assert held == {"train": [1, 2, 4, 5, 7, 8, 10, 11], "val": [3, 9], "test": [0, 6]}
    for i in range(len(scene)):
        offsets = room.points() - truth[i, :, 3]
        ahead = np.linalg.norm(offsets, axis=1)[offsets @ truth[i, :, 2] < 0]
        assert scene.nears[i] == pytest.approx(np.quantile(ahead, 0.001), rel=1e-4)
        assert scene.fars[i] == pytest.approx(np.quantile(ahead, 0.999), rel=1e-4)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_points_of_the_room_lie_where_the_pictures_show_them(tmp_path, frames):
    """A wall point's colour, which the room's formula knows, is found at its projection by meta.json alone."""
    convert(as_colmap(tmp_path, frames), tmp_path / "scene", "--width", "160")
    scene = load_scene(tmp_path / "scene")
    errors, shifted = [], []
    for i in (0, 5, 11):
        pose, K = scene.camera_to_worlds[i].astype(float), scene.intrinsics
        x, y, z = ((room.points() - pose[:, 3]) @ pose[:, :3]).T
        ahead = z < -0.2
        columns, rows = K[0, 0] * x / -z + K[0, 2], K[1, 1] * -y / -z + K[1, 2]
        inside = ahead & (columns > 3) & (columns < scene.width - 3) & (rows > 3) & (rows < scene.height - 3)
        colour = room.colours(pose[:, 3], room.points()[inside] - pose[:, 3]).astype(float)
        picture = scene.frame(i).astype(float)
        errors.append(np.abs(sampled(picture, columns[inside], rows[inside]) - colour).mean())
        shifted.append(np.abs(sampled(picture, columns[inside] + 1, rows[inside]) - colour).mean())
    assert np.mean(errors) < 2 and np.mean(shifted) > 2 * np.mean(errors)


def sampled(picture: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    x, y = columns - 0.5, rows - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, down = (x - left)[:, None], (y - top)[:, None]
    above = picture[top, left] * (1 - right) + picture[top, left + 1] * right
    below = picture[top + 1, left] * (1 - right) + picture[top + 1, left + 1] * right
    return above * (1 - down) + below * down


def test_binary_models_and_images_inside(tmp_path, frames):
    import pycolmap

    text = room.write_colmap(tmp_path / "text")
    (tmp_path / "model").mkdir()
    pycolmap.Reconstruction(str(text)).write_binary(str(tmp_path / "model"))
    shutil.copytree(frames, tmp_path / "model" / "images")
    assert convert(["colmap", str(tmp_path / "model")], tmp_path / "scene", "--every", "2", "--first", "106") == 0
    assert load_scene(tmp_path / "scene").video_numbers.tolist() == room.numbers()[1::2]


def test_options_shape_the_scene(tmp_path, frames):
    words = as_colmap(tmp_path, frames)
    options = ["--video-width", "0", "--last", "140", "--near", "0.5", "--far", "9", "--widest", "60"]
    assert convert(words, tmp_path / "scene", *options) == 0
    scene = load_scene(tmp_path / "scene")
    assert len(scene) == 8 and not scene.video_dir.exists()
    assert set(scene.nears) == {0.5} and set(scene.fars) == {9.0}
    assert 2 * np.degrees(np.arctan(scene.width / 2 / scene.intrinsics[0, 0])) == pytest.approx(60, abs=0.1)


def test_an_output_that_holds_something_stays(tmp_path, frames, capsys):
    words = as_colmap(tmp_path, frames)
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene" / "mine.txt").write_text("mine")
    assert convert(words, tmp_path / "scene") == 1
    assert "--overwrite" in capsys.readouterr().err and (tmp_path / "scene" / "mine.txt").exists()
    assert convert(words, tmp_path / "scene", "--overwrite") == 0
    assert len(load_scene(tmp_path / "scene")) == room.COUNT and not (tmp_path / "scene" / "mine.txt").exists()


def test_an_interrupted_conversion_goes_on_and_another_starts_clean(tmp_path, frames, monkeypatch):
    """What was written is not written again, unless a setting differs."""
    words = as_colmap(tmp_path, frames)
    written: list[str] = []
    save = layout._save

    def saving(path: Path, picture: np.ndarray) -> None:
        if len(written) == 10:
            raise KeyboardInterrupt
        written.append(path.name)
        save(path, picture)

    monkeypatch.setattr(layout, "_save", saving)
    assert convert(words, tmp_path / "scene") == 130
    assert not (tmp_path / "scene").exists()
    monkeypatch.setattr(layout, "_save", lambda path, picture: (written.append(path.name), save(path, picture)))
    assert convert(words, tmp_path / "scene") == 0
    assert len(written) == len(set(written)) == room.COUNT + len(room.every_pose())
    assert len(load_scene(tmp_path / "scene")) == room.COUNT
    partial = tmp_path / ".other.partial"
    partial.mkdir()
    (partial / "conversion.json").write_text('{"kind": "another"}')
    (partial / "leftover.txt").write_text("of other settings")
    assert convert(words, tmp_path / "other", "--video-width", "0") == 0
    assert not (tmp_path / "other" / "leftover.txt").exists() and not partial.exists()


def test_pictures_that_were_replaced_meanwhile_are_read_anew(tmp_path, monkeypatch):
    """The user mends the pictures of a conversion that was stopped; the folder itself says nothing of that."""
    data, save = room.write_transforms(tmp_path / "data"), layout._save
    words = ["nerfstudio", str(data)]

    def stopping(path: Path, picture: np.ndarray) -> None:
        save(path, picture)
        raise KeyboardInterrupt

    monkeypatch.setattr(layout, "_save", stopping)
    assert convert(words, tmp_path / "scene", "--no-check-poses") == 130
    for path in (data / "images").iterdir():
        with Image.open(path) as picture:
            black = Image.new("RGB", picture.size)
        black.save(path)
    monkeypatch.setattr(layout, "_save", save)
    assert convert(words, tmp_path / "scene", "--no-check-poses") == 0
    assert not np.array(load_scene(tmp_path / "scene").frames).any()


def test_a_folder_is_known_by_its_files(tmp_path):
    """Its own entry says nothing of what is mended in place; what is being made there, hidden, does not count."""
    (tmp_path / "masks" / "a").mkdir(parents=True)
    mask = tmp_path / "masks" / "a" / "1.png"
    mask.write_text("old")
    before = fingerprint(tmp_path / "masks")
    (tmp_path / "masks" / ".scene.partial").mkdir()
    (tmp_path / "masks" / ".scene.partial" / "1.bmp").write_text("half")
    (tmp_path / "masks" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "masks" / "gone").unlink()
    assert fingerprint(tmp_path / "masks") == before
    mask.write_text("better")
    assert fingerprint(tmp_path / "masks") != before
    with pytest.raises(ConvertError, match="is missing"):
        fingerprint(tmp_path / "none")


def test_two_conversions_into_one_folder(tmp_path):
    output = tmp_path / "scene"
    with staged(output, {}), pytest.raises(ConvertError, match="another process"), staged(output, {}):
        pass
    assert output.is_dir() and not (tmp_path / ".scene.lock").exists()


@pytest.mark.parametrize("source", [".", "images", "clip.mp4"])
def test_what_is_converted_is_never_replaced_by_what_comes_of_it(tmp_path, source):
    (tmp_path / "kitchen" / "images").mkdir(parents=True)
    (tmp_path / "kitchen" / "clip.mp4").write_text("the only copy")
    output = tmp_path / "kitchen"
    with (
        pytest.raises(ConvertError, match=r"lies in .*, which would be replaced: give a folder beside it"),
        staged(output, {}, overwrite=True, sources=[output / source]),
    ):
        pass
    assert (output / "clip.mp4").is_file() and (output / "images").is_dir()


def test_a_linked_folder_is_filled_where_it_leads_to(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "scene").symlink_to(tmp_path / "disk")
    with staged(tmp_path / "scene", {}) as folder:
        (folder / "meta.json").write_text("{}")
    assert (tmp_path / "scene").is_symlink() and (tmp_path / "disk" / "meta.json").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with staged(Path(), {}) as folder:
        (folder / "meta.json").write_text("{}")
    assert (tmp_path / "here" / "meta.json").is_file()


def test_a_file_is_never_replaced_by_a_scene(tmp_path):
    (tmp_path / "scene").write_text("notes")
    with pytest.raises(ConvertError, match="is a file"), staged(tmp_path / "scene", {}, overwrite=True):
        pass
    assert (tmp_path / "scene").read_text() == "notes"


def test_a_killed_conversion_goes_on(tmp_path, frames):
    """Killed in the middle of writing a picture: that picture is not taken for one, the finished ones stay."""
    words = as_colmap(tmp_path, frames)
    code = (
        "import os, signal, sys; from divff_nerfstudio.cli import main; from PIL import Image\n"
        "save, done = Image.Image.save, []\n"
        "def broken(self, path, **options):\n"
        "    if len(done) == 20:\n"
        "        path.write_bytes(b'half a pic'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "    done.append(path); save(self, path, **options)\n"
        "Image.Image.save = broken\n"
        "main(sys.argv[1:])"
    )
    line = ["convert", *words[:2], str(tmp_path / "scene"), *words[2:]]
    assert subprocess.run([sys.executable, "-c", code, *line], check=False).returncode == -signal.SIGKILL
    partial = tmp_path / ".scene.partial"
    assert not (tmp_path / "scene").exists() and list(partial.rglob(".*.tmp*"))
    kept = {path.relative_to(partial): path.stat().st_mtime_ns for path in partial.glob("*/*[0-9].[bj]*")}
    assert main(line) == 0
    scene = load_scene(tmp_path / "scene")
    assert len(scene) == room.COUNT and not list((tmp_path / "scene").rglob("*.tmp*"))
    again = {name: (tmp_path / "scene" / name).stat().st_mtime_ns for name in kept if not name.name.startswith(".")}
    assert len(again) >= 20 and all(kept[name] == changed for name, changed in again.items())
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: (model / "images.txt").write_text("1 1 0 0 0 0 0 0 1 nowhere_1.png\n\n"), "nowhere_1.png"),
        (lambda model: (model / "cameras.txt").write_text("1 EQUIRECTANGULAR 160 90 160 90\n"), "EQUIRECTANGULAR"),
        (lambda model: (model / "cameras.txt").write_text("1 STRANGE 160 90 1 2 3\n"), "known model"),
        (lambda model: (model / "points3D.txt").write_text(""), "--near"),
        (lambda model: (model / "images.txt").unlink(), "no COLMAP model"),
        (lambda model: (model / "cameras.txt").write_text("1 PINHOLE 200 200 90 90 100 100\n"), "cropped"),
    ],
)
def test_a_faulty_colmap_model_is_one_sentence(tmp_path, frames, capsys, change, said):
    words = as_colmap(tmp_path, frames)
    change(tmp_path / "model" / "sparse" / "0")
    assert convert(words, tmp_path / "scene") == 1
    shown = capsys.readouterr().err
    assert said in shown and shown.count("\n") == 1 and not (tmp_path / "scene").exists()


@pytest.mark.parametrize(
    ("camera", "said"),
    [
        ({"camera_model": "OMNIDIRECTIONALSTEREO_L"}, "cannot be dropped"),
        ({"camera_model": "OPENCV_FISHEYE"}, "tangential"),
        ({"k4": 0.1}, "k4"),
        ({"fl_x": "wide"}, "number"),
        ({"frames": []}, "no frames"),
        ({"frames": [{"file_path": "images/frame_0000000101.png"}] * 5}, "transform_matrix"),
        ({"ply_file_path": "none.ply"}, "none.ply"),
        ({"ply_file_path": None}, "--near"),
    ],
)
def test_a_faulty_transforms_file_is_one_sentence(tmp_path, capsys, camera, said):
    folder = room.write_transforms(tmp_path / "data", **camera)
    assert convert(["nerfstudio", str(folder)], tmp_path / "scene") == 1
    shown = capsys.readouterr().err
    assert said in shown and shown.count("\n") == 1


def test_cameras_of_single_frames_and_of_blender(tmp_path):
    folder = room.write_transforms(tmp_path / "data")
    path = folder / "transforms.json"
    meta = json.loads(path.read_text())
    for key in ("fl_x", "fl_y", "cx", "cy", "w", "h", "k1", "k2", "p1", "p2", "camera_model"):
        del meta[key]
    meta["camera_angle_x"] = 2 * np.arctan(0.5)
    meta["frames"][3] |= {"fl_x": 200.0}
    for frame in meta["frames"]:
        frame["file_path"] = frame["file_path"].removesuffix(".png")
    path.write_text(json.dumps(meta))
    assert convert(["nerfstudio", str(path)], tmp_path / "scene", "--order", "listed") == 0
    scene = load_scene(tmp_path / "scene")
    assert scene.intrinsics[0, 0] == pytest.approx(200.0, rel=0.02) and scene.width == 160
    assert scene.video_numbers.tolist() == list(range(1, room.COUNT + 1))
    expected = np.stack([room.every_pose()[number] for number in reversed(room.numbers())])
    assert np.abs(scene.camera_to_worlds - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content["camera"].update(model="FISHEYE624"), "cannot be dropped"),
        (lambda content: content.pop("images"), "images"),
        (lambda content: content["images"].update({"frame_0000000102.jpg": [0, 0, 0, 0, 1, 1, 1]}), "rotation"),
        (lambda content: content["images"].update({"last.jpg": [1, 0, 0, 0, 1, 1, 1]}), "no number"),
        (lambda content: content["images"].update({"frame_0000009999.jpg": [1, 0, 0, 0, 1, 1, 1]}), "no frame 9999"),
        (lambda content: content["images"].update({"0" * 5000 + "9.jpg": [1, 0, 0, 0, 1, 1, 1]}), "no frame 9"),
    ],
)
def test_a_faulty_epic_fields_file_is_one_sentence(tmp_path, frames, capsys, change, said):
    words = as_epic_fields(tmp_path, frames)
    content = json.loads(Path(words[1]).read_text())
    change(content)
    Path(words[1]).write_text(json.dumps(content))
    assert convert(words, tmp_path / "scene") == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [["--width", "1"], ["--split", "1"], ["--every", "0"], ["--near", "1"], ["--near", "3", "--far", "2"],
     ["--near", "1e-9", "--far", "2"], ["--widest", "175"], ["--video-width", "3"]],
)  # fmt: skip
def test_options_that_make_no_sense(tmp_path, frames, capsys, options):
    assert convert(as_colmap(tmp_path, frames), tmp_path / "scene", *options) == 1
    assert options[0] in capsys.readouterr().err


def test_names_that_do_not_tell_the_order(tmp_path, frames, capsys):
    words = as_colmap(tmp_path, frames)
    names = ["a_one.png", "b_two.png"]
    folder = tmp_path / "named"
    folder.mkdir()
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    words[-1] = str(folder)
    assert convert(words, tmp_path / "scene") == 1
    assert "--order name" in capsys.readouterr().err
    for name in ("left_1.png", "right_1.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    for name in names:
        (folder / name).unlink()
    with pytest.raises(ConvertError, match="two frames of number 1"):
        FolderFrames.of_folder(folder)
    assert FolderFrames.of_folder(folder, "name").number_of("right_1.png") == 2


def test_more_than_a_thousand_frames(tmp_path):
    """Poses, bounds, splits, and times of a long video; the pictures are tiny."""
    count = 1203
    folder = tmp_path / "images"
    folder.mkdir()
    small = np.zeros((18, 32, 3), np.uint8)
    for number in range(1, count + 1):
        Image.fromarray(small).save(folder / f"{number}.png")
    posed = PosedFrames(
        np.arange(1, count + 1),
        room.poses(count),
        (SourceCamera("PINHOLE", 32, 18, (20.0, 20.0, 16.0, 9.0)),) * count,
        room.points(),
        folder,
    )
    (tmp_path / "scene").mkdir()
    layout.write_scene(tmp_path / "scene", posed, FolderFrames.of_folder(folder), SceneOptions(video_width=0))
    scene = load_scene(tmp_path / "scene")
    assert len(scene) == count and scene.times()[-1] == 1 and scene.times()[0] == 0
    assert scene.times(1300)[-1] == pytest.approx(1202 / 1299)


@given(st.integers(4, 500), st.integers(2, 30))
def test_splits_hold_out_every_nth_frame_alternately(count, every):
    splits = splits_of(count, every)
    assert sorted(itertools.chain(*splits.values())) == list(range(count))
    assert all(splits.values())
    if every <= count // 2:
        assert splits["test"] == list(range(count))[::every][::2]
        assert splits["val"] == list(range(count))[::every][1::2]


quaternions = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1)
positions = st.lists(st.floats(-50, 50), min_size=3, max_size=3)


@given(quaternions, positions)
def test_poses_go_there_and_back(quaternion, position):
    """A point is seen at the same place by COLMAP's world-to-camera and by the pose made of it."""
    rotation = Rotation.from_quat(quaternion).as_matrix()
    world_to_camera = np.concatenate((rotation, np.array(position)[:, None]), 1)
    pose = opengl_poses(world_to_camera[None])[0]
    point = np.array([1.0, -2.0, 3.0])
    right, up, back = (point - pose[:, 3]) @ pose[:, :3]
    assert np.allclose((right, -up, -back), world_to_camera[:, :3] @ point + world_to_camera[:, 3], atol=1e-9)
    assert np.allclose(rigid_poses(pose[None], Path("x"))[0], pose, atol=1e-12)


@pytest.mark.parametrize("spoil", [lambda p: p * 2, lambda p: p * [[1, 1, -1, 1]], lambda p: p + np.nan])
def test_poses_that_are_none_are_refused(spoil):
    good = room.poses(3)
    bad = np.stack([good[0], spoil(good[1]), good[2]])
    with pytest.raises(ConvertError, match=r"of its 2\. frame"):
        rigid_poses(bad, Path("x"))


def test_a_camera_that_sees_no_points_takes_its_neighbours_bounds():
    poses = room.poses(4)
    points = poses[0, :, 3] - poses[0, :, 2] * np.linspace(1, 2, 50)[:, None]
    poses[2] = poses[0] * [[-1, 1, -1, 1]]
    nears, fars = ray_bounds(poses[[0, 1, 2]], points, Path("x"))
    assert nears[2] == nears[1] and fars[2] == fars[1]
    assert nears[0] == pytest.approx(1, abs=0.01) and fars[0] == pytest.approx(2, abs=0.01)
    with pytest.raises(ConvertError, match=r"50 points .* no camera has 10 or more, .* OpenCV's axes.* --near"):
        ray_bounds(poses[[2]], points, Path("x"))
    with pytest.raises(ConvertError, match=r"has 5 points of the room where it needs 10 or more"):
        ray_bounds(poses[[0]], points[:5], Path("x"))


def test_positions_that_their_numbers_do_not_tell_apart_are_refused():
    far = room.poses(4)
    far[:, :, 3] += 1e15
    with pytest.raises(ConvertError, match="so far from the origin"):
        posed_frames(range(4), far, [SourceCamera("PINHOLE", 8, 8, (8, 8, 4, 4))] * 4, np.zeros((0, 3)), Path("x"))


def test_without_pycolmap_it_is_said_what_to_install(tmp_path, frames, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    model = room.write_colmap(tmp_path / "model")
    posed = read_colmap(model, FolderFrames.of_folder(frames), "number")
    with pytest.raises(CameraError, match="pip install"):
        common_pinhole(posed.cameras, 80)


def test_a_converted_scene_trains(tmp_path, frames):
    """A few steps of the registered method on a converted scene, tiny; the parameters move and stay finite."""
    import tiny_run
    import torch

    assert convert(as_colmap(tmp_path, frames), tmp_path / "scene", "--width", "48", "--video-width", "0") == 0
    tiny_run.write_features(tmp_path / "scene", tmp_path / "encoder")
    trainer = tiny_run.trainer_of(tiny_run.config(tmp_path / "scene", tmp_path / "runs", steps=6))
    trainer.setup()
    before = tiny_run.parameters(trainer.pipeline.model)
    trainer.train()
    after = tiny_run.parameters(trainer.pipeline.model)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(before[name], value) for name, value in after.items())
