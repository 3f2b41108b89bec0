"""EPIC Fields: a COLMAP camera, world-to-camera quaternions and positions by frame name, and points, as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from divff_nerfstudio.convert.cameras import told_camera
from divff_nerfstudio.convert.colmap import world_to_cameras
from divff_nerfstudio.convert.colmap_model import ModelFault
from divff_nerfstudio.convert.names import MAX_NUMBER, ConvertError, printable, trailing_number
from divff_nerfstudio.convert.posed import PosedFrames, opengl_poses, posed_frames
from divff_nerfstudio.schema import Number, Record, Size, read_json


class EpicFieldsCamera(Record):
    """One of COLMAP's, for frames of 456x256."""

    model: str
    width: Size
    height: Size
    params: Annotated[list[Number], Field(min_length=2, max_length=16)]


class EpicFields(Record):
    """The whole file."""

    camera: EpicFieldsCamera
    images: dict[str, Annotated[list[Number], Field(min_length=7, max_length=7)]]
    """qw, qx, qy, qz, tx, ty, tz of each frame, by the name of its file."""
    points: list[Annotated[list[Number], Field(min_length=3)]] = Field(default_factory=list)
    """x, y, z, and colours, which are not used."""


def read_epic_fields(path: Path) -> tuple[PosedFrames, list[str]]:
    """The posed frames of a file, and the names that it gives them.

    Raises:
        ConvertError: If something in it is wrong.
        CameraError: If its camera makes no sense.
    """
    if path.is_dir():
        raise ConvertError(f"{path} is a folder: give the JSON file of a video in it, such as P28_101.json.")
    content = read_json(
        path,
        EpicFields,
        "an EPIC Fields file, which has camera, images (name: qw qx qy qz tx ty tz) and points",
        "copy it anew",
        ConvertError,
    )
    said = content.camera
    camera = told_camera(path, said.model, (said.width, said.height), said.params)
    names = list(content.images)
    numbers = []
    for name in names:
        number = trailing_number(name)
        if number is None or number >= MAX_NUMBER:
            raise ConvertError(f"{path} has the frame {printable(name)}, which ends in no number: rename it.")
        numbers.append(number)
    values = np.array([content.images[name] for name in names], np.float64).reshape(len(names), 7)
    try:
        poses = opengl_poses(world_to_cameras(values))
    except ModelFault as fault:
        raise ConvertError(f"{path} has a pose that is no rotation ({fault}): copy it anew.") from None
    points = np.array([point[:3] for point in content.points], np.float64).reshape(-1, 3)
    return posed_frames(numbers, poses, [camera] * len(names), points, path), names
