"""Questions about what a frame's camera does not see: the room around it, at the frame's own time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float

from divff_nerfstudio.data.rays import camera_directions, pixel_grid
from divff_nerfstudio.data.scene import SceneFolder
from divff_nerfstudio.evaluation.answers import THRESHOLDS, answer_about
from divff_nerfstudio.evaluation.classes import ClassScores
from divff_nerfstudio.evaluation.consistency import static_classes, static_instances
from divff_nerfstudio.evaluation.results import ViewScores
from divff_nerfstudio.evaluation.tiles import Picture, as_picture, cell_size, labelled, row_of
from divff_nerfstudio.evaluation.trained_scene import AskedView, TrainedScene

KIND = "image"
MIN_SHARE = 0.02
"""Share of a view that must lie outside of the frame, or the view says nothing about the surroundings."""
_SHOWN = 3
_CELL_HEIGHT = 150


def surroundings(trained: TrainedScene, queries: Sequence[str] = (), moments: int = 8) -> ViewScores:
    """Asks for what never moves, at each held-out frame's time, from where most lies outside of that frame's picture.

    The other pose is that of another held-out frame. What counts are the pixels whose point the frame's camera does not
    have in its picture and that show the room itself in the other frame; there the ground truth of the other frame
    holds at every time. The actor is left out, since it moves with the camera.

    Args:
        trained: The scene.
        queries: Only these of what never moves, see `static_classes`; none: all.
        moments: At most so many frames, evenly spaced over the held-out ones.

    Returns:
        Scores of `ClassScores` with "surroundings_" in front; without ground truth, figures only.
    """
    scene = trained.scene
    held_out = [int(i) for i in trained.datamanager.eval_dataset.metadata["indices"]]
    ids = static_instances(trained.truth, queries) if trained.truth is not None else {}
    names = static_classes(trained, queries)
    if len(held_out) < 2 or not names or KIND not in trained.query.kinds:
        return ViewScores({}, {})
    scores, figures = ClassScores(names, THRESHOLDS[KIND]), {}
    for frame in held_out[:: max(1, -(-len(held_out) // moments))]:
        other, share = _elsewhere(scene, frame, held_out)
        if share < MIN_SHARE:
            continue
        view = trained.render(trained.camera_at(other, float(trained.times[frame])), hide=("actor",))
        if view.embeddings(KIND) is None:
            return ViewScores({}, {})
        maps = view.relevancies(KIND, names)
        if trained.truth is not None:
            instances = trained.truth.instances(other)
            outside = ~in_picture(scene, frame, true_points(scene, other, trained.truth.depth(other)))
            masks = np.stack([np.isin(instances, ids[name]) for name in names], -1)
            scores.add(maps, masks, outside & (trained.truth.layers_ever(other) == 0))
        else:
            outside = ~in_picture(scene, frame, view.points.numpy())
        figures[f"surroundings_{scene.frame_ids[frame]:06d}"] = _figure(
            trained, frame, other, view, maps, outside, names
        )
    totals = {f"surroundings_{name}": value for name, value in scores.totals().items()}
    return ViewScores(totals, scores.per_class() if scores.frames else {}, figures)


def true_points(
    scene: SceneFolder, index: int, depth: Float[np.ndarray, "height width"]
) -> Float[np.ndarray, "height width 3"]:
    """World points of a frame's pixels at depths along the optical axis."""
    intrinsics = torch.tensor([scene.intrinsics[i] for i in ((0, 0), (1, 1), (0, 2), (1, 2))])
    directions, norms = camera_directions(pixel_grid(*depth.shape), intrinsics)
    pose = scene.camera_to_worlds[index]
    return (directions * norms).numpy() * depth[..., None] @ pose[:, :3].T + pose[:, 3]


def in_picture(scene: SceneFolder, index: int, points: Float[np.ndarray, "*bs 3"]) -> Bool[np.ndarray, "*bs"]:
    """Which world points lie in a frame's picture: before its camera, within its borders, hidden or not."""
    column, row, ahead = projected(scene, index, points)
    return (ahead > 0) & (column >= 0) & (column < scene.width) & (row >= 0) & (row < scene.height)


def projected(
    scene: SceneFolder, index: int, points: Float[np.ndarray, "*bs 3"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Column and row, in pixels, and depth along the optical axis, in scene units, of world points.

    Column and row of a point that is not before the camera mean nothing.
    """
    pose, K = scene.camera_to_worlds[index], scene.intrinsics
    right, up, back = np.moveaxis((points - pose[:, 3]) @ pose[:, :3], -1, 0)
    ahead = np.maximum(-back, 1e-9)
    return K[0, 0] * right / ahead + K[0, 2], K[1, 2] - K[1, 1] * up / ahead, -back


def _elsewhere(scene: SceneFolder, frame: int, candidates: Sequence[int]) -> tuple[int, float]:
    """The candidate whose view has the largest share outside of a frame's picture, and that share.

    Both are told by rays at the middle of what the scene's cameras see, so that nothing need be rendered.
    """
    shares = {}
    for other in candidates:
        if other != frame:
            depth = np.full((scene.height, scene.width), (scene.nears[other] + scene.fars[other]) / 2, np.float32)
            shares[other] = float(1 - in_picture(scene, frame, true_points(scene, other, depth)).mean())
    best = max(shares, key=lambda other: shares[other])
    return best, shares[best]


def _figure(
    trained: TrainedScene,
    frame: int,
    other: int,
    view: AskedView,
    maps: Float[np.ndarray, "height width classes"],
    outside: Bool[np.ndarray, "height width"],
    names: Sequence[str],
) -> Picture:
    """The frame, the other view with what the frame sees darkened, and the classes that are most relevant outside."""
    size, ids = cell_size(maps.shape[0], maps.shape[1], _CELL_HEIGHT), trained.scene.frame_ids
    rgb = view.pictures["rgb"].numpy()
    cells = [
        labelled(as_picture(trained.scene.frame(frame) / 255.0, size), f"frame {ids[frame]}"),
        labelled(
            as_picture(np.where(outside[..., None], rgb, 0.35 * rgb), size),
            f"then, seen from frame {ids[other]}; light: not in the frame",
        ),
    ]
    best = np.where(outside[..., None], maps, 0).max((0, 1))
    for i in map(int, np.argsort(-best)[:_SHOWN]):
        answer = answer_about(names[i], KIND, maps[..., i], view.pictures, view.points)
        text = f"{names[i]}: up to {best[i]:.2f}, threshold {answer.threshold:g}"
        cells.append(labelled(as_picture(answer.overlay, size), text))
    return row_of(cells)
