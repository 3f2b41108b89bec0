"""The panel's elements, in the order in which they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import viser

if TYPE_CHECKING:
    from viser import GuiApi

SHOWN: dict[str, str] = {
    "Answer": "relevancy_overlay",
    "Picture": "rgb",
    "Relevancy": "relevancy",
    "Static layer": "rgb_static",
    "Dynamic layer": "rgb_dynamic",
    "Actor layer": "rgb_actor",
    "What moves": "mask_moving",
    "Depth": "depth",
    "Features": "features_pca",
}
"""The outputs that the panel offers, by the names that it gives them."""
FEATURES: dict[str, str] = {"image": "image: what it is", "video": "video: what is done"}
"""The kinds of features, by what they answer."""
NO_PRESET = "pick a question ..."


@dataclass
class Elements:
    """Handles of the panel's elements."""

    ask: Any
    preset: Any
    features: Any
    show: Any
    legend: Any
    note: Any
    point: Any
    pointed: Any
    frame: Any
    stand: Any
    next_move: Any
    hide_actor: Any
    hide_dynamic: Any
    over_time: Any
    plot: Any
    negatives: Any
    threshold: Any
    strength: Any
    contour: Any
    mark_best: Any
    still: Any
    saved: Any


def build(
    gui: GuiApi,
    order: float,
    *,
    place_time: Callable[[], None],
    kinds: Sequence[str],
    text: str,
    features: str,
    negatives: str,
    threshold: float,
    strength: float,
    contour: bool,
    hide_actor: bool,
    hide_dynamic: bool,
    frames: tuple[int, int],
    over_time: bool,
) -> Elements:
    """Adds the panel to the viewer.

    Args:
        gui: The viewer's interface.
        order: Where the panel stands among what is there already.
        place_time: Adds the time slider.
        kinds: Kinds of features that can be asked; none: questions are greyed out.
        text: The question to begin with.
        features: The kind of features to begin with.
        negatives: The negatives to begin with.
        threshold: The threshold to begin with.
        strength: The overlay's strength to begin with.
        contour: Whether the overlay is outlined to begin with.
        hide_actor: Whether the actor is hidden to begin with.
        hide_dynamic: Whether moved objects are hidden to begin with.
        frames: Ids of the first and the last frame.
        over_time: Whether scores over time are computed to begin with.

    Returns:
        Handles of the elements; nothing is attached to them yet.
    """
    mute, icon = not kinds, viser.Icon
    offered = [FEATURES[kind] for kind in kinds] or ["none"]
    with gui.add_folder("Ask the scene", order=order):
        ask = gui.add_text(
            "Question", text, disabled=mute, hint='What to look for; several phrases are separated by ";".'
        )
        preset = gui.add_dropdown("Presets", [NO_PRESET], disabled=mute, hint="Questions that fit this scene.")
        kind = gui.add_dropdown(
            "Features",
            offered,
            initial_value=FEATURES.get(features, offered[0]) if kinds else offered[0],
            disabled=mute,
            hint="Image features know what things are, video features what is done with them.",
        )
        show = gui.add_dropdown(
            "Show", list(SHOWN), initial_value="Picture", hint="What the picture shows: the answer, or a layer alone."
        )
        note = gui.add_markdown("")
        legend = gui.add_markdown("")
        point = gui.add_button(
            "What is this?", disabled=mute, icon=icon.POINTER, hint="Then click into the picture: its point is asked."
        )
        pointed = gui.add_markdown("")
        with gui.add_folder("Time and layers"):
            place_time()
            frame = gui.add_number(
                "Frame", frames[0], min=frames[0], max=frames[1], step=1, hint="Reaches every frame of the scene."
            )
            stand = gui.add_button(
                "Through the wearer's eyes",
                color="gray",
                icon=icon.EYE,
                hint="Goes to where this frame was filmed from.",
            )
            next_move = gui.add_button(
                "Next moment it moves",
                color="gray",
                icon=icon.PLAYER_TRACK_NEXT,
                hint="When what is asked for next moves in this view; asked for nothing: when anything does.",
            )
            actor = gui.add_checkbox("Hide actor", hide_actor, hint="The scene without the camera wearer.")
            dynamic = gui.add_checkbox(
                "Hide dynamic", hide_dynamic, hint="The scene without the objects that are moved."
            )
            timeline = gui.add_checkbox(
                "Over time",
                over_time,
                disabled=mute,
                hint="Scores of this view over time; it is looked at in the background.",
            )
            plot = gui.add_markdown("")
        with gui.add_folder("Advanced", expand_by_default=False):
            against = gui.add_text(
                "Negatives",
                negatives,
                disabled=mute,
                hint='What questions are held against, separated by ";". Empty: the usual ones.',
            )
            level = gui.add_slider(
                "Threshold", 0.0, 1.0, 0.01, threshold, disabled=mute, hint="Relevancy from which on it counts as seen."
            )
            share = gui.add_slider(
                "Overlay strength", 0.0, 1.0, 0.05, strength, disabled=mute, hint="Share of the colours in the answer."
            )
            outline = gui.add_checkbox("Outline", contour, disabled=mute, hint="Where the threshold is reached.")
            best = gui.add_checkbox("Mark best point", True, disabled=mute, hint="In space, with its score.")
        with gui.add_folder("Film", expand_by_default=False):
            still = gui.add_button(
                "This view over all times",
                color="gray",
                icon=icon.VIDEO,
                hint="Writes a camera path that stands still, and the command that films it.",
            )
            saved = gui.add_markdown("Camera paths of the tab Render are saved with this panel's state.")
    return Elements(
        ask, preset, kind, show, legend, note, point, pointed, frame, stand, next_move, actor, dynamic, timeline, plot,
        against, level, share, outline, best, still, saved,
    )  # fmt: skip
