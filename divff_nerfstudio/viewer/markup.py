"""Text and drawings for the viewer's panel, in which nothing that a user typed is taken for markup."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from xml.sax.saxutils import escape

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from divff_nerfstudio.overlays import LINE, PALETTE
from divff_nerfstudio.viewer.lettering import fitted, width

_MAX_LINE = 300
_MAX_CODE = 4000
_FONT, _BETWEEN = 12, 8
_WIDTH, _ROW, _PLOT = 300, 26, 74
_INK, _DIM, _FAINT = "#d5d8dc", "#8b9096", "#3a3f45"
_PLACES = (PALETTE[1], PALETTE[6])
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What XML does not allow, and what turns the direction of the text behind it."""


def one_line(text: str, max_length: int) -> str:
    """Text on one line, not without end, without control characters."""
    line = " ".join(_UNPRINTABLE.sub(" ", text).split())
    return line if len(line) <= max_length else line[: max_length - 1] + "…"


def as_markdown(text: str, max_length: int = _MAX_LINE) -> str:
    """Markdown that shows `text` literally, on one line and not without end.

    The viewer's dialect is MDX, in which braces are JavaScript, and so is a line that begins with "import" or "export".
    """
    escaped = re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", one_line(text, max_length))
    return re.sub(r"^[ei](?=xport|mport)", lambda first: f"&#{ord(first[0])};", escaped)


def as_code(text: str) -> str:
    """Markdown that shows `text` as code that can be copied as one line; it is broken where the panel ends.

    As a text of JavaScript, in which all that MDX could take for something else is written by its number.
    """
    line = re.sub("[{}<>`]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(one_line(text, _MAX_CODE)))
    return f'<code style={{{{wordBreak: "break-all"}}}}>{{{line}}}</code>'


def as_image(svg: str) -> str:
    """Markdown that shows a drawing across the panel; as an image it can neither run nor load anything."""
    return _image("svg+xml", svg.encode())


def as_photo(picture: UInt8[np.ndarray, "height width 3"]) -> str:
    """Markdown that shows a picture across the panel."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=85)
    return _image("jpeg", file.getvalue())


def _image(kind: str, content: bytes) -> str:
    data = base64.b64encode(content).decode()
    return f'<img src="data:image/{kind};base64,{data}" alt="" style={{{{width: "100%", display: "block"}}}} />'


def phrase_colour(i: int, phrases: int) -> str:
    """The colour that stands for a phrase in legend, plot and scene."""
    return LINE if phrases == 1 else PALETTE[i % len(PALETTE)]


def legend(
    phrases: Sequence[str], scores: Sequence[float], threshold: float, states: Sequence[str] | None = None
) -> str:
    """The phrases with their colours and how relevant the best pixel of the view is to each.

    Args:
        phrases: What was asked.
        scores: Largest relevancy in the view, one per phrase.
        threshold: Relevancy from which on a phrase counts as seen, where nothing better is known.
        states: Whether each phrase's thing is "in view", or how it is not.

    Returns:
        An SVG drawing.
    """
    rows = []
    states = states or ["in view" if score >= threshold else "not in view" for score in scores]
    for i, (phrase, score, state) in enumerate(zip(phrases, scores, states, strict=True)):
        y, seen, colour = i * _ROW, state == "in view", phrase_colour(i, len(phrases))
        ink = _INK if seen else _DIM
        bar, tick = (_WIDTH - 22) * min(max(score, 0), 1), 20 + (_WIDTH - 22) * threshold
        fill = "url(#scale)" if len(phrases) == 1 else colour
        said = f"{score:.2f}{'' if seen else f' · {state}'}"
        name = fitted(one_line(phrase, _MAX_LINE), _FONT, _WIDTH - 22 - _BETWEEN - width(said, _FONT))
        rows.append(
            f'<rect x="2" y="{y + 5}" width="12" height="12" rx="3" fill="{fill}" stroke="{colour}"/>'
            f'<text x="20" y="{y + 15}" fill="{ink}">{escape(name)}</text>'
            f'<text x="{_WIDTH - 2}" y="{y + 15}" fill="{ink}" text-anchor="end">{said}</text>'
            f'<rect x="20" y="{y + 20}" width="{_WIDTH - 22}" height="3" rx="1.5" fill="{_FAINT}"/>'
            f'<rect x="20" y="{y + 20}" width="{bar:.1f}" height="3" rx="1.5" fill="{colour if seen else _DIM}"/>'
            f'<rect x="{tick:.1f}" y="{y + 18}" width="1" height="7" fill="{_INK}"/>'
        )
    return _drawing("".join(rows), len(rows) * _ROW + 2)


def plot(
    phrases: Sequence[str],
    times: Float[np.ndarray, "moments"],
    scores: Float[np.ndarray, "moments phrases"],
    threshold: float,
    now: float,
    ends: tuple[int, int],
) -> str:
    """Scores over time in one view, with the threshold and the present moment.

    Args:
        phrases: What was asked.
        times: Times, 0 to 1, ascending.
        scores: Largest relevancy of the view at each time; NaN where it is not known yet.
        threshold: Relevancy from which on a phrase counts as seen.
        now: The time that is shown.
        ends: Ids of the frames at times 0 and 1.

    Returns:
        An SVG drawing.
    """
    known = scores[np.isfinite(scores)]
    low = min(0.4, threshold - 0.05, *(known.min(initial=1.0),)) - 0.02
    high = max(0.7, threshold + 0.05, *(known.max(initial=0.0),)) + 0.02

    def x(time: float) -> float:
        return 24 + (_WIDTH - 28) * float(time)

    def y(score: float) -> float:
        return 4 + (_PLOT - 22) * (high - float(score)) / (high - low)

    parts = [
        f'<rect x="24" y="4" width="{_WIDTH - 28}" height="{_PLOT - 22}" fill="#15181b" rx="3"/>',
        f'<line x1="24" x2="{_WIDTH - 4}" y1="{y(threshold):.1f}" y2="{y(threshold):.1f}" stroke="{_DIM}" '
        'stroke-dasharray="3 3"/>',
        f'<text x="20" y="{y(threshold) + 4:.1f}" text-anchor="end" fill="{_DIM}" font-size="10">'
        + f"{threshold:.2f}".replace("0.", ".")
        + "</text>",
        f'<line x1="{x(now):.1f}" x2="{x(now):.1f}" y1="4" y2="{_PLOT - 18}" stroke="#ffd369" stroke-width="1.5"/>',
        f'<text x="24" y="{_PLOT - 4}" fill="{_DIM}" font-size="10">{ends[0]}</text>',
        f'<text x="{(_WIDTH + 20) / 2}" y="{_PLOT - 4}" fill="{_DIM}" font-size="10" text-anchor="middle">'
        "score in this view, by frame</text>",
        f'<text x="{_WIDTH - 4}" y="{_PLOT - 4}" fill="{_DIM}" font-size="10" text-anchor="end">{ends[1]}</text>',
    ]
    for i in range(len(phrases)):
        points = [(x(t), y(s)) for t, s in zip(times, scores[:, i], strict=True) if np.isfinite(s)]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        colour = phrase_colour(i, len(phrases))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        if len(points) == 1:
            parts.append(f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="2" fill="{colour}"/>')
    return _drawing("".join(parts), _PLOT)


def strip(spans: Sequence[tuple[str, int, int]], now: int) -> str:
    """What happens to a thing over time, with the present moment.

    Args:
        spans: "rests", "carried", "moved unseen" or "out of sight", each with the indices of its first and last frame,
            in the order of time and without gaps.
        now: Index of the frame that is shown.

    Returns:
        An SVG drawing; each place at which the thing rests has a shade of its own, next to the one before.
    """
    count = spans[-1][2] + 1
    scale, places, moved, parts = (_WIDTH - 4) / count, 0, False, []
    for state, first, last in spans:
        places += moved and state == "rests"
        moved = state in ("carried", "moved unseen") or (moved and state != "rests")
        colour = {"carried": PALETTE[0], "rests": _PLACES[places % len(_PLACES)]}.get(state, _FAINT)
        width = max(scale * (last + 1 - first), 1.5)
        parts.append(f'<rect x="{2 + scale * first:.1f}" y="2" width="{width:.1f}" height="8" fill="{colour}"/>')
    parts.append(f'<rect x="{2 + scale * (now + 0.5) - 1:.1f}" y="0" width="2" height="12" fill="{_INK}"/>')
    x = 2
    there = ("rests", _PLACES[0]), ("elsewhere", _PLACES[1])
    for state, colour in (*there[: 1 + (places > 0)], ("carried", PALETTE[0]), ("out of sight", _FAINT)):
        parts.append(
            f'<rect x="{x}" y="16" width="8" height="8" fill="{colour}"/>'
            f'<text x="{x + 12}" y="24" fill="{_DIM}" font-size="10">{state}</text>'
        )
        x += 22 + 6 * len(state)
    return _drawing("".join(parts), 28)


def _drawing(parts: str, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="Inter, system-ui, sans-serif" font-size="{_FONT}">'
        '<defs><linearGradient id="scale"><stop offset="0" stop-color="#30123b"/><stop offset="0.3" '
        'stop-color="#1bcfd4"/><stop offset="0.6" stop-color="#d2e935"/><stop offset="1" stop-color="#c5270a"/>'
        f"</linearGradient></defs>{parts}</svg>"
    )
