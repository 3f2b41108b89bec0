"""Evaluates a trained scene on its held-out frames, one frame at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape
from rich.progress import track
from torch import Tensor

from divff_nerfstudio.data.annotations import affordance_annotations, ground_truth, moving_mask, object_annotations
from divff_nerfstudio.data.scene import Scene
from divff_nerfstudio.evaluation.figures import save_frame_figure
from divff_nerfstudio.evaluation.metrics import AFFORDANCE_THRESHOLD, OBJECT_THRESHOLD, ClassScores
from divff_nerfstudio.evaluation.results import Evaluation, FrameResult, Task
from divff_nerfstudio.evaluation.scores import frame_scores
from divff_nerfstudio.files import DivffError
from divff_nerfstudio.query import FeatureKind, Query, QueryError

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


def evaluate(
    model: Renderer,
    datamanager: DivFFDataManager,
    query: Query,
    on_frame: Callable[[FrameResult, Mapping[str, Task]], None] | None = None,
) -> Evaluation:
    """Renders every held-out frame of the data manager's evaluation split and scores it.

    The scores of single frames are averaged over the frames that have them: those of `scores.FRAME_SCORES`.

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
    tasks = _answerable(find_tasks(scene, query.config.object_features), query)
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
            nearest = min(trained, key=lambda i: (abs(int(scene.frame_ids[i] - scene.frame_ids[index])), i))
            result = FrameResult(
                index=index,
                frame_id=int(scene.frame_ids[index]),
                target=np.asarray(batch["image"].cpu().numpy(), np.float32),
                outputs={
                    key: image.cpu().float().numpy() for key, image in model.get_outputs_for_camera(camera).items()
                },
                nearest=scene.frame(nearest) / np.float32(255),
                moving=moving_mask(scene, index),
                truth=truth,
                relevancies=_relevancies(model, query, camera, index, tasks),
            )
            result.scores = frame_scores(result)
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


def find_tasks(scene: Scene, object_features: FeatureKind = "image") -> dict[str, Task]:
    """What a scene's annotations allow to ask, by name.

    Args:
        scene: The scene.
        object_features: Which features are asked for objects.
    """
    found = (
        ("object", object_features, OBJECT_THRESHOLD, object_annotations(scene)),
        ("affordance", "video", AFFORDANCE_THRESHOLD, affordance_annotations(scene)),
    )
    return {name: Task(name, kind, level, masks) for name, kind, level, masks in found if masks is not None}


def _answerable(tasks: Mapping[str, Task], query: Query) -> dict[str, Task]:
    """The tasks that can be asked; where a text encoder is not to be had, the other scores are not lost with it."""
    found = {}
    for name, task in tasks.items():
        try:
            if task.kind in query.kinds:
                query.check(task.kind, task.annotations.names)
            found[name] = task
        except QueryError as error:
            CONSOLE.print(f"[yellow]{escape(str(error))} The scores of the task {name} are left out.")
    return found


def _relevancies(
    model: Renderer, query: Query, camera: Cameras, index: int, tasks: Mapping[str, Task]
) -> dict[str, Float[np.ndarray, "height width classes"]]:
    """Relevancy of every class of the tasks that a frame is annotated for."""
    asked = [task for task in tasks.values() if index in task.annotations.masks and task.kind in query.kinds]
    features = model.render_features(camera) if asked else {}
    return {
        task.name: query.relevancies(features[task.kind], task.kind, task.annotations.names).cpu().float().numpy()
        for task in asked
        if task.kind in features
    }


def _means(frames: Mapping[int, dict[str, float]]) -> dict[str, float]:
    """Mean of each score over the frames that have it."""
    names = dict.fromkeys(name for scores in frames.values() for name in scores)
    return {name: float(np.mean([scores[name] for scores in frames.values() if name in scores])) for name in names}
