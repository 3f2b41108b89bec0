"""What moves in 2D, by optical flow: what no depth along a pixel's ray explains under the known cameras.

A still point that is seen at a pixel lies somewhere on the pixel's ray, and is seen in another frame somewhere on a
piece of a line, the ray's picture there. A pixel moves if the flow leads away from that piece, the flow back agrees,
and nothing on the piece looks like the pixel, which clears what flow smears over surfaces of one colour and what is
merely hidden by a hand. It does not move if the flow leads to the piece in one of the frames beside it, nothing speaks
against that in the other, and both agree in depth, since what moves along the line is not told by one frame. Where
the camera hardly moves, the piece is a point and nothing can hide along it. All else is unknown.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int8, UInt8
from pydantic import Field

from divff_nerfstudio.data.frames import frame_digests
from divff_nerfstudio.features.hints.planes import UNKNOWN, HintPlane, stated
from divff_nerfstudio.features.pictures import Pictures

_WIDTH = 456
"""Frames are looked at in this width, at most, and smaller ones are enlarged for the flow."""
_MAX_ENLARGED = 4
_MIN_SIDE = 16
"""Pictures with a shorter side, enlarged, have no flow."""
_NEARER, _FARTHER = 0.6, 1.25
"""Where still things may be along the optical axis, in units of near and far."""
_MAX_DEPTHS = 48
"""Places on the piece of a line at which the pixel's look is searched, at most; they are a pixel apart otherwise."""
_MIN_PIXELS = 1.0
"""What flow can tell, in pixels of the picture that is looked at."""
_BACK, _BACK_SHARE = 1.0, 0.05
"""How far from its start the flow there and back may end: pixels, and share of the flow's length."""
_SAME_LOOK = 0.05
"""Difference of colour, the largest of the channels in [0, 1], up to which patches of 3x3 pixels look the same."""
_CLEARLY = 1.5
"""What looks different on the line must do so by that factor more than where the flow leads."""
_NEIGHBOURS = 5
"""Of the nine pixels around and at one that moves, so many must."""


@dataclass
class FlowConfig:
    """Options of hints by optical flow."""

    threshold: Annotated[float, Field(gt=0, le=1)] = 0.009
    """How far flow must lead away from all places of still things, as a share of the frame's width (and a pixel at
    least); up to half of that nothing has moved."""


class FrameCamera(NamedTuple):
    """A frame's camera, in double precision."""

    pose: Float[np.ndarray, "3 4"]
    """Camera to world."""
    intrinsics: Float[np.ndarray, "3 3"]
    """In pixels of the pictures that are looked at."""


class _Pair(NamedTuple):
    """What one other frame says of a frame's pixels."""

    moves: Bool[np.ndarray, "h w"]
    """Flow leads where nothing still can be, and nothing there looks alike."""
    still: Bool[np.ndarray, "h w"]
    """Flow leads where something still can be."""
    alike: Bool[np.ndarray, "h w"]
    """Something still could look like the pixel."""
    nearness: Float[np.ndarray, "h w"]
    """1 / depth at which that is, by the flow."""
    blur: Float[np.ndarray, "h w"]
    """By how much `nearness` changes over a pixel."""


class FlowPlane(HintPlane):
    """Motion by OpenCV's flow (DIS, Kroeger 2016) between training frames that follow each other.

    No held-out frame is looked at but for its own hints, which nothing is trained on.

    Args:
        pictures: Pictures of the scene.
        config: Options.
    """

    name = "flow"

    def __init__(self, pictures: Pictures, config: FlowConfig):
        super().__init__(pictures)
        scene, self.config = pictures.scene, config
        self._width = min(scene.width, _WIDTH)
        self._height = max(1, round(scene.height * self._width / scene.width))
        self._enlarged = int(np.clip(_WIDTH // self._width, 1, _MAX_ENLARGED))
        scale = np.array((self._width / scene.width, self._height / scene.height, 1.0))
        self._intrinsics = scene.intrinsics.astype(np.float64) * scale[:, None]
        self._flow = lru_cache(8)(self._flow_between)  # of each pair both frames ask for both directions

    def settings(self) -> dict[str, Any]:
        """Threshold, and what identifies the pictures, their cameras, and the frames that are looked at."""
        scene = self.pictures.scene
        digest = hashlib.sha256(frame_digests(scene.frames).tobytes())
        for part in (scene.camera_to_worlds, scene.intrinsics, scene.nears, scene.fars, scene.splits["train"]):
            digest.update(np.ascontiguousarray(part, dtype="<f8").tobytes())
        return {"name": self.name, "version": 1, "threshold": self.config.threshold, "of": digest.hexdigest()}

    def states(self, frame: int) -> Int8[np.ndarray, "h w"]:
        """What moves between the training frames before and after a frame, at the size that is looked at."""
        train = self.pictures.scene.splits["train"]
        others = [*train[train < frame][-1:], *train[train > frame][:1]]
        if not others or min(self._height, self._width) * self._enlarged < _MIN_SIDE:
            return np.full((self._height, self._width), UNKNOWN, np.int8)
        pairs = [self._looked(frame, int(other)) for other in others]
        fits = [pair.still | pair.alike for pair in pairs]
        yes = np.any([pair.moves for pair in pairs], 0) & ~np.any(fits, 0)
        yes &= cv2.boxFilter(yes.astype(np.float32), -1, (3, 3), normalize=False) > _NEIGHBOURS - 0.5
        no = np.any([pair.still for pair in pairs], 0) & np.all(fits, 0)
        if len(pairs) == 2:
            first, second = pairs
            apart = np.abs(first.nearness - second.nearness) > first.blur + second.blur
            no &= ~(first.still & second.still & apart)
        return stated(yes, no)

    def _looked(self, frame: int, other: int) -> _Pair:
        scene, width = self.pictures.scene, self._width
        flow, back = self._flow(frame, other), self._flow(other, frame)
        here, there = (
            FrameCamera(scene.camera_to_worlds[i].astype(np.float64), self._intrinsics) for i in (frame, other)
        )
        bounds = _NEARER * float(scene.nears[frame]), _FARTHER * float(scene.fars[frame])
        places = _pixels(*flow.shape[:2])
        line = Line(here, there, places, bounds)
        off, nearness, length = line.nearest(places + flow)
        agrees = _there_and_back(flow, back) <= _BACK + _BACK_SHARE * np.linalg.norm(flow, axis=-1)
        own, others = (self._picture(i).astype(np.float32) / 255 for i in (frame, other))
        led = _difference(own, others, places + flow)
        count = int(np.clip(np.ceil(np.nan_to_num(length).max()), 2, _MAX_DEPTHS))
        on_line = np.min([_difference(own, others, line.at(each)) for each in np.linspace(*line.ends, count)], 0)
        far = max(_MIN_PIXELS, self.config.threshold * width)
        trusted = agrees & (led <= _SAME_LOOK) & np.isfinite(on_line)
        clear = (on_line > _SAME_LOOK) & (on_line > _CLEARLY * led)
        blur = (line.ends[0] - line.ends[1]) / np.maximum(length, 1e-3)
        return _Pair(trusted & (off > far) & clear, trusted & (off < far / 2), on_line <= _SAME_LOOK, nearness, blur)

    def _picture(self, frame: int) -> UInt8[np.ndarray, "h w 3"]:
        picture = self.pictures.scene.frame(frame)
        if self._width == picture.shape[1]:
            return picture
        return cv2.resize(picture, (self._width, self._height), interpolation=cv2.INTER_AREA)

    def _flow_between(self, first: int, second: int) -> Float[np.ndarray, "h w 2"]:
        """Where the first frame's pixels are in the second, relative to their places."""
        size = self._width * self._enlarged, self._height * self._enlarged
        grey = [cv2.cvtColor(self._picture(i), cv2.COLOR_RGB2GRAY) for i in (first, second)]
        large = [cv2.resize(each, size, interpolation=cv2.INTER_CUBIC) for each in grey]
        method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # pyright: ignore
        flow = method.calc(large[0], large[1], None)
        small = cv2.resize(flow, (self._width, self._height), interpolation=cv2.INTER_AREA)
        return small.astype(np.float64) / self._enlarged


class Line:
    """Where in another frame still points of a frame's pixels may be seen: pieces of lines, by 1 / depth.

    Args:
        here: The frame's camera.
        there: The other's.
        places: Pixels of the frame, (x, y).
        bounds: Least and largest depth along the optical axis.
    """

    def __init__(
        self, here: FrameCamera, there: FrameCamera, places: Float[np.ndarray, "h w 2"], bounds: tuple[float, float]
    ):
        inward = np.linalg.inv(here.intrinsics)
        local = np.concatenate((places, np.ones_like(places[..., :1])), -1) @ inward.T * (1, -1, -1)
        turned = local @ here.pose[:, :3].T @ there.pose[:, :3]
        moved = (here.pose[:, 3] - there.pose[:, 3]) @ there.pose[:, :3]
        # What is seen at 1 / depth n lies in the direction of turned + n * moved: a place, times its depth.
        self._turned, self._moved = (each * (1, -1, -1) @ there.intrinsics.T for each in (turned, moved))
        self.ends = 1 / bounds[0], 1 / bounds[1]
        """1 / depth of the nearest and the farthest place."""

    def at(self, nearness: float) -> Float[np.ndarray, "h w 2"]:
        """Places at 1 / depth; not a number where that is behind the other camera."""
        found = self._turned + nearness * self._moved
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(found[..., 2:] > 1e-6, found[..., :2] / found[..., 2:], np.nan)

    def nearest(
        self, asked: Float[np.ndarray, "h w 2"]
    ) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
        """How far asked places are from the pieces, 1 / depth of what on them is nearest, and the pieces' lengths."""
        near, far = (self.at(end) for end in self.ends)
        step = near - far
        square = (step**2).sum(-1)
        share = np.clip(((asked - far) * step).sum(-1) / np.maximum(square, 1e-9), 0, 1)
        on = far + share[..., None] * step
        axis = np.abs(step).argmax(-1)[..., None]
        place = np.take_along_axis(on, axis, -1)[..., 0]
        turned = np.take_along_axis(self._turned[..., :2], axis, -1)[..., 0]
        slope = place * self._moved[2] - self._moved[axis[..., 0]]
        with np.errstate(divide="ignore", invalid="ignore"):
            nearness = (turned - place * self._turned[..., 2]) / slope
        nearness = np.clip(np.nan_to_num(nearness, nan=self.ends[1]), self.ends[1], self.ends[0])
        return np.linalg.norm(asked - on, axis=-1), nearness, np.sqrt(square)


def _pixels(height: int, width: int) -> Float[np.ndarray, "h w 2"]:
    """Centres of pixels, (x, y)."""
    return np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1)


def _there_and_back(flow: Float[np.ndarray, "h w 2"], back: Float[np.ndarray, "h w 2"]) -> Float[np.ndarray, "h w"]:
    """How far from its start a pixel ends that follows the flow and the flow back; without bound outside."""
    return np.linalg.norm(flow + _sampled(back, _pixels(*flow.shape[:2]) + flow), axis=-1)


def _difference(
    own: Float[np.ndarray, "h w 3"], others: Float[np.ndarray, "h w 3"], places: Float[np.ndarray, "h w 2"]
) -> Float[np.ndarray, "h w"]:
    """How different a frame looks from another at places of it; without bound where that shows them not."""
    found = _sampled(others, places)
    outside = np.isinf(found).any(-1)
    difference = np.abs(own - np.where(outside[..., None], 0, found)).max(-1).astype(np.float32)
    return np.where(outside, np.inf, cv2.blur(difference, (3, 3), borderType=cv2.BORDER_REPLICATE))


def _sampled(values: Float[np.ndarray, "h w c"], places: Float[np.ndarray, "h w 2"]) -> Float[np.ndarray, "h w c"]:
    """Values between pixels; without bound outside of the picture."""
    height, width = values.shape[:2]
    at = places - 0.5
    inside = ((at >= 0) & (at <= (width - 1, height - 1))).all(-1)  # what is not a number is not inside
    at = np.where(inside[..., None], at, 0).astype(np.float32)
    found = cv2.remap(values.astype(np.float32), at[..., 0], at[..., 1], cv2.INTER_LINEAR)
    return np.where(inside[..., None], found, np.inf)
