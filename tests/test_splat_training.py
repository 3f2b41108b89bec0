"""Training of Gaussians: whole frames, the schedule, numbers that change, and runs that go on where they stopped."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_run
import torch
from nerfstudio.engine.callbacks import TrainingCallbackAttributes
from plyfile import PlyData

from divff_nerfstudio.cli.export import ExportConfig
from divff_nerfstudio.data.scene import SceneError, load_scene
from divff_nerfstudio.datamanager import DivFFDataManagerConfig
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.fields.layers import LAYERS
from divff_nerfstudio.former_names import OPTIMIZERS
from divff_nerfstudio.models.splat import rasterise, splats
from divff_nerfstudio.models.splat.densification import depths_of_room, give_durations
from divff_nerfstudio.models.splat.density_control import discard, row_optimizers
from divff_nerfstudio.models.splat.drawing import Drawing
from divff_nerfstudio.models.splat.gaussians import HARMONIC_0
from divff_nerfstudio.models.splat.model import SplatModel, SplatModelConfig
from divff_nerfstudio.models.splat.permanence import Intervals
from divff_nerfstudio.models.splat.ply import write_layers
from divff_nerfstudio.models.splat.points import random_points, read_points
from divff_nerfstudio.models.view import EVERYTHING, FEATURES, PICTURES
from divff_nerfstudio.pipeline import CheckpointError
from divff_nerfstudio.run_folder import RunError
from divff_nerfstudio.trainer import DivFFTrainer, TrainingError

STEPS = 20
Start = Callable[..., DivFFTrainer]


@pytest.fixture
def start(tiny_scene: Path, tmp_path: Path) -> Start:
    """Sets a training up on a scene with features."""
    tiny_run.write_features(tiny_scene, tmp_path / "encoder")

    def begin(name: str, seed: int = 0, model: dict | None = None, **changes) -> DivFFTrainer:
        config = tiny_run.splat_config(tiny_scene, tmp_path / name, STEPS)
        for key, value in changes.items():
            setattr(config, key, value)
        for key, value in (model or {}).items():
            setattr(config.pipeline.model, key, value)
        torch.manual_seed(seed)
        trainer = tiny_run.trainer_of(config)
        trainer.setup()
        return trainer

    return begin


def model_of(trainer: DivFFTrainer) -> SplatModel:
    assert isinstance(trainer.pipeline.model, SplatModel)
    return trainer.pipeline.model


def test_rows_that_are_optimised_together_keep_the_order_that_checkpoints_have(start: Start):
    """Of `edges`, `extents` and `middles`, as they were called: states of optimizers have no names."""
    model = model_of(start("order"))
    rows, groups = model.gaussian_layer("dynamic").rows, model.get_param_groups()["durations"]
    expected = (rows[name] for name in ("ramps", "durations", "centres"))
    assert all(group["params"][0] is row for group, row in zip(groups, expected, strict=True))


def test_a_training_of_an_earlier_version_goes_on_with_its_optimizers(start: Start):
    """Which it called otherwise; the unbroken training tells what comes of them."""
    unbroken = start("unbroken", steps_per_save=7, save_only_latest_checkpoint=False)
    unbroken.train()
    path = unbroken.checkpoint_dir / "step-000000007.ckpt"
    state = torch.load(path, weights_only=True)
    for former, now in OPTIMIZERS.items():
        for kind in ("optimizers", "schedulers"):
            state[kind][former] = state[kind].pop(now)
    torch.save(state, path)
    resumed = start("resumed", seed=99, load_dir=unbroken.checkpoint_dir, load_step=7)
    resumed.train()
    expected, found = (tiny_run.parameters(model_of(each)) for each in (unbroken, resumed))
    assert all(torch.allclose(found[name], value, rtol=0, atol=1e-6) for name, value in expected.items())


@pytest.mark.parametrize("broken_after", [3, 7, 16, 18])
def test_resumed_training_is_the_unbroken_one(start: Start, broken_after):
    """Broken when moving Gaussians have just begun, while numbers change, with frozen geometry, and at the end."""
    looked_at = {"steps_per_eval_batch": 3, "steps_per_eval_image": 7, "steps_per_eval_all_images": 11}
    unbroken = start("unbroken", steps_per_save=broken_after, save_only_latest_checkpoint=False, **looked_at)
    unbroken.train()
    resumed = start("resumed", seed=99, load_dir=unbroken.checkpoint_dir, load_step=broken_after, **looked_at)
    resumed.train()
    expected, found = (tiny_run.parameters(model_of(each)) for each in (unbroken, resumed))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert torch.allclose(found[name], value, rtol=0, atol=1e-6), name
    assert all(len(model_of(resumed).gaussian_layer(layer)) for layer in LAYERS)


def test_layers_begin_grow_within_limits_and_freeze_by_the_schedule(start: Start):
    trainer = start("run")
    model, counts, frozen = model_of(trainer), [], {}
    step_of = trainer.train_iteration

    def watched(step: int):
        before = tiny_run.parameters(model)
        result = step_of(step)
        counts.append([len(model.gaussian_layer(layer)) for layer in LAYERS])
        changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        frozen[step] = {name for name in before if name not in changed}
        return result

    trainer.train_iteration = watched
    trainer.train()
    config = model.config
    assert (config.moving_start_step, config.heads_start_step, config.joint_start_step) == (4, 15, 18)
    assert counts[0] == [60, 0, 0] and all(counts[4][1:]), "moving layers begin with what is wrong"
    most = np.array([config.max_static, config.max_dynamic, config.max_actor])
    assert (np.array(counts) <= most).all() and counts[-1][0] > 60
    assert counts[-1] == counts[15], "numbers stay from the heads on"
    geometry = {f"layers.{layer}.rows.{row}" for layer in LAYERS for row in ("means", "scales", "opacities", "colours")}
    heads = {name for name, _ in model.named_parameters() if name.startswith("semantic.heads")}
    assert heads <= frozen[10] and not geometry & frozen[10]
    assert geometry <= frozen[16] and not heads & frozen[16] and "layers.static.rows.codes" not in frozen[16]
    assert not geometry & frozen[18] and not heads & frozen[18]


def test_layers_alone_are_drawn_by_themselves(start: Start, monkeypatch):
    trainer = start("run")
    model = model_of(trainer)
    camera, _ = trainer.pipeline.datamanager.next_eval_image(0)  # pyright: ignore
    everything = model.render(camera).pictures
    for alone in ("in_room", "static_alone"):
        monkeypatch.delattr(Drawing, alone)
    alone = {f"rgb_{layer}" for layer in LAYERS}
    others = model.render(camera, outputs=set(EVERYTHING) - alone).pictures
    assert everything.keys() - others.keys() == alone
    assert all(torch.equal(picture, everything[name]) for name, picture in others.items())


def test_views_have_the_same_outputs_as_other_methods(start: Start):
    trainer = start("run")
    trainer.train()
    model, data = model_of(trainer), trainer.pipeline.datamanager
    camera, batch = data.next_eval_image(0)  # pyright: ignore
    outputs = model.get_outputs_for_camera(camera)
    height, width = batch["image"].shape[:2]
    assert tuple(outputs)[: len(PICTURES)] == PICTURES and "features_pca" in outputs
    assert all(output.shape[:2] == (height, width) and output.isfinite().all() for output in outputs.values())
    assert all(output.min() >= 0 and output.max() <= 1 for name, output in outputs.items() if name in PICTURES[3:])
    features = model.render(camera, outputs=(FEATURES,)).features
    assert set(features) == {"image", "video", "regulariser"}
    assert all(torch.allclose(each.norm(dim=-1), torch.ones(height, width), atol=1e-4) for each in features.values())

    trainer.pipeline.query.ask(text="cu")  # pyright: ignore
    asked = model.get_outputs_for_camera(camera)
    assert asked["relevancy"].shape == (height, width, 1) and asked["relevancy_overlay"].shape == (height, width, 3)
    hidden = model.render(camera, layers=("static", "dynamic")).pictures
    assert not hidden["mask_actor"].any() and not hidden["rgb_actor"].any()
    torch.testing.assert_close(hidden["rgb_static"], asked["rgb_static"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("empty", [("static",), ("dynamic", "actor"), LAYERS])
def test_layers_may_lose_all_their_gaussians(start: Start, empty, tmp_path):
    trainer = start("run")
    model, data = model_of(trainer), trainer.pipeline.datamanager
    run = trainer.train_iteration

    def emptied(step: int):
        if step == 7:
            for layer in empty:
                model.gaussian_layer(layer).rows["opacities"].data.fill_(-20.0)
        return run(step)

    trainer.train_iteration = emptied
    trainer.train()
    camera, _ = data.next_eval_image(0)  # pyright: ignore
    for layer in empty:
        views = row_optimizers(model.gaussian_layer(layer), trainer.optimizers.optimizers.values())
        discard(model.gaussian_layer(layer), views, torch.ones(len(model.gaussian_layer(layer)), dtype=torch.bool))
    outputs = model.get_outputs_for_camera(camera)
    assert tuple(outputs)[: len(PICTURES)] == PICTURES and all(each.isfinite().all() for each in outputs.values())
    assert all(not outputs[f"mask_{layer}"].any() for layer in empty if layer != "static")
    assert set(write_layers(model, tmp_path / "ply", camera)) == set(LAYERS) - set(empty)
    model.train()
    step_losses = trainer.pipeline.get_train_loss_dict(10)[1]
    assert all(loss.isfinite() for loss in step_losses.values())


@pytest.mark.parametrize(
    ("row", "message"),
    [("colours", "Step 5: photometric.*not finite"), ("means", "static.rows.means is not finite after step 5")],
)
def test_training_that_diverges_stops_with_the_step_and_leaves_the_last_checkpoint(start: Start, row, message):
    trainer = start("run", steps_per_save=3)
    model, run = model_of(trainer), trainer.train_iteration

    def broken(step: int):
        if step == 5:
            model.gaussian_layer("static").rows[row].data[0] = torch.nan
        return run(step)

    trainer.train_iteration = broken
    with pytest.raises(DivffError, match=message):
        trainer.train()
    (path,) = trainer.checkpoint_dir.glob("*.ckpt")
    state = torch.load(path, weights_only=True)["pipeline"]
    assert path.stem == "step-000000003" and all(value.isfinite().all() for value in state.values())


def test_masks_and_static_share_are_the_accumulation(start: Start):
    trainer = start("run")
    trainer.train()
    model = model_of(trainer)
    camera, _ = trainer.pipeline.datamanager.next_eval_image(0)  # pyright: ignore
    outputs = model.get_outputs_for_camera(camera)
    assert outputs["mask_moving"].max() > 0.01
    assert (outputs["mask_moving"] <= outputs["accumulation"] + 1e-5).all()
    seen = outputs["accumulation"] > 0.5
    near, far = float(model.train_nears.min()), float(model.train_fars.max())
    assert 0.02 * near < outputs["depth"][seen].min() and outputs["depth"][seen].max() < 3 * far


def test_training_batches_are_whole_training_frames_with_features_of_their_pixels(start: Start, tiny_scene):
    trainer = start("run")
    data, scene = trainer.pipeline.datamanager, load_scene(tiny_scene)
    seen = set()
    for step in range(2 * len(scene.splits["train"])):
        camera, batch = data.next_train(step)
        index = batch["frame_index"]
        seen.add(index)
        torch.testing.assert_close(
            camera.camera_to_worlds[0], torch.from_numpy(scene.camera_to_worlds[index]), check_device=False
        )
        np.testing.assert_allclose(
            batch["image"].view(scene.height, scene.width, 3).numpy() * 255, scene.frame(index), atol=1e-3
        )
        assert ("features" in batch) == (step >= data.feature_start_step)  # pyright: ignore
    assert seen == set(scene.splits["train"].tolist())
    _, batch = data.next_train(STEPS)
    store = data.feature_stores["image"]  # pyright: ignore
    pixels = batch["pixels"]
    expected, _ = store.lookup(
        torch.full_like(pixels, batch["frame_index"]), pixels // scene.width, pixels % scene.width
    )
    assert torch.equal(batch["features"]["image"][0], expected)


def test_a_checkpoint_of_another_method_is_refused(start: Start):
    trainer = start("run")
    state = {"_model.field.static.weight": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"config\.yml"):
        trainer.pipeline.load_pipeline(state, 0)


def test_layers_are_written_in_the_layout_of_gaussian_splatting(start: Start, tmp_path):
    trainer = start("run", model={"degree": 1})
    trainer.train()
    model = model_of(trainer)
    camera, _ = trainer.pipeline.datamanager.next_eval_image(0)  # pyright: ignore
    written = write_layers(model, tmp_path / "ply", camera)
    assert "static" in written
    vertices = PlyData.read(str(written["static"]))["vertex"]
    names = [each.name for each in vertices.properties]
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[-8:] == ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert sum(name.startswith("f_rest_") for name in names) == 9
    rows, length = model.gaussian_layer("static").rows, float(model.space.length)
    alive = rows["opacities"].sigmoid() > 1 / 255
    np.testing.assert_allclose(vertices["y"], rows["means"][alive, 1].detach() * length, rtol=1e-5)
    np.testing.assert_allclose(vertices["scale_2"], rows["scales"][alive, 2].detach() + np.log(length), rtol=1e-4)
    np.testing.assert_allclose(vertices["opacity"], rows["opacities"][alive].detach(), atol=1e-3)
    np.testing.assert_allclose(vertices["f_rest_3"], rows["harmonics"][alive, 0, 1].detach(), atol=1e-6)


def test_export_writes_the_layers_of_a_run_and_nothing_of_other_methods(start: Start, monkeypatch):
    trainer = start("run")
    trainer.config.save_config()
    trainer.train()
    path = trainer.base_dir / "config.yml"
    folder = ExportConfig(load_config=path, what="gaussians", time=0.4).main()
    counts = {file.stem: len(PlyData.read(str(file))["vertex"].data) for file in folder.glob("*.ply")}
    model = model_of(trainer)
    assert set(counts) == set(LAYERS) and all(0 < counts[name] <= len(model.gaussian_layer(name)) for name in LAYERS)
    other = SimpleNamespace(model=object(), times=np.zeros(1))
    monkeypatch.setattr("divff_nerfstudio.cli.export.open_scene", lambda *_: other)
    with pytest.raises(RunError, match="divff-splat"):
        ExportConfig(load_config=path, what="gaussians").main()


def test_points_are_read_where_the_scene_has_some(start: Start, tiny_scene):
    positions = np.random.default_rng(0).normal(size=(50, 3))
    colours = [(255, 0, 0)] * 50
    lines = ["ply", "format ascii 1.0", "element vertex 50"]
    lines += [f"property float {name}" for name in "xyz"]
    lines += [f"property uchar {name}" for name in ("red", "green", "blue")] + ["end_header"]
    lines += [" ".join(map(str, (*p, *c))) for p, c in zip(positions, colours, strict=True)]
    (tiny_scene / "points3D.ply").write_text("\n".join(lines) + "\n")
    found, red = read_points(tiny_scene / "points3D.ply")
    np.testing.assert_allclose(found, positions, rtol=1e-5)
    assert torch.equal(red, torch.tensor([[1.0, 0, 0]]).expand(50, 3))
    model = model_of(start("run"))
    placed = model.gaussian_layer("static").rows["means"].detach() * model.space.length
    assert len(placed) == 50 and (placed[:, None] - found).norm(dim=-1).amin(1).max() < 1e-4


def test_missing_points_stop_training_before_it_starts(start: Start, tmp_path):
    with pytest.raises(TrainingError, match=r"nowhere\.ply"):
        start("run", model={"points": tmp_path / "nowhere.ply"})


@pytest.mark.parametrize("content", [None, "ply\n", "x y z"])
def test_unreadable_points_are_named(tmp_path, content):
    path = tmp_path / "points3D.ply"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SceneError, match=r"points3D\.ply"):
        read_points(path)


def test_random_points_lie_in_frustums(tiny_scene):
    scene = load_scene(tiny_scene)
    positions, colours = random_points(scene, 200)
    assert positions.shape == colours.shape == (200, 3) and colours.min() >= 0 and colours.max() <= 1
    train = scene.splits["train"]
    inside = torch.zeros(200, dtype=torch.bool)
    for index in train:
        pose = torch.from_numpy(scene.camera_to_worlds[index])
        camera = (positions - pose[:, 3]) @ pose[:, :3]
        depth = -camera[:, 2]
        pixel = camera[:, :2] / depth[:, None] * torch.tensor((1.0, -1.0)) * float(scene.intrinsics[0, 0])
        fits = (pixel[:, 0].abs() <= scene.width / 2) & (pixel[:, 1].abs() <= scene.height / 2 + 1)
        inside |= fits & (depth >= scene.nears[index] - 1e-4) & (depth <= scene.fars[index] + 1e-4)
    assert inside.all()


def test_a_gaussian_that_comes_back_leaves_one_place_behind_it(start: Start):
    trainer = start("run")
    splat, optimizers = model_of(trainer), list(trainer.optimizers.optimizers.values())
    static, dynamic = splat.gaussian_layer("static"), splat.gaussian_layer("dynamic")
    count, where = len(static), static.rows["means"].detach().clone()
    infinity = float("inf")
    stays = Intervals(
        ids=torch.tensor([9, 4, 9]),
        starts=torch.tensor([-infinity, 0.2, 0.7]),
        ends=torch.tensor([0.3, 0.5, infinity]),
        behind=torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
    )
    give_durations(splat, SimpleNamespace(stays=lambda most: stays), optimizers)  # pyright: ignore[reportArgumentType]
    assert len(static) == count and len(dynamic) == 3
    torch.testing.assert_close(dynamic.rows["means"].detach(), where[[9, 4, 9]])
    colours = (static.rows["colours"].detach()[-2:] * HARMONIC_0 + 0.5).round()
    assert colours.tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


def test_what_a_card_puts_behind_the_camera_is_left_out(start: Start, monkeypatch):
    trainer = start("run")
    trainer.train()
    splat, data = model_of(trainer), trainer.pipeline.datamanager
    splat.gaussian_layer("dynamic").rows["opacities"].data[::2] = -9.0  # not to be seen
    camera, batch = data.next_train(0)
    found, exported = [], []
    for on_card in (False, True):
        monkeypatch.setattr(splats, "is_card", lambda device, on_card=on_card: on_card)
        splat.update_to_step(splat.schedule.heads_start_step)
        view = splat.get_outputs_for_camera(camera)
        splat.train()
        splat.update_to_step(splat.schedule.heads_start_step - 1)
        torch.manual_seed(0)
        outputs = splat(camera)
        hidden = outputs["splats"]["dynamic"].seen
        assert (hidden is None) != on_card
        losses = splat.get_loss_dict(outputs, batch)
        splat.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        gradients = {name: row.grad.clone() for name, row in splat.named_parameters() if row.grad is not None}
        splat.eval()
        found.append((view, losses, gradients))
        exported.append({layer: len(each) for layer, each in splat.gaussians_at(camera).items()})
    assert exported[0] == exported[1] and exported[0]["dynamic"] < len(splat.gaussian_layer("dynamic"))
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.allclose(value, other[name], atol=2e-5, rtol=1e-3), name


def test_a_gpu_without_a_compiler_is_told_before_training(start: Start, monkeypatch):
    monkeypatch.setattr(rasterise.shutil, "which", lambda program: None)
    monkeypatch.setattr(rasterise, "find_spec", lambda name: None)
    rasterise.require_kernels.cache_clear()
    config = SplatModelConfig()
    with pytest.raises(DivffError, match=r"nvcc and ninja must be on PATH: install .* toolkit") as error:
        config.settle("cuda", 10, DivFFDataManagerConfig(features="none"))
    assert "\n" not in str(error.value)
    config.settle("cpu", 10, DivFFDataManagerConfig(features="none"))
    monkeypatch.setattr(rasterise, "find_spec", lambda name: object())  # a build with its kernels needs none
    config.settle("cuda", 10, DivFFDataManagerConfig(features="none"))
    rasterise.require_kernels.cache_clear()


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        ("float", "0 0 0 1 0.5 0", [1.0, 0.5, 0.0]),
        ("float", "0 0 0 255 0 51", [1.0, 0.0, 0.2]),
        ("ushort", "0 0 0 65535 0 13107", [1.0, 0.0, 0.2]),
        ("uchar", "0 0 0 255 0 51", [1.0, 0.0, 0.2]),
        ("float", "0 0 0 nan 0 0", "not from 0 to 255"),
        ("int", "0 0 0 256 0 0", "not from 0 to 255"),
        ("uchar", "1e30 0 0 1 2 3", "not finite"),
    ],
)
def test_colours_of_points_are_told_by_their_kind(tmp_path, kind, values, said):
    places = "".join(f"property float {axis}\n" for axis in "xyz")
    colours = "".join(f"property {kind} {colour}\n" for colour in ("red", "green", "blue"))
    path = tmp_path / "points.PLY"
    path.write_text(f"ply\nformat ascii 1.0\nelement vertex 1\n{places}{colours}end_header\n{values}\n")
    if isinstance(said, str):
        with pytest.raises(SceneError, match=said):
            read_points(path)
    else:
        assert read_points(path)[1].tolist() == [pytest.approx(said)]


def test_points_beyond_their_file_are_refused_at_once(tmp_path):
    path = tmp_path / "points.ply"
    path.write_bytes(
        b"ply\nformat binary_little_endian 1.0\nelement vertex 1000000000000\nproperty float x\nend_header\n"
    )
    with pytest.raises(SceneError, match="more entries than it has"):
        read_points(path)
    path = tmp_path / "points3D.bin"
    point = struct.pack("<Q3d3BdQ", 1, 0.0, 0.0, 0.0, 1, 2, 3, 0.5, 2**31)
    path.write_bytes(struct.pack("<Q", 1) + point)
    with pytest.raises(SceneError, match="2147483648 images see a point, for which it is too short"):
        read_points(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"use_grad_scaler": True}, "leave --mixed-precision"), ({}, r"--optimizers\.means\.optimizer\.max-norm")],
)
def test_gradients_that_are_scaled_or_clipped_are_refused(start: Start, changes: dict[str, bool], said: str):
    trainer = start("run")
    optimizers = trainer.optimizers
    scaler = SimpleNamespace(is_enabled=lambda: bool(changes))
    if not changes:
        optimizers.config["means"]["optimizer"] = replace(optimizers.config["means"]["optimizer"], max_norm=1.0)
    attributes = TrainingCallbackAttributes(optimizers, scaler, trainer.pipeline, trainer)  # pyright: ignore
    with pytest.raises(TrainingError, match=said):
        model_of(trainer).get_training_callbacks(attributes)


def test_a_pixel_without_room_is_at_no_camera():
    """A Gaussian seeded there would be where the camera is, where nothing has a place in a picture."""
    depths, alpha = torch.tensor([0.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert depths_of_room(depths, alpha).tolist() == [3, 2, 3, 4]
    assert depths_of_room(depths, torch.zeros(4)).tolist() == [1, 1, 1, 1]


def test_an_export_leaves_no_layer_of_an_earlier_one(start: Start, tmp_path: Path):
    trainer = start("run")
    trainer.train()
    model, camera = model_of(trainer), trainer.pipeline.datamanager.next_train(0)[0]
    model.eval()
    assert set(write_layers(model, tmp_path, camera)) == set(LAYERS)
    model.gaussian_layer("dynamic").rows["opacities"].data[:] = -9.0
    assert set(write_layers(model, tmp_path, camera)) == {"static", "actor"}
    assert {path.stem for path in tmp_path.glob("*.ply")} == {"static", "actor"}


@pytest.mark.parametrize("missing", [(), ("nvcc",)])
def test_a_run_is_opened_where_its_kernels_run(monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("divff_nerfstudio.models.splat.model.missing_for_kernels", lambda: missing)
    assert SplatModelConfig().opened_on() == torch.device("cpu" if missing else "cuda")
