"""Telling: which things an answer means, where they are, since when, and where they were before."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from divff_nerfstudio.calibration import MIN_PIXELS
from divff_nerfstudio.objects.things import Thing
from divff_nerfstudio.objects.whereabouts import Whereabouts, whereabouts
from divff_nerfstudio.query import EXAMPLE_NAME, QueryResult
from divff_nerfstudio.viewer.answering import Answering
from divff_nerfstudio.viewer.background import Latest
from divff_nerfstudio.viewer.context import PanelContext
from divff_nerfstudio.viewer.judging import Judging
from divff_nerfstudio.viewer.pointing import Pointing
from divff_nerfstudio.viewer.signals import Signal
from divff_nerfstudio.viewer.things import KIND, KnownThings
from divff_nerfstudio.viewer.views import AnsweredView

MAX_THINGS = 3
"""So many things are told of for each phrase."""


@dataclass(frozen=True, eq=False)
class Told:
    """What is told of a thing."""

    phrase: str
    """The phrase that means it."""
    where: Whereabouts
    """How it stands with it at the view's time."""
    seen: bool
    """Whether the view shows it."""
    words: str
    """Where it is, since when, and where it was before, without its name."""


class Telling:
    """Tells of the things that judged answers mean, in a thread of its own, and has them outlined.

    Attributes:
        lane: The thread that tells.
        told: Happens when there is something else to tell; told what, the phrases that mean something in the scene that
            is no thing of it (a hand), and the index of the frame it is told of.
    """

    def __init__(
        self,
        context: PanelContext,
        answering: Answering,
        judging: Judging,
        things: KnownThings,
        pointing: Pointing,
    ):
        self._context, self._answering = context, answering
        self._things, self._pointing = things, pointing
        self.lane = Latest("panel telling", context.failed)
        self._last: tuple[AnsweredView, tuple[str, ...], list[str]] | None = None
        self._told: list[Told] = []
        self._no_things: list[str] = []
        self.told: Signal[[list[Told], list[str], int]] = Signal()
        judging.judged.connect(self._judged)
        things.known.connect(self._again)
        answering.drawn.connect(lambda _, view, __: self._forget() if view.answer is None else None)

    def go_there(self, client: Any) -> None:
        """Puts a client where the first of the told things that its view does not show is seen best.

        The time stays, unless the thing is not known to lie there then.
        """
        away = next((told.where for told in self._told if not told.seen), None)
        if away is None:
            self._context.note("All things that were asked for are in view.")
            return
        best = away.sighting.frame
        if away.rest is None:
            self._context.viewer.time = float(self._context.frames.times[best])
        self._context.stand(client, best)

    def _judged(self, view: AnsweredView, phrases: tuple[str, ...], states: list[str]) -> None:
        self._last = view, phrases, states
        self._again()

    def _again(self) -> None:
        if self._last is not None:
            self.lane.submit(partial(self._tell, *self._last))

    def _forget(self) -> None:
        """Nothing is asked any more."""
        self._last = None
        self._publish([], [], 0)

    def _tell(self, view: AnsweredView, phrases: tuple[str, ...], states: list[str]) -> None:
        answer = view.answer
        if answer is None or self._things.scene is None or answer.phrases != phrases:
            return
        meant = {
            phrase: self._meant(phrase)
            for phrase, state in zip(answer.phrases, states, strict=True)
            if state != "not in the scene" and answer.config.features == KIND
        }
        no_things = [phrase for phrase, things in meant.items() if not things and not EXAMPLE_NAME.fullmatch(phrase)]
        if not any(meant.values()):
            self._answering.outline(view, answer, None)
            self._publish([], no_things, 0)
            return
        numbers, every = self._things.in_view(view)
        self._outline(view, answer, states, meant, numbers)
        frame, pose = self._things.frame_of(view), view.camera.camera_to_worlds.reshape(3, 4).cpu().double().numpy()
        told = []
        for phrase, things in meant.items():
            for thing in things:
                where = whereabouts(thing, frame)
                seen = every**2 * int((numbers == thing.number).sum()) >= MIN_PIXELS
                words = where.told(self._things.scene.found, self._things.clock, pose)
                told.append(Told(phrase, where, seen, words))
        self._publish(told, no_things, frame)

    def _meant(self, phrase: str) -> list[Thing]:
        """The things that a phrase means; of a point, the thing that was pointed at."""
        assert self._things.scene is not None
        if EXAMPLE_NAME.fullmatch(phrase):
            thing = self._pointing.things.get(phrase)
            return [] if thing is None else [thing]
        return self._things.scene.matching(phrase)[:MAX_THINGS]

    def _outline(
        self,
        view: AnsweredView,
        answer: QueryResult,
        states: list[str],
        meant: dict[str, list[Thing]],
        numbers: np.ndarray,
    ) -> None:
        """Has the things outlined; what reaches the threshold, of a phrase that means none, or none that is known in
        this view though it is there."""
        masks = answer.relevancies >= answer.config.threshold
        rows, columns = (
            torch.arange(side, device=masks.device) * count // side
            for side, count in zip(masks.shape[:2], numbers.shape, strict=True)
        )
        shown = torch.from_numpy(numbers).to(masks.device)[rows][:, columns]
        for i, (phrase, state) in enumerate(zip(answer.phrases, states, strict=True)):
            if things := meant.get(phrase):
                own = torch.isin(shown, torch.tensor([thing.number for thing in things], device=masks.device))
                if state != "in view" or int(own.sum()) >= MIN_PIXELS:
                    masks[..., i] = own
        self._answering.outline(view, answer, masks)

    def _publish(self, told: list[Told], no_things: list[str], frame: int) -> None:
        if told or self._told or no_things != self._no_things:
            self._told, self._no_things = told, no_things
            self.told(told, no_things, frame)
