"""The viewer's side of a query: boxes to ask, switches to hide layers, a box to reach every frame, a line of state."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from nerfstudio.viewer.viewer_elements import (
    ViewerCheckbox,
    ViewerControl,
    ViewerDropdown,
    ViewerElement,
    ViewerNumber,
    ViewerSlider,
    ViewerText,
)
from torch import nn

from divff_nerfstudio.query import Query

if TYPE_CHECKING:
    from viser import ViserServer

    from divff_nerfstudio.rendering import Visibility

_LONGEST_STATE = 300


class ViewerState(ViewerElement[str]):
    """A line of plain text that the program writes and the user reads."""

    def __init__(self, name: str, content: str = ""):
        super().__init__(name)
        self.content = content
        self._markdown: Any = None

    def install(self, viser_server: ViserServer) -> None:
        """Installs the line into the viewer."""
        self._create_gui_handle(viser_server)

    def _create_gui_handle(self, viser_server: ViserServer) -> None:
        self._markdown = viser_server.gui.add_markdown(as_markdown(self.content), visible=self.visible)

    def show(self, content: str) -> None:
        """Replaces the text; whatever it holds is shown as it is, not taken for markup."""
        self.content = content
        if self._markdown is not None:
            self._markdown.content = as_markdown(content)


def as_markdown(text: str) -> str:
    """Markdown that shows `text` literally, on one line and not without end."""
    line = " ".join(text.split())
    line = line if len(line) <= _LONGEST_STATE else line[: _LONGEST_STATE - 1] + "…"
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", line)


class QuerySettings(nn.Module):
    """What is seldom changed about a query: a folder of its own within the panel.

    Args:
        query: What the elements act on.
        changed: Called with the fields of the query's configuration that the user has changed.
    """

    def __init__(self, query: Query, changed: Callable[..., None]):
        super().__init__()
        self.negatives = ViewerText(
            "Negatives",
            "; ".join(query.negatives(query.config.features)),
            cb_hook=lambda element: changed(negatives=element.value),
            hint='What the query is held against, separated by ";". Empty: the usual ones.',
        )
        self.strength = ViewerSlider(
            "Overlay strength",
            float(query.config.strength),
            0.0,
            1.0,
            0.05,
            cb_hook=lambda element: changed(strength=float(element.value)),
            hint="Share of the colours in relevancy_overlay.",
        )
        self.threshold = ViewerSlider(
            "Threshold",
            float(query.config.threshold),
            0.0,
            1.0,
            0.01,
            cb_hook=lambda element: changed(threshold=float(element.value)),
            hint="Relevancy under which relevancy_overlay shows the image.",
        )


class QueryPanel(nn.Module):
    """The elements of the viewer; nerfstudio finds them where the panel is a public attribute of the pipeline.

    nerfstudio sorts them by the names of the attributes. Every change renders the view anew. No callback raises: what
    goes wrong is shown in the line of state, and the previous query stays.

    Args:
        query: Answers; the model's hook for additional outputs.
        visibility: Layers to hide, read by the model at every render.
        frame_ids: Ids of all frames of the scene, ascending.
        times: Their times, 0 to 1.
    """

    def __init__(
        self,
        query: Query,
        visibility: Visibility,
        frame_ids: Int[np.ndarray, "frames"],
        times: Float[np.ndarray, "frames"],
    ):
        super().__init__()
        self._query, self._visibility = query, visibility
        self._frame_ids, self._times = np.asarray(frame_ids), np.asarray(times)
        kinds = [kind for kind in ("image", "video") if kind in query.kinds]
        selected = query.config.features if query.config.features in kinds else (kinds or ["none"])[0]
        self.ask = ViewerText(
            "Query",
            query.config.text,
            disabled=not kinds,
            cb_hook=lambda element: self._changed(text=element.value),
            hint='What to look for; several phrases are separated by ";". See the output relevancy_overlay.',
        )
        self.ask_features = ViewerDropdown(
            "Features",
            selected,
            kinds or ["none"],
            disabled=not kinds,
            cb_hook=lambda element: self._changed(features=element.value),
            hint="image: what it is; video: what is done with it.",
        )
        self.hide_actor = ViewerCheckbox(
            "Hide actor",
            bool(visibility.hide_actor),
            cb_hook=lambda element: self._hide(hide_actor=element.value),
            hint="Show the scene without the camera wearer.",
        )
        self.hide_dynamic = ViewerCheckbox(
            "Hide moved objects",
            bool(visibility.hide_dynamic),
            cb_hook=lambda element: self._hide(hide_dynamic=element.value),
            hint="Show the scene without the objects that move.",
        )
        self.moment = ViewerNumber(
            "Frame",
            int(self._frame_ids[0]),
            cb_hook=lambda element: self._go_to(element.value),
            hint=f"Sets the time to that of a frame, {self._frame_ids[0]} to {self._frame_ids[-1]}.",
        )
        self.note = ViewerState("State", self._describe())
        self.settings = QuerySettings(query, self._changed)
        self.viewer_control = ViewerControl()

    def _describe(self) -> str:
        """The state in words, when nothing has just happened."""
        if not self._query.kinds:
            return "This run has no features to ask: extract them with divff extract, and train."
        if not self._query.phrases:
            return "Nothing is asked."
        return f'The query is answered by the {self._query.config.features} features; choose "relevancy_overlay".'

    def _changed(self, **changes: Any) -> None:
        """Asks the changed query, and says how it went."""
        try:
            if "negatives" in changes:
                phrases = tuple(part.strip() for part in changes.pop("negatives").split(";") if part.strip())
                changes[f"negatives_{self._query.config.features}"] = phrases
            if changes.get("text", "").strip() or "features" in changes:
                self.note.show("The query is being encoded; the text encoder loads at the first one ...")
            start = time.perf_counter()
            self._query.ask(**changes)
            milliseconds = 1000 * (time.perf_counter() - start)
            if "features" in changes:
                self.settings.negatives.value = "; ".join(self._query.negatives(changes["features"]))
            took = f" Encoding took {milliseconds:.0f} ms." if self._query.phrases else ""
            self.note.show(self._describe() + took)
        except Exception as error:  # the viewer's threads must live on, and the user see what happened
            self.note.show(str(error) or type(error).__name__)

    def _hide(self, **switches: bool) -> None:
        for name, value in switches.items():
            setattr(self._visibility, name, bool(value))

    def _go_to(self, frame_id: float) -> None:
        """Sets the viewer's time to that of the nearest frame."""
        try:
            nearest = int(np.abs(self._frame_ids - float(frame_id)).argmin())
            self.viewer_control.viewer.control_panel.time = float(self._times[nearest])
            self.note.show(f"Frame {self._frame_ids[nearest]} at time {self._times[nearest]:.4f}.")
        except Exception as error:  # as above
            self.note.show(f"The time could not be set: {error}")
