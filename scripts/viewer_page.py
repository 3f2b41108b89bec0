"""nerfstudio's viewer in a headless Chromium, as its user has it before them: for tests, timings and screenshots."""

from __future__ import annotations

import base64
import contextlib
import importlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHROMIUM = os.environ.get("DIVFF_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
"""The browser: what DIVFF_CHROMIUM names, or the first on PATH."""
PATIENCE = float(os.environ.get("DIVFF_BROWSER_PATIENCE", "300"))
"""Seconds that anything may take; a busy machine is slow."""
_TAKE_NOTE = """
    const pause = 1000 / FRAMES_PER_SECOND - 1000 / 60;
    const frame = window.requestAnimationFrame.bind(window);
    window.requestAnimationFrame = draw => setTimeout(() => frame(draw), pause);
    window.cancelAnimationFrame = number => clearTimeout(number);
    window.pictures = [];
    const source = Object.getOwnPropertyDescriptor(HTMLImageElement.prototype, 'src');
    Object.defineProperty(HTMLImageElement.prototype, 'src', {
        ...source,
        set(value) {
            if (value.startsWith('blob:')) {
                this.addEventListener('load', () => window.pictures.push(
                    {at: performance.timeOrigin + performance.now(), width: this.width, height: this.height}));
            }
            source.set.call(this, value);
        },
    });
"""
"""Has a page take note of when each rendered picture has come, in milliseconds since 1970, and of its size.

It draws less often than sixty times a second: in software that would take a core from the viewer.
"""


@dataclass
class ViewerServer:
    """A running viewer."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def alive(self) -> bool:
        """Whether it runs, and no thread of it has died."""
        return self.process.poll() is None and "Exception in thread" not in self.said

    @property
    def said(self) -> str:
        """All that it has printed."""
        return self.log.read_text("utf-8", errors="replace")


@contextlib.contextmanager
def serve(
    command: Sequence[object],
    log: Path,
    port_option: str = "--viewer.websocket-port",
    env: dict[str, str] | None = None,
) -> Iterator[ViewerServer]:
    """Runs a command that opens the viewer, from the time that it listens until the context ends.

    Args:
        command: A program of this environment and its options.
        log: Where its output goes.
        port_option: Its option for the port, which is chosen here.
        env: Its environment variables, if not those of this process.

    Raises:
        RuntimeError: If it ends or does not listen in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name(str(command[0]))
    words = [str(program), *map(str, command[1:]), port_option, str(port)]
    env = {**(env or os.environ), "PYTHONUNBUFFERED": "1"}

    def start() -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            return subprocess.Popen(words, cwd=log.parent, env=env, stdout=file, stderr=subprocess.STDOUT)

    process = start()
    try:
        end = time.monotonic() + PATIENCE
        # These lines come last, once the viewer is ready to render; before them its port is open already.
        server = ViewerServer(process, f"http://127.0.0.1:{port}", log)
        while not any(line in server.said for line in ("disabled local writer", "Step (% Done)")):
            if process.poll() is not None and "psutil.NoSuchProcess" in server.said:
                # viser looks at all processes of the machine, and fails where one ends meanwhile.
                server.process = process = start()
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{' '.join(words)} opened no viewer:\n{server.said[-3000:]}")
            time.sleep(0.2)
        # Where another program has taken the port meanwhile, the viewer has looked for the next one, and tells it.
        if told := re.search(r"HTTP\W+http://[\w.]+:(\d+)", server.said):
            server.url = f"http://127.0.0.1:{told[1]}"
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """A headless Chromium, which draws in software where there is no graphics card; playwright's `Browser`."""
    sync_api: Any = importlib.import_module("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
        )
        try:
            yield browser
        finally:
            browser.close()


class ViewerPage:
    """A page with the viewer.

    Args:
        browser: From `open_browser`.
        url: Where the viewer is.
        width: Width of the window; the panel takes 320 pixels of it at its right.
        height: Height of the window; the title takes 51 pixels of it.
        frames_per_second: How often the page is drawn, at most.

    Attributes:
        page: playwright's `Page`.
        dialogs: What the page has alerted, which must be nothing.
    """

    def __init__(self, browser: Any, url: str, width: int = 1100, height: int = 560, frames_per_second: int = 10):
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(1000 * PATIENCE)
        self.dialogs: list[str] = []
        self.page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        self.page.add_init_script(_TAKE_NOTE.replace("FRAMES_PER_SECOND", str(frames_per_second)))
        self.page.goto(url)
        self.page.get_by_text("Ask the scene").wait_for()

    def box(self, label: str) -> Any:
        """The input that a label belongs to."""
        beside = "ancestor::div[contains(@class,'mantine-Flex')][1]//input"
        return self.page.locator(f"xpath=//label[normalize-space()='{label}']/{beside}").first

    def slider(self, label: str) -> Any:
        """The handle of the slider that a label belongs to."""
        beside = "ancestor::div[contains(@class,'mantine-Flex')][1]//*[@role='slider']"
        return self.page.locator(f"xpath=//label[normalize-space()='{label}']/{beside}").first

    def choose(self, label: str, option: str) -> None:
        """Picks from a list."""
        self.box(label).click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def press(self, button: str) -> None:
        """Presses a button."""
        self.page.get_by_role("button", name=button).click()

    def unfold(self, folder: str) -> None:
        """Opens or closes a folder."""
        self.page.get_by_text(folder, exact=True).click()

    @property
    def text(self) -> str:
        """Everything that can be read."""
        return self.page.inner_text("body")

    @property
    def drawings(self) -> str:
        """The sources of all drawings: legend and plot."""
        sources = self.page.eval_on_selector_all("img", "all => all.map(each => each.src)")
        found = (re.match(r"data:image/svg\+xml;base64,(.+)", source) for source in sources)
        return "\n".join(base64.b64decode(match[1]).decode() for match in found if match)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Waits until something is so.

        Raises:
            TimeoutError: If it is not in time.
        """
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"{what} did not happen; the page says:\n{self.text}")
            self.page.wait_for_timeout(50)

    def ask(self, text: str, seen: str | None = None) -> None:
        """Asks, and waits for the legend to name the answer (`seen`, if not the question itself)."""
        self.box("Question").fill(text)
        self.wait(lambda: (seen or text) in self.drawings and "took" in self.text, f"an answer to {text!r}")

    def at_rest(self, width: int) -> None:
        """Waits until a picture of the full width has come, and no more of them do."""

        def whole() -> bool:
            last = self.page.evaluate("window.pictures.length && window.pictures.at(-1).width")
            return last == width and f"Resolution: {width}x" in self.text

        before = -1
        while before != (before := self.come):
            self.wait(whole, f"the picture of {width} pixels' width")
            self.page.wait_for_timeout(700)

    @property
    def come(self) -> int:
        """How many rendered pictures have come."""
        return self.page.evaluate("window.pictures.length")

    @contextlib.contextmanager
    def anew(self, width: int) -> Iterator[None]:
        """Waits, after what the context does, until another picture has come and the last one of its row."""
        before = self.come
        yield
        self.wait(lambda: self.come > before, "another picture")
        self.at_rest(width)

    @property
    def canvas(self) -> dict[str, float]:
        """Where the picture is: its left and upper edge, width and height."""
        return self.page.locator("canvas[data-engine]").bounding_box()

    def picture(self) -> np.ndarray:
        """The picture as it is on the screen, (height, width, 3) of bytes."""
        shot = Image.open(io.BytesIO(self.page.screenshot(clip=self.canvas))).convert("RGB")
        return np.asarray(shot)

    def click(self, across: float, down: float) -> None:
        """Clicks at a place of the picture, given as shares of its width and height."""
        box = self.canvas
        self.page.mouse.click(box["x"] + across * box["width"], box["y"] + down * box["height"])
