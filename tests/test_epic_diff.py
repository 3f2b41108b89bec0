"""The dataparser ``epic-diff`` and the rays of its cameras."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs

from divff_nerfstudio.data.annotations import ground_truth
from divff_nerfstudio.data.epic_diff import EpicDiff, EpicDiffDataParserConfig, epic_diff, frustum_box
from divff_nerfstudio.data.rays import camera_directions, pixel_areas, pixel_grid
from divff_nerfstudio.data.scene import SceneError, load_scene


def parsed(root: Path, split: str = "train", **options: object) -> DataparserOutputs:
    config = EpicDiffDataParserConfig(data=root, **options)  # pyright: ignore[reportArgumentType]
    parser = config.setup()
    assert isinstance(parser, EpicDiff) and parser.includes_time
    return parser.get_dataparser_outputs(split)


def test_it_is_registered() -> None:
    from importlib.metadata import entry_points

    (point,) = entry_points(group="nerfstudio.dataparser_configs", name="epic-diff")
    assert point.load() is epic_diff and isinstance(epic_diff.config, EpicDiffDataParserConfig)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_frames_of_a_split(tiny_scene: Path, split: str) -> None:
    scene = load_scene(tiny_scene)
    outputs = parsed(tiny_scene, split)
    indices = scene.splits[split]  # pyright: ignore[reportArgumentType]
    assert outputs.image_filenames == [scene.image_paths[i] for i in indices]
    cameras, metadata = outputs.cameras, outputs.metadata
    np.testing.assert_array_equal(cameras.camera_to_worlds, scene.camera_to_worlds[indices])
    assert cameras.times is not None and cameras.times.shape == (len(indices), 1)
    np.testing.assert_allclose(cameras.times[:, 0], scene.times()[indices])
    assert metadata["scene"].root == tiny_scene
    assert metadata["indices"].tolist() == indices.tolist()
    assert metadata["frame_ids"].tolist() == scene.frame_ids[indices].tolist()
    for name, values in (("nears", scene.nears), ("fars", scene.fars), ("times", scene.times())):
        np.testing.assert_array_equal(metadata[name], values[indices])
    assert outputs.dataparser_scale == 1.0
    np.testing.assert_array_equal(outputs.dataparser_transform, np.eye(4)[:3])


def test_published_times_and_pixels(tiny_scene: Path) -> None:
    published = parsed(tiny_scene, time_rows=1000, pixel_centres=False)
    default = parsed(tiny_scene)
    frame_ids = published.metadata["frame_ids"]
    np.testing.assert_allclose(published.metadata["times"], frame_ids / 999, rtol=1e-6)
    rays = published.cameras.generate_rays(0, torch.tensor([[5.5, 7.5]]))  # the pixel in row 5, column 7
    shifted = default.cameras.generate_rays(0, torch.tensor([[5.0, 7.0]]))  # its upper left corner
    torch.testing.assert_close(rays.directions, shifted.directions)
    K = load_scene(tiny_scene).intrinsics
    camera = np.array([(7 - K[0, 2]) / K[0, 0], -(5 - K[1, 2]) / K[1, 1], -1.0])
    expected = default.cameras.camera_to_worlds[0, :, :3].numpy() @ camera
    np.testing.assert_allclose(rays.directions[0], expected / np.linalg.norm(expected), atol=1e-6)


def test_faults_stop_the_parser(tiny_scene: Path) -> None:
    with pytest.raises(SceneError, match="24 time rows"):
        parsed(tiny_scene, time_rows=24)
    (tiny_scene / "frames" / "IMG_0000000120.bmp").write_bytes(b"BM")  # a test frame, while the training split is asked
    with pytest.raises(SceneError, match="IMG_0000000120"):
        parsed(tiny_scene)


def test_one_wrong_pose_does_not_blow_up_the_box(tiny_scene: Path) -> None:
    scene = load_scene(tiny_scene)
    box = frustum_box(scene).numpy()
    positions = scene.camera_to_worlds[scene.splits["train"], :, 3]
    assert (box[0] <= positions).all() and (positions <= box[1]).all()
    assert np.isfinite(box).all() and (box[1] > box[0]).all()
    assert box[0, 2] < -2.5, "what the cameras look at, along -z, is inside"
    assert box[1, 2] < 1.0, "what is behind them is not"


@settings(max_examples=50)
@given(
    focal=st.tuples(st.floats(5, 500), st.floats(5, 500)),
    centre=st.tuples(st.floats(0, 100), st.floats(0, 60)),
    coord=st.tuples(st.floats(0, 60), st.floats(0, 100)),
)
def test_directions_are_those_of_nerfstudio(
    focal: tuple[float, float], centre: tuple[float, float], coord: tuple[float, float]
) -> None:
    cameras = Cameras(
        camera_to_worlds=torch.eye(4)[None, :3],
        fx=focal[0],
        fy=focal[1],
        cx=centre[0],
        cy=centre[1],
        width=100,
        height=60,
    )
    coords = torch.tensor([coord])
    rays = cameras.generate_rays(torch.zeros(1, 1, dtype=torch.long), coords)
    intrinsics = torch.tensor([*focal, *centre])
    directions, norm = camera_directions(coords, intrinsics)
    torch.testing.assert_close(directions, rays.directions, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(norm, rays.metadata["directions_norm"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(pixel_areas(coords, intrinsics), rays.pixel_area, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(torch.linalg.vector_norm(directions, dim=-1), torch.ones(1))


def test_directions_take_one_camera_or_one_per_pixel() -> None:
    coords = pixel_grid(3, 4)
    assert coords.shape == (3, 4, 2) and coords[2, 1].tolist() == [2.5, 1.5]
    one = torch.tensor([10.0, 11.0, 2.0, 1.5])
    torch.testing.assert_close(camera_directions(coords, one), camera_directions(coords, one.expand(3, 4, 4)))
    assert camera_directions(torch.tensor([1.5, 2.0]), one)[0].tolist() == [0.0, 0.0, -1.0]


def test_depth_of_the_kitchen_reprojects_into_another_frame(kitchen_small: Path) -> None:
    scene = load_scene(kitchen_small)
    truth = ground_truth(scene)
    assert truth is not None
    cameras = parsed(kitchen_small, "train").cameras
    indices = scene.splits["train"]
    first, second = 30, 32
    rays = cameras.generate_rays(first)
    depth = torch.from_numpy(np.asarray(truth.depth(int(indices[first])), np.float32))[..., None]
    points = rays.origins + rays.directions * depth * rays.metadata["directions_norm"]
    pose = cameras.camera_to_worlds[second]
    seen = (points - pose[:, 3]) @ pose[:, :3]
    col = (seen[..., 0] / -seen[..., 2] * cameras.fx[second] + cameras.cx[second]).floor().long()
    row = (-seen[..., 1] / -seen[..., 2] * cameras.fy[second] + cameras.cy[second]).floor().long()
    static = torch.from_numpy(truth.layers_ever(int(indices[first])) == 0)
    inside = static & (row >= 0) & (row < scene.height) & (col >= 0) & (col < scene.width)
    other = torch.from_numpy(np.asarray(truth.depth(int(indices[second])), np.float32))
    error = (other[row[inside], col[inside]] - -seen[..., 2][inside]).abs() / -seen[..., 2][inside]
    assert inside.float().mean() > 0.5 and error.median() < 0.005 and (error < 0.05).float().mean() > 0.85
    box = frustum_box(scene)
    assert ((points > box[0]) & (points < box[1])).all(-1).float().mean() > 0.99
