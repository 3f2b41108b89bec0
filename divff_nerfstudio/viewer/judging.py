"""Judging: whether what is asked is in the scene, or in the view that is at rest, and whether it was typed badly."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

import numpy as np

from divff_nerfstudio.calibration import Calibration, standing
from divff_nerfstudio.query import EXAMPLE_NAME, QueryError
from divff_nerfstudio.spelling import respelled
from divff_nerfstudio.viewer.answering import Answering
from divff_nerfstudio.viewer.background import Latest
from divff_nerfstudio.viewer.context import PanelContext
from divff_nerfstudio.viewer.pointing import vocabulary
from divff_nerfstudio.viewer.signals import Signal
from divff_nerfstudio.viewer.views import AnsweredView

_MAX_PIXELS = 20000
"""Pixels of a view that are looked at, at most: evenly spaced ones."""


class Judging:
    """Holds answers against the whole scene, in a thread of its own.

    Args:
        context: What the parts share.
        answering: Whose answers are judged once a view is at rest.
        calibrate: Gives the calibration of a kind of features; None where its stored features do not tell.

    Attributes:
        lane: The thread that judges.
        judged: Happens when a view has been judged; told the view, its phrases and their states (`standing`).
    """

    def __init__(self, context: PanelContext, answering: Answering, calibrate: Callable[[str], Calibration | None]):
        self._context, self._query = context, context.query
        self._calibrate = calibrate
        self._calibrations: dict[str, Calibration | None] = {}
        self.lane = Latest("panel judging", context.failed)
        self.judged: Signal[[AnsweredView, tuple[str, ...], list[str]]] = Signal()
        answering.drawn.connect(self._drawn)

    def prepare(self) -> None:
        """Loads the text encoder of the kind that is asked, and reads the scene's features, before anybody asks."""
        self.lane.submit(self._prepare)

    def _prepare(self) -> None:
        self._known(self._query.config.features)

    def _known(self, kind: str) -> Calibration | None:
        """The calibration of a kind, looked for once; where its text encoder does not work, asking will tell."""
        if kind not in self._calibrations:
            self._calibrations[kind] = None
            with contextlib.suppress(QueryError):
                found = self._calibrate(kind)
                if found is not None and np.isfinite(found.needed):  # encodes the common phrases
                    self._calibrations[kind] = found
        return self._calibrations[kind]

    def _drawn(self, _: int, view: AnsweredView, at_rest: bool) -> None:
        if at_rest and view.answer is not None:
            self.lane.submit(partial(self._judge, view))

    def _judge(self, view: AnsweredView) -> None:
        """Says of each phrase of a view's answer whether its thing is there."""
        answer = view.answer
        if answer is None:
            return
        kind, phrases = answer.config.features, answer.phrases
        known = self._known(kind)
        if known is None or kind not in view.features:
            return
        every = max(1, int(np.ceil((view.height * view.width / _MAX_PIXELS) ** 0.5)))
        features = self._query.decode(view.features[kind][::every, ::every], kind)
        masks = known.masks(features, answer.relevancies[::every, ::every].float().cpu().numpy(), phrases)
        judged = zip(known.verdicts(phrases), np.moveaxis(masks, -1, 0), strict=True)
        states = [standing(verdict, mask, every**2) for verdict, mask in judged]
        if view.answer is None or (view.answer.phrases, view.answer.config) != (phrases, answer.config):
            return
        self.judged(view, phrases, states)
        self._suggest(known, phrases, states)

    def _suggest(self, known: Calibration, phrases: tuple[str, ...], states: list[str]) -> None:
        """Asks back where what is not in the scene is spelled like something that might be."""
        words = [*known.common, *vocabulary(known.kind)]
        for phrase, state in zip(phrases, states, strict=True):
            if state == "not in the scene" and not EXAMPLE_NAME.fullmatch(phrase):
                meant = respelled(phrase, words)
                if meant is not None:
                    self._context.note(f"{phrase} is not in the scene. Did you mean {meant}?")
                    return
