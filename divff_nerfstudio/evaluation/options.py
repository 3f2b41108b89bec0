"""What may be asked of a trained scene, and how it is typed; commands tell their options by it, without a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.schema import Count, Share, Weight

Features = Literal["image", "video"]
"""Which features answer: what something is, or what is done with it."""
THINGS: Features = "image"
"""The features by which things are found."""
MovingLayer = Literal["actor", "dynamic"]
"""A layer that can be left out of a picture."""
TaskGroup = Literal["masks", "objects", "affordances", "views"]
"""What can be evaluated: pictures and masks, classes, actions, and other viewpoints and times."""


class EvaluationError(DivffError):
    """An evaluation that would say something untrue, or has nothing to look at."""


@dataclass
class CloudOptions:
    """What a point cloud holds."""

    views: Count = 16
    """How many viewpoints: that of the frame next to the moment, and training frames' evenly spaced over the video."""
    cell: Annotated[float, Field(gt=0, le=1)] = 0.005
    """Edge of the cube whose points become one, as a share of the median distance of what the views see."""
    opaque: Share = 0.5
    """A ray that less of the scene stops than this gives no point."""
    edge: Weight = 0.1
    """A pixel whose depth differs from a neighbour's by more than this share gives none: it lies between two things."""
    hide: tuple[MovingLayer, ...] = ()
    """Layers to leave out. The actor, which moves with the camera, is only in the view that belongs to the moment."""
    full_features: bool = False
    """Write all channels of the features, too, in half precision, as NPY beside the PLY; a row for each point."""


def asked_kind(typed: str, usual: str) -> tuple[str, str]:
    """Which features a typed phrase asks, and the phrase: "video: cut the bread" names its features itself.

    Args:
        typed: What the user wrote.
        usual: The features that are asked where the phrase names none.

    Raises:
        EvaluationError: If there is no phrase.
    """
    kind, colon, phrase = typed.partition(":")
    if not colon or kind.strip() not in get_args(Features):
        kind, phrase = usual, typed
    if not phrase.strip():
        raise EvaluationError("A query needs words: write what to look for between the quotation marks.")
    return kind.strip(), " ".join(phrase.split())
