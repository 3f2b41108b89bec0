"""The published network, its rays and its schedule: what holds for any weights."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import tiny_run
import torch
import torch.nn.functional as F
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox

from divff_nerfstudio.features.autoencoder import Autoencoder, AutoencoderConfig, save_autoencoder
from divff_nerfstudio.fields.layers import LAYERS, SamplePoints
from divff_nerfstudio.fields.published import PublishedField, PublishedFieldConfig
from divff_nerfstudio.fields.published_heads import HIDDEN_LAYERS, PublishedHeads, PublishedHeadsConfig
from divff_nerfstudio.models import paper
from divff_nerfstudio.models.paper import PublishedModel, PublishedModelConfig, PublishedModelError
from divff_nerfstudio.models.schedule import PublishedScheduleConfig, StagedCosine, StagedCosineConfig
from divff_nerfstudio.models.view import PICTURES
from divff_nerfstudio.rendering import composite, even_depths, importance_depths, open_intervals
from divff_nerfstudio.trainer import DivFFTrainer, TrainingError

FIELD = PublishedFieldConfig(
    position_octaves=3,
    direction_octaves=2,
    time_octaves=4,
    trunk_width=24,
    branch_width=12,
    appearance_dim=5,
    time_dim=6,
)
DIMENSIONS = {"image": 8, "video": 10, "regulariser": 6}
SCRIPTS = Path(__file__).parent.parent / "scripts"
ROWS, TRAINED = 41, (4, 6, 10, 20)
HEADS_START, FROZEN = 20, 4
WIDTH, HEIGHT = 9, 6


def make_model(features: bool = True, **options) -> PublishedModel:
    """A tiny model of four training frames and one between two of them."""
    torch.manual_seed(0)
    schedule = PublishedScheduleConfig(frozen_steps=FROZEN, epochs=(10, 3), steps_per_epoch=2.0)
    config = PublishedModelConfig(
        fields=FIELD, heads=PublishedHeadsConfig(hidden=7, samples=5), schedule=schedule, coarse_samples=9,
        importance_samples=6, **options
    )  # fmt: skip
    times, all_times = torch.tensor(TRAINED) / (ROWS - 1), torch.tensor((*TRAINED, 5)) / (ROWS - 1)
    metadata = {"times": times, "nears": 0.5 + times, "fars": 3 + times, "time_rows": ROWS, "all_times": all_times}
    metadata |= {"all_nears": 0.1 + all_times, "all_fars": 5 + all_times}
    if features:
        metadata["feature_dims"] = DIMENSIONS
    model = config.setup(scene_box=SceneBox(torch.zeros(2, 3)), num_train_data=4, metadata=metadata)
    assert isinstance(model, PublishedModel)
    model.update_to_step(HEADS_START + FROZEN)
    return model


def camera(row: float = 5.0) -> Cameras:
    times = torch.tensor([[row / (ROWS - 1)]])
    return Cameras(torch.eye(4)[None, :3], 10.0, 10.0, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT, times=times)


def bundle(rays: int = 16, row: float = 6.0):
    found = camera(row).generate_rays(0, keep_shape=True).flatten()[:rays]
    found.metadata = {"camera_directions": found.directions}
    found.nears, found.fars = torch.full((rays, 1), 0.5), torch.full((rays, 1), 4.0)
    return found


def batch_of(rays: int = 16) -> dict:
    valid = torch.arange(rays) % 3 > 0
    targets = {kind: (F.normalize(torch.randn(rays, dim), dim=-1), valid) for kind, dim in DIMENSIONS.items()}
    return {"image": torch.rand(rays, 3), "features": targets}


def points(rays: int = 5, samples: int = 7) -> SamplePoints:
    places = torch.randn(2, rays, samples, 3)
    return SamplePoints(places[0], places[1], F.normalize(torch.randn(rays, 3), dim=-1), torch.rand(rays, 1))


def make_field(rows: int = ROWS, trained: tuple[int, ...] = TRAINED) -> PublishedField:
    torch.manual_seed(0)
    return PublishedField(FIELD, rows, torch.tensor(trained) / (rows - 1))


def test_the_network_is_its_straightforward_version_with_equal_gradients(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from bench_published import straightened

    model = make_model(jitter=False, density_noise=0.0)
    copied = straightened(model)
    found, gradients = [], []
    for each in (model, copied):
        each.train()
        each.end_colours = lambda rays: torch.zeros(rays, 3)
        torch.manual_seed(0)
        losses = each.get_loss_dict(each(bundle()), batch_of())
        torch.stack(list(losses.values())).sum().backward()
        found.append(losses)
        gradients.append({name: p.grad for name, p in each.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) == sum(1 for _ in model.parameters()) - 1  # nerfstudio's device indicator has none
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], rtol=1e-5), name
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-5 * (1 + float(gradient.abs().max()))), name
    pictures, expected = (each.get_outputs_for_camera(camera()) for each in (model, copied))
    assert all(torch.allclose(pictures[name], expected[name], atol=1e-5) for name in PICTURES)
    features, expected = (each.render(camera(), outputs=("features",)).features for each in (model, copied))
    assert all(torch.allclose(features[kind], expected[kind], atol=1e-5) for kind in DIMENSIONS)


@pytest.mark.parametrize("layers", [("static",), ("static", "dynamic"), ("static", "actor")])
def test_layers_are_the_same_whichever_are_asked(layers):
    field, at = make_field(), points()
    everything, some = field(at, LAYERS), field(at, layers)
    assert tuple(some) == layers
    assert all(torch.allclose(some[layer].density, everything[layer].density, atol=1e-6) for layer in layers)


def test_the_coarse_network_gives_the_same_densities_with_and_without_colours():
    field, at = make_field(), points()
    density, colours = field.coarse(at, colours=True)
    alone, none = field.coarse(at, colours=False)
    assert (
        torch.allclose(density, alone, atol=1e-6)
        and none is None
        and colours is not None
        and colours.shape == (5, 7, 3)
    )


@pytest.mark.parametrize("rows", [41, 1000])
def test_appearance_is_that_of_the_nearest_training_frame_or_the_earlier_one(rows):
    trained = (3, 5, 9, 10, 30)
    field = make_field(rows, trained)
    ids = torch.arange(41)
    expected = [min(trained, key=lambda i: (abs(i - frame), i)) for frame in range(41)]
    assert field.appearance_rows((ids / (rows - 1))[:, None]).tolist() == expected


def test_times_between_frames_have_codes_between_theirs():
    field = make_field()
    codes = field.time_code(torch.tensor([[5.0], [5.001], [6.0]]) / (ROWS - 1))
    assert 0 < (codes[1] - codes[0]).norm() < 0.01 * (codes[2] - codes[0]).norm()


def test_features_are_the_sum_over_samples_of_what_heads_say_of_each():
    torch.manual_seed(0)
    heads = PublishedHeads(PublishedHeadsConfig(hidden=7, samples=4), FIELD.branch_width, DIMENSIONS)
    field = make_field()
    at = points()
    samples = field(at, LAYERS)
    weights = {layer: torch.rand(5, 7) for layer in LAYERS}
    code = heads.code(at, samples, weights, field.time_code(at.times))
    for kind, dimension in DIMENSIONS.items():
        expected = torch.zeros(5, dimension)
        for layer in LAYERS:
            for ray in range(5):
                for sample in weights[layer][ray].argsort(descending=True)[:4]:
                    value = heads.head(layer, kind)(samples[layer].encoding[ray, sample])
                    expected[ray] += weights[layer][ray, sample] * value
        assert torch.allclose(heads.decode(code, kind), F.normalize(expected, dim=-1), atol=1e-5), kind
        assert sum(isinstance(module, torch.nn.ReLU) for module in heads.head("static", kind)) == HIDDEN_LAYERS[kind]


def test_the_open_end_gives_each_layer_its_own_opacity():
    torch.manual_seed(0)
    densities = {layer: torch.rand(6, 5) + 0.1 for layer in LAYERS}
    depths = torch.rand(6, 5).sort(-1).values
    found = composite(densities, open_intervals(depths), open_end=True)
    closed = composite(densities, open_intervals(depths))
    reached = found.transmittance[:, -1]
    for layer in LAYERS:
        assert torch.allclose(found.weights[layer][:, :-1], closed.weights[layer][:, :-1], atol=1e-6)
        assert torch.allclose(found.weights[layer][:, -1], reached, atol=1e-6)
    assert torch.allclose(found.joint.sum(-1), torch.ones(6), atol=1e-6)
    assert torch.allclose(found.total.sum(-1) - 1, 2 * reached, atol=1e-5)


def test_drawn_depths_follow_the_weights():
    rays = bundle(8)
    depths = even_depths(rays, 33, jitter=False)
    assert torch.allclose(depths[:, [0, -1]], torch.tensor([0.5, 4.0]))
    peak = ((depths[:, 1:] + depths[:, :-1]) / 2 - 2.0).abs() < 0.2
    for jitter in (False, True):
        drawn = importance_depths(depths, peak.float(), 200, jitter)
        assert ((drawn - 2.0).abs() < 0.3).float().mean() > 0.95
        assert (drawn >= 0.5).all() and (drawn <= 4.0).all()
    torch.manual_seed(0)
    moved = even_depths(rays, 33, jitter=True)
    assert not torch.equal(moved, depths) and (moved[:, 1:] >= moved[:, :-1]).all()


def test_views_have_the_outputs_of_all_methods_whatever_the_memory():
    model = make_model()
    whole = model.get_outputs_for_camera(camera())
    assert tuple(whole) == PICTURES
    for name, picture in whole.items():
        assert picture.shape[:2] == (HEIGHT, WIDTH) and picture.isfinite().all(), name
    features = model.render(camera(), outputs=("features",)).features
    assert {kind: values.shape[-1] for kind, values in features.items()} == DIMENSIONS
    before = model.rays_at_once
    model.config.memory_mb = 1
    assert model.rays_at_once < before
    again = model.get_outputs_for_camera(camera())
    assert all(torch.allclose(again[name], whole[name], atol=1e-5) for name in PICTURES)


def test_a_card_with_more_memory_renders_more_rays_at_once(monkeypatch):
    model, free = make_model(), 3 * 2**30
    on_host = model.rays_at_once
    monkeypatch.setattr(paper, "free_bytes", lambda device: free)
    model._free_at_first = None
    on_card = model.rays_at_once
    assert on_card == pytest.approx(8 * on_host, rel=0.01)
    free = 2**30
    assert model.rays_at_once == on_card  # it is not split anew as memory fills


def test_hidden_layers_are_not_rendered():
    model = make_model()
    shown = model.get_outputs_for_camera(camera())
    hidden = model.render(camera(), layers=("static", "dynamic")).pictures
    assert shown["mask_actor"].any() and not hidden["mask_actor"].any() and not hidden["rgb_actor"].any()
    assert hidden["mask_dynamic"].mean() > shown["mask_dynamic"].mean()


@pytest.mark.parametrize("bounds", ["frames", "training"])
def test_near_and_far_of_views(bounds):
    model = make_model(bounds=bounds)
    rays = bundle(row=5.0)
    rays.nears = rays.fars = None
    found = model._bounded(rays)
    row = torch.tensor(5.0 if bounds == "frames" else 4.0) / (ROWS - 1)
    assert torch.allclose(found.nears, (0.1 if bounds == "frames" else 0.5) + row)


def test_a_table_of_frames_is_needed():
    model = make_model()
    metadata = model.kwargs["metadata"] | {"time_rows": None}
    with pytest.raises(PublishedModelError, match="time-rows"):
        model.config.setup(scene_box=model.scene_box, num_train_data=4, metadata=metadata)


def losses_at(model: PublishedModel, step: int) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Losses of a step, and which parts of the model they teach."""
    model.train()
    model.update_to_step(step)
    model.zero_grad()
    losses = model.get_loss_dict(model(bundle()), batch_of())
    torch.stack(list(losses.values())).sum().backward()
    taught = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    return losses, {".".join(name.split(".")[:2]) for name in taught}


GEOMETRY = {"coarse", "photometric", "uncertainty", "density"}
FEATURES = {f"features_{kind}" for kind in DIMENSIONS}


def test_the_stages_teach_what_they_should():
    model = make_model()
    networks, codes = {"field.nerf_coarse", "field.nerf_fine"}, {"field.embedding_t", "field.embedding_a"}
    losses, taught = losses_at(model, HEADS_START - 1)
    assert set(losses) == GEOMETRY and taught == networks | codes
    losses, taught = losses_at(model, HEADS_START)
    assert set(losses) == GEOMETRY | FEATURES
    assert codes <= taught and not taught & networks and "semantic.static_lerf" in taught
    losses, taught = losses_at(model, HEADS_START + FROZEN)
    assert set(losses) == GEOMETRY | FEATURES and networks | codes <= taught


def test_the_end_of_rays_is_opaque_and_of_any_colour_in_training_only():
    model = make_model()
    model.train()
    ends = [model.composited_rays(bundle(), LAYERS).fields["static"] for _ in range(2)]
    assert (ends[0].density[:, -1] == 100).all() and not torch.equal(ends[0].rgb[:, -1], ends[1].rgb[:, -1])
    model.eval()
    assert (model.composited_rays(bundle(), LAYERS).fields["static"].density[:, -1] < 50).all()


def test_image_features_are_learnt_as_codes_and_asked_decoded(tmp_path: Path):
    torch.manual_seed(0)
    sizes = AutoencoderConfig(feature_dim=8, encoder_widths=(6, 4), decoder_widths=(5,))
    save_autoencoder(Autoencoder(sizes), tmp_path / "autoencoder.pth")
    model = make_model(autoencoder=tmp_path / "autoencoder.pth")
    assert model.semantic is not None and model.semantic.dimensions["image"] == 4
    assert model.render(camera(), outputs=("features",)).features["image"].shape == (HEIGHT, WIDTH, 8)
    before = {name: value.clone() for name, value in model.autoencoder.state_dict().items()}
    losses, _ = losses_at(model, HEADS_START)
    assert losses["features_image"].isfinite() and "heads" in model.get_param_groups()
    assert all(torch.equal(before[name], value) for name, value in model.autoencoder.state_dict().items())
    (tmp_path / "autoencoder.pth").unlink()
    later = copy.deepcopy(model.config).setup(
        scene_box=model.scene_box, num_train_data=4, metadata=model.kwargs["metadata"]
    )
    later.load_state_dict(model.state_dict(), strict=True)
    save_autoencoder(Autoencoder(dataclasses.replace(sizes, feature_dim=9)), tmp_path / "other.pth")
    with pytest.raises(PublishedModelError, match="autoencoder"):
        make_model(autoencoder=tmp_path / "other.pth")


def test_the_schedule_has_the_published_epochs_and_scales():
    full = PublishedScheduleConfig()
    full.settle(pixels=1_000_001, rays=1000, features=True, steps=None)
    assert (full.steps, full.staged().heads_start_step) == (13 * 1001, 10 * 1001)
    frozen = full.staged().networks_frozen
    assert frozen(10010) and not frozen(10009) and not frozen(15010)
    geometry = PublishedScheduleConfig()
    geometry.settle(1_000_000, 1000, features=False, steps=None)
    assert geometry.steps == geometry.staged().heads_start_step == 10000
    short = PublishedScheduleConfig()
    short.settle(1_000_000, 1000, features=True, steps=130)
    assert (short.steps, short.staged().heads_start_step, short.frozen_steps) == (130, 100, 50)
    again = dataclasses.replace(short)
    again.settle(5, 5, features=False, steps=7)
    assert again == short
    heads = PublishedScheduleConfig(stages="heads")
    heads.settle(1_000_000, 1000, features=True, steps=None)
    assert (heads.steps, heads.staged().heads_start_step) == (3000, 0) and heads.staged().networks_frozen(0)
    joint = PublishedScheduleConfig(stages="joint")
    joint.settle(1_000_000, 1000, features=True, steps=None)
    assert (joint.steps, joint.staged().heads_start_step) == (13000, 0) and not joint.staged().networks_frozen(0)


def test_the_learning_rate_is_a_cosine_per_stage_changed_once_an_epoch():
    factor = StagedCosine(StagedCosineConfig(epochs=(10, 3), steps_per_epoch=4.0)).factor
    assert [factor(step) for step in (0, 3, 40, 43)] == [1, 1, 1, 1]
    assert factor(20) == pytest.approx(0.5) and factor(44) == pytest.approx(0.75) and factor(52) == 0.0
    assert factor(39) < 0.03 and all(factor(step) >= factor(step + 1) for step in range(39))


def test_a_step_in_parts_is_the_step_at_once():
    model = make_model(jitter=False, density_noise=0.0)
    model.train()
    model.end_colours = lambda rays: torch.zeros(rays, 3)
    rays, batch, found = bundle(50), batch_of(50), []
    for memory in (1000, 1):
        model.config.memory_mb = memory
        assert (model.rays_at_once >= 50) == (memory == 1000)
        model.zero_grad()
        _, losses, metrics = model.training_step(rays, batch)
        (2 * torch.stack(list(losses.values())).sum()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((losses, {"share_actor": metrics["share_actor"]}, gradients))
    for once, parts in zip(*found, strict=True):
        assert once.keys() == parts.keys()
        for name, value in once.items():
            assert torch.allclose(parts[name], value, rtol=1e-4, atol=1e-6), name


@pytest.fixture
def begin(tiny_scene: Path, tmp_path: Path):
    """Sets a training of divff-paper up."""

    def setup(name: str, steps: int = 13, **changes) -> DivFFTrainer:
        config = tiny_run.published_config(tiny_scene, tmp_path / name, steps)
        for key, value in changes.items():
            setattr(config, key, value)
        torch.manual_seed(0)
        trainer = tiny_run.trainer_of(config)
        trainer.setup()
        return trainer

    return setup


def test_it_trains_both_stages_and_resumes_exactly(begin, tiny_scene: Path, tmp_path: Path):
    tiny_run.write_features(tiny_scene, tmp_path / "encoder")
    unbroken = begin("unbroken", steps_per_save=6, save_only_latest_checkpoint=False)
    schedule = unbroken.pipeline.model.config.schedule
    assert (schedule.staged().heads_start_step, schedule.steps) == (10, 13)
    unbroken.train()
    resumed = begin("resumed", load_dir=unbroken.checkpoint_dir, load_step=6)
    resumed.train()
    expected, found = tiny_run.parameters(unbroken.pipeline.model), tiny_run.parameters(resumed.pipeline.model)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    moments = unbroken.optimizers.optimizers["codes"].state
    assert {int(state["step"]) for state in moments.values()} == {3}


def test_heads_are_trained_on_given_geometry(begin, tiny_scene: Path, tmp_path: Path):
    geometry = begin("geometry", steps=2)
    assert geometry.pipeline.model.semantic is None
    geometry.train()
    state = torch.load(next(geometry.checkpoint_dir.iterdir()), weights_only=True)
    torch.save(state | {"step": -1, "optimizers": {}, "schedulers": {}}, tmp_path / "imported.ckpt")
    tiny_run.write_features(tiny_scene, tmp_path / "encoder")
    config = tiny_run.published_config(tiny_scene, tmp_path / "heads", 3)
    config.pipeline.model.schedule.stages = "heads"
    trainer = begin("heads", steps=3, load_checkpoint=tmp_path / "imported.ckpt", pipeline=config.pipeline)
    assert trainer._start_step == 0 and trainer.pipeline.model.semantic is not None
    before = tiny_run.parameters(trainer.pipeline.model.field)
    for name, value in before.items():
        assert torch.equal(state["pipeline"][f"_model.field.{name}"], value)
    trainer.train()
    after = tiny_run.parameters(trainer.pipeline.model.field)
    same = {name for name in before if torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.startswith("nerf_")}
    assert same >= frozen if trainer.pipeline.model.config.schedule.frozen_steps >= 3 else not same >= frozen


def test_heads_without_features_are_refused(tiny_scene: Path, tmp_path: Path):
    config = tiny_run.published_config(tiny_scene, tmp_path, 3)
    config.pipeline.model.schedule.stages = "heads"
    with pytest.raises(TrainingError, match="divff extract"):
        config.settle()
