"""Evaluates a trained scene on its held-out frames, one frame at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape
from rich.progress import track

from divff_nerfstudio.data.annotations import (
    LabelledMasks,
    affordance_annotations,
    moving_mask,
    object_annotations,
)
from divff_nerfstudio.evaluation.baselines.base import Baseline, load_baseline
from divff_nerfstudio.evaluation.baselines.models import BaselineModels
from divff_nerfstudio.evaluation.classes import ClassScores
from divff_nerfstudio.evaluation.consistency import consistency
from divff_nerfstudio.evaluation.figures import FIGURE, save_frame_figure, save_picture
from divff_nerfstudio.evaluation.metrics import AFFORDANCE_THRESHOLD, OBJECT_THRESHOLD
from divff_nerfstudio.evaluation.moved_scores import moved
from divff_nerfstudio.evaluation.options import EvaluationError, TaskGroup, asked_kind
from divff_nerfstudio.evaluation.results import Evaluation, FrameResult, Task, ViewScores, mean_scores
from divff_nerfstudio.evaluation.scores import frame_scores, scored_pictures
from divff_nerfstudio.evaluation.surroundings import surroundings
from divff_nerfstudio.evaluation.tiles import Picture
from divff_nerfstudio.evaluation.trained_scene import AskedView, TrainedScene
from divff_nerfstudio.evenly import evenly_spaced
from divff_nerfstudio.models.view import FEATURES, Renderer
from divff_nerfstudio.query import Query, QueryError

if TYPE_CHECKING:
    from divff_nerfstudio.datamanager import DivFFDataManager

VIEW_TASKS: dict[str, Callable[[TrainedScene, Sequence[str], int], ViewScores]] = {
    "consistency": consistency,
    "surroundings": surroundings,
    "moved_objects": moved,
}
"""Tasks that look at the scene from elsewhere, by name; called with the scene, the queries and the moments."""
_KINDS: tuple[str, ...] = ("image", "video")


@dataclass(frozen=True)
class Wanted:
    """What of an evaluation is wanted."""

    tasks: tuple[TaskGroup, ...] = ("masks", "objects", "affordances", "views")
    """Which groups of tasks."""
    frames: int | None = None
    """How many held-out frames, evenly spaced; None: all."""
    queries: tuple[str, ...] = ()
    """Only these classes and actions, and what of it is not annotated is shown in the figures; none: all annotated."""
    baselines: tuple[str, ...] = ()
    """Names of the baselines to score beside the field."""
    moments: int = 8
    """How many moments the tasks of views look at."""
    models: BaselineModels = field(default_factory=BaselineModels)
    """Options of baselines with models of their own."""


class _Scored:
    """Scores of one method, as they come frame by frame."""

    def __init__(self, tasks: Mapping[str, Task], pictures: bool):
        self.tasks, self.pictures = tasks, pictures
        self.classes = {name: ClassScores(task.annotations.names, task.threshold) for name, task in tasks.items()}
        self.frames: dict[int, dict[str, float]] = {}
        self.frame_classes: dict[int, Any] = {}
        self.annotated: dict[str, list[int]] = {name: [] for name in tasks}

    def add(self, result: FrameResult) -> None:
        """Scores a frame, and notes the scores in it."""
        result.scores = frame_scores(result) if self.pictures else {}
        for name, relevancies in result.relevancies.items():
            masks = self.tasks[name].annotations.masks[result.index]
            result.classes[name] = self.classes[name].add(relevancies, masks, masks=result.masks.get(name))
            self.annotated[name].append(result.frame_id)
        self.frames[result.frame_id] = result.scores
        self.frame_classes[result.frame_id] = result.classes

    def evaluation(self) -> Evaluation:
        """The scores over all frames."""
        totals = mean_scores(self.frames.values())
        asked = {name: scores for name, scores in self.classes.items() if scores.frames}
        for name, scores in asked.items():
            totals |= {f"{name}_{key}": value for key, value in scores.totals().items()}
        return Evaluation(
            totals=totals,
            frames=self.frames,
            classes={name: scores.per_class() for name, scores in asked.items()},
            thresholds={name: self.tasks[name].threshold for name in asked},
            frame_classes=self.frame_classes,
            thresholds_left_out={
                name: dict(zip(self.annotated[name], thresholds, strict=True))
                for name, scores in asked.items()
                if (thresholds := scores.left_out_thresholds())
            },
        )


def evaluate(
    model: Renderer,
    datamanager: DivFFDataManager,
    query: Query,
    on_frame: Callable[[FrameResult, Mapping[str, Task]], object] | None = None,
    wanted: Wanted | None = None,
    on_figure: Callable[[str, Picture], None] | None = None,
) -> Evaluation:
    """Renders every held-out frame of the data manager's evaluation split once, and scores it.

    The scores of single frames are averaged over the frames that have them: those of `scores.FRAME_SCORES`. Scores over
    the scene are those of `scores.SCENE_SCORES`: classes by image and by video features, see `find_tasks` and
    `ClassScores`, and the tasks of `VIEW_TASKS`.

    Args:
        model: Renders the views.
        datamanager: Gives the frames.
        query: Gives relevancies of the classes' names.
        on_frame: Called with every frame when it has been scored; it may show what `frame_figure` does.
        wanted: Which tasks, frames, queries and baselines; None: all, and no baselines.
        on_figure: Called with name and picture of what the tasks of `VIEW_TASKS` show.

    Raises:
        EvaluationError: If a frame of the split was trained on.
    """
    wanted, trained = wanted or Wanted(), TrainedScene(model, datamanager, query)
    tasks = _answerable(find_tasks(trained, wanted), query)
    own = _Scored(tasks, "masks" in wanted.tasks)
    baselines = {name: load_baseline(name, trained, wanted.models) for name in wanted.baselines}
    for baseline in baselines.values():
        baseline.prepare(tasks)
    others = {name: _Scored(tasks, "masks" in wanted.tasks) for name in baselines}
    for index, camera, target in _held_out(trained, wanted.frames):
        result = _shown(trained, index, camera, target, tasks, wanted, pictured=on_frame is not None)
        own.add(result)
        for name, baseline in baselines.items():
            others[name].add(_by_baseline(baseline, result, tasks))
        if on_frame is not None:
            on_frame(result, tasks)
    evaluation = own.evaluation()
    evaluation.baselines = {name: scored.evaluation() for name, scored in others.items()}
    things = _things_among(wanted.queries, affordance_annotations(trained.scene))
    for name, task in VIEW_TASKS.items() if "views" in wanted.tasks and (things or not wanted.queries) else ():
        try:
            found = task(trained, things, wanted.moments)
        except QueryError as error:
            CONSOLE.print(f"[yellow]{escape(str(error))} The scores of the task {name} are left out.")
            continue
        evaluation.totals |= found.totals
        if found.classes:
            evaluation.classes[name] = found.classes
        for frame_id, table in found.frames.items():
            evaluation.frame_classes.setdefault(frame_id, {})[name] = table
        if on_figure is not None:
            for title, picture in found.figures.items():
                on_figure(title, picture)
    return evaluation


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

    def save_other(name: str, picture: Picture) -> None:
        if output_path is not None:
            save_picture(output_path / f"{name}.png", picture)

    save = None if output_path is None else partial(save_frame_figure, output_path)
    evaluation = evaluate(model, datamanager, query, save, on_figure=save_other)
    totals = dict(evaluation.totals)
    if get_std:
        for name in mean_scores(evaluation.frames.values()):
            values = [scores[name] for scores in evaluation.frames.values() if name in scores]
            totals[f"{name}_std"] = float(np.std(values))
    return totals


def find_tasks(trained: TrainedScene, wanted: Wanted | None = None) -> dict[str, Task]:
    """What a scene's annotations allow to ask, by name.

    Args:
        trained: The scene.
        wanted: Which tasks and which of their classes; None: all.

    Returns:
        Up to four: "object" and "affordance", which the usual features answer, and "object_video" and
        "affordance_image", which ask the others, so that the difference is seen. What the run has no features for is
        not among them.
    """
    wanted, tasks = wanted or Wanted(), {}
    for name, group, usual, threshold, read in (
        ("object", "objects", "image", OBJECT_THRESHOLD, object_annotations),
        ("affordance", "affordances", "video", AFFORDANCE_THRESHOLD, affordance_annotations),
    ):
        annotations = read(trained.scene) if group in wanted.tasks else None
        if annotations is not None and wanted.queries:
            annotations = _only(annotations, wanted.queries)
        if annotations is None or not annotations.names:
            continue
        for kind in sorted(_KINDS, key=lambda kind: kind != usual):
            if kind in trained.query.kinds:
                full = name if kind == usual else f"{name}_{kind}"
                tasks[full] = Task(full, group, kind, threshold, annotations)
    return tasks


def _answerable(tasks: Mapping[str, Task], query: Query) -> dict[str, Task]:
    """The tasks that can be asked; where a text encoder is not to be had, the other scores are not lost with it."""
    found = {}
    for name, task in tasks.items():
        try:
            query.check(task.kind, task.annotations.names)
            found[name] = task
        except QueryError as error:
            CONSOLE.print(f"[yellow]{escape(str(error))} The scores of the task {name} are left out.")
    return found


def _only(annotations: LabelledMasks, names: Sequence[str]) -> LabelledMasks:
    """The classes of some names."""
    kept = [i for i, name in enumerate(annotations.names) if name in names]
    masks = {index: mask[..., kept] for index, mask in annotations.masks.items()}
    return LabelledMasks(tuple(annotations.names[i] for i in kept), masks)


def _held_out(trained: TrainedScene, count: int | None) -> Iterable[tuple[int, Cameras, np.ndarray]]:
    """Index, camera and picture of the held-out frames, one at a time.

    Raises:
        EvaluationError: If one was trained on, by the scene as it is or as it was when the model was trained.
    """
    scene, dataset = trained.scene, trained.datamanager.eval_dataset
    indices = [int(i) for i in dataset.metadata["indices"]]
    seen, known = getattr(trained.model, "train_times", None), set(trained.trained)
    there = [int(i) for i in trained.datamanager.fixed_indices_eval_dataloader.image_indices]
    chosen = [there[i] for i in evenly_spaced(len(there), count)]
    near = min(1e-6, float(np.diff(trained.times).min()) / 2)  # frames may be closer than a millionth of the video
    for index in (indices[i] for i in chosen):
        time = float(trained.times[index])
        if index in known or (seen is not None and bool((seen - time).abs().lt(near).any())):
            raise EvaluationError(
                f"Frame {scene.frame_ids[index]} of {scene.root} was trained on: evaluate held-out frames only."
            )
    for i in track(chosen, "Evaluating ...", console=CONSOLE, transient=True):
        target = scene.frame(indices[i]) / np.float32(255)
        yield indices[i], dataset.cameras[i : i + 1], target


def _shown(
    trained: TrainedScene,
    index: int,
    camera: Cameras,
    target: np.ndarray,
    tasks: Mapping[str, Task],
    wanted: Wanted,
    pictured: bool,
) -> FrameResult:
    """What the field shows of a frame, and answers in it; what is only for pictures is not rendered without these."""
    scene, moving = trained.scene, moving_mask(trained.scene, index)
    annotated = {name for task in tasks.values() for name in task.annotations.names}
    others = [phrase for phrase in wanted.queries if phrase not in annotated]
    asked = [task for task in tasks.values() if index in task.annotations.masks]
    outputs = {"rgb"}
    if "masks" in wanted.tasks:
        outputs |= scored_pictures(annotated=moving is not None or trained.truth is not None)
    outputs |= {*(FIGURE if pictured else ()), *((FEATURES,) if asked or others else ())}
    view = trained.render(camera, outputs=outputs)
    relevancies = {
        task.name: view.relevancies(task.kind, task.annotations.names)
        for task in asked
        if view.embeddings(task.kind) is not None
    }
    return FrameResult(
        index=index,
        frame_id=int(scene.frame_ids[index]),
        target=target,
        outputs={name: picture.numpy() for name, picture in view.pictures.items()},
        nearest=scene.frame(trained.nearest_trained(index)) / np.float32(255),
        moving=moving,
        truth=trained.truth,
        relevancies=relevancies,
        masks=_calibrated(trained, view, relevancies, tasks),
        shown=_unannotated(view, others),
    )


def _calibrated(
    trained: TrainedScene,
    view: AskedView,
    relevancies: Mapping[str, Float[np.ndarray, "height width classes"]],
    tasks: Mapping[str, Task],
) -> dict[str, Bool[np.ndarray, "height width classes"]]:
    """What belongs to each class at thresholds that fit the scene, by name of the task."""
    found = {}
    for name, relevancy in relevancies.items():
        calibration, features = trained.calibration(tasks[name].kind), view.embeddings(tasks[name].kind)
        if calibration is not None and features is not None:
            found[name] = calibration.masks(features, relevancy, tasks[name].annotations.names)
    return found


def _unannotated(view: AskedView, phrases: Sequence[str]) -> dict[tuple[str, str], Float[np.ndarray, "height width"]]:
    """Relevancies of phrases that no annotation knows, by the image features unless they name others."""
    asked = [asked_kind(typed, "image") for typed in phrases]
    return {
        (kind, phrase): view.relevancies(kind, (phrase,))[..., 0]
        for kind, phrase in asked
        if view.embeddings(kind) is not None
    }


def _things_among(queries: Sequence[str], actions: LabelledMasks | None) -> tuple[str, ...]:
    """Those of the queries that ask the image features for things: no actions, and nothing that others are asked."""
    named = () if actions is None else actions.names
    asked = [asked_kind(typed, "image") for typed in queries]
    return tuple(phrase for kind, phrase in asked if kind == "image" and phrase not in named)


def _by_baseline(baseline: Baseline, result: FrameResult, tasks: Mapping[str, Task]) -> FrameResult:
    """What a baseline shows of a frame, and answers in it, unscored."""
    found = {
        name: relevancies
        for name, task in tasks.items()
        if result.index in task.annotations.masks and (relevancies := baseline.relevancies(result, task)) is not None
    }
    return replace(
        result, outputs=baseline.outputs(result), relevancies=found, masks={}, shown={}, scores={}, classes={}
    )
