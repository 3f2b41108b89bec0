"""The panel's elements: each function adds one, wires it and returns its handle; `viewer/layout.py` lists them.

Each has one callback: of several, viser 0.2.7 may call the last one in the place of each.
"""

from __future__ import annotations

from typing import Any


def fill(element: Any, value: Any) -> None:
    """Sets an element's value where it differs: setting calls its callback."""
    if element.value != value:
        element.value = value


def write(element: Any, content: str) -> None:
    """Sets the content of a text where it differs."""
    if element.content != content:
        element.content = content
