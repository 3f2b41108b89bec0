"""Lives and motions of Gaussians, the actor's frame, and changing their number."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from gsplat import DefaultStrategy
from hypothesis import given, settings
from hypothesis import strategies as st
from nerfstudio.cameras.camera_utils import quaternion_from_matrix
from torch import Tensor

from divff_nerfstudio.models.splat.density_control import (
    DensityControlConfig,
    Observation,
    append,
    refine,
    row_optimizers,
)
from divff_nerfstudio.models.splat.gaussians import ActorGaussians, DynamicGaussians, GaussianLayer, StaticGaussians
from divff_nerfstudio.models.splat.rotations import product, turn_of
from divff_nerfstudio.models.splat.splats import Moment

FRAMES, CODE = 41, 4


def moment(time: float, rotation: Tensor | None = None, origin: tuple[float, ...] = (0.0, 0.0, 0.0)) -> Moment:
    turned = torch.eye(3) if rotation is None else rotation
    return Moment(torch.tensor(time), turned, torch.tensor(origin), turn_of(turned), float(torch.tensor(time)))


def turned(angle: float) -> Tensor:
    """A rotation about an oblique axis."""
    axis = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, -0.5]), dim=0)
    x, y, z = axis
    return torch.matrix_exp(angle * torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]]))


def fill(layer: GaussianLayer, count: int, opacity: float = 0.5, **own: Tensor) -> GaussianLayer:
    random = torch.Generator().manual_seed(0)
    means, colours = torch.randn(count, 3, generator=random), torch.rand(count, 3, generator=random)
    layer.make_room(count)
    for name, row in layer.new_rows(means, torch.full((count,), 0.02), colours, opacity, **own).items():
        layer.rows[name].data = row
    return layer


def dynamic(centres: list[float], half_durations: list[float], degree: int = 0) -> DynamicGaussians:
    layer = DynamicGaussians(CODE, degree, FRAMES, 0.3)
    fill(
        layer,
        len(centres),
        centres=torch.tensor(centres),
        durations=layer.raw_durations(torch.tensor(half_durations)),
    )
    return layer


def test_what_rests_for_half_the_video_needs_one_gaussian():
    layer = dynamic([0.25], [0.25])
    opacity = layer.temporal_opacity(torch.linspace(0, 1, FRAMES))[:, 0]
    assert (opacity[4:17] > 0.9).all(), "a plateau, not a bump"
    assert (opacity[30:] < 1 / 255).all()
    assert torch.equal(layer.at(moment(0.1)).means, layer.at(moment(0.4)).means)
    assert len(layer.at(moment(0.9))) == 0, "what does not live costs nothing"


@settings(max_examples=30)
@given(middle=st.floats(0, 1), extent=st.floats(0.05, 0.8))
def test_a_life_is_one_at_its_middle_and_falls_on_both_sides(middle, extent):
    opacity = dynamic([middle], [extent]).temporal_opacity(middle + torch.linspace(0, 2, 50))[:, 0].detach()
    assert opacity[0] == pytest.approx(1, abs=1e-4) and (opacity.diff() <= 1e-6).all() and opacity[-1] < 0.05
    back = dynamic([middle], [extent]).temporal_opacity(middle - torch.linspace(0, 2, 50))[:, 0].detach()
    torch.testing.assert_close(opacity, back, atol=1e-4, rtol=0)


def test_extents_are_never_shorter_than_the_frames_distance():
    layer = dynamic([0.5], [0.0])
    assert float(layer.half_durations()) >= 1 / (FRAMES - 1)
    torch.testing.assert_close(dynamic([0.5], [0.3]).half_durations(), torch.tensor([0.3]))


def test_motion_is_that_of_the_life_and_ends_with_it():
    layer = dynamic([0.5], [0.2])
    layer.rows["motions"].data = torch.tensor([[[1.0, 0, 0], [0, 0.5, 0]]])
    start = layer.rows["means"].detach()[0]
    middle, end, after = (layer.at(moment(time)).means.detach()[0] - start for time in (0.5, 0.7, 0.72))
    torch.testing.assert_close(middle, torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(end, torch.tensor([1.0, 0.5, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(after, end, atol=1e-4, rtol=0)


def test_the_actor_comes_along_with_the_camera():
    layer = fill(ActorGaussians(CODE, 0, FRAMES, 0.3, octaves=3, hidden=8), 5)
    here = layer.at(moment(0.3))
    rotation = turned(0.7)
    there = layer.at(moment(0.3, rotation, (1.0, 2.0, 3.0)))
    torch.testing.assert_close(there.means, here.means @ rotation.T + torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(there.opacities, here.opacities)
    with torch.no_grad():
        layer.network.layers[-1].weight *= 100  # pyright: ignore
    early, late = layer.at(moment(0.3)), layer.at(moment(0.8))
    assert (early.means - late.means).abs().max() > 1e-5, "it deforms with time"
    assert (early.opacities - late.opacities).abs().max() > 1e-5


def test_product_of_quaternions_is_one_rotation_after_the_other():
    first, second = turned(0.7), turned(-1.9) @ torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    a, b = (torch.from_numpy(quaternion_from_matrix(each.double().numpy())).float() for each in (first, second))
    both = product(a, b[None])[0]
    expected = torch.from_numpy(quaternion_from_matrix((first @ second).double().numpy())).float()
    assert abs(float(both @ expected)) == pytest.approx(1, abs=1e-5)


def test_a_colour_is_what_new_rows_were_given():
    layer = fill(StaticGaussians(CODE, 2), 6)
    random = torch.Generator().manual_seed(0)
    torch.randn(6, 3, generator=random)
    torch.testing.assert_close(layer.at(moment(0)).colours, torch.rand(6, 3, generator=random))


def test_weights_of_another_number_are_loaded():
    large, small = fill(StaticGaussians(CODE, 1), 9), fill(StaticGaussians(CODE, 1), 3)
    parameters = {name: id(row) for name, row in small.rows.items()}
    small.load_state_dict(large.state_dict())
    assert len(small) == 9 and torch.equal(small.rows["means"], large.rows["means"])
    assert parameters == {name: id(row) for name, row in small.rows.items()}, "optimizers still hold them"


def trained(layer: GaussianLayer) -> tuple[list[torch.optim.Optimizer], dict]:
    """Optimizers after one step, as the trainer has them: several layers' rows in one."""
    other = torch.nn.Parameter(torch.zeros(2))
    optimizers = [torch.optim.Adam([{"params": [other]}, {"params": [row]}], lr=1e-3) for row in layer.rows.values()]
    sum(row.square().sum() for row in layer.rows.values()).backward()  # pyright: ignore
    for optimizer in optimizers:
        optimizer.step()
    return optimizers, row_optimizers(layer, optimizers)


def observed(count: int, gradients: Tensor) -> Observation:
    """A rasterisation of a layer's Gaussians behind two of another layer."""
    means = torch.zeros(1, count + 2, 2)
    means.grad = torch.cat((torch.full((2, 2), 9.0), gradients))[None]
    facts = {"means2d": means, "radii": torch.ones(1, count + 2, dtype=torch.int32), "width": 100, "height": 50}
    return Observation(facts, 2, torch.arange(count))


def test_only_what_is_pulled_hardest_grows_and_the_limit_holds():
    layer = fill(StaticGaussians(CODE, 0), 10)
    _, views = trained(layer)
    pulled = torch.zeros(10, 2)
    pulled[:, 0] = torch.arange(10) / 100
    means = layer.rows["means"].detach().clone()
    refine(layer, views, observed(10, pulled), 3, 13, DensityControlConfig(every=3, gradient=1e-3))
    assert len(layer) == 13 == len(layer.gradients)
    kept = [any(torch.equal(row, mean) for row in layer.rows["means"]) for mean in means]
    assert kept == [True] * 7 + [False] * 3, "the three that are pulled hardest are split"
    refine(layer, views, observed(13, torch.ones(13, 2)), 6, 13, DensityControlConfig(every=3, gradient=1e-3))
    assert len(layer) == 13


def test_transparent_and_huge_gaussians_go_and_optimizers_follow():
    layer = fill(StaticGaussians(CODE, 0), 6)
    optimizers, views = trained(layer)
    layer.rows["opacities"].data[1] = -8.0
    layer.rows["scales"].data[4] = 2.0
    refine(layer, views, observed(6, torch.zeros(6, 2)), 3, 20, DensityControlConfig(every=3))
    assert len(layer) == 4
    for optimizer, (name, row) in zip(optimizers, layer.rows.items(), strict=True):
        assert optimizer.param_groups[1]["params"][0] is row
        if row.numel():
            assert optimizer.state[row]["exp_avg"].shape == row.shape, name


def test_appended_gaussians_join_the_optimizers():
    layer = dynamic([], [])
    _, views = trained(layer)
    new = layer.new_rows(torch.rand(5, 3), torch.full((5,), 0.1), torch.rand(5, 3), 0.2)
    append(layer, views, new)
    append(layer, views, new)
    assert len(layer) == 10 == len(layer.sightings)
    assert all(views[name].param_groups[0]["params"][0] is row for name, row in layer.rows.items())
    assert layer.at(moment(0.0)).opacities.allclose(torch.tensor(0.2))


def test_observation_puts_facts_where_their_gaussians_are():
    means = torch.zeros(1, 4, 2)
    means.grad = torch.tensor([[[0.0, 0], [1, 1], [2, 2], [3, 3]]])
    facts = {"means2d": means, "radii": torch.tensor([[5, 6, 7, 8]]), "width": 4, "height": 2}
    found = SimpleNamespace(**Observation(facts, 1, torch.tensor([4, 0])).of_layer(6))
    assert found.radii.tolist() == [[7, 0, 0, 0, 6, 0]]
    assert found.means2d.grad[0, :, 0].tolist() == [2, 0, 0, 0, 1, 0]


def test_gradients_are_gathered_as_gsplat_gathers_them():
    layer = fill(StaticGaussians(CODE, 0), 8)
    layer.gradients, layer.sightings = torch.rand(8), torch.arange(8.0)
    seen = observed(8, torch.randn(8, 2, generator=torch.Generator().manual_seed(1)))
    facts = seen.of_layer(8)
    state = {"grad2d": layer.gradients.clone(), "count": layer.sightings.clone()}
    DefaultStrategy()._update_state(layer.rows, state, facts)
    refine(layer, {}, seen, 1, 99, DensityControlConfig(every=100))
    assert torch.equal(layer.gradients, state["grad2d"]) and torch.equal(layer.sightings, state["count"])
