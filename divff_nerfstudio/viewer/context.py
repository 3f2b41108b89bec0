"""What the parts of the panel share: the viewer, the query, the scene's frames and the line of state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from divff_nerfstudio.query import Query
from divff_nerfstudio.viewer.nerfstudio_adapter import NerfstudioViewer
from divff_nerfstudio.viewer.signals import Signal

if TYPE_CHECKING:
    from divff_nerfstudio.viewer.views import Visibility

FEATURES: dict[str, str] = {"image": "image: what it is", "video": "video: what is done"}
"""The kinds of features, by what they answer."""
NO_PICTURE = "There is no picture yet: try again in a moment."


@dataclass(frozen=True)
class Frames:
    """All frames of a scene."""

    ids: Int[np.ndarray, "frames"]
    """Ascending."""
    times: Float[np.ndarray, "frames"]
    """0 to 1."""
    poses: Float[np.ndarray, "frames 3 4"]
    """Camera-to-world matrices."""
    fov: float
    """Vertical field of view, in radians."""

    def at(self, moment: float) -> int:
        """Index of the frame that is nearest in time."""
        return int(np.abs(self.times - moment).argmin())


class PanelContext:
    """What the parts of the panel share.

    Args:
        viewer: nerfstudio's viewer.
        query: What is asked.
        visibility: Layers to hide.
        frames: The scene's frames.

    Attributes:
        state: The line of state, as plain text.
        noted: Happens when the line of state has changed; told the text.
    """

    def __init__(self, viewer: NerfstudioViewer, query: Query, visibility: Visibility, frames: Frames):
        self.viewer, self.query, self.visibility, self.frames = viewer, query, visibility, frames
        self.state = ""
        self.noted: Signal[[str]] = Signal()

    def note(self, text: str) -> None:
        """Replaces the line of state."""
        self.state = text
        self.noted(text)

    def failed(self, error: Exception) -> None:
        """Shows what went wrong in the line of state."""
        self.note(str(error) or type(error).__name__)

    @property
    def kinds(self) -> list[str]:
        """The kinds of features that can be asked."""
        return [kind for kind in FEATURES if kind in self.query.kinds]

    @property
    def hidden(self) -> tuple[bool, bool]:
        """Whether the actor and moved objects are hidden."""
        return self.visibility.hide_actor, self.visibility.hide_dynamic

    @property
    def frame(self) -> int:
        """Index of the frame nearest to the time that is shown."""
        return self.frames.at(self.viewer.time)

    def go_to(self, frame_id: float) -> None:
        """Sets the viewer's time to that of the nearest frame."""
        nearest = int(np.abs(self.frames.ids - float(frame_id)).argmin())
        # The slider may stand a little beside the frame's own time; that is left as it is.
        if nearest != self.frame:
            self.viewer.time = float(self.frames.times[nearest])
            self.note(f"Frame {self.frames.ids[nearest]} at time {self.frames.times[nearest]:.4f}.")

    def stand(self, client: Any, frame: int | None = None) -> None:
        """Puts a client where a frame was filmed from: that of an index, or the present one."""
        self.viewer.stand(client, self.frames.poses[self.frame if frame is None else frame], self.frames.fov)
