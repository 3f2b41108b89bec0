"""How well things are found, and their moves: against ground truth of what each pixel shows and where objects are.

A thing *is* the instance that most of its pixels show. An instance is *found once* if exactly one thing is it, and that
thing is seen in at least half of the frames that show the instance; other things of the same instance are *pieces*. A
thing that shows another instance in a quarter of its pixels or more is a *merge*.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from divff_nerfstudio.data.annotations import resize_nearest
from divff_nerfstudio.data.moved_objects import MovedObject
from divff_nerfstudio.evaluation.found_events import score_events
from divff_nerfstudio.evaluation.places import MIN_PIXELS, Places
from divff_nerfstudio.objects.things import Thing, Things

MIN_FRAMES = 10
"""An instance that fewer frames show need not be found."""
_ACTOR, _UNLABELLED = 2, 0
_SEEN = 0.5
_MERGED = 0.25


def score_things(things: Things, places: Places, fps: float) -> dict[str, float]:
    """Scores what was found.

    Args:
        things: What was found.
        places: Where things truly are.
        fps: Frames of the video in a second.

    Returns:
        "things_found_once" (share of the objects seen in ten frames or more) with "things_objects" (their number), the
        same of all instances ("things_instances_found_once", "things_instances"), "things_pieces" (things beyond one of
        an instance, mean over the instances), "things_merged" (share of the things), "events_found" and "events_false"
        (shares of the true and of the found ones), "events" and "events_told" (their numbers), "events_off_s" (median
        distance of begin and end, over those found), "things_point_error_cm" (median distance of the thing's point to
        the object's true box, of moved objects in the frames that show them). What cannot be told is left out.
    """
    shown, frames = overlaps(things, places)
    own = shown.argmax(axis=1)
    scores = _found_once(things, places, shown, own, frames)
    scores |= score_events(things, places.moved, own, frames, places.scene.video_numbers, fps)
    errors = _point_errors(things, places, own)
    return scores | ({"things_point_error_cm": float(np.median(errors))} if errors else {})


def overlaps(things: Things, places: Places) -> tuple[Int[np.ndarray, "things 256"], Int[np.ndarray, "frames 256"]]:
    """Pixels of each thing that show each instance, and of each frame, at the size of the looks."""
    count, height, width = things.owners.shape
    shown = np.zeros((len(things.things) + 1, 256), np.int64)
    frames = np.zeros((count, 256), np.int64)
    for frame in range(count):
        instances = resize_nearest(places.truth.instances(frame), height, width)
        np.add.at(shown, (things.owners[frame].ravel(), instances.ravel()), 1)
        frames[frame] = np.bincount(instances.ravel(), minlength=256)
    return shown[1:], frames


def _found_once(
    things: Things,
    places: Places,
    shown: Int[np.ndarray, "things 256"],
    own: Int[np.ndarray, "things"],
    frames: Int[np.ndarray, "frames 256"],
) -> dict[str, float]:
    seen = (frames >= MIN_PIXELS).sum(axis=0)
    table = places.truth.instance_table
    asked = [e for e in table if e["id"] != _UNLABELLED and e.get("layer") != _ACTOR and seen[e["id"]] >= MIN_FRAMES]
    once: dict[int, bool] = {}
    pieces = []
    for entry in asked:
        mine = [thing for thing, instance in zip(things.things, own, strict=True) if instance == entry["id"]]
        once[entry["id"]] = len(mine) == 1 and len(mine[0].frames) >= _SEEN * seen[entry["id"]]
        pieces.append(max(len(mine) - 1, 0))
    objects = [entry["id"] for entry in asked if entry.get("movable", entry.get("layer") == 1)]
    second = np.sort(shown, axis=1)[:, -2] if len(shown) else np.zeros(0)
    scores: dict[str, float] = {"things_objects": len(objects), "things_instances": len(asked)}
    if objects:
        scores["things_found_once"] = float(np.mean([once[number] for number in objects]))
    if asked:
        scores |= {
            "things_instances_found_once": float(np.mean([*once.values()])),
            "things_pieces": float(np.mean(pieces)),
        }
    if len(second):
        scores["things_merged"] = float((second >= _MERGED * shown.sum(axis=1)).mean())
    return scores


def _point_errors(things: Things, places: Places, own: Int[np.ndarray, "things"]) -> list[float]:
    """Centimetres that things' points are outside of the true boxes."""
    return [
        places.moved.centimetres(float(places.distance(true, places.pose(true, frame), thing.place(frame))))
        for true in places.moved.objects
        if (thing := _largest(things, own, true)) is not None and len(places.surface(true))
        for frame in thing.frames
        if places.seen(true, frame)
    ]


def _largest(things: Things, own: Int[np.ndarray, "things"], true: MovedObject) -> Thing | None:
    """Of the things that are an object, the one that most frames show."""
    mine = [thing for thing, instance in zip(things.things, own, strict=True) if instance == true.instance.id]
    return max(mine, key=lambda thing: len(thing.frames), default=None)
