"""Makes the viewer's pictures of the documentation of a trained run, in a headless Chromium.

python scripts/viewer_pictures.py --load-config RUN/config.yml

The phrases and the places that are clicked are those of the run that `divff demo` leaves.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from viewer_page import ViewerPage, open_browser, serve

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
FULL_WIDTH = 228
"""Pixels of a view at rest, on a CPU."""
WINDOW = (1280, 860)


@dataclass
class PicturesConfig:
    """Opens a run in the viewer, asks as its user would, and writes what the screen shows."""

    load_config: Path
    """config.yml of the run."""
    data: Path | None = None
    """Folder of its scene, if that is no longer where it was."""
    questions: str = "colander; cereal box; bottle; banana"
    """What is asked for viewer_questions.png."""
    moved: str = "mug"
    """What is asked for viewer_things.png: something that is moved in the video."""
    frame: int = 40
    """The frame at which it is asked where that was."""
    point: tuple[float, float] = (0.38, 0.44)
    """Where the first frame's view is clicked, shares of its width and height, for viewer_point.png."""
    output: Path = IMAGES
    """Folder for the pictures."""

    def main(self) -> None:
        """Makes the pictures."""
        where = () if self.data is None else ("--data", self.data.resolve())
        command = ("divff", "view", "--load-config", self.load_config.resolve(), *where)
        with (
            tempfile.TemporaryDirectory() as folder,
            serve(command, Path(folder) / "log.txt", port_option="--port") as server,
            open_browser() as browser,
        ):
            viewer = ViewerPage(browser, server.url, *WINDOW)
            viewer.wait(lambda: "Looking for things" not in viewer.text, "the search for things")
            viewer.ask(self.moved)  # the text encoder loads at the first question
            viewer.at_rest(FULL_WIDTH)
            viewer.ask(self.questions, self.questions.rpartition("; ")[2])
            self._shoot(viewer, "viewer_questions.png")
            with viewer.anew(FULL_WIDTH):
                self._go_to(viewer, self.frame)
                viewer.ask(self.moved)
            viewer.wait(lambda: "before that" in viewer.text, f"where the {self.moved} was before")
            self._shoot(viewer, "viewer_things.png")
            with viewer.anew(FULL_WIDTH):
                self._go_to(viewer, 0)
            viewer.press("What is this?")
            viewer.wait(lambda: "Click into the picture" in viewer.text, "the viewer's readiness for a click")
            viewer.click(*self.point)
            viewer.wait(lambda: "[point 1]:" in viewer.text, "what is at the point")
            self._shoot(viewer, "viewer_point.png")

    @staticmethod
    def _go_to(viewer: ViewerPage, frame: int) -> None:
        """Goes to a frame, and to where it was filmed from."""
        viewer.box("Frame").fill(str(frame))
        viewer.box("Frame").press("Enter")
        viewer.press("Through the wearer's eyes")

    def _shoot(self, viewer: ViewerPage, name: str) -> None:
        """Writes the page once its picture is whole."""
        viewer.at_rest(FULL_WIDTH)
        viewer.page.wait_for_timeout(3000)  # what is said of the whole scene, and the plot, come once the view rests
        viewer.at_rest(FULL_WIDTH)
        viewer.page.screenshot(path=self.output / name)


if __name__ == "__main__":
    tyro.cli(PicturesConfig).main()
