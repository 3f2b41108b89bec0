"""A phrase over the whole video: where the thing is at each moment, and when it moves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from divff_nerfstudio.evaluation.answers import THRESHOLDS
from divff_nerfstudio.evaluation.options import MovingLayer
from divff_nerfstudio.evaluation.trained_scene import AskedView, TrainedScene
from divff_nerfstudio.plots import plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNDECIDED = 0.5
"""Relevancy of a pixel that is as much like the nearest negative as like the phrase: nothing is sighted there."""
CORE = 0.8
"""A sighting is where relevancy is above this share of the way from `UNDECIDED` to its largest value."""
MIN_STEP = 0.05
"""Share of its distance from the camera that a thing must be displaced by to have moved."""
NOISE = 3.0
"""How many times the median displacement it must be displaced by to have moved."""


@dataclass
class TrackPoint:
    """Where a thing is at one moment."""

    frame_id: int
    """Frame whose time it is."""
    time: float
    """That time, 0 to 1."""
    score: float
    """The largest relevancy."""
    found: bool
    """Whether it is above the fixed threshold."""
    point: tuple[float, float, float] | None
    """Median of the points where it is most relevant, in world coordinates; None where nothing is sighted."""
    depth: float
    """How far that is from the camera along the ray."""
    layer: str
    """Layer of the most relevant pixel."""
    viewpoint: int
    """Frame from whose viewpoint it is seen best."""


@dataclass
class Track:
    """Where a thing is over time."""

    phrase: str
    """What was asked."""
    kind: str
    """Which features answered."""
    sightings: list[TrackPoint]
    """In the order of time."""

    @property
    def points(self) -> Float[np.ndarray, "moments 3"]:
        """Its points; NaN where it is not sighted."""
        return np.array([s.point if s.point is not None else (np.nan,) * 3 for s in self.sightings])

    @cached_property
    def steps(self) -> Float[np.ndarray, "moments"]:
        """How far it has come since the sighting before, in scene units; NaN where there is none."""
        steps, last = np.full(len(self.sightings), np.nan), None
        for i, point in enumerate(self.points):
            if np.isfinite(point).all():
                if last is not None:
                    steps[i] = np.linalg.norm(point - last)
                last = point
        return steps

    @property
    def tolerance(self) -> float:
        """What a step must exceed to count as a movement: a share of the thing's distance, and of the usual step."""
        if not np.isfinite(self.steps).any():
            return 0.0
        depth = np.median([s.depth for s in self.sightings if s.point is not None])
        return float(max(MIN_STEP * depth, NOISE * np.nanmedian(self.steps)))

    @property
    def moving(self) -> Bool[np.ndarray, "moments"]:
        """Whether it has moved since the sighting before."""
        return np.nan_to_num(self.steps) > self.tolerance

    @property
    def moves(self) -> list[tuple[int, int]]:
        """Between which frames it moves: ids of the last sighting before and the first after each movement."""
        found: list[tuple[int, int]] = []
        seen = [i for i, s in enumerate(self.sightings) if s.point is not None]
        for before, after in pairwise(seen):
            if self.moving[after]:
                start, end = self.sightings[before].frame_id, self.sightings[after].frame_id
                if found and found[-1][1] == start:
                    found[-1] = (found[-1][0], end)
                else:
                    found.append((start, end))
        return found

    def rows(self) -> list[dict[str, Any]]:
        """A row for each moment, for a table."""
        return [
            {
                "frame": s.frame_id,
                "time": s.time,
                "score": s.score,
                "found": int(s.found),
                **dict(zip("xyz", s.point or ("",) * 3, strict=True)),
                "layer": s.layer,
                "viewpoint": s.viewpoint,
                "step": "" if np.isnan(step) else float(step),
                "moved": int(moved),
            }
            for s, step, moved in zip(self.sightings, self.steps, self.moving, strict=True)
        ]

    def summary(self) -> dict[str, Any]:
        """The track in numbers, as plain data."""
        return {
            "query": self.phrase,
            "features": self.kind,
            "moves": [list(move) for move in self.moves],
            "sighted": sum(s.point is not None for s in self.sightings),
            "moments": len(self.sightings),
            "tolerance": self.tolerance,
        }


def follow(
    trained: TrainedScene,
    asked: Sequence[tuple[str, str]],
    frames: Iterable[int],
    viewpoint: int,
    hide: Sequence[MovingLayer] = ("actor",),
) -> list[Track]:
    """Finds things at several moments, each from the frame's own camera or the fixed viewpoint, whichever sees it best.

    Args:
        trained: The scene.
        asked: Kind of features and phrase of each thing.
        frames: Indices of the frames whose times are looked at.
        viewpoint: Index of the frame of the fixed viewpoint.
        hide: Layers to leave out; hands cover what they hold.

    Raises:
        QueryError: If there are no such features, or their text encoder does not work.
    """
    tracks = [Track(phrase, kind, []) for kind, phrase in asked]
    for frame in frames:
        time = float(trained.times[frame])
        places = dict.fromkeys((frame, viewpoint))
        views = {place: trained.render(trained.camera_at(place, time), hide) for place in places}
        for track in tracks:
            seen = {place: _sighting(trained, view, track, frame, place) for place, view in views.items()}
            track.sightings.append(max(seen.values(), key=lambda sighting: sighting.score))
    return tracks


def _sighting(trained: TrainedScene, view: AskedView, track: Track, frame: int, place: int) -> TrackPoint:
    """Where a thing is in one view."""
    answer = view.ask(track.phrase, track.kind)
    point = None
    if answer.score > UNDECIDED:
        core = answer.relevancy >= UNDECIDED + CORE * (answer.score - UNDECIDED)
        x, y, z = np.median(view.points.numpy()[core], axis=0).tolist()
        point = x, y, z
    ids = trained.scene.frame_ids
    return TrackPoint(
        frame_id=int(ids[frame]),
        time=float(trained.times[frame]),
        score=answer.score,
        found=answer.score > THRESHOLDS[track.kind],
        point=point,
        depth=answer.depth,
        layer=answer.layer,
        viewpoint=int(ids[place]),
    )


def save_plot(path: Path, track: Track) -> Path:
    """Draws a track: how sure it is, where the thing is, how far it has come; movements are shaded."""
    with plot(path, 9, 7) as figure:
        _draw(figure, track)
    return path


def _draw(figure: Figure, track: Track) -> None:
    ids = [s.frame_id for s in track.sightings]
    sure, where, far = figure.subplots(3, 1, sharex=True)
    threshold = THRESHOLDS[track.kind]
    sure.plot(ids, [s.score for s in track.sightings], "o-", color="tab:blue", label="largest relevancy")
    sure.axhline(threshold, color="grey", linestyle="--", label=f"threshold {threshold:g}")
    sure.set(ylabel="relevancy", ylim=(0, 1), title=f"{track.phrase} ({track.kind} features)")
    for axis, values in zip("xyz", track.points.T, strict=True):
        where.plot(ids, values, "o-", label=axis)
    where.set(ylabel="position, scene units")
    far.bar(
        ids, np.nan_to_num(track.steps), width=0.6 * max(1.0, float(np.median(np.diff(ids)) if len(ids) > 1 else 1))
    )
    far.axhline(track.tolerance, color="grey", linestyle="--", label=f"counts as moved: {track.tolerance:.3g}")
    far.set(ylabel="step, scene units", xlabel="frame")
    for axes in (sure, where, far):
        for start, end in track.moves:
            axes.axvspan(start, end, color="tab:orange", alpha=0.2, linewidth=0)
        axes.legend(loc="upper right", fontsize="small")
