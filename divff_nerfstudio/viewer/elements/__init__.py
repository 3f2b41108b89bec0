"""The panel's elements: each function adds one, wires it and returns its handle; `viewer/layout.py` lists them.

Each has one callback: of several, viser 0.2.7 may call the last one in the place of each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Follower:
    """An element that both follows something and changes it.

    viser calls an element's callback for what the program sets, too, later and in another thread. Taken for somebody's
    choice, it would take back whatever has happened since.

    Args:
        element: The handle; it gets its callback here.
        chosen: Called with what somebody has chosen.
    """

    def __init__(self, element: Any, chosen: Callable[[Any], None]):
        self._element, self._chosen = element, chosen
        self._lock = threading.Lock()
        self._known = element.value
        element.on_update(lambda _: self._changed())

    def follow(self, value: Callable[[], Any]) -> None:
        """Shows a value, which is asked for when it is this caller's turn: the last one to ask shows the newest."""
        with self._lock:
            self._known = value()
            if self._element.value != self._known:
                self._element.value = self._known

    def _changed(self) -> None:
        with self._lock:
            value = self._element.value
            if value == self._known:
                return
            self._known = value
        self._chosen(value)


def write(element: Any, content: str) -> None:
    """Sets the content of a text where it differs."""
    if element.content != content:
        element.content = content
