"""nerfstudio's viewer on a trained scene, in a headless Chromium: what a user types, clicks and sees."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_scene
import tiny_run
import torch
from PIL import Image

from divff_nerfstudio.evaluation.runs import open_scene
from divff_nerfstudio.fields.layered import LayeredFieldConfig
from divff_nerfstudio.fields.semantic_heads import SemanticHeadsConfig
from divff_nerfstudio.panel_state import load_panel_state, panel_state_path

sync_api = pytest.importorskip("playwright.sync_api", reason='install the extra "browser"')
CHROMIUM = os.environ.get("DIVFF_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH; name one in DIVFF_CHROMIUM"),
]
WORDS = ("mug", "wall", "sleeve", "cu")
MISSING = "no-such-encoder"
STEPS = 1000
LARGEST = 228
"""Width of the picture at rest."""
PATIENCE = float(os.environ.get("DIVFF_BROWSER_PATIENCE", "120"))
"""Seconds that anything may take; a busy machine is slow."""


def paint(frame: int, height: int, width: int) -> np.ndarray:
    """The word that each pixel shows: the mug where something moves, a sleeve, a wall elsewhere."""
    assert (height, width) == (small_scene.HEIGHT, small_scene.WIDTH)
    return np.array([1, 0, 2])[small_scene.layers(frame)]


@dataclass
class Scene:
    """A trained run and where everything of it lies."""

    root: Path
    scene: Path
    config: Path
    env: dict[str, str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A run of a scene in which a red mug moves to the right, below it a sleeve."""
    root = tmp_path_factory.mktemp("browser")
    env = {**os.environ, "DIVFF_CACHE_DIR": str(root / "cache"), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    scene = small_scene.write(root / "scene")
    tiny_run.write_features(scene, root / "encoder", WORDS, paint, negatives=("cu",), video_encoder=MISSING)
    config = tiny_run.config(scene, root / "outputs", STEPS)
    config.pipeline.datamanager.train_num_rays_per_batch = 256
    # Larger than tiny, and most of the time for the heads: what is asked for must be found.
    model = config.pipeline.model
    model.fields = LayeredFieldConfig(static_resolutions=(16, 64), dynamic_resolutions=(16, 32))
    model.heads = SemanticHeadsConfig(resolutions=(16, 64), hidden=64)
    model.static_until, model.heads_from, model.joint_from = STEPS // 10, STEPS // 2, STEPS
    torch.manual_seed(0)
    trainer = config.setup(local_rank=0, world_size=1)
    config.save_config()
    trainer.setup()
    trainer.train()
    return Scene(root, scene, trainer.base_dir / "config.yml", env)


@dataclass
class Server:
    """A running viewer."""

    process: subprocess.Popen
    url: str
    log: Path

    @property
    def alive(self) -> bool:
        """Whether it runs, and no thread of it has died."""
        return self.process.poll() is None and "Exception in thread" not in self.log.read_text()


@contextlib.contextmanager
def serve(trained: Scene, command: list[Any], name: str) -> Iterator[Server]:
    """Starts a command that opens the viewer, waits for it, and ends it at last."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name(command[0])
    words = [str(program), *map(str, command[1:]), "--viewer.websocket-host", "127.0.0.1"]
    log = trained.root / f"{name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*words, "--viewer.websocket-port", str(port)],
            cwd=trained.root, env={**trained.env, "PYTHONUNBUFFERED": "1"}, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        end = time.time() + PATIENCE
        while "disabled local writer" not in log.read_text() and "Step (% Done)" not in log.read_text():
            assert process.poll() is None and time.time() < end, log.read_text()[-3000:]
            time.sleep(0.2)
        yield Server(process, f"http://127.0.0.1:{port}", log)
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def server(trained: Scene) -> Iterator[Server]:
    """`ns-viewer` on the run."""
    with serve(trained, ["ns-viewer", "--load-config", trained.config], "viewer") as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser; without a graphics card it draws in software."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
        )
        yield browser
        browser.close()


class Panel:
    """The viewer as its user has it before them."""

    def __init__(self, chromium: Any, url: str):
        self.page = chromium.new_page(viewport={"width": 1100, "height": 800})
        self.page.set_default_timeout(1000 * PATIENCE)
        self.dialogs: list[str] = []
        self.page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        self.page.goto(url)
        self.page.get_by_text("Ask the scene").wait_for()

    def box(self, label: str) -> Any:
        """The input that a label belongs to."""
        beside = "ancestor::div[contains(@class,'mantine-Flex')][1]//input"
        return self.page.locator(f"xpath=//label[normalize-space()='{label}']/{beside}").first

    def choose(self, label: str, option: str) -> None:
        """Picks from a list."""
        self.box(label).click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def press(self, button: str) -> None:
        """Presses a button."""
        self.page.get_by_role("button", name=button).click()

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

    def wait(self, condition: Any, what: str) -> None:
        """Waits until something is so."""
        end = time.time() + PATIENCE
        while not condition():
            assert time.time() < end, f"{what} did not happen; the page says:\n{self.text}"
            self.page.wait_for_timeout(100)

    def ask(self, text: str, seen: str | None = None) -> None:
        """Asks, and waits for the legend to name the answer."""
        self.box("Question").fill(text)
        self.wait(lambda: (seen or text) in self.drawings and "took" in self.text, f"an answer to {text!r}")

    def at_rest(self) -> None:
        """Waits until the full picture has come: its resolution is the highest that the viewer renders at."""
        self.wait(lambda: f"Resolution: {LARGEST}x" in self.text, "the full picture")
        self.page.wait_for_timeout(1500)

    @property
    def canvas(self) -> dict[str, float]:
        """Where the picture is."""
        return max((each.bounding_box() for each in self.page.locator("canvas").all()), key=lambda box: box["width"])

    def picture(self) -> np.ndarray:
        """The picture as it is on the screen, without what stands beside it."""
        shot = Image.open(io.BytesIO(self.page.screenshot(clip=self.canvas))).convert("RGB")
        return np.asarray(shot)

    def click(self, across: float, down: float) -> None:
        """Clicks at a place of the picture."""
        box = self.canvas
        self.page.mouse.click(box["x"] + across * box["width"], box["y"] + down * box["height"])


@pytest.fixture
def panel(chromium: Any, server: Server) -> Iterator[Panel]:
    """A fresh page with nothing asked."""
    found = Panel(chromium, server.url)
    for label in ("Hide actor", "Hide moved"):
        if found.box(label).is_checked():
            found.box(label).uncheck()
    found.choose("Features", "image: what it is")
    found.box("Question").fill("")
    found.box("Frame").fill("0")
    found.box("Frame").press("Enter")
    yield found
    found.page.close()
    assert server.alive, server.log.read_text()[-3000:]
    assert found.dialogs == []


@pytest.fixture(scope="module")
def own(trained: Scene) -> Any:
    """The same run, opened here."""
    return open_scene(trained.config)


def expected(own: Any, output: str, shape: tuple[int, ...], text: str, hide_actor: bool = False) -> np.ndarray:
    """What the model itself shows of the first frame's view, in the browser's shape."""
    camera = own.camera_at(0, 0.0)
    camera.rescale_output_resolution(LARGEST * shape[0] / shape[1] / small_scene.HEIGHT)
    camera.width, camera.cx = torch.full_like(camera.width, LARGEST), torch.full_like(camera.cx, LARGEST / 2)
    own.query.ask(text=text, contour=True)
    own.model.visibility.hide_actor = hide_actor
    picture = own.model.get_outputs_for_camera(camera)[output]
    image = Image.fromarray((255 * picture.clamp(0, 1)).byte().numpy())
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def difference(seen: np.ndarray, wanted: np.ndarray) -> float:
    """Median difference of two pictures, 0 to 255: labels and outlines, blurred by half a pixel, are outliers."""
    return float(np.median(np.abs(seen.astype(float) - wanted.astype(float)).mean(-1)))


def test_the_answer_appears_where_the_mug_is(panel: Panel, own: Any) -> None:
    panel.ask("mug")
    panel.at_rest()
    seen = panel.picture()
    wanted = expected(own, "relevancy_overlay", seen.shape, "mug")
    plain = expected(own, "rgb", seen.shape, "mug")
    assert difference(seen, wanted) < 12 < difference(plain, wanted)
    # Coloured where the mug is: the overlay's colours are far from grey, the lightened room and its wall are not.
    coloured = np.ptp(seen.astype(int), axis=-1) > 90
    row, col = (
        int(side * share) for side, share in zip(seen.shape, (11 / 24, 0.5 + (13 - 20) / 24 / 1.3), strict=False)
    )
    assert coloured[row - 10 : row + 10, col - 10 : col + 10].mean() > 0.5
    assert coloured[: seen.shape[0] // 6, -seen.shape[1] // 4 :].mean() < 0.2


def test_output_time_and_layers_change_the_picture(panel: Panel, own: Any) -> None:
    panel.choose("Show", "Picture")
    panel.at_rest()
    first = panel.picture()
    assert difference(first, expected(own, "rgb", first.shape, "")) < 12
    panel.box("Hide actor").check()
    panel.page.wait_for_timeout(1000)
    panel.at_rest()
    without = panel.picture()
    assert difference(without, expected(own, "rgb", first.shape, "", hide_actor=True)) < 12
    assert np.abs(without.astype(float) - first).mean() > 2
    panel.box("Hide actor").uncheck()
    slider = panel.page.get_by_role("slider").last
    slider.focus()
    panel.page.keyboard.press("End")
    panel.wait(lambda: panel.box("Frame").input_value() == str(small_scene.FRAMES - 1), "the last frame in the box")
    panel.page.wait_for_timeout(1000)
    panel.at_rest()
    assert np.abs(panel.picture().astype(float) - first).mean() > 2


def test_a_click_says_what_is_there(panel: Panel) -> None:
    panel.at_rest()
    panel.press("What is this?")
    panel.wait(lambda: "Click into the picture" in panel.text, "the invitation to click")
    panel.click(0.5 + (13 - 20) / 24 / 1.3, 11 / 24)
    panel.wait(lambda: "most like" in panel.text, "the answer to the click")
    assert re.search(
        r"\[point \d+\]: (dynamic|static|actor) layer \(\d+ %\); most like (\w[\w -]* -?\d\.\d\d(, |\.)){3}", panel.text
    )
    assert re.fullmatch(r"\[point \d+\]", panel.box("Question").input_value())
    panel.wait(lambda: "[point" in panel.drawings, "the point in the legend")


def test_several_questions_have_a_legend_and_a_plot_over_time(panel: Panel) -> None:
    panel.ask("mug; sleeve", "sleeve")
    panel.wait(lambda: "polyline" in panel.drawings, "the plot")
    assert len(set(re.findall(r'stroke="(#\w+)"', panel.drawings))) >= 2
    panel.wait(lambda: re.search(r"(mug|sleeve) 0\.\d\d", panel.text), "a label at a best point")


def test_the_next_moment_it_moves(panel: Panel) -> None:
    panel.ask("mug")
    panel.press("Next moment it moves")
    panel.wait(lambda: re.search(r"moves at frame|does not move", panel.text), "the search for a move")


def test_two_clients_share_the_question_and_see_it_answered(panel: Panel, chromium: Any, server: Server) -> None:
    other = Panel(chromium, server.url)
    panel.ask("sleeve")
    other.wait(lambda: "sleeve" in other.drawings, "the answer at the other client")
    assert other.box("Question").input_value() == "sleeve"
    panel.at_rest()
    other.at_rest()
    assert difference(other.picture(), panel.picture()) < 12
    other.page.close()
    panel.ask("mug")


@pytest.mark.parametrize(
    "text",
    [
        "x" * 10_000,
        "🥄 勺子 ложка ملعقة",
        "<img src=x onerror=alert(1)>",
        "{alert(1)} `a` [b](javascript:alert(1))",
        "a;" * 40,
    ],
)
def test_any_text_is_only_text(panel: Panel, text: str) -> None:
    panel.box("Question").fill(text)
    panel.wait(lambda: "took" in panel.text or "at most 16 phrases" in panel.text, "an answer or a refusal")
    panel.page.wait_for_timeout(500)
    assert panel.page.locator("img[src='x']").count() == 0
    panel.ask("mug")


def test_an_empty_question_shows_the_picture(panel: Panel) -> None:
    panel.ask("mug")
    panel.box("Question").fill("   ")
    panel.wait(lambda: "Type what to look for" in panel.text, "the idle line")
    panel.wait(lambda: "mug" not in panel.drawings, "the empty legend")


def test_an_encoder_that_cannot_be_had_is_named_in_the_panel(panel: Panel) -> None:
    panel.ask("mug")
    panel.choose("Features", "video: what is done")
    panel.wait(lambda: "The text encoder of the video features cannot be used" in panel.text, "the error")
    assert MISSING in panel.text
    panel.choose("Features", "image: what it is")
    panel.ask("wall")


def test_a_browser_that_goes_in_the_middle_of_a_render_does_no_harm(
    panel: Panel, chromium: Any, server: Server
) -> None:
    for _ in range(3):
        other = Panel(chromium, server.url)
        other.box("Question").fill("mug")
        other.page.mouse.move(300, 300)
        other.page.mouse.down()
        other.page.mouse.move(340, 310, steps=4)
        other.page.mouse.up()
        other.page.close()
    panel.ask("sleeve")


def test_a_still_film_is_written_with_its_state(panel: Panel, trained: Scene) -> None:
    panel.ask("mug")
    panel.at_rest()
    panel.page.get_by_text("Film", exact=True).click()
    panel.press("This view over all times")
    panel.wait(lambda: "divff video" in panel.text, "the command")
    (path, *_) = sorted((trained.scene / "camera_paths").glob("still-*.json"))
    panel.wait(panel_state_path(path).is_file, "the state")
    assert load_panel_state(panel_state_path(path)).query.text == "mug"


def test_typing_is_answered_at_once_where_the_view_is_kept(panel: Panel) -> None:
    """No time is asserted, for machines differ; rendering is: the state says where a view had to be."""
    panel.ask("mug")
    panel.at_rest()
    panel.box("Question").press_sequentially(" sleeve wall", delay=40)
    panel.wait(lambda: "mug sleeve wall" in panel.drawings, "the answer to what was typed")
    panel.wait(lambda: "took" in panel.text, "the time it took")
    assert "rendering the view" not in panel.text


def test_a_question_while_training_runs(trained: Scene, chromium: Any) -> None:
    sizes = [
        "--pipeline.model.fields.static-resolutions", 8, 16, "--pipeline.model.fields.dynamic-resolutions", 8,
        "--pipeline.model.heads.resolutions", 8, "--pipeline.model.num-samples", 8,
        "--pipeline.model.num-proposal-samples", 12,
    ]  # fmt: skip
    command = [
        "ns-train", "divff", "--data", trained.scene, "--output-dir", trained.root / "training",
        "--max-num-iterations", 100_000, "--vis", "viewer", "--machine.device-type", "cpu",
        "--pipeline.datamanager.train-num-rays-per-batch", 64, "--pipeline.model.static-until", 1,
        "--pipeline.model.heads-from", 2, "--pipeline.model.joint-from", 3, *sizes,
    ]  # fmt: skip
    with serve(trained, command, "training") as server:
        panel = Panel(chromium, server.url)
        panel.ask("mug")

        def steps() -> list[str]:
            return re.findall(r"(\d+) \(\d+\.\d+%\)", server.log.read_text())

        before = len(steps())
        panel.box("Question").fill("sleeve")
        panel.wait(lambda: "sleeve" in panel.drawings, "the answer while training")
        panel.wait(lambda: len(steps()) > before, "training to go on")
        panel.page.close()
        assert server.alive, server.log.read_text()[-3000:]
