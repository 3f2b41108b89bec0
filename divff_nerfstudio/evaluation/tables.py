"""Scores as tables: CSV files of one evaluation, and the table over scenes in Markdown and LaTeX."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.evaluation.options import EvaluationError
from divff_nerfstudio.evaluation.results import Evaluation
from divff_nerfstudio.evaluation.scores import FRAME_SCORES, SCENE_SCORES
from divff_nerfstudio.schema import Number, Record, read_json

SCORES_FILE = "scores.json"
COLUMNS = (
    "psnr",
    "ssim",
    "lpips",
    "moving_ap",
    "dynamic_ap",
    "actor_ap",
    "moved_object_ap",
    "moved_found_and_gone",
    "moved_point_error_cm",
    "object_ap",
    "object_miou",
    "object_miou_sound",
    "object_miou_auto",
    "object_miou_loo",
    "affordance_ap",
    "affordance_miou",
    "affordance_miou_sound",
    "affordance_miou_auto",
    "affordance_miou_loo",
    "consistency_iou",
    "surroundings_ap",
)
"""Scores that the table over scenes shows unless told otherwise, those that no scene has left out."""


def save_csv(folder: Path, method: str, evaluation: Evaluation) -> list[Path]:
    """Writes totals, frames, classes and classes by frame, each as a CSV file with one row per method and item.

    Args:
        folder: Where they go.
        method: What the field's method is called.
        evaluation: Its scores and those of the baselines.
    """
    methods = {method: evaluation, **evaluation.baselines}
    totals = [{"method": name, **scored.totals} for name, scored in methods.items()]
    frames = [
        {"method": name, "frame": frame, **scores}
        for name, scored in methods.items()
        for frame, scores in scored.frames.items()
    ]
    classes = [
        {"method": name, "task": task, "class": label, **scores}
        for name, scored in methods.items()
        for task, table in scored.classes.items()
        for label, scores in table.items()
    ]
    by_frame = [
        {
            "method": name,
            "frame": frame,
            "task": task,
            "class": label,
            "threshold": scored.thresholds.get(task, ""),
            "threshold_loo": scored.thresholds_left_out.get(task, {}).get(frame, ""),
            **scores,
        }
        for name, scored in methods.items()
        for frame, tasks in scored.frame_classes.items()
        for task, table in tasks.items()
        for label, scores in table.items()
    ]
    tables = {"totals": totals, "frames": frames, "classes": classes, "classes_by_frame": by_frame}
    for name in (name for name, rows in tables.items() if not rows):
        (folder / f"{name}.csv").unlink(missing_ok=True)  # that of an earlier evaluation
    return [write_csv(folder / f"{name}.csv", rows) for name, rows in tables.items() if rows]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows under the names that any of them has, in order of appearance; what a row lacks stays empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


@dataclass(frozen=True)
class ScoredRun:
    """What the table over scenes needs of an evaluated run."""

    scene: str
    """Name of the scene."""
    method: str
    """Name of the method, or of a baseline."""
    totals: Mapping[str, float]
    """Its scores."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What the evaluation says of the run."""


def read_runs(places: Iterable[Path]) -> list[ScoredRun]:
    """Reads evaluated runs, each followed by its baselines.

    Args:
        places: For each a scores.json, or the folder of the evaluation, or the run's folder or its config.yml.

    Raises:
        EvaluationError: If one has not been evaluated.
    """
    runs = []
    for place in places:
        path = _scores_file(place)
        content = read_json(
            path, _Scores, "a file of scores of `divff evaluate`", "evaluate the run anew", EvaluationError
        )
        facts = content.facts
        runs.append(ScoredRun(facts["Scene"], facts.get("Method", "divff"), content.totals, facts))
        for name, scored in content.baselines.items():
            runs.append(ScoredRun(facts["Scene"], name, scored.totals, facts))
    return runs


class _Totals(Record):
    """Scores of a scene."""

    totals: dict[str, Number]


class _Scores(_Totals):
    """What the table over scenes needs of a scores.json."""

    facts: dict[str, str]
    baselines: dict[str, _Totals] = Field(default_factory=dict)

    @field_validator("facts")
    @classmethod
    def _with_scene(cls, facts: dict[str, str]) -> dict[str, str]:
        if not facts.get("Scene", "").strip():
            raise ValueError("should name the Scene")
        return facts


def _scores_file(place: Path) -> Path:
    try:
        if place.is_file() and place.suffix == ".json":
            return place
        folder = place.parent if place.is_file() else place
        candidates = (folder / SCORES_FILE, folder / "evaluation" / SCORES_FILE)
        found = next((path for path in candidates if path.is_file()), None)
    except OSError as error:
        raise EvaluationError(f"{place} cannot be read ({error.strerror}): give the folder of a run.") from None
    if found is None:
        raise EvaluationError(f"{place} has no {SCORES_FILE}: run `divff evaluate --load-config` on it first.")
    return found


@dataclass(frozen=True)
class Table:
    """Words and numbers in rows; a method's mean over its scenes follows the scenes."""

    head: tuple[str, ...]
    """What the columns are."""
    rows: tuple[tuple[str, ...], ...]
    """Their cells."""
    words: int = 2
    """How many columns, from the left, hold words; the others hold numbers."""

    def markdown(self) -> str:
        """As a table of Markdown."""
        lines = [self.head, ("---",) * self.words + ("---:",) * (len(self.head) - self.words), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"

    def latex(self) -> str:
        """As a tabular of LaTeX, with the rules of the package booktabs."""
        head, *rows = (" & ".join(map(_tex, line)) + r" \\" for line in (self.head, *self.rows))
        begin = rf"\begin{{tabular}}{{{'l' * self.words}{'r' * (len(self.head) - self.words)}}}"
        return "\n".join([begin, r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]) + "\n"


def average_table(runs: Sequence[ScoredRun], columns: Sequence[str] = COLUMNS) -> Table:
    """The table over scenes: for each method its scenes, and their mean.

    A mean is over the scenes that have the score, and says of how many where those are not all. A method with none of
    the scores has no rows.

    Args:
        runs: The evaluated runs.
        columns: Names of the scores; what none of the runs has is left out.

    Raises:
        EvaluationError: If there is no run, or two are of one method and scene.
    """
    if not runs:
        raise EvaluationError("There is nothing to average: name at least one evaluated run.")
    twice = [(run.method, run.scene) for i, run in enumerate(runs) if any(_same(run, other) for other in runs[:i])]
    if twice:
        raise EvaluationError(f"{twice[0][0]} on {twice[0][1]} is named twice: leave one of the runs out.")
    known = FRAME_SCORES | SCENE_SCORES
    columns = [name for name in columns if any(name in run.totals for run in runs)]
    head = ("Method", "Scene", *(" ".join(filter(None, (known[name].title, known[name].unit))) for name in columns))
    rows: list[tuple[str, ...]] = []
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        if not any(name in run.totals for run in own for name in columns):
            continue
        for run in own:
            rows.append((method, run.scene, *(number(run.totals.get(name)) for name in columns)))
        if len(own) > 1:
            rows.append((method, f"mean of {len(own)}", *(_mean(own, name) for name in columns)))
    return Table(head, tuple(rows))


def _mean(runs: Sequence[ScoredRun], name: str) -> str:
    """Mean of a score over the runs that have it, and their number where those are not all."""
    values = [run.totals[name] for run in runs if name in run.totals]
    if not values:
        return ""
    return number(float(np.mean(values))) + ("" if len(values) == len(runs) else f" ({len(values)})")


def number(value: float | None) -> str:
    """A score as it is written: two decimals from ten on, three below; nothing where there is none."""
    if value is None:
        return ""
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def _same(first: ScoredRun, second: ScoredRun) -> bool:
    return (first.method, first.scene) == (second.method, second.scene)


def _tex(text: str) -> str:
    return "".join("\\" + letter if letter in "&%$#_{}" else letter for letter in text)
