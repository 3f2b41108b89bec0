"""One HTML page about a batch, which needs no other file: a table over the scenes, their curves, pictures and links."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from divff_nerfstudio.atomic import write_text
from divff_nerfstudio.batch.contents import Scores, read_scores
from divff_nerfstudio.batch.records import LOG, RunRecord, scene_folder
from divff_nerfstudio.batch.status import BatchStatus, SceneStatus, summary, told_duration
from divff_nerfstudio.data.frames import open_picture
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.pages import embedded, html_page

SHOWN = ("psnr", "ssim", "lpips", "moving_ap", "actor_ap", "dynamic_ap", "object_ap", "affordance_ap")
"""Scores in the table, of those that any scene has."""
_POINTS = 150
_THUMBNAIL = (320, 200)
_STYLE = """
main { max-width: 1280px; } td { overflow-wrap: anywhere; }
.finished { color: var(--good); } .failed { color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 14px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; }
.card img { width: 100%; border-radius: 6px; display: block; } .card svg { width: 100%; height: 90px; display: block; }
polyline { fill: none; stroke: var(--mark); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
"""


def save_page(path: Path, status: BatchStatus, batch: Path) -> None:
    """Writes the page.

    Args:
        path: Where it goes; links are seen from there.
        status: Where the scenes stand.
        batch: The batch's folder.
    """
    write_text(path, batch_page(status, batch, path.parent))


def batch_page(status: BatchStatus, batch: Path, folder: Path) -> str:
    """The page as HTML; every text in it is escaped.

    Args:
        status: Where the scenes stand.
        batch: The batch's folder.
        folder: Where the page will lie.
    """
    scored = [(scene, run, _scores(run)) for scene in status.scenes for run in scene.record.runs or (None,)]
    columns = [name for name in SHOWN if any(scores and name in scores.totals for _, _, scores in scored)]
    rows = "".join(_row(scene, run, scores, columns, batch, folder) for scene, run, scores in scored)
    numbers = "".join(f"<th class=number>{escape(name)}" for name in columns)
    head = f"<tr><th>Scene<th>Method<th>Standing<th class=number>Time{numbers}<th>Files<th>What went wrong</tr>"
    cards = "".join(_card(scene, run) for scene, run, _ in scored if run is not None)
    title = f"Batch of {Path(status.record.manifest).name or batch.name}"
    body = (
        f"<h1>{escape(title)}</h1><p class=faded>{escape(summary(status))}</p>"
        f"<div class=wide><table>{head}{_means(scored, columns)}{rows}</table></div>"
        f"<h2>Curves and pictures</h2><div class=cards>{cards}</div>"
    )
    return html_page(title, body, _STYLE)


_Scored = tuple[SceneStatus, "RunRecord | None", "Scores | None"]


def _means(scored: Sequence[_Scored], columns: Sequence[str]) -> str:
    """A row for each method with the means over its scenes, where there are several."""
    rows = []
    for method in dict.fromkeys(run.method for _, run, _ in scored if run is not None):
        found = [scores.totals for _, run, scores in scored if run is not None and run.method == method and scores]
        if len(found) < 2:
            continue
        cells = ""
        for name in columns:
            values = [totals[name] for totals in found if name in totals]
            cells += f"<td class=number>{sum(values) / len(values):.3f}</td>" if values else "<td></td>"
        rows.append(f"<tr><td>mean of {len(found)}</td><td>{escape(method)}</td><td></td><td></td>{cells}<td><td></tr>")
    return "".join(rows)


def _row(
    scene: SceneStatus,
    run: RunRecord | None,
    scores: Scores | None,
    columns: Sequence[str],
    batch: Path,
    folder: Path,
) -> str:
    values = [scores.totals.get(name) if scores is not None else None for name in columns]
    numbers = "".join(f"<td class=number>{'' if value is None else format(value, '.3f')}</td>" for value in values)
    links = []
    if run is not None and run.scores is not None:
        links.append(_link(Path(run.scores) / "report.html", "report", folder))
    if run is not None:
        links.append(_link(Path(run.run) / "config.yml", "run", folder))
    links.append(_link(scene_folder(batch, scene.record.name) / LOG, "log", folder))
    took = told_duration(sum(scene.state.seconds.values())) if scene.state.seconds else ""
    return (
        f"<tr><td>{escape(scene.record.name)}</td><td>{escape(run.method if run is not None else '')}</td>"
        f"<td class={escape(scene.standing)}>{escape(scene.standing)}</td><td class=number>{escape(took)}</td>{numbers}"
        f"<td>{' '.join(filter(None, links))}</td><td>{escape(scene.state.sentence)}</td></tr>"
    )


def _link(path: Path, text: str, folder: Path) -> str:
    if not path.is_file():
        return ""
    relative = Path(os.path.relpath(path, folder)).as_posix()
    return f"<a href='{escape(quote(relative))}'>{escape(text)}</a>"


def _scores(run: RunRecord | None) -> Scores | None:
    if run is None or run.scores is None:
        return None
    with contextlib.suppress(DivffError):
        return read_scores(Path(run.scores))
    return None


def _card(scene: SceneStatus, run: RunRecord) -> str:
    """A scene's picture and curve, where it has them."""
    picture, curve = _picture(run), _curve(loss_curve(Path(run.run)))
    if not picture and not curve:
        return ""
    name = f"{scene.record.name}, {run.method}"
    return f"<div class=card><b>{escape(name)}</b>{picture}{curve}</div>"


def _picture(run: RunRecord) -> str:
    """A small picture of a figure of the evaluation."""
    figures = sorted((Path(run.scores) / "frames").glob("*.png")) if run.scores is not None else []
    for path in figures[:1]:
        with contextlib.suppress(DivffError), open_picture(path) as picture:
            small = picture.convert("RGB")
            small.thumbnail(_THUMBNAIL)
            return embedded(small, path.stem, quality=80)
    return ""


def loss_curve(run: Path) -> list[tuple[int, float]]:
    """Step and loss of a training, from its event files; empty where they do not tell."""
    paths = sorted(run.glob("events.out.tfevents.*"))
    if not paths:
        return []
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[int, float] = {}
    for path in paths:
        with contextlib.suppress(Exception):  # what a killed training has left may be cut short anywhere
            event: Any
            for event in EventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    if value.tag == "Train Loss" and math.isfinite(number := _number(value)):
                        found[event.step] = number
    points = sorted(found.items())
    return points[:: max(1, len(points) // _POINTS)]


def _number(value: object) -> float:
    """A scalar of an event file, in either of the forms that there are."""
    tensor = getattr(value, "tensor", None)
    floats = list(tensor.float_val) if tensor is not None else []
    return float(floats[0]) if floats else float(getattr(value, "simple_value", math.nan))


def _curve(points: Sequence[tuple[int, float]]) -> str:
    """The loss over the steps as a line, on a logarithmic scale."""
    positive = [(step, math.log10(loss)) for step, loss in points if loss > 0]
    if len(positive) < 2:
        return ""
    first, last = positive[0][0], positive[-1][0]
    low, high = min(y for _, y in positive), max(y for _, y in positive)
    width, height = max(last - first, 1), max(high - low, 1e-9)
    dots = " ".join(f"{300 * (x - first) / width:.1f},{80 - 75 * (y - low) / height:.1f}" for x, y in positive)
    words = f"loss {10**high:.3g} to {10**low:.3g}, {last + 1} steps"
    return (
        f"<svg viewBox='0 0 300 85' preserveAspectRatio=none role=img aria-label='{escape(words)}'>"
        f"<polyline points='{dots}'/></svg><span class=faded>{escape(words)}</span>"
    )
