"""One HTML page about a trained scene that needs no other file: scores, answers, figures and the video."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path

from PIL import Image

from divff_nerfstudio.atomic import write_text
from divff_nerfstudio.data.frames import decode_frame
from divff_nerfstudio.evaluation.figures import relevancy_cell, save_frame_figure, save_picture
from divff_nerfstudio.evaluation.results import Evaluation, FrameResult, Task
from divff_nerfstudio.evaluation.scores import FRAME_SCORES, SCENE_SCORES, TASK_TITLES
from divff_nerfstudio.evaluation.tiles import Picture, cell_size
from divff_nerfstudio.pages import embedded, html_page

MAX_VIDEO = 16 * 2**20
"""A video of more bytes is linked to, not put into the page."""

_STYLE = """
p { margin: 0 0 12px; max-width: 78ch; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 10px; margin: 20px 0 0; }
dl div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 8px 12px; }
dt { color: var(--faded); font-size: 12px; } dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
td.value { font-weight: 650; } .good { color: var(--good); } .bad { color: var(--bad); }
.answers { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 14px; }
figure { margin: 0; } figure img { width: 100%; border-radius: 6px; display: block; }
figcaption { color: var(--faded); font-size: 13px; margin-top: 4px; }
.figures figure { margin-bottom: 20px; } video { width: 100%; border-radius: 8px; background: #000; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; overflow-x: auto;
  margin: 0 0 10px; font-size: 13px; }
"""


@dataclass
class Gallery:
    """Collects the pictures of an evaluation: pass `add` to `evaluate` as `on_frame`.

    Figures go to files as they come; of the answers, one small picture per class is kept.
    """

    folder: Path
    """Where the figures are written."""
    figures: list[Path] = field(default_factory=list)
    """Their files, one a frame."""
    others: dict[str, Path] = field(default_factory=dict)
    """Files of figures of other viewpoints and times, by name."""
    answers: dict[tuple[str, str], tuple[int, Picture, str]] = field(default_factory=dict)
    """By task and class, from the frame that shows most of the class: its pixels, the overlay and the label."""

    def add_picture(self, name: str, picture: Picture) -> None:
        """Takes a figure that belongs to no single frame."""
        self.others[name] = save_picture(self.folder / f"{name}.png", picture)

    def add(self, result: FrameResult, tasks: Mapping[str, Task]) -> None:
        """Takes what is wanted of a frame."""
        self.figures.append(save_frame_figure(self.folder, result, tasks))
        size = cell_size(*result.target.shape[:2])
        for task in (tasks[name] for name in result.relevancies if tasks[name].usual):
            areas = task.annotations.masks[result.index].sum(axis=(0, 1))
            for i, label in enumerate(task.annotations.names):
                if areas[i] > self.answers.get((task.name, label), (0,))[0]:
                    picture, text = relevancy_cell(result, task, i, size)
                    self.answers[task.name, label] = int(areas[i]), picture, f"{text}, frame {result.frame_id}"


@dataclass
class Report:
    """What the page says."""

    title: str
    """Heading."""
    introduction: str
    """A sentence or two under it."""
    evaluation: Evaluation
    """The scores."""
    gallery: Gallery
    """The pictures."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Short facts by name: scene, frames, seconds, hardware."""
    targets: Mapping[str, float] = field(default_factory=dict)
    """What a score should reach at least, by its name."""
    video: Path | None = None
    """An .mp4 file."""
    commands: Sequence[tuple[str, str]] = ()
    """What to type next: a sentence and a command."""


def save_scores(path: Path, evaluation: Evaluation, facts: Mapping[str, str]) -> None:
    """Writes all scores, per frame, class and total, as JSON (finite numbers only)."""
    write_text(path, json.dumps({"facts": dict(facts), **asdict(evaluation)}, indent=1, allow_nan=False))


def save_report(path: Path, report: Report) -> None:
    """Writes the page."""
    write_text(path, report_page(report, path.parent))


def report_page(report: Report, folder: Path) -> str:
    """The page as HTML; every text in it is escaped.

    Args:
        report: What it says.
        folder: Where it will lie; a video too large for the page is linked from there.
    """
    parts = [f"<h1>{escape(report.title)}</h1><p class=faded>{escape(report.introduction)}</p>"]
    if report.facts:
        facts = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in report.facts.items())
        parts.append(f"<dl>{''.join(facts)}</dl>")
    if report.video is not None:
        parts.append(f"<h2>The scene over time</h2>{_video(report.video, folder)}")
    parts.append(f"<h2>Scores on held-out frames</h2>{_score_table(report)}")
    if report.evaluation.thresholds:
        fixed = ", ".join(f"{_title(task)} {level:g}" for task, level in report.evaluation.thresholds.items())
        parts.append(f"<p class=faded>Fixed thresholds of relevancy: {escape(fixed)}.</p>")
    if report.gallery.answers:
        answers = (_figure(picture, text) for _, picture, text in report.gallery.answers.values())
        parts.append(
            "<h2>Queries</h2><p class=faded>Relevancy of each annotated class and action in the test frame that shows "
            "most of it; the white outline is the annotation, the yellow one what is found at a threshold that fits "
            "the scene, the ring the most relevant pixel. IoU is of this frame alone.</p>"
            f"<div class=answers>{''.join(answers)}</div>"
        )
    for task, classes in report.evaluation.classes.items():
        parts.append(f"<h2>{escape(_title(task))}, one by one</h2>{_class_table(classes)}")
    if report.gallery.others:
        others = (_figure_of(path, name.replace("_", " ")) for name, path in report.gallery.others.items())
        parts.append(f"<h2>Other times and viewpoints</h2><div class=figures>{''.join(others)}</div>")
    if report.gallery.figures:
        figures = (_figure_of(path, path.stem) for path in report.gallery.figures)
        parts.append(f"<h2>Test frames</h2><div class=figures>{''.join(figures)}</div>")
    if report.commands:
        commands = (f"<p>{escape(text)}</p><pre>{escape(command)}</pre>" for text, command in report.commands)
        parts.append(f"<h2>Next</h2>{''.join(commands)}")
    return html_page(report.title, "".join(parts), _STYLE)


def _title(task: str) -> str:
    """What a task is called on the page."""
    return TASK_TITLES[task][0] if task in TASK_TITLES else task.replace("_", " ").capitalize()


def _score_table(report: Report) -> str:
    totals = report.evaluation.totals
    rows = []
    for key, score in (FRAME_SCORES | SCENE_SCORES).items():
        if key not in totals or key == "psnr_nearest_frame":
            continue
        value, target = totals[key], report.targets.get(key)
        if target is None:
            wanted = ""
        elif value >= target:
            wanted = f"<span class=good>≥ {target:.2f} reached</span>"
        else:
            wanted = f"<span class=bad>≥ {target:.2f} missed by {target - value:.2f}</span>"
        rows.append(
            f"<tr><td>{escape(score.title)}</td><td class='number value'>{score.told(value)}</td>"
            f"<td class=number>{wanted}</td>{_others(report, key)}<td class=faded>{escape(score.meaning)}</td></tr>"
        )
    names = "".join(f"<th class=number>{escape(name)}" for name in _baselines(report))
    head = f"<tr><th>Score<th class=number>Value<th class=number>Target{names}<th>What it says</tr>"
    return f"<div class=wide><table>{head}{''.join(rows)}</table></div>"


def _baselines(report: Report) -> Mapping[str, Mapping[str, float]]:
    """Scores of the baselines by name; that of copying the nearest training frame is always known."""
    found = {name: evaluation.totals for name, evaluation in report.evaluation.baselines.items()}
    if not found and "psnr_nearest_frame" in report.evaluation.totals:
        found["nearest training frame"] = {"psnr": report.evaluation.totals["psnr_nearest_frame"]}
    return found


def _others(report: Report, key: str) -> str:
    """Cells of the baselines' scores."""
    values = (totals.get(key) for totals in _baselines(report).values())
    return "".join(f"<td class=number>{'' if value is None else format(value, '.2f')}</td>" for value in values)


def _class_table(classes: Mapping[str, Mapping[str, float]]) -> str:
    columns = (
        ("frames", "Frames", "d"),
        ("ap", "AP", ".2f"),
        ("iou", "IoU, published", ".2f"),
        ("iou_sound", "IoU, sound", ".2f"),
        ("iou_auto", "IoU, fitted", ".2f"),
        ("iou_loo", "IoU, left out", ".2f"),
        ("iou_oracle", "IoU, oracle", ".2f"),
        ("threshold_oracle", "Oracle threshold", ".2f"),
        ("consistency_iou", "IoU between times", ".2f"),
        ("consistency_soft_iou", "soft", ".2f"),
        ("consistency_found", "Found", ".0%"),
        ("ap_before", "AP, before", ".2f"),
        ("found", "Found at its place", ".0%"),
        ("found_shown", "Found, actor shown", ".0%"),
        ("gone", "Gone from old places", ".0%"),
        ("found_and_gone", "Found and gone", ".0%"),
        ("point_error_cm", "Point's error, cm", ".1f"),
    )
    columns = [column for column in columns if any(column[0] in scores for scores in classes.values())]
    head = "<tr><th>Class" + "".join(f"<th class=number>{title}" for _, title, _ in columns) + "</tr>"
    rows = []
    for name, scores in classes.items():
        cells = (format(scores[key], style) if key in scores else "" for key, _, style in columns)
        numbers = "".join(f"<td class=number>{cell}</td>" for cell in cells)
        rows.append(f"<tr><td>{escape(name)}</td>{numbers}</tr>")
    return f"<div class=wide><table>{head}{''.join(rows)}</table></div>"


def _figure_of(path: Path, text: str) -> str:
    return _figure(decode_frame(path), text)


def _figure(picture: Picture, text: str) -> str:
    shown = embedded(Image.fromarray(picture), text, quality=90)
    return f"<figure>{shown}<figcaption>{escape(text)}</figcaption></figure>"


def _video(path: Path, folder: Path) -> str:
    relative = escape(path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.resolve().as_uri())
    if path.stat().st_size <= MAX_VIDEO:
        source = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
    else:
        source = relative
    return (
        f"<video controls loop muted playsinline src='{source}'></video><p class=faded>Above the camera wearer's own "
        f"view, below the same times from a fixed viewpoint. File: <a href='{relative}'>{escape(path.name)}</a></p>"
    )
