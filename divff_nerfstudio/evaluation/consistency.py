"""The same question at all times from one viewpoint: what never moves should be found in the same place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float

from divff_nerfstudio.data.annotations import GroundTruth, LabelledMasks, moving_mask, object_annotations
from divff_nerfstudio.data.instances import UNLABELLED
from divff_nerfstudio.evaluation.answers import THRESHOLDS, answer_about
from divff_nerfstudio.evaluation.metrics import iou
from divff_nerfstudio.evaluation.results import ViewScores, mean_scores
from divff_nerfstudio.evaluation.tiles import Picture, as_picture, cell_size, column_of, labelled, row_of
from divff_nerfstudio.evaluation.trained_scene import AskedView, TrainedScene
from divff_nerfstudio.evaluation.viewpoints import fixed_viewpoint
from divff_nerfstudio.evenly import evenly_spaced
from divff_nerfstudio.models.view import Features

KIND = "image"
_CELL_HEIGHT = 108
_SHOWN = 6
_KEPT = ("rgb", "depth", "accumulation", "mask_dynamic", "mask_actor")


def consistency(trained: TrainedScene, queries: Sequence[str] = (), moments: int = 8) -> ViewScores:
    """Asks for what never moves at several moments from the fixed viewpoint, with the actor left out.

    Args:
        trained: The scene.
        queries: Only these of what never moves, see `static_classes`; none: all.
        moments: How many moments, evenly spaced over the video.

    Returns:
        Means over the classes of "consistency_iou" (of the masks at the fixed threshold, over all pairs of moments of
        which at least one has a mask), "consistency_soft_iou" (the sum of the lesser over the sum of the larger
        relevancy above one half: no threshold), and "consistency_found" (share of the moments that have a mask);
        without it, the first could be perfect for a class that is found once.
    """
    names = static_classes(trained, queries)
    if not names or KIND not in trained.query.kinds:
        return ViewScores({}, {})
    viewpoint = fixed_viewpoint(trained.scene)
    frames = evenly_spaced(len(trained.scene), moments).tolist()
    maps, views = [], []
    for frame in frames:
        view = trained.render(trained.camera_at(viewpoint, float(trained.times[frame])), hide=("actor",))
        if view.embeddings(KIND) is None:
            return ViewScores({}, {})
        maps.append(view.relevancies(KIND, names))
        views.append(AskedView(view.camera, {name: view.pictures[name] for name in _KEPT}, Features(), view.query))
    relevancies = np.stack(maps)
    shown = np.argsort(-relevancies.max((0, 1, 2)))[:_SHOWN]
    rows = [
        _column(view, found[..., shown], [names[i] for i in shown], int(trained.scene.frame_ids[frame]))
        for view, found, frame in zip(views, relevancies, frames, strict=True)
    ]
    classes = {name: _agreement(relevancies[..., i]) for i, name in enumerate(names)}
    return ViewScores(mean_scores(classes.values()), classes, {"consistency": row_of(rows)})


def static_classes(trained: TrainedScene, queries: Sequence[str] = ()) -> tuple[str, ...]:
    """What never moves: as the ground truth names it, else the annotated objects that no moving mask covers half of.

    Args:
        trained: The scene.
        queries: Only these; without ground truth, those that nothing is known of are taken at their word.
    """
    if trained.truth is not None:
        return tuple(static_instances(trained.truth, queries))
    annotations = object_annotations(trained.scene)
    if annotations is None:
        return tuple(queries)
    moved = _covered(trained, annotations)
    return tuple(name for name in queries or annotations.names if name not in moved)


def static_instances(truth: GroundTruth, queries: Sequence[str] = ()) -> dict[str, list[int]]:
    """Ids of the instances that never move, by name.

    Args:
        truth: What the renderer knows.
        queries: Only the instances that these name or describe, under the query; none: all.
    """
    found: dict[str, list[int]] = {}
    for entry in truth.instance_table:
        still = not entry.get("layer") and not entry.get("motion") and entry["name"] != UNLABELLED
        words = {entry["name"], entry.get("description", entry["name"])}
        name = entry["name"] if not queries else next((query for query in queries if query in words), None)
        if still and name is not None:
            found.setdefault(name, []).append(entry["id"])
    return found


def _covered(trained: TrainedScene, annotations: LabelledMasks) -> set[str]:
    """Classes of which a frame's moving mask covers more than half."""
    found = set()
    for index, masks in annotations.masks.items():
        moving = moving_mask(trained.scene, index)
        if moving is not None:
            covered = masks[moving].sum(0) > masks.sum((0, 1)) / 2
            found |= {name for name, inside in zip(annotations.names, covered, strict=True) if inside}
    return found


def _agreement(relevancy: Float[np.ndarray, "moments height width"]) -> dict[str, float]:
    masks, above = relevancy > THRESHOLDS[KIND], np.clip(relevancy - 0.5, 0, None)
    scores = {"consistency_found": float(masks.any((1, 2)).mean())}
    pairs = list(combinations(range(len(relevancy)), 2))
    hard = [iou(masks[a], masks[b]) for a, b in pairs if (masks[a] | masks[b]).any()]
    soft = [
        float(np.minimum(above[a], above[b]).sum() / greatest_sum)
        for a, b in pairs
        if (greatest_sum := np.maximum(above[a], above[b]).sum()) > 0
    ]
    for name, values in (("consistency_iou", hard), ("consistency_soft_iou", soft)):
        if values:
            scores[name] = float(np.mean(values))
    return scores


def _column(
    view: AskedView, maps: Float[np.ndarray, "height width classes"], names: Sequence[str], frame_id: int
) -> Picture:
    """The view at one moment, and the answers below each other."""
    size = cell_size(maps.shape[0], maps.shape[1], _CELL_HEIGHT)
    cells = [labelled(as_picture(view.pictures["rgb"].numpy(), size), f"time of frame {frame_id}")]
    for i, name in enumerate(names):
        answer = answer_about(name, KIND, maps[..., i], view.pictures, view.points)
        text = f"{name}: {answer.mask.mean():.1%} above {answer.threshold:g}"
        cells.append(labelled(as_picture(answer.overlay, size), text))
    return column_of(cells)
