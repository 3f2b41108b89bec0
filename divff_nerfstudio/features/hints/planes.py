"""One plane of hints: what is said of a frame's pixels, and who says it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Int8

from divff_nerfstudio.features.pictures import Pictures

UNKNOWN, YES, NO = 0, 1, -1
"""What can be said of a pixel, as stores and batches have it."""


class HintPlane(ABC):
    """Says of each pixel of a frame whether something holds. Own ones are named on the command line, module:Class.

    Args:
        pictures: Pictures of the scene.
    """

    name: ClassVar[str]
    """What training calls it."""

    def __init__(self, pictures: Pictures):
        self.pictures = pictures

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that changes the hints, as plain data for the store's header."""

    @abstractmethod
    def states(self, frame: int) -> Int8[np.ndarray, "h w"]:
        """`YES`, `NO` or `UNKNOWN` of each pixel of the frame with this index; any size that covers the frame."""


class NoPlane(HintPlane):
    """Nothing is known."""

    name = "none"

    def settings(self) -> dict[str, Any]:
        """Its name."""
        return {"name": self.name}

    def states(self, frame: int) -> Int8[np.ndarray, "h w"]:
        """Unknown."""
        del frame
        return np.full((1, 1), UNKNOWN, np.int8)


def stated(yes: Bool[np.ndarray, "h w"], no: Bool[np.ndarray, "h w"]) -> Int8[np.ndarray, "h w"]:
    """Hints where something holds, and where it does not; unknown elsewhere and where both are said."""
    return (yes.astype(np.int8) - no.astype(np.int8)).astype(np.int8)
