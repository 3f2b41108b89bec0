"""Writes docs/results.md from the scores of evaluated runs; no number in it is typed by hand.

Usage: ``python scripts/results_page.py [--add NAME=SCORES_JSON ...]``. What is added is kept as
``docs/results/NAME.json``, without frames and classes; the page shows all files there, by scene.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.evaluation.scores import FRAME_SCORES, SCENE_SCORES
from divff_nerfstudio.evaluation.tables import ScoredRun, number, read_runs
from divff_nerfstudio.features.oracle import ORACLE

DOCS = Path(__file__).resolve().parents[1] / "docs"
FACTS = ("Features", "Training steps", "Training", "Evaluation", "Hardware")
FACTS_HEAD = ("Run", "Method", "Features", "Steps", "Training", "Evaluation", "Hardware")
CLASS_SCORES = ("ap", "miou", "miou_sound", "miou_auto", "miou_loo")
SECTIONS: dict[str, tuple[str, ...]] = {
    "Pictures and masks": (
        "psnr",
        "psnr_static",
        "psnr_moving",
        "ssim",
        "lpips",
        "moving_ap",
        "moving_ap_ever",
        "dynamic_ap",
        "actor_ap",
        "psnr_static_room",
    ),
    "Objects": tuple(f"{task}_{key}" for task in ("object", "object_video") for key in CLASS_SCORES),
    "Affordances": tuple(f"{task}_{key}" for task in ("affordance", "affordance_image") for key in CLASS_SCORES),
    "Moved objects": (
        "moved_object_ap",
        "moved_object_ap_before",
        "moved_found",
        "moved_gone",
        "moved_found_and_gone",
        "moved_point_error_cm",
    ),
    "Over time, and beyond the frame": (
        "consistency_iou",
        "consistency_soft_iou",
        "consistency_found",
        "surroundings_ap",
        "surroundings_miou_sound",
        "surroundings_miou_loo",
    ),
}
INTRODUCTION = f"""# Results

Written by `scripts/results_page.py` from the files in `docs/results/`, which `divff evaluate` has written. All
numbers are of held-out frames. What the scores mean, and both conventions, is in [evaluation.md](evaluation.md).

Rows whose features are `{ORACLE}` were trained on fixed random codes of ground-truth instances, since no encoder at
hand knows the scene's vocabulary: they measure the field and the query, not an encoder. Baselines: `nearest` copies the
training frame next in time, `mean` is the mean of all training frames, `extracted` asks the held-out frame's own 2D
features.

Rows are of several states of the package: what the present defaults give is in [performance.md](performance.md).
"""


@dataclass
class ResultsPage:
    """Writes the page of results."""

    add: tuple[str, ...] = ()
    """Evaluated runs to keep, as NAME=SCORES_JSON."""
    runs: Path = DOCS / "results"
    """Folder of the scores that are kept."""
    output: Path = DOCS / "results.md"
    """The page."""

    def main(self) -> None:
        """Keeps what is added, and writes the page."""
        for text in self.add:
            name, _, place = text.partition("=")
            keep(self.runs / f"{name}.json", Path(place))
        files = sorted(self.runs.glob("*.json"))
        with atomic_path(self.output) as temporary:
            temporary.write_text(page({path.stem: read_runs([path]) for path in files}), encoding="utf-8")


def keep(path: Path, scores: Path) -> None:
    """Keeps the totals of a scores.json, and the facts that the page tells."""
    if not scores.is_file():
        raise DivffError(f"{scores} is missing: give --add NAME=RUN/evaluation/scores.json.")
    content = json.loads(scores.read_text(encoding="utf-8"))
    facts = {name: content["facts"][name] for name in ("Method", "Scene", "Frames", *FACTS) if name in content["facts"]}
    kept = {"facts": facts, "totals": content["totals"]}
    kept["baselines"] = {name: {"totals": found["totals"]} for name, found in content.get("baselines", {}).items()}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def page(runs: dict[str, list[ScoredRun]]) -> str:
    """The page as Markdown.

    Args:
        runs: For each kept file its run and that run's baselines.
    """
    scenes: dict[str, dict[str, list[ScoredRun]]] = {}
    for name, found in runs.items():
        scenes.setdefault(f"{found[0].scene}, {found[0].facts['Frames']}", {})[name] = found
    parts = [INTRODUCTION]
    for scene, files in scenes.items():
        parts.append(f"## {scene}\n")
        parts.append(
            _table(("Run", "Method", "Features", "Steps", "Training", "Evaluation", "Hardware"), _facts(files))
        )
        for title, columns in SECTIONS.items():
            rows = [(name, run) for name, found in files.items() for run in found]
            shown = [column for column in columns if any(column in run.totals for _, run in rows)]
            rows = [(name, run) for name, run in rows if any(column in run.totals for column in shown)]
            if shown:
                titles = [f"{score.title} {score.unit}".strip() for score in map(_known, shown)]
                lines = [(name, _method(run), *(number(run.totals.get(c)) for c in shown)) for name, run in rows]
                parts.append(f"### {title}\n\n{_table(('Run', 'Method', *titles), lines)}")
    return "\n".join(parts)


def _known(name: str):
    return (FRAME_SCORES | SCENE_SCORES)[name]


def _method(run: ScoredRun) -> str:
    return f"{run.method} ({ORACLE} features)" if f"({ORACLE})" in run.facts.get("Features", "") else run.method


def _facts(files: dict[str, list[ScoredRun]]) -> list[tuple[str, ...]]:
    """What each row of the tables was made by; a baseline is not trained."""
    rows = []
    for name, found in files.items():
        for i, run in enumerate(found):
            facts = [run.facts.get(fact, "") for fact in FACTS]
            if i:
                facts[1:4] = ["none", "none", "with the run"]
            rows.append((name, run.method, *facts))
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    tyro.cli(ResultsPage).main()
