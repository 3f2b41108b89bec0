"""Compositing of three layers, against a slow loop in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nerfstudio.cameras.rays import Frustums, RayBundle, RaySamples

from divff_nerfstudio.fields.layers import LAYERS, LayerSamples
from divff_nerfstudio.generators import weighted_draw
from divff_nerfstudio.rendering import (
    accumulate,
    composite,
    expected_depth,
    midpoints,
    points_of,
    ray_uncertainty,
    sample_rays,
    transmittance,
    weights_alone,
)

RAYS, SAMPLES = 5, 7
densities_and_deltas = st.tuples(
    st.integers(0, 2**31 - 1), st.sampled_from([1e-3, 1.0, 30.0]), st.sampled_from([1e-2, 0.3, 2.0])
)


def draw(seed: int, density: float, delta: float) -> tuple[dict, torch.Tensor]:
    """Densities of the three layers, some of them zero, and lengths of intervals."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(3, RAYS, SAMPLES, generator=generator) * density
    values = values * (torch.rand(values.shape, generator=generator) > 0.2)
    deltas = (0.05 + torch.rand(RAYS, SAMPLES, generator=generator)) * delta
    return dict(zip(LAYERS, values, strict=True)), deltas


def reference(densities: dict, deltas: torch.Tensor) -> tuple[dict, dict]:
    """Weights and opacities of every layer, sample by sample as the equations have it."""
    weights = {layer: torch.zeros(deltas.shape, dtype=torch.float64) for layer in densities}
    alphas = {layer: torch.zeros(deltas.shape, dtype=torch.float64) for layer in densities}
    for ray in range(deltas.shape[0]):
        transmittance = 1.0
        for sample in range(deltas.shape[1]):
            here = {layer: float(density[ray, sample]) for layer, density in densities.items()}
            total = sum(here.values())
            opacity = 1 - math.exp(-total * float(deltas[ray, sample]))
            for layer, density in here.items():
                alpha = opacity * density / total if total > 0 else 0.0
                alphas[layer][ray, sample] = alpha
                weights[layer][ray, sample] = transmittance * alpha
            transmittance *= 1 - opacity
    return weights, alphas


@settings(max_examples=40)
@given(densities_and_deltas)
def test_composite_is_the_loop(drawn):
    densities, deltas = draw(*drawn)
    found = composite(densities, deltas)
    weights, alphas = reference(densities, deltas)
    for layer in LAYERS:
        assert torch.allclose(found.weights[layer].double(), weights[layer], atol=2e-4)
        assert torch.allclose(found.alphas[layer].double(), alphas[layer], atol=2e-3)
        assert torch.equal(found.mask(layer), found.weights[layer].sum(-1))
    summed = sum(densities.values())
    through = torch.exp(-(summed.double() * deltas.double()).sum(-1))
    accumulation = found.total.sum(-1)
    assert torch.allclose(accumulation.double(), 1 - through, atol=1e-3)
    assert torch.allclose(sum(found.mask(layer) for layer in LAYERS), accumulation, atol=1e-6)


def ray_samples(deltas: torch.Tensor, start: float = 0.5) -> RaySamples:
    ends = start + deltas.cumsum(-1)
    starts = ends - deltas
    zeros = torch.zeros(*deltas.shape, 3)
    frustums = Frustums(zeros, zeros, starts[..., None], ends[..., None], torch.ones_like(ends)[..., None])
    return RaySamples(frustums, deltas=deltas[..., None])


@settings(max_examples=20)
@given(densities_and_deltas, st.sampled_from(LAYERS))
def test_one_layer_is_plain_nerf(drawn, layer):
    densities, deltas = draw(*drawn)
    plain = ray_samples(deltas).get_weights(densities[layer][..., None])[..., 0]
    found = composite({layer: densities[layer]}, deltas)
    assert torch.allclose(found.weights[layer], plain, atol=2e-4)
    for other in set(LAYERS) - {layer}:
        assert torch.equal(found.mask(other), torch.zeros(RAYS))
    assert torch.allclose(weights_alone(found.alphas[layer]), plain, atol=2e-3)


@settings(max_examples=20)
@given(densities_and_deltas)
def test_weights_alone_use_their_own_transmittance(drawn):
    densities, deltas = draw(*drawn)
    _, alphas = reference(densities, deltas)
    for layer in LAYERS:
        expected = torch.zeros(RAYS, SAMPLES, dtype=torch.float64)
        clear = torch.ones(RAYS, dtype=torch.float64)
        for sample in range(SAMPLES):
            expected[:, sample] = alphas[layer][:, sample] * clear
            clear = clear * (1 - alphas[layer][:, sample])
        assert torch.allclose(weights_alone(alphas[layer].float()).double(), expected, atol=1e-4)


def test_a_layer_in_front_hides_in_the_joint_render_only():
    wall = torch.tensor([[0.0, 0.0, 1e4, 0.0]])
    arm = torch.tensor([[0.0, 1e4, 0.0, 0.0]])
    found = composite({"static": wall, "actor": arm}, torch.ones(1, 4))
    assert found.mask("static").item() == pytest.approx(0, abs=1e-6)
    assert found.mask("actor").item() == pytest.approx(1, abs=1e-5)
    alone = weights_alone(found.alphas["static"])
    assert alone[0, 2].item() == pytest.approx(1, abs=1e-5)
    uncovered = composite({"static": wall}, torch.ones(1, 4))
    assert uncovered.mask("static").item() == pytest.approx(1, abs=1e-5)


def test_layers_share_all_of_the_opacity_where_nothing_is_added():
    thin = {layer: torch.full((1, 2), 1e-6) for layer in LAYERS}
    deltas = torch.ones(1, 2)
    shared = {epsilon: composite(thin, deltas, share_epsilon=epsilon) for epsilon in (1e-6, 1e-20)}
    opacity = shared[1e-20].opacity
    assert torch.allclose(sum(shared[1e-20].alphas.values()), opacity, rtol=1e-5, atol=0)
    assert torch.allclose(sum(shared[1e-6].alphas.values()), 0.75 * opacity, rtol=1e-5, atol=0)
    nothing = composite({layer: torch.zeros(1, 2) for layer in LAYERS}, deltas, share_epsilon=1e-20)
    assert nothing.total.sum() == 0


def test_expected_depth_and_accumulate():
    weights = torch.tensor([[0.25, 0.0, 0.25], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    distances = torch.tensor([[1.0, 2.0, 3.0]]).expand(3, 3)
    assert expected_depth(weights, distances).tolist() == [2.0, 0.0, 2.0]
    colours = torch.arange(27.0).view(3, 3, 3)
    expected = torch.stack([sum(weights[r, s] * colours[r, s] for s in range(3)) for r in range(3)])
    assert torch.allclose(accumulate(weights, colours), expected)


def test_uncertainty_is_what_moving_layers_add_to_the_least():
    densities, deltas = draw(3, 3.0, 0.3)
    found = composite(densities, deltas)
    nothing = torch.zeros(RAYS, SAMPLES, 3)
    spread = {"dynamic": torch.rand(RAYS, SAMPLES), "actor": torch.rand(RAYS, SAMPLES)}
    samples = {layer: LayerSamples(densities[layer], nothing, nothing, spread.get(layer)) for layer in LAYERS}
    expected = 0.03 + sum((found.weights[layer] * value).sum(-1) for layer, value in spread.items())
    assert torch.allclose(ray_uncertainty(found, samples, 0.03), expected)
    room = composite({"static": densities["static"]}, deltas)
    assert torch.allclose(ray_uncertainty(room, {"static": samples["static"]}, 0.03), torch.full((RAYS,), 0.03))


@pytest.mark.parametrize("density", [0.0, 1e-12, 1e6, 1e12])
def test_extreme_densities_stay_finite_with_their_gradients(density):
    raw = torch.full((3, 2, SAMPLES), density, requires_grad=True)
    found = composite(dict(zip(LAYERS, raw, strict=True)), torch.full((2, SAMPLES), 0.5))
    depth = expected_depth(found.total, torch.linspace(1, 2, SAMPLES).expand(2, -1))
    alone = weights_alone(found.alphas["static"])
    (depth.sum() + alone.sum() + found.total.sum()).backward()
    for value in (depth, alone, found.total, raw.grad):
        assert value is not None and value.isfinite().all()
    assert (found.total.sum(-1) <= 1 + 1e-5).all()


@pytest.mark.parametrize("dense", [1e4, 3e8, 1e20])
def test_what_is_dense_is_hidden_by_what_is_before_it(dense):
    found = composite({"static": torch.tensor([[5.0, 0.0, dense, dense]])}, torch.ones(1, 4))
    expected = torch.tensor([[1 - math.exp(-5), 0.0, math.exp(-5), 0.0]])
    assert torch.allclose(found.total, expected, atol=1e-6)


def test_light_behind_samples_is_pytorchs_with_its_gradient():
    alphas = torch.rand(5, SAMPLES, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.no_grad():
        alphas[0, 1], alphas[1] = 1.0, 0.0
    expected = torch.cat((torch.ones(5, 1), torch.cumprod(1 - alphas[:, :-1] + 1e-7, -1)), -1)
    found, pull = transmittance(alphas), torch.linspace(-1, 1, 5 * SAMPLES).view(5, -1)
    assert torch.equal(found, expected)
    one, other = (torch.autograd.grad((value * pull).sum(), alphas)[0] for value in (found, expected))
    assert torch.equal(one, other)


def test_weighted_draws_are_those_of_multinomial():
    weights = torch.rand(500, generator=torch.Generator().manual_seed(0)) + 1e-6
    torch.manual_seed(3)
    expected = torch.multinomial(weights, 60)
    torch.manual_seed(3)
    assert torch.equal(weighted_draw(weights, 60), expected)


def bundle(count: int, near: float, far: float) -> RayBundle:
    directions = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1)
    return RayBundle(
        origins=torch.randn(count, 3),
        directions=directions,
        pixel_area=torch.ones(count, 1),
        nears=torch.full((count, 1), near),
        fars=torch.full((count, 1), far),
        times=torch.rand(count, 1),
        metadata={"camera_directions": -directions},
    )


@settings(max_examples=15)
@given(
    st.floats(1e-3, 1.0),
    st.floats(1.1, 1e3),
    st.sampled_from([0.0, 1.0, 1e6]),
    st.booleans(),
    st.sampled_from([0.1, 1.0]),
)
def test_samples_are_sorted_between_near_and_far(near, factor, density, training, anneal):
    torch.manual_seed(0)
    far = near * factor
    rays = bundle(6, near, far)
    samples, proposal = sample_rays(
        rays, lambda points: (points.positions.reshape(-1, 3)[:, 0] * 0 + density,) * 2, 12, 9, anneal, training
    )
    assert samples.frustums.starts.shape == (6, 9, 1) and proposal.weights.shape == (6, 12, 1)
    for found in (samples, proposal.samples):
        starts, ends = found.frustums.starts[..., 0], found.frustums.ends[..., 0]
        assert starts.isfinite().all() and ends.isfinite().all()
        assert (starts >= near * (1 - 1e-4)).all() and (ends <= far * (1 + 1e-4)).all()
        assert (ends >= starts - 1e-4 * far).all() and (starts[:, 1:] >= starts[:, :-1] - 1e-4 * far).all()
    assert proposal.weights.isfinite().all()


def test_samples_gather_where_the_proposal_is_dense_and_at_the_room_behind():
    def shell(distance):
        return lambda points: 200.0 * ((points.camera_positions.norm(dim=-1).reshape(-1) - distance).abs() < 0.1)

    def share(before, room, distance):
        density = lambda points: (before(points) + room(points), room(points))  # noqa: E731
        samples, _ = sample_rays(bundle(20, 0.1, 10.0), density, 48, 32, training=False)
        return ((midpoints(samples) - distance).abs() < 0.3).float().mean()

    nothing = lambda points: points.camera_positions.reshape(-1, 3)[:, 0] * 0 + 1e-6  # noqa: E731
    assert share(nothing, shell(3.0), 3.0) > 0.7
    assert share(nothing, nothing, 3.0) < 0.1
    assert share(shell(1.0), shell(3.0), 1.0) > 0.4 > 0.15 < share(shell(1.0), shell(3.0), 3.0)


def test_points_lie_on_the_rays_in_world_and_camera():
    rays = bundle(4, 0.5, 2.0)
    samples, _ = sample_rays(
        rays, lambda points: (torch.ones(points.positions.shape[:2].numel()),) * 2, 6, 5, training=False
    )
    points, distances = points_of(rays, samples), midpoints(samples)
    assert torch.allclose((points.positions - rays.origins[:, None]).norm(dim=-1), distances, atol=1e-5)
    expected = rays.metadata["camera_directions"][:, None] * distances[..., None]
    assert torch.allclose(points.camera_positions, expected)
    assert torch.equal(points.times, rays.times) and torch.equal(points.directions, rays.directions)
