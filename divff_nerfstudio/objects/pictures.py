"""Pictures of things: a sheet with a crop of each, and a plan of the room seen from above with their paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy.ndimage import binary_dilation

from divff_nerfstudio.data.annotations import resize_nearest
from divff_nerfstudio.objects.diary import Clock, Event
from divff_nerfstudio.objects.things import Things
from divff_nerfstudio.plots import plot

_MARGIN = 0.25
_MAX_THINGS = 60
_CLOUD = 20000
_SIDE = 280
_GAP = 8
_AROUND = 0.6
_MUCH = 2.5
_LINE = 2
_OUTLINE = (230, 159, 0)


def crop(frame: UInt8[np.ndarray, "height width 3"], box: Sequence[int], scale: tuple[float, float]) -> np.ndarray:
    """The part of a frame around a box.

    Args:
        frame: The frame.
        box: First row and column and those behind the last, at the size of the looks.
        scale: Rows and columns of the frame for one of the looks.
    """
    top, left, bottom, right = (edge * scale[i % 2] for i, edge in enumerate(box))
    more = _MARGIN * max(bottom - top, right - left)
    rows = slice(max(int(top - more), 0), int(np.ceil(bottom + more)))
    columns = slice(max(int(left - more), 0), int(np.ceil(right + more)))
    return frame[rows, columns]


def contact_sheet(path: Path, things: Things, picture: Callable[[int], UInt8[np.ndarray, "height width 3"]]) -> Path:
    """Draws each thing as the frame that shows it best shows it, with its number and name, and in how many
    frames it is seen.

    Args:
        path: The picture's file.
        things: The things; the first sixty are drawn.
        picture: Gives the frame of an index.
    """
    shown = things.things[:_MAX_THINGS]
    columns = min(6, max(len(shown), 1))
    rows = max(1, -(-len(shown) // columns))
    with plot(path, 2.1 * columns, 2.3 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for axes, thing in zip(grid.flat, shown, strict=False):
            best = thing.portrait
            frame = picture(best.frame)
            scale = frame.shape[0] / things.owners.shape[1], frame.shape[1] / things.owners.shape[2]
            axes.imshow(crop(frame, best.box, scale))
            moved = f", moved {len(thing.moves)}x" if thing.moves else ""
            axes.set_title(f"{thing.number} {thing.name}\n{len(thing.frames)} frames{moved}", fontsize=8)
    return path


def before_and_after(
    things: Things, event: Event, picture: Callable[[int], UInt8[np.ndarray, "height width 3"]]
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Draws what the last frame before an event and the first one after it show around the thing, side by side, with
    the thing outlined.

    Args:
        things: All things.
        event: The event.
        picture: Gives the frame of an index.
    """
    sides = []
    for frame in (event.move.start, event.move.end):
        shown, own = picture(frame), things.owners[frame] == event.thing.number
        own = resize_nearest(own, *shown.shape[:2])
        part = _square(own)
        drawn = np.asarray(Image.fromarray(shown[part]).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)).copy()
        own = resize_nearest(own[part], _SIDE, _SIDE)
        drawn[binary_dilation(own, iterations=_LINE) & ~own] = _OUTLINE
        sides.append(drawn)
    return np.concatenate((sides[0], np.zeros((_SIDE, _GAP, 3), np.uint8), sides[1]), axis=1)


def _square(own: Bool[np.ndarray, "height width"]) -> tuple[slice, slice]:
    """A square of a frame with what belongs to a thing in its middle, as far as the frame goes, and much around it."""
    height, width = own.shape
    rows, columns = np.nonzero(own) if own.any() else np.divmod(np.arange(own.size), width)
    min_side, max_side = _AROUND * min(own.shape), min(own.shape)
    side = int(np.clip(_MUCH * max(np.ptp(rows), np.ptp(columns)), min_side, max_side))
    top, left = (
        int(np.clip((at.min() + at.max() - side) // 2, 0, count - side))
        for at, count in ((rows, height), (columns, width))
    )
    return slice(top, top + side), slice(left, left + side)


def plan(path: Path, things: Things, events: Sequence[Event], clock: Clock) -> Path:
    """Draws the room from above: what was seen of it, the camera's way, and the paths of what was moved.

    Above is where the cameras' upper side points on average.

    Args:
        path: The picture's file.
        things: All things.
        events: The diary.
        clock: Tells when.
    """
    with plot(path, 8, 7) as figure:
        _draw_plan(figure.subplots(), things, events, clock)
    return path


def _draw_plan(axes: Any, things: Things, events: Sequence[Event], clock: Clock) -> None:
    flat, height = _from_above(things)
    cloud = np.concatenate([np.zeros((0, 3)), *(rest.points for thing in things.things for rest in thing.rests)])
    cloud = cloud[:: max(1, len(cloud) // _CLOUD)]
    order = np.argsort(height(cloud))
    axes.scatter(*flat(cloud[order]).T, c=height(cloud[order]), cmap="Greys_r", s=2, linewidths=0)
    cameras = flat(np.stack([camera.pose[:, 3] for camera in things.cameras]))
    axes.plot(*cameras.T, "-", color="tab:cyan", linewidth=1, label="the camera's way")
    colours = [f"C{i}" for i in range(9)]  # the tenth is the colour of the camera's way
    moved = list(dict.fromkeys(event.thing.number for event in events))
    for event in events:
        colour = colours[moved.index(event.thing.number) % len(colours)]
        way = flat(np.stack([event.move.source, *(np.array(p) for _, p in event.move.path), event.move.target]))
        name = f"{event.thing.number} {event.thing.name}".strip()
        label = f"{name}, {clock.told(event.move.start)} to {clock.told(event.move.end)}"
        axes.plot(*way.T, "-", color=colour, linewidth=1.5, label=label)
        axes.plot(*way[0], "o", color=colour, markerfacecolor="white", markersize=7)
        axes.plot(*way[-1], "o", color=colour, markersize=7)
    for thing in things.things:
        if thing.rests and not thing.moves and thing.size < 0.5 * things.depth:
            x, y = flat(thing.rests[0].point)
            axes.annotate(f"{thing.number} {thing.name}".strip(), (x, y), fontsize=6, color="tab:brown", ha="center")
    axes.set_aspect("equal")
    axes.set(title="The room from above", xlabel="scene units", ylabel="scene units")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7)


def _from_above(things: Things) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """What turns points into coordinates of the plan (right and ahead of the mean camera), and into heights."""
    poses = np.stack([camera.pose for camera in things.cameras])
    up = _unit(poses[:, :, 1].mean(0))
    ahead = -poses[:, :, 2].mean(0)
    ahead = _unit(ahead - (ahead @ up) * up)
    right = np.cross(ahead, up)
    axes = np.stack([right, ahead], axis=-1)
    return lambda points: points @ axes, lambda points: points @ up


def _unit(vector: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)
