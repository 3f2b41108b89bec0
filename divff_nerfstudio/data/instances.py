"""What a renderer's scene consists of: the entries of ``ground_truth/instances.json``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from divff_nerfstudio.schema import Label, Record

UNLABELLED = "unlabelled"
"""Name of the instance that stands for what the renderer did not name."""
_Number = Annotated[int, Field(ge=0, lt=10**12)]


class Instance(Record):
    """An entry of ``instances.json``."""

    id: Annotated[int, Field(ge=0, le=255)]
    """What its pixels hold in the maps of instances."""
    name: Label
    """Short name."""
    description: Label | Literal[""] | None = ""
    """A phrase for it; none: its name."""
    layer: Annotated[int, Field(ge=0, le=2)] = 0
    """0 never moves, 1 an object that is moved at some time, 2 the actor."""
    motion: tuple[tuple[_Number, _Number], ...] = ()
    """Spans of frames of the video, each from the last frame before a motion to the first one after it."""
    movable: bool | None = None
    """Whether somebody may move it; None: whether its layer says so."""

    @property
    def phrase(self) -> str:
        """What one asks for it by."""
        return self.description or self.name
