"""The source of hints: two planes, what moves in 2D and what is hand, each by a way of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int8

from divff_nerfstudio.data.detections import FILE
from divff_nerfstudio.data.masks import resize_nearest
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.hints.boxes import BoxPlane
from divff_nerfstudio.features.hints.flow import FlowConfig, FlowPlane
from divff_nerfstudio.features.hints.masks import MaskPlane
from divff_nerfstudio.features.hints.planes import NO, UNKNOWN, YES, HintPlane, NoPlane
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.sources import FeatureSource
from divff_nerfstudio.features.store import HINTS, FrameFeatures
from divff_nerfstudio.plugins import plugin_class
from divff_nerfstudio.schema import Amount, Size, Words


@dataclass
class HintSourceConfig:
    """Options of the hints."""

    moving: Words = "none"
    """What moves in 2D: none, flow (OpenCV's, against a still scene under the known cameras), a folder of masks, or
    your own class, module:Class."""
    hands: Words = "auto"
    """What is hand: auto (the boxes of SCENE/hand_obj_detections.json where there are any), none, a folder of masks, a
    file of boxes, or your own class, module:Class."""
    moving_values: tuple[Amount, ...] = ()
    """Values of those masks that move; none: all but 0, of which there may be one."""
    hands_values: tuple[Amount, ...] = ()
    """Values of those masks that are hand."""
    box_size: tuple[Size, Size] = (456, 256)
    """Width and height of the pictures that the boxes were found in."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """Options of the flow."""


class HintSource(FeatureSource):
    """Hints of each pixel: a row of two, what moves and what is hand, each 1 (yes), -1 (no) or 0 (unknown).

    Args:
        pictures: Pictures of the scene.
        encoder: Not used.
        device: Not used.
        config: Options.

    Raises:
        DivffError: If what is named cannot be used, or nothing is.
    """

    kind = HINTS
    name = "hints"
    dimension = 2
    config: HintSourceConfig

    def __init__(self, pictures: Pictures, encoder: str, device: torch.device, config: HintSourceConfig | None = None):
        super().__init__(pictures, encoder, device, config or HintSourceConfig())
        self.planes = self._plane("moving"), self._plane("hands")
        self._refuse_unused()
        if all(isinstance(plane, NoPlane) for plane in self.planes):
            raise DivffError(
                "--hints.moving and --hints.hands say nothing: give flow, a folder of masks or module:Class for one of "
                f"them, or put boxes at {pictures.scene.root / FILE}."
            )
        self.model = "moving: {.name}; hands: {.name}".format(*self.planes)
        told = json.dumps(self.settings(), sort_keys=True)
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """What each plane is made of."""
        moving, hands = self.planes
        return {"moving": moving.settings(), "hands": hands.settings()}

    def extract(self, frame: int) -> FrameFeatures:
        """Hints of a frame."""
        size = self.pictures.scene.height, self.pictures.scene.width
        moving, hands = (resize_nearest(_checked(plane, frame), *size).astype(np.int64) for plane in self.planes)
        codes, index = np.unique(3 * moving + hands + 4, return_inverse=True)
        table = np.stack((codes // 3 - 1, codes % 3 - 1), -1)
        return FrameFeatures(index.reshape(size).astype(np.uint16), table.astype(np.float32))

    def _refuse_unused(self) -> None:
        """Refuses options of planes that are not there."""
        for which, plane in zip(("moving", "hands"), self.planes, strict=True):
            if getattr(self.config, f"{which}_values") and not isinstance(plane, MaskPlane):
                raise DivffError(
                    f"--hints.{which}-values are of masks, but --hints.{which} is {getattr(self.config, which)}: give "
                    f"a folder of masks with --hints.{which}, or leave the values out."
                )
        if tuple(self.config.box_size) != HintSourceConfig.box_size and not isinstance(self.planes[1], BoxPlane):
            raise DivffError(
                "--hints.box-size is of pictures in which boxes were found, but there are no boxes: give their file "
                "with --hints.hands, or leave the size out."
            )

    def _plane(self, which: Literal["moving", "hands"]) -> HintPlane:
        config, pictures, option = self.config, self.pictures, f"--hints.{which}"
        name: str = getattr(config, which)
        boxes = pictures.scene.root / FILE
        made: dict[str, Callable[[], HintPlane]] = {"none": lambda: NoPlane(pictures)}
        if which == "moving":
            made["flow"] = lambda: FlowPlane(pictures, config.flow)
        else:
            made["auto"] = lambda: BoxPlane(pictures, boxes, config.box_size) if boxes.exists() else NoPlane(pictures)
        if name in made:
            return made[name]()
        path = Path(name)
        if path.is_dir():
            return MaskPlane(pictures, path, option, getattr(config, f"{which}_values"))
        if which == "hands" and path.suffix.lower() == ".json":
            return BoxPlane(pictures, path, config.box_size)
        if ":" in name:
            return _described(plugin_class(name, HintPlane, f"plane of hints for {option}", {})(pictures))  # pyright: ignore
        what = "no folder of masks" + (", no file of boxes" if which == "hands" else "")
        raise DivffError(f"{option} {name} is {what}, nor one of {', '.join(made)}: name one that is there.")


def _described(plane: HintPlane) -> HintPlane:
    """A plane of somebody else's that says what it is."""
    try:
        named = bool(plane.name.strip())
        json.dumps(plane.settings())
    except (AttributeError, TypeError, ValueError):
        named = False
    if not named:
        raise DivffError(
            f"{type(plane).__name__} does not say what it is: give it a name, a text, and have its method settings "
            "return numbers and texts alone."
        )
    return plane


def _checked(plane: HintPlane, frame: int) -> Int8[np.ndarray, "h w"]:
    """What a plane says of a frame; one of somebody else's may say anything."""
    states = np.asarray(plane.states(frame))
    usable = states.ndim == 2 and states.size > 0 and np.issubdtype(states.dtype, np.signedinteger)
    if not (usable and np.isin(states, (YES, NO, UNKNOWN)).all()):
        raise DivffError(
            f"{type(plane).__name__} gave no hints of frame {frame}, an array of rows and columns of signed integers "
            f"{YES} (yes), {NO} (no) and {UNKNOWN} (unknown): mend its method states."
        )
    return states
