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

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from divff_nerfstudio.data.ground_truth import GroundTruth, ground_truth
from divff_nerfstudio.data.masks import (
    MASK_SUFFIXES,
    LabelledMasks,
    fitted_mask,
    frame_finder,
    read_mask,
    require_match,
    require_names,
    resize_nearest,
)
from divff_nerfstudio.data.scene import SceneError, SceneFolder
from divff_nerfstudio.data.via import VIA_SIZE, via_masks
from divff_nerfstudio.plain_pickle import restricted_unpickle

__all__ = [
    "NARRATION_PREFIX", "VIA_SIZE", "GroundTruth", "LabelledMasks", "affordance_annotations", "affordance_masks",
    "check_annotations", "clean_query", "folder_masks", "ground_truth", "moving_mask", "object_annotations",
    "resize_nearest", "via_masks",
]  # fmt: skip

NARRATION_PREFIX = "#C C "
"""How Ego4D's narrations, and with them the published affordance queries, name the camera wearer."""

_SPELLING = {"spagethi": "pasta"}


def moving_mask(scene: SceneFolder, index: int) -> Bool[np.ndarray, "height width"] | None:
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
    mask = read_mask(path, scene)
    return mask if mask.any() else None


def object_annotations(scene: SceneFolder, path: Path | str | None = None) -> LabelledMasks | None:
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


def affordance_annotations(scene: SceneFolder, path: Path | str | None = None) -> LabelledMasks | None:
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


def check_annotations(scene: SceneFolder) -> None:
    """Reads everything that is annotated, so that a fault is found before hours of training.

    Raises:
        SceneError: If anything is damaged or belongs to another scene.
    """
    folder = scene.root / "annotations"
    stems = {path.stem.lower() for path in folder.iterdir()} if folder.is_dir() else set()  # asked once, not by frame
    for index, path in enumerate(scene.image_paths):
        if path.stem.lower() in stems:
            moving_mask(scene, index)
    object_annotations(scene)
    affordance_annotations(scene)


def clean_query(text: str) -> str:
    """An affordance query as it is asked: without '#C C ', and with a published misspelling put right."""
    text = text.strip().removeprefix(NARRATION_PREFIX.strip()).strip()
    return re.sub("|".join(_SPELLING), lambda match: _SPELLING[match[0]], text)


def affordance_masks(scene: SceneFolder, path: Path) -> LabelledMasks:
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
    require_names(path, queries)
    frame_of = frame_finder(scene)
    masks: dict[int, np.ndarray] = {}
    for name, mask in images.items():
        numbers = isinstance(mask, np.ndarray) and mask.dtype.kind in "biuf"
        if not numbers or mask.ndim != 3 or mask.shape[2] != len(queries) or 0 in mask.shape[:2]:
            raise SceneError(
                f"{path} has no mask per query (height, width, {len(queries)}) for {str(name)[:80]}: write it anew."
            )
        fitted = fitted_mask(f"{path}: {str(name)[:80]}", mask, scene)
        _put(path, masks, frame_of(name), fitted)
    require_match(path, scene, masks, images)
    return LabelledMasks(names=queries, masks=dict(sorted(masks.items())))


def folder_masks(scene: SceneFolder, path: Path) -> LabelledMasks:
    """Masks from a folder with one folder per class; a frame is annotated if any class has a mask of it.

    Args:
        scene: The scene.
        path: The folder; masks are called as the frames are, and zero means outside.

    Raises:
        SceneError: If a mask is damaged or none fits a frame of the scene.
    """
    classes = sorted(folder for folder in path.iterdir() if folder.is_dir())
    require_names(path, [folder.name for folder in classes])
    files = [(c, file) for c, folder in enumerate(classes) for file in sorted(folder.iterdir())]
    files = [(c, file) for c, file in files if file.suffix.lower() in MASK_SUFFIXES]
    frame_of = frame_finder(scene)
    masks: dict[int, np.ndarray] = {}
    seen: set[tuple[int, int]] = set()
    for channel, file in files:
        index = frame_of(file.name)
        if index is not None and (channel, index) in seen:
            raise SceneError(f"{file} is a second mask of one frame and class: take one away.")
        if index is not None:
            mask = masks.setdefault(index, np.zeros((scene.height, scene.width, len(classes)), bool))
            mask[:, :, channel] = read_mask(file, scene)
            seen.add((channel, index))
    require_match(path, scene, masks, (file.name for _, file in files))
    return LabelledMasks(names=tuple(folder.name for folder in classes), masks=dict(sorted(masks.items())))


def _labelled(
    scene: SceneFolder,
    path: Path | str | None,
    folder: str,
    file: str,
    read: Callable[[SceneFolder, Path], LabelledMasks],
) -> LabelledMasks | None:
    if path is not None:
        chosen = Path(path)
        if chosen.is_dir():
            return folder_masks(scene, chosen)
        if not chosen.is_file():
            raise SceneError(f"{chosen} is missing: give {file} or a folder of masks.")
        return read(scene, chosen)
    for place in (scene.root / folder, scene.root.resolve().parent / folder / scene.name):
        if (place / file).exists():
            return read(scene, place / file)
        if place.is_dir() and any(_mask_folders(place)):
            return folder_masks(scene, place)
    return None


def _mask_folders(place: Path) -> Iterable[Path]:
    """Folders directly below `place` that hold masks."""
    return (
        folder
        for folder in place.iterdir()
        if folder.is_dir() and any(file.suffix.lower() in MASK_SUFFIXES for file in folder.iterdir())
    )


def _mask_file(folder: Path, stem: str) -> Path | None:
    found = [path for suffix in MASK_SUFFIXES if (path := folder / f"{stem}{suffix}").exists()]
    if len(found) > 1:
        raise SceneError(f"{found[0]} and {found[1].name} are two masks of one frame: take one away.")
    return found[0] if found else None


def _put(path: Path, masks: dict[int, np.ndarray], index: int | None, mask: np.ndarray) -> None:
    if index in masks:
        raise SceneError(f"{path} annotates a frame under two names: take one away.")
    if index is not None:
        masks[index] = mask
