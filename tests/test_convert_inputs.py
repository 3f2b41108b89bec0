"""What `divff convert` reads of others: names, models, archives, folders, as they come, and as they come damaged."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import room
from PIL import Image
from test_convert import as_colmap, convert

from divff_nerfstudio.archives import ArchiveError
from divff_nerfstudio.checkpoints import read_checkpoint
from divff_nerfstudio.convert import pictures
from divff_nerfstudio.convert.cameras import CameraError
from divff_nerfstudio.convert.colmap import find_model, posed_by, read_model
from divff_nerfstudio.convert.epic_fields import read_epic_fields
from divff_nerfstudio.convert.names import ConvertError, FrameNames, frames_among, number_names
from divff_nerfstudio.convert.nerfstudio import read_nerfstudio
from divff_nerfstudio.convert.pictures import ArchiveFrames, FolderFrames, VideoFrames, open_frames
from divff_nerfstudio.convert.timeline import ids_of, named_splits, usable_times
from divff_nerfstudio.convert.tone import compressed
from divff_nerfstudio.data.scene import load_scene
from divff_nerfstudio.errors import DivffError, stand_in

HERE = Path("here")


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["f_9.png", "f_10.png"], [9, 10]),
        (["frame_0.1s.png", "frame_0.05s.png", "frame_1s.png"], [2, 1, 3]),
        (["1403636579.763.png", "1403636579.9.png", "1403636579.81.png"], [1, 3, 2]),
        (["1403636579763555584.png", "1403636579763555583.png"], [2, 1]),
        (["take2.0001.png", "take2.0003.png"], [1, 3]),
        (["take2.9.png", "take2.10.png"], [9, 10]),
        (["900ms.png", "1s.png"], [1, 2]),
    ],
)
def test_numbers_and_time_stamps_tell_the_order(names, numbers):
    assert number_names(names, "number", HERE) == dict(zip(names, numbers, strict=True))


@pytest.mark.parametrize(
    "names",
    [
        ["2026-11-30_12-30-58_623411.png", "2026-11-30_12-30-59_123391.png"],
        ["2026-11-30_12-30-59.png", "2026-11-30_12-31-01.png"],
    ],
)
def test_clocks_whose_last_numbers_begin_anew_are_not_taken_for_frame_numbers(names):
    with pytest.raises(ConvertError, match="--order name"):
        number_names(names, "number", HERE)
    assert list(number_names(names, "name", HERE).values()) == [1, 2]


def test_takes_and_cameras_may_be_in_any_order():
    assert number_names(["b/take2_7.png", "a/take3_5.png"], "number", HERE) == {"b/take2_7.png": 7, "a/take3_5.png": 5}
    assert number_names(["left_2.png", "right_1.png"], "number", HERE) == {"left_2.png": 2, "right_1.png": 1}


def test_time_stamps_are_in_order_by_name_too():
    names = ["t_0.1s.png", "t_0.05s.png", "t_0.2s.png"]
    assert sorted(names, key=number_names(names, "name", HERE).__getitem__) == [names[1], names[0], names[2]]


def test_only_frames_are_taken_for_frames():
    named = {"images/f_1.png", "images/f_3.png"}
    others = ["images/f_1_mask.png", "images/f_2_mask.png", "masks/f_1.png", "masks/f_2.png", "depth_1.png"]
    found = frames_among([*named, "images/f_2.png", *others], named, "number")
    assert set(found) == named | {"images/f_2.png"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A binary model."""
    import pycolmap

    root = tmp_path_factory.mktemp("model")
    text = room.write_colmap(root / "text")
    (root / "binary").mkdir()
    pycolmap.Reconstruction(str(text)).write_binary(str(root / "binary"))
    return root


def test_models_are_read_as_pycolmap_reads_them(model):
    import pycolmap

    for folder in (model / "text", model / "binary"):
        found, truth = read_model(folder), pycolmap.Reconstruction(str(folder))
        for key, pose, name in zip(found.images.keys, found.images.poses, found.images.names, strict=True):
            image = truth.images[key]
            x, y, z, w = image.cam_from_world().rotation.quat
            assert name == image.name and np.allclose(pose, (w, x, y, z, *image.cam_from_world().translation))
        assert list(truth.cameras[1].params) == list(found.cameras[1].params)
        assert np.allclose(sorted(found.points[:, 0]), sorted(point.xyz[0] for point in truth.points3D.values()))


def test_the_parameters_of_camera_models_are_pycolmaps():
    import pycolmap

    from divff_nerfstudio.convert.colmap_model import MODEL_PARAMS

    known = {name: int(model) for name, model in pycolmap.CameraModelId.__members__.items() if name != "INVALID"}
    assert list(MODEL_PARAMS) == sorted(known, key=known.__getitem__)
    for name, count in MODEL_PARAMS.items():
        assert pycolmap.Camera(model=name, width=9, height=9, params=[1.0] * count).verify_params()


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
@pytest.mark.parametrize("change", [-1, -5, -8, -100, 3, "count", "empty"])
def test_a_binary_file_cut_short_or_too_long_is_named(tmp_path, model, name, change):
    for path in (model / "binary").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / f"{name}.bin"
    content = path.read_bytes()
    if change == "count":
        content = (2**61).to_bytes(8, "little") + content[8:]
    elif change == "empty":
        content = b""
    else:
        content = content[:change] if change < 0 else content + bytes(change)
    path.write_bytes(content)
    with pytest.raises(ConvertError, match=rf"{name}\.bin"):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("cameras.txt", "1 OPENCV", "2 OPENCV", "camera 1"),
        ("images.txt", "\n1 ", "\n2 ", "the id 2"),
        ("images.txt", " 1 frame", " 1.5 frame", "ids"),
        ("images.txt", "1 0.", "1 9.", "no rotation"),
        ("points3D.txt", "0.5 \n", "0.5 99 0\n", "image 99"),
        ("points3D.txt", "1 ", "1 inf ", "point"),
        ("cameras.txt", "90.0 90.0", "9_0.0 9_0.0", "something else than numbers"),
    ],
)
def test_what_does_not_fit_in_a_text_model_is_named(tmp_path, file, old, new, said):
    folder = room.write_colmap(tmp_path / "model")
    path = folder / file
    content = "\n" + path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    with pytest.raises((ConvertError, CameraError), match=said):
        read_model(folder)


def test_tracks_of_a_model_whose_2d_points_were_left_out_lead_to_none(tmp_path):
    folder = room.write_colmap(tmp_path / "model")
    points, images = folder / "points3D.txt", folder / "images.txt"
    points.write_text(points.read_text().replace("0.5 \n", "0.5 1 7\n", 1))
    assert len(read_model(folder).images.names) > 1
    lines = images.read_text().splitlines()
    lines[1] = "0.5 0.5 1 1.5 0.5 2"
    images.write_text("\n".join(lines) + "\n")
    with pytest.raises(ConvertError, match="2D point 7 of image 1, which has 2"):
        read_model(folder)


def test_names_with_spaces_and_files_without_lines_of_points(tmp_path):
    folder = room.write_colmap(tmp_path / "a", name="my frame {:04d}.png")
    assert read_model(folder).images.names[0] == "my frame 0101.png"
    path = folder / "images.txt"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if line))
    images = read_model(folder).images
    assert len(images.names) == room.COUNT and "no lines of 2D points" in images.notes[0]
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "", *lines[1:]]))
    with pytest.raises(ConvertError, match="line 4 should hold the 2D points"):
        read_model(folder)


def test_the_largest_of_several_models_is_taken(tmp_path):
    for name in ("0", "1"):
        room.write_colmap(tmp_path / "sparse" / name)
    path = tmp_path / "sparse" / "0" / "images.txt"
    path.write_text("\n".join(path.read_text().split("\n")[:8]) + "\n")
    found, said = find_model(tmp_path)
    assert found == tmp_path / "sparse" / "1" and said is not None and "12 (sparse/0 4)" in said
    assert find_model(tmp_path / "sparse" / "0") == (tmp_path / "sparse" / "0", None)


@pytest.mark.parametrize(("name", "what", "count"), [("images", "images", 12), ("points3D", "points", 600)])
def test_text_files_that_end_between_two_lines_too_early_are_told(tmp_path, name, what, count):
    folder = room.write_colmap(tmp_path / "m")
    path = folder / f"{name}.txt"
    path.write_text(f"# A list\n# Number of {what}: {count}, mean observations per image: 0\n" + path.read_text())
    assert not read_model(folder).images.notes
    path.write_text("\n".join(path.read_text().splitlines()[:-4]) + "\n")
    (note,) = read_model(folder).images.notes
    assert f"{name}.txt says that it has {count} {what}, and" in note
    if name == "images":  # nor does a model without points hide it
        (folder / "points3D.txt").unlink()
        assert read_model(folder).images.notes == [note]


def test_a_model_without_points_asks_for_near_and_far(tmp_path, capsys):
    folder = room.write_colmap(tmp_path / "sparse" / "0")
    room.write_frames(tmp_path / "images", only=room.numbers())
    (folder / "points3D.txt").unlink()
    (folder / "images.bin").touch()  # what a copy that broke off has left; the other files are whole
    assert convert(["colmap", str(tmp_path)], tmp_path / "scene", "--video-width", "0") == 1
    assert "give --near and --far" in capsys.readouterr().err
    bounds = ("--near", "1", "--far", "9")
    assert convert(["colmap", str(tmp_path)], tmp_path / "scene", "--video-width", "0", *bounds) == 0


def test_where_the_parts_of_a_model_are_is_asked_for(tmp_path, capsys):
    with pytest.raises(ConvertError, match="is missing"):
        find_model(tmp_path / "none")
    folder = room.write_colmap(tmp_path / "sparse" / "0")
    assert convert(["colmap", str(tmp_path)], tmp_path / "scene") == 1
    assert "with --images" in capsys.readouterr().err
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "IMG_0001.HEIC").touch()
    assert convert(["colmap", str(tmp_path)], tmp_path / "scene") == 1
    assert "saved in one of these formats" in capsys.readouterr().err
    for path in folder.iterdir():
        path.rename(path.with_name(path.name + ".gz"))
    with pytest.raises(ConvertError, match="gunzip"):
        find_model(tmp_path)


@pytest.mark.parametrize("above", ["images/", "/home/me/data/", "C:\\data\\kitchen\\", "/data/cam1/"])
def test_images_lie_elsewhere_than_where_the_model_was_made(tmp_path, above):
    folder = room.write_colmap(tmp_path / "m", name=above + "frame_{:010d}.png")
    frames = room.write_frames(tmp_path / "cam1", only=room.numbers())
    names = read_model(folder).images.names
    source = FolderFrames.of_folder(frames, named=names)
    assert posed_by(read_model(folder), source, "number").numbers.tolist() == room.numbers()
    path = folder / "images.txt"  # of two cameras, only one's images are there
    path.write_text(path.read_text().replace(above, "left/", 1).replace(above, "right/"))
    with pytest.raises(ConvertError, match=r"has no image left/frame_.*--images"):
        posed_by(read_model(folder), FolderFrames.of_folder(frames), "number")


def test_images_that_were_saved_anew_are_named(tmp_path):
    folder = room.write_colmap(tmp_path / "m", name="frame_{:010d}.jpg")
    frames = room.write_frames(tmp_path / "images", only=room.numbers())
    with pytest.raises(ConvertError, match=rf"frame_{room.FIRST:010d}\.jpg, .* but frame_{room.FIRST:010d}\.png"):
        posed_by(read_model(folder), FolderFrames.of_folder(frames), "number")


def test_reconstructions_in_the_coordinates_of_maps_are_brought_to_the_origin(data):
    plain = read_nerfstudio(data, "number")[0]
    far = np.array([500_000.0, 5_400_000.0, 120.0])

    def change(meta):
        for frame in meta["frames"]:
            for row, value in zip(frame["transform_matrix"], far, strict=False):
                row[3] += float(value)

    moved, _ = read_nerfstudio(edited(data, change), "number")
    offset = far - (moved.points - plain.points + far)[0]  # what is subtracted from all, the points too
    assert np.allclose(moved.camera_to_worlds[:, :, 3] + offset, plain.camera_to_worlds[:, :, 3] + far, atol=1e-6)
    assert np.abs(moved.camera_to_worlds[:, :, 3]).max() < 10 and "far from the origin" in moved.notes[-1]
    assert not any("origin" in note for note in plain.notes)


def test_linked_folders_are_followed_but_not_in_circles(tmp_path):
    real = room.write_frames(tmp_path / "real", only=room.numbers())
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cam").symlink_to(real)
    (real / "again").symlink_to(tmp_path / "images")
    (real / ".hidden_9.png").write_bytes(b"junk")
    frames = FolderFrames.of_folder(tmp_path / "images")
    assert frames.numbers == room.numbers()
    posed = posed_by(read_model(room.write_colmap(tmp_path / "m", name="cam/frame_{:010d}.png")), frames, "number")
    assert posed.numbers.tolist() == room.numbers()


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_archives_of_frames(tmp_path, kind):
    """Hidden members are left out, names are in their order, and what is damaged is named."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 6), (9, 8, 7)).save(picture, "PNG")
    files = {f"./{i:05d}_rgb.png": picture.getvalue() for i in (1, 2, 3)}
    files |= {"./._00001_rgb.png": b"junk", "__MACOSX/00001_rgb.png": b"junk", "Thumbs.db": b"junk"}
    path = tmp_path / f"frames.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    frames = ArchiveFrames(path, "name")
    assert frames.numbers == [1, 2, 3] and frames.size_of(2) == (8, 6)
    assert [picture[0, 0].tolist() for _, picture in frames.read([1, 3])] == [[9, 8, 7]] * 2
    with pytest.raises(ConvertError, match="--order name"):
        ArchiveFrames(path)
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises((ArchiveError, ConvertError)):
        ArchiveFrames(path, "name")


# transforms.json


def edited(folder: Path, change) -> Path:
    path = folder / "transforms.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))
    return path


@pytest.fixture
def data(tmp_path) -> Path:
    return room.write_transforms(tmp_path / "data")


def _scale(meta):
    for row in meta["frames"][2]["transform_matrix"][:3]:
        row[:3] = [2 * value for value in row[:3]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_scale, "without scale"),
        (lambda m: m["frames"][1]["transform_matrix"][0].__setitem__(0, 1e300), r"frames\.1"),
        (lambda m: m["frames"][1]["transform_matrix"][3].__setitem__(3, 2), "last row"),
        (lambda m: m["frames"][1].update(file_path=m["frames"][0]["file_path"]), "twice"),
        (lambda m: m["frames"][1].update(file_path="images/../images/none.png"), "missing"),
        (lambda m: m.update(is_fisheye=True), "is_fisheye"),
        (lambda m: m.update(k5=0.1), "k5"),
        (lambda m: m.update(fl_x=-90), "greater than 0"),
        (lambda m: m.update(cx=900), r"transforms\.json, images/frame_\d+\.png: .* outside"),
        (lambda m: m.update(cx=0.5, cy=0.5), "in pixels"),
        (lambda m: m.update(w=160.5), "whole"),
        (lambda m: m.update(train_filenames=["images/none.png"]), "no frame of it"),
        (lambda m: m.update(camera_angle_x=2.0), r"fl_x 90 and camera_angle_x 2, which makes 51\.4 of 160 pixels"),
        (lambda m: m.update(camera_angle_y=0.2), "camera_angle_y 0.2"),
        (lambda m: m["frames"][1].update(camera_angle_x=2.0, fl_x=90.0, fl_y=90.0), "camera_angle_x 2"),
        (lambda m: m["frames"][1].update(fl_x=45.0), "fl_x for itself and fl_y for all frames"),
        (lambda m: m["frames"][1].update(w=320, h=180), "w for itself and fl_x for all frames"),
        (lambda m: m["frames"][1].update(w=320, fl_x=180.0, fl_y=180.0), "w for itself and h for all frames"),
        (
            lambda m: m["frames"][1].update(w=320, h=180, fl_x=180.0, fl_y=180.0),
            "w for itself and cx for all frames",
        ),
        (lambda m: m["frames"][1].update(cx=81.0), "cx for itself and cy for all frames"),
        (lambda m: m["frames"][1].update(file_path="a" * 4000 + ".png"), "missing"),
        (lambda m: m["frames"][1].update(file_path="a\0.png"), "missing"),
        (lambda m: m["frames"][1].update(file_path="a\nb\x1b.png"), r"a\\nb\\x1b\.png is missing"),
        (lambda m: m.update(distortion_params=[0.3, 0, 0, 0, 0, 0]), "another distortion than k1"),
        (lambda m: m.update(distortion_params=[0.3, 0]), "distortion_params: should have at least 6"),
        (lambda m: m.update(camera_model="EQUIRECTANGULAR"), "EQUIRECTANGULAR, which is not known"),
        (lambda m: m.update(ply_file_path="../../none.ply"), "none.ply is missing"),
        (lambda m: m.update(ply_file_path="transforms.json"), "is no PLY file"),
    ],
)
def test_what_is_wrong_in_a_transforms_file_is_named(data, change, said):
    with pytest.raises((ConvertError, CameraError), match=said):
        read_nerfstudio(edited(data, change), "number")


def test_distortion_in_one_list_is_distortion(data):
    plain = read_nerfstudio(data, "number")[0].cameras[3]

    def change(meta):
        meta["distortion_params"] = [meta.pop("k1"), meta.pop("k2"), 0, 0, meta.pop("p1"), meta.pop("p2")]
        meta["frames"][0]["distortion_params"] = [0.1, 0, 0, 0, 0, 0]
        meta["frames"][1]["k1"] = 0.2

    cameras = read_nerfstudio(edited(data, change), "number")[0].cameras
    assert cameras[3] == plain and cameras[-1].params[4:] == (0.1, 0, 0, 0)
    assert cameras[-2].params[4:] == (0.2, *plain.params[5:])


def test_a_pipe_for_points_is_not_waited_for(data):
    os.mkfifo(data / "pipe.ply")
    with pytest.raises(ConvertError, match="no ordinary file"):
        read_nerfstudio(data, "number", data / "pipe.ply")


def test_fisheye_paths_of_windows_and_files_beside_the_frames(data):
    def change(meta):
        for key in ("camera_model", "p1", "p2", "k1", "k2"):
            meta.pop(key)
        meta |= {"is_fisheye": True, "k1": 0.02, "k3": 0.01}
        for frame in meta["frames"]:
            frame["file_path"] = "./" + frame["file_path"].replace("/", "\\").removesuffix(".png")

    for number in room.numbers():
        Image.new("L", (160, 90)).save(data / "images" / f"frame_{number:010d}_mask.png")
    posed, source = read_nerfstudio(edited(data, change), "number")
    assert posed.cameras[0].model == "OPENCV_FISHEYE" and posed.cameras[0].params[4:] == (0.02, 0.0, 0.01, 0.0)
    assert source.numbers == sorted(room.every_pose()) and posed.numbers.tolist() == room.numbers()


def _agreeing(meta):
    meta |= {"camera_angle_x": 2 * math.atan(80 / 90), "camera_angle_y": 2 * math.atan(45 / 90)}
    for frame in meta["frames"][:4]:
        frame |= {key: meta[key] for key in ("w", "h", "fl_x", "fl_y")}


def _larger(meta):
    meta["frames"][1] |= {"w": 320, "h": 180, "fl_x": 180.0, "fl_y": 180.0, "cx": 160.0, "cy": 90.0}


@pytest.mark.parametrize("change", [_agreeing, _larger, lambda m: m["frames"][1].update(w=m["w"], h=m["h"])])
def test_what_frames_and_the_whole_file_say_may_agree(data, change):
    posed, _ = read_nerfstudio(edited(data, change), "number")
    assert len(posed.numbers) == room.COUNT


FORMS = {
    "capitals": (str.upper, str.lower),
    "two characters": (lambda name: f"ku\u0308che_{name}", lambda name: f"k\u00fcche_{name}"),
    "one character": (lambda name: f"k\u00fcche_{name}", lambda name: f"ku\u0308che_{name}"),
    "an address": (lambda name: f"my k\u00fcche {name}", lambda name: f"my%20k%C3%BCche%20{name}"),
    "no address": (lambda name: f"my%20{name}", lambda name: f"my {name}"),
    "no suffix": (lambda name: name.replace(".png", ".PNG"), lambda name: name.removesuffix(".png")),
}


@pytest.mark.parametrize("form", FORMS)
def test_pictures_are_found_whatever_machine_has_named_them(data, form):
    """On a Mac, on Windows and in an address these names are one."""
    there, said = FORMS[form]
    for path in sorted((data / "images").iterdir()):
        path.rename(path.with_name(there(path.name)))

    def change(meta):
        for frame in meta["frames"]:
            frame["file_path"] = "Images/" + said(Path(frame["file_path"]).name)

    posed, source = read_nerfstudio(edited(data, change), "number")
    assert posed.numbers.tolist() == room.numbers() and source.size_of(room.FIRST) == (room.WIDTH, room.HEIGHT)
    if form == "no suffix":
        return
    names = {f"a/{there('frame_1.png')}": 99}
    assert FrameNames(names).number(said("frame_1.png")) == 99
    names[f"b/{there('frame_1.png')}"] = 98
    assert FrameNames(names).number(said("frame_1.png")) is None
    assert FrameNames(names).number("b\\" + said("frame_1.png")) == 98
    assert frames_among([there("f_1.png"), "f_1_mask.png"], {said("f_1.png")}, "number") == [there("f_1.png")]


def test_some_of_the_names_are_those_of_an_address():
    there = ["f_1.png", "a b_2.png", "a b_2_mask.png"]
    assert frames_among(there, {"f_1.png", "a%20b_2.png"}, "number") == there[:2]
    assert number_names(["IMG%209.png", "IMG%2010.png"], "number", Path()) == {"IMG%209.png": 9, "IMG%2010.png": 10}


@pytest.mark.parametrize("above", ["/home/me/kitchen/", "C:\\Users\\me\\kitchen\\"])
def test_whole_paths_of_another_machine_lead_beside_the_file(data, above):
    def change(meta):
        for frame in meta["frames"]:
            name = frame["file_path"]
            frame["file_path"] = above + (name.replace("/", "\\") if "\\" in above else name)
        names = [frame["file_path"] for frame in meta["frames"]]
        meta |= {"train_filenames": names[:-2], "val_filenames": names[-2:-1], "test_filenames": names[-1:]}

    path = edited(data, change)
    posed, _ = read_nerfstudio(path, "number")
    assert posed.numbers.tolist() == room.numbers() and "those beside it are taken" in posed.notes[0]
    (data / "images" / f"frame_{room.FIRST:010d}.png").unlink()
    with pytest.raises(ConvertError, match="is missing, which"):
        read_nerfstudio(path, "number")


def test_a_folder_without_its_file_tells_what_is_there(data):
    (data / "transforms.json").rename(data / "transforms_train.json")
    with pytest.raises(ConvertError, match=r"is missing: give the file itself \(there are transforms_train\.json\)"):
        read_nerfstudio(data, "number")
    with pytest.raises(ConvertError, match="is a folder: give the JSON file"):
        read_epic_fields(data)


@pytest.mark.parametrize(("encoding", "letter"), [("ascii", r"\xfc"), ("cp1252", "\u00fc")])
def test_names_are_shown_in_any_encoding(data, tmp_path, encoding, letter):
    """A pipe of Windows has cp1252, one of a bare container ASCII."""
    output = tmp_path / "k\u00fcche \u2192 \u53a8\u623f"
    words = ["convert", "nerfstudio", str(data), str(output), "--video-width", "0"]
    line = f"import sys; from divff_nerfstudio.cli import main; sys.exit(main({words!r}))"
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", line], env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    said = "".join(done.stdout.decode(encoding).split())
    assert f"k{letter}che\\u2192\\u53a8\\u623f" in said and (output / "meta.json").is_file()


def test_cameras_that_filmed_at_one_time_are_said(tmp_path):
    folder = room.write_colmap(tmp_path / "model", name="left/frame_{:010d}.png")
    frames = room.write_frames(tmp_path / "images" / "left", only=room.numbers())
    source = FolderFrames.of_folder(frames.parent, "name")
    assert not posed_by(read_model(folder), source, "name").notes
    path = folder / "images.txt"
    lines = path.read_text().splitlines()
    last = next(i for i in reversed(range(len(lines))) if "left/" in lines[i])
    lines[last] = " ".join([*lines[last].split()[:-1], f"right/frame_{room.FIRST:010d}.png"])
    path.write_text("\n".join(lines) + "\n")
    (frames.parent / "right").mkdir()
    (frames / f"frame_{room.numbers()[-1]:010d}.png").rename(frames.parent / "right" / f"frame_{room.FIRST:010d}.png")
    source = FolderFrames.of_folder(frames.parent, "name")
    (note,) = posed_by(read_model(folder), source, "name").notes
    assert "2 folders (left, right) are taken for one video" in note


def test_points_are_not_needed_where_near_and_far_are_known(data, tmp_path):
    edited(data, lambda m: m.update(ply_file_path="none.ply", fisheye_crop_radius=50.0))
    assert (
        convert(["nerfstudio", str(data)], tmp_path / "scene", "--video-width", "0", "--near", "1", "--far", "9") == 0
    )
    assert any("fisheye_crop_radius" in note for note in read_nerfstudio(data, "number", bounded=True)[0].notes)


def test_masks_and_depths_beside_the_frames_are_said_to_be_unused(data):
    assert not any("mask" in note for note in read_nerfstudio(data, "number")[0].notes)

    def change(meta):
        meta["frames"][0] |= {"mask_path": "masks/1.png", "depth_file_path": "depths/1.png"}

    (note,) = (note for note in read_nerfstudio(edited(data, change), "number")[0].notes if "mask" in note)
    assert "mask_path and depth_file_path of its frames are not used" in note


def test_frames_that_no_list_names_are_left_out_and_told(data):
    def change(meta):
        names = sorted(frame["file_path"] for frame in meta["frames"])
        meta |= {"train_filenames": names[:6], "val_filenames": names[8:10], "test_filenames": names[10:]}

    posed = read_nerfstudio(edited(data, change), "number")[0]
    assert len(posed.numbers) == 10 and any("2 of its frames are in none of its lists" in note for note in posed.notes)


def test_splits_and_times_of_the_data_set_are_used(data, tmp_path):
    times = [0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 1.0]

    def change(meta):
        frames = sorted(meta["frames"], key=lambda frame: frame["file_path"])
        names = [frame["file_path"] for frame in frames]
        meta |= {"train_filenames": names[:8], "val_filenames": names[8:10], "test_filenames": names[10:]}
        for frame, time in zip(frames, times, strict=True):
            frame["time"] = time

    edited(data, change)
    assert convert(["nerfstudio", str(data)], tmp_path / "scene", "--video-width", "0") == 0
    scene = load_scene(tmp_path / "scene")
    assert {split: list(found) for split, found in scene.splits.items()} == {
        "train": list(range(8)), "val": [8, 9], "test": [10, 11],
    }  # fmt: skip
    assert np.allclose(scene.times(), times, atol=1e-6)


def test_times_that_cannot_be_used_and_lists_that_lack_some():
    assert ids_of(None, 3).tolist() == [0, 1, 2]
    assert ids_of(np.array([5.0, 5.5, 7.0]), 3).tolist() == [0, 1, 4]
    assert usable_times(np.array([0.0, 1, 1])) == "two frames have the same"
    assert "ascend" in str(usable_times(np.array([0.0, 2, 1])))
    assert "differ" in str(usable_times(np.array([0.0, 1e-9, 1])))
    assert named_splits({"train": [1, 2], "val": [3, 4]}, HERE)[0] == {1: "train", 2: "train", 3: "val", 4: "test"}
    assert named_splits({"train": [1, 2], "val": [3]}, HERE)[0] is None
    same = named_splits({"train": [1, 2], "val": [3, 4], "test": [4, 3]}, HERE)  # as many scripts write it
    assert same[0] == {1: "train", 2: "train", 3: "test", 4: "val"} and "every other frame" in same[1][0]
    for listed in ({"train": [1], "val": [1]}, {"train": [1, 2], "val": [3, 4], "test": [4, 5]}):
        with pytest.raises(ConvertError, match="leave it in one"):
            named_splits(listed, HERE)


@pytest.mark.parametrize(("size", "said"), [((90, 90), "cropped"), ((90, 160), "shown turned by a quarter")])
def test_pictures_of_another_shape_are_refused_before_anything_is_written(tmp_path, capsys, size, said):
    frames = room.write_frames(tmp_path / "images", only=room.numbers())
    Image.new("RGB", size).save(frames / f"frame_{room.numbers()[-1]:010d}.png")
    assert convert(as_colmap(tmp_path, frames), tmp_path / "scene") == 1
    found = " ".join(capsys.readouterr().err.split())
    assert said in found and f"Frame {room.numbers()[-1]} of" in found
    assert not list((tmp_path).rglob("IMG_*")) and not (tmp_path / "scene").exists()


def test_pictures_of_another_shape_without_a_pose_are_left_out_and_told(tmp_path, capsys):
    frames = room.write_frames(tmp_path / "images")
    odd = next(n for n in sorted(room.every_pose()) if n not in room.numbers() and n > room.numbers()[0])
    Image.new("RGB", (90, 160)).save(frames / f"frame_{odd:010d}.png")
    assert convert(as_colmap(tmp_path, frames), tmp_path / "scene") == 0
    assert f"frame {odd} first, and are left out" in " ".join(capsys.readouterr().out.split())
    scene = load_scene(tmp_path / "scene")
    assert odd not in scene.video_numbers_available and len(scene.video_numbers_available) > len(scene)


def test_frames_of_a_video_are_numbered_from_one(tmp_path):
    """A frame 0 would leave all poses off by one."""
    model = read_model(room.write_colmap(tmp_path / "m", name="{:05d}.png"))
    names = [f"{number - room.numbers()[0]:05d}.png" for number in room.numbers()]
    numbered = replace(model, images=replace(model.images, names=names))
    with pytest.raises(ConvertError, match=r"frame 0, where the first of .*clip\.mp4 is 1"):
        posed_by(numbered, VideoFrames(tmp_path / "clip.mp4"), "number")


def test_a_compressed_archive_in_another_order_is_refused_where_it_would_take_hours(tmp_path, monkeypatch):
    picture = io.BytesIO()
    Image.new("RGB", (8, 6), (9, 8, 7)).save(picture, "PNG")
    for kind in ("tar", "tar.gz"):
        with tarfile.open(tmp_path / f"frames.{kind}", "w:gz" if kind.endswith("gz") else "w") as archive:
            for number in (3, 1, 2):
                info = tarfile.TarInfo(f"{number:05d}.png")
                info.size = len(picture.getvalue())
                archive.addfile(info, io.BytesIO(picture.getvalue()))
    assert ArchiveFrames(tmp_path / "frames.tar.gz").numbers == [1, 2, 3]
    monkeypatch.setattr(pictures, "_FEW", 2)
    assert ArchiveFrames(tmp_path / "frames.tar").numbers == [1, 2, 3]
    with pytest.raises(ConvertError, match=r"in another order .*: unpack it"):
        ArchiveFrames(tmp_path / "frames.tar.gz")


def test_compression_keeps_hues_and_what_is_below_the_knee():
    light = np.array([[0.8, 0.2, 0.1], [3.0, 1.5, 0.3]])
    found = compressed(light)
    assert np.allclose(found[0], light[0]) and 0.9 < found[1, 0] < 1
    assert np.allclose(found[1] / found[1, 0], light[1] / light[1, 0])


@pytest.mark.parametrize("transfer", ["arib-std-b67", "smpte2084"])
def test_hdr_videos_look_as_on_a_screen(tmp_path, transfer):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32], picture[32:] = 250, (200, 40, 40)
    Image.fromarray(picture).save(tmp_path / "a.png")
    convert = f"zscale=pin=709:tin=709:min=gbr:rin=full:p=2020:t={transfer}:m=2020_ncl:r=tv:npl=203,format=yuv420p10le"
    line = ["-y", "-loglevel", "error", "-loop", "1", "-i", str(tmp_path / "a.png"), "-frames:v", "2", "-vf", convert]
    coded = ["-c:v", "libx265", "-crf", "4", "-x265-params", "log-level=error", str(tmp_path / "a.mp4")]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *line, *coded], check=True)
    _, found = next(iter(VideoFrames(tmp_path / "a.mp4").read([1])))
    assert np.abs(found[16, 32].astype(int) - 250).max() < 8
    assert np.abs(found[48, 32].astype(int) - (200, 40, 40)).max() < 8


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><body>Sign in to download</body></html>\n"


@pytest.mark.parametrize(("content", "said"), [(POINTER, "git lfs pull"), (PAGE, "is a web page")])
def test_what_a_download_left_in_a_files_place_is_named(tmp_path, data, content, said):
    """Pointers of Git LFS and pages that ask to sign in have the names of what was wanted."""
    model = room.write_colmap(tmp_path / "m")
    for name in ("cameras", "images", "points3D"):
        (model / f"{name}.txt").unlink()
        (model / f"{name}.bin").write_bytes(content)
    names = ("a.png", "a.json", "a.ply", "a.tar", "a.ckpt", "a.mp4", "a")
    files = {name: tmp_path / name for name in names}
    for path in files.values():
        path.write_bytes(content)
    attempts = {
        model / "cameras.bin": lambda: read_model(model),
        files["a.png"]: lambda: FolderFrames(tmp_path, {1: files["a.png"]}).size_of(1),
        files["a.json"]: lambda: read_epic_fields(files["a.json"]),
        files["a.ply"]: lambda: read_nerfstudio(data, "number", files["a.ply"]),
        files["a.tar"]: lambda: ArchiveFrames(files["a.tar"]),
        files["a.ckpt"]: lambda: read_checkpoint(files["a.ckpt"]),
        files["a.mp4"]: lambda: VideoFrames(files["a.mp4"]).size_of(1),
        files["a"]: lambda: open_frames(files["a"]),
    }
    for path, attempt in attempts.items():
        with pytest.raises(DivffError) as error:
            attempt()
        assert str(error.value).startswith(f"{path} is a") and said in str(error.value)


def test_what_stands_in_for_a_file_is_no_pipe_and_no_text(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("see https://git-lfs.github.com/spec/v1 and <html>")
    assert stand_in(tmp_path / "pipe") is stand_in(tmp_path / "text") is stand_in(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("change", "narrow"),
    [
        (lambda m: m.update(k1=-44.85, k2=1017.4), True),
        (lambda m: [f.update(fl_x=400.0, fl_y=400.0) for f in m["frames"][:2]], True),
        (lambda m: m.update(k1=-0.3), False),
    ],
)
def test_a_view_that_distortion_or_zoom_leaves_little_of_is_told(data, tmp_path, capsys, change, narrow):
    edited(data, change)
    assert convert(["nerfstudio", str(data)], tmp_path / "scene", "--video-width", "0") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("the frames' view spans" in said) == narrow


@pytest.mark.parametrize("suffix", [".flv", ".OGV", ".h264", ".mxf"])
def test_videos_are_known_by_more_names(tmp_path, suffix):
    path = tmp_path / f"take{suffix}"
    path.touch()
    assert isinstance(open_frames(path), VideoFrames)


def test_a_folder_in_the_files_place_is_not_named_as_the_file(data):
    (data / "transforms.json").unlink()
    (data / "transforms.json").mkdir()
    with pytest.raises(ConvertError, match=r"transforms\.json is missing: give the file itself\."):
        read_nerfstudio(data, "number")
