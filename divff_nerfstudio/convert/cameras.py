"""Camera models of reconstructions, and the pinhole camera that replaces them.

Distortion is computed by COLMAP's own models (pycolmap), in COLMAP's pixel coordinates: the centre of the upper left
pixel is (0.5, 0.5).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from divff_nerfstudio.convert.colmap_model import MODEL_PARAMS
from divff_nerfstudio.convert.pictures import resized
from divff_nerfstudio.data.meta import WIDEST_PIXEL
from divff_nerfstudio.errors import DivffError, install_extra

_PINHOLE = ("SIMPLE_PINHOLE", "PINHOLE")
_PERSPECTIVE = {"SIMPLE_RADIAL": 3, "RADIAL": 3, "OPENCV": 4, "FULL_OPENCV": 4}
"""Models that are a pinhole where all parameters from this one on are zero."""
_WIDE = (
    "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "OPENCV_FISHEYE", "FOV", "THIN_PRISM_FISHEYE",
    "RAD_TAN_THIN_PRISM_FISHEYE", "SIMPLE_DIVISION", "DIVISION", "SIMPLE_FISHEYE", "FISHEYE", "EUCM",
)  # fmt: skip
MODELS = (*_PINHOLE, *_PERSPECTIVE, *_WIDE)
"""Camera models that can be undistorted, by COLMAP's names."""

_ONE_FOCAL = (
    "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "SIMPLE_DIVISION",
    "SIMPLE_FISHEYE",
)  # fmt: skip
_WIDEST_FRAME = 65536
_MARGIN = 0.05
"""Principal points are not nearer to the edges, as a share of the frame: shares of it, in place of pixels, would be."""

CENTRED = 0.1
"""How far, as a share of the frame's size, a principal point may lie from the middle and stay there."""
_ROUND_TRIP = 0.5
"""Pixels by which a border pixel may miss itself after undistortion and distortion; beyond, the model is not valid."""
_SHRINK = 0.98
_MIN_SHARE = 0.25
_ASPECT_TOLERANCE = 0.01
_LITTLE = 0.5
"""Share of the expected angle of view that is little; a moderate lens loses a tenth."""


class CameraError(DivffError):
    """A camera cannot be turned into a pinhole."""


def told_camera(place: Path, model: str, size: tuple[int, int], params: Sequence[float]) -> SourceCamera:
    """A camera that a file describes.

    Args:
        place: The file.
        model: COLMAP's name of the camera's model.
        size: Width and height in pixels.
        params: COLMAP's parameters of the model.

    Raises:
        CameraError: If it makes no sense, with the file.
    """
    try:
        return SourceCamera(model, *size, tuple(map(float, params)))
    except CameraError as error:
        raise CameraError(f"{place}: {error}") from None


@dataclass(frozen=True)
class SourceCamera:
    """A camera as a reconstruction describes it."""

    model: str
    """COLMAP's name of the model."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    params: tuple[float, ...]
    """COLMAP's parameters of the model."""

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise CameraError(
                f"The camera model {self.model} is not known, and its distortion cannot be dropped: use one of "
                f"{', '.join(MODELS)}."
            )
        if not all(math.isfinite(value) for value in self.params) or min(self.width, self.height) < 1:
            raise CameraError(f"A camera of model {self.model} has sizes or parameters that are no numbers: mend it.")
        if len(self.params) != MODEL_PARAMS[self.model]:
            raise CameraError(
                f"A camera of model {self.model} has {len(self.params)} parameters, {MODEL_PARAMS[self.model]} are "
                "asked for: mend it, or copy the file anew."
            )
        self._check_view()

    def _check_view(self) -> None:
        """Raises CameraError where focal length or principal point cannot be those of the frame."""
        one_focal = self.model in _ONE_FOCAL
        focals, centre = self.params[: 2 - one_focal], self.params[2 - one_focal : 4 - one_focal]
        longest = max(self.width, self.height)
        if longest > _WIDEST_FRAME or not all(longest / 50 < focal < longest * 100 for focal in focals):
            raise CameraError(
                f"A camera of model {self.model} for frames of {self.width}x{self.height} has the focal length "
                f"{min(focals):g}, which no lens has: mend it, or copy the file anew."
            )
        if max(focals) > WIDEST_PIXEL * min(focals):
            raise CameraError(
                f"A camera of model {self.model} has the focal lengths {focals[0]:g} and {focals[1]:g}, which are of "
                "one lens only if both are in pixels: mend it, or copy the file anew."
            )
        if not all(_MARGIN <= place / side <= 1 - _MARGIN for place, side in zip(centre, self.size, strict=True)):
            raise CameraError(
                f"A camera of model {self.model} for frames of {self.width}x{self.height} has its principal point at "
                f"{centre[0]:g}, {centre[1]:g}, outside of them or at their edge: write it in pixels, for frames that "
                "are not cropped, or copy the file anew."
            )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height

    @property
    def span(self) -> float:
        """Degrees that it would span horizontally if its lens were of its kind and without distortion."""
        half = self.width / 2 / self.params[0]
        return 2 * math.degrees(half if self.model in _WIDE else math.atan(half))

    @property
    def is_pinhole(self) -> bool:
        """Whether it has no distortion."""
        first = _PERSPECTIVE.get(self.model)
        return self.model in _PINHOLE or (first is not None and not any(self.params[first:]))

    @cached_property
    def intrinsics(self) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy of a camera without distortion."""
        one_focal = self.model in _ONE_FOCAL
        values = self.params[:1] + self.params[:3] if one_focal else self.params[:4]
        if len(values) != 4 or min(values[:2]) <= 0:
            raise CameraError(f"A camera of model {self.model} has the parameters {self.params}: mend it.")
        return values  # pyright: ignore[reportReturnType]

    @cached_property
    def _colmap(self) -> Any:
        try:
            import pycolmap
        except ImportError:
            raise CameraError(
                f"The camera model {self.model} is distorted, which pycolmap undoes: {install_extra('convert')}."
            ) from None
        try:
            camera = pycolmap.Camera(model=self.model, width=self.width, height=self.height, params=list(self.params))
            valid = camera.verify_params()
        except (ValueError, RuntimeError, AttributeError) as error:
            raise CameraError(f"pycolmap does not take a camera of model {self.model} ({error}): mend it.") from None
        if not valid:
            raise CameraError(
                f"A camera of model {self.model} has {len(self.params)} parameters, {camera.params_info} are asked "
                "for: mend it."
            )
        return camera

    def project(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
        """Pixels at which points of the camera's space (right, down, forward) are seen; NaN where they are not."""
        points = np.asarray(points, np.float64)
        if not self.is_pinhole:
            return np.asarray(self._colmap.img_from_cam(points))
        fx, fy, cx, cy = self.intrinsics
        with np.errstate(divide="ignore", invalid="ignore"):
            seen = points[:, :2] / np.where(points[:, 2:] > 0, points[:, 2:], np.nan)
        return seen * (fx, fy) + (cx, cy)

    def unproject(self, pixels: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """x / z and y / z of what is seen at pixels; NaN where that is not ahead or the model does not hold."""
        pixels = np.asarray(pixels, np.float64)
        if self.is_pinhole:
            fx, fy, cx, cy = self.intrinsics
            return (pixels - (cx, cy)) / (fx, fy)
        seen = np.array(self._colmap.cam_from_img(pixels), np.float64)
        back = self.project(np.concatenate((seen, np.ones((len(seen), 1))), 1))
        with np.errstate(invalid="ignore"):
            seen[~(np.abs(back - pixels).max(1) < _ROUND_TRIP)] = np.nan
        return seen

    def scaled(self, width: int, height: int) -> SourceCamera:
        """The same camera for its frames at another size.

        Raises:
            CameraError: If the size is of another shape.
        """
        if (width, height) == (self.width, self.height):
            return self
        if not _are_of_one_shape((width, height), self.size):
            remedy = "give frames of the camera's shape, not cropped ones"
            if _are_of_one_shape((height, width), self.size):
                remedy = "they are shown turned by a quarter, so reconstruct them as shown, or give those reconstructed"
            raise CameraError(
                f"The frames are {width}x{height} where the camera is {self.width}x{self.height}: {remedy}."
            )
        if self.is_pinhole:
            fx, fy, cx, cy = self.intrinsics
            x, y = width / self.width, height / self.height
            return SourceCamera("PINHOLE", width, height, (fx * x, fy * y, cx * x, cy * y))
        camera = copy.deepcopy(self._colmap)
        camera.rescale(new_width=width, new_height=height)
        return replace(self, width=width, height=height, params=tuple(float(value) for value in camera.params))


def _are_of_one_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) <= _ASPECT_TOLERANCE


@dataclass(frozen=True)
class Pinhole:
    """The camera that a scene's frames have."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    @property
    def matrix(self) -> list[list[float]]:
        """3x3 intrinsics in pixels."""
        return [[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]]

    def resized(self, width: int) -> Pinhole:
        """The same view with frames of another width."""
        height = max(1, round(self.height * width / self.width))
        x, y = width / self.width, height / self.height
        return Pinhole(width, height, self.fx * x, self.fy * y, self.cx * x, self.cy * y)

    def directions(self, supersampling: int = 1) -> Float[np.ndarray, "rows columns 3"]:
        """Directions (right, down, forward = 1) through the centres of pixels, or of parts of pixels."""
        x = ((np.arange(self.width * supersampling) + 0.5) / supersampling - self.cx) / self.fx
        y = ((np.arange(self.height * supersampling) + 0.5) / supersampling - self.cy) / self.fy
        columns, rows = np.meshgrid(x, y)
        return np.stack((columns, rows, np.ones_like(columns)), axis=-1)


def common_pinhole(cameras: Sequence[SourceCamera], width: int, widest: float = 110.0) -> Pinhole:
    """The pinhole camera whose frames all of `cameras` fill, without black borders.

    A camera without distortion whose principal point is about the middle keeps its view. Otherwise the view is the
    largest one around the optical axis, of the frames' shape, that lies within every camera's frame.

    Args:
        cameras: The cameras, not necessarily different ones.
        width: Of the frames in pixels; never more than the narrowest camera has.
        widest: Degrees that the view may span horizontally; a pinhole stretches what lies farther out.

    Raises:
        CameraError: If a camera's model does not hold over a useful part of its frame.
    """
    different = sorted(set(cameras), key=lambda camera: (camera.width, camera.height, camera.model, camera.params))
    first = different[0]
    width = min(width, *(camera.width for camera in different))
    height = max(1, round(first.height * width / first.width))
    if len(different) == 1 and first.is_pinhole:
        fx, fy, cx, cy = first.intrinsics
        offset = max(abs(cx / first.width - 0.5), abs(cy / first.height - 0.5))
        if offset <= CENTRED and 2 * math.degrees(math.atan(first.width / 2 / fx)) <= widest:
            x, y = width / first.width, height / first.height
            return Pinhole(width, height, fx * x, fy * y, cx * x, cy * y)
    limits = [_half_extents(camera) for camera in different]
    sides = [min(x, y * width / height) for x, y in limits]
    half = min(math.tan(math.radians(widest / 2)), *sides)
    start = half
    while True:
        focal = width / 2 / half
        pinhole = Pinhole(width, height, focal, focal, width / 2, height / 2)
        if all(_holds(camera, pinhole) for camera in different):
            return pinhole
        half *= _SHRINK
        if half < _MIN_SHARE * start:
            raise CameraError(
                f"The distortion of a camera of model {first.model} "
                f"({', '.join(f'{value:g}' for value in first.params)}) folds the picture over itself: calibrate it "
                "anew, or with fewer parameters."
            )


def told_of_view(cameras: Sequence[SourceCamera], pinhole: Pinhole, widest: float, path: Path) -> str | None:
    """What the user is told where `common_pinhole` keeps little of what the cameras see.

    Args:
        cameras: The cameras.
        pinhole: What takes their place.
        widest: Degrees that it might span.
        path: Where the cameras were read from.
    """
    camera, span = max(cameras, key=lambda each: each.span), 2 * math.degrees(math.atan(pinhole.width / 2 / pinhole.fx))
    if span >= _LITTLE * (expected := min(camera.span, widest)):
        return None
    return (
        f"{path}: the frames' view spans {span:.0f} degrees, where {expected:.0f} are to be expected by the focal "
        f"length of a camera of model {camera.model}: if that is not meant, calibrate its distortion anew, or leave "
        "out frames of another zoom."
    )


def _half_extents(camera: SourceCamera) -> tuple[float, float]:
    """How far, as x / z and y / z, a camera sees at least on both sides of its axis."""
    w, h = camera.width, camera.height
    along_x, along_y = np.linspace(0, w, 201), np.linspace(0, h, 201)
    edges = {
        "left": camera.unproject(np.stack((np.zeros_like(along_y), along_y), 1))[:, 0],
        "right": camera.unproject(np.stack((np.full_like(along_y, w), along_y), 1))[:, 0],
        "top": camera.unproject(np.stack((along_x, np.zeros_like(along_x)), 1))[:, 1],
        "bottom": camera.unproject(np.stack((along_x, np.full_like(along_x, h)), 1))[:, 1],
    }
    # Where an edge lies beyond 90 degrees or outside the model, it sets no limit: `_holds` shrinks what is left.
    sides = {name: np.abs(values[np.isfinite(values)]).min(initial=np.inf) for name, values in edges.items()}
    far = math.tan(math.radians(85))
    return min(sides["left"], sides["right"], far), min(sides["top"], sides["bottom"], far)


def _inside(camera: SourceCamera, pixels: Float[np.ndarray, "*rest 2"]) -> Bool[np.ndarray, "*rest"]:
    with np.errstate(invalid="ignore"):
        return ((pixels >= 0) & (pixels <= (camera.width, camera.height))).all(-1)


def _holds(camera: SourceCamera, pinhole: Pinhole) -> bool:
    """Whether a pinhole's whole frame, to its corners, is seen by a camera, without a fold."""
    x, y = np.linspace(0, pinhole.width, 65), np.linspace(0, pinhole.height, 65)
    columns, rows = np.meshgrid((x - pinhole.cx) / pinhole.fx, (y - pinhole.cy) / pinhole.fy)
    points = np.stack((columns, rows, np.ones_like(columns)), -1)
    seen = camera.project(points.reshape(-1, 3)).reshape(*points.shape[:2], 2)
    if not np.isfinite(seen).all() or not _inside(camera, seen).all():
        return False
    right, down = np.diff(seen, axis=1)[:-1], np.diff(seen, axis=0)[:, :-1]
    return bool((right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0] > 0).all())


class Undistorter:
    """Turns frames of one camera into frames of a pinhole; what it needs is computed once."""

    def __init__(self, camera: SourceCamera, pinhole: Pinhole):
        self.camera = camera
        self.pinhole = pinhole
        fx, fy, cx, cy = camera.intrinsics if camera.is_pinhole else (0.0,) * 4
        x, y = pinhole.width / camera.width, pinhole.height / camera.height
        same_view = np.allclose((fx * x, fy * y, cx * x, cy * y), (pinhole.fx, pinhole.fy, pinhole.cx, pinhole.cy))
        self._maps = None if camera.is_pinhole and same_view else self._sampling()

    def _sampling(self) -> tuple[np.ndarray, np.ndarray]:
        middle = np.array([[0, 0, 1], [1 / self.pinhole.fx, 0, 1], [0, 1 / self.pinhole.fy, 1.0]])
        centre, right, below = self.camera.project(middle)
        density = max(float(np.abs(right - centre).max()), float(np.abs(below - centre).max()))
        # Where a target pixel covers several of the source, the source is averaged first to about two of them, and
        # these are sampled twice a pixel: an average over the pixel's area, to a good approximation.
        self._supersampling = 2 if density > 1.2 else 1
        shrink = max(1.0, density / 2)
        self._size = (max(1, round(self.camera.width / shrink)), max(1, round(self.camera.height / shrink)))
        directions = self.pinhole.directions(self._supersampling)
        seen = self.camera.project(directions.reshape(-1, 3)).reshape(*directions.shape[:2], 2)
        seen = seen * (self._size[0] / self.camera.width, self._size[1] / self.camera.height) - 0.5
        return seen[..., 0].astype(np.float32), seen[..., 1].astype(np.float32)

    def __call__(self, picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "height width 3"]:
        """The frame as the pinhole would have taken it.

        Raises:
            CameraError: If it has not the camera's size.
        """
        import cv2

        if picture.shape[:2] != (self.camera.height, self.camera.width):
            raise CameraError(
                f"A frame is {picture.shape[1]}x{picture.shape[0]} where the camera is {self.camera.width}x"
                f"{self.camera.height}: bring all frames to one size."
            )
        size = (self.pinhole.width, self.pinhole.height)
        if self._maps is None:
            return resized(picture, size)
        source = resized(picture, self._size)
        sampled = cv2.remap(source, *self._maps, interpolation=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return resized(sampled, size)
