"""What is odd in a scene folder and hinders nothing: said once, before hours are spent on it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from divff_nerfstudio.data.frames import SceneError, open_picture
from divff_nerfstudio.data.masks import MASK_SUFFIXES, frame_finder
from divff_nerfstudio.data.scene import SceneFolder
from divff_nerfstudio.data.stray_cameras import leaps, strays
from divff_nerfstudio.data.video_files import video_number

_PARALLAX = 1e-3
"""Cameras that move less than that, as a share of the nearest near, see the room as from one place."""
_SAME_SHAPE = 0.08
"""How far the shapes of pictures of one view may be apart, as a share: sizes are whole numbers."""
_NAMES = {"object_annotations": "te.json", "affordance_annotations": "aff_annotations.pkl"}


def remarks(scene: SceneFolder) -> list[str]:
    """Sentences about a scene: held-out pictures that are trained on, odd cameras, annotations that nobody reads."""
    found = [_moving_masks(scene), *(_labels(scene, folder, file) for folder, file in _NAMES.items())]
    said = (
        _same_pictures(scene),
        _order(scene),
        _still_camera(scene),
        _stray_cameras(scene),
        *found,
        *video_remarks(scene),
    )
    return [sentence for sentence in said if sentence]


def video_remarks(scene: SceneFolder) -> list[str]:
    """Sentences about the frames of a scene's video: files that nobody reads, pictures of another shape."""
    folder = scene.video_dir
    unread = [path for path in _files(folder) if video_number(path.name) is None]
    found = [_unread(folder, unread, "frames of the video are called frame_NUMBER.jpg")]
    if len(numbers := scene.video_numbers_available):
        found.append(_other_shape(scene, scene.video_frame_path(int(numbers[0]))))
    return [sentence for sentence in found if sentence]


def _other_shape(scene: SceneFolder, path: Path | None) -> str | None:
    """Whether a frame of the video cannot show the same view as the scene's frames."""
    if path is None:
        return None
    try:
        with open_picture(path) as image:
            width, height = image.size
    except SceneError:  # told when it is read
        return None
    if abs(width * scene.height / (height * scene.width) - 1) < _SAME_SHAPE:
        return None
    return (
        f"{path} is {width}x{height}, of another shape than the frames of {scene.width}x{scene.height}: features are "
        "taken as if both showed the same view, so put pictures there that do."
    )


def _same_pictures(scene: SceneFolder) -> str | None:
    """Whether a held-out picture is, byte for byte, one that is trained on."""
    digests = [digest.tobytes() for digest in scene.digests]
    trained = {digests[index]: index for index in reversed(scene.splits["train"].tolist())}
    for split in ("val", "test"):
        for index in scene.splits[split].tolist():
            if (other := trained.get(digests[index])) is not None:
                same = scene.image_paths[other].name
                return (
                    f"{scene.image_paths[index]} of ids_{split} is the same picture as {same} of ids_train, so "
                    "that scores of it say nothing: take one of them out of meta.json."
                )
    return None


def _order(scene: SceneFolder) -> str | None:
    """Whether the pictures' numbers fall while ids, and with them times, rise."""
    falls = np.flatnonzero(np.diff(scene.video_numbers) < 0)
    if not len(falls):
        return None
    first, second = (f"{scene.frame_ids[i]} is {scene.image_paths[i].name}" for i in (falls[0], falls[0] + 1))
    return (
        f"{scene.root / 'meta.json'} has ids in another order than its pictures have numbers ({first}, {second}): "
        "times follow the ids, so see that images names the picture of each."
    )


def _still_camera(scene: SceneFolder) -> str | None:
    """Whether the cameras are so close together that nothing tells how far anything is."""
    positions = scene.camera_to_worlds[:, :, 3].astype(np.float64)
    extent = float(np.linalg.norm(np.ptp(positions, axis=0)))
    if extent >= _PARALLAX * (near := float(scene.nears.min())):
        return None
    return (
        f"{scene.root / 'meta.json'} has cameras that move by {extent:g} in all, where the nearest near is {near:g}: "
        "from one place no depth is seen, so see that poses and distances are in the same units."
    )


def _stray_cameras(scene: SceneFolder) -> str | None:
    """Whether a camera is where no other one is, or elsewhere for one frame."""
    positions = scene.camera_to_worlds[:, :, 3].astype(np.float64)
    alone = strays(positions, scene.fars.astype(np.float64))
    odd = np.union1d(alone, leaps(positions, scene.nears))
    if not len(odd):
        return None
    what = "sees nothing that another frame sees" if odd[0] in alone else "is elsewhere for this one frame"
    more = f", and {len(odd) - 1} more are such" if len(odd) > 1 else ""
    return (
        f"{scene.root / 'meta.json'} has a camera of frame {scene.frame_ids[odd[0]]} "
        f"({scene.image_paths[odd[0]].name}) that {what}{more}: see whether its pose is right, or take the frame out."
    )


def _moving_masks(scene: SceneFolder) -> str | None:
    stems = {path.stem for path in scene.image_paths}
    folder = scene.root / "annotations"
    unread = [path for path in _files(folder) if path.suffix not in MASK_SUFFIXES or path.stem not in stems]
    return _unread(folder, unread, "masks are called as the frames are, with .bmp or .png")


def _labels(scene: SceneFolder, name: str, file: str) -> str | None:
    folder = scene.root / name
    if (folder / file).exists():
        return _unread(folder, [path for path in _entries(folder) if path.name != file], f"{file} is read alone")
    frame_of, unread = frame_finder(scene), list(_files(folder))
    for inner in _entries(folder):
        if inner.is_dir():
            masks = list(_files(inner))
            unread += [
                path for path in masks if path.suffix.lower() not in MASK_SUFFIXES or frame_of(path.name) is None
            ]
    return _unread(folder, unread, f"{file} is read there, or folders of masks that are called as the frames are")


def _entries(folder: Path) -> Iterable[Path]:
    """What lies in a folder, but for what systems hide there."""
    return sorted(path for path in folder.iterdir() if path.name[0] not in "._") if folder.is_dir() else ()


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in _entries(folder) if not path.is_dir())


def _unread(folder: Path, unread: list[Path], rule: str) -> str | None:
    if not unread:
        return None
    more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
    return f"{unread[0].relative_to(folder)}{more} in {folder} is not read: {rule}."
