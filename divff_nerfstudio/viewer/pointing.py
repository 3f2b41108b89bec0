"""Points of a picture: what lies there and what it is like, a click that asks it, marks of the best ones in space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from divff_nerfstudio.objects.diary import called
from divff_nerfstudio.objects.things import Thing
from divff_nerfstudio.objects.whereabouts import spans_told
from divff_nerfstudio.overlays import as_rgb
from divff_nerfstudio.query import Query, QueryError
from divff_nerfstudio.relevancy import Example
from divff_nerfstudio.viewer.answering import Answering
from divff_nerfstudio.viewer.asking import Asking
from divff_nerfstudio.viewer.background import Latest
from divff_nerfstudio.viewer.context import PanelContext
from divff_nerfstudio.viewer.markup import one_line, phrase_colour
from divff_nerfstudio.viewer.signals import Signal
from divff_nerfstudio.viewer.things import KnownThings
from divff_nerfstudio.viewer.views import AnsweredView

_LABEL = 40
_RADIUS = 0.008
"""Radius of a mark at distance 1."""


@dataclass(frozen=True)
class LayerShare:
    """The layer that a pixel shows most of."""

    name: str
    """"static", "dynamic" or "actor"."""
    share: float
    """Its share of the pixel, 0 to 1."""


def layer_at(view: AnsweredView, row: int, col: int) -> LayerShare:
    """The layer that shows most at a pixel."""
    dynamic, actor, seen = (
        float(view.pictures[name][row, col, 0]) for name in ("mask_dynamic", "mask_actor", "accumulation")
    )
    shares = {"static": max(0.0, seen - dynamic - actor), "dynamic": dynamic, "actor": actor}
    name = max(shares, key=shares.__getitem__)
    return LayerShare(name, shares[name])


def place_of(view: AnsweredView, row: int, col: int) -> Float[Tensor, "3"]:
    """Where in space a pixel's surface is, in the scene's units."""
    coords = torch.tensor([row + 0.5, col + 0.5], device=view.camera.device)
    ray = view.camera.generate_rays(camera_indices=torch.zeros(1, 1, dtype=torch.long), coords=coords[None])
    depth = view.pictures["depth"][row, col, 0].to(ray.origins)
    return (ray.origins + ray.directions * depth).reshape(3).cpu()


def pixel_at(view: AnsweredView, across: float, down: float) -> tuple[int, int]:
    """Row and column of a place in the picture, given as shares of its width and height."""
    row, col = int(down * view.height), int(across * view.width)
    return min(max(row, 0), view.height - 1), min(max(col, 0), view.width - 1)


def vocabulary(kind: str) -> tuple[str, ...]:
    """The words that an unknown thing (kind "image") or place of an action ("video") may be called."""
    content = resources.files("divff_nerfstudio.viewer").joinpath(f"words_{kind}.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in content.splitlines() if line.strip())


def best_words(query: Query, kind: str, feature: Float[Tensor, "dim"], words: Sequence[str]) -> list[tuple[str, float]]:
    """The three words whose embeddings are most similar to a feature, and their similarities, the best first.

    Args:
        query: Knows the text encoders.
        kind: Kind of the feature.
        feature: Of unit length.
        words: What there is to choose from.

    Raises:
        QueryError: If the text encoder does not work.
    """
    words = tuple(dict.fromkeys(words))
    similar = query.embeddings(kind, words) @ feature.cpu()
    best = similar.topk(min(3, len(words)))
    return [(words[i], float(score)) for i, score in zip(best.indices.tolist(), best.values, strict=True)]


class Pointing:
    """Waits for a click into the picture when it is told to, and asks what is there.

    Attributes:
        lane: The thread that finds out.
        things: What was pointed at, by the phrases that stand for it.
        told: Happens when there is something to say of what was pointed at; told the text.
    """

    def __init__(self, context: PanelContext, answering: Answering, asking: Asking, things: KnownThings):
        self._context, self._query, self._answering, self._asking = context, context.query, answering, asking
        self._things = things
        self._waits = False
        self.things: dict[str, Thing] = {}
        self.lane = Latest("panel pointing", context.failed)
        self.told: Signal[[str]] = Signal()

    def toggle(self) -> None:
        """Begins to wait for a click, or ceases to."""
        if self._waits:
            self._cease()
            self._context.note(self._asking.describe())
            return
        self._waits = True
        self._context.viewer.scene.on_pointer_event("click")(self.clicked)
        self._context.note("Click into the picture: what is there is asked. The button again: never mind.")

    def clicked(self, event: Any) -> None:
        """Takes viser's event of a click, the one that was waited for."""
        self._cease()
        across, down = event.screen_pos[0]
        self.lane.submit(partial(self._point_at, int(event.client_id), float(across), float(down)))

    def _cease(self) -> None:
        self._waits = False
        self._context.viewer.scene.remove_pointer_callback()

    def _point_at(self, client: int, across: float, down: float) -> None:
        """Asks what is at a place of a client's picture, and says which thing that is, or what it is like."""
        view = self._answering.views.latest(client)
        if view is None:
            self._context.note("There is no picture yet: click again in a moment.")
            return
        row, col = pixel_at(view, across, down)
        layer = layer_at(view, row, col)
        where = f"{layer.name} layer ({100 * layer.share:.0f} %)"
        with self._context.viewer.training_lock():
            self._answering.views.feature(view)
        kinds = [kind for kind in self._context.kinds if kind in view.features]
        if not kinds:
            self.told(f"{where}; there are no features yet to tell more.")
            return
        name = f"[point {1 + len(self._query.examples)}]"
        examples = {kind: Example.of(self._query.decode(view.features[kind], kind), row, col) for kind in kinds}
        thing = self._thing_at(view, row, col)
        if thing is not None:
            self.things[name] = thing
        self._query.examples[name] = examples
        self._asking.suggest(name)
        if thing is not None:
            clock, frame = self._things.clock, self._things.frame_of(view)
            self.told(f"{name}: {called(thing)}, {where}: {spans_told(thing, clock, frame)}.")
            return
        kind = self._query.config.features if self._query.config.features in kinds else kinds[0]
        self.told(f"{name}: {where}; comparing it with words ...")
        words = [preset.text for preset in self._asking.presets.values() if preset.features in (kind, None)]
        try:
            best = best_words(self._query, kind, examples[kind].feature, [*words, *vocabulary(kind)])
        except QueryError as error:
            self.told(f"{name}: {where}. {error}")
            return
        like = ", ".join(f"{word} {score:.2f}" for word, score in best)
        none = "No thing that several frames show." if self._things.scene is not None else self._things.state
        self.told(f"{name}: {where}; most like {like}. {none}")

    def _thing_at(self, view: AnsweredView, row: int, col: int) -> Thing | None:
        """The thing at a pixel, or what most pixels around it show; None if there is none, or none is known yet."""
        if self._things.scene is None:
            return None
        numbers, every = self._things.in_view(view)
        row, col = (min(at // every, count - 1) for at, count in zip((row, col), numbers.shape, strict=True))
        around = numbers[max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2]
        shown = np.bincount(around[around > 0])
        number = int(numbers[row, col] or (shown.argmax() if len(shown) else 0))
        return self._things.scene.found.numbered(number)


class Marks:
    """Marks where each phrase is answered best in a client's view, in a scene of its own."""

    def __init__(self, context: PanelContext):
        self._viewer = context.viewer
        self.of: dict[int, list[Any]] = {}

    def mark(self, client: int, view: AnsweredView, wanted: bool = True) -> None:
        """Marks the best point of each phrase that is seen, in place of what was marked before."""
        handle = self._viewer.handle(client)
        if handle is None:
            return
        for mark in self.of.pop(client, []):
            mark.remove()
        answer = view.answer
        if answer is None or not wanted:
            return
        marks = self.of.setdefault(client, [])
        for i, phrase in enumerate(answer.phrases):
            row, col, score = answer.best(i)
            if score < answer.config.threshold or float(view.pictures["accumulation"][row, col, 0]) < 0.5:
                continue
            place = place_of(view, row, col).numpy() * self._viewer.scale
            colour = tuple(round(255 * part) for part in as_rgb(phrase_colour(i, len(answer.phrases))))
            size = _RADIUS * self._viewer.scale * float(view.pictures["depth"][row, col, 0])
            marks.append(handle.scene.add_icosphere(f"/answer/{i}", radius=size, color=colour, position=place))
            marks.append(handle.scene.add_label(f"/answer/{i}/label", f"{one_line(phrase, _LABEL)} {score:.2f}"))

    def forget(self, client: int) -> None:
        """Drops the marks of a client that has gone."""
        self.of.pop(client, None)
