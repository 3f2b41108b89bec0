"""For every training pixel the chance that it shows an object that moves at some time, and the camera wearer."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.data.frames import cache_folder
from divff_nerfstudio.data.scene import Scene
from divff_nerfstudio.evidence.sightings import LEAST_FRAMES, Views, settle_tolerance, sightings
from divff_nerfstudio.evidence.votes import vote
from divff_nerfstudio.features.segments import ColourSegmenterConfig
from divff_nerfstudio.features.store import NO_FEATURE, FeatureStore

Labels = UInt8[np.ndarray, "frames height width 2"]
"""Chances of dynamic layer and actor, in 1/255, of the training frames in their order."""

_VERSION = 1
_WORKING_PIXELS = 7300
"""Frames are looked at in about this size, a fourth of EPIC-Diff's: what is coarser than a sweep's planes is enough."""
_STRIDE = 2
_OTHERS = 72
"""Frames in which a place is looked for, at most, spread over the video."""
_KEPT, _KEPT_WIDTH = 0.85, 0.05
"""Share of the frames in which the room looks the same, nearly, and how sharp that bound is."""
_RESTS, _RESTS_WIDTH = 0.29, 0.06
"""Evidence of resting that tells objects from hands, per frame of the video, and how sharp that bound is."""
_SURE, _SURE_WIDTH = 0.5, 0.1
_OBJECT, _OBJECT_WIDTH = 0.33, 0.06
"""From which share of resting on something is an object: it is also carried, but hands hardly ever rest."""
_FEATURE_SPREAD = 0.17
"""Distance of unit features of one thing (a cosine of 0.985)."""
_COLOUR_SPREAD = 4.0
"""Distance of mean colours of one thing, CIELAB."""


def labels(
    scene: Scene, indices: Int[np.ndarray, "frames"], store: FeatureStore | None, device: torch.device | str = "cpu"
) -> Labels | None:
    """The labels of a scene's training frames, computed once and kept in the scene's cache.

    Args:
        scene: The scene.
        indices: Its training frames. No other frame is looked at.
        store: Features of segments, which then vote; None: regions of one colour vote.
        device: Where to compute.

    Returns:
        Labels; None for a video so short that places are not seen often enough.
    """
    if len(indices) <= LEAST_FRAMES:
        return None
    shape = (len(indices), scene.height, scene.width, 2)
    path = cache_folder(scene.root) / f"evidence-{_fingerprint(scene, indices, store)}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        kept = np.load(path, allow_pickle=False)
        if kept.shape == shape and kept.dtype == np.uint8:
            return kept
    found = _labels(scene, indices, store, device)
    with contextlib.suppress(OSError), atomic_path(path) as temporary:  # what cannot be kept is computed again
        np.save(temporary, found)
    return found


def _labels(
    scene: Scene, indices: Int[np.ndarray, "frames"], store: FeatureStore | None, device: torch.device | str
) -> Labels:
    pictures = np.asarray(scene.frames)[indices]
    kept, rests = _seen(scene, indices, pictures, device)
    moves = _logistic((_KEPT - kept) / _KEPT_WIDTH)
    resting = _logistic((rests - _RESTS) / _RESTS_WIDTH)
    segments, looks, spread = _of_colours(pictures) if store is None else _of_features(scene, indices, store)
    moves, resting = vote(segments, looks, spread, moves, resting)
    moves = _logistic((moves - _SURE) / _SURE_WIDTH)
    resting = _logistic((resting - _OBJECT) / _OBJECT_WIDTH)
    return np.round(255 * np.stack((moves * resting, moves * (1 - resting)), -1)).astype(np.uint8)


def _seen(
    scene: Scene, indices: np.ndarray, pictures: np.ndarray, device: torch.device | str
) -> tuple[Float[np.ndarray, "frames height width"], Float[np.ndarray, "frames height width"]]:
    """`sightings` of all training frames, at the frames' own size."""
    factor = max(1, round((scene.height * scene.width / _WORKING_PIXELS) ** 0.5))
    size = max(1, scene.height // factor), max(1, scene.width // factor)
    small = torch.cat(
        [
            F.interpolate(torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255, size=size, mode="area")
            for part in np.array_split(pictures, max(1, len(pictures) // 16))
        ]
    ).permute(0, 2, 3, 1)
    across, down = size[1] / scene.width, size[0] / scene.height
    fx, cx, fy, cy = scene.intrinsics[[0, 0, 1, 1], [0, 2, 1, 2]].tolist()
    views = Views(
        small.to(device),
        torch.from_numpy(scene.camera_to_worlds[indices]).to(device),
        (fx * across, fy * down, cx * across, cy * down),
        float(np.median(scene.nears[indices])),
        float(np.median(scene.fars[indices])),
    )
    others = np.unique(np.linspace(0, len(indices) - 1, min(_OTHERS, len(indices))).round().astype(int)).tolist()
    tolerance = settle_tolerance(views, others, _STRIDE)
    parts = [torch.stack(sightings(views, frame, others, _STRIDE, tolerance)) for frame in range(len(indices))]
    full = F.interpolate(torch.stack(parts), size=(scene.height, scene.width), mode="nearest").cpu().numpy()
    return full[:, 0], full[:, 1]


def _of_features(
    scene: Scene, indices: np.ndarray, store: FeatureStore
) -> tuple[Int[np.ndarray, "frames height width"], Float[np.ndarray, "segments dim"], float]:
    """Segments and their features, of unit length."""
    rows, columns = ((np.arange(side) + 0.5) / side for side in (scene.height, scene.width))
    segments, looks, count = [], [], 0
    for frame in indices:
        index, table = store.frame_features(int(frame))
        local = index[(rows * index.shape[0]).astype(int)[:, None], (columns * index.shape[1]).astype(int)]
        segments.append(np.where(local == NO_FEATURE, -1, local.astype(np.int64) + count))
        looks.append(table / np.maximum(np.linalg.norm(table, axis=-1, keepdims=True), 1e-6))
        count += len(table)
    return np.stack(segments), np.concatenate(looks), _FEATURE_SPREAD


def _of_colours(
    pictures: UInt8[np.ndarray, "frames height width 3"],
) -> tuple[Int[np.ndarray, "frames height width"], Float[np.ndarray, "segments 3"], float]:
    """Regions of one colour and their mean colours."""
    from skimage.color import rgb2lab

    segmenter = ColourSegmenterConfig().setup()
    segments, looks, count = [], [], 0
    for picture in pictures:
        found = segmenter.segment(picture)
        number, colours = int(found.max()) + 1, rgb2lab(picture).reshape(-1, 3)
        sums = [np.bincount(found.ravel(), colours[:, channel], number) for channel in range(3)]
        looks.append(np.stack(sums, -1) / np.bincount(found.ravel(), minlength=number)[:, None])
        segments.append(found + count)
        count += number
    return np.stack(segments), np.concatenate(looks), _COLOUR_SPREAD


def _logistic(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -50, 50)))


def _fingerprint(scene: Scene, indices: np.ndarray, store: FeatureStore | None) -> str:
    """Changes with anything that labels are made from."""
    digest = hashlib.sha256(f"evidence {_VERSION}".encode())
    for part in (indices, scene.camera_to_worlds, scene.nears, scene.fars, scene.intrinsics):
        digest.update(np.ascontiguousarray(part).tobytes())
    for frame in indices:
        digest.update(np.ascontiguousarray(scene.frames[frame]).tobytes())
    if store is not None:
        digest.update(json.dumps(asdict(store.header), sort_keys=True).encode())
        digest.update(np.ascontiguousarray(store.table).tobytes())
    return digest.hexdigest()[:20]
