"""When and from where one looks, what happens over time, and films of it."""

from __future__ import annotations

from typing import Any

import viser

from divff_nerfstudio.viewer.elements import Follower, write
from divff_nerfstudio.viewer.parts import Parts


def add_time(panel: Parts) -> Any:
    """nerfstudio's own slider."""
    return panel.context.viewer.place_time()


def add_frame(panel: Parts) -> Any:
    """The frame, which follows the time."""
    ids, hint = panel.context.frames.ids, "Reaches every frame of the scene."
    first, last = int(ids[0]), int(ids[-1])
    box = panel.gui.add_number("Frame", first, min=first, max=last, step=1, hint=hint)
    follower = Follower(box, panel.context.go_to)
    panel.context.viewer.on_time(lambda: follower.follow(lambda: int(ids[panel.context.frame])))
    return box


def add_stand(panel: Parts) -> Any:
    """Goes to where the frame was filmed from."""
    hint = "Goes to where this frame was filmed from."
    button = panel.gui.add_button("Through the wearer's eyes", color="gray", icon=viser.Icon.EYE, hint=hint)
    button.on_click(lambda event: panel.context.stand(event.client))
    return button


def add_next_move(panel: Parts) -> Any:
    """Goes to the next moment at which something moves."""
    button = panel.gui.add_button(
        "Next moment it moves",
        color="gray",
        icon=viser.Icon.PLAYER_TRACK_NEXT,
        hint="When what is asked for next moves in this view; asked for nothing: when anything does.",
    )
    button.on_click(lambda _: panel.over_time.find_move())
    return button


def add_over_time(panel: Parts) -> Any:
    """Whether this view's scores over time are wanted."""
    hint = "Scores of this view over time; it is looked at in the background."
    box = panel.gui.add_checkbox("Over time", panel.over_time.on, disabled=panel.mute, hint=hint)
    box.on_update(lambda _: panel.over_time.switch(box.value))
    panel.answering.drawn.connect(lambda _, view, at_rest: panel.over_time.follow(view, at_rest))
    return box


def add_plot(panel: Parts) -> Any:
    """The scores over time."""
    text = panel.gui.add_markdown("")
    panel.over_time.plotted.connect(lambda drawing: write(text, drawing))
    return text


def add_still(panel: Parts) -> Any:
    """Writes the camera path of a film that stands still."""
    button = panel.gui.add_button(
        "This view over all times",
        color="gray",
        icon=viser.Icon.VIDEO,
        hint="Writes a camera path that stands still, and the command that films it.",
    )
    button.on_click(lambda event: panel.recording.save_still(event.client_id))
    return button


def add_saved(panel: Parts) -> Any:
    """The command that films the last path that was saved."""
    text = panel.gui.add_markdown("Camera paths of the tab Render are saved with this panel's state.")
    panel.recording.saved.connect(lambda command: setattr(text, "content", command))
    return text
