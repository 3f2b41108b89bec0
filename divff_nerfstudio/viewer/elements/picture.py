"""What the picture shows, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import viser

from divff_nerfstudio.viewer.elements import Follower, write
from divff_nerfstudio.viewer.markup import as_image, as_markdown, legend
from divff_nerfstudio.viewer.parts import Parts
from divff_nerfstudio.viewer.views import AnsweredView

SHOWN: dict[str, str] = {
    "Answer": "relevancy_overlay",
    "Picture": "rgb",
    "Relevancy": "relevancy",
    "Static layer": "rgb_static",
    "Dynamic layer": "rgb_dynamic",
    "Actor layer": "rgb_actor",
    "What moves": "mask_moving",
    "What has been moved": "mask_moved",
    "Depth": "depth",
    "Features": "features_pca",
}
"""The outputs that the panel offers, by the names that it gives them."""


def add_shown(panel: Parts) -> Any:
    """nerfstudio's output by other names; it follows nerfstudio's own element."""
    hint = "What the picture shows: the answer, or a layer alone."
    box = panel.gui.add_dropdown("Show", list(SHOWN), initial_value="Picture", hint=hint)
    names = {output: name for name, output in SHOWN.items()}

    def follow() -> None:
        follower.follow(lambda: names.get(panel.context.viewer.output, box.value))

    def show(name: str) -> None:
        panel.answering.show(SHOWN[name])
        follow()

    follower = Follower(box, show)
    panel.context.viewer.on_output(follow)
    return box


def add_note(panel: Parts) -> Any:
    """The line of state; whatever it holds is shown as it is, not taken for markup."""
    text = panel.gui.add_markdown("")
    panel.context.noted.connect(lambda line: setattr(text, "content", as_markdown(line)))
    return text


def add_legend(panel: Parts) -> Any:
    """The phrases with their colours, their scores in the view, and whether the scene has them."""
    text = panel.gui.add_markdown("")

    def draw(view: AnsweredView, states: Sequence[str] | None = None) -> None:
        answer = view.answer
        if answer is None:
            write(text, "")
        else:
            scores = [answer.best(i)[2] for i in range(len(answer.phrases))]
            write(text, as_image(legend(answer.phrases, scores, answer.config.threshold, states)))

    panel.answering.drawn.connect(lambda _, view, __: draw(view))
    panel.judging.judged.connect(lambda view, _, states: draw(view, states))
    return text


def add_mark_best(panel: Parts) -> Any:
    """Whether best points are marked in space."""
    box = panel.gui.add_checkbox("Mark best point", True, disabled=panel.mute, hint="In space, with its score.")
    box.on_update(lambda _: panel.answering.repaint())
    panel.answering.drawn.connect(
        lambda client, view, at_rest: panel.marks.mark(client, view, box.value) if at_rest else None
    )
    return box


def add_hide_actor(panel: Parts) -> Any:
    """Leaves the camera wearer out."""
    box = panel.gui.add_checkbox(
        "Hide actor", panel.context.visibility.hide_actor, hint="The scene without the camera wearer."
    )
    box.on_update(lambda _: panel.answering.hide(hide_actor=box.value))
    return box


def add_hide_dynamic(panel: Parts) -> Any:
    """Leaves out what is moved."""
    box = panel.gui.add_checkbox(
        "Hide dynamic", panel.context.visibility.hide_dynamic, hint="The scene without the objects that are moved."
    )
    box.on_update(lambda _: panel.answering.hide(hide_dynamic=box.value))
    return box


def add_point(panel: Parts) -> Any:
    """The button before a click that asks what is there."""
    hint = "Then click into the picture: its point is asked."
    button = panel.gui.add_button("What is this?", disabled=panel.mute, icon=viser.Icon.POINTER, hint=hint)
    button.on_click(lambda _: panel.pointing.toggle())
    return button


def add_pointed(panel: Parts) -> Any:
    """What was found where somebody clicked."""
    text = panel.gui.add_markdown("")
    panel.pointing.told.connect(lambda line: setattr(text, "content", as_markdown(line)))
    return text
