"""Times the viewer in a headless Chromium: from what is typed to the picture that answers it."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from stopwatch import machine
from viewer_page import ViewerPage, ViewerServer, open_browser, serve

WORDS = ("blue colander", "knife", "banana", "red mug", "bottle", "frying pan", "cereal box", "window", "sink", "tap")


@dataclass
class Viewer:
    """Opens a trained run in the viewer and asks; prints JSON."""

    load_config: Path
    """The run's config.yml."""
    width: int = 228
    """Width of the picture, in pixels."""
    height: int = 128
    """Height of the picture, in pixels."""
    frames_per_second: int = 20
    """How often the page is drawn, at most; a message from the viewer waits for that."""
    phrases: tuple[str, ...] = WORDS
    """What is asked; the first one, for which the text encoder loads, is not counted."""

    def main(self) -> None:
        """Measures and prints."""
        # "view" reads "--port"; the viewer's own options are those of ns-viewer.
        command = ["divff", "view", "--load-config", self.load_config.resolve()]
        with (
            tempfile.TemporaryDirectory() as folder,
            serve(command, Path(folder) / "log.txt", port_option="--port") as server,
            open_browser() as browser,
        ):
            figures = self._measure(browser, server)
        print(json.dumps({"machine": machine(), "width": self.width, "height": self.height, **figures}, indent=2))

    def _measure(self, browser: object, server: ViewerServer) -> dict[str, object]:
        wide = 960
        viewer = ViewerPage(
            browser, server.url, 320 + wide, 51 + round(wide * self.height / self.width), self.frames_per_second
        )
        viewer.ask(self.phrases[0])
        viewer.at_rest(self.width)
        come, seconds, stated = {}, [], []
        for phrase in self.phrases[1:]:
            viewer.page.wait_for_timeout(500)
            start = 1000 * time.time()
            viewer.box("Question").fill(phrase)
            viewer.wait(lambda start=start: viewer.page.evaluate(f"pictures.some(each => each.at > {start})"), phrase)
            come = viewer.page.evaluate(f"pictures.find(each => each.at > {start})")
            seconds.append((come["at"] - start) / 1000)
            viewer.wait(lambda phrase=phrase: phrase in viewer.drawings and "took" in viewer.text, phrase)
            stated.append(viewer.text.split("took")[1].split(".")[0].strip())
        return {
            "picture": f"{come['width']}x{come['height']}",
            "typed_to_picture_seconds": {"median": statistics.median(seconds), "largest": max(seconds)},
            "stated": stated,
        }


if __name__ == "__main__":
    tyro.cli(Viewer).main()
