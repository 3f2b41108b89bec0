"""The panel in nerfstudio's viewer: asks, shows what was found and where, points, looks through time, films."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from torch import nn

from divff_nerfstudio.calibration import Calibration
from divff_nerfstudio.query import Query
from divff_nerfstudio.viewer.context import Frames, PanelContext
from divff_nerfstudio.viewer.layout import build
from divff_nerfstudio.viewer.nerfstudio_adapter import NerfstudioViewer, PanelControl
from divff_nerfstudio.viewer.parts import Parts
from divff_nerfstudio.viewer.presets import Preset
from divff_nerfstudio.viewer.things import FindThings

if TYPE_CHECKING:
    from nerfstudio.viewer.viewer import Viewer

    from divff_nerfstudio.viewer.views import Visibility


class QueryPanel(nn.Module):
    """The panel in nerfstudio's viewer. Without a viewer it does nothing.

    It stands above the viewer's tabs. Its callbacks return at once: text encoders load, phrases are encoded and views
    looked at in threads of its own, so that neither training nor rendering waits for them.

    Args:
        query: What is asked.
        visibility: Layers to hide, read by the model at every render.
        frame_ids: Ids of all frames of the scene, ascending.
        times: Their times, 0 to 1.
        poses: Their camera-to-world matrices.
        fov: Their vertical field of view, in radians.
        presets: Gives the questions to offer; called in the background.
        calibrate: Gives what fits the answers of a kind of features to the scene, if there is something; called in the
            background.
        things: Gives the scene whose things answers are told of, if there is one; called in the background.

    Attributes:
        viewer_control: What nerfstudio finds.
        parts: What the panel is composed of, once there is a viewer.
        elements: Handles of its elements, by their names in `LAYOUT`, once there is a viewer.
    """

    def __init__(
        self,
        query: Query,
        visibility: Visibility,
        frame_ids: Int[np.ndarray, "frames"],
        times: Float[np.ndarray, "frames"],
        poses: Float[np.ndarray, "frames 3 4"],
        fov: float,
        presets: Callable[[], Sequence[Preset]] = list,
        calibrate: Callable[[str], Calibration | None] = lambda _: None,
        things: FindThings | None = None,
    ):
        super().__init__()
        self._query, self._visibility, self._find_presets = query, visibility, presets
        self._calibrate, self._find_things = calibrate, things
        self._frames = Frames(np.asarray(frame_ids), np.asarray(times), np.asarray(poses), fov)
        self.parts: Parts | None = None
        self.elements: SimpleNamespace | None = None
        self.viewer_control = PanelControl(self._attach)

    @property
    def state(self) -> str:
        """The line of state, as plain text."""
        return "" if self.parts is None else self.parts.context.state

    def _attach(self, viewer: Viewer) -> None:
        context = PanelContext(NerfstudioViewer(viewer), self._query, self._visibility, self._frames)
        if self._query.config.contour is None:
            self._query.ask(contour=True)
        if context.kinds and self._query.config.features not in context.kinds:
            self._query.config = replace(self._query.config, features=context.kinds[0])
        self.parts = parts = Parts(context, self._calibrate, self._find_things)
        self.elements = build(parts)
        context.viewer.on_client(came=parts.answering.welcome, gone=parts.forget)
        context.viewer.prepare()
        context.note(parts.asking.describe())
        parts.judging.prepare()
        parts.things.prepare()
        for work in (partial(parts.asking.offer, self._find_presets), parts.recording.watch):
            threading.Thread(target=work, name="panel", daemon=True).start()
