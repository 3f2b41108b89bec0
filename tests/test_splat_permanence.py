"""When Gaussians of the room are not there."""

from __future__ import annotations

import torch
from torch import Tensor

from divff_nerfstudio.models.splat.gaussians import DynamicGaussians
from divff_nerfstudio.models.splat.permanence import Sightings

FRAMES = 20
TIMES = torch.linspace(0, 1, FRAMES)
RIGHT, WRONG = 0.02, 0.4
ORANGE, GREY = torch.tensor([0.9, 0.5, 0.1]), torch.full((3,), 0.5)


def sighted(there: Tensor, weights: Tensor | None = None, shuffled: bool = True) -> Sightings:
    """Frames, in any order, that show orange where Gaussians are there (frames, gaussians) and grey where not."""
    count = there.shape[1]
    weights = torch.ones(FRAMES, count) if weights is None else weights
    sightings = Sightings()
    for frame in torch.randperm(FRAMES).tolist() if shuffled else range(FRAMES):
        error = torch.where(there[frame], RIGHT, WRONG) + 0.01 * torch.rand(count)
        colour = torch.where(there[frame][:, None], ORANGE, GREY)
        sums = weights[frame][:, None] * torch.cat((torch.ones(count, 1), error[:, None], colour), -1)
        sightings.add(TIMES[frame], torch.arange(count), count, sums)
    return sightings


def test_what_comes_or_goes_has_stays_and_the_room_has_none():
    there = torch.ones(FRAMES, 5, dtype=torch.bool)
    there[:8, 1] = False  # comes
    there[12:, 2] = False  # goes
    there[5:12, 3] = False  # leaves and comes back
    there[[*range(4), *range(15, FRAMES)], 4] = False  # is put down and taken again
    stays = sighted(there).stays(100)
    found = sorted(zip(stays.ids.tolist(), stays.starts.tolist(), stays.ends.tolist(), strict=True))
    middle = ((TIMES[1:] + TIMES[:-1]) / 2).tolist()
    expected = [
        (1, middle[7], torch.inf),
        (2, -torch.inf, middle[11]),
        (3, -torch.inf, middle[4]),
        (3, middle[11], torch.inf),
        (4, middle[3], middle[14]),
    ]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))
    torch.testing.assert_close(stays.behind, GREY.expand(5, 3))


def test_what_is_often_hidden_or_always_wrong_is_left_alone():
    random = torch.Generator().manual_seed(0)
    there = torch.ones(FRAMES, 3, dtype=torch.bool)
    there[torch.randperm(FRAMES, generator=random)[:8], 0] = False  # arms come and go
    there[:, 1] = False
    there[0, 2] = False  # one frame is too little to tell
    assert not len(sighted(there).stays(100).ids)


def test_frames_that_hardly_show_a_gaussian_say_nothing():
    there = torch.ones(FRAMES, 1, dtype=torch.bool)
    there[:8] = False
    hidden = torch.ones(FRAMES, 1)
    hidden[:6] = 0.1
    assert len(sighted(there).stays(100).ids) and not len(sighted(there, hidden).stays(100).ids)


def test_no_more_stays_than_there_is_room_for():
    there = torch.ones(FRAMES, 6, dtype=torch.bool)
    there[5:12] = False
    stays = sighted(there).stays(5)
    assert len(stays.ids) == 4 and sorted(stays.ids.bincount().tolist())[-2:] == [2, 2], "whole Gaussians only"
    assert not len(sighted(there).stays(0).ids)


def test_a_stay_becomes_a_life_with_sharp_edges():
    layer = DynamicGaussians(2, 0, 41, 0.3)
    rows = layer.rows_of_spans(torch.tensor([0.3, -torch.inf]), torch.tensor([0.7, 0.4]))
    layer.make_room(2)
    for name, row in layer.filled({"means": torch.zeros(2, 3), **rows}).items():
        layer.rows[name].data = row
    lives = layer.temporal_opacity(torch.linspace(0, 1, 41)).detach()
    assert (lives[16:25, 0] > 0.9).all() and (lives[:9, 0] < 0.06).all() and (lives[32:, 0] < 0.06).all()
    assert (lives[:12, 1] > 0.9).all() and (lives[20:, 1] < 0.06).all()
