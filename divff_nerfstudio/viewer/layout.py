"""The panel's elements, in the order in which they are needed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from divff_nerfstudio.viewer.elements import events, picture, question, things, time
from divff_nerfstudio.viewer.parts import Parts

AddElement = Callable[[Parts], Any]
"""Adds an element and wires it; returns its handle."""

TITLE = "Ask the scene"
LAYOUT: dict[str, dict[str, AddElement]] = {
    TITLE: {
        "ask": question.add_question,
        "preset": question.add_presets,
        "features": question.add_features,
        "show": picture.add_shown,
        "note": picture.add_note,
        "legend": picture.add_legend,
        "told": things.add_told,
        "go_there": things.add_go_there,
        "point": picture.add_point,
        "pointed": picture.add_pointed,
    },
    "Time and layers": {
        "time": time.add_time,
        "frame": time.add_frame,
        "stand": time.add_stand,
        "next_move": time.add_next_move,
        "hide_actor": picture.add_hide_actor,
        "hide_dynamic": picture.add_hide_dynamic,
        "over_time": time.add_over_time,
        "plot": time.add_plot,
    },
    "What was moved": {
        "events": events.add_events,
        "opened": events.add_opened,
        "sides": events.add_sides,
        "fps": events.add_fps,
    },
    "Advanced": {
        "negatives": question.add_negatives,
        "threshold": question.add_threshold,
        "strength": question.add_strength,
        "contour": question.add_outline,
        "mark_best": picture.add_mark_best,
    },
    "Film": {
        "still": time.add_still,
        "saved": time.add_saved,
    },
}
"""The elements of each folder, by the names under which their handles are found; the first one is the panel itself."""
_FOLDED = ("Advanced", "Film")


def build(panel: Parts) -> SimpleNamespace:
    """Adds the panel to the viewer.

    Args:
        panel: What the elements are wired to.

    Returns:
        Handles of the elements.
    """
    elements, gui = SimpleNamespace(), panel.gui
    with gui.add_folder(TITLE, order=panel.context.viewer.order):
        for folder, adds in LAYOUT.items():
            with nullcontext() if folder == TITLE else gui.add_folder(folder, expand_by_default=folder not in _FOLDED):
                for name, add in adds.items():
                    setattr(elements, name, add(panel))
    return elements
