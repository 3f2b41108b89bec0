"""Pictures of things: a sheet with a crop of each, and a plan of the room seen from above with their paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
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
_PLAN, _LEGEND, _AROUND_PLAN = 6.5, 2.5, 0.9
"""Inches of a plan: its longer side, the room for words beside it, and for those above and below."""
_Flat = Callable[[np.ndarray], np.ndarray]


def crop(
    frame: Shaped[np.ndarray, "height width *channels"], box: Sequence[int], scale: tuple[float, float]
) -> np.ndarray:
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
    """Draws each thing as the frame that shows it best shows it, outlined, with its number and name, in how
    many frames it is seen, and how many events are told of it.

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
            own = resize_nearest(things.owners[best.frame] == thing.number, *frame.shape[:2])
            part, own = crop(frame, best.box, scale), crop(own, best.box, scale)
            larger = _SIDE / max(own.shape)
            height, width = (max(1, round(side * larger)) for side in own.shape)
            axes.imshow(_outlined(part, own, height, width))
            told = f", {_counted(len(thing.moves), 'event')}" if thing.moves else ""
            axes.set_title(f"{thing.number} {thing.name}\n{_counted(len(thing.frames), 'frame')}{told}", fontsize=8)
    return path


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


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
        sides.append(_outlined(shown[part], own[part], _SIDE, _SIDE))
    return np.concatenate((sides[0], np.zeros((_SIDE, _GAP, 3), np.uint8), sides[1]), axis=1)


def _outlined(
    shown: UInt8[np.ndarray, "rows columns 3"], own: Bool[np.ndarray, "rows columns"], height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """A part of a frame at another size, with a line around what belongs to a thing."""
    drawn = np.asarray(Image.fromarray(shown).resize((width, height), Image.Resampling.BILINEAR)).copy()
    own = resize_nearest(own, height, width)
    drawn[binary_dilation(own, iterations=_LINE) & ~own] = _OUTLINE
    return drawn


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
    flat, height = _from_above(things)
    cloud = np.concatenate([np.zeros((0, 3)), *(rest.points for thing in things.things for rest in thing.rests)])
    cloud = cloud[:: max(1, len(cloud) // _CLOUD)]
    cloud = cloud[np.argsort(height(cloud))]
    cameras = flat(np.stack([camera.pose[:, 3] for camera in things.cameras]))
    wide, deep = np.ptp(np.concatenate((flat(cloud), cameras)), axis=0)
    tall = float(np.clip(_PLAN * deep / max(wide, 1e-9), _PLAN / 3, _PLAN)) + _AROUND_PLAN
    with plot(path, _PLAN + _LEGEND, tall) as figure:
        axes = figure.subplots()
        axes.scatter(*flat(cloud).T, c=height(cloud), cmap="Greys_r", s=2, linewidths=0)
        _draw_paths(axes, cameras, events, clock, flat)
        write_labels(axes, _labels(things, events, flat))
    return path


def _draw_paths(axes: Any, cameras: np.ndarray, events: Sequence[Event], clock: Clock, flat: _Flat) -> None:
    axes.plot(*cameras.T, "-", color="tab:cyan", linewidth=1, label="the camera's way")
    colours = [f"C{i}" for i in range(9)]  # the tenth is the colour of the camera's way
    moved = list(dict.fromkeys(event.thing.number for event in events))
    for event in events:
        colour = colours[moved.index(event.thing.number) % len(colours)]
        way = flat(event.move.way)
        name = f"{event.thing.number} {event.thing.name}".strip()
        label = f"{name}, {clock.told(event.move.start)} to {clock.told(event.move.end)}"
        axes.plot(*way.T, "-", color=colour, linewidth=1.5, label=label)
        if event.move.source is not None:
            axes.plot(*way[0], "o", color=colour, markerfacecolor="white", markersize=7)
        if event.move.target is not None:
            axes.plot(*way[-1], "o", color=colour, markersize=7)
    axes.set_aspect("equal")
    axes.set(title="The room from above", xlabel="scene units", ylabel="scene units")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7)


def _labels(things: Things, events: Sequence[Event], flat: _Flat) -> list[tuple[str, Float[np.ndarray, "2"]]]:
    """What stands where in a plan, what matters more first: numbers of what is moved where its ways end, names of what
    it is said to stand by, and of what else has a name, stays and does not fill the room."""
    found = [(str(event.thing.number), flat(event.move.way[-1])) for event in events]
    beside = [thing for event in events for thing in (event.source, event.target) if thing is not None]
    named = [each for each in things.things if each.name and not each.moves and each.size < 0.5 * things.depth]
    for thing in dict.fromkeys([*beside, *named]):
        if thing.rests:
            found.append((f"{thing.number} {thing.name}".strip(), flat(thing.rests[0].point)))
    return found


def write_labels(axes: Any, labels: Sequence[tuple[str, Float[np.ndarray, "2"]]]) -> None:
    """Writes words into a plot, each a little above its place; what would stand on another is left out.

    Args:
        axes: The plot, with all else drawn.
        labels: Words and places, what matters more first.
    """
    from matplotlib.patheffects import withStroke

    axes.figure.draw_without_rendering()  # so that the layout is known
    boxes = []
    for words, place in labels:
        text = axes.annotate(
            words,
            place,
            (0, 5),
            textcoords="offset points",
            fontsize=7,
            ha="center",
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )
        text.set_in_layout(False)
        box = text.get_window_extent()
        if any(box.overlaps(other) for other in boxes):
            text.remove()
        else:
            boxes.append(box)


def _from_above(things: Things) -> tuple[_Flat, _Flat]:
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
