"""The model: its outputs, its schedule, and what its cameras may lack."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_run
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox, SceneBox

from divff_nerfstudio.data.epic_diff import EpicDiffDataParserConfig
from divff_nerfstudio.features.pca import fit_feature_basis
from divff_nerfstudio.fields.layers import LAYERS, LayerSamples, SamplePoints
from divff_nerfstudio.fields.next_in_time import nearest_frame
from divff_nerfstudio.models import base, divff
from divff_nerfstudio.models import rays as rays_module
from divff_nerfstudio.models.divff import DivFFModel, DivFFModelConfig
from divff_nerfstudio.models.view import COMPOSITED, EVERYTHING, FEATURES, FEATURES_PCA, PICTURES, RenderError
from divff_nerfstudio.pipeline import CheckpointError, DivFFPipeline
from divff_nerfstudio.rendering import head_positions
from divff_nerfstudio.viewer.views import ViewCache, Visibility

CHANNELS = {
    **dict.fromkeys(PICTURES, 1),
    **{name: 3 for name in PICTURES if name.startswith("rgb")},
}
MOVING_START, HEADS_START, JOINT_START = 4, 8, 10
WIDTH, HEIGHT = 12, 7


def make_model(features: bool = True, frames: int = 5, implementation="planes", **options) -> DivFFModel:
    """A tiny model of some frames; the later a frame, the farther its near and far."""
    torch.manual_seed(0)
    config = tiny_run.shrink(DivFFModelConfig(**options))
    config.fields.implementation = implementation
    config.moving_start_step, config.heads_start_step, config.joint_start_step = MOVING_START, HEADS_START, JOINT_START
    times = torch.linspace(0, 1, frames)
    metadata = {"times": times, "nears": 0.5 + times, "fars": 3 + times}
    if features:
        metadata["feature_dims"] = {"image": 12, "video": 12, "regulariser": 6}
    box = SceneBox(torch.tensor([[-3.0, -3, -5], [3, 3, 1]]))
    model = config.setup(scene_box=box, num_train_data=frames, metadata=metadata)
    assert isinstance(model, DivFFModel)
    model.update_to_step(JOINT_START)
    return model


def camera(time: float | None = 0.3, x: float = 0.0) -> Cameras:
    pose = torch.eye(4)[None, :3]
    pose[:, 0, 3] = x
    times = None if time is None else torch.tensor([[time]])
    return Cameras(pose, 10.0, 10.0, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT, times=times)


def batch_of(rays: int = 16) -> dict:
    valid = torch.arange(rays) % 3 > 0
    features = {kind: (torch.randn(rays, dim), valid) for kind, dim in (("image", 12), ("video", 12))}
    return {"image": torch.rand(rays, 3), "features": {**features, "regulariser": (torch.randn(rays, 6), valid)}}


def bundle(model: DivFFModel, rays: int = 16, time: float = 0.3):
    found = camera(time).generate_rays(0, keep_shape=True).flatten()[:rays]
    found.metadata = {"camera_directions": found.directions}
    return found


def losses_at(model: DivFFModel, step: int) -> dict[str, torch.Tensor]:
    """Losses of one step, and the gradients of their sum."""
    torch.manual_seed(step)
    model.train()
    model.update_to_step(step)
    model.zero_grad()
    outputs = model(bundle(model))
    losses = model.get_loss_dict(outputs, batch_of())
    torch.stack(list(losses.values())).sum().backward()
    return losses


def taught(model: DivFFModel) -> set[str]:
    """Parts of the model that got a gradient."""
    names = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    return {".".join(name.split(".")[:2]) for name in names}


def test_outputs_have_their_names_in_order_shapes_and_ranges():
    model = make_model()
    model.update_to_step(HEADS_START - 1)
    outputs = model.get_outputs_for_camera(camera())
    assert tuple(outputs) == PICTURES
    assert PICTURES[:3] == ("rgb", "depth", "accumulation")
    for name, picture in outputs.items():
        assert picture.shape == (HEIGHT, WIDTH, CHANNELS[name]) and picture.isfinite().all(), name
        assert name == "depth" or (picture.min() >= 0 and picture.max() <= 1), name
    assert torch.allclose(outputs["mask_moving"], outputs["mask_dynamic"] + outputs["mask_actor"], atol=1e-6)
    assert (outputs["mask_moving"] <= outputs["accumulation"] + 1e-5).all()
    assert (outputs["uncertainty"] >= model.config.min_uncertainty).all()
    assert model.render(camera(), outputs=(FEATURES,)).features == {}


@pytest.mark.parametrize(
    ("free", "rays"), [(None, 20), (20 * 2**20, 20), (36 * 2**20, 36), (64 * 2**20, 64), (2**40, 2**20)]
)
def test_a_card_renders_as_many_rays_at_a_time_as_its_memory_holds(monkeypatch, free, rays):
    model = make_model(eval_num_rays_per_chunk=20)
    expected = model.render(camera()).pictures
    monkeypatch.setattr(rays_module, "free_bytes", lambda device: free)
    assert model.rays_in_a_chunk == rays
    taken, along = [], model.along
    monkeypatch.setattr(model, "along", lambda bundle, *words: taken.append(len(bundle)) or along(bundle, *words))
    found = model.render(camera()).pictures
    assert taken == [min(rays, WIDTH * HEIGHT - start) for start in range(0, WIDTH * HEIGHT, rays)]
    assert all(torch.allclose(found[name], picture, atol=1e-5) for name, picture in expected.items())


def test_features_and_answers_follow_the_pictures():
    model = make_model()
    model.feature_basis = fit_feature_basis(torch.randn(50, 12))
    model.query = SimpleNamespace(answer=lambda outputs, features: {"relevancy": features["image"][..., :1]})
    outputs = model.get_outputs_for_camera(camera())
    assert tuple(outputs) == (*PICTURES, "features_pca", "relevancy")
    assert outputs["features_pca"].shape == (HEIGHT, WIDTH, 3)
    features = model.render(camera(), outputs=(FEATURES,)).features
    assert {kind: values.shape for kind, values in features.items()} == {
        "image": (HEIGHT, WIDTH, 12),
        "video": (HEIGHT, WIDTH, 12),
        "regulariser": (HEIGHT, WIDTH, 6),
    }
    for values in features.values():
        assert torch.allclose(values.norm(dim=-1), torch.ones(HEIGHT, WIDTH), atol=1e-5)
    assert torch.equal(outputs["relevancy"], features["image"][..., :1])


def test_answer_is_called_once_a_view_and_decodes_only_what_it_asks_for(monkeypatch):
    model = make_model(eval_num_rays_per_chunk=20)
    decoded, calls = [], []
    decode = model.decode_features
    monkeypatch.setattr(model, "decode_features", lambda code, kind: decoded.append(kind) or decode(code, kind))

    def answer(outputs, features):
        calls.append(tuple(outputs))
        assert set(features) == {"image", "video", "regulariser"} and len(features) == 3 and decoded == []
        with pytest.raises(KeyError):
            features["sound"]
        return {"relevancy": features["video"][..., :1]}

    model.query = SimpleNamespace(answer=answer)
    model.get_outputs_for_camera(camera())
    assert calls == [PICTURES] and decoded == ["video"]


def costly(monkeypatch, model: DivFFModel) -> list[str]:
    """Names of what is computed, as it is, of what costs much: of the views that are rendered from now on."""
    computed = []

    def told(owner, name):
        own = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: computed.append(name) or own(*given))

    told(model.semantic, "code")
    told(model, "_features")
    for name in ("moved_mask", "ray_uncertainty", "transmittance"):  # the last one for a moving layer in the room
        told(divff, name)
    return computed


COSTLY = {"code", "_features", "moved_mask", "ray_uncertainty", "transmittance"}


@pytest.mark.parametrize(
    ("read", "shown", "computed"),
    [
        ({"rgb", "depth"}, ("rgb", "depth"), set()),
        ({"mask_moved"}, ("mask_moved",), {"moved_mask"}),
        ({"rgb_actor", "uncertainty"}, ("rgb_actor", "uncertainty"), {"ray_uncertainty", "transmittance"}),
        ({"features_pca"}, ("features_pca",), {"code", "_features"}),
        ({"relevancy"}, ("rgb", "relevancy"), {"code", "_features"}),
        ({"rgb", "elevation"}, (*PICTURES, "features_pca", "relevancy"), COSTLY),
        (None, (*PICTURES, "features_pca", "relevancy"), COSTLY),
    ],
)
def test_of_nerfstudios_views_only_what_is_read_is_computed(monkeypatch, read, shown, computed):
    """Of a name that there is not, nerfstudio tells all that there are."""
    model = make_model()
    model.feature_basis, model.read_outputs = fit_feature_basis(torch.randn(50, 12)), read
    model.query = SimpleNamespace(
        outputs=("relevancy",), answer=lambda outputs, features: {"relevancy": features["image"][..., :1]}
    )
    found = costly(monkeypatch, model)
    assert tuple(model.get_outputs_for_camera(camera())) == shown and {*found} == computed


@pytest.mark.parametrize(
    ("shown", "computed"),
    [
        (COMPOSITED, set()),
        (("rgb_dynamic",), {"transmittance"}),
        (("features_pca",), {"code", "_features"}),
        ((FEATURES,), {"code"}),
    ],
)
def test_in_the_viewer_only_what_is_looked_at_is_computed(monkeypatch, shown, computed):
    """Features are decoded for a question, which nobody asks here."""
    model = make_model()
    model.feature_basis = fit_feature_basis(torch.randn(50, 12))
    told = {"state": lambda: 0, "answer": lambda view: {}, "seen": lambda client, view: None, "client": lambda: 0}
    views = ViewCache(model, Visibility(), **told, wanted=lambda: {"rgb", *shown})
    found = costly(monkeypatch, model)
    assert tuple(views.outputs(camera())) == (*PICTURES, "features_pca") and {*found} == computed


@pytest.mark.parametrize(
    ("outputs", "alone", "summed"),
    [(("depth", "mask_moving"), 0, 0), (("rgb",), 1, 3), (("rgb_static",), 1, 1), (("rgb", "rgb_static"), 1, 4)],
)
def test_the_static_layer_alone_is_composited_for_who_looks_at_it(monkeypatch, outputs, alone, summed):
    """Its weights are for the shadow, too, which falls where it is; colours are summed for each picture of a layer."""
    model, called = make_model(eval_num_rays_per_chunk=HEIGHT * WIDTH), []
    for name in ("weights_alone", "accumulate"):
        own = getattr(divff, name)
        monkeypatch.setattr(divff, name, lambda *given, own=own, name=name: called.append(name) or own(*given))
    model.render(camera(), outputs=outputs)
    assert (called.count("weights_alone"), called.count("accumulate")) == (alone, summed)


@pytest.mark.parametrize("card", [True, False])
def test_half_precision_of_views_hardly_shows_and_trains_nothing_else(monkeypatch, card):
    """Pictures differ by 60 dB or more, features by an angle of a degree or less; on a card alone they do."""
    monkeypatch.setattr(divff, "is_card", lambda device: card)
    densities, composite = [], divff.composite
    monkeypatch.setattr(
        divff, "composite", lambda found, deltas: densities.extend(found.values()) or composite(found, deltas)
    )
    usual, half = make_model(), make_model(half_precision="on")
    plain, found = (model.render(camera()) for model in (usual, half))
    for name, picture in found.pictures.items():
        expected = plain.pictures[name]
        assert picture.dtype == torch.float32 and (card or torch.equal(picture, expected)), name
        if name.startswith("rgb"):
            assert not card or 1e-12 < (picture - expected).square().mean() < 1e-6, name
    assert densities and all(density.dtype == torch.float32 for density in densities)
    features, expected = found.features["image"], plain.features["image"]
    assert torch.equal(features, expected) != card
    assert (features * expected).sum(-1).min() > 0.9998
    for step in (0, MOVING_START, HEADS_START, JOINT_START):
        losses, expected = losses_at(half, step), losses_at(usual, step)
        assert all(torch.equal(loss, expected[name]) for name, loss in losses.items())
        for (name, one), other in zip(half.named_parameters(), usual.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            assert one.grad is None or other.grad is None or torch.equal(one.grad, other.grad), name


def test_what_there_is_follows_what_is_trained():
    model = make_model()
    assert model.available == (*PICTURES, FEATURES)
    model.feature_basis = fit_feature_basis(torch.randn(50, 12))
    assert model.available == EVERYTHING
    model.update_to_step(HEADS_START - 1)
    assert model.available == PICTURES == make_model(features=False).available


@pytest.mark.parametrize(("free", "parts"), [(None, 4), (2**10, 4), (2**40, 1)])
def test_a_views_features_are_decoded_at_once_where_a_cards_memory_allows_it(monkeypatch, free, parts):
    model = make_model()
    model.feature_basis = fit_feature_basis(torch.randn(50, 12))
    view = model.render(camera(), outputs=(FEATURES, FEATURES_PCA))
    expected = view.features["image"], view.pictures[FEATURES_PCA]
    monkeypatch.setattr(base, "_PIXELS", 2 * WIDTH)
    monkeypatch.setattr(base, "free_bytes", lambda device: free)
    view = model.render(camera(), outputs=(FEATURES, FEATURES_PCA))
    found, decoded = costly(monkeypatch, model), view.features["image"]
    assert found == ["_features"] * parts
    torch.testing.assert_close((decoded, view.pictures[FEATURES_PCA]), expected)


def test_without_features_there_are_pictures_alone():
    model = make_model(features=False)
    model.query = SimpleNamespace(answer=lambda outputs, features: pytest.fail("nothing can be asked"))
    assert tuple(model.get_outputs_for_camera(camera())) == PICTURES
    assert "heads" not in model.get_param_groups() and model.render(camera(), outputs=(FEATURES,)).features == {}


def test_hidden_layers_are_gone_and_what_is_behind_them_shows():
    model = make_model()
    for layer in ("dynamic", "actor"):
        getattr(model.field, layer).density_shift = 3.0
    shown = model.render(camera()).pictures
    assert shown["mask_actor"].mean() > 0.1 and shown["mask_dynamic"].mean() > 0.1
    for layer, other in (("actor", "dynamic"), ("dynamic", "actor")):
        hidden = model.render(camera(), layers=("static", other)).pictures
        assert not hidden[f"mask_{layer}"].any() and not hidden[f"rgb_{layer}"].any()
        assert tuple(hidden) == tuple(shown)
        assert hidden[f"mask_{other}"].mean() > shown[f"mask_{other}"].mean()
    again = model.render(camera()).pictures
    assert all(torch.equal(again[name], shown[name]) for name in PICTURES)


@pytest.mark.parametrize("layers", [(), ("dynamic",), ("static", "floor")])
def test_layers_without_the_room_are_refused(layers):
    with pytest.raises(RenderError, match="name static"):
        make_model().render(camera(), layers=layers)


def test_unknown_outputs_are_refused():
    with pytest.raises(RenderError, match="no output colour, normals: ask for some of rgb, depth"):
        make_model().render(camera(), outputs=("rgb", "normals", "colour"))
    assert tuple(make_model().render(camera(), outputs="rgb").pictures) == ("rgb",)


def test_a_camera_without_time_shows_the_default_time():
    model = make_model(default_time=0.75)
    timeless = model.get_outputs_for_camera(camera(None))
    known = model.get_outputs_for_camera(camera(0.75))
    other = model.get_outputs_for_camera(camera(0.1))
    for name in PICTURES:
        assert torch.equal(timeless[name], known[name])
    assert not torch.equal(timeless["rgb"], other["rgb"])


def test_views_are_the_same_whatever_their_cameras_index():
    model = make_model()
    model.eval()
    one, other = bundle(model), bundle(model)
    other.camera_indices = torch.full_like(other.camera_indices, 3)
    assert one.camera_indices.eq(0).all()
    found, expected = model(other), model(one)
    assert all(torch.equal(found[name], expected[name]) for name in PICTURES)


def test_rendering_the_same_rays_twice_gives_the_same():
    model = make_model()
    model.eval()
    rays = bundle(model)
    first, second = model(rays), model(rays)
    assert all(torch.equal(first[name], second[name]) for name in PICTURES)


@pytest.mark.parametrize(("time", "frame"), [(0.0, 0), (0.1, 0), (0.13, 1), (0.9, 4), (1.0, 4), (1.3, 4), (-1.0, 0)])
def test_near_and_far_are_those_of_the_frame_next_in_time(time, frame):
    model = make_model()
    bounded = model._bounded(bundle(model, time=time))
    assert bounded.nears is not None and bounded.fars is not None
    times = torch.linspace(0, 1, 5)
    assert torch.allclose(bounded.nears, (0.5 + times[frame]) * model.config.near_scale)
    assert torch.allclose(bounded.fars, (3 + times[frame]) * model.config.far_scale)


def test_nearest_time_of_few_frames():
    assert nearest_frame(torch.tensor([0.4]), torch.tensor([[0.0], [1.0]])).flatten().tolist() == [0, 0]
    pair = torch.tensor([0.0, 1.0])
    assert nearest_frame(pair, torch.tensor([[0.5], [0.51], [0.49]])).flatten().tolist() == [0, 1, 0]


def test_rays_with_bounds_keep_them():
    model = make_model()
    rays = bundle(model)
    rays.nears, rays.fars = torch.full((16, 1), 2.0), torch.full((16, 1), 4.0)
    bounded = model._bounded(rays)
    assert torch.allclose(bounded.nears, rays.nears * model.config.near_scale)
    assert torch.allclose(bounded.fars, rays.fars * model.config.far_scale)


def test_a_crop_box_shows_what_is_in_it():
    model = make_model()
    everything = model.get_outputs_for_camera(camera())
    whole = OrientedBox(torch.eye(3), torch.zeros(3), torch.full((3,), 100.0))
    inside = model.get_outputs_for_camera(camera(), whole)
    assert torch.allclose(inside["rgb"], everything["rgb"], atol=1e-5)
    nowhere = OrientedBox(torch.eye(3), torch.tensor([50.0, 0, 0]), torch.ones(3))
    outside = model.get_outputs_for_camera(camera(), nowhere)
    assert all(picture.isfinite().all() for picture in outside.values())
    assert outside["accumulation"].max() < 0.05 < everything["accumulation"].mean()
    slab = OrientedBox(torch.eye(3), torch.tensor([0.0, 0, -2.0]), torch.tensor([50.0, 50.0, 0.5]))
    depth = model.get_outputs_for_camera(camera(), slab)["depth"]
    along_axis = depth[HEIGHT // 2, WIDTH // 2].item()
    assert 1.7 < along_axis < 2.4


def test_static_first():
    model = make_model()
    losses = losses_at(model, MOVING_START - 1)
    assert set(losses) == {"proposal", "photometric", "enclosure", "distortion", "clear_space"}
    assert losses["clear_space"] > 0  # of a field that has not been trained, some is everywhere
    assert {"field.static", "field.proposal"} <= taught(model)
    assert not any(part.startswith(("field.dynamic", "semantic")) for part in taught(model))
    moving = {name for name, p in model.field.actor.named_parameters() if p.grad is not None and p.grad.any()}
    assert not moving


def test_then_all_layers():
    model = make_model()
    losses = losses_at(model, MOVING_START)
    assert {"proposal", "photometric", "density", "mask"} <= set(losses)
    assert not any(name.startswith("features") for name in losses)
    assert {f"field.{layer}" for layer in LAYERS} <= taught(model)
    assert not any(part.startswith("semantic") for part in taught(model))


def test_then_heads_on_frozen_geometry():
    model = make_model()
    losses = losses_at(model, HEADS_START)
    assert set(losses) == {"features_image", "features_video", "features_regulariser"}
    assert taught(model) and all(part.startswith("semantic") for part in taught(model))


def test_geometry_may_go_on_while_heads_are_trained_detached():
    model = make_model(rgb_while_heads="on")
    losses_at(model, HEADS_START)
    both = {name: p.grad.clone() for name, p in model.field.named_parameters() if p.grad is not None}
    model.train()
    model.zero_grad()
    torch.manual_seed(HEADS_START)
    outputs = model(bundle(model))
    losses = model.get_loss_dict(outputs, {"image": batch_of()["image"]})
    assert not any(name.startswith("features") for name in losses)
    torch.manual_seed(1)
    assert both
    feature_losses = model.get_loss_dict(model(bundle(model)), batch_of())
    only = torch.stack([value for name, value in feature_losses.items() if name.startswith("features")]).sum()
    model.zero_grad()
    only.backward()
    assert all(part.startswith("semantic") for part in taught(model))


def test_at_last_features_teach_the_geometry():
    model = make_model()
    model.train()
    outputs = model(bundle(model))
    losses = model.get_loss_dict(outputs, batch_of())
    assert {"photometric", "features_image"} <= set(losses)
    torch.stack([value for name, value in losses.items() if name.startswith("features")]).sum().backward()
    assert {f"field.{layer}" for layer in LAYERS} <= taught(model)


def test_the_cost_of_moving_rises_from_nothing():
    model = make_model()
    assert losses_at(model, MOVING_START)["mask"].item() == 0.0
    assert losses_at(model, MOVING_START + 1)["mask"].item() > 0.0


def test_evaluation_rays_have_a_loss_and_metrics():
    model = make_model()
    model.eval()
    outputs = model(bundle(model))
    batch = {"image": torch.rand(16, 3)}
    metrics = model.get_metrics_dict(outputs, batch)
    assert {"psnr", "share_dynamic", "share_actor"} <= metrics.keys()
    assert model.get_loss_dict(outputs, batch, metrics)["photometric"].isfinite()
    picture = model.get_outputs_for_camera(camera())
    perfect, logged = model.get_image_metrics_and_images(picture, {"image": picture["rgb"]})
    assert perfect["psnr"] == pytest.approx(100.0)
    assert logged["img"].shape == (HEIGHT, 2 * WIDTH, 3) and logged["layers"].shape == (HEIGHT, 3 * WIDTH, 3)


def test_shadow_darkens_the_room_under_the_actor_only():
    model = make_model()
    assert model.field.actor_shadow is not None
    last = model.field.actor_shadow.network.layers[-1]
    assert isinstance(last, torch.nn.Linear)
    lit = model.get_outputs_for_camera(camera())
    torch.nn.init.constant_(last.bias, 20.0)
    dark = model.get_outputs_for_camera(camera())
    assert dark["rgb"].mean() < lit["rgb"].mean()
    assert torch.equal(dark["rgb_static"], lit["rgb_static"])
    torch.nn.init.constant_(last.bias, -20.0)
    bright = model.render(camera(), layers=("static", "dynamic")).pictures
    torch.nn.init.constant_(last.bias, 20.0)
    assert torch.equal(bright["rgb"], model.render(camera(), layers=("static", "dynamic")).pictures["rgb"])


def test_the_static_layer_does_not_learn_what_moves():
    model = make_model(features=False)
    model.train()
    model.update_to_step(MOVING_START - 1)
    batch = batch_of()
    shows = torch.stack((torch.arange(16) % 2, torch.zeros(16)), -1).float()
    torch.manual_seed(0)
    told = model.get_loss_dict(model(bundle(model)), {**batch, "evidence": shows})["photometric"]
    other = {**batch, "image": torch.where(shows[:, :1] > 0, 1 - batch["image"], batch["image"])}
    torch.manual_seed(0)
    assert torch.equal(told, model.get_loss_dict(model(bundle(model)), {**other, "evidence": shows})["photometric"])
    torch.manual_seed(0)
    assert not torch.equal(told, model.get_loss_dict(model(bundle(model)), batch)["photometric"])


def test_evidence_opens_the_layer_that_it_names():
    model = make_model(features=False)
    for layer, chances in enumerate(((1.0, 0.0), (0.0, 1.0))):
        model.train()
        model.update_to_step(MOVING_START)
        torch.manual_seed(0)
        outputs = model(bundle(model))
        masks = list(outputs["masks"].values())
        for mask in masks:
            mask.retain_grad()
        losses = model.get_loss_dict(outputs, {**batch_of(), "evidence": torch.tensor([chances]).expand(16, 2)})
        losses["evidence"].backward()
        assert (masks[layer].grad < 0).all() and (masks[1 - layer].grad > 0).all()


def test_what_is_carried_rests_nowhere():
    model = make_model(features=False, frames=20, resting_weight=1.0)
    model.train()
    model.update_to_step(MOVING_START)
    found = torch.tensor([[2.0, 1.0, 0.0, 0.0, 1.0]]).expand(16, 5)
    batch = {**batch_of(), "evidence": torch.tensor([[1.0, 0.0]]).expand(16, 2), "resting": found}
    losses = model.get_loss_dict(model(bundle(model)), batch)
    losses["evidence"].backward()
    assert losses["resting"] == 0


@pytest.mark.parametrize("left_weight", [0.0, 1.0])
def test_an_object_is_where_it_was_found_and_gone_when_it_had_left(left_weight: float):
    model = make_model(features=False, frames=20, resting_weight=1.0, left_weight=left_weight)
    model.train()
    model.update_to_step(MOVING_START)
    found = torch.tensor([[2.0, 0.0, 0.4, 0.0, 0.4]]).expand(16, 5)
    batch = {**batch_of(), "evidence": torch.tensor([[1.0, 0.0]]).expand(16, 2), "resting": found}
    optimizer = torch.optim.Adam(model.field.dynamic.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        model.get_loss_dict(model(bundle(model)), batch)["resting"].backward()
        optimizer.step()
    rays = bundle(model)
    at = 2.0 / -rays.metadata["camera_directions"][:, 2:]
    with torch.no_grad():
        density = model.field.dynamic_density(rays.origins + at * rays.directions, torch.tensor([[0.2, 0.8]] * 16))
    there, later = (1 - torch.exp(-density * model._thickness)).mean(0).tolist()
    assert there > 0.6 and (later < 0.2 if left_weight else later > 0.6)


@pytest.mark.parametrize("features", ["all", "none"])
def test_what_moves_is_looked_for_with_features_and_without(tiny_scene: Path, tmp_path: Path, features):
    config = tiny_run.config(tiny_scene, tmp_path)
    model = config.pipeline.model
    assert isinstance(model, DivFFModelConfig)
    config.pipeline.datamanager.features = features
    model.evidence = "auto"
    config.settle()
    assert model.evidence == "on" and model.fields.carried
    model.evidence = "off"
    config.settle()
    assert model.evidence == "off"


def carrying() -> DivFFModel:
    """A tiny model whose hands carry all that the actor's field draws."""
    torch.manual_seed(0)
    config = tiny_run.shrink(DivFFModelConfig())
    config.fields.implementation, config.fields.carried = "planes", True
    config.moving_start_step, config.heads_start_step, config.joint_start_step = 1, 1000, 1000
    poses = torch.eye(4)[:3].repeat(3, 1, 1)
    poses[:, 0, 3] = torch.tensor([0.0, 0.5, 1.0])
    times = torch.linspace(0, 1, 3)
    metadata = {"times": times, "nears": 0.5 + times, "fars": 3 + times, "poses": poses}
    held_out = torch.eye(4)[None, :3].clone()
    held_out[0, 0, 3] = -0.8  # at a quarter of the video the head was elsewhere than between its neighbours
    metadata["all_times"] = torch.tensor([0.0, 0.25, 0.5, 1.0])
    metadata["all_poses"] = torch.cat((poses[:1], held_out, poses[1:]))
    model = config.setup(
        scene_box=SceneBox(torch.tensor([[-3.0, -3, -5], [3, 3, 1]])), num_train_data=3, metadata=metadata
    )
    assert isinstance(model, DivFFModel)
    last = model.field.actor.network.layers[-1]
    assert isinstance(last, torch.nn.Linear)
    torch.nn.init.zeros_(last.weight[-1])
    torch.nn.init.constant_(last.bias[-1:], 30.0)
    torch.nn.init.constant_(last.bias[:1], 3.0)
    model.update_to_step(1)
    return model


class Arriving(torch.nn.Module):
    """A dynamic layer that is there at all times on the left, and on the right from half-time on."""

    def forward(self, points: SamplePoints, static: LayerSamples | None = None) -> LayerSamples:
        there = (points.positions[..., 0] < 0) | (points.times >= 0.5)
        return LayerSamples(
            density=100.0 * there.float(),
            rgb=torch.full((*there.shape, 3), 0.5),
            encoding=torch.zeros(*there.shape, 4),
            uncertainty=torch.ones(there.shape),
        )


def test_what_was_there_at_all_earlier_moments_has_not_been_moved():
    model = make_model(features=False)
    model.field.dynamic = Arriving()
    shown = ("mask_dynamic", "mask_moved")
    early, late = (model.render(camera(time), outputs=shown).pictures for time in (0.4, 0.9))
    left, right = slice(None, WIDTH // 2), slice(WIDTH // 2, None)
    assert early["mask_dynamic"][:, left].min() > 0.5 and early["mask_dynamic"][:, right].max() == 0
    assert early["mask_moved"].max() < 0.01
    assert late["mask_dynamic"].min() > 0.5 and late["mask_moved"][:, left].max() < 0.01
    assert torch.allclose(late["mask_moved"][:, right], late["mask_dynamic"][:, right], atol=0.01)


def test_what_is_carried_is_dynamic_and_stays_where_the_hands_were():
    model = carrying()
    filmed = model.get_outputs_for_camera(camera(0.5, x=0.5))
    assert filmed["mask_actor"].max() < 1e-4 and filmed["mask_dynamic"].mean() > 0.5
    without = model.render(camera(0.5, x=0.5), ("static", "dynamic"), outputs=("mask_dynamic",))
    assert torch.allclose(without.pictures["mask_dynamic"], filmed["mask_dynamic"])
    assert without.outputs is without.pictures  # as scripts of before call them
    elsewhere = model.get_outputs_for_camera(camera(0.5, x=0.0))["mask_dynamic"]
    assert not torch.allclose(elsewhere, filmed["mask_dynamic"], atol=1e-3)


@pytest.mark.parametrize("time, x", [(0.0, 0.0), (0.25, -0.8), (1.0, 1.0)])
def test_what_is_carried_is_where_it_was_trained_before_the_camera_of_any_frame(time: float, x: float):
    model, seen = carrying(), []
    model.field.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    model.get_outputs_for_camera(camera(time, x=x))
    assert seen and all(torch.allclose(at.head_positions, at.camera_positions, atol=1e-4) for at in seen)


def test_points_before_the_camera_that_filmed():
    poses = torch.eye(4)[:3].repeat(2, 1, 1)
    turned = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    poses[1, :, :3], poses[1, :, 3] = turned, torch.tensor([2.0, 0, 0])
    points = torch.randn(3, 4, 3)
    found = head_positions(points, torch.tensor([[0.2], [0.8], [0.5]]), torch.tensor([0.2, 0.8]), poses)
    assert torch.allclose(found[0], points[0])
    assert torch.allclose(found[1], (points[1] - poses[1, :, 3]) @ turned, atol=1e-6)
    half = found[2] - found[2, :1]
    assert torch.allclose(half.norm(dim=-1), (points[2] - points[2, :1]).norm(dim=-1), atol=1e-5)  # rigid
    early = head_positions(points, torch.full((3, 1), -0.1), torch.tensor([0.2, 0.8]), poses)
    assert torch.allclose(early, points)
    alone = head_positions(points, torch.full((3, 1), 0.4), torch.tensor([0.2]), poses[:1])
    assert torch.allclose(alone, points)


@pytest.fixture
def pipeline(tiny_scene: Path, tmp_path: Path) -> DivFFPipeline:
    config = tiny_run.config(tiny_scene, tmp_path)
    config.settle()
    made = config.pipeline.setup(device="cpu", test_mode="test")
    assert isinstance(made, DivFFPipeline)
    return made


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_sentence(pipeline: DivFFPipeline):
    whole = copy.deepcopy(pipeline.state_dict())
    pipeline.load_pipeline(whole, 3)
    assert pipeline.model.step == 3
    before = tiny_run.parameters(pipeline.model)
    name = "_model.field.static.network.layers.0.weight"
    faults = {
        "missing": {key: value for key, value in whole.items() if key != name},
        "unknown": {**whole, "_model.field.static.more": torch.zeros(1)},
        "reshaped": {**whole, name: torch.zeros(2, 2)},
        "features": {**whole, "_model.semantic.heads.image.layers.0.weight": torch.zeros(1)},
    }
    for fault, state in faults.items():
        with pytest.raises(CheckpointError) as caught:
            pipeline.load_pipeline(state, 9)
        message = str(caught.value)
        assert message.count(". ") == 0 and "\n" not in message and message.endswith(".")
        assert ("divff extract" in message) == (fault == "features")
    assert all(torch.equal(before[key], value) for key, value in pipeline.model.named_parameters())


def test_training_frames_bound_the_rays_of_all_splits(pipeline: DivFFPipeline):
    parser = EpicDiffDataParserConfig(data=pipeline.datamanager.train_dataset.scene.root).setup()
    train = parser.get_dataparser_outputs("train").metadata
    assert torch.equal(pipeline.model.train_nears, train["nears"])
    assert torch.equal(pipeline.model.train_times, train["times"].float())


def test_a_run_without_features_opens_where_the_scene_has_got_some(pipeline: DivFFPipeline, tiny_scene, tmp_path):
    tiny_run.write_features(tiny_scene, tmp_path / "encoder")
    config = tiny_run.config(tiny_scene, tmp_path)
    config.settle()
    later = config.pipeline.setup(device="cpu", test_mode="test")
    assert later.model.semantic is not None
    later.load_pipeline(copy.deepcopy(pipeline.state_dict()), 11)
    view = later.datamanager.eval_dataset.cameras[:1]
    found, expected = later.model.get_outputs_for_camera(view), pipeline.model.get_outputs_for_camera(view)
    assert tuple(found) == PICTURES
    pipeline.model.update_to_step(11)
    assert all(torch.equal(found[name], expected[name]) for name in PICTURES)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("implementation", ["planes", "hash"])
def test_weights_of_a_gpu_render_the_same_on_a_cpu(implementation):
    there = make_model(implementation=implementation).to("cuda")
    here = make_model(implementation=implementation)
    with torch.no_grad():
        for parameter in there.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    here.load_state_dict({name: value.cpu() for name, value in there.state_dict().items()}, strict=True)
    expected, found = there.get_outputs_for_camera(camera().to("cuda")), here.get_outputs_for_camera(camera())
    assert all(torch.allclose(found[name], expected[name].cpu(), atol=1e-2) for name in PICTURES)
