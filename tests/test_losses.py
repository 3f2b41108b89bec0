"""Losses with known answers."""

from __future__ import annotations

import math

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from pytorch_msssim import ssim

from divff_nerfstudio.models.distillation import feature_loss
from divff_nerfstudio.models.rays import clear_space_loss, distortion_loss, proposal_loss
from divff_nerfstudio.models.separation import persistence_loss, shadow_loss, structural_loss, uncertain_photometric
from divff_nerfstudio.rendering import ProposalSamples, sample_rays


def test_photometric_is_half_the_scaled_square_and_the_logarithm():
    rgb, target = torch.zeros(4, 3), torch.full((4, 3), 0.2)
    spread = torch.full((4,), 0.1)
    assert uncertain_photometric(rgb, target, spread).item() == pytest.approx(2.0 + math.log(0.1))
    # For a given error the likelihood is highest where the standard deviation is that error.
    values = {s: uncertain_photometric(rgb, target, torch.full((4,), s)).item() for s in (0.1, 0.19, 0.2, 0.21, 0.4)}
    assert min(values, key=values.__getitem__) == 0.2


def test_uncertainty_of_one_ray_excuses_that_ray_only():
    rgb = torch.zeros(2, 3, requires_grad=True)
    uncertain_photometric(rgb, torch.ones(2, 3), torch.tensor([0.1, 1.0])).backward()
    assert rgb.grad is not None
    assert torch.allclose(rgb.grad[0] / rgb.grad[1], torch.full((3,), 100.0))


def solid(height: float, moments: list[float]) -> torch.Tensor:
    """Loss of one place with this density now, and these at other moments."""
    return persistence_loss(torch.tensor([height]), torch.tensor([moments]), depth=1.0)


def test_persistence_forgives_what_moves_and_blames_what_stays():
    assert solid(50.0, [50.0] * 8).item() == pytest.approx(1.0)
    assert solid(50.0, [50.0] * 7 + [0.0]).item() == 0.0
    assert solid(0.0, [50.0] * 8).item() == 0.0
    assert solid(2.0, [0.3, 5.0]).item() == pytest.approx(1 - math.exp(-0.3))
    mixed = persistence_loss(torch.tensor([50.0, 50.0]), torch.tensor([[50.0, 50.0], [50.0, 0.0]]), 1.0)
    assert mixed.item() == pytest.approx(0.5)
    here = torch.tensor([0.2], requires_grad=True)
    persistence_loss(here, torch.tensor([[0.5]]), 2.0).backward()
    assert here.grad is not None and here.grad.item() == pytest.approx(2 * math.exp(-0.4))


def test_persistence_does_not_depend_on_the_unit_of_length():
    one = persistence_loss(torch.tensor([3.0]), torch.tensor([[2.0, 4.0]]), depth=0.1)
    other = persistence_loss(torch.tensor([0.3]), torch.tensor([[0.2, 0.4]]), depth=1.0)
    assert one.item() == pytest.approx(other.item())


def test_features_are_compared_by_huber_or_squares():
    target = torch.zeros(2, 3)
    rendered = torch.tensor([[0.5, 0.0, 0.0], [0.0, 2.0, 1.0]])
    valid = torch.tensor([True, True])
    huber = (0.125 + 1.25 * (2 - 0.625) + 0.5) / 2
    for kind in ("image", "video"):
        assert feature_loss(kind, rendered, target, valid).item() == pytest.approx(huber)
    assert feature_loss("regulariser", rendered, target, valid).item() == pytest.approx((0.25 + 5) / 2)


@pytest.mark.parametrize("kind", ["image", "video", "regulariser"])
def test_rays_without_features_teach_nothing(kind):
    rendered = torch.randn(5, 4, requires_grad=True)
    target = torch.randn(5, 4)
    valid = torch.tensor([True, False, True, False, False])
    loss = feature_loss(kind, rendered, target, valid)
    assert loss.item() == pytest.approx(feature_loss(kind, rendered[valid], target[valid], valid[valid]).item())
    (gradient,) = torch.autograd.grad(loss, rendered)
    assert torch.equal(gradient[~valid], torch.zeros(3, 4)) and (gradient[valid] != 0).any()
    nothing = feature_loss(kind, rendered, target, torch.zeros(5, dtype=torch.bool))
    assert nothing.item() == 0.0
    nothing.backward()
    assert rendered.grad is not None and torch.equal(rendered.grad, torch.zeros(5, 4))


def test_proposal_is_taught_to_bound_the_weights_and_nothing_else():
    directions = torch.tensor([[0.0, 0.0, -1.0]]).expand(3, 3)
    rays = RayBundle(
        origins=torch.zeros(3, 3),
        directions=directions,
        pixel_area=torch.ones(3, 1),
        nears=torch.full((3, 1), 0.1),
        fars=torch.full((3, 1), 4.0),
        times=torch.zeros(3, 1),
        metadata={"camera_directions": directions},
    )
    level, room = torch.tensor(0.5, requires_grad=True), torch.tensor(0.2, requires_grad=True)

    def density(points):
        ones = torch.ones(points.positions.shape[:2].numel())
        return (level + room) * ones, room * ones

    samples, proposal = sample_rays(rays, density, 8, 6, training=False)
    peak = torch.zeros(3, 6, requires_grad=True)
    with torch.no_grad():
        peak[:, 3] = 1.0
    nothing = torch.zeros(3, 6)
    loss = proposal_loss(proposal, samples, peak, nothing)
    loss.backward(retain_graph=True)
    assert loss.item() > 0 and level.grad is not None and level.grad.abs() > 0 and peak.grad is None
    level.grad = None
    behind = proposal_loss(proposal, samples, nothing, peak)
    behind.backward()
    assert behind.item() > 0 and level.grad in (None, torch.tensor(0.0)) and room.grad.abs() > 0
    fog = torch.full((3, 6), 1 / 6, requires_grad=True)
    split = torch.zeros(3, 6)
    split[:, 0] = split[:, 5] = 0.5
    spread = [distortion_loss(samples, weights).item() for weights in (nothing, peak, fog, split)]
    assert spread[0] == 0 and sorted(spread) == spread and spread[3] > 3 * spread[1]
    distortion_loss(samples, fog).backward()
    assert fog.grad is not None and (fog.grad[:, 0] > fog.grad[:, 2]).all()
    ones = torch.ones_like(proposal.weights)
    bounded = ProposalSamples(proposal.samples, ones, ones)
    assert proposal_loss(bounded, samples, peak, peak).item() == pytest.approx(0.0, abs=1e-6)


def test_the_air_around_the_head_is_to_be_clear():
    """Of the room, what lies nearer than half of its near is pushed away; the worktop behind it is left alone."""
    distances, nears = torch.tensor([[0.1, 0.4, 0.6, 1.0]] * 2), torch.tensor([[1.0], [0.2]])
    weights = torch.tensor([[0.3, 0.2, 0.1, 0.4]] * 2, requires_grad=True)
    loss = clear_space_loss(distances, weights, nears)
    loss.backward()
    assert loss.item() == pytest.approx((0.3 + 0.2) / 2)  # the second ray's room begins nearer than any sample's half
    assert weights.grad is not None and weights.grad.tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0, 0]]


def test_shadow_is_found_where_the_target_is_a_darker_multiple():
    room = torch.tensor([[0.6, 0.4, 0.2]]).repeat(3, 1)
    target = torch.stack((room[0], 0.5 * room[0], torch.tensor([0.1, 0.4, 0.6])))
    none, moving = torch.zeros(3), torch.zeros(3)
    half = torch.tensor([0.0, 0.5, 0.0])
    unexplained = shadow_loss(none, moving, room, target, tolerance=0.04)
    explained = shadow_loss(half, moving, room, target, tolerance=0.04)
    assert unexplained == pytest.approx(0.5 / 3, abs=1e-3) and explained == pytest.approx(0.0, abs=1e-3)
    # A moving layer that draws the shadow pays for it; one that draws something of another colour does not.
    draws = [shadow_loss(half, mask, room, target, tolerance=0.04) for mask in torch.eye(3)]
    assert draws[1] == pytest.approx(0.5 / 3, abs=1e-3) and draws[0] + draws[2] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(("height", "width"), [(16, 28), (6, 9), (3, 3)])
def test_structural_loss_is_the_librarys(height, width):
    rgb, target = torch.rand(2, height * width, 3, generator=torch.Generator().manual_seed(0))
    first, second = (image.view(1, height, width, 3).permute(0, 3, 1, 2) for image in (rgb, target))
    window = min(11, 2 * ((min(height, width) - 1) // 2) + 1)
    expected = 1 - ssim(first, second, data_range=1.0, win_size=window)
    assert torch.equal(structural_loss(rgb, target, height, width), expected)
