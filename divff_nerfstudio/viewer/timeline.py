"""One viewpoint at many times: how relevant a question is in it over time, and when the thing asked for moves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from divff_nerfstudio.query import Query, QueryConfig, split_phrases
from divff_nerfstudio.viewer.views import View

MOMENTS = 32
"""Times at which a viewpoint is looked at."""
HEIGHT = 36
"""Height of the pictures in which it is, in pixels."""
LEAST_CHANGE = 0.3
"""Change between two moments under which nothing counts as moving."""
_MASK_FLOOR = 0.3


def coarse_to_fine(count: int) -> list[int]:
    """Indices 0 to count - 1 in an order in which every beginning is spread over the whole range."""
    chosen: dict[int, None] = dict.fromkeys((0, count - 1)) if count > 1 else dict.fromkeys(range(count))
    step = 1.0
    while len(chosen) < count:
        step /= 2
        chosen.update(dict.fromkeys(round(i * step * (count - 1)) for i in range(1, round(1 / step))))
    return list(chosen)


@dataclass(eq=False)
class Timeline:
    """Small views of one viewpoint at several times; None where it has not been looked at yet."""

    key: object
    """What tells this viewpoint from others."""
    camera: Cameras
    """Sees it; one camera for all times, since the sizes of small pictures depend on those of the large one."""
    times: Float[np.ndarray, "moments"]
    """Ascending."""
    views: list[View | None] = field(default_factory=list)
    """One per time."""
    _scores: tuple[QueryConfig, np.ndarray] | None = field(default=None, init=False, repr=False)
    """What has been scored, and for which question: features are decoded for it, which takes its time."""

    def __post_init__(self) -> None:
        self.views = self.views or [None] * len(self.times)

    def scores(self, query: Query) -> Float[np.ndarray, "moments phrases"]:
        """Largest relevancy of each phrase in the view over time; NaN where it has not been looked at.

        Raises:
            QueryError: If the question cannot be answered.
        """
        config, scored = query.config, self._scores
        if scored is None or scored[0] != config:
            empty = np.full((len(self.times), len(split_phrases(config.text))), np.nan, np.float32)
            scored = self._scores = config, empty
        scores = scored[1]
        for i, view in enumerate(self.views):
            if view is None or np.isfinite(scores[i]).all():
                continue
            answer = query.look(view.features)
            if answer is not None and answer.config == config:
                scores[i] = answer.relevancies.amax(dim=(0, 1)).cpu().numpy()
        return scores

    def next_move(self, query: Query, now: float) -> int | None:
        """Index of the next moment at which what was asked for begins to move, the first one behind the last.

        Asked for nothing, it is whatever moves.

        Returns:
            The index `i`: it moves between `times[i]` and `times[i + 1]`; None if it never does in this view.

        Raises:
            QueryError: If the question cannot be answered.
        """
        maps = [what_is_seen(view, query) for view in self.views if view is not None]
        if len(maps) < len(self.times) or len(maps) < 2:
            return None
        changes = np.array([change(before, after) for before, after in itertools.pairwise(maps)])
        moves = changes >= max(LEAST_CHANGE, changes.max() / 2)
        begins = np.flatnonzero(moves & ~np.concatenate(([False], moves[:-1])))
        if len(begins) == 0:
            return None
        # What has begun before this moment is under way, not next.
        later = begins[self.times[begins] >= now - 1e-6]
        return int(later[0] if len(later) else begins[0])


def what_is_seen(view: View, query: Query) -> Float[Tensor, "height width"]:
    """How far each pixel exceeds the question's threshold; without a question, how much it shows of what moves."""
    answer = query.look(view.features)
    if answer is None:
        return (view.pictures["mask_moving"][..., 0] - _MASK_FLOOR).clamp_min(0)
    return (answer.relevancies.amax(dim=-1) - answer.config.threshold).clamp_min(0)


def change(before: Float[Tensor, "height width"], after: Float[Tensor, "height width"]) -> float:
    """Share of two maps that they do not have in common: 0 if they are equal, 1 if nothing overlaps.

    A map of a single pixel's weight counts as empty: what can hardly be seen flickers.
    """
    either = torch.maximum(before, after)
    if int((either > 0).sum()) < 4:
        return 0.0
    return 1 - float(torch.minimum(before, after).sum() / either.sum())


def between(times: Sequence[float] | np.ndarray, start: float, end: float) -> list[float]:
    """The scene's own times from `start` to `end`, both ends among them."""
    inside = [float(time) for time in times if start < time < end]
    return [float(start), *inside, float(end)]
