"""Makes the gallery of the documentation of a trained run: short videos.

python scripts/gallery.py --load-config RUN/config.yml
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

DOCS = Path(__file__).resolve().parents[1] / "docs"


@dataclass(frozen=True)
class Exhibit:
    """Something to see, what it shows, and the command that made it."""

    name: str
    title: str
    text: str
    words: tuple[str, ...]
    """The command and its options, without the run and the output."""


EXHIBITS = (
    Exhibit(
        "layers.mp4",
        "The layers",
        "The frame, what is rendered, the room alone, what gets moved, who moves it, and masks of what moves; below, "
        "from another viewpoint.",
        ("video", "--layout", "masks", "--cell-height", "96", "--frames", "40"),
    ),
    Exhibit(
        "question.mp4",
        "A question",
        "Where is the blue colander? The rendered view, and how relevant each pixel is, over the whole video.",
        ("video", "--layout", "relevancy", "--queries", "blue colander", "--cell-height", "128", "--frames", "40"),
    ),
    Exhibit(
        "without_hands.mp4",
        "From elsewhere, without the hands",
        "The whole video from one fixed viewpoint, with the actor's layer hidden.",
        ("video", "--layout", "prediction", "--hide", "actor", "--cell-height", "192"),
    ),
)


@dataclass
class GalleryConfig:
    """Make the gallery's videos, and the page that shows them."""

    load_config: Path
    """config.yml of the run."""
    data: Path | None = None
    """Folder of its scene, if that is no longer where it was."""
    page: Path = DOCS / "gallery.md"
    """The page."""

    def main(self) -> None:
        """Runs the commands and writes the page."""
        folder = self.page.parent / "images" / "gallery"
        folder.mkdir(parents=True, exist_ok=True)
        for exhibit in EXHIBITS:
            self._make(exhibit, folder / exhibit.name)
        shown = "\n".join(self._section(exhibit) for exhibit in EXHIBITS)
        head = "# Gallery\n\nMade by `scripts/gallery.py` of the run that `divff demo` leaves.\n\n"
        head += "The films play on the site (`mkdocs serve`); the files are in `docs/images/gallery/`.\n\n"
        self.page.write_text(head + shown, encoding="utf-8")

    def _make(self, exhibit: Exhibit, path: Path) -> None:
        run = ("--load-config", str(self.load_config), *(() if self.data is None else ("--data", str(self.data))))
        program = str(Path(sys.executable).with_name("divff"))
        words = (program, exhibit.words[0], *run, *exhibit.words[1:], "--output", str(path))
        subprocess.run(words, check=True)

    @staticmethod
    def _section(exhibit: Exhibit) -> str:
        place = f"images/gallery/{exhibit.name}"
        shown = f'<video controls loop muted playsinline src="../{place}" width="100%"></video>'
        words = " ".join(f'"{word}"' if " " in word else word for word in exhibit.words)
        return f"## {exhibit.title}\n\n{exhibit.text}\n\n{shown}\n\n`divff {words} --load-config RUN/config.yml`\n"


if __name__ == "__main__":
    tyro.cli(GalleryConfig).main()
