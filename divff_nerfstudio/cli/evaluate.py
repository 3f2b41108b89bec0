"""``divff evaluate``: scores of a trained scene, and the table over several."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Optional

from nerfstudio.utils.rich_utils import CONSOLE
from pydantic import Field
from rich.markup import escape

from divff_nerfstudio.atomic import write_text
from divff_nerfstudio.cli.opening import load_run
from divff_nerfstudio.evaluation.baselines.models import BaselineModels
from divff_nerfstudio.evaluation.metrics import lpips_weights
from divff_nerfstudio.evaluation.options import EvaluationError, TaskGroup
from divff_nerfstudio.evaluation.results import Evaluation
from divff_nerfstudio.evaluation.scores import FRAME_SCORES, SCENE_SCORES
from divff_nerfstudio.evaluation.tables import COLUMNS, SCORES_FILE, average_table, read_runs, save_csv
from divff_nerfstudio.outputs import check_output_folder
from divff_nerfstudio.schema import Count, Words


@dataclass
class EvaluateConfig:
    """Scores a trained scene on its held-out frames: a page, figures, and all numbers as JSON and CSV. With --average,
    makes the table over scenes that have been evaluated."""

    load_config: Optional[Path] = None  # noqa: UP045
    """The run's config.yml."""
    data: Optional[Path] = None  # noqa: UP045
    """Folder of its scene, if that is no longer where the config.yml says."""
    tasks: Annotated[tuple[TaskGroup, ...], Field(min_length=1)] = ("masks", "objects", "affordances", "views")
    """What to evaluate: pictures and masks, annotated objects, annotated actions, and other times and viewpoints."""
    frames: Optional[Count] = None  # noqa: UP045
    """How many held-out frames, evenly spaced; by default all."""
    queries: tuple[Words, ...] = ()
    """Only these classes and actions; phrases that are not annotated are shown in the figures, "video: cut the bread"
    by video features. By default all that are annotated."""
    baselines: tuple[str, ...] = ("nearest", "mean", "extracted")
    """Methods to score beside the field: nearest (copy of the nearest training frame), mean (of all training frames),
    extracted (the frame's own 2D features), lerf (CLIP of crops of the frame), owl and owl-real (boxes by OWL, masks by
    SAM, in the rendering or in the frame), ooal (affordances), or your own, module:Class."""
    models: BaselineModels = field(default_factory=BaselineModels)
    """Options of baselines with models of their own."""
    name: Optional[Words] = None  # noqa: UP045
    """What the run is called in tables, where several are of one method; by default its method."""
    moments: Count = 8
    """How many moments the tasks of other times and viewpoints look at."""
    download_lpips: bool = False
    """Fetch the weights of LPIPS (244 MB) if they are not on this machine; without them it is left out."""
    output: Optional[Path] = None  # noqa: UP045
    """Folder for scores.json, the CSV files, report.html and frames/; by default "evaluation" beside the config.yml.
    With --average, folder for average.md and average.tex; by default this one."""
    average: tuple[Path, ...] = ()
    """Evaluated runs (their folders, or scores.json) to put into one table with means over the scenes."""
    columns: Annotated[tuple[Words, ...], Field(min_length=1)] = COLUMNS
    """Scores in that table, by their names in scores.json."""

    def main(self) -> Evaluation | None:
        """Runs the command."""
        if self.average:
            if self.load_config is not None:
                raise EvaluationError("--average makes a table of evaluated runs: leave --load-config out.")
            return self._average()
        if self.load_config is None:
            raise EvaluationError("Give a run: --load-config RUN/config.yml, or --average RUN... for the table.")
        run = self.load_config.resolve().parent
        folder = check_output_folder(self.output or run / "evaluation")
        if self.download_lpips:
            _fetch_lpips()
        trained = load_run(self.load_config, self.data)
        from divff_nerfstudio.evaluation.report import Gallery, Report, save_report, save_scores
        from divff_nerfstudio.evaluation.run import Wanted, evaluate
        from divff_nerfstudio.evaluation.runs import run_facts, training_seconds

        pipeline = trained.pipeline
        gallery, start = Gallery(folder / "frames"), time.perf_counter()
        wanted = Wanted(self.tasks, self.frames, self.queries, self.baselines, self.moments, self.models)
        evaluation = evaluate(
            pipeline.model, pipeline.datamanager, pipeline.query, gallery.add, wanted, gallery.add_picture
        )
        facts = run_facts(pipeline, trained.step)
        facts["Method"] = self.name or facts["Method"]
        if (seconds := training_seconds(run)) is not None:
            facts["Training"] = f"{seconds:.0f} s"
        facts["Evaluation"] = f"{time.perf_counter() - start:.0f} s"
        if "masks" in self.tasks and not lpips_weights().is_file():
            facts["LPIPS"] = f"left out: {lpips_weights()} is not there (--download-lpips fetches it)"
        introduction = "Scores and pictures of the test frames, which training has never seen."
        save_report(folder / "report.html", Report(facts["Scene"], introduction, evaluation, gallery, facts))
        save_csv(folder, facts["Method"], evaluation)
        save_scores(folder / SCORES_FILE, evaluation, facts)  # last: who has it has the rest
        for key, value in evaluation.totals.items():
            CONSOLE.print(f"{key:>28} {value:8.3f}")
        CONSOLE.print(f"Written: {escape(str(folder / 'report.html'))}; {SCORES_FILE} and CSV files beside it")
        return evaluation

    def _average(self) -> None:
        unknown = [name for name in self.columns if name not in FRAME_SCORES | SCENE_SCORES]
        if unknown:
            raise EvaluationError(f"There is no score {unknown[0]}: use names from {SCORES_FILE}.")
        folder = check_output_folder(self.output or Path())
        table = average_table(read_runs(self.average), self.columns)
        for name, text in (("average.md", table.markdown()), ("average.tex", table.latex())):
            write_text(folder / name, text)
        sys.stdout.write(table.markdown())
        CONSOLE.print(f"Written: {escape(str(folder / 'average.md'))} and average.tex")


def _fetch_lpips() -> None:
    try:
        lpips_weights(download=True)
    except (OSError, RuntimeError) as error:
        raise EvaluationError(
            f"The weights of LPIPS cannot be fetched ({error}): put them at {lpips_weights()}, or leave "
            "--download-lpips out."
        ) from None
