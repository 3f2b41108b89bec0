"""Videos: frames chosen by motion and sharpness, masks of hands, poses by COLMAP, clips cut and compared."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import tarfile
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import imageio_ffmpeg
import numpy as np
import pytest
import room
from PIL import Image
from scipy.spatial.transform import Rotation
from test_convert import convert

from divff_nerfstudio.cli import convert as command
from divff_nerfstudio.cli import main
from divff_nerfstudio.convert import alignment
from divff_nerfstudio.convert.hands import open_hands
from divff_nerfstudio.convert.keyframes import choose, measure
from divff_nerfstudio.convert.names import ConvertError, natural_key
from divff_nerfstudio.convert.pictures import ArchiveFrames, VideoFrames, open_frames
from divff_nerfstudio.convert.structure import StructureFromMotion
from divff_nerfstudio.data.detections import DetectionsError
from divff_nerfstudio.data.scene import SceneError, load_scene
from divff_nerfstudio.demo_scene import DemoSceneConfig


def write_video(path: Path, pictures: list[np.ndarray], rate: int = 25, pixel: Fraction = Fraction(1)) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 40_000_000
        stream.codec_context.sample_aspect_ratio = pixel
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def shift(number: int) -> np.ndarray:
    """A frame of a long strip, of which each shows a part further to the right."""
    random = np.random.default_rng(3)
    strip = cv2.resize(
        random.integers(0, 256, (18, 400, 3), dtype=np.uint8), (3200, 144), interpolation=cv2.INTER_CUBIC
    )
    return np.ascontiguousarray(strip[:, 4 * number : 4 * number + 256])


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "strip.mp4", [shift(number) for number in range(1, 121)])


def test_frames_of_a_video_are_counted_from_one(video):
    frames = dict(VideoFrames(video).read([1, 60, 120]))
    assert sorted(frames) == [1, 60, 120]
    for number, picture in frames.items():
        assert np.abs(picture.astype(float) - shift(number)).mean() < 8
        assert np.abs(picture.astype(float) - shift(number + 1)).mean() > 10
    with pytest.raises(ConvertError, match=r"has 120 frames, and frame 121 .*--last 120"):
        list(VideoFrames(video).read([121]))
    assert [number for number, _ in VideoFrames(video).read_until_end([119, 120, 121])] == [119, 120]


@pytest.mark.parametrize("spoil", [lambda content: content[: len(content) // 3], lambda content: b"no video" * 99])
def test_a_damaged_video_is_one_sentence(tmp_path, video, spoil):
    path = tmp_path / "broken.mp4"
    path.write_bytes(spoil(video.read_bytes()))
    with pytest.raises(ConvertError, match=r"broken\.mp4"):
        list(VideoFrames(path).decode())
    with pytest.raises(ConvertError, match="missing"):
        list(VideoFrames(tmp_path / "none.mp4").decode())


@pytest.mark.parametrize(
    ("pixel", "size"), [(Fraction(4, 3), (341, 144)), (Fraction(3, 4), (256, 192)), (Fraction(1), (256, 144))]
)
def test_pixels_are_as_high_as_wide(tmp_path, pixel, size):
    """A video is shown so; frames that ffmpeg has cut for a reconstruction are as stored."""
    video = VideoFrames(write_video(tmp_path / "a.mp4", [shift(1), shift(2)], pixel=pixel))
    (_, picture), (_, stored) = *video.read([1]), *VideoFrames(video.path, square=False).read([1])
    assert video.size_of(1) == (picture.shape[1], picture.shape[0]) == size and stored.shape == (144, 256, 3)
    again = cv2.resize(picture, (256, 144), interpolation=cv2.INTER_AREA)
    assert np.abs(again.astype(float) - stored).mean() < 8  # colours are stored at half the size
    assert video.shaped_as([(256, 144), (512, 288)]).size_of(1) == (256, 144)
    assert video.shaped_as([size]).size_of(1) == video.shaped_as([size, (256, 100)]).size_of(1) == size


def ffmpeg(path: Path, *words: str | Path) -> Path:
    """What the program makes of its words, the file among them being the last."""
    line = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *map(str, words), str(path)]
    subprocess.run(line, check=True)
    return path


H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "8")


def test_pixels_beyond_reason_and_two_moments_in_a_frame_are_refused(tmp_path, video):
    path = write_video(tmp_path / "long.mp4", [shift(1)], pixel=Fraction(30, 1))
    with pytest.raises(ConvertError, match=r"30 times as wide as high: .*setsar=1"):
        VideoFrames(path).size_of(1)
    path = ffmpeg(tmp_path / "lines.mp4", "-i", video, "-vf", "setfield=tff", *H264, "-flags", "+ilme+ildct")
    with pytest.raises(ConvertError, match=r"interlaced, its frame 1 .*bwdif"):
        VideoFrames(path).size_of(1)


TURNS = {
    ("-display_rotation", "90"): lambda picture: np.rot90(picture, 1),
    ("-display_rotation", "180"): lambda picture: np.rot90(picture, 2),
    ("-display_rotation", "270"): lambda picture: np.rot90(picture, 3),
    ("-display_hflip",): lambda picture: picture[:, ::-1],
    ("-display_vflip",): lambda picture: picture[::-1],
    ("-display_rotation", "90", "-display_hflip"): lambda picture: np.rot90(picture, 1)[:, ::-1],
}


@pytest.mark.parametrize("turn", TURNS, ids=" ".join)
def test_pictures_are_turned_and_mirrored_as_they_are_shown(tmp_path, video, turn):
    """By quarters, as ffmpeg does when it cuts frames."""
    path = ffmpeg(tmp_path / "turned.mp4", *turn, "-i", video, "-c", "copy")
    (_, stored), (_, shown) = *VideoFrames(video).read([7]), *VideoFrames(path).read([7])
    assert np.array_equal(shown, TURNS[turn](stored))
    cut = ffmpeg(tmp_path / "cut.png", "-i", path, "-vf", "select=eq(n\\,6)", "-frames:v", "1")
    assert np.abs(np.asarray(Image.open(cut).convert("RGB")).astype(float) - shown).mean() < 3


def test_what_a_video_shows_is_no_cover_and_no_preview(tmp_path, video):
    still = ffmpeg(tmp_path / "still.png", "-i", video, "-frames:v", "1")
    (_, stored), *_ = VideoFrames(video).read([9])
    streams = {"cover.mkv": ("-c:v:0", "png", "-c:v:1", "copy"), "cover.mp4": ("-c:v:0", "mjpeg", "-c:v:1", "copy")}
    for name, codecs in streams.items():
        path = ffmpeg(tmp_path / name, "-i", still, "-i", video, "-map", "0", "-map", "1", *codecs)
        assert np.array_equal(next(VideoFrames(path).read([9]))[1], stored), name
    small = ("-map", "0", "-map", "0", "-c:v:0", "mpeg4", "-filter:v:0", "scale=64:36", "-c:v:1", "copy")
    path = ffmpeg(tmp_path / "preview.mp4", "-i", video, *small)
    assert np.array_equal(next(VideoFrames(path).read([9]))[1], stored)


def test_a_cut_without_new_coding_is_whole_and_damage_inside_is_not(tmp_path, video):
    coded = ffmpeg(tmp_path / "coded.mp4", "-i", video, *H264, "-g", "120")
    cut = ffmpeg(tmp_path / "cut.mp4", "-ss", "2", "-i", coded, "-c", "copy")
    assert 60 < len(list(VideoFrames(cut).decode())) <= 71
    content = bytearray(coded.read_bytes())
    for tenth in range(3, 9):
        place = len(content) * tenth // 10
        content[place : place + 300] = bytes(300)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(content)
    with pytest.raises(ConvertError, match=r"broken\.mp4 is damaged"):
        list(VideoFrames(broken).decode())
    turned = ffmpeg(tmp_path / "turned.mp4", "-display_rotation", "30", "-i", video, "-c", "copy")
    with pytest.raises(ConvertError, match=r"turned\.mp4 is to be shown turned by less than a quarter"):
        VideoFrames(turned).size_of(1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only where there are such files")
def test_a_pipe_in_place_of_a_video_does_not_hang(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert main(["convert", "video", str(tmp_path / "pipe.mp4"), str(tmp_path / "scene")]) == 1
    assert "pipe.mp4" in capsys.readouterr().err


def test_measures_see_motion_and_blur():
    """Frames 4 pixels of 256 apart; one in the middle is blurred, then nothing moves."""
    pictures = [shift(number) for number in range(1, 9)] + [shift(8)] * 4
    pictures[4] = cv2.GaussianBlur(pictures[4], (31, 31), 5)
    frames = [(i, av.VideoFrame.from_ndarray(picture, format="rgb24")) for i, picture in enumerate(pictures, 1)]
    motion, sharpness = measure(frames).T
    assert motion[[1, 2, 3, 7]] == pytest.approx(4 / 256, rel=0.1)
    assert (motion[8:] < 0.001).all()
    assert np.argmin(sharpness) == 4 and sharpness[4] < 0.6 * sharpness[3]


def test_chosen_frames_are_even_in_motion_and_sharp():
    motion = np.concatenate((np.full(100, 0.001), np.full(100, 0.02)))
    sharpness = np.where(np.arange(200) % 5 == 2, 10.0, 1.0)
    chosen = choose(np.stack((motion, sharpness), 1), 20)
    assert len(chosen) == 20 and (np.diff(chosen) > 0).all()
    assert 15 <= (chosen > 100).sum() <= 19
    assert (sharpness[chosen - 1] == 10).mean() >= 0.9
    assert choose(np.stack((motion, sharpness), 1), 500).tolist() == list(range(1, 201))


def test_a_video_that_does_not_move_is_refused(tmp_path, capsys):
    path = write_video(tmp_path / "still.mp4", [shift(1)] * 30)
    assert convert(["video", str(path)], tmp_path / "scene") == 1
    assert "hardly moves" in capsys.readouterr().err


def test_a_stretch_without_frames_is_not_said_to_rest(tmp_path, video, capsys):
    assert convert(["video", str(video)], tmp_path / "scene", "--first", "115") == 1
    assert "has 6 of the frames that are asked for where 10 are needed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["clip.mts", "clip.M2TS", "clip.3gp"])
def test_videos_of_cameras_are_known_by_their_names(tmp_path, video, name):
    path = tmp_path / name
    path.write_bytes(video.read_bytes())
    source = open_frames(path)
    assert isinstance(source, VideoFrames) and source.size_of(1) == VideoFrames(video).size_of(1)


def test_what_is_no_whole_video_of_one_size_is_told(tmp_path):
    """Lists of other files, drawings, Matroska that was cut short, and pictures that change their size."""
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i"]

    def made(name: str, size: str = "160x90") -> Path:
        source, codec = f"testsrc=size={size}:rate=10:duration=6", ("-c:v", "mpeg2video", "-g", "5")
        subprocess.run([*ffmpeg, source, *codec, str(tmp_path / name)], check=True)
        return tmp_path / name

    def told(path: Path) -> str:
        with pytest.raises(ConvertError) as error:
            list(VideoFrames(path).read_until_end(range(1, 1000)))
        return str(error.value)

    part, other, matroska = made("part.ts"), made("other.ts", "320x180"), made("film.mkv")
    assert len(list(VideoFrames(matroska).read_until_end(range(1, 1000)))) == 60
    matroska.write_bytes(matroska.read_bytes()[: matroska.stat().st_size // 2])
    assert re.search(r"film\.mkv says that it is 6\.0 s long, and its pictures end at [123]\.\d s", told(matroska))
    part.write_bytes(part.read_bytes() + other.read_bytes())
    assert "changes from 160x90 to 320x180 at its frame" in told(part)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile other.ts\n")
    assert "a list of others" in told(tmp_path / "list.mp4")
    (tmp_path / "drawing.mp4").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    assert "no pictures in it that can be decoded" in told(tmp_path / "drawing.mp4")


def test_hands_are_masked_by_boxes_and_by_pictures(tmp_path):
    detections = [
        {"frame_number": "0000000007", "left_hand": [100, 50, 150, 90], "right_hand": None, "objects": []},
        {"frame_number": "0000000008", "left_hand": None, "right_hand": None, "objects": [[0, 0, 9, 9]]},
    ]
    path = tmp_path / "hand_obj_detections.json"
    path.write_text(json.dumps(detections))
    mask = open_hands(path)
    hidden = mask(7, 912, 512)
    rows, columns = np.nonzero(hidden)
    assert (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1) == (184, 316, 84, 196)
    assert not mask(8, 912, 512).any() and not mask(99, 912, 512).any()
    folder = tmp_path / "masks"
    folder.mkdir()
    Image.fromarray(np.array([[0, 9]], np.uint8)).save(folder / "mask_0000000007.png")
    assert open_hands(folder)(7, 8, 4).tolist() == [[False] * 4 + [True] * 4] * 4
    assert not open_hands(folder)(8, 8, 4).any()
    drawn = np.zeros((64, 128), np.uint8)
    drawn[:, 64:] = 255
    Image.fromarray(drawn).convert("1").save(folder / "mask_0000000008.png")
    Image.fromarray(drawn).save(folder / "mask_0000000009.jpg", quality=30)  # with noise around the edge
    for number in (8, 9):
        assert np.array_equal(open_hands(folder)(number, 128, 64), drawn > 0)
    with pytest.raises(ConvertError, match=r"mask_0000000008\.png is 128x64, which is not the shape .*64x128"):
        open_hands(folder)(8, 64, 128)
    for wrong, said in (
        ([1, 2], "left_hand"),
        ([*detections, detections[0]], "frame 7 twice"),
        ([{"frame_number": 1, "left_hand": [0, 0, 1920, 1080]}], "outside of pictures of 456x256: scale them"),
        ([{"frame_number": 1, "left_hand": [9, 9, 3, 3]}], "ends before it begins"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(DetectionsError, match=said):
            open_hands(path)
    with pytest.raises(ConvertError, match="missing"):
        open_hands(tmp_path / "none.json")


def test_masks_of_hands_may_have_any_palette(tmp_path):
    """Only what is black matters, not where it stands among the colours."""
    places = np.zeros((4, 8), np.uint8)
    places[:, 4:] = 3
    picture = Image.fromarray(places, "P")
    for palette, hidden in (
        ([200, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0], places == 0),
        ([0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 255], places == 3),
        ([0] * 12, np.zeros((4, 8), bool)),
    ):
        picture.putpalette(palette)
        picture.save(tmp_path / "mask_1.png")
        assert np.array_equal(open_hands(tmp_path)(1, 8, 4), hidden)


def test_masks_of_hands_may_be_of_anamorphic_pictures_as_they_are_stored(tmp_path):
    drawn = np.zeros((576, 720), np.uint8)
    drawn[:, 360:] = 255
    Image.fromarray(drawn).save(tmp_path / "mask_1.png")
    hidden = open_hands(tmp_path, (720, 576))(1, 1024, 576)
    assert not hidden[:, :512].any() and hidden[:, 512:].all()
    with pytest.raises(ConvertError, match="not the shape"):
        open_hands(tmp_path)(1, 1024, 576)


def test_a_converted_anamorphic_video_takes_masks_as_they_are_stored(tmp_path):
    path = write_video(tmp_path / "film.mp4", [shift(3 * number) for number in range(30)], pixel=Fraction(4, 3))
    (tmp_path / "hands").mkdir()
    for number in range(1, 31):
        Image.new("L", (256, 144), 255).save(tmp_path / "hands" / f"mask_{number}.png")
    (tmp_path / "work").mkdir()
    converted = command.VideoToScene(path, tmp_path / "scene", num_frames=10, hands=tmp_path / "hands")
    masks = converted._extract(VideoFrames(path), tmp_path / "work")
    assert masks is not None
    written = sorted(masks.iterdir())
    assert len(written) == 10
    with Image.open(written[0]) as mask:
        assert mask.size == (341, 144) and mask.getextrema() == (0, 0)


def test_labels_of_16_bits_a_colour_are_not_taken_for_black(tmp_path):
    """Pillow keeps the upper 8 bits, in which a label of 2 is 0; of a single channel it keeps all."""
    labels = np.zeros((4, 8), np.uint16)
    labels[:, 4:] = 2
    for suffix in ("png", "tiff"):
        path = tmp_path / suffix / f"mask_1.{suffix}"
        path.parent.mkdir()
        assert cv2.imwrite(str(path), np.stack([labels] * 3, 2))
        with pytest.raises(SceneError, match=rf"mask_1\.{suffix} has colours of 16 bits.*: save it as 8-bit RGB"):
            open_hands(path.parent)(1, 8, 4)
    (tmp_path / "grey").mkdir()
    Image.fromarray(labels).save(tmp_path / "grey" / "mask_1.png")
    assert np.array_equal(open_hands(tmp_path / "grey")(1, 8, 4), labels > 0)


def test_a_scene_of_a_video_is_opened_before_it_takes_its_place(tmp_path, video, monkeypatch, capsys):
    posed = SimpleNamespace(numbers=[1], selected=lambda *_: posed)
    monkeypatch.setattr(command, "StructureFromMotion", lambda *_: SimpleNamespace(run=lambda say: None))
    monkeypatch.setattr(command, "read_colmap", lambda *_: posed)
    monkeypatch.setattr(command, "write_scene", lambda folder, *_: ["a"][(folder / "meta.json").write_text("{") :])
    assert convert(["video", str(video)], tmp_path / "scene") == 1
    assert "meta.json" in capsys.readouterr().err
    assert not (tmp_path / "scene").exists()


def test_names_are_sorted_as_people_do():
    assert sorted(["b10.png", "b9.png", "a2.png"], key=natural_key) == ["a2.png", "b9.png", "b10.png"]


# The frames between the sampled ones.


def scene_of_strip(root: Path, first: int = 10, step: int = 6, count: int = 12) -> Path:
    """A scene whose sampled frames are the strip's frames of these numbers, at half their size."""
    numbers = [first + step * i for i in range(count)]
    (root / "frames").mkdir(parents=True)
    for number in numbers:
        Image.fromarray(shift(number)).resize((128, 72), Image.Resampling.BOX).save(
            root / "frames" / f"IMG_{number:010d}.bmp"
        )
    meta = {
        "ids_all": list(range(count)), "ids_train": list(range(2, count)), "ids_val": [1], "ids_test": [0],
        "images": {str(i): f"IMG_{number:010d}.bmp" for i, number in enumerate(numbers)},
        "poses": {str(i): pose.tolist() for i, pose in enumerate(room.poses(count))},
        "nears": dict.fromkeys(map(str, range(count)), 0.5), "fars": dict.fromkeys(map(str, range(count)), 3.0),
        "intrinsics": [[90.0, 0.0, 64.0], [0.0, 90.0, 36.0], [0.0, 0.0, 1.0]],
    }  # fmt: skip
    (root / "meta.json").write_text(json.dumps(meta))
    return root


def cut(source: Path, scene: Path, *options: str) -> int:
    return main(["convert", "video-frames", str(source), "--data", str(scene), *options])


def write_tar(path: Path, numbers: list[int], size: tuple[int, int] = (456, 256), off: int = 0) -> Path:
    folder = path.with_suffix(".frames")
    folder.mkdir()
    for number in numbers:
        picture = Image.fromarray(shift(number + off)).resize(size, Image.Resampling.BILINEAR)
        picture.save(folder / f"frame_{number:010d}.jpg", quality=90)
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.iterdir(), reverse=True):
            archive.add(file, f"./{file.name}")
    shutil.rmtree(folder)
    return path


def test_frames_are_cut_from_a_video(tmp_path, video, capsys):
    scene = scene_of_strip(tmp_path / "P01_01")
    assert cut(video, scene, "--margin", "4") == 0
    found = load_scene(scene)
    assert found.video_numbers_available.tolist() == list(range(6, 81))
    picture = found.video_frame(33)
    assert picture.shape == (256, 456, 3)
    expected = cv2.resize(shift(33), (456, 256), interpolation=cv2.INTER_AREA)
    assert np.abs(picture.astype(float) - expected).mean() < 8
    assert "in line" in " ".join(capsys.readouterr().out.split())
    assert cut(video, scene) == 1 and "--overwrite" in capsys.readouterr().err
    assert cut(video, scene, "--overwrite") == 0


def test_frames_of_an_archive_are_taken_as_they_are(tmp_path):
    scene = scene_of_strip(tmp_path / "P01_01")
    archive = write_tar(tmp_path / "P01_01.tar", list(range(1, 90)))
    assert cut(archive, scene, "--margin", "100") == 0
    found = load_scene(scene)
    assert found.video_numbers_available.tolist() == list(range(1, 90))
    assert (scene / "high_res_video" / "frame_0000000040.jpg").read_bytes() == ArchiveFrames(archive).content(40)


@pytest.mark.parametrize("off", [3, -5])
def test_frames_that_do_not_line_up_stop_with_the_offset(tmp_path, capsys, off):
    """The archive's frame n shows what the scene calls n + off."""
    scene = scene_of_strip(tmp_path / "P01_01")
    archive = write_tar(tmp_path / "P01_01.tar", list(range(6, 90)), size=(228, 128), off=off)
    assert cut(archive, scene) == 1
    shown = capsys.readouterr().err
    assert f"--offset {-off}" in shown and shown.count("\n") == 1
    assert sorted(path.name for path in scene.iterdir() if "video" in path.name) == []
    assert cut(archive, scene, "--offset", "2") == 1
    assert f"--offset {-off}" in capsys.readouterr().err
    assert cut(archive, scene, "--offset", str(-off)) == 0
    number = load_scene(scene).video_numbers_available[20]
    picture = load_scene(scene).video_frame(int(number))
    assert np.abs(picture.astype(float) - cv2.resize(shift(int(number)), (456, 256))).mean() < 12


def test_another_video_is_recognised_before_it_is_read_to_its_end(tmp_path, monkeypatch, capsys):
    scene = scene_of_strip(tmp_path / "P01_01", count=18, step=6)
    monkeypatch.setattr(alignment, "REACH", 8)
    other = write_video(tmp_path / "other.mp4", [shift(number)[::-1, ::-1] for number in range(1, 200)])
    assert cut(other, scene) == 1
    shown = capsys.readouterr()
    assert "does not show" in shown.err and not (scene / "high_res_video").exists()


def test_frames_of_one_number_are_no_frames_of_a_video(tmp_path, capsys):
    """Here numbers are the video's: another order is no remedy."""
    scene = scene_of_strip(tmp_path / "P01_01")
    (tmp_path / "frames").mkdir()
    for name in ("a_1.png", "b_1.png"):
        Image.fromarray(shift(1)).save(tmp_path / "frames" / name)
    assert cut(tmp_path / "frames", scene) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "two frames of number 1" in told and "name each by its number" in told and "--order" not in told


def test_gaps_and_ends_are_counted(tmp_path, capsys):
    scene = scene_of_strip(tmp_path / "P01_01")
    gap = write_tar(tmp_path / "gap.tar", [n for n in range(1, 90) if n not in (31, 32)], (228, 128))
    assert cut(gap, scene) == 1
    assert "lacks 2 of the 67 frames" in capsys.readouterr().err
    short = write_video(tmp_path / "short.mp4", [shift(number) for number in range(1, 61)])
    assert cut(short, scene) == 1
    assert "lacks 16 of the 67 frames" in capsys.readouterr().err
    assert not (scene / "high_res_video").exists()


def test_an_interrupted_cut_goes_on(tmp_path, video, monkeypatch):
    from divff_nerfstudio.cli.video_frames import VideoFramesOfScene

    scene = scene_of_strip(tmp_path / "P01_01")
    written: list[int] = []
    save = VideoFramesOfScene._save

    def saving(self, source, number, picture, path):
        if len(written) == 20:
            raise KeyboardInterrupt
        written.append(number)
        save(self, source, number, picture, path)

    monkeypatch.setattr(VideoFramesOfScene, "_save", saving)
    assert cut(video, scene) == 130
    assert not (scene / "high_res_video").exists()

    def going_on(self, source, number, picture, path):
        written.append(number)
        save(self, source, number, picture, path)

    monkeypatch.setattr(VideoFramesOfScene, "_save", going_on)
    assert cut(video, scene) == 0
    assert len(written) == len(set(written)) == len(load_scene(scene).video_numbers_available)


def test_sources_that_are_none(tmp_path, capsys):
    scene = scene_of_strip(tmp_path / "P01_01")
    (tmp_path / "text.tar").write_text("no archive")
    (tmp_path / "empty").mkdir()
    for source, said in (("text.tar", "no folder, tar"), ("empty", "no pictures"), ("none.mp4", "missing")):
        assert cut(tmp_path / source, scene) == 1
        assert said in capsys.readouterr().err
    with tarfile.open(tmp_path / "bare.tar", "w") as archive:
        archive.add(scene / "meta.json", "meta.json")
    with pytest.raises(ConvertError, match="no pictures"):
        open_frames(tmp_path / "bare.tar")


# Structure from motion.


class FakeSteps:
    """Counts its steps and reconstructs nothing but an empty model."""

    def __init__(self):
        self.done: list[str] = []
        self.fail: str | None = None

    def _do(self, name: str) -> None:
        self.done.append(name)
        if name == self.fail:
            raise ConvertError(f"{name} failed.")

    def features(self, images, masks, database, model):
        assert not list(database.parent.glob("database.db*"))
        database.write_bytes(b"features")
        self._do("features")

    def match(self, database, exhaustive):
        self._do("all" if exhaustive else "neighbours")

    def map(self, images, database, output):
        assert not any(output.iterdir())
        for name, count in (("0", 3), ("1", 7)):
            (output / name).mkdir()
            (output / name / "images.bin").write_bytes(count.to_bytes(8, "little"))
        self._do("map")


def test_steps_are_done_once_and_the_largest_model_is_taken(tmp_path, monkeypatch):
    steps = FakeSteps()
    monkeypatch.setattr(StructureFromMotion, "_steps", lambda self: steps)
    (tmp_path / "images").mkdir()
    motion = StructureFromMotion(tmp_path, tmp_path / "images", None, "OPENCV", "auto", "auto")
    for fail in ("features", "all", "map"):
        steps.fail = fail
        with pytest.raises(ConvertError, match=fail):
            motion.run(lambda text: None)
    steps.fail = None
    assert motion.run(lambda text: None) == tmp_path / "models" / "1"
    assert steps.done == ["features", "features", "all", "all", "map", "map"]
    motion.run(lambda text: None)
    assert len(steps.done) == 6


@pytest.mark.parametrize(
    ("told", "said"),
    [("E20261130 ERROR: failed to create sparse model", "give more or sharper frames"), ("bad_alloc", "mapper failed")],
)
def test_what_the_program_cannot_reconstruct_is_told_with_what_may_help(tmp_path, monkeypatch, told, said):
    program = tmp_path / "colmap"
    program.write_text(f'#!/bin/sh\ncase "$1" in mapper) echo "{told}"; exit 1;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "images").mkdir()
    motion = StructureFromMotion(tmp_path, tmp_path / "images", None, "OPENCV", "colmap", "auto")
    with pytest.raises(ConvertError, match=said):
        motion.run(lambda text: None)


def test_a_missing_program_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    motion = StructureFromMotion(tmp_path, tmp_path, None, "OPENCV", "colmap", "auto")
    with pytest.raises(ConvertError, match="apt-get install colmap"):
        motion.run(lambda text: None)


@pytest.fixture(scope="module")
def kitchen_video(tmp_path_factory) -> tuple[Path, Path]:
    """The demo's kitchen, and its video as MP4."""
    root = tmp_path_factory.mktemp("kitchen")
    DemoSceneConfig(root / "kitchen", num_frames=10, width=240, height=136, workers=2).main()
    paths = sorted((root / "kitchen" / "high_res_video").iterdir())
    return root / "kitchen", write_video(root / "kitchen.mp4", [np.array(Image.open(path)) for path in paths])


def aligned(found: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances, as shares of the path's extent, and angles in degrees of poses after the best similarity.

    The rotation is the mean of the cameras' own; scale and shift are then least squares of the positions.
    """
    turn = Rotation.from_matrix(truth[:, :, :3] @ found[:, :, :3].transpose(0, 2, 1)).mean()
    turned = found[:, :, 3] @ turn.as_matrix().T
    a, b = turned - turned.mean(0), truth[:, :, 3] - truth[:, :, 3].mean(0)
    scale = (a * b).sum() / (a * a).sum()
    extent = np.linalg.norm(np.ptp(truth[:, :, 3], axis=0))
    relative = turn.as_matrix() @ found[:, :, :3] @ truth[:, :, :3].transpose(0, 2, 1)
    return np.linalg.norm(scale * a - b, axis=1) / extent, np.degrees(Rotation.from_matrix(relative).magnitude())


@pytest.fixture
def repeatable_pycolmap(monkeypatch) -> None:
    """Has pycolmap draw the same numbers each time, in one thread: the order in which several end is left to chance."""
    import pycolmap

    geometry, mapping = pycolmap.TwoViewGeometryOptions(), pycolmap.IncrementalPipelineOptions(num_threads=1)
    geometry.ransac.random_seed = mapping.random_seed = mapping.mapper.random_seed = 1
    mapping.mapper.num_threads = 1
    options = {
        "extract_features": {"extraction_options": pycolmap.FeatureExtractionOptions(num_threads=1)},
        "match_exhaustive": {
            "matching_options": pycolmap.FeatureMatchingOptions(num_threads=1),
            "verification_options": geometry,
        },
        "incremental_mapping": {"options": mapping},
    }
    for name, chosen in options.items():
        monkeypatch.setattr(pycolmap, name, functools.partial(getattr(pycolmap, name), **chosen))


@pytest.mark.slow
@pytest.mark.usefixtures("repeatable_pycolmap")
@pytest.mark.parametrize("engine", ["colmap", "pycolmap"])
def test_colmap_finds_the_poses_of_the_demos_kitchen(tmp_path, kitchen_video, engine):
    if engine == "colmap" and shutil.which("colmap") is None:
        pytest.skip("the program colmap is not installed (apt-get install colmap)")
    root, video = kitchen_video
    options = ["--engine", engine, "--camera-model", "SIMPLE_RADIAL", "--num-frames", "40", "--width", "240"]
    assert convert(["video", str(video)], tmp_path / "scene", *options) == 0
    scene = load_scene(tmp_path / "scene")
    truth = np.load(root / "ground_truth" / "video_poses.npz")["c2w"][scene.video_numbers - 1]
    assert len(scene) >= 24
    distances, angles = aligned(scene.camera_to_worlds.astype(float), truth)
    assert np.median(distances) < 0.02 and np.median(angles) < 1.0
    own = load_scene(root)
    # A focal length can trade against the room's depth: the poses above bound it, not this.
    assert scene.intrinsics[0, 0] / scene.width == pytest.approx(own.intrinsics[0, 0] / own.width, rel=0.15)
    assert (scene.nears < scene.fars).all() and len(scene.video_numbers_available) >= len(scene)
