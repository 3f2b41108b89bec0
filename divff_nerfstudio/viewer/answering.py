"""Answering: every client gets its picture with what the query finds in it; one asks by `asking`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from threading import Lock
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from divff_nerfstudio.models.view import COMPOSITED, FEATURES
from divff_nerfstudio.query import QueryError, QueryResult
from divff_nerfstudio.viewer.background import Latest
from divff_nerfstudio.viewer.context import PanelContext
from divff_nerfstudio.viewer.signals import Signal
from divff_nerfstudio.viewer.views import AnsweredView, ViewCache


class Answering:
    """Answers in the viewer's render threads, and has what follows from an answer drawn in a thread of its own.

    Attributes:
        views: The clients' views.
        current: The view that was seen last, by any client.
        lane: The thread that draws.
        unknown: Happens when a view cannot be answered, as a phrase has not been encoded yet.
        answered: Happens in a render thread when a view has been answered; told the view.
        drawn: Happens in the drawing thread after it; told the client, the view and whether the view is at rest.
    """

    def __init__(self, context: PanelContext):
        self._context, self._query, self._viewer = context, context.query, context.viewer
        self.lane = Latest("panel drawing", context.failed)
        model = self._viewer.model
        self.views = ViewCache(
            model,
            context.visibility,
            lambda: getattr(model, "step", 0),
            self._answer,
            self._seen,
            self._viewer.rendering_client,
            self._wanted,
        )
        self._viewer.draw_with(self.views.outputs)
        self.current: AnsweredView | None = None
        self._settled: dict[int, AnsweredView] = {}
        self._answers = Lock()  # an outline comes from another thread, and is of the answer that was there then
        self.unknown: Signal[[]] = Signal()
        self.answered: Signal[[AnsweredView]] = Signal()
        self.drawn: Signal[[int, AnsweredView, bool]] = Signal()

    def welcome(self, client: Any) -> None:
        """Lets a new client begin where the scene was filmed from, with progressive pictures."""
        self._viewer.welcome(client, lambda: self.views.rays_per_second, self._context.failed)
        self._context.stand(client)

    def forget(self, client: int) -> None:
        """Drops what belongs to a client that has gone."""
        self.views.forget(client)
        self._settled.pop(client, None)

    def hide(self, **switches: bool) -> None:
        """Hides layers, or shows them again.

        Args:
            switches: Fields of `Visibility`.
        """
        for name, value in switches.items():
            setattr(self._context.visibility, name, bool(value))
        self.repaint(same_views=False)

    def show(self, output: str) -> None:
        """Shows an output, if there is one of that name."""
        if output in self._viewer.outputs:
            self._viewer.output = output
        elif len(self._viewer.outputs) > 1:
            self._context.note(f"There is no output {output} yet: train the features first.")

    def repaint(self, same_views: bool = True) -> None:
        """Has every client's picture made anew, from kept views where they have not changed.

        Args:
            same_views: Whether all views stay the same. One that is being rendered in full is not interrupted then: it
                will answer the new question, and until it does, the smaller picture before it answers.
        """
        for client in self._viewer.clients():
            if same_views and self._viewer.at_rest(client) and self.views.will_answer(client):
                self._answer_meanwhile(client)
                if self.views.will_answer(client):
                    continue
            self._viewer.render_again(client)

    def outline(
        self, view: AnsweredView, answer: QueryResult, masks: Bool[Tensor, "height width phrases"] | None
    ) -> None:
        """Has what a view's answer means outlined, in the picture of every client that sees it.

        Args:
            view: The view.
            answer: Its answer; if it has another one by now, nothing happens.
            masks: The pixels of each phrase; None: those that reach the threshold.
        """
        if view.answer is not answer or masks is answer.masks is None:
            return
        if masks is not None and answer.masks is not None and torch.equal(masks, answer.masks):
            return
        changed = replace(answer, masks=masks)
        outputs = {**view.outputs, **changed.pictures(view.pictures["rgb"])}
        with self._answers:
            if view.answer is not answer:
                return
            view.answer = changed
        for client in self._viewer.clients():
            if self.views.latest(client) is view and not self.views.at_work(client) and self._viewer.at_rest(client):
                self._viewer.send(client, view.camera, outputs, final=True)

    def _wanted(self) -> frozenset[str]:
        """What views are rendered for: what is shown, what the panel reads of points, and features to be asked."""
        return frozenset({*self._viewer.shown, *COMPOSITED, *((FEATURES,) if self._query.active else ())})

    def _answer_meanwhile(self, client: int) -> None:
        """Sends a client what it saw last, with the new answer, while a better picture is being rendered."""
        view = self.views.latest(client)
        if view is not None:
            self._viewer.send(client, view.camera, {**view.outputs, **self._answer(view)})
            self._describe(client, view)

    def _answer(self, view: AnsweredView) -> dict[str, Tensor]:
        """The outputs that the query adds; their names stay the same whether or not anything is asked."""
        with self._answers:
            before, view.answer = view.answer, None
        if not view.featured or not self._context.kinds:
            return {}
        rgb = view.pictures["rgb"]
        if not self._query.known:
            if self._query.phrases:
                self.unknown()
        elif view.features:  # without, it was rendered before the question, and is being rendered again
            try:
                answer = _with_masks(self._query.look(view.features), before)
                with self._answers:
                    view.answer = answer
            except QueryError as error:
                self._context.note(str(error))
        if view.answer is None:
            return {"relevancy": torch.zeros_like(rgb[..., :1]), "relevancy_overlay": rgb}
        return view.answer.pictures(rgb)

    def _seen(self, client: int, view: AnsweredView) -> None:
        """Takes note of what a client sees, and has it described; one that has gone meanwhile is forgotten again."""
        if client not in self._viewer.clients():
            self.forget(client)
            return
        if self._viewer.at_rest(client):
            self._settled[client] = view
        self.current = view
        self._describe(client, view)

    def _describe(self, client: int, view: AnsweredView) -> None:
        self.answered(view)
        self.lane.submit(partial(self._draw, client, view))

    def _draw(self, client: int, view: AnsweredView) -> None:
        self.drawn(client, view, self._settled.get(client) is view)


def _with_masks(answer: QueryResult | None, before: QueryResult | None) -> QueryResult | None:
    """An answer with what was outlined before in the same view, if the same is asked."""
    if answer is None or before is None:
        return answer
    same = before.phrases == answer.phrases and before.config.features == answer.config.features
    return replace(answer, masks=before.masks) if same else answer
