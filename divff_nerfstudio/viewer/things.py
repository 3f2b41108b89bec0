"""The scene's things, found in the background: what the panel's parts look up in them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Int, UInt8

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.objects.diary import Clock, Event
from divff_nerfstudio.objects.recognition import Recognition
from divff_nerfstudio.objects.things import Thing, Things
from divff_nerfstudio.viewer.answering import Answering
from divff_nerfstudio.viewer.background import Latest
from divff_nerfstudio.viewer.context import PanelContext
from divff_nerfstudio.viewer.signals import Signal
from divff_nerfstudio.viewer.views import AnsweredView

KIND = "image"
"""The features by which things are found, and known again."""
_MAX_PIXELS = 40000
_MAX_PATIENCE = 5.0
"""Seconds that a frame waits, at most, until nobody's view is being rendered."""


class SceneOfThings(Protocol):
    """What is used of a trained scene, as `divff_nerfstudio.open_run` gives it."""

    @cached_property
    def found(self) -> Things:
        """All things; found at the first use."""
        ...

    def matching(self, phrase: str) -> list[Thing]:
        """The things that a phrase means."""
        ...

    def diary(self) -> list[Event]:
        """What was moved, in the order of time."""
        ...

    def clock(self, fps: float | None = None) -> Clock:
        """Tells the times of frames."""
        ...

    def frame(self, frame_id: int) -> UInt8[np.ndarray, "height width 3"]:
        """A frame as it was filmed."""
        ...


FindThings = Callable[[Path, Callable[[int, int], None]], SceneOfThings]
"""Gives the scene of a run's config.yml; what it calls between frames that it has to render is told how many are done,
of how many."""


class KnownThings:
    """Finds the scene's things in a thread of its own, giving way to whoever looks on.

    Args:
        context: What the parts share.
        answering: Renders for those who look on.
        find: Gives the scene; None: there are no things.

    Attributes:
        lane: The thread that finds them.
        scene: The scene, once its things are found.
        fps: Frames of the video in a second, if known.
        state: How far it is, or why there are no things, in words; empty once they are known.
        changed: Happens when `state` has changed.
        known: Happens when the things are found, or are told of by another clock.
    """

    def __init__(self, context: PanelContext, answering: Answering, find: FindThings | None):
        self._context, self._answering, self._find = context, answering, find
        self.lane = Latest("panel things", self._failed)
        self.scene: SceneOfThings | None = None
        self.fps: float | None = None
        self.state = ""
        self.changed: Signal[[str]] = Signal()
        self.known: Signal[[]] = Signal()

    def prepare(self) -> None:
        """Begins to look for them."""
        if self._find is not None:
            self.lane.submit(self._look)

    @property
    def clock(self) -> Clock:
        """Tells when, once the things are known."""
        assert self.scene is not None
        return self.scene.clock(self.fps)

    def set_fps(self, fps: float) -> None:
        """Has times told in seconds, for so many frames of the video in a second; 0: as frames."""
        self.fps = fps if fps > 0 else None
        if self.scene is not None:
            self.known()

    def frame_of(self, view: AnsweredView) -> int:
        """Index of the frame that is next to a view in time."""
        times = view.camera.times
        return self._context.frames.at(0.0 if times is None else float(times.flatten()[0]))

    def in_view(self, view: AnsweredView) -> tuple[Int[np.ndarray, "rows columns"], int]:
        """Which things a view shows, once they are known.

        Returns:
            The number of the thing at every so many-th pixel of every so many-th row, 0: none, and how many that is.
        """
        assert self.scene is not None
        every = max(1, int(np.ceil((view.height * view.width / _MAX_PIXELS) ** 0.5)))
        rays = view.camera.generate_rays(camera_indices=0)
        points = rays.origins + rays.directions * view.pictures["depth"].to(rays.origins)
        features = None
        if KIND in view.features:
            with torch.no_grad():
                features = self._context.query.decode(view.features[KIND][::every, ::every], KIND).cpu().float().numpy()
        recognition = Recognition(self.scene.found, self.frame_of(view))
        numbers = recognition.numbers(points[::every, ::every].cpu().numpy(), features)
        seen = view.pictures["accumulation"][::every, ::every, 0].cpu().numpy() > 0.5
        return np.where(seen, numbers, 0), every

    def _look(self) -> None:
        """Finds them, once training is over."""
        assert self._find is not None
        while self._context.viewer.in_training:
            self._tell("Things are looked for once training is over.")
            time.sleep(1)
        self._tell("Looking for things ...")
        try:
            scene = self._find(self._context.viewer.config_file, self._looked)
            found = scene.found.things
        except DivffError as error:
            self._tell(str(error))
            return
        if not found:
            self._tell("There are no things that several frames show.")
            return
        self.scene = scene
        self._tell("")
        self.known()

    def _looked(self, done: int, frames: int) -> None:
        """Says how far it is, and waits until nobody's view is being rendered."""
        self._tell(f"Looking for things: {done} of {frames} frames.")
        end, viewer = time.monotonic() + _MAX_PATIENCE, self._context.viewer
        time.sleep(0.01)  # A render thread that waits for its turn gets it here.
        while time.monotonic() < end and any(
            self._answering.views.at_work(client) or not viewer.at_rest(client) for client in viewer.clients()
        ):
            time.sleep(0.05)

    def _tell(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self.changed(state)

    def _failed(self, error: Exception) -> None:
        """Says what went wrong otherwise: the panel goes on without things."""
        self._tell(f"Things could not be looked for: {error or type(error).__name__}")
