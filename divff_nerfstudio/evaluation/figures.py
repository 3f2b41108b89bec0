"""One figure for every held-out frame: target, prediction, layers, masks and relevancies, with their scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.evaluation.answers import THRESHOLDS
from divff_nerfstudio.evaluation.metrics import iou
from divff_nerfstudio.evaluation.results import FrameResult, Task
from divff_nerfstudio.evaluation.tiles import (
    Picture,
    as_picture,
    cell_size,
    column_of,
    labelled,
    marked,
    outlined,
    row_of,
)
from divff_nerfstudio.overlays import OVERLAY_OFFSET, overlay

FIGURE = (
    *("rgb", "rgb_static", "rgb_dynamic", "rgb_actor"),
    *("mask_moving", "mask_dynamic", "mask_actor", "depth", "uncertainty"),
)
"""The pictures of a view that the figure of its frame shows."""
_COLUMNS = 5
_TRUTH = (255, 255, 255)
_FOUND = (255, 200, 40)


def frame_figure(result: FrameResult, tasks: Mapping[str, Task]) -> Picture:
    """The figure of one frame.

    The annotation's outline is drawn in white over masks and relevancies, in yellow what is found at a threshold that
    fits the scene; each mask says its average precision, each relevancy the frame's IoU there and at the fixed one.

    Args:
        result: The scored frame.
        tasks: The tasks of the evaluation, by name.
    """
    size = cell_size(*result.target.shape[:2])
    cells = [
        (as_picture(result.target, size), f"target: frame {result.frame_id}"),
        (as_picture(result.outputs["rgb"], size), f"prediction: {_score(result, 'psnr', 'PSNR', ' dB')}"),
        (as_picture(result.outputs["rgb_static"], size), "static"),
        (as_picture(result.outputs["rgb_dynamic"], size), "dynamic"),
        (as_picture(result.outputs["rgb_actor"], size), "actor"),
    ]
    for name, score in (("moving", "moving_ap"), ("dynamic", "dynamic_ap"), ("actor", "actor_ap")):
        mask = as_picture(result.outputs[f"mask_{name}"], size, smooth=False)
        if name == "moving" and result.moving is not None:
            mask = outlined(mask, result.moving, (255, 140, 0))
        cells.append((mask, f"{name} mask: {_score(result, score, 'AP')}"))
    cells.append((as_picture(_scaled(result.outputs["depth"]), size), "depth"))
    cells.append((as_picture(_scaled(result.outputs["uncertainty"]), size), "uncertainty"))
    for name, relevancies in result.relevancies.items():
        task = tasks[name]
        truth = task.annotations.masks[result.index]
        cells += [relevancy_cell(result, task, i, size) for i in range(relevancies.shape[-1]) if truth[..., i].any()]
    for (kind, phrase), scores in result.shown.items():
        text = f"{phrase} ({kind}): up to {scores.max():.2f}, threshold {THRESHOLDS[kind]:g}"
        cells.append((relevancy_picture(result, scores, kind, size), text))
    rows = []
    for start in range(0, len(cells), _COLUMNS):
        rows.append(row_of([labelled(picture, text) for picture, text in cells[start : start + _COLUMNS]]))
    return column_of(rows, gap=8)


def relevancy_cell(result: FrameResult, task: Task, i: int, size: tuple[int, int]) -> tuple[Picture, str]:
    """The answer to one class of a task in one frame: overlay with the annotation's outline, and what it says.

    Returns:
        The picture, with the outline of what belongs to the class at the threshold that fits the scene, if one is
        known, and a ring around the most relevant pixel; and its label with the IoU there, and at the fixed threshold.
    """
    scores = result.relevancies[task.name][..., i]
    truth = task.annotations.masks[result.index][..., i]
    picture = relevancy_picture(result, scores, task.kind, size)
    asked = "" if task.usual else f" ({task.kind})"
    text = f"{task.annotations.names[i]}{asked}: IoU "
    if task.name in result.masks:
        fitted = result.masks[task.name][..., i]
        picture, text = outlined(picture, fitted, _FOUND), f"{text}{iou(fitted, truth):.2f} fitted, "
    text += f"{iou(scores > task.threshold, truth):.2f} at {task.threshold:g}"
    return outlined(picture, truth, _TRUTH), text


def relevancy_picture(
    result: FrameResult, scores: Float[np.ndarray, "height width"], kind: str, size: tuple[int, int]
) -> Picture:
    """Relevancy over the rendered frame, with a ring around the most relevant pixel."""
    image = overlay(torch.from_numpy(result.outputs["rgb"]), torch.from_numpy(scores[..., None]), OVERLAY_OFFSET[kind])
    row, col = divmod(int(scores.argmax()), scores.shape[1])
    return marked(as_picture(image.numpy(), size), (row + 0.5) / scores.shape[0], (col + 0.5) / scores.shape[1])


def save_frame_figure(folder: Path, result: FrameResult, tasks: Mapping[str, Task]) -> Path:
    """Writes the figure of a frame as ``frame_<id>.png`` and returns its path."""
    path = folder / f"frame_{result.frame_id:06d}.png"
    return save_picture(path, frame_figure(result, tasks))


def save_picture(path: Path, picture: Picture) -> Path:
    """Writes a picture and returns its path."""
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary)
    return path


def _score(result: FrameResult, key: str, name: str, unit: str = "") -> str:
    if key not in result.scores:
        return f"no {name}"
    return f"{name} {result.scores[key]:.2f}{unit}"


def _scaled(image: Float[np.ndarray, "height width 1"]) -> Float[np.ndarray, "height width 1"]:
    """Stretched to 0..1, with one per cent of outliers clipped at each end."""
    low, high = np.quantile(image, (0.01, 0.99))
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1)
