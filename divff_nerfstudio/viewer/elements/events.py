"""The diary: what was moved, as a list to click, with pictures of before and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from divff_nerfstudio.viewer.elements import write
from divff_nerfstudio.viewer.markup import as_markdown, as_photo, one_line
from divff_nerfstudio.viewer.parts import Parts

PAGE = 6
"""So many events are listed at a time."""
_LABEL = 34
_PAGES = ("Earlier", "Later")
_SIDES = ("Before", "After")


class _List:
    """Buttons for some of the events, below a text; another page takes their place."""

    def __init__(self, panel: Parts, above: Any):
        self._panel, self._above = panel, above
        self._labels: list[str] = []
        self._page = 0
        self.buttons: list[Any] = []

    def fill(self, labels: list[str]) -> None:
        """Lists other events."""
        self._labels, self._page = labels, min(self._page, max(0, (len(labels) - 1) // PAGE))
        self._show()

    def turn(self, later: bool) -> None:
        """Lists those before or after."""
        last = max(0, (len(self._labels) - 1) // PAGE)
        self._page = min(max(self._page + (1 if later else -1), 0), last)
        self._show()

    def _show(self) -> None:
        for button in self.buttons:
            button.remove()
        self.buttons = []
        first, gui = PAGE * self._page, self._panel.gui
        with self._panel.context.viewer.folder_of(self._above):
            for i, label in enumerate(self._labels[first : first + PAGE]):
                button = gui.add_button(
                    one_line(label, _LABEL),
                    color="gray",
                    hint="Goes there, and shows it before and after.",
                    order=self._above.order + (i + 1) / (PAGE + 2),
                )
                button.on_click(self._opens(first + i))
                self.buttons.append(button)
            if len(self._labels) > PAGE:
                order = self._above.order + (PAGE + 1) / (PAGE + 2)
                pages = gui.add_button_group("More", _PAGES, order=order)
                pages.on_click(lambda event: self.turn(event.target.value == _PAGES[1]))
                self.buttons.append(pages)

    def _opens(self, number: int) -> Callable[[Any], None]:
        return lambda event: self._panel.diary.open(number, event.client)


def add_events(panel: Parts) -> Any:
    """How many events there are, or why nobody knows; below it the list of them."""
    text = panel.gui.add_markdown(as_markdown(panel.things.state))
    listed = _List(panel, text)

    def fill(labels: list[str]) -> None:
        what = "Nothing is moved." if not labels else "" if len(labels) <= PAGE else f"{len(labels)} events."
        write(text, as_markdown(what))
        listed.fill(labels)

    panel.things.changed.connect(lambda state: write(text, as_markdown(state)))
    panel.diary.listed.connect(fill)
    return listed


def add_sides(panel: Parts) -> Any:
    """Goes to before or after what was opened."""
    hint = "Goes to the moment before, or after."
    group = panel.gui.add_button_group("Show it", _SIDES, visible=False, hint=hint)
    group.on_click(lambda event: panel.diary.turn(event.target.value == _SIDES[1], event.client))
    panel.diary.opened.connect(lambda _, __: setattr(group, "visible", True))
    return group


def add_opened(panel: Parts) -> Any:
    """What was opened, in words and in pictures of before and after."""
    text = panel.gui.add_markdown("")
    panel.diary.opened.connect(
        lambda told, picture: write(text, f"{as_photo(picture)}\n\n{as_markdown(f'Before and after: {told}')}")
    )
    return text


def add_fps(panel: Parts) -> Any:
    """The video's speed, with which times are told in seconds."""
    hint = "Frames of the video in a second, so that times are told in seconds; 0: they are told as frames."
    box = panel.gui.add_number("Frames per second", 0.0, min=0.0, max=1000.0, step=1.0, hint=hint)
    box.on_update(lambda _: panel.things.set_fps(float(box.value)))
    return box
