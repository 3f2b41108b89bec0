"""The diary in the panel: what was moved, each with its moment to go to, and how it was before and after."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import UInt8

from divff_nerfstudio.objects.diary import Event
from divff_nerfstudio.objects.pictures import before_and_after
from divff_nerfstudio.viewer.background import Latest
from divff_nerfstudio.viewer.context import PanelContext
from divff_nerfstudio.viewer.signals import Signal
from divff_nerfstudio.viewer.things import KnownThings


class Diary:
    """Lists what was moved, and goes to the moments of it.

    Attributes:
        lane: The thread that lists and draws.
        events: The events, once they are known, in the order of time.
        listed: Happens when they are known, or are told by another clock; told a label for each.
        opened: Happens when one has been opened; told it in words, and its pictures before and after, side by side.
    """

    def __init__(self, context: PanelContext, things: KnownThings):
        self._context, self._things = context, things
        self.lane = Latest("panel diary", context.failed)
        self.events: list[Event] = []
        self._open: Event | None = None
        self.listed: Signal[[list[str]]] = Signal()
        self.opened: Signal[[str, UInt8[np.ndarray, "height width 3"]]] = Signal()
        things.known.connect(self._list)

    def open(self, number: int, client: Any) -> None:
        """Goes to where an event begins, and shows it before and after.

        Args:
            number: Its place in `events`.
            client: Who goes there.
        """
        self._open = self.events[number]
        self.turn(False, client)
        self.lane.submit(partial(self._draw, self._open))

    def turn(self, after: bool, client: Any) -> None:
        """Goes to the moment before or after the event that was opened last, where its frame was filmed from."""
        if self._open is None:
            self._context.note("Choose something that was moved first.")
            return
        frame = self._open.move.end if after else self._open.move.start
        self._context.viewer.time = float(self._context.frames.times[frame])
        self._context.stand(client, frame)

    def _list(self) -> None:
        """Says what there is; of an open event, too, since the clock may be another."""
        scene = self._things.scene
        assert scene is not None
        clock, self.events = self._things.clock, self.events or scene.diary()
        self.listed([f"{clock.told(event.move.start)}: {_short(event)}" for event in self.events])
        if self._open is not None:
            self.lane.submit(partial(self._draw, self._open))

    def _draw(self, event: Event) -> None:
        scene = self._things.scene
        assert scene is not None
        ids = self._context.frames.ids
        picture = before_and_after(scene.found, event, lambda frame: scene.frame(int(ids[frame])))
        if self._open is event:
            self.opened(event.told(self._things.clock), picture)


def _short(event: Event) -> str:
    """What has happened to what, in few words; of a long name, what fits."""
    name = event.thing.name or f"thing {event.thing.number}"
    return name if event.kind == "moved" else f"{event.kind}: {name}"
