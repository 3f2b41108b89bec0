"""Parts of the static layer that are not there all the time: found by when frames show something else in their place.

An object that rests for most of the video is learned with the room, and what only adds opacity cannot take it away
again. So each static Gaussian is asked when training frames agree with it; one that they contradict for a while, and
only then, gets a duration in the dynamic layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_MIN_WEIGHT = 0.3
"""Pixels of a Gaussian that a frame must show to say anything of it."""
_MIN_FRAMES = 3
"""Frames that must agree, and frames that must not."""
_AGREEMENT, _CONTRAST, _EXPLAINED = 0.08, 0.1, 0.65
"""Largest error while a Gaussian is there, least excess of the error while it is not, and least share of the error's
variance that its coming and going explains."""
_CELLS = 1 << 22
"""Spans of frames of Gaussians that are looked at in one go."""


@dataclass
class Intervals:
    """When impermanent Gaussians are there; one that is away for a while and comes back has two stays."""

    ids: Int[Tensor, "stays"]
    """Rows of the static layer."""
    starts: Float[Tensor, "stays"]
    """Begin of each stay, minus infinity where no frame is before it."""
    ends: Float[Tensor, "stays"]
    """End of each stay, infinity where no frame is after it."""
    behind: Float[Tensor, "stays 3"]
    """Mean colour of what frames show there at other times."""


@dataclass
class Sightings:
    """What frames show where static Gaussians are seen."""

    times: list[Float[Tensor, ""]] = field(default_factory=list)
    """The frames' times."""
    weights: list[Float[Tensor, "gaussians"]] = field(default_factory=list)
    """Pixels of each Gaussian that are seen, weighted."""
    errors: list[Float[Tensor, "gaussians"]] = field(default_factory=list)
    """Weighted sums of the static layer's error in them."""
    colours: list[Float[Tensor, "gaussians 3"]] = field(default_factory=list)
    """Weighted sums of the frames' colours in them."""

    def add(
        self,
        time: Float[Tensor, ""],
        ids: Int[Tensor, "seen"],
        count: int,
        sums: Float[Tensor, "seen 5"],
    ) -> None:
        """Adds a frame.

        Args:
            time: Of the frame.
            ids: Rows of the static layer that were rasterised.
            count: Rows that it has.
            sums: Over the frame's pixels, of their weights times one, error and colour.
        """
        whole = sums.new_zeros(count, 5)
        whole[ids] = sums
        self.times.append(time)
        self.weights.append(whole[:, 0])
        self.errors.append(whole[:, 1])
        self.colours.append(whole[:, 2:])

    def stays(self, max_stays: int) -> Intervals:
        """The stays of those Gaussians that come or go.

        Each is there in one span of frames, or in all but one: of all spans that which parts its errors best.

        Args:
            max_stays: Stays that are wanted; the clearest cases are kept.
        """
        order = torch.stack(self.times).argsort()
        times, weights = torch.stack(self.times)[order], torch.stack(self.weights)[order]
        seen = weights > _MIN_WEIGHT
        errors = torch.stack(self.errors)[order] / weights.clamp_min(_MIN_WEIGHT)
        # Most Gaussians are right or wrong all the time.
        doubtful = torch.nonzero(
            (seen.sum(0) >= 2 * _MIN_FRAMES) & (errors.where(seen, 0.0).amax(0) > _CONTRAST)
        ).flatten()
        starts, ends = torch.triu_indices(len(times) + 1, len(times) + 1, 1, device=times.device)
        proper = (starts > 0) | (ends < len(times))
        starts, ends = starts[proper], ends[proper]
        found = [
            _best_span(errors[:, ids], seen[:, ids], starts, ends)
            for ids in doubtful.split(max(1, _CELLS // max(1, len(starts))))
            if len(ids)  # of a single frame there are no spans
        ]
        empty = torch.empty(0, device=times.device)
        clear, best, inside = (torch.cat([each[i] for each in found]) if found else empty for i in range(3))
        chosen = torch.nonzero(clear > 0).flatten()
        chosen = chosen[clear[chosen].argsort(descending=True)]
        starts, ends, inside = starts[best[chosen].long()], ends[best[chosen].long()], inside[chosen].bool()
        # One that leaves and comes back takes the room of two.
        room = torch.where(inside, 1, (starts > 0).int() + (ends < len(times)).int()).cumsum(0) <= max_stays
        return self._pieces(order, times, doubtful[chosen][room], starts[room], ends[room], inside[room])

    def _pieces(
        self,
        order: Int[Tensor, "frames"],
        times: Float[Tensor, "frames"],
        ids: Int[Tensor, "gaussians"],
        starts: Int[Tensor, "gaussians"],
        ends: Int[Tensor, "gaussians"],
        inside: Bool[Tensor, "gaussians"],
    ) -> Intervals:
        """Stays from spans of frames in which Gaussians are there (`inside`), or are not."""
        infinity = times.new_full((1,), torch.inf)
        limits = torch.cat((-infinity, (times[1:] + times[:-1]) / 2, infinity))
        frames = torch.arange(len(times), device=times.device)[:, None]
        away = ((frames >= starts) & (frames < ends)) != inside
        weights = torch.stack([each[ids] for each in self.weights])[order] * away
        colours = (torch.stack([each[ids] for each in self.colours])[order] * away[..., None]).sum(0)
        behind = colours / weights.sum(0).clamp_min(1e-6)[:, None]
        before, after = ~inside & (starts > 0), ~inside & (ends < len(times))
        return Intervals(
            ids=torch.cat((ids[inside], ids[before], ids[after])),
            starts=torch.cat((limits[starts[inside]], -infinity.expand(int(before.sum())), limits[ends[after]])),
            ends=torch.cat((limits[ends[inside]], limits[starts[before]], infinity.expand(int(after.sum())))),
            behind=torch.cat((behind[inside], behind[before], behind[after])),
        )


def _best_span(
    errors: Float[Tensor, "frames gaussians"],
    seen: Bool[Tensor, "frames gaussians"],
    starts: Int[Tensor, "spans"],
    ends: Int[Tensor, "spans"],
) -> tuple[Float[Tensor, "gaussians"], Float[Tensor, "gaussians"], Float[Tensor, "gaussians"]]:
    """The span of frames that parts each Gaussian's errors best.

    Returns:
        How clear a case it is (0: none), the span's index, and whether the Gaussian is there in it, else outside.
    """
    counts, sums = (
        torch.cat((each.new_zeros(1, each.shape[1]), each.cumsum(0)))
        for each in (seen.to(errors), errors.where(seen, 0.0))
    )
    within, total = counts[ends] - counts[starts], counts[-1]
    without = total - within
    mean_within = (sums[ends] - sums[starts]) / within.clamp_min(1)
    mean_without = (sums[-1] - (sums[ends] - sums[starts])) / without.clamp_min(1)
    between = within * without / total.clamp_min(1) * (mean_within - mean_without).square()
    before, after = counts[starts], total - counts[ends]
    few = (within < _MIN_FRAMES) | (without < _MIN_FRAMES)
    # A single odd frame at the other end of the video is no part of anything.
    few |= ((starts > 0)[:, None] & (before < _MIN_FRAMES)) | ((ends < len(errors))[:, None] & (after < _MIN_FRAMES))
    between.masked_fill_(few, 0.0)
    best = between.argmax(0, keepdim=True)
    first, second = mean_within.gather(0, best)[0], mean_without.gather(0, best)[0]
    mean = sums[-1] / total.clamp_min(1)
    variance = ((errors - mean).square().where(seen, 0.0)).sum(0)
    explained = between.gather(0, best)[0] / variance.clamp_min(1e-9)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    clear = (low < _AGREEMENT) & (high - low > _CONTRAST) & (explained > _EXPLAINED)
    return explained * clear, best[0].to(errors), (first < second).to(errors)
