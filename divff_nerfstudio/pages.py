"""HTML pages that need no other file: what they have in common."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

_STYLE = """
:root { --ground: #f6f7f9; --card: #fff; --ink: #1b1f27; --faded: #626b7a; --line: #e2e5ea; --mark: #2257c5;
  --good: #17803d; --bad: #b3401f; }
@media (prefers-color-scheme: dark) { :root { --ground: #15171c; --card: #1e2128; --ink: #e9ebf0; --faded: #9aa3b2;
  --line: #30343d; --mark: #8ab0ff; --good: #62c787; --bad: #ef8f6c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 40px 0 12px; }
a { color: var(--mark); } .faded { color: var(--faded); }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: 7px 12px; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-size: 12px; color: var(--faded); font-weight: 600; white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
"""


def html_page(title: str, body: str, style: str) -> str:
    """A page.

    Args:
        title: Of the page, not escaped yet.
        body: HTML of what it shows.
        style: CSS of its own, behind that of all pages.
    """
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def embedded(picture: Image.Image, words: str, quality: int) -> str:
    """A picture as an element of a page, which holds it as JPEG.

    Args:
        picture: In RGB.
        words: What it shows, not escaped yet.
        quality: Of the JPEG.
    """
    packed = io.BytesIO()
    picture.save(packed, format="JPEG", quality=quality)
    data = base64.b64encode(packed.getvalue()).decode()
    return f"<img alt='{escape(words)}' src='data:image/jpeg;base64,{data}'>"
