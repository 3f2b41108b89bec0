"""Asking: the query is changed in the background, so that neither typing nor rendering waits for a text encoder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from divff_nerfstudio.query import QueryError
from divff_nerfstudio.viewer.answering import Answering
from divff_nerfstudio.viewer.background import Latest
from divff_nerfstudio.viewer.context import FEATURES, PanelContext
from divff_nerfstudio.viewer.presets import Preset
from divff_nerfstudio.viewer.signals import Signal
from divff_nerfstudio.viewer.views import AnsweredView


class Asking:
    """Changes the query, and says how long it took until it was answered.

    Nothing is raised: what goes wrong is shown in the line of state, and the previous query stays.

    Attributes:
        lane: The thread that asks.
        presets: The questions to offer, by label.
        offered: Happens when they have been read; told the labels.
        suggested: Happens when a question was not typed; told its text and its kind of features, None: as selected.
        switched: Happens when another kind of features is asked; told which.
    """

    def __init__(self, context: PanelContext, answering: Answering):
        self._context, self._query, self._answering = context, context.query, answering
        self.lane = Latest("panel asking", context.failed)
        self._lock = threading.Lock()
        self._wanted: dict[str, Any] = {}
        self._asked_at: tuple[float, int] | None = None
        self._encoded: set[str] = set()
        self.presets: dict[str, Preset] = {}
        self.offered: Signal[[list[str]]] = Signal()
        self.suggested: Signal[[str, str | None]] = Signal()
        self.switched: Signal[[str]] = Signal()
        answering.unknown.connect(self._ask_configured)
        answering.answered.connect(self._tell_of)

    def describe(self) -> str:
        """The state in words, when nothing has just happened."""
        kinds = self._context.kinds
        if not kinds:
            return "This run has no features to ask: extract them with divff extract, and train."
        missing = "".join(f" No {kind} features in this run." for kind in FEATURES if kind not in kinds)
        if not self._query.phrases:
            return f"Type what to look for, or pick a preset.{missing}"
        return f"The {self._query.config.features} features answer.{missing}"

    def change(self, **changes: Any) -> None:
        """Has the query changed; of several changes that wait, the last ones count.

        Args:
            changes: Fields of `QueryConfig` and their new values.
        """
        with self._lock:
            self._wanted.update(changes)
            self._asked_at = time.perf_counter(), self._answering.views.rendered
        self.lane.submit(self._ask)

    def change_negatives(self, text: str) -> None:
        """Replaces the negatives of the kind that is asked; ";" separates them."""
        phrases = tuple(" ".join(part.split()) for part in text.split(";") if part.strip())
        self.change(**{f"negatives_{self._query.config.features}": phrases})

    def suggest(self, text: str, features: str | None = None) -> None:
        """Asks a question that was not typed, of one kind of features if it can be asked, else of the selected one."""
        features = features if features in self._context.kinds else None
        self.change(text=text, **({} if features is None else {"features": features}))
        self.suggested(text, features)

    def offer(self, find_presets: Callable[[], Sequence[Preset]]) -> None:
        """Finds the questions to offer, which may take a while in a long scene."""
        try:
            self.presets = {preset.label: preset for preset in find_presets()}
        except Exception as error:  # as in Latest
            self._context.failed(error)
        self.offered(list(self.presets))

    def _ask(self) -> None:
        """Asks what is wanted; in the thread for it."""
        with self._lock:
            changes, self._wanted = self._wanted, {}
        if not changes:
            return
        kind = changes.get("features", self._query.config.features)
        if str(changes.get("text", self._query.config.text)).strip() and kind not in self._encoded:
            self._context.note(f"The text encoder of the {kind} features loads ...")
        try:
            self._query.ask(**changes)
        except QueryError as error:
            with self._lock:
                if not self._wanted:  # nothing is waited for: the answer to the previous question took no time
                    self._asked_at = None
            self._context.note(str(error))
            return
        if self._query.phrases:
            self._encoded.add(kind)
        if "features" in changes:
            self.switched(kind)
        if self.lane.outdated:
            return
        with self._lock:
            # Not if a render has answered already, and said how long it took.
            if self._asked_at is not None:
                self._context.note(self.describe())
        if self._query.phrases and self._context.viewer.output == "rgb" and "text" in changes:
            self._answering.show("relevancy_overlay")
        self._answering.repaint()

    def _ask_configured(self) -> None:
        """Asks the question that the configuration came with, and that nobody has encoded yet."""
        if self.lane.idle:
            self.change(text=self._query.config.text)

    def _tell_of(self, view: AnsweredView) -> None:
        """Says how long the answer in a view took, if it was waited for."""
        query, answer = self._query, view.answer
        with self._lock:
            if self._asked_at is None or self._wanted:
                return
            since, rendered = self._asked_at
            if answer is not None and answer.config == query.config:
                along = " with rendering the view" if self._answering.views.rendered > rendered else ""
                took = _duration(time.perf_counter() - since)
                self._context.note(f"The query took {took}{along} ({query.config.features} features).")
                self._asked_at = None
            elif query.active and not view.featured:
                self._context.note("The features are not trained yet: the question is kept until they are.")


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
