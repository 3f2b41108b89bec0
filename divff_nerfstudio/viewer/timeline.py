"""One viewpoint at many times: how relevant a question is in it over time, and when the thing asked for moves."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from divff_nerfstudio.evenly import evenly_spaced
from divff_nerfstudio.models.view import FEATURES
from divff_nerfstudio.query import Query, QueryConfig, split_phrases
from divff_nerfstudio.viewer.answering import Answering
from divff_nerfstudio.viewer.background import Latest
from divff_nerfstudio.viewer.context import NO_PICTURE, PanelContext
from divff_nerfstudio.viewer.markup import as_image, plot
from divff_nerfstudio.viewer.signals import Signal
from divff_nerfstudio.viewer.views import AnsweredView, small_camera, viewpoint

MOMENTS = 32
"""Times at which a viewpoint is looked at."""
HEIGHT = 36
"""Height of the pictures in which it is, in pixels."""
MIN_CHANGE = 0.3
"""Change between two moments under which nothing counts as moving."""
_MIN_MASK = 0.3
_QUIET = 0.7
"""Seconds that a view must rest before it is looked at over time."""


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
    views: list[AnsweredView | None] = field(default_factory=list)
    """One per time."""
    outputs: frozenset[str] = frozenset(("mask_moving", FEATURES))
    """What they are rendered for."""
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
        moves = changes >= max(MIN_CHANGE, changes.max() / 2)
        begins = np.flatnonzero(moves & ~np.concatenate(([False], moves[:-1])))
        if len(begins) == 0:
            return None
        # What has begun before this moment is under way, not next.
        later = begins[self.times[begins] >= now - 1e-6]
        return int(later[0] if len(later) else begins[0])


def what_is_seen(view: AnsweredView, query: Query) -> Float[Tensor, "height width"]:
    """How far each pixel exceeds the question's threshold; without a question, how much it shows of what moves."""
    answer = query.look(view.features)
    if answer is None:
        return (view.pictures["mask_moving"][..., 0] - _MIN_MASK).clamp_min(0)
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
    inside = [float(moment) for moment in times if start < moment < end]
    return [float(start), *inside, float(end)]


class OverTime:
    """Looks at the present viewpoint at many times, in a thread of its own.

    Attributes:
        plotted: Happens when scores over time have been drawn; told the drawing as Markdown, empty: there is none.
    """

    def __init__(self, context: PanelContext, answering: Answering, on: bool):
        self._context, self._query, self._answering = context, context.query, answering
        self._lane = Latest("panel looking", self._failed)
        self._timeline: Timeline | None = None
        self._jump = False
        self.on = on
        self.plotted: Signal[[str]] = Signal()

    def switch(self, on: bool) -> None:
        """Shows scores over time, or no longer."""
        self.on = on
        if on:
            self._lane.submit(self._look)
        else:
            self.plotted("")

    def find_move(self) -> None:
        """Goes to the next moment at which what is asked for begins to move; asked for nothing, anything."""
        self._jump = True
        self._lane.submit(self._look)

    def follow(self, view: AnsweredView, at_rest: bool) -> None:
        """Draws the scores anew for what is seen now; once it is at rest, looks at it over time."""
        self._plot()
        if at_rest and self.on and self._query.active and view.featured:
            self._lane.submit(self._look)

    def _look(self) -> None:
        """Looks at the present viewpoint at many times, coarse to fine; then goes to the next move, if asked to."""
        rested = time.perf_counter() + _QUIET
        while not self._jump and time.perf_counter() < rested:
            if self._lane.outdated:
                return
            time.sleep(0.05)
        current = self._answering.current
        if current is None:
            self._jump = False
            self._context.note(NO_PICTURE)
            return
        timeline, key = self._timeline, self._key(current)
        outputs = frozenset(("mask_moving", FEATURES) if self._query.active else ("mask_moving",))
        if timeline is None or timeline.key != key or not timeline.outputs >= outputs:
            times = self._context.frames.times
            chosen = times[evenly_spaced(len(times), MOMENTS)]
            timeline = self._timeline = Timeline(key, current.camera, chosen, outputs=outputs)
        for done, i in enumerate(coarse_to_fine(len(timeline.times))):
            if timeline.views[i] is None:
                if self._lane.outdated:
                    return
                timeline.views[i] = self._small_view(timeline, float(timeline.times[i]))
                if done % 4 == 3:
                    self._plot()
                if self._jump:
                    self._context.note(f"Looking through the scene: {done + 1} of {len(timeline.times)} moments.")
        self._plot()
        if self._jump:
            self._jump = False
            self._go_to_move(timeline)

    def _failed(self, error: Exception) -> None:
        """Shows what went wrong; what was to be found is forgotten, and no later look goes there unasked."""
        self._jump = False
        self._context.failed(error)

    def _key(self, view: AnsweredView) -> object:
        # What training has not taught yet is looked for again when it has.
        return viewpoint(view.camera), self._context.hidden, view.featured, self._context.viewer.in_training

    def _small_view(self, timeline: Timeline, moment: float) -> AnsweredView:
        """A small picture of a viewpoint at another time."""
        camera = small_camera(timeline.camera, HEIGHT, moment)
        with self._context.viewer.training_lock():
            view = self._answering.views.render(camera, timeline.outputs, max_decoded=0)
        time.sleep(0.01)  # A render thread that waits for the lock gets it here.
        return view

    def _go_to_move(self, timeline: Timeline) -> None:
        """Goes to the frame in which what is asked for has begun to move."""
        frames, viewer = self._context.frames, self._context.viewer
        begins = timeline.next_move(self._query, viewer.time)
        if begins is None:
            what = "It does not move" if self._query.phrases else "Nothing moves"
            self._context.note(f"{what} in this view.")
            return
        before, after = timeline.views[begins], timeline.views[begins + 1]
        assert before is not None and after is not None
        moments = between(frames.times, float(timeline.times[begins]), float(timeline.times[begins + 1]))
        first, last = 0, len(moments) - 1
        seen = [what_is_seen(view, self._query) for view in (before, after)]
        while last - first > 1:
            middle = (first + last) // 2
            found = what_is_seen(self._small_view(timeline, moments[middle]), self._query)
            if change(seen[0], found) >= change(found, seen[1]):
                last, seen[1] = middle, found
            else:
                first, seen[0] = middle, found
        viewer.time = moments[last]
        what = "It" if self._query.phrases else "Anything"
        self._context.note(f"{what} moves at frame {frames.ids[frames.at(moments[last])]}.")

    def _plot(self) -> None:
        """Draws the scores over time, as far as they are known."""
        timeline, current, query = self._timeline, self._answering.current, self._query
        if timeline is None or current is None or not self.on or not query.active:
            self.plotted("")
            return
        if timeline.key != self._key(current) or FEATURES not in timeline.outputs or not query.known:
            self.plotted("")
            return
        threshold, phrases, ids = query.config.threshold, query.phrases, self._context.frames.ids
        scores, ends = timeline.scores(query), (int(ids[0]), int(ids[-1]))
        drawing = plot(phrases, timeline.times, scores, threshold, self._context.viewer.time, ends)
        self.plotted(as_image(drawing))
