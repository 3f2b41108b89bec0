"""The rasteriser in PyTorch against one that goes through pixels and Gaussians one by one, and against gsplat."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from divff_nerfstudio.models.splat import compositing
from divff_nerfstudio.models.splat.compositing import Projected, composite_gaussians, list_tiles
from divff_nerfstudio.models.splat.rasterise import MAX_CHANNELS, harmonics, rasterization, rasterization_in_torch


def some_gaussians(seed: int, count: int, channels: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Centres, rotations, scales, opacities and values: some behind the camera, some flat, some opaque."""
    random = torch.Generator().manual_seed(seed)
    means = torch.randn(count, 3, generator=random, dtype=dtype) * 0.8 + torch.tensor([0.0, 0.0, 2.0])
    quats = torch.randn(count, 4, generator=random, dtype=dtype)
    scales = torch.exp(torch.randn(count, 3, generator=random, dtype=dtype) - 2.5)
    opacities = torch.rand(count, generator=random, dtype=dtype)
    opacities[::3] = 1.0
    return [means, quats, scales, opacities, torch.randn(count, channels, generator=random, dtype=dtype)]


def camera(width: int, height: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    K = torch.tensor([[0.9 * width, 0, width / 2], [0, 0.9 * width, height / 2], [0, 0, 1]], dtype=dtype)
    return torch.eye(4, dtype=dtype)[None], K[None]


def slow(projected: Projected, values: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """gsplat's rules, in their plainest form."""
    order = torch.argsort(projected.depths, stable=True).tolist()
    image, alphas = [], []
    for pixel in range(width * height):
        x, y = pixel % width + 0.5, pixel // width + 0.5
        tile = (pixel % width // 16, pixel // width // 16)
        light, total = values.new_ones(()), values.new_zeros(values.shape[-1])
        for i in order:
            radius, (mx, my) = int(projected.radii[i]), projected.means[i].tolist()
            if radius <= 0:
                continue
            touched = math.floor((mx - radius) / 16) <= tile[0] < math.ceil((mx + radius) / 16) and math.floor(
                (my - radius) / 16
            ) <= tile[1] < math.ceil((my + radius) / 16)
            if not touched:
                continue
            dx, dy = projected.means[i, 0] - x, projected.means[i, 1] - y
            a, b, c = projected.conics[i]
            sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
            alpha = (projected.opacities[i] * torch.exp(-sigma)).clamp_max(0.999)
            if alpha < 1 / 255:
                continue
            if light * (1 - alpha) <= 1e-4:
                break
            total = total + light * alpha * values[i]
            light = light * (1 - alpha)
        image.append(total)
        alphas.append(1 - light)
    return torch.stack(image).view(height, width, -1), torch.stack(alphas).view(height, width, 1)


def project(gaussians: list[Tensor], width: int, height: int) -> Projected:
    """The Gaussians in the image, by gsplat's own projection."""
    _, _, facts = rasterization_in_torch(*gaussians, *camera(width, height, gaussians[0].dtype), width, height)
    return Projected(
        facts["means2d"][0], facts["conics"][0], facts["radii"][0], facts["depths"][0], facts["opacities"][0]
    )


@settings(max_examples=6)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(1, 12),
    channels=st.integers(1, 4),
    width=st.integers(1, 18),
    height=st.integers(1, 7),
)
def test_image_is_that_of_the_slow_rasteriser(seed, count, channels, width, height):
    gaussians = some_gaussians(seed, count, channels)
    projected = project(gaussians, width, height)
    image, alpha = composite_gaussians(projected, gaussians[-1], width, height)
    expected, expected_alpha = slow(projected, gaussians[-1], width, height)
    torch.testing.assert_close(image, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(alpha, expected_alpha, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_are_those_of_the_slow_rasteriser(seed):
    gaussians = [tensor.double() for tensor in some_gaussians(seed, 12, 3)]
    width, height = 7, 5
    found = project(gaussians, width, height)
    random = torch.randn(height, width, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def gradients(render) -> list[Tensor]:
        leaves = [t.detach().clone().requires_grad_() for t in (found.means, found.conics, found.opacities)]
        values = gaussians[-1].clone().requires_grad_()
        projected = Projected(leaves[0], leaves[1], found.radii, found.depths, leaves[2])
        image, alpha = render(projected, values, width, height)
        (torch.cat((image, alpha), -1) * random).sum().backward()
        return [leaf.grad for leaf in (*leaves, values)]

    for ours, expected in zip(gradients(composite_gaussians), gradients(slow), strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-7)


def test_gradients_reach_what_is_projected():
    gaussians = [tensor.requires_grad_() for tensor in some_gaussians(3, 30, 5)]
    image, _, facts = rasterization(*gaussians, *camera(24, 16), 24, 16)
    facts["means2d"].retain_grad()
    image.square().sum().backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in gaussians)
    assert facts["means2d"].grad.shape == (1, 30, 2) and facts["radii"].shape == (1, 30)


@pytest.mark.parametrize("limit", ["_CHUNK", "_BAND"])
def test_what_is_held_at_a_time_does_not_matter(monkeypatch, limit):
    images, gradients = [], []
    for _ in range(2):
        gaussians = [tensor.requires_grad_() for tensor in some_gaussians(5, 200, 3)]
        image = rasterization_in_torch(*gaussians, *camera(40, 50), 40, 50)[0]
        image.square().sum().backward()
        images.append(image)
        gradients.append([tensor.grad for tensor in gaussians])
        monkeypatch.setattr(compositing, limit, 700)
    torch.testing.assert_close(*images)
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-4)


def test_lists_of_a_large_picture_are_held_one_part_at_a_time(monkeypatch):
    longest = []
    lists_of = compositing.list_tiles

    def watched(projected, width, height):
        lists = lists_of(projected, width, height)
        longest.append((height, len(lists.ids)))
        return lists

    monkeypatch.setattr(compositing, "list_tiles", watched)
    monkeypatch.setattr(compositing, "_BAND", 1 << 12)
    gaussians = some_gaussians(5, 300, 3)
    rasterization_in_torch(*gaussians, *camera(200, 180), 200, 180)
    pairs = [count for _, count in longest]
    assert [height for height, _ in longest] == [16] * 11 + [4] and max(pairs) < sum(pairs) / 4


def test_lists_are_ordered_by_depth_and_leave_the_invisible_out():
    gaussians = some_gaussians(7, 60, 1)
    gaussians[3][10] = 0.5 / 255
    projected = project(gaussians, 32, 20)
    lists = list_tiles(projected, 32, 20)
    assert len(lists.counts) == 8 * 5 and int(lists.counts.sum()) == len(lists.ids) > 0
    for start, count in zip(lists.starts.tolist(), lists.counts.tolist(), strict=True):
        depths = projected.depths[lists.ids[start : start + count]]
        assert (depths.diff() >= 0).all()
    assert 10 not in lists.ids and (projected.radii[lists.ids] > 0).all()


def test_background_shows_where_light_is_left():
    gaussians = some_gaussians(2, 0, 3)
    background = torch.tensor([[0.2, 0.4, 0.6]])
    image, alpha, _ = rasterization(*gaussians, *camera(8, 8), 8, 8, backgrounds=background)
    assert torch.equal(image, background.expand(1, 8, 8, 3)) and not alpha.any()


def test_a_nearer_gaussian_hides_one_behind():
    means = torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 1.0]])
    quats, scales = torch.tensor([[1.0, 0, 0, 0]]).expand(2, 4), torch.full((2, 3), 0.5)
    colours = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    image, _, _ = rasterization(means, quats, scales, torch.full((2,), 0.9), colours, *camera(9, 9), 9, 9)
    assert image[0, 4, 4, 1] > 0.85 > 0.15 > image[0, 4, 4, 0]
    assert image[0, 4, 4, 0] == pytest.approx(0.09, abs=0.02)


def test_harmonics_of_degree_zero_do_not_depend_on_the_direction():
    coefficients = torch.rand(6, 4, 3)
    plain = harmonics(0, torch.randn(6, 3), coefficients)
    torch.testing.assert_close(plain, 0.28209479177 * coefficients[:, 0] + 0.5)
    ahead, behind = (harmonics(1, torch.tensor([[0.0, 0.0, z]]).expand(6, 3), coefficients) for z in (1.0, -1.0))
    assert (ahead - behind).abs().max() > 0.1
    torch.testing.assert_close((ahead + behind) / 2, plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("channels", [3, MAX_CHANNELS])
def test_gsplat_renders_the_same_on_a_gpu(channels):
    gaussians = some_gaussians(11, 2000, channels)
    width, height = 114, 64
    background = torch.rand(1, channels)
    images, gradients = [], []
    for device, render in (("cpu", rasterization_in_torch), ("cuda", rasterization)):
        leaves = [tensor.clone().to(device).requires_grad_() for tensor in gaussians]
        views = [tensor.to(device) for tensor in camera(width, height)]
        image, alpha, _ = render(*leaves, *views, width, height, backgrounds=background.to(device))
        image.square().mean().backward()
        images.append(torch.cat((image, alpha), -1).detach().cpu())
        gradients.append([leaf.grad.cpu() for leaf in leaves])
    # A Gaussian just at the least opacity that counts may count on the one device alone.
    difference = (images[0] - images[1]).abs()
    assert float((difference > 1e-4).float().mean()) < 1e-3 and float(difference.max()) < 2e-2
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=1e-2)
