"""What people (or a renderer) have marked in a scene: moving masks, objects, affordances, ground truth.

Where the annotations lie, and in which order they are looked for:

* moving masks: ``SCENE/annotations/IMG_0000000123.bmp``, zero where nothing moves;
* objects: ``SCENE/object_annotations/te.json``, then ``SCENE/../object_annotations/<scene>/te.json``, a project of the
  VGG Image Annotator;
* affordances: ``SCENE/affordance_annotations/aff_annotations.pkl``, then
  ``SCENE/../affordance_annotations/<scene>/aff_annotations.pkl``.

For objects and affordances, each of these folders may instead hold one folder of masks per class or query,
``<class>/IMG_0000000123.png``. All masks are returned at the resolution of the scene's frames.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from divff_nerfstudio.data.frames import decode_frame, open_picture
from divff_nerfstudio.data.scene import Scene, SceneError
from divff_nerfstudio.plain_pickle import restricted_unpickle

VIA_SIZE = (480, 270)
"""Width and height that the published object polygons refer to."""
NARRATION_PREFIX = "#C C "
"""How Ego4D's narrations, and with them the published affordance queries, name the camera wearer."""

_SPELLING = {"spagethi": "pasta"}
_MASK_SUFFIXES = (".bmp", ".png")
_UNDEFINED = "undefined"


@dataclass(frozen=True)
class LabelledMasks:
    """Masks of several classes or queries in the frames that are annotated."""

    names: tuple[str, ...]
    """What each channel shows."""
    masks: Mapping[int, Bool[np.ndarray, "height width classes"]]
    """By frame index; a frame that nobody annotated is not in it."""


def resize_nearest(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Takes the value at each new pixel's centre; the first two axes are rows and columns."""
    rows = (2 * np.arange(height) + 1) * values.shape[0] // (2 * height)
    cols = (2 * np.arange(width) + 1) * values.shape[1] // (2 * width)
    return values[rows[:, None], cols[None, :]]


def moving_mask(scene: Scene, index: int) -> Bool[np.ndarray, "height width"] | None:
    """Everything that moves in a frame: objects that are, or have been, moved, and the actor.

    Args:
        scene: The scene.
        index: Index of the frame.

    Returns:
        The mask, or None where the frame is not annotated or its mask is empty.

    Raises:
        SceneError: If the mask is damaged.
    """
    path = _mask_file(scene.root / "annotations", scene.image_paths[index].stem)
    if path is None:
        return None
    mask = _read_mask(path, scene)
    return mask if mask.any() else None


def object_annotations(scene: Scene, path: Path | str | None = None) -> LabelledMasks | None:
    """Objects by their outlines.

    Args:
        scene: The scene.
        path: A VGG Image Annotator project or a folder of masks; None looks in the places named above.

    Returns:
        One channel per class (without 'undefined'), or None where there are no annotations.

    Raises:
        SceneError: If they are damaged or belong to another scene.
    """
    return _labelled(scene, path, "object_annotations", "te.json", via_masks)


def affordance_annotations(scene: Scene, path: Path | str | None = None) -> LabelledMasks | None:
    """Where actions can be done.

    Args:
        scene: The scene.
        path: A pickle of the published format or a folder of masks; None looks in the places named above.

    Returns:
        One channel per query, named without the prefix '#C C ', or None where there are no annotations.

    Raises:
        SceneError: If they are damaged or belong to another scene.
        UnsafePickleError: If the pickle holds more than plain data.
    """
    return _labelled(scene, path, "affordance_annotations", "aff_annotations.pkl", affordance_masks)


def check_annotations(scene: Scene) -> None:
    """Reads everything that is annotated, so that a fault is found before hours of training.

    Raises:
        SceneError: If anything is damaged or belongs to another scene.
    """
    for index in range(len(scene)):
        moving_mask(scene, index)
    object_annotations(scene)
    affordance_annotations(scene)


def clean_query(text: str) -> str:
    """An affordance query as it is asked: without '#C C ', and with a published misspelling put right."""
    text = text.strip().removeprefix(NARRATION_PREFIX.strip()).strip()
    return re.sub("|".join(_SPELLING), lambda match: _SPELLING[match[0]], text)


def via_masks(scene: Scene, path: Path, size: tuple[int, int] = VIA_SIZE) -> LabelledMasks:
    """Masks from a project of the VGG Image Annotator 3.

    A class is an option of the project's attribute; a region without one belongs to the first class; later regions
    cover earlier ones. Frames without any region count as not annotated.

    Args:
        scene: The scene.
        path: The project.
        size: Width and height of the picture that the outlines were drawn on.

    Raises:
        SceneError: If the project cannot be read or fits no frame of the scene.
    """
    try:
        project = json.loads(path.read_text(encoding="utf-8"))
        key, attribute = _via_attribute(project["attribute"])
        options = {int(number): str(label) for number, label in attribute["options"].items()}
        files = {number: entry["fname"] for number, entry in project["file"].items()}
        views = {number: str(view["fid_list"][0]) for number, view in project.get("view", {}).items()}
        regions = [
            (
                files[views.get(str(region["vid"]), str(region["vid"]))],
                [float(number) for number in region["xy"]],
                int(region["av"].get(key) or 0),
            )
            for region in project["metadata"].values()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SceneError(
            f"{path} is no project of the VGG Image Annotator 3 ({type(error).__name__}: {error}): export it anew."
        ) from None
    frame_of = _frame_finder(scene)
    class_maps: dict[int, np.ndarray] = {}
    for name, outline, number in regions:
        index = frame_of(name)
        if index is None:
            continue
        if number not in options:
            raise SceneError(f"{path} has a region of class {number} in {name}, which it does not name: name it.")
        class_map = class_maps.setdefault(index, np.full((scene.height, scene.width), -1, np.int64))
        class_map[_inside(path, outline, size, scene)] = number
    _require_match(path, scene, class_maps, (name for name, _, _ in regions))
    named = sorted(number for number, label in options.items() if label != _UNDEFINED)
    return LabelledMasks(
        names=tuple(options[number] for number in named),
        masks={index: class_map[..., None] == np.array(named) for index, class_map in sorted(class_maps.items())},
    )


def affordance_masks(scene: Scene, path: Path) -> LabelledMasks:
    """Masks from a published affordance file: a pickle of 'text_queries' and 'images'.

    Args:
        scene: The scene.
        path: The pickle.

    Raises:
        SceneError: If it is not of the published format or fits no frame of the scene.
        UnsafePickleError: If it holds more than plain data.
    """
    content = restricted_unpickle(path)
    try:
        queries = tuple(clean_query(query) for query in content["text_queries"])
        images = dict(content["images"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise SceneError(f"{path} lacks 'text_queries' or 'images': fetch the published affordance file.") from None
    frame_of = _frame_finder(scene)
    masks = {}
    for name, mask in images.items():
        if not isinstance(mask, np.ndarray) or mask.ndim != 3 or mask.shape[2] != len(queries) or 0 in mask.shape[:2]:
            raise SceneError(f"{path} has no mask per query (height, width, {len(queries)}) for {name}: write it anew.")
        index = frame_of(name)
        if index is not None:
            masks[index] = resize_nearest(mask != 0, scene.height, scene.width)
    _require_match(path, scene, masks, images)
    return LabelledMasks(names=queries, masks=dict(sorted(masks.items())))


def folder_masks(scene: Scene, path: Path) -> LabelledMasks:
    """Masks from a folder with one folder per class; a frame is annotated if any class has a mask of it.

    Args:
        scene: The scene.
        path: The folder; masks are called as the frames are, and zero means outside.

    Raises:
        SceneError: If a mask is damaged or none fits a frame of the scene.
    """
    classes = sorted(folder for folder in path.iterdir() if folder.is_dir())
    files = [(c, file) for c, folder in enumerate(classes) for file in sorted(folder.iterdir())]
    files = [(c, file) for c, file in files if file.suffix.lower() in _MASK_SUFFIXES]
    frame_of = _frame_finder(scene)
    masks: dict[int, np.ndarray] = {}
    for channel, file in files:
        index = frame_of(file.name)
        if index is not None:
            mask = masks.setdefault(index, np.zeros((scene.height, scene.width, len(classes)), bool))
            mask[:, :, channel] = _read_mask(file, scene)
    _require_match(path, scene, masks, (file.name for _, file in files))
    return LabelledMasks(names=tuple(folder.name for folder in classes), masks=dict(sorted(masks.items())))


def _labelled(
    scene: Scene,
    path: Path | str | None,
    folder: str,
    file: str,
    read: Callable[[Scene, Path], LabelledMasks],
) -> LabelledMasks | None:
    if path is not None:
        chosen = Path(path)
        if chosen.is_dir():
            return folder_masks(scene, chosen)
        if not chosen.is_file():
            raise SceneError(f"{chosen} is missing: give {file} or a folder of masks.")
        return read(scene, chosen)
    for place in (scene.root / folder, scene.root.resolve().parent / folder / scene.name):
        if (place / file).is_file():
            return read(scene, place / file)
        if place.is_dir() and any(_mask_folders(place)):
            return folder_masks(scene, place)
    return None


def _mask_folders(place: Path) -> Iterable[Path]:
    """Folders directly below `place` that hold masks."""
    return (
        folder
        for folder in place.iterdir()
        if folder.is_dir() and any(file.suffix.lower() in _MASK_SUFFIXES for file in folder.iterdir())
    )


def _mask_file(folder: Path, stem: str) -> Path | None:
    return next((path for suffix in _MASK_SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()), None)


def _read_mask(path: Path, scene: Scene) -> np.ndarray:
    with open_picture(path) as image:
        values = np.asarray(image)
    if values.ndim == 3:
        values = values[..., :3].any(-1)
    return resize_nearest(values != 0, scene.height, scene.width)


def _frame_finder(scene: Scene) -> Callable[[str], int | None]:
    """Finds the frame that an annotation's file name means: by its stem, else by the number at its end."""
    by_stem = {path.stem: index for index, path in enumerate(scene.image_paths)}
    by_number = {int(number): index for index, number in enumerate(scene.video_numbers)}

    def find(name: str) -> int | None:
        stem = Path(str(name)).stem
        number = re.search(r"(\d+)$", stem)
        return by_stem.get(stem, by_number.get(int(number[1])) if number else None)

    return find


def _require_match(path: Path, scene: Scene, found: Mapping[int, Any], names: Iterable[str]) -> None:
    first = next(iter(names), None)
    if not found:
        what = "annotates nothing" if first is None else f"annotates {first}, but no frame of {scene.root}"
        raise SceneError(f"{path} {what}: take it away, or put the file of this scene there.")


def _via_attribute(attributes: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if "1" in attributes:
        return "1", attributes["1"]
    ((key, attribute),) = attributes.items()
    return key, attribute


def _inside(path: Path, outline: list[float], size: tuple[int, int], scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the scene's pixels whose centre lies in a region of the annotator."""
    from skimage.draw import polygon

    shape, *numbers = outline or (0,)
    if not np.isfinite(numbers).all():
        raise SceneError(f"{path} has a region whose corners are no finite numbers: draw it anew.")
    if shape in (6, 7) and len(numbers) >= 6 and len(numbers) % 2 == 0:
        points = np.array(numbers, np.float64).reshape(-1, 2)
    elif shape == 2 and len(numbers) == 4:
        x, y, width, height = numbers
        points = np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], np.float64)
    elif (shape == 3 and len(numbers) == 3) or (shape == 4 and len(numbers) == 4):
        x, y, *radii = numbers
        angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
        points = np.array((x, y)) + np.array((radii[0], radii[-1])) * np.stack((np.cos(angles), np.sin(angles)), -1)
    else:
        raise SceneError(f"{path} has a region of shape {shape:g} with {len(numbers)} numbers: draw it as a polygon.")
    points = points * (scene.width / size[0], scene.height / size[1]) - 0.5
    return polygon(points[:, 1], points[:, 0], (scene.height, scene.width))


class GroundTruth:
    """What only the renderer of a scene knows, from ``SCENE/ground_truth``.

    Args:
        scene: The scene.
    """

    def __init__(self, scene: Scene):
        self.scene = scene
        self.root = scene.root / "ground_truth"

    @cached_property
    def instance_table(self) -> list[dict[str, Any]]:
        """Entries of ``instances.json``: id, name, description, layer, movable, motion, ..."""
        path = self.root / "instances.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))["instances"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SceneError(f"{path} is missing or damaged ({error}): write the ground truth anew.") from None

    def layers(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """0 static, 1 object that moves or has moved, 2 actor."""
        return self._read(self._frame(index), "layer")

    def layers_ever(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """As `layers`, where an object counts also before it is first moved."""
        return self._read(self._frame(index), "layer_ever")

    def instances(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """Id in `instance_table` of what each pixel shows."""
        return self._read(self._frame(index), "instance")

    def depth(self, index: int) -> Float32[np.ndarray, "height width"]:
        """Distance along the optical axis (not along the ray), scene units."""
        return self._read(self._frame(index), "depth")

    def clean_room(self, index: int) -> UInt8[np.ndarray, "height width 3"] | None:
        """The frame without actor and movable objects, or None where it was not rendered."""
        path = self._background(index).with_suffix(".png")
        return decode_frame(path) if path.is_file() else None

    def clean_room_depth(self, index: int) -> Float32[np.ndarray, "height width"] | None:
        """Depth, as `depth`, of the frame without actor and movable objects, or None where it was not rendered."""
        path = self._background(index).with_suffix(".npz")
        return self._read(path, "depth") if path.is_file() else None

    def _frame(self, index: int) -> Path:
        return self.root / "frames" / f"{self.scene.image_paths[index].stem}.npz"

    def _background(self, index: int) -> Path:
        return self.root / "background" / self.scene.image_paths[index].name

    def _read(self, path: Path, key: str) -> np.ndarray:
        try:
            with np.load(path) as content:
                values = content[key]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise SceneError(f"{path} is missing or damaged ({error}): write the ground truth anew.") from None
        if values.shape != (self.scene.height, self.scene.width):
            raise SceneError(f"{path} has a size that is not the frames': write the ground truth anew.")
        return values


def ground_truth(scene: Scene) -> GroundTruth | None:
    """The scene's ground truth, or None for a scene that was filmed."""
    return GroundTruth(scene) if (scene.root / "ground_truth" / "frames").is_dir() else None
