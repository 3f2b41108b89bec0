"""Outlines of objects: projects of the VGG Image Annotator 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Float
from pydantic import Field

from divff_nerfstudio.data.masks import LabelledMasks, frame_finder, is_of_shape, require_match, require_names
from divff_nerfstudio.data.scene import SceneError, SceneFolder
from divff_nerfstudio.schema import Number, Record, read_json

VIA_SIZE = (480, 270)
"""Width and height that the published object polygons refer to."""
_UNDEFINED = "undefined"
_OUTSIDE = 2.0
"""How far, in pixels, a corner may lie outside of the picture: annotators overshoot the edge a little."""


_FEW = 4
"""So many outlines do not all lie in a corner by chance."""
_ROUND: dict[float, int] = {3: 3, 4: 4}
"""How many numbers circles and ellipses have, by what the annotator calls their shapes."""

_Side = Annotated[int, Field(ge=1, le=65536)]


class _Attribute(Record):
    options: dict[str, str] = Field(default_factory=dict)


class _File(Record):
    fname: str


class _View(Record):
    fid_list: list[str | int] = Field(min_length=1)


class _Region(Record):
    vid: str | int
    xy: list[Number] = Field(max_length=100_000)
    av: dict[str, str | int | None] = Field(default_factory=dict)


class ViaProject(Record):
    """What is read of a project."""

    attribute: dict[str, _Attribute] = Field(min_length=1)
    file: dict[str, _File]
    view: dict[str, _View] = Field(default_factory=dict)
    metadata: dict[str, _Region]
    picture_size: tuple[_Side, _Side] | None = None
    """Width and height of the pictures that were drawn on; not of the annotator, but ours: it does not say."""


def via_masks(scene: SceneFolder, path: Path) -> LabelledMasks:
    """Masks from a project of the VGG Image Annotator 3.

    A class is an option of the project's attribute; a region without one belongs to the first class; later regions
    cover earlier ones. Frames without any region count as not annotated.

    Args:
        scene: The scene.
        path: The project. Its outlines refer to pictures of `VIA_SIZE`, or of its "picture_size".

    Raises:
        SceneError: If the project cannot be read or fits no frame of the scene, or its outlines may as well have been
            drawn on the scene's own, smaller frames.
    """
    project = read_json(path, ViaProject, "a project of the VGG Image Annotator 3", "export it anew", SceneError)
    if "1" not in project.attribute and len(project.attribute) > 1:
        raise SceneError(f"{path} has several attributes and none is called 1: keep the one with the classes.")
    key, attribute = next((a for a in project.attribute.items() if a[0] == "1"), next(iter(project.attribute.items())))
    options = {_number(path, number): label for number, label in attribute.options.items()}
    if len(options) < len(attribute.options):
        raise SceneError(f"{path} gives two names to one class: leave one of them.")
    require_names(path, [label for label in options.values() if label != _UNDEFINED])
    views = {number: str(view.fid_list[0]) for number, view in project.view.items()}
    frame_of = frame_finder(scene)
    regions = []
    for region in project.metadata.values():
        entry = project.file.get(views.get(str(region.vid), str(region.vid)))
        if entry is None:
            raise SceneError(
                f"{path} has a region of a file {str(region.vid)[:40]}, which this project of the VGG Image Annotator "
                "lacks: export it anew."
            )
        regions.append((entry.fname, region.xy, _number(path, region.av.get(key) or 0)))
    if project.picture_size is not None:
        _require_shape(path, scene, project.picture_size)
    size = project.picture_size or VIA_SIZE
    if regions and all(abs(number) <= 1 for _, outline, _ in regions for number in outline[1:]):
        raise SceneError(
            f"{path} has outlines in shares of the picture: multiply them by the {size[0]} and {size[1]} pixels that "
            "outlines refer to."
        )
    if project.picture_size is None:
        _require_known_size(path, scene, [outline for name, outline, _ in regions if frame_of(name) is not None])
    class_maps: dict[int, np.ndarray] = {}
    for name, outline, number in regions:
        index = frame_of(name)
        if index is None:
            continue
        if number not in options:
            raise SceneError(f"{path} has a region of class {number} in {name}, which it does not name: name it.")
        class_map = class_maps.setdefault(index, np.full((scene.height, scene.width), -1, np.int64))
        class_map[_inside(path, outline, size, scene)] = number
    require_match(path, scene, class_maps, (name for name, _, _ in regions))
    named = sorted(number for number, label in options.items() if label != _UNDEFINED)
    return LabelledMasks(
        names=tuple(options[number] for number in named),
        masks={index: class_map[..., None] == np.array(named) for index, class_map in sorted(class_maps.items())},
    )


def _number(path: Path, text: str | int) -> int:
    try:
        return int(text)
    except ValueError:
        raise SceneError(
            f"{path} is not a project of the VGG Image Annotator 3 (class {text[:40]!r} is no number): export it anew."  # pyright: ignore
        ) from None


def _points(path: Path, outline: list[float]) -> Float[np.ndarray, "corners 2"]:
    """Corners of a region of the annotator, x and y; round ones have many."""
    shape, *numbers = outline or (0,)
    if shape in (6, 7) and len(numbers) >= 6 and len(numbers) % 2 == 0:
        return np.array(numbers, np.float64).reshape(-1, 2)
    if shape == 2 and len(numbers) == 4:
        x, y, width, height = numbers
        return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], np.float64)
    if shape in _ROUND and len(numbers) == _ROUND[shape] and min(numbers[2:]) > 0:
        x, y, *radii = numbers
        angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
        return np.array((x, y)) + np.array((radii[0], radii[-1])) * np.stack((np.cos(angles), np.sin(angles)), -1)
    raise SceneError(f"{path} has a region of shape {shape:g} with {len(numbers)} numbers: draw it as a polygon.")


def _require_shape(path: Path, scene: SceneFolder, size: tuple[int, int]) -> None:
    """Raises SceneError where pictures that were drawn on cannot show the same view as the scene's frames."""
    if not is_of_shape(size, (scene.width, scene.height)):
        raise SceneError(
            f'{path} has "picture_size" {size[0]}x{size[1]}, which is not the shape of the frames ({scene.width}x'
            f"{scene.height}): write the width and height of the pictures that were drawn on, uncropped."
        )


def _require_known_size(path: Path, scene: SceneFolder, outlines: Sequence[list[float]]) -> None:
    """Raises SceneError where outlines fit into the scene's own frames, and these are smaller than `VIA_SIZE`."""
    own = scene.width, scene.height
    if len(outlines) < _FEW or not (own[0] < VIA_SIZE[0] and own[1] < VIA_SIZE[1]):
        return
    corners = [_points(path, outline) for outline in outlines]
    if all((points <= np.array(own) + _OUTSIDE).all() for points in corners):
        raise SceneError(
            f"{path} has outlines within {own[0]}x{own[1]} pixels alone, the size of the scene's frames, where they "
            f'are taken to refer to {VIA_SIZE[0]}x{VIA_SIZE[1]}: add "picture_size": [{own[0]}, {own[1]}] to it if '
            f'they were drawn on the frames, else "picture_size": [{VIA_SIZE[0]}, {VIA_SIZE[1]}].'
        )


def _inside(
    path: Path, outline: list[float], size: tuple[int, int], scene: SceneFolder
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the scene's pixels whose centre lies in a region of the annotator."""
    from skimage.draw import polygon

    points = _points(path, outline)
    shape, *numbers = outline
    seen = np.array([numbers[:2]]) if shape in _ROUND else points
    if (seen < -_OUTSIDE).any() or (seen > np.array(size) + _OUTSIDE).any():
        raise SceneError(
            f"{path} has a region outside of the {size[0]}x{size[1]} pixels that outlines refer to: add "
            '"picture_size": [width, height] of the pictures that they were drawn on.'
        )
    if not (np.ptp(points, axis=0) > 0).all():
        raise SceneError(
            f"{path} has a region of shape {shape:g} that encloses nothing: draw it anew, or take it away."
        )
    points = points * (scene.width / size[0], scene.height / size[1]) - 0.5
    return polygon(points[:, 1], points[:, 0], (scene.height, scene.width))
