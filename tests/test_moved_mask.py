"""What has been moved by a time, of a layer in which objects rest, come, are exchanged and are carried."""

from __future__ import annotations

import torch

from divff_nerfstudio.models.moved_mask import moved_mask

SAMPLES, DENSE = 40, 100.0
PLACES = {"rests": 0.0, "came": 1.0, "exchanged": 2.0, "left and came back": 3.0, "carried": 4.0, "nothing": 5.0}
RED, BLUE = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.2, 0.9])


def layer_at(positions: torch.Tensor, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Objects two units away from the cameras, each at its own x."""
    there = ((positions[:, 2] - 2).abs() < 0.05)[:, None].expand_as(times)
    place = positions[:, :1].round()
    came = (place == PLACES["came"]) & (times < 0.4)
    away = (place == PLACES["left and came back"]) & (times > 0.2) & (times < 0.4)
    here = there & ~came & ~away & (place < PLACES["carried"])
    other = (place == PLACES["exchanged"]) & (times < 0.5)
    return DENSE * here.float(), torch.where(other[..., None], BLUE, RED)


def asked(time: float) -> dict[str, float]:
    """Shares of the mask of one ray at each place that have been moved by a time."""
    places = torch.tensor(list(PLACES.values()))
    distances = torch.linspace(1.5, 2.5, SAMPLES).expand(len(places), -1)
    positions = torch.stack((places[:, None].expand_as(distances), torch.zeros_like(distances), distances), -1)
    times = torch.full((len(places), 1), time)
    density = layer_at(positions.reshape(-1, 3), times.repeat_interleave(SAMPLES, 0))[0].view_as(distances)
    carried = (places == PLACES["carried"])[:, None] & ((distances - 2).abs() < 0.05)
    density = torch.where(carried, DENSE, density)
    lengths = torch.full_like(distances, 1 / (SAMPLES - 1))
    optical = density * lengths
    weights = torch.exp(-(optical.cumsum(-1) - optical)) * (1 - torch.exp(-optical))
    moved = moved_mask(weights, density, positions, distances, lengths, times, layer_at)
    shares = moved / weights.sum(-1).clamp_min(1e-6)
    assert (moved <= weights.sum(-1)).all()
    return dict(zip(PLACES, shares.tolist(), strict=True))


def test_what_has_been_moved():
    late = asked(0.9)
    assert late["rests"] < 0.01 and late["nothing"] == 0
    assert all(late[name] > 0.95 for name in ("came", "exchanged", "left and came back", "carried"))


def test_before_anything_is_moved():
    early = asked(0.1)
    assert all(early[name] < 0.01 for name in ("rests", "exchanged", "left and came back"))
    assert early["carried"] > 0.95
    assert asked(0.0)["rests"] < 0.01
