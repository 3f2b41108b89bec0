"""What is told of things: where they are, since when, and where they were before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import viser

from divff_nerfstudio.objects.diary import called
from divff_nerfstudio.viewer.elements import write
from divff_nerfstudio.viewer.markup import as_image, as_markdown, strip
from divff_nerfstudio.viewer.parts import Parts
from divff_nerfstudio.viewer.telling import Told


def add_told(panel: Parts) -> Any:
    """The things that the answer means, each with a strip of what happens to it over time; below them, what it means
    that is none."""
    text = panel.gui.add_markdown("")

    def draw(told: Sequence[Told], no_things: Sequence[str], frame: int) -> None:
        count, parts = len(panel.context.frames.ids), []
        for each in told:
            thing, seen = each.where.thing, "in view" if each.seen else "not in view here"
            head = f"{each.phrase}: {called(thing)}, {seen}" if len({t.phrase for t in told}) > 1 else called(thing)
            if head == called(thing):
                head += f", {seen}"
            parts += [as_markdown(f"{head}: {each.words}."), as_image(strip(thing.spans(count), frame))]
        if no_things:
            parts.append(as_markdown(f"{'; '.join(no_things)}: in the scene, not a thing of it."))
        write(text, "\n\n".join(parts))

    panel.telling.told.connect(draw)
    return text


def add_go_there(panel: Parts) -> Any:
    """Goes to where what is not in view is seen; there while something is not."""
    hint = "Goes to where the wearer has seen it best, at this time if it lies there now."
    button = panel.gui.add_button("Go there", visible=False, icon=viser.Icon.WALK, hint=hint)
    button.on_click(lambda event: panel.telling.go_there(event.client))
    panel.telling.told.connect(lambda told, *_: setattr(button, "visible", any(not each.seen for each in told)))
    return button
