"""nerfstudio's ``transforms.json``: what it may hold."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from divff_nerfstudio.convert.cameras import SourceCamera
from divff_nerfstudio.schema import Number, Positive, Record

_MODELS = {
    "": "OPENCV", "PERSPECTIVE": "OPENCV", "SIMPLE_PINHOLE": "OPENCV", "PINHOLE": "OPENCV", "SIMPLE_RADIAL": "OPENCV",
    "RADIAL": "OPENCV", "OPENCV": "OPENCV", "FULL_OPENCV": "FULL_OPENCV", "OPENCV_FISHEYE": "OPENCV_FISHEYE",
    "FISHEYE": "OPENCV_FISHEYE",
}  # fmt: skip
"""nerfstudio's camera models, all with the distortion keys k1 to k4, p1, p2, by COLMAP's names."""
_RIGID_TOLERANCE = 1e-3
_ONE_VIEW = 0.05
"""How far a focal length and an angle of view may be apart, as a share of it."""

_LISTED = ("k1", "k2", "k3", "k4", "p1", "p2")
"""What stands in distortion_params."""
_TOGETHER = (
    *(("fl_x", "fl_y"), ("fl_y", "fl_x"), ("w", "h"), ("h", "w"), ("cx", "cy"), ("cy", "cx")),
    *(("w", "fl_x"), ("h", "fl_x"), ("w", "cx"), ("h", "cy")),
)
"""Who says the first for a frame cannot leave the second to the whole file."""

_Pixels = Annotated[float, Field(ge=1, le=65536)]


def _angular(value: float) -> float:
    if not 0 < value < math.pi:
        raise ValueError("should be an angle in radians, above 0 and below pi")
    return value


_Angle = Annotated[float, AfterValidator(_angular)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
_Row = Annotated[list[Number], Field(min_length=4, max_length=4)]
Matrix = Annotated[list[_Row], Field(min_length=3, max_length=4)]
"""3x4, or 4x4 with the last row 0 0 0 1."""


class Intrinsics(Record):
    """What the file says for all frames, and a frame for itself."""

    camera_model: str | None = None
    is_fisheye: bool | None = None
    w: _Pixels | None = None
    h: _Pixels | None = None
    fl_x: Positive | None = None
    fl_y: Positive | None = None
    camera_angle_x: _Angle | None = None
    camera_angle_y: _Angle | None = None
    cx: Number | None = None
    cy: Number | None = None
    k1: Number | None = None
    k2: Number | None = None
    k3: Number | None = None
    k4: Number | None = None
    k5: Number | None = None
    k6: Number | None = None
    p1: Number | None = None
    p2: Number | None = None
    distortion_params: Annotated[list[Number], Field(min_length=6, max_length=6)] | None = None
    """k1, k2, k3, k4, p1, p2 in one list, which nerfstudio takes, too."""

    @model_validator(mode="after")
    def _say_distortion_once(self) -> Intrinsics:
        listed = self.distortion_params
        single = [getattr(self, name) for name in _LISTED]
        if listed is not None and any(value not in (None, known) for value, known in zip(single, listed, strict=True)):
            raise ValueError("distortion_params says another distortion than k1, k2, k3, k4, p1, p2; keep one")
        return self

    @field_validator("w", "h")
    @classmethod
    def _is_whole(cls, value: float | None) -> float | None:
        if value is not None and value != round(value):
            raise ValueError("should be a whole number of pixels")
        return value


class Frame(Intrinsics):
    """A picture and its pose."""

    file_path: Text
    transform_matrix: Matrix
    """Camera to world: right, up, back, position."""
    time: Number | None = None
    mask_path: str | None = None
    depth_file_path: str | None = None

    @field_validator("transform_matrix")
    @classmethod
    def _is_pose(cls, rows: list[list[float]]) -> list[list[float]]:
        if len(rows) == 4 and any(abs(a - b) > 1e-6 for a, b in zip(rows[3], (0, 0, 0, 1), strict=True)):
            raise ValueError("should have the last row 0 0 0 1")
        columns = list(zip(*(row[:3] for row in rows[:3]), strict=True))
        products = [
            sum(a * b for a, b in zip(columns[i], columns[j], strict=True)) - (i == j)
            for i in range(3)
            for j in range(3)
        ]
        (a, b, c), (d, e, f), (g, h, i) = columns
        turns = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g) > 0
        if not turns or max(map(abs, products)) > _RIGID_TOLERANCE:
            raise ValueError("should be a rotation and a position, without scale or mirroring")
        return rows


class Transforms(Intrinsics):
    """The whole file. Poses are in the space of its points, so that ``applied_transform`` is not needed."""

    frames: Annotated[list[Frame], Field(min_length=1)]
    train_filenames: list[Text] | None = None
    val_filenames: list[Text] | None = None
    test_filenames: list[Text] | None = None
    ply_file_path: Text | None = None
    applied_transform: Matrix | None = None
    applied_scale: Positive | None = None
    aabb_scale: Positive | None = None
    fisheye_crop_radius: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _has_frames(cls, content: Any) -> Any:
        if isinstance(content, dict) and content.get("frames") == []:
            raise ValueError("it has no frames")
        return content


def camera_of(whole: Transforms, frame: Frame, size: tuple[int, int] | None) -> SourceCamera:
    """The camera of a frame: its own keys before those of the whole file.

    Args:
        whole: The file.
        frame: One of its frames.
        size: Width and height of the picture, where no sizes are written.

    Raises:
        ValueError: With what is wrong with it, in words.
    """
    _require_whole(whole, frame)
    values: dict[str, Any] = dict.fromkeys(Intrinsics.model_fields) | _said(whole) | _said(frame)
    model = _model(values["camera_model"], values["is_fisheye"])
    width, height = values["w"] or (size or (0, 0))[0], values["h"] or (size or (0, 0))[1]
    if model != "OPENCV_FISHEYE":
        for said in (frame, whole) if frame.fl_x is None and frame.fl_y is None else (frame,):
            _require_one_view(said, width, height)
    fx, fy = values["fl_x"], values["fl_y"]
    if fx is None and values["camera_angle_x"] is not None:
        fx = width / 2 / math.tan(values["camera_angle_x"] / 2)
    if fy is None and values["fl_x"] is None and values["camera_angle_y"] is not None:
        fy = height / 2 / math.tan(values["camera_angle_y"] / 2)
    if fx is None:
        raise ValueError("it has neither fl_x nor camera_angle_x; add the focal length")
    fy = fx if fy is None else fy
    cx, cy = (values[key] if values[key] is not None else side / 2 for key, side in (("cx", width), ("cy", height)))
    k1, k2, k3, k4, k5, k6, p1, p2 = (
        float(values[key] or 0) for key in ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
    )
    pinhole, size = (float(fx), float(fy), float(cx), float(cy)), (round(width), round(height))
    if model == "OPENCV_FISHEYE":
        if p1 or p2 or k5 or k6:
            raise ValueError(
                "it has a fisheye camera with tangential distortion (p1, p2) or k5, k6, which OPENCV_FISHEYE does not "
                "have; calibrate it without"
            )
        return SourceCamera(model, *size, (*pinhole, k1, k2, k3, k4))
    if model == "FULL_OPENCV":
        return SourceCamera(model, *size, (*pinhole, k1, k2, p1, p2, k3, k4, k5, k6))
    if k4 or k5 or k6:
        raise ValueError(
            "it has a perspective camera with k4, k5 or k6, which have different meanings in nerfstudio and OpenCV; "
            "calibrate it with k1, k2, k3, p1, p2, or name the camera_model FULL_OPENCV"
        )
    if k3:
        return SourceCamera("FULL_OPENCV", *size, (*pinhole, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0))
    return SourceCamera("OPENCV", *size, (*pinhole, k1, k2, p1, p2))


def _said(by: Intrinsics) -> dict[str, Any]:
    """What the file or a frame says of its camera, by name."""
    values = {name: value for name in Intrinsics.model_fields if (value := getattr(by, name)) is not None}
    return values | dict(zip(_LISTED, values.pop("distortion_params", ()), strict=False))


def _require_whole(whole: Transforms, frame: Frame) -> None:
    """Raises ValueError where a frame says half of what the whole file says otherwise."""
    for mine, other in _TOGETHER:
        differs = getattr(frame, mine) is not None and getattr(frame, mine) != getattr(whole, mine)
        angled = other == "fl_x" and (frame.camera_angle_x is not None or whole.fl_x is None)
        if differs and getattr(frame, other) is None and getattr(whole, other) is not None and not angled:
            raise ValueError(f"it says {mine} for itself and {other} for all frames; say both in one place")


def _require_one_view(said: Intrinsics, width: float, height: float) -> None:
    """Raises ValueError where a focal length and an angle of view are those of two cameras."""
    for axis, side in (("x", width), ("y", height)):
        focal, angle = getattr(said, f"fl_{axis}"), getattr(said, f"camera_angle_{axis}")
        if focal is None or angle is None:
            continue
        expected = side / 2 / math.tan(angle / 2)
        if abs(expected / focal - 1) > _ONE_VIEW:
            raise ValueError(
                f"it says fl_{axis} {focal:g} and camera_angle_{axis} {angle:g}, which makes {expected:.1f} of "
                f"{side:g} pixels; keep the right one"
            )


def _model(name: str | None, is_fisheye: bool | None) -> str:
    """COLMAP's name of the camera model."""
    known = (name or "").upper()
    if known not in _MODELS:
        raise ValueError(
            f"it has the camera model {name}, which is not known, and its distortion cannot be dropped; use one of "
            f"{', '.join(key for key in _MODELS if key)}"
        )
    if not known:
        return "OPENCV_FISHEYE" if is_fisheye else "OPENCV"
    if is_fisheye is not None and is_fisheye != (_MODELS[known] == "OPENCV_FISHEYE"):
        raise ValueError(f"it has the camera model {name} and says is_fisheye: {str(is_fisheye).lower()}; keep one")
    return _MODELS[known]
