"""The page of a reproduction: its tables over scenes, what they cost, and published numbers beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.evaluation.options import TaskGroup
from divff_nerfstudio.evaluation.scores import FRAME_SCORES, SCENE_SCORES
from divff_nerfstudio.evaluation.tables import ScoredRun, Table, average_table, number, read_runs
from divff_nerfstudio.schema import Number, Record, read_json

PUBLISHED_NUMBERS = Path(str(files("divff_nerfstudio") / "configs" / "published_numbers.json"))
"""Numbers that others have published."""
INTRODUCTION = """# Tables

Scores of held-out frames. Class scores come under the published convention (a class is asked only where it is
annotated, one that is never annotated counts as 0) and the sound one (every class in every annotated frame); what each
means is in docs/evaluation.md. `object_video_miou` ("Objects by video, published") is what DIV-FF's code computes for
objects, `object_miou` what its paper's text says.
"""


@dataclass(frozen=True)
class Layout:
    """Which scores a table shows."""

    title: str
    """Its heading."""
    task: TaskGroup
    """The task whose scores it shows."""
    columns: tuple[str, ...]
    """Scores, by their names in scores.json."""


def _both(*tasks: str) -> tuple[str, ...]:
    """Scores of classes under both conventions."""
    keys = ("miou", "ap_published", "miou_sound", "ap", "miou_auto", "miou_loo")
    return tuple(f"{task}_{key}" for task in tasks for key in keys)


LAYOUTS = {
    "masks": Layout(
        "Pictures and masks",
        "masks",
        (
            *("psnr_published", "psnr", "psnr_static", "psnr_moving", "ssim", "lpips"),
            *("moving_ap", "moving_ap_ever", "dynamic_ap", "actor_ap"),
        ),
    ),
    "objects": Layout("Objects", "objects", _both("object_video", "object")),
    "affordances": Layout("Affordances", "affordances", _both("affordance", "affordance_image")),
    "views": Layout(
        "Over time, and beyond the frame",
        "views",
        ("consistency_iou", "consistency_soft_iou", "consistency_found", "surroundings_ap", "surroundings_miou_sound"),
    ),
}
"""The tables by name."""


class PublishedNumber(Record, extra="forbid"):
    """A number that somebody has published."""

    score: str
    """The score here that it is like, by its name in scores.json."""
    method: str
    """Whose number it is."""
    data: str
    """What it was measured on, and how that differs from ours."""
    value: Number
    """It, in the unit of the score."""
    source: str
    """Where it was read."""


def published_numbers(path: Path) -> list[PublishedNumber]:
    """Reads a JSON list of objects with the fields of `PublishedNumber`.

    Raises:
        DivffError: If it is none.
    """
    remedy = f"give objects with {', '.join(sorted(PublishedNumber.model_fields))}"
    found = read_json(path, list[PublishedNumber], "a list of published numbers", remedy)
    for entry in found:
        if entry.score not in FRAME_SCORES | SCENE_SCORES:
            raise DivffError(f"{path} names a score {entry.score}: use names from scores.json.")
    return found


def write_page(page: Path, layouts: Sequence[str], scores: Sequence[Path], numbers: Path) -> None:
    """Writes all tables as Markdown, and beside it as LaTeX.

    Args:
        page: The Markdown file.
        layouts: Names of the tables over scenes, of those in `LAYOUTS`.
        scores: Every scores.json.
        numbers: See `published_numbers`.
    """
    runs = read_runs(scores)
    tables = {LAYOUTS[name].title: average_table(runs, LAYOUTS[name].columns) for name in layouts}
    tables["Beside published numbers"] = comparison(runs, published_numbers(numbers))
    tables["What it took"] = _cost(scores)
    markdown = [INTRODUCTION, *(f"## {title}\n\n{table.markdown()}" for title, table in tables.items())]
    latex = [f"% {title}\n{table.latex()}" for title, table in tables.items()]
    for path, parts in ((page, markdown), (page.with_suffix(".tex"), latex)):
        with atomic_path(path) as temporary:
            temporary.write_text("\n".join(parts), encoding="utf-8")


def comparison(runs: Sequence[ScoredRun], numbers: Sequence[PublishedNumber]) -> Table:
    """For each score of which a number was published the means over scenes of all methods here, and those numbers."""
    rows = []
    for score in dict.fromkeys(entry.score for entry in numbers):
        known = (FRAME_SCORES | SCENE_SCORES)[score]
        title = f"{known.title} {known.unit}".strip()
        for method in dict.fromkeys(run.method for run in runs):
            values = [run.totals[score] for run in runs if run.method == method and score in run.totals]
            if values:
                scenes = f"{len(values)} scene{'s' if len(values) > 1 else ''}"
                rows.append((title, f"{method}, here", scenes, "this run", number(float(np.mean(values)))))
        others = [entry for entry in numbers if entry.score == score]
        rows += [(title, entry.method, entry.data, entry.source, number(entry.value)) for entry in others]
    return Table(("Score", "Whose", "Of", "Source", "Value"), tuple(rows), words=4)


def _cost(scores: Sequence[Path]) -> Table:
    """Training and evaluation of each method and scene, and on what."""
    known = ("Training steps", "Training", "Evaluation", "Features", "Hardware")
    runs = [read_runs([path])[0] for path in scores]
    rows = [(run.method, run.scene, *(run.facts.get(name, "") for name in known)) for run in runs]
    return Table(("Method", "Scene", *known), tuple(rows), words=2 + len(known))
