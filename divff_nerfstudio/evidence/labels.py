"""For every training pixel the chance that it shows an object that moves at some time, and the camera wearer; and of
objects where they are, and how long they rest there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from nerfstudio.utils.rich_utils import get_progress
from torch import Tensor

from divff_nerfstudio.arrays import create_array, scratch_array
from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.data.frames import SceneError, cache_folder, open_cache
from divff_nerfstudio.data.masks import resize_nearest
from divff_nerfstudio.data.scene import SceneFolder
from divff_nerfstudio.evenly import evenly_spaced
from divff_nerfstudio.evidence.carried import Sights, carried_depths, extents, joined
from divff_nerfstudio.evidence.looks import OutlinedRegions, Segments, StoredSegments
from divff_nerfstudio.evidence.shadows import shadowed
from divff_nerfstudio.evidence.sightings import (
    MIN_FRAMES,
    Asked,
    Movers,
    Stays,
    Views,
    plane_bounds,
    settle_tolerance,
    sweep,
)
from divff_nerfstudio.evidence.votes import Kinds, count, decide, nearest_distances
from divff_nerfstudio.features.store import FeatureStore

_VERSION = 20
_WORKING_PIXELS = 7300
"""Frames are looked at in about this size, a fourth of EPIC-Diff's: what is coarser than a sweep's planes is enough."""
_STRIDE = 2
_VIEWS = 72
"""Frames in which a place is looked for, at most, spread over the video."""
ENDS_KNOWN = 1 / (_VIEWS - 1) + 1 / 255
"""How exactly it is known when something begins and ends to rest, as a share of the video: a view, and a code."""
CHANNELS = 8
"""Bytes that a pixel's labels take."""
_TRIED = 4
"""Frames from which the tolerance is settled."""
_ASKED_SEGMENTS = 8192
"""Segments that are asked what things of their looks do, at most, spread over the video."""
_KEPT, _KEPT_WIDTH = 0.85, 0.05
"""Share of the frames in which the room looks the same, nearly, and how sharp that bound is."""
_RESTS, _RESTS_WIDTH = 0.29, 0.06
"""Evidence of resting that tells objects from hands, per frame of the video, and how sharp that bound is."""
_SURE, _SURE_WIDTH = 0.44, 0.04
"""From which share of the votes on something moves, and how sharp that bound is."""
_OBJECT, _OBJECT_WIDTH = 0.44, 0.04
"""From which share of resting on something is an object: it is also carried, but hands hardly ever rest."""
_KNOWN = 0.15
"""Evidence of resting, per frame of the video and pixel, from which on a segment's depth is relied upon."""
_BRIEF = 1 / 12
"""For what share of the video, at most, something of which too little is known seems to rest that is taken to be
carried: what rests for longer, and is hardly seen or of few colours, may be anywhere, but it rests."""
_CARRIED = (255, 0, 0, 255)
"""Codes of when something rests that does not: an interval that ends before it begins, of a place at which it may have
been at any time."""
_PAIRED_FRAMES = 64
"""Pairs of neighbouring frames, at most, spread over the video, from which it is learned how alike one thing looks."""


class Labels(NamedTuple):
    """What was found of training frames' pixels."""

    codes: UInt8[np.ndarray, "frames height width 8"]
    """In 1/255 of what there can be, memory-mapped: the chances of dynamic layer and actor; of what rests there or is
    carried 1 / depth, from the farthest plane looked at (1) to the nearest (255), 0 where it is not known, and between
    which frames it rests there, from the first (0) to the last (255), and between which at most, since nobody looks, or
    `_CARRIED`; and the chance that something else is seen at the pixel's place at other times."""
    depths: tuple[float, float]
    """Depths of the nearest and the farthest plane, along the optical axis, scene units."""

    def chances(self, codes: Float[Tensor, "pixels 8"]) -> Float[Tensor, "pixels 2"]:
        """Chances of dynamic layer and actor from codes in [0, 1]."""
        return codes[:, :2]

    def resting(
        self,
        codes: Float[Tensor, "pixels 8"],
        frames: Int[Tensor, "#pixels"],
        times: Float[Tensor, "frames"],
    ) -> Float[Tensor, "pixels 5"]:
        """Where what pixels show is, and how long it rests there.

        Args:
            codes: Of the pixels, in [0, 1].
            frames: In which of the training frames they are.
            times: Of all training frames.

        Returns:
            Depth along the optical axis in scene units, 0 where it is not known; the times between which it rests
            there, the frame's own included, or for what is carried the last and the first; and those between which it
            may.
        """
        depth = _depth(codes[:, 2], self.depths, 0.0)
        own = times[frames]
        since, until, earliest, latest = times[(codes[:, 3:7] * (len(times) - 1)).round().long()].unbind(-1)
        carried = codes[:, 3] - codes[:, 4] > 0.5  # ends are rounded to codes that hardly differ
        since, until = (
            torch.where(carried, code, within)
            for code, within in ((since, since.minimum(own)), (until, until.maximum(own)))
        )
        return torch.stack((depth, since, until, earliest.minimum(own), latest.maximum(own)), -1)

    def contested(self, codes: Float[Tensor, "pixels 8"]) -> Float[Tensor, "pixels"]:
        """Chance that a pixel shows what moves, or a place where something else is at other times."""
        return torch.maximum(codes[:, :2].sum(-1), codes[:, 7])


def labels(
    scene: SceneFolder,
    indices: Int[np.ndarray, "frames"],
    store: FeatureStore | None,
    device: torch.device | str = "cpu",
) -> Labels | None:
    """The labels of a scene's training frames, computed once and kept in the scene's cache.

    Args:
        scene: The scene.
        indices: Its training frames. No other frame is looked at.
        store: Features of segments, which then vote; None: regions between learned outlines vote, by their colours.
        device: Where to compute.

    Returns:
        Labels; None for a video so short that places are not seen often enough.

    Raises:
        SceneError: If they cannot be kept.
    """
    if len(indices) <= MIN_FRAMES:
        return None
    shape = (len(indices), scene.height, scene.width, CHANNELS)
    path = cache_folder(scene.root) / f"evidence-{_fingerprint(scene, indices, store)}.npy"
    if (kept := open_cache(path, shape)) is None:
        try:
            with atomic_path(path) as temporary:
                _write(create_array(temporary, np.uint8, shape), scene, indices, store, device, path.parent)
        except OSError as error:
            raise SceneError(
                f"What was found to move cannot be kept in {path.parent} ({error.strerror or error}): make room there, "
                "or name another folder in the environment variable DIVFF_CACHE_DIR."
            ) from error
        kept = open_cache(path, shape)
    assert kept is not None
    return Labels(kept, plane_bounds(*_bounds(scene, indices)))


def _write(
    found: UInt8[np.ndarray, "frames height width 8"],
    scene: SceneFolder,
    indices: np.ndarray,
    store: FeatureStore | None,
    device: torch.device | str,
    folder: Path,
) -> None:
    """Computes the labels, one frame at a time: what each frame sees, what segments make of it, and both once more
    without holding against a place that hands and objects hide it."""
    things = OutlinedRegions() if store is None else StoredSegments(store)
    views, asked = _views(scene, indices, device)
    tried = [asked((2 * i + 1) * len(indices) // (2 * _TRIED)) for i in range(_TRIED)]
    tolerance = settle_tolerance(views, tried, _STRIDE)
    size, (rows, columns) = (scene.height, scene.width), ((side + _STRIDE - 1) // _STRIDE for side in views.size)
    seen = scratch_array(folder, np.float32, (len(indices), 2, rows, columns))
    segments = scratch_array(folder, np.int32, (len(indices), *size))
    numbers: list[int] = []
    with get_progress("Looking for what moves") as progress:
        for k in progress.track(range(len(indices))):
            looked = sweep(views, asked(k), _STRIDE, tolerance)
            seen[k] = torch.stack((looked.kept, looked.rests)).cpu().numpy()
            segments[k], number = things.split(scene, int(indices[k]))
            numbers.append(number)
            coarse = torch.from_numpy(resize_nearest(segments[k], *views.size)[::_STRIDE, ::_STRIDE].astype(np.int64))
            stays = looked.stays(coarse.to(looked.same.device), number)
            found[k, ..., 2:7] = _rest_codes(segments[k], stays, len(indices), plane_bounds(views.near, views.far))
            found[k, ..., 7] = np.round(255 * _chances(seen[k], size)[0])
    spreads = _spreads(scene, indices, segments, things)
    movers = _movers(views, _voted(scene, indices, things, segments, numbers, seen, spreads), found)
    with get_progress("Looking behind what moves") as progress:
        for k in progress.track(range(len(indices))):
            frame = asked(k)
            kept = sweep(views, frame, _STRIDE, tolerance, movers).kept
            dark = shadowed(views, frame, _STRIDE, movers, kept < _KEPT + 2 * _KEPT_WIDTH)
            seen[k, 0] = torch.lerp(kept, torch.ones_like(kept), dark).cpu().numpy()
    for k, chances in enumerate(_voted(scene, indices, things, segments, numbers, seen, spreads)):
        found[k, ..., :2] = np.round(255 * chances)
    _place_carried(found, scene, indices, things, segments, numbers, spreads, plane_bounds(views.near, views.far))


def _place_carried(
    found: UInt8[np.ndarray, "frames height width 8"],
    scene: SceneFolder,
    indices: np.ndarray,
    things: Segments,
    segments: Int[np.ndarray, "frames height width"],
    numbers: Sequence[int],
    spreads: Sequence[float],
    depths: tuple[float, float],
) -> None:
    """Writes how far away objects are where they do not rest."""

    def sights(k: int, chosen: Int[np.ndarray, "chosen"]) -> Sights:
        looks = _voting(things.looks(scene, int(indices[k]), segments[k]), spreads)
        sizes = extents(segments[k], numbers[k])
        at = _depth(torch.from_numpy(_means(found[k, ..., 2], segments[k], numbers[k])) / 255, depths, 0.0).numpy()
        return Sights(np.full(numbers[k], k), looks, sizes, at)[chosen]

    resting, carried = [], []
    for k, number in enumerate(numbers):
        chance, code, since, until = (_means(found[k, ..., i], segments[k], number) for i in (0, 2, 3, 4))
        resting.append(np.flatnonzero((chance > 255 / 2) & (code > 0)))
        carried.append(np.flatnonzero((chance > 255 / 2) & (code == 0) & (until - since <= 255 * _BRIEF)))
    first = np.concatenate(([0], np.cumsum([len(each) for each in resting])))
    if not first[-1]:
        return
    asked = evenly_spaced(int(first[-1]), _ASKED_SEGMENTS)
    parts = [
        own[asked[(asked >= start) & (asked < start + len(own))] - start]
        for start, own in zip(first, resting, strict=False)
    ]
    known = joined([sights(k, part) for k, part in enumerate(parts) if len(part)])
    for k, own in enumerate(carried):
        if not len(own):
            continue
        for segment, depth in zip(own, carried_depths(sights(k, own), known), strict=True):
            if depths[0] <= depth <= depths[1]:  # hands carry things nearer than codes tell, too
                found[k, segments[k] == segment, 2:7] = (_depth_code(depth, depths), *_CARRIED)


def _means(
    values: UInt8[np.ndarray, "height width"], segments: Int[np.ndarray, "height width"], number: int
) -> Float[np.ndarray, "segments"]:
    """Means of segments' pixels; 0 of those without one."""
    theirs, values = segments[segments >= 0], values[segments >= 0]
    return np.bincount(theirs, values, number) / np.maximum(np.bincount(theirs, minlength=number), 1)


def _movers(
    views: Views,
    voted: Iterable[Float[np.ndarray, "height width 2"]],
    found: UInt8[np.ndarray, "frames height width 8"],
) -> Movers:
    """What moves in the views.

    Args:
        views: The frames to look at.
        voted: Chances of dynamic layer and actor in each training frame.
        found: Codes of all training frames, of which the depth of what rests is known.
    """
    parts = []
    for k, chances in enumerate(voted):
        if k in views.numbers:
            codes = torch.from_numpy(resize_nearest(found[k, ..., 2], *views.size)).float() / 255
            depth = _depth(codes, plane_bounds(views.near, views.far), torch.inf)
            parts.append(
                torch.cat((torch.from_numpy(resize_nearest(chances, *views.size)).float(), depth[..., None]), -1)
            )
    objects, actor, depths = torch.stack(parts).flatten(1, 2).to(views.pictures.device).unbind(-1)
    return Movers(actor, objects, depths)


def _voted(
    scene: SceneFolder,
    indices: np.ndarray,
    things: Segments,
    segments: Int[np.ndarray, "frames height width"],
    numbers: Sequence[int],
    seen: Float[np.ndarray, "frames 2 rows columns"],
    spreads: Sequence[float],
) -> Iterator[Float[np.ndarray, "height width 2"]]:
    """Chances of dynamic layer and actor in one frame after the other, by the votes of all.

    Where segments have looks of several sorts, those that look alike by the first vote, and those that do by all of
    them, and the mean counts: what an encoder takes for one thing is told apart by colours, and what has the colours of
    something else is not taken for it.

    Args:
        scene: The scene.
        indices: Its training frames.
        things: What votes together.
        segments: Number of each pixel's segment in its frame; -1 where there is none.
        numbers: How many segments each frame has.
        seen: What each frame's sweep says of it, see `_chances`.
        spreads: How far apart looks of one thing are, of each sort.
    """
    size = scene.height, scene.width
    votes = [count(segments[k], number, *_chances(seen[k], size)) for k, number in enumerate(numbers)]
    looks, asked = _asked_segments(scene, indices, segments, things, votes)
    kinds = [Kinds(each, asked, 1.0) for each in _voting(looks, spreads)]
    for k, own in enumerate(votes):
        frame = _chances(seen[k], size)
        looks = _voting(things.looks(scene, int(indices[k]), segments[k]), spreads)
        theirs = [kind.votes(each) for kind, each in zip(kinds, looks, strict=True)]
        moves, resting = np.mean([decide(segments[k], own, each, *frame) for each in theirs], 0)
        moves, resting = _logistic((moves - _SURE) / _SURE_WIDTH), _logistic((resting - _OBJECT) / _OBJECT_WIDTH)
        yield np.stack((moves * resting, moves * (1 - resting)), -1)


def _voting(
    looks: Sequence[Float[np.ndarray, "segments dim"]], spreads: Sequence[float]
) -> list[Float[np.ndarray, "segments dims"]]:
    """Looks by the first sort, and by all of them together, in units of how far apart those of one thing are."""
    each = [look / spread for look, spread in zip(looks, spreads, strict=True)]
    together = np.concatenate(each, -1) / len(each) ** 0.5
    return each if len(each) == 1 else [each[0], together]


def _views(scene: SceneFolder, indices: np.ndarray, device: torch.device | str) -> tuple[Views, Callable[[int], Asked]]:
    """The frames to look at, in their working size, and what gives any of the training frames by its place."""
    factor = max(1, round((scene.height * scene.width / _WORKING_PIXELS) ** 0.5))
    size = max(1, scene.height // factor), max(1, scene.width // factor)
    across, down = size[1] / scene.width, size[0] / scene.height
    fx, cx, fy, cy = scene.intrinsics[[0, 0, 1, 1], [0, 2, 1, 2]].tolist()

    def asked(place: int) -> Asked:
        picture = torch.from_numpy(scene.frame(int(indices[place]))).permute(2, 0, 1)[None].float() / 255
        small = F.interpolate(picture, size=size, mode="area")[0].permute(1, 2, 0)
        return Asked(place, small.to(device), torch.from_numpy(scene.camera_to_worlds[indices[place]]).to(device))

    places = evenly_spaced(len(indices), _VIEWS).tolist()
    frames = [asked(place) for place in places]
    views = Views(
        places,
        torch.stack([frame.picture for frame in frames]),
        torch.stack([frame.pose for frame in frames]),
        (fx * across, fy * down, cx * across, cy * down),
        *_bounds(scene, indices),
    )
    return views, asked


def _bounds(scene: SceneFolder, indices: np.ndarray) -> tuple[float, float]:
    """Near and far of most of the training frames."""
    return float(np.median(scene.nears[indices])), float(np.median(scene.fars[indices]))


def _depth(codes: Float[Tensor, "*bs"], depths: tuple[float, float], unknown: float) -> Float[Tensor, "*bs"]:
    """Depths of codes in [0, 1] of what rests (see `Labels`), and what is to stand where they are not known."""
    near, far = (1 / depth for depth in depths)
    nearness = far + (255 * codes - 1) / 254 * (near - far)
    return torch.where(codes > 0, 1 / nearness.clamp_min(far), unknown)


def _depth_code(
    depth: Float[np.ndarray, "*bs"] | float, depths: tuple[float, float]
) -> Float[np.ndarray, "*bs"] | np.floating:
    """Codes of depths, see `Labels`."""
    near, far = (1 / bound for bound in depths)
    return np.clip(np.round(1 + 254 * (1 / depth - far) / (near - far)), 1, 255)


def _rest_codes(
    segments: Int[np.ndarray, "height width"], stays: Stays, frames: int, depths: tuple[float, float]
) -> UInt8[np.ndarray, "height width 5"]:
    """Codes of depth and intervals of each pixel's segment, see `Labels`; the ends of that in which it rests are
    rounded inward, those between which it may outward."""
    code = _depth_code(stays.depth.cpu().numpy(), depths)
    known = stays.support.cpu().numpy() >= _KNOWN
    ends = (stays.since, stays.until, stays.earliest, stays.latest)
    rounded = zip((np.ceil, np.floor, np.floor, np.ceil), ends, strict=True)
    whens = [rounding(255 * end.cpu().numpy() / max(1, frames - 1)) for rounding, end in rounded]
    codes = np.stack((np.where(known, code, 0), *whens), -1)
    codes = np.concatenate((codes, np.zeros((1, 5))))  # the last is that of pixels in no segment, -1
    return codes[segments].astype(np.uint8)


def _chances(
    seen: Float[np.ndarray, "2 rows columns"], size: tuple[int, int]
) -> tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    """Chance of each pixel of a frame that it moves, and that it rests if so, from its sightings."""
    kept, rests = F.interpolate(torch.from_numpy(seen)[None], size=size, mode="nearest")[0].numpy()
    return _logistic((_KEPT - kept) / _KEPT_WIDTH), _logistic((rests - _RESTS) / _RESTS_WIDTH)


def _asked_segments(
    scene: SceneFolder, indices: np.ndarray, segments: np.ndarray, things: Segments, votes: list[np.ndarray]
) -> tuple[list[Float[np.ndarray, "asked dim"]], Float[np.ndarray, "asked 3"]]:
    """Looks of each sort and votes of segments spread over the video, all where there are few."""
    first = np.concatenate(([0], np.cumsum([len(own) for own in votes])))
    chosen = evenly_spaced(int(first[-1]), _ASKED_SEGMENTS)
    looks: list[list[np.ndarray]] = [[] for _ in things.min_spreads]
    theirs = [np.zeros((0, 3))]
    for k, own in enumerate(votes):
        local = chosen[(chosen >= first[k]) & (chosen < first[k + 1])] - first[k]
        if len(local):
            for sort, each in zip(looks, things.looks(scene, int(indices[k]), segments[k]), strict=True):
                sort.append(each[local])
            theirs.append(own[local])
    return [np.concatenate(sort) if sort else np.zeros((0, 1)) for sort in looks], np.concatenate(theirs)


def _spreads(scene: SceneFolder, indices: np.ndarray, segments: np.ndarray, things: Segments) -> list[float]:
    """How far apart looks of one thing are, of each sort: one that differs as those do which belong together in
    neighbouring frames has exp(-1) of a vote. Encoders and segments differ in this, so it is learned from the scene."""
    apart = [[np.zeros(0)] for _ in things.min_spreads]
    for k in evenly_spaced(len(indices) - 1, _PAIRED_FRAMES):
        here, next_ = (things.looks(scene, int(indices[j]), segments[j]) for j in (k, k + 1))
        for sort, looks, theirs in zip(apart, here, next_, strict=True):
            sort.append(nearest_distances(looks, theirs))
    medians = [float(np.median(found)) if len(found) else 0.0 for found in map(np.concatenate, apart)]
    return [max(least, median / 2**0.5) for least, median in zip(things.min_spreads, medians, strict=True)]


def _logistic(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -50, 50)))


def _fingerprint(scene: SceneFolder, indices: np.ndarray, store: FeatureStore | None) -> str:
    """Changes with anything that labels are made from; of frames and features, with their files' sizes and times."""
    frames = Path(cast(np.memmap, scene.frames).filename or "").name  # it changes with any of them
    digest = hashlib.sha256(f"evidence {_VERSION} {frames} {'' if store is None else store.seal}".encode())
    for part in (indices, scene.camera_to_worlds, scene.nears, scene.fars, scene.intrinsics):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:20]
