"""What ns-render asks of every method: kinds of cameras, crops, rays of no camera, transparency, smaller frames."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader
from nerfstudio.model_components.renderers import background_color_override_context
from test_camera_paths import viewers_path, written
from torch import Tensor

from divff_nerfstudio.data.scene import SceneError
from divff_nerfstudio.models.base import LayeredModel
from divff_nerfstudio.models.splat.model import SplatModel
from divff_nerfstudio.models.view import PICTURES, RenderError
from divff_nerfstudio.pipeline import DivFFPipeline
from divff_nerfstudio.schema import OptionError
from divff_nerfstudio.viewer.camera_paths import CameraFileError

METHODS = {"divff": tiny_run.config, "divff-paper": tiny_run.published_config, "divff-splat": tiny_run.splat_config}


def pipeline_of(method: str, scene: Path, output: Path, **changes) -> DivFFPipeline:
    """A run of a method, untrained, as ns-render opens it."""
    torch.manual_seed(0)
    config = METHODS[method](scene, output)
    for name, value in changes.items():
        setattr(config.pipeline.model, name, value)
    config.settle()
    return config.pipeline.setup(device="cpu", test_mode="inference").eval()


@pytest.fixture(params=METHODS)
def pipeline(request, tiny_scene, tmp_path) -> DivFFPipeline:
    return pipeline_of(request.param, tiny_scene, tmp_path / "out")


def seen_from(
    pipeline: DivFFPipeline, kind: CameraType = CameraType.PERSPECTIVE, time: float = 0.5, **others
) -> Cameras:
    first = pipeline.datamanager.train_dataset.cameras[:1]
    places = {"fx": 12.0, "fy": 12.0, "cx": 12.0, "cy": 8.0, "width": 24, "height": 16}
    return Cameras(
        camera_to_worlds=first.camera_to_worlds,
        **(places | others),  # pyright: ignore
        camera_type=kind,
        times=torch.tensor([[time]]),
    )


@pytest.mark.parametrize("kind", [CameraType.EQUIRECTANGULAR, CameraType.FISHEYE])
def test_panoramas_are_no_perspective_pictures(pipeline, kind):
    """Rays say what is seen where; who casts none says so."""
    model, camera = pipeline.model, seen_from(pipeline, kind)
    if isinstance(model, SplatModel):
        with pytest.raises(RenderError, match=f"renders perspective cameras, not {kind.name.lower()}"):
            model.get_outputs_for_camera(camera)
        return
    rays = camera.generate_rays(0, keep_shape=True)
    ahead = rays.directions[8, 12] @ camera.camera_to_worlds[0, :, :3]
    assert float(-ahead[2]) > 0.9
    plain = model.get_outputs_for_camera(seen_from(pipeline))["rgb"]
    assert float((model.get_outputs_for_camera(camera)["rgb"] - plain).abs().max()) > 1e-6


def test_gaussians_are_not_drawn_through_a_distorted_lens(tiny_scene, tmp_path):
    pipeline = pipeline_of("divff-splat", tiny_scene, tmp_path / "out")
    camera = seen_from(pipeline, distortion_params=torch.tensor([[0.1, 0, 0, 0, 0, 0]]))
    with pytest.raises(RenderError, match="without distortion"):
        pipeline.model.get_outputs_for_camera(camera)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"time": 9.0}, "time is 9"),
        ({"time": float("nan")}, "time is nan"),
        ({"width": 0}, "0 pixels|0x16"),
        ({"height": 10**6}, "24x1000000"),
        ({"fx": 0.0}, "no focal length"),
        ({"cx": float("inf")}, "not finite"),
    ],
)
def test_cameras_that_see_nothing_are_refused(tiny_scene, tmp_path, changes, said):
    pipeline = pipeline_of("divff", tiny_scene, tmp_path / "out")
    with pytest.raises(RenderError, match=said):
        pipeline.model.get_outputs_for_camera(seen_from(pipeline, **changes))


@pytest.mark.parametrize(("far", "taken"), [(0.0, True), (1e12, False)])
def test_a_camera_path_far_from_the_scene_is_refused(tiny_scene, tmp_path, monkeypatch, far, taken):
    content = viewers_path()
    content["camera_path"][1]["camera_to_world"][3] = far
    words = ("camera-path", "--load-config", "config.yml", "--camera-path-filename", str(written(tmp_path, content)))
    monkeypatch.setattr("sys.argv", ["ns-render", *words])
    with contextlib.nullcontext() if taken else pytest.raises(CameraFileError, match="its camera 2 at a distance"):
        pipeline_of("divff", tiny_scene, tmp_path / "out")


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("interpolate --rendered-output-names rgb relevancy", {"rgb", "relevancy"}),
        ("camera-path --rendered-output-names rgb depth", {"rgb", "depth", "accumulation"}),
        ("spiral --rendered-output-names rgba", {"rgb", "accumulation"}),
        ("interpolate --rendered-output-names raw-rgb", {"raw-rgb"}),
        ("dataset --rendered-output-names raw-depth gt-rgb", {"depth", "accumulation"}),
        ("dataset", None),
    ],
)
def test_what_is_read_of_views_is_what_was_typed(tiny_scene, tmp_path, monkeypatch, typed, read):
    path = str(written(tmp_path, viewers_path())) if typed.startswith("camera-path") else ""
    others = ("--load-config", "config.yml", *(("--camera-path-filename", path) if path else ()))
    monkeypatch.setattr("sys.argv", ["ns-render", *typed.split(), *others, "--image-format", "png"])
    if "rgba" in typed:
        monkeypatch.setattr("sys.argv", [*sys.argv, "--output-format", "images"])
    model = pipeline_of("divff", tiny_scene, tmp_path / "out").model
    assert model.read_outputs == read
    monkeypatch.setattr("sys.argv", ["ns-eval", "--load-config", "config.yml"])
    assert pipeline_of("divff", tiny_scene, tmp_path / "out").model.read_outputs is None


def test_of_a_frame_that_is_logged_only_what_is_looked_at_is_rendered(pipeline, monkeypatch):
    rendered, plain = [], type(pipeline.model).render

    def told(self, camera, **options):
        rendered.append(set(options["outputs"]))
        return plain(self, camera, **options)

    monkeypatch.setattr(type(pipeline.model), "render", told)
    pipeline.datamanager.setup_eval()
    metrics, pictures = pipeline.get_eval_image_metrics_and_images(0)
    assert rendered == [{"rgb", "rgb_static", "rgb_dynamic", "rgb_actor"}]
    assert metrics.keys() == {"psnr", "num_rays"} and pictures.keys() == {"img", "layers"}
    height, width = pictures["img"].shape[:2]
    assert metrics["num_rays"] == height * width / 2


def test_a_render_that_fails_leaves_the_model_as_it_was(pipeline, monkeypatch):
    model = pipeline.model.train()

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(model, "_pictures" if isinstance(model, SplatModel) else "_render", fail)
    with pytest.raises(ZeroDivisionError):
        model.get_outputs_for_camera(seen_from(pipeline))
    assert model.training


def test_cameras_come_from_any_device(pipeline, monkeypatch):
    """The host reads them at once, and rays are cast on the model's; Gaussians are drawn for what the host knows."""
    model, brought = pipeline.model, []
    usual, there = Cameras.to, torch.device("cpu", 0)
    monkeypatch.setattr(Cameras, "to", lambda self, device: brought.append(device) or usual(self, device))
    monkeypatch.setattr(type(model), "device", there)
    model.get_outputs_for_camera(seen_from(pipeline))
    assert brought == (["cpu"] if isinstance(model, SplatModel) else ["cpu", there])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_a_camera_on_a_gpu_sees_what_it_sees_in_the_hosts_memory(tiny_scene, tmp_path, method):
    pipeline = pipeline_of(method, tiny_scene, tmp_path / "out").to("cuda")
    camera = seen_from(pipeline)
    known, there = (pipeline.model.render(each).pictures for each in (camera, camera.to("cuda")))
    for name, picture in known.items():
        torch.testing.assert_close(there[name], picture, msg=name)


def test_only_what_is_asked_for_is_rendered_and_is_the_same(pipeline, monkeypatch):
    model, camera = pipeline.model, seen_from(pipeline)
    whole = model.render(camera).pictures
    if model.semantic is not None:
        monkeypatch.setattr(model.semantic, "code", lambda *_: pytest.fail("nobody has asked for features"))
    for name in PICTURES:
        view = model.render(camera, outputs=(name,))
        assert tuple(view.pictures) == (name,) and not view.features
        assert torch.equal(view.pictures[name], whole[name]), name
    assert view.camera is camera


def test_a_crop_has_its_background(pipeline):
    model = pipeline.model
    nowhere = OrientedBox(R=torch.eye(3), T=torch.full((3,), 1e4), S=torch.ones(3))
    red = torch.tensor([1.0, 0.0, 0.0])
    with background_color_override_context(red):
        picture = model.get_outputs_for_camera(seen_from(pipeline), nowhere)["rgb"]
    assert float((picture - red).abs().max()) < 0.05
    assert float(model.get_outputs_for_camera(seen_from(pipeline), nowhere)["rgb"].max()) < 0.05


def test_transparency_is_what_is_not_seen(pipeline):
    model = pipeline.model
    outputs = model.get_outputs_for_camera(seen_from(pipeline))
    rgba = model.get_rgba_image(outputs)
    assert rgba.shape == (16, 24, 4)
    torch.testing.assert_close(rgba[..., 3:], outputs["accumulation"])
    over_black = rgba[..., :3] * rgba[..., 3:]
    torch.testing.assert_close(over_black, outputs["rgb"], atol=2e-3, rtol=0)


def rays_of(camera: Cameras) -> RayBundle:
    """Rays as `ns-render --render-nearest-camera` casts them: of no camera, one after the other."""
    rays = camera.generate_rays(0, keep_shape=True)[8, 10:14]
    return RayBundle(
        origins=rays.origins,
        directions=rays.directions,
        pixel_area=torch.ones(4, 1),
        nears=torch.full((4, 1), 0.05),
        fars=torch.full((4, 1), 100.0),
        camera_indices=torch.zeros(4, 1),
        metadata={},
    )


def depths(model: LayeredModel, rays: RayBundle) -> Tensor:
    with torch.no_grad():
        return model.get_outputs(rays)["depth"]


def test_rays_of_no_camera_see_the_scene_without_the_actor(pipeline):
    model, rays = pipeline.model, rays_of(seen_from(pipeline))
    seen = depths(model, rays)
    assert seen.shape == (4, 1) and bool(seen.isfinite().all())
    with torch.no_grad():
        assert not bool(model.get_outputs(rays)["mask_actor"].any())
    rays.directions[1] = float("nan")  # from a camera to itself
    assert bool(depths(model, rays).isfinite().all())


def test_gaussians_along_a_ray_are_those_of_its_pixel(tiny_scene, tmp_path):
    pipeline = pipeline_of("divff-splat", tiny_scene, tmp_path / "out")
    camera = seen_from(pipeline)
    picture = pipeline.model.get_outputs_for_camera(camera)["depth"][8, 10:14]
    rays = rays_of(camera)
    rays.times = torch.full((4, 1), 0.5)
    torch.testing.assert_close(depths(pipeline.model, rays), picture, rtol=0.15, atol=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_frames_are_as_small_as_ns_render_asks(method, tiny_scene, tmp_path):
    config = METHODS[method](tiny_scene, tmp_path / "out")
    config.settle()
    whole = config.pipeline.datamanager.setup(device="cpu", test_mode="inference")
    config.pipeline.datamanager.dataparser.downscale_factor = 2.0
    pipeline = config.pipeline.setup(device="cpu", test_mode="inference").eval()
    data = config.pipeline.datamanager.setup(device="cpu", test_mode="test")
    for dataset, frames in ((data.train_dataset, whole.train_dataset), (data.eval_dataset, None)):
        camera, batch = next(iter(FixedIndicesEvalDataloader(dataset, device=torch.device("cpu"))))
        assert tuple(batch["image"].shape) == (8, 12, 3)
        assert pipeline.model.get_outputs_for_camera(camera)["rgb"].shape == (8, 12, 3)
        if frames is not None:
            blocks = frames.get_numpy_image(0).astype(float).reshape(8, 2, 12, 2, 3).mean((1, 3))
            assert np.abs(blocks - dataset.get_numpy_image(0)).max() <= 1
            torch.testing.assert_close(dataset.cameras.fx, frames.cameras.fx / 2)
    assert "downscale" not in str(vars(type(config.pipeline.datamanager.dataparser)()))


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), 1e6])
def test_no_frame_is_scaled_to_nothing(factor, tiny_scene, tmp_path):
    config = tiny_run.config(tiny_scene, tmp_path / "out")
    config.pipeline.datamanager.dataparser.downscale_factor = factor
    with pytest.raises(SceneError, match="--downscale-factor"):
        config.pipeline.datamanager.setup(device="cpu", test_mode="inference")


def test_rays_that_end_before_they_begin_are_refused(tiny_scene, tmp_path):
    with pytest.raises(RenderError, match="near-scale"):
        pipeline_of("divff", tiny_scene, tmp_path / "out", near_scale=1000.0)
    with pytest.raises(OptionError, match=r"pipeline\.model\.near-scale"):
        pipeline_of("divff", tiny_scene, tmp_path / "out", near_scale=-1.0)
