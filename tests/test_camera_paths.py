"""Camera paths and cameras in files: what nerfstudio's viewer writes is read, anything else is named."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_scene
import torch
from conftest import tiny_poses
from nerfstudio.cameras.cameras import CameraType

from divff_nerfstudio.cli.video import VideoConfig
from divff_nerfstudio.evaluation.trained_scene import TrainedScene
from divff_nerfstudio.evaluation.videos import LAYOUTS, path_moments, video_pictures
from divff_nerfstudio.evaluation.viewpoints import at_size, read_camera
from divff_nerfstudio.fields.layers import LAYERS
from divff_nerfstudio.models.view import EVERYTHING, Features, RenderedView
from divff_nerfstudio.viewer.camera_paths import (
    CameraFileError,
    check_path_to_render,
    positions_of,
    read_camera_path,
    write_still_path,
)
from divff_nerfstudio.viewer.camera_reach import require_in_reach


def viewers_path(count: int = 4, size: tuple[int, int] = (36, 24)) -> dict[str, Any]:
    """What nerfstudio's Render tab writes."""
    cameras = []
    for i, pose in enumerate(tiny_poses(count)):
        matrix = np.vstack((pose, (0, 0, 0, 1)))
        time = i / max(1, count - 1)
        cameras.append(
            {"camera_to_world": matrix.ravel().tolist(), "fov": 50.0, "aspect": size[0] / size[1], "render_time": time}
        )
    return {
        "default_fov": 50.0,
        "default_time": 0.0,
        "default_transition_sec": 2.0,
        "keyframes": [],
        "camera_type": "perspective",
        "render_height": size[1],
        "render_width": size[0],
        "fps": 24,
        "seconds": count / 24,
        "is_cycle": False,
        "smoothness_value": 0.0,
        "camera_path": cameras,
    }


CROP = {
    "crop_center": [0, 0, -1],
    "crop_scale": [1, 2.5, 3],
    "crop_rot": [0, 0, 0.5],
    "crop_bg_color": {"r": 255, "g": 0, "b": 51},
}


def written(folder: Path, content: Any) -> Path:
    path = folder / "path.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_what_the_viewer_writes_is_read(tmp_path):
    path = read_camera_path(written(tmp_path, viewers_path() | {"crop": CROP}))
    assert (path.height, path.width, path.seconds) == (24, 36, pytest.approx(4 / 24))
    assert path.cameras.times is not None and path.cameras.times.shape == (4, 1)
    torch.testing.assert_close(path.cameras.camera_to_worlds.numpy(), tiny_poses(4).astype(np.float32))
    assert path.crop is not None and path.crop.background.tolist() == pytest.approx([1, 0, 0.2])
    assert path.crop.box.S.tolist() == [1, 2.5, 3] and path.crop.box.T.tolist() == [0, 0, -1]
    assert path.pictures_per_second(2) == pytest.approx(12)


def test_sizes_that_were_typed_into_the_viewer_are_read(tmp_path):
    sizes = {"render_height": 1080.0, "render_width": 1920.0}
    path = read_camera_path(written(tmp_path, viewers_path() | sizes))
    assert (path.height, path.width) == (1080, 1920)
    with pytest.raises(CameraFileError, match="render_height"):
        read_camera_path(written(tmp_path, viewers_path() | sizes | {"render_height": 1080.5}))


def test_times_of_splines_that_overshoot_are_brought_back(tmp_path):
    content = viewers_path()
    content["camera_path"][1]["render_time"] = -0.03
    times = read_camera_path(written(tmp_path, content)).cameras.times
    assert times is not None and float(times[1]) == 0


def test_kinds_of_cameras(tmp_path):
    for name, kind in (
        ("Perspective", CameraType.PERSPECTIVE),
        ("fisheye", CameraType.FISHEYE),
        ("equirectangular", CameraType.EQUIRECTANGULAR),
    ):
        cameras = read_camera_path(written(tmp_path, viewers_path() | {"camera_type": name})).cameras
        assert int(cameras.camera_type[0]) == kind.value
    stereo = written(tmp_path, viewers_path() | {"camera_type": "omnidirectional"})
    with pytest.raises(CameraFileError, match="ns-render"):
        read_camera_path(stereo)
    assert not check_path_to_render(stereo)


def _pose(change) -> Any:
    def apply(content: dict) -> None:
        matrix = np.array(content["camera_path"][1]["camera_to_world"]).reshape(4, 4)
        content["camera_path"][1]["camera_to_world"] = change(matrix).ravel().tolist()

    return apply


def _key(place: str, value: Any) -> Any:
    def apply(content: dict) -> None:
        *parents, last = place.split(".")
        for name in parents:
            content = content[int(name) if isinstance(content, list) else name]
        content[last] = value

    return apply


WRONG = {
    "mirrored": (_pose(lambda m: m @ np.diag([-1, 1, 1, 1])), "camera_path.1.camera_to_world: should be a rotation"),
    "scaled": (_pose(lambda m: m @ np.diag([2, 2, 2, 1])), "camera_path.1.camera_to_world: should be a rotation"),
    "zero": (_pose(lambda m: m * 0), "camera_path.1.camera_to_world"),
    "transposed": (_pose(lambda m: m.T), "last|row 0, 0, 0, 1"),
    "not finite": (_key("camera_path.1.camera_to_world", [float("nan")] * 16), "NaN"),
    "3x4": (_key("camera_path.1.camera_to_world", list(range(12))), "camera_path.1.camera_to_world"),
    "fov 0": (_key("camera_path.0.fov", 0), "camera_path.0.fov: should be greater than or equal to 0.1"),
    "fov of a point": (_key("camera_path.0.fov", 1e-9), "camera_path.0.fov: should be greater than or equal to 0.1"),
    "fov 180": (_key("camera_path.0.fov", 180), "camera_path.0.fov: should be less than or equal to 179"),
    "a wall": (lambda content: content.update(render_height=16384, render_width=16384), "16384x16384 has more than"),
    "aspect": (_key("camera_path.0.aspect", -1.5), "camera_path.0.aspect"),
    "height 0": (_key("render_height", 0), "render_height"),
    "width of a million": (_key("render_width", 10**6), "render_width"),
    "a line": (lambda content: content.update(render_height=1, render_width=4000), "4000x1"),
    "fps 0": (_key("fps", 0), "fps"),
    "seconds 0": (_key("seconds", 0), "seconds"),
    "time": (_key("camera_path.2.render_time", 9.0), "camera_path.2.render_time"),
    "one without a time": (lambda content: content["camera_path"][2].pop("render_time"), "camera_path.2 has no render"),
    "kind": (_key("camera_type", "cylinder"), "camera_type"),
    "none": (_key("camera_path", []), "camera_path"),
    "crop's size": (_key("crop", CROP | {"crop_scale": [1, 0, 1]}), "crop.crop_scale"),
    "crop's colour": (_key("crop", CROP | {"crop_bg_color": {"r": 256, "g": 0, "b": 0}}), "crop.crop_bg_color.r"),
    "text": (_key("render_height", "24"), "render_height"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name, tmp_path):
    content = viewers_path()
    change, said = WRONG[name]
    change(content)
    path = written(tmp_path, content)
    for read in (read_camera_path, check_path_to_render):
        with pytest.raises(CameraFileError, match=said) as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_keys_that_stand_twice_are_named(tmp_path):
    text = json.dumps(viewers_path()).replace('"fps": 24', '"fps": 24, "fps": 30')
    with pytest.raises(CameraFileError, match="'fps' twice"):
        read_camera_path(written(tmp_path, text))


def test_a_film_needs_a_length_in_ns_render(tmp_path):
    content = viewers_path()
    del content["seconds"]
    path = written(tmp_path, content)
    assert read_camera_path(path).pictures_per_second(3) is None
    with pytest.raises(CameraFileError, match="how long"):
        check_path_to_render(path)
    path = written(tmp_path, viewers_path() | {"seconds": 1e9})
    with pytest.raises(CameraFileError, match="1e\\+09 seconds"):
        read_camera_path(path).pictures_per_second(4)


def test_what_the_panel_writes_is_read(tmp_path):
    cameras = read_camera_path(written(tmp_path, viewers_path())).cameras
    write_still_path(tmp_path / "still.json", cameras[:1], [0.0, 0.5, 1.0])
    path = read_camera_path(tmp_path / "still.json")
    assert len(path.cameras) == 3 and path.pictures_per_second(3) == pytest.approx(10)


@pytest.fixture
def trained(tmp_path) -> TrainedScene:
    root = small_scene.write(tmp_path / "scene")
    return TrainedScene(small_scene.KnowingModel(), small_scene.datamanager(root), small_scene.make_query())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"camera_to_world": (np.eye(4) * 2).tolist()}, "rotation"),
        ({"camera_to_world": np.diag([1, 1, -1, 1]).tolist()}, "rotation"),
        ({"camera_to_world": np.zeros((3, 4)).tolist()}, "rotation"),
        ({"camera_to_world": np.eye(4).tolist(), "time": 1.5}, "time"),
        ({"camera_to_world": np.eye(4).tolist(), "width": 0}, "width"),
        ({"camera_to_world": np.eye(4).tolist(), "intrinsics": np.zeros((3, 3)).tolist()}, "focal"),
        ({"camera_to_world": np.eye(4).tolist(), "intrinsics": [1, 2]}, "intrinsics"),
        ({"camera_to_world": np.eye(4).tolist(), "intrinsics": [[30, 0, 0], [0, 30, 0], [20, 12, 1]]}, "intrinsics"),
        (
            {"camera_to_world": np.eye(4).tolist(), "intrinsics": [[1e3, 0, 960], [0, 1e3, 540], [0, 0, 1]]},
            "outside of",
        ),
        ({"camera_to_world": np.eye(4).tolist(), "width": 16384, "height": 16384}, "pixels"),
        ({"camera_to_world": np.eye(4).tolist(), "tme": 0.5}, "tme"),
        ({"camera_to_world": "eye"}, "camera_to_world"),
        ({"camera_to_world": [0] * 13}, "3 or 4 rows of 4 numbers"),
        ({"camera_to_world": np.eye(4).tolist(), "intrinsics": [[1e-6, 0, 20], [0, 1e-6, 12], [0, 0, 1]]}, "no camera"),
        ({"camera_to_world": np.eye(4).tolist(), "intrinsics": [[1e9, 0, 20], [0, 1e9, 12], [0, 0, 1]]}, "no camera"),
        ({"camera_to_world": np.eye(4).tolist(), "intrinsics": [[30, 0, 20], [0, 900, 12], [0, 0, 1]]}, "in pixels"),
        ({"camera_path": 3}, "path.json is not a camera path"),
    ],
)
def test_single_cameras_that_are_wrong_are_named(content, said, trained, tmp_path):
    with pytest.raises(CameraFileError, match=said):
        read_camera(written(tmp_path, content), trained.cameras[:1])


def test_cameras_that_are_nowhere_near_the_scene_are_named(trained, tmp_path):
    """So are crops with nothing in them; a view of all of it from far above is taken."""
    content = viewers_path()
    for far, taken in ((1e12, False), (-1e6, False), (100, True), (0, True)):
        content["camera_path"][2]["camera_to_world"][7] = far
        file = written(tmp_path, content)
        for positions in (positions_of(file), read_camera_path(file).cameras.camera_to_worlds[:, :3, 3].numpy()):
            with contextlib.nullcontext() if taken else pytest.raises(CameraFileError, match="its camera 3 at a dist"):
                require_in_reach(file, positions, trained.scene)
    for centre, taken in (([1e4, 0, 0], False), (CROP["crop_center"], True)):
        path = read_camera_path(written(tmp_path, content | {"crop": CROP | {"crop_center": centre}}))
        with contextlib.nullcontext() if taken else pytest.raises(CameraFileError, match="a crop in which nothing"):
            require_in_reach(path.file, np.zeros((1, 3)), trained.scene, path.crop)


def test_a_camera_keeps_what_it_sees_at_another_size(tmp_path):
    camera = read_camera_path(written(tmp_path, viewers_path(size=(1920, 1080)))).cameras[:1]
    small = at_size(camera, (180, 400))
    assert (int(small.width[0]), int(small.height[0])) == (320, 180)
    before, after = (each.generate_rays(0, keep_shape=True) for each in (camera, small))
    middle = before.directions[533:547, 953:967].mean((0, 1))
    torch.testing.assert_close(after.directions[89:91, 159:161].mean((0, 1)), middle, atol=1e-3, rtol=0)
    for name in ("fx", "fy", "cx", "cy"):
        assert float(getattr(camera, name)[0]) == pytest.approx(6 * float(getattr(small, name)[0]), rel=1e-5)


class Seen(small_scene.KnowingModel):
    """Notes the sizes and the crop that it is asked for."""

    def render(self, camera, layers=LAYERS, box=None, outputs=EVERYTHING):
        from nerfstudio.model_components import renderers

        self.asked = (int(camera.height[0]), int(camera.width[0]), box, renderers.BACKGROUND_COLOR_OVERRIDE)
        height, width = self.asked[:2]
        return RenderedView(camera, {"rgb": torch.full((height, width, 3), 0.5)}, Features())


def test_a_path_is_rendered_as_large_as_it_is_shown_and_cropped(tmp_path):
    root = small_scene.write(tmp_path / "scene")
    model = Seen()
    trained = TrainedScene(model, small_scene.datamanager(root), small_scene.make_query())
    for size in ((160, 90), (1920, 1080)):
        path = read_camera_path(written(tmp_path, viewers_path(1, size) | {"crop": CROP}))
        (moment,) = path_moments(trained, path, [0], (48, 86))
        (picture,) = video_pictures(trained, [moment], LAYOUTS["prediction"], size=(48, 86))
        height, width, box, background = model.asked
        assert height == 48 and abs(width - 48 * 16 / 9) <= 1 and picture.shape[1] == 86
        assert box.S.tolist() == [1, 2.5, 3] and background.tolist() == pytest.approx([1, 0, 0.2])


def test_a_film_is_as_long_as_its_path_says(tmp_path, monkeypatch):
    root = small_scene.write(tmp_path / "scene")
    trained = TrainedScene(Seen(), small_scene.datamanager(root), small_scene.make_query())
    monkeypatch.setattr("divff_nerfstudio.cli.video.open_scene", lambda *_: trained)
    speeds = []

    def write_video(path, pictures, fps):
        speeds.append(fps)
        return len(list(pictures))

    monkeypatch.setattr("divff_nerfstudio.evaluation.videos.write_video", write_video)
    content = copy.deepcopy(viewers_path(4)) | {"seconds": 2.0}
    film = {"load_config": tmp_path / "config.yml", "camera_path": written(tmp_path, content), "layout": "prediction"}
    VideoConfig(**film, cell_height=16).main()
    VideoConfig(**film, cell_height=16, frames=2).main()
    VideoConfig(**film, cell_height=16, fps=25.0).main()
    VideoConfig(load_config=tmp_path / "config.yml", layout="other", cell_height=16, frames=1).main()
    assert speeds == [2.0, 1.0, 25.0, 10.0]
