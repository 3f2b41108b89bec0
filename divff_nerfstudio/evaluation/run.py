"""Evaluates a trained scene on its held-out frames, one frame at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track
from torch import Tensor

from divff_nerfstudio.data.annotations import (
    GroundTruth,
    LabelledMasks,
    affordance_annotations,
    ground_truth,
    moving_mask,
    object_annotations,
)
from divff_nerfstudio.data.scene import Scene
from divff_nerfstudio.evaluation.figures import save_frame_figure
from divff_nerfstudio.evaluation.metrics import (
    AFFORDANCE_THRESHOLD,
    OBJECT_THRESHOLD,
    ClassScores,
    average_precision,
    psnr,
    ssim,
)
from divff_nerfstudio.files import DivffError
from divff_nerfstudio.query import Query

if TYPE_CHECKING:
    from divff_nerfstudio.datamanager import DivFFDataManager


class EvaluationError(DivffError):
    """An evaluation that would say something untrue, or has nothing to look at."""


class Renderer(Protocol):
    """What evaluation needs of the model."""

    visibility: Any
    """Switches `hide_actor` and `hide_dynamic`."""
    answer: Any
    """Hook that adds the outputs of the current query."""

    def get_outputs_for_camera(self, camera: Cameras) -> dict[str, Tensor]:
        """Pictures of a view, (height, width, channels) by name."""
        ...

    def render_features(self, camera: Cameras) -> dict[str, Tensor]:
        """Unit-length features of a view, (height, width, dim) by kind; no entry for what was not trained."""
        ...


@dataclass(frozen=True)
class Task:
    """A set of classes to find by their names."""

    name: str
    """Prefix of its scores: object or affordance."""
    kind: str
    """Kind of features that answers."""
    threshold: float
    """Fixed relevancy above which a pixel counts as found."""
    annotations: LabelledMasks
    """Classes and masks."""


@dataclass
class FrameResult:
    """Everything about one held-out frame; it is dropped before the next is rendered."""

    index: int
    """Index in the scene."""
    frame_id: int
    """Id in the scene."""
    target: Float[np.ndarray, "height width 3"]
    """The frame, 0..1."""
    outputs: dict[str, Float[np.ndarray, "height width channels"]]
    """The model's pictures of it."""
    moving: Bool[np.ndarray, "height width"] | None
    """Annotated mask of what moves."""
    relevancies: dict[str, Float[np.ndarray, "height width classes"]] = field(default_factory=dict)
    """By name of the task, where the frame is annotated for it."""
    scores: dict[str, float] = field(default_factory=dict)
    """What this frame alone contributes."""


@dataclass
class Evaluation:
    """Scores of a scene."""

    totals: dict[str, float]
    """Scores over the held-out frames; what cannot be told is left out."""
    frames: dict[int, dict[str, float]]
    """By frame id."""
    classes: dict[str, dict[str, dict[str, float]]]
    """By task and class."""
    thresholds: dict[str, float]
    """Fixed threshold of each task."""


def evaluate(
    model: Renderer,
    datamanager: DivFFDataManager,
    query: Query,
    on_frame: Callable[[FrameResult, Mapping[str, Task]], None] | None = None,
) -> Evaluation:
    """Renders every held-out frame of the data manager's evaluation split and scores it.

    Scores per frame, averaged over the frames that have them: "psnr" (dB), "ssim", "psnr_nearest_frame" (of the
    training frame next in time, the earlier of two, as a baseline); "moving_ap" (average precision of `mask_moving`
    against the annotation; frames with an empty one are skipped). With ground truth: "dynamic_ap" and "actor_ap" (each
    layer's mask against its own pixels), "moving_ap_ever" and "dynamic_ap_ever" (objects count before they first move,
    too) and "psnr_static_room" (`rgb_static` against the room without objects and actor).

    Scores over the scene: for "object" (image features) and "affordance" (video features) "_miou", "_miou_sound",
    "_ap" and "_miou_oracle", see `ClassScores`.

    Args:
        model: Renders the views.
        datamanager: Gives the frames.
        query: Gives relevancies of the classes' names.
        on_frame: Called with every frame when it has been scored.

    Raises:
        EvaluationError: If a frame of the split was trained on.
    """
    scene: Scene = datamanager.train_dataset.metadata["scene"]
    loader = datamanager.fixed_indices_eval_dataloader
    trained = {int(i) for i in datamanager.train_dataset.metadata["indices"]}
    tasks = find_tasks(scene)
    classes = {name: ClassScores(task.annotations.names, task.threshold) for name, task in tasks.items()}
    truth = ground_truth(scene)
    frames: dict[int, dict[str, float]] = {}
    with neutral(model), torch.no_grad():
        for camera, batch in track(loader, "Evaluating ...", total=len(loader), console=CONSOLE, transient=True):
            index = int(batch["frame_index"])
            if index in trained:
                raise EvaluationError(
                    f"Frame {scene.frame_ids[index]} of {scene.root} was trained on: evaluate held-out frames only."
                )
            result = _render(model, query, scene, camera, batch, index, tasks)
            nearest = min(trained, key=lambda i: (abs(int(scene.frame_ids[i] - scene.frame_ids[index])), i))
            result.scores = _frame_scores(result, scene.frame(nearest) / 255.0, truth)
            for name, scores in result.relevancies.items():
                classes[name].add(scores, tasks[name].annotations.masks[index])
            frames[result.frame_id] = result.scores
            if on_frame is not None:
                on_frame(result, tasks)
    totals = _means(frames)
    for name, scores in classes.items():
        totals |= {f"{name}_{key}": value for key, value in scores.totals().items()}
    return Evaluation(
        totals=totals,
        frames=frames,
        classes={name: scores.per_class() for name, scores in classes.items() if scores.frames},
        thresholds={name: task.threshold for name, task in tasks.items()},
    )


def evaluate_scene(
    model: Renderer,
    datamanager: DivFFDataManager,
    query: Query,
    output_path: Path | None = None,
    get_std: bool = False,
) -> dict[str, float]:
    """Scores for ``ns-eval``: those of `evaluate` as one flat dictionary.

    Args:
        model: Renders the views.
        datamanager: Gives the frames.
        query: Gives relevancies of the classes' names.
        output_path: Where a figure of every frame is written, if anywhere.
        get_std: Add the standard deviation over the frames, with "_std" behind the name, of what is a mean over them.

    Returns:
        Finite numbers only; what cannot be told is left out.
    """

    def save(result: FrameResult, tasks: Mapping[str, Task]) -> None:
        if output_path is not None:
            save_frame_figure(output_path, result, tasks)

    evaluation = evaluate(model, datamanager, query, save)
    totals = dict(evaluation.totals)
    if get_std:
        for name in _means(evaluation.frames):
            values = [scores[name] for scores in evaluation.frames.values() if name in scores]
            totals[f"{name}_std"] = float(np.std(values))
    return totals


@contextlib.contextmanager
def neutral(model: Renderer) -> Iterator[None]:
    """Shows all layers and asks nothing while the block runs, whatever a viewer's panel is set to."""
    answer, visibility = model.answer, model.visibility
    hidden = visibility.hide_actor, visibility.hide_dynamic
    model.answer = None
    visibility.hide_actor = visibility.hide_dynamic = False
    try:
        yield
    finally:
        model.answer = answer
        visibility.hide_actor, visibility.hide_dynamic = hidden


def find_tasks(scene: Scene) -> dict[str, Task]:
    """What a scene's annotations allow to ask, by name."""
    found = (
        ("object", "image", OBJECT_THRESHOLD, object_annotations(scene)),
        ("affordance", "video", AFFORDANCE_THRESHOLD, affordance_annotations(scene)),
    )
    return {name: Task(name, kind, level, masks) for name, kind, level, masks in found if masks is not None}


def _render(
    model: Renderer,
    query: Query,
    scene: Scene,
    camera: Cameras,
    batch: dict[str, Any],
    index: int,
    tasks: Mapping[str, Task],
) -> FrameResult:
    outputs = {name: image.cpu().float().numpy() for name, image in model.get_outputs_for_camera(camera).items()}
    asked = [task for task in tasks.values() if index in task.annotations.masks and task.kind in query.kinds]
    features = model.render_features(camera) if asked else {}
    relevancies = {
        task.name: query.relevancies(features[task.kind], task.kind, task.annotations.names).cpu().float().numpy()
        for task in asked
        if task.kind in features
    }
    target = np.asarray(batch["image"].cpu().numpy(), np.float32)
    return FrameResult(
        index, int(scene.frame_ids[index]), target, outputs, moving_mask(scene, index), relevancies=relevancies
    )


def _frame_scores(
    result: FrameResult, nearest: Float[np.ndarray, "height width 3"], truth: GroundTruth | None
) -> dict[str, float]:
    outputs, target = result.outputs, result.target
    scores = {
        "psnr": psnr(outputs["rgb"], target),
        "ssim": ssim(outputs["rgb"], target),
        "psnr_nearest_frame": psnr(nearest, target),
    }
    if result.moving is not None:
        scores["moving_ap"] = average_precision(outputs["mask_moving"][..., 0], result.moving)
    if truth is not None:
        layers, ever = truth.layers(result.index), truth.layers_ever(result.index)
        scores["moving_ap_ever"] = average_precision(outputs["mask_moving"][..., 0], ever > 0)
        scores["dynamic_ap"] = average_precision(outputs["mask_dynamic"][..., 0], layers == 1)
        scores["dynamic_ap_ever"] = average_precision(outputs["mask_dynamic"][..., 0], ever == 1)
        scores["actor_ap"] = average_precision(outputs["mask_actor"][..., 0], layers == 2)
        room = truth.clean_room(result.index)
        if room is not None:
            scores["psnr_static_room"] = psnr(outputs["rgb_static"], room / 255.0)
    return {name: score for name, score in scores.items() if score is not None}


def _means(frames: Mapping[int, dict[str, float]]) -> dict[str, float]:
    """Mean of each score over the frames that have it."""
    names = dict.fromkeys(name for scores in frames.values() for name in scores)
    return {name: float(np.mean([scores[name] for scores in frames.values() if name in scores])) for name in names}
