"""Encodings, time codes, space and the three fields: what each may depend on."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nerfstudio.field_components.activations import trunc_exp

from divff_nerfstudio.fields.encodings import GridEncoding, PlaneEncoding, positional_encoding
from divff_nerfstudio.fields.layered import LayeredField, LayeredFieldConfig
from divff_nerfstudio.fields.layers import LAYERS, SamplePoints
from divff_nerfstudio.fields.semantic_heads import SemanticHeads, SemanticHeadsConfig
from divff_nerfstudio.fields.space import FAR_SCALE, NEAR_SCALE, SceneSpace, activated_density
from divff_nerfstudio.fields.time_code import KnotTimeCode, LowRankTimeCode, octaves_for
from divff_nerfstudio.rendering import composite

SMALL = LayeredFieldConfig(
    implementation="planes",
    static_resolutions=(8, 16),
    static_channels=4,
    dynamic_resolutions=(8,),
    dynamic_channels=4,
    dynamic_hidden=16,
    actor_hidden=16,
    hidden=16,
    encoding_dim=5,
)
PAIRS = ((0, 1), (0, 2), (1, 2))


def space() -> SceneSpace:
    return SceneSpace(torch.tensor([[-2.0, -1.0, -3.0], [2.0, 3.0, 1.0]]), 4.0)


def by_grid_sample(encoding: PlaneEncoding, x: torch.Tensor, times: torch.Tensor | None = None) -> torch.Tensor:
    """The same features by torch's own bilinear look-up."""
    levels = []
    for level, size in enumerate(encoding.resolutions):
        planes = encoding.space[level].view(3, size, size, encoding.channels).permute(0, 3, 1, 2)
        coordinates = [x[:, list(pair)] for pair in PAIRS]
        if encoding.time_resolution:
            assert times is not None
            steps = encoding.time_resolution
            in_time = encoding.time[level].view(3, steps, size, encoding.channels).permute(0, 3, 1, 2)
            coordinates += [torch.cat((x[:, [axis]], times), -1) for axis in range(3)]
            looked_up = [*planes, *in_time]
        else:
            looked_up = [*planes]
        values = torch.ones(len(x), encoding.channels)
        for plane, coordinate in zip(looked_up, coordinates, strict=True):
            grid = (2 * coordinate - 1)[None, None]
            found = F.grid_sample(plane[None], grid, align_corners=True, padding_mode="border")
            values = values * found[0, :, 0].T
        levels.append(values)
    return torch.cat(levels, -1)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([(2,), (5,), (8, 16)]))
def test_planes_are_bilinear_and_so_are_their_gradients(seed, in_time, resolutions):
    torch.manual_seed(seed)
    encoding = PlaneEncoding(resolutions, 4, time_resolution=6 if in_time else 0)
    for table in encoding.parameters():
        torch.nn.init.normal_(table)
    x = torch.rand(30, 3)
    x[0], x[1], x[2] = 0.0, 1.0, torch.tensor([-0.5, 1.5, 0.5])
    times = torch.rand(30, 1) if in_time else None
    if times is not None:
        times[0], times[1] = 0.0, 1.0
    upstream = torch.randn(30, encoding.get_out_dim())
    results = []
    for compute in (encoding, lambda *inputs: by_grid_sample(encoding, *inputs)):
        encoding.zero_grad()
        values = compute(x, times)
        (values * upstream).sum().backward()
        results.append((values.detach(), [table.grad.clone() for table in encoding.parameters()]))
    (values, gradients), (expected, expected_gradients) = results
    assert values.shape == (30, 4 * len(resolutions))
    assert torch.allclose(values, expected, atol=1e-4)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(gradient, reference, atol=1e-4)


def test_new_planes_do_not_depend_on_time():
    encoding = PlaneEncoding((8,), 4, time_resolution=5)
    x = torch.rand(10, 3)
    assert torch.equal(encoding(x, torch.zeros(10, 1)), encoding(x, torch.ones(10, 1)))


@pytest.mark.parametrize("implementation", ["planes", "hash"])
def test_grids_of_both_implementations_give_what_they_promise(implementation):
    grid = GridEncoding(implementation, (8, 16), 4, hash_levels=4, log2_hashmap_size=8)
    x = torch.rand(7, 3)
    found = grid(x)
    assert found.shape == (7, grid.out_dim) and found.dtype == torch.float32
    found.square().sum().backward()
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in grid.parameters())


def test_positional_encoding_has_octaves_of_pi():
    found = positional_encoding(1, 3)(torch.tensor([[0.5], [0.25]])).sort(-1).values
    root = 2**-0.5
    assert torch.allclose(found[0], torch.tensor([-1.0, 0.0, 0.0, 0.0, 0.5, 1.0, 1.0]), atol=1e-6)
    assert torch.allclose(found[1], torch.tensor([-1.0, 0.0, 0.0, 0.25, root, root, 1.0]), atol=1e-6)


@settings(max_examples=20)
@given(st.integers(3, 400))
def test_octaves_follow_the_number_of_frames(frames):
    octaves = octaves_for(frames)
    assert octaves >= 3 and octaves_for(frames + 1) >= octaves
    shortest_period = frames * 2 ** (1 - octaves)  # of sin(2^(octaves - 1) pi (2 t - 1)), in frames
    assert octaves == 3 or 6 <= shortest_period < 12


def test_octaves_of_a_short_video():
    assert [octaves_for(count) for count in (0, 1, 2, 12)] == [3, 3, 3, 3]


def test_time_codes_are_of_low_rank_and_smooth():
    code = LowRankTimeCode(5, dim=17)
    times = torch.linspace(0, 1, 200)[:, None]
    codes = code(times)
    assert codes.shape == (200, 17) and code.out_dim == 17
    assert torch.linalg.matrix_rank(codes) <= 2 * 5 + 1
    fastest = 2 * 2**4 * torch.pi * 17 * float(code.basis.abs().max())
    assert ((codes[1:] - codes[:-1]).abs().max() * 199) < fastest
    # Batches of other sizes may be summed in another order.
    assert torch.allclose(code(torch.tensor([[0.5]]).expand(4, 1))[0], code(torch.tensor([[0.5]]))[0], atol=1e-5)


@pytest.mark.parametrize("make", [partial(LowRankTimeCode, ends_apart=True), KnotTimeCode])
def test_time_codes_tell_the_ends_of_a_video_apart(make):
    torch.manual_seed(0)
    code = make(4)
    times = torch.tensor([[0.0], [0.005], [0.995], [1.0]])
    distances = torch.cdist(code(times), code(times))
    assert distances[0, 1] < distances[0, 2] / 4 and distances[2, 3] < distances[0, 3] / 4


def test_codes_of_knots_are_of_their_own_moment_and_lie_between():
    code = KnotTimeCode(3, dim=5)
    assert code.codes.shape == (13, 5)
    times = torch.linspace(0, 1, 25)[:, None]
    found = code(times)
    assert torch.allclose(found[::2], code.codes, atol=1e-5)
    assert torch.allclose(found[1::2], (code.codes[1:] + code.codes[:-1]) / 2, atol=1e-5)
    assert torch.equal(code(torch.tensor([[[-1.0]], [[2.0]]]))[:, 0], code.codes[[0, -1]])
    code(torch.tensor([[0.5]])).sum().backward()
    assert code.codes.grad is not None
    assert code.codes.grad.abs().sum(-1).nonzero().flatten().tolist() == [6]


def test_the_box_becomes_the_unit_cube():
    box = space().box
    corners = torch.stack((box[0], box[1], box.mean(0), box[1] + 5))
    assert torch.allclose(space().to_unit_cube(corners)[:, 0], torch.tensor([0.0, 1.0, 0.5, 1.0]))


def test_camera_positions_become_direction_and_logarithm_of_depth():
    scene = space()
    near, far = NEAR_SCALE * 4.0, FAR_SCALE * 4.0
    middle = (near * far) ** 0.5
    points = torch.tensor(
        [[0, 0, -near], [0, 0, -far], [0, 0, -middle], [1.1, -1.1, -1], [0.55, 0, -1], [0, 0, 1.0], [0, 0, 0]]
    )
    found = scene.to_camera_cube(points)
    assert torch.allclose(found[:3], torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 1], [0.5, 0.5, 0.5]]), atol=1e-5)
    assert found[3, :2].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert found[4, 0].item() == pytest.approx(0.75)
    assert found.isfinite().all() and (found >= 0).all() and (found <= 1).all()


def test_density_is_positive_in_units_of_the_scene():
    raw = torch.tensor([-50.0, 0.0, 3.0, 60.0])
    found = activated_density(raw, space())
    assert (found > 0).all() and found.isfinite().all()
    twice = SceneSpace(space().box * 2, 8.0)
    assert torch.allclose(activated_density(raw, twice) * 2, found)
    assert (activated_density(raw[:3], space(), shift=-2.0) < found[:3]).all()


def test_density_is_that_of_nerfstudio_up_to_its_bound():
    raw = torch.linspace(-15, 59, 200, requires_grad=True)
    found, expected = activated_density(raw, space()), trunc_exp(raw) * (10.0 / space().length)
    assert torch.equal(found, expected)
    weights = torch.linspace(-1, 1, 200)
    one, other = (torch.autograd.grad((value * weights).sum(), raw)[0] for value in (found, expected))
    assert torch.equal(one, other)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.floats(-1e6, -14), st.sampled_from((-1.0, 1.0)))
def test_gradients_of_what_is_transparent_fade(raw: float, towards: float):
    value = torch.tensor([raw], requires_grad=True)
    activated_density(value, SceneSpace(space().box, 10.0)).backward(torch.tensor([towards]))
    assert value.grad is not None
    assert float(value.grad) == pytest.approx(towards * float(torch.exp(torch.tensor(raw))), rel=1e-5)


@pytest.mark.parametrize("raw", [70.0, 200.0, 1e6])
def test_raw_densities_far_beyond_opaque_stay_finite_and_can_come_back(field, raw):
    where = points()
    with torch.no_grad():  # as after a long training of the static layer alone, which permanence takes no part in
        field.static.network.layers[-1].bias[:2] = torch.tensor([raw, 40.0])
        field.proposal.room_network.layers[-1].bias[0] = raw
    found = field(where, LAYERS)
    composited = composite({layer: found[layer].density for layer in LAYERS}, torch.full((6, 4), 0.1))
    total = sum(composited.weights.values())
    flat = (where.positions.reshape(-1, 3), where.camera_positions.reshape(-1, 3), where.per_sample(where.times))
    (total.sum() + field.proposal(*flat)[0].clamp_max(1.0).sum()).backward()
    assert total.isfinite().all() and all(found[layer].density.isfinite().all() for layer in LAYERS)
    for parameter in field.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
    value = torch.tensor([raw], requires_grad=True)
    activated_density(value, space()).backward()
    assert value.grad is not None and 1 < float(value.grad) < 1e9


def points(rays: int = 6, samples: int = 4) -> SamplePoints:
    generator = torch.Generator().manual_seed(0)
    camera = torch.rand(rays, samples, 3, generator=generator) - torch.tensor([0.5, 0.5, 2.0])
    return SamplePoints(
        positions=torch.rand(rays, samples, 3, generator=generator) * 3 - 1,
        camera_positions=camera,
        directions=F.normalize(torch.randn(rays, 3, generator=generator), dim=-1),
        times=torch.rand(rays, 1, generator=generator),
    )


CHANGES = {
    "positions": lambda value: value * 0.5 + 0.1,
    "camera_positions": lambda value: value * 0.5 - 0.1,
    "directions": lambda value: -value,
    "times": lambda value: 1 - 0.7 * value,
}
DEPENDS = {"static": {"positions"}, "dynamic": {"positions", "times"}, "actor": {"camera_positions", "times"}}


@pytest.fixture
def field() -> LayeredField:
    torch.manual_seed(0)
    return LayeredField(SMALL, space(), 60)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("changed", CHANGES)
def test_layers_depend_on_what_they_should_and_on_nothing_else(field, layer, changed):
    here = points()
    there = dataclasses.replace(here, **{changed: CHANGES[changed](getattr(here, changed))})
    one, other = (field(where, (layer,))[layer] for where in (here, there))
    for name in ("density", "rgb", "encoding"):
        same = torch.equal(getattr(one, name), getattr(other, name))
        assert same == (changed not in DEPENDS[layer]), name


def test_layers_have_their_shapes_and_ranges(field):
    found = field(points(), LAYERS)
    assert tuple(found) == LAYERS
    for layer, samples in found.items():
        assert samples.density.shape == (6, 4) and (samples.density > 0).all()
        assert samples.rgb.shape == (6, 4, 3) and samples.rgb.min() >= 0 and samples.rgb.max() <= 1
        assert samples.encoding.shape == (6, 4, 5)
        if layer == "static":
            assert samples.uncertainty is None
        else:
            assert samples.uncertainty.shape == (6, 4)
            assert (samples.uncertainty > 0).all() and (samples.uncertainty < SMALL.max_uncertainty).all()
    assert found["actor"].density.mean() < found["static"].density.mean()


def test_dynamic_density_at_moments_is_that_of_the_layer(field):
    where = points()
    times = where.per_sample(where.times)
    alone = field.dynamic_density(where.positions.reshape(-1, 3), times.expand(-1, 2))
    layer = field(where, ("dynamic",))["dynamic"].density
    assert torch.allclose(alone, layer.reshape(-1, 1).expand(-1, 2), rtol=1e-4)


@pytest.mark.parametrize("permanence", [True, False])
def test_the_dynamic_layer_at_moments_is_what_it_is_at_each(permanence: bool):
    torch.manual_seed(0)
    field = LayeredField(dataclasses.replace(SMALL, permanence=permanence), space(), 60)
    where = points()
    moments = torch.tensor([0.1, 0.8]).expand(24, -1)
    density, colours = field.dynamic_at(where.positions.reshape(-1, 3), moments)
    assert density.shape == (24, 2) and colours.shape == (24, 2, 3)
    for number in range(2):
        then = dataclasses.replace(where, times=moments[:6, number : number + 1])
        layer = field(then, ("dynamic",))["dynamic"]
        assert torch.allclose(density[:, number], layer.density.flatten(), rtol=1e-4)
        assert torch.allclose(colours[:, number], layer.rgb.reshape(-1, 3), atol=1e-5)


def test_what_leaves_is_the_static_layers_until_it_does_not_stay(field):
    where = points()
    rest, stays = field(where, ("static",), all_at_rest=True)["static"], field(where, LAYERS)["static"]
    assert torch.allclose(stays.density, rest.density * rest.permanence)
    assert (rest.permanence > 0.5).all() and (rest.permanence < 1).all()
    with torch.no_grad():
        field.static.network.layers[-1].bias[1] = -20.0  # nothing is permanent
        field.dynamic.network.layers[-1].bias[-1] = 20.0  # but it is there
    found = field(where, LAYERS)
    assert torch.allclose(found["static"].density, torch.zeros(6, 4), atol=1e-5)
    comes = found["dynamic"].density - rest.density
    assert (comes > -1e-4 * rest.density).all()
    with torch.no_grad():
        field.dynamic.network.layers[-1].bias[-1] = -20.0  # it has left
    gone = field(where, LAYERS)["dynamic"].density
    assert torch.allclose(gone, comes, rtol=1e-3, atol=1e-4 * float(rest.density.max()))
    near = torch.minimum(rest.density / (comes + 1e-9), torch.tensor(1e3))[..., None] > 100
    assert torch.allclose(
        torch.where(near, found["dynamic"].rgb, rest.rgb), rest.rgb, atol=2e-2
    )  # in the colours that it has at rest


def test_shadows_may_see_coarser_places_than_the_actor(field):
    where = points(6)
    coarse = LayeredField(dataclasses.replace(SMALL, shadow_octaves=2), space(), 60)
    assert coarse.actor_shadow is not None and field.actor_shadow is not None
    inputs = [next(each.actor_shadow.parameters()).shape[1] for each in (coarse, field)]
    assert inputs[1] - inputs[0] == 6 * (SMALL.actor_octaves - 2)
    assert coarse.shadow(where.camera_positions[:, 0], where.times).shape == (6,)


def test_a_new_actor_throws_hardly_a_shadow(field):
    where = points()
    found = field.shadow(where.camera_positions[:, 0], where.times)
    assert found.shape == (6,) and (found > 0).all() and (found < 0.05).all()
    bare = LayeredField(dataclasses.replace(SMALL, shadow=False), space(), 60)
    assert torch.equal(bare.shadow(where.camera_positions[:, 0], where.times), torch.zeros(6))


def test_proposal_sees_the_room_and_what_is_before_the_camera(field):
    where = points()
    flat = (where.positions.reshape(-1, 3), where.camera_positions.reshape(-1, 3), where.per_sample(where.times))
    found, room = field.proposal(*flat)
    assert found.shape == room.shape == (24,) and (found > room).all() and (room > 0).all()
    assert not torch.equal(field.proposal(flat[0] * 0.5, *flat[1:])[1], room)
    moved, same = field.proposal(flat[0], flat[1] * 0.5, flat[2])
    assert not torch.equal(moved, found) and torch.equal(same, room)


@pytest.mark.parametrize("implementation", ["planes", "hash"])
def test_every_parameter_learns_at_one_rate_and_gets_a_gradient(implementation):
    config = dataclasses.replace(SMALL, implementation=implementation)
    field = LayeredField(config, space(), 60)
    groups = field.param_groups()
    grouped = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(grouped) == sorted(map(id, field.parameters()))
    tables = {id(p) for n, p in field.named_parameters() if "grid" in n or n.startswith("proposal.room.")}
    assert tables <= {id(parameter) for parameter in groups["grids"]}
    where = points()
    flat = (where.positions.reshape(-1, 3), where.camera_positions.reshape(-1, 3), where.per_sample(where.times))
    found = field(where, LAYERS)
    loss = field.proposal(*flat)[0].sum() + field.shadow(where.camera_positions[:, 0], where.times).sum()
    for samples in found.values():
        loss = loss + samples.density.sum() + samples.rgb.square().sum() + samples.encoding.square().sum()
        loss = loss + (samples.uncertainty.sum() if samples.uncertainty is not None else 0)
    loss.backward()
    assert [name for name, parameter in field.named_parameters() if parameter.grad is None] == []


def test_semantic_codes_sum_weighted_encodings(field):
    where = points()
    samples = field(where, LAYERS)
    heads = SemanticHeads(SemanticHeadsConfig((8,), 4, 16, samples=4), space(), "planes", 5, 17, {"image": 12})
    weights = {layer: torch.rand(6, 4) for layer in LAYERS}
    time_code = field.time_code(where.times)
    code = heads.code(where, samples, weights, time_code)
    assert code.shape == (6, heads.code_dim)
    assert torch.allclose(code[:, 0], weights["static"].sum(-1))
    expected = torch.einsum("rs,rsd->rd", weights["static"], samples["static"].encoding)
    assert torch.allclose(code[:, 1:6], expected, atol=1e-5)
    places = heads.grid(space().to_unit_cube(where.positions.reshape(-1, 3))).view(6, 4, -1)
    assert torch.allclose(code[:, 6:10], torch.einsum("rs,rsd->rd", weights["static"], places), atol=1e-5)
    assert torch.equal(code[:, -17:], time_code)
    features = heads.decode(code.view(2, 3, -1), "image")
    assert features.shape == (2, 3, 12)
    assert torch.allclose(features.norm(dim=-1), torch.ones(2, 3), atol=1e-5)


def test_a_hidden_layer_says_nothing_in_codes(field):
    where = points()
    samples = field(where, LAYERS)
    heads = SemanticHeads(SemanticHeadsConfig((8,), 4, 16), space(), "planes", 5, 17, {"image": 12})
    weights = {layer: torch.rand(6, 4) for layer in LAYERS}
    code = heads.code(where, samples, weights, field.time_code(where.times))
    hidden = heads.code(
        where, {"static": samples["static"]}, {"static": weights["static"]}, field.time_code(where.times)
    )
    assert hidden.shape == code.shape
    static = 1 + 5 + heads.grid.out_dim
    assert torch.equal(hidden[:, :static], code[:, :static]) and torch.equal(hidden[:, -17:], code[:, -17:])
    assert torch.equal(hidden[:, static:-17], torch.zeros_like(hidden[:, static:-17]))
