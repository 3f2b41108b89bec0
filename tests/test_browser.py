"""nerfstudio's viewer on a trained scene, in a headless Chromium: what a user types, clicks and sees."""

from __future__ import annotations

import os
import re
import sys
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
from divff_nerfstudio.viewer.panel_state import load_panel_state, panel_state_path

sys.path.append(str(Path(__file__).parent.parent / "scripts"))
from viewer_page import CHROMIUM, ViewerPage, ViewerServer, open_browser, serve

pytest.importorskip("playwright.sync_api", reason='install the extra "browser"')
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH; name one in DIVFF_CHROMIUM"),
]
WORDS = ("mug", "wall", "sleeve", "cu")
MISSING = "no-such-encoder"
STEPS = 1000
HOSTILE = (
    "<img src=x onerror=alert(1)><script>alert(1)</script>",
    "{alert(1)} `a` [b](javascript:alert(1)) ![c](x)",
    "../../x & $(touch x)",
)
MAX_WIDTH = 228
"""Width of the picture at rest."""


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
    return train(tmp_path_factory.mktemp("browser"))


def train(root: Path) -> Scene:
    """Writes the scene, its features and their encoder, and trains."""
    env = {**os.environ, "DIVFF_CACHE_DIR": str(root / "cache"), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    scene = small_scene.write(root / "scene")
    tiny_run.write_features(scene, root / "encoder", WORDS, paint, negatives=("cu",), video_encoder=MISSING)
    config = tiny_run.config(scene, root / "outputs", STEPS)
    config.pipeline.datamanager.train_num_rays_per_batch = 256
    # Larger than tiny, and most of the time for the heads: what is asked for must be found.
    model = config.pipeline.model
    model.fields = LayeredFieldConfig(static_resolutions=(16, 64), dynamic_resolutions=(16, 32))
    model.heads = SemanticHeadsConfig(resolutions=(16, 64), hidden=64)
    model.moving_start_step, model.heads_start_step, model.joint_start_step = STEPS // 10, STEPS // 2, STEPS
    torch.manual_seed(0)
    trainer = config.setup(local_rank=0, world_size=1)
    config.save_config()
    trainer.setup()
    trainer.train()
    return Scene(root, scene, trainer.base_dir / "config.yml", env)


@pytest.fixture(scope="module")
def server(trained: Scene) -> Iterator[ViewerServer]:
    """`divff view` on the run."""
    command = ["divff", "view", "--load-config", trained.config]
    with serve(command, trained.root / "viewer.log", "--port", trained.env) as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser."""
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(chromium: Any, server: ViewerServer) -> ViewerPage:
    """The page that most tests share."""
    return ViewerPage(chromium, server.url)


@pytest.fixture
def panel(page: ViewerPage, server: ViewerServer) -> Iterator[ViewerPage]:
    """The page with nothing asked, at the first frame."""
    for label in ("Hide actor", "Hide dynamic"):
        if page.box(label).is_checked():
            page.box(label).uncheck()
    page.choose("Features", "image: what it is")
    page.box("Question").fill("")
    page.box("Frame").fill("0")
    page.box("Frame").press("Enter")
    page.press("Through the wearer's eyes")
    # The line of state tells of the frame if that has changed, else that nothing is asked.
    page.wait(lambda: re.search("Type what to look for|Frame 0 at time", page.text), "the idle line")
    yield page
    assert server.alive, server.said[-3000:]
    assert page.dialogs == []


@pytest.fixture(scope="module")
def own(trained: Scene) -> Any:
    """The same run, opened here."""
    return open_scene(trained.config)


def expected(own: Any, shape: tuple[int, ...], text: str = "", hide_actor: bool = False, time: float = 0.0) -> dict:
    """The outputs that the model itself has for the view of the first frame, in the browser's shape."""
    camera = own.camera_at(0, time)
    camera.rescale_output_resolution(MAX_WIDTH * shape[0] / shape[1] / small_scene.HEIGHT)
    camera.width, camera.cx = torch.full_like(camera.width, MAX_WIDTH), torch.full_like(camera.cx, MAX_WIDTH / 2)
    own.query.ask(text=text, contour=True)
    view = own.model.render(camera, ("static", "dynamic") if hide_actor else ("static", "dynamic", "actor"))
    return view.pictures | own.query.answer(view.pictures, view.features)


def on_screen(output: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """An output as the browser shows it."""
    image = Image.fromarray((255 * output.clamp(0, 1)).byte().numpy())
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def difference(seen: np.ndarray, wanted: np.ndarray) -> float:
    """Median difference of two pictures, 0 to 255: labels and outlines, blurred by half a pixel, are outliers."""
    return float(np.median(np.abs(seen.astype(float) - wanted.astype(float)).mean(-1)))


def mug_in(shape: tuple[int, ...]) -> tuple[float, float]:
    """Where in a picture of that shape the first frame has the middle of the mug, as shares of width and height."""
    rows, cols = np.nonzero(small_scene.layers(0) == 1)
    height = small_scene.HEIGHT
    across = 0.5 + (cols.mean() + 0.5 - small_scene.WIDTH / 2) / (height * shape[1] / shape[0])
    return across, (rows.mean() + 0.5) / height


def mug_of(picture: np.ndarray) -> np.ndarray:
    """The mug's part of a picture of the first frame, six of its 24 rows; a mark and its label hide some of it."""
    across, down = mug_in(picture.shape)
    row, column, half = int(down * picture.shape[0]), int(across * picture.shape[1]), picture.shape[0] // 8
    return picture[row - half : row + half, column - half : column + half]


def coloured(picture: np.ndarray) -> np.ndarray:
    """Where a picture of an answer has the colours of one: the lightened room and its wall are pale."""
    return np.ptp(picture.astype(int), axis=-1) > 90


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return (a & b).sum() / max(1, (a | b).sum())


def test_the_answer_appears_where_the_mug_is(panel: ViewerPage, own: Any) -> None:
    with panel.anew(MAX_WIDTH):
        panel.ask("mug")
    seen = panel.picture()
    found = expected(own, seen.shape, "mug")
    wanted = on_screen(found["relevancy_overlay"], seen.shape)
    assert difference(seen, wanted) < 8 < difference(on_screen(found["rgb"], seen.shape), wanted)
    assert overlap(coloured(seen), coloured(wanted)) > 0.7
    assert mug_of(coloured(seen)).mean() > 0.6
    assert coloured(seen).mean() < 0.3


def test_output_time_and_layers_change_the_picture(panel: ViewerPage, own: Any) -> None:
    with panel.anew(MAX_WIDTH):
        panel.choose("Show", "Depth")
    with panel.anew(MAX_WIDTH):
        panel.choose("Show", "Picture")
    first = panel.picture()
    assert difference(first, on_screen(expected(own, first.shape)["rgb"], first.shape)) < 8
    with panel.anew(MAX_WIDTH):
        panel.box("Hide actor").check()
    without = panel.picture()
    alone = on_screen(expected(own, first.shape, hide_actor=True)["rgb"], first.shape)
    assert difference(without, alone) < 8
    assert np.abs(without.astype(float) - first).mean() > 2
    with panel.anew(MAX_WIDTH):
        panel.choose("Show", "Static layer")
    static = on_screen(expected(own, first.shape)["rgb_static"], first.shape)
    assert difference(panel.picture(), static) < 8
    with panel.anew(MAX_WIDTH):
        panel.choose("Show", "Picture")
        panel.box("Hide actor").uncheck()
        panel.slider("Time").focus()
        panel.page.keyboard.press("End")
    panel.wait(lambda: panel.box("Frame").input_value() == str(small_scene.FRAMES - 1), "the last frame in the box")
    last = on_screen(expected(own, first.shape, time=1.0)["rgb"], first.shape)
    assert difference(panel.picture(), last) < 8
    assert np.abs(panel.picture().astype(float) - first).mean() > 2


def test_a_click_says_what_is_there(panel: ViewerPage, own: Any) -> None:
    panel.wait(lambda: "Looking for things" not in panel.text, "the end of the search for things")
    panel.at_rest(MAX_WIDTH)
    panel.press("What is this?")
    panel.wait(lambda: "Click into the picture" in panel.text, "the invitation to click")
    across, down = mug_in(panel.picture().shape)
    with panel.anew(MAX_WIDTH):
        panel.click(across, down)
        panel.wait(lambda: "most like" in panel.text, "the answer to the click")
    # What so short a training draws in the actor's layer is nobody's thing; things are clicked in test_panel_things.
    like = r"most like mug \d\.\d\d, .+, .+\. No thing that several frames show\."
    said = re.search(rf"(\[point \d+\]): (\w+) layer \(\d+ %\); {like}", panel.text)
    assert said is not None, panel.text
    seen = panel.picture()
    found = expected(own, seen.shape)
    row, col = (int(share * side) for share, side in zip((down, across), found["rgb"].shape[:2], strict=True))
    dynamic, actor = (float(found[name][row, col]) for name in ("mask_dynamic", "mask_actor"))
    shares = {"static": 1 - dynamic - actor, "dynamic": dynamic, "actor": actor}
    assert said[2] == max(shares, key=shares.__getitem__)
    assert panel.box("Question").input_value() == said[1]
    panel.wait(lambda: said[1] in panel.drawings, "the point in the legend")
    assert mug_of(coloured(seen)).mean() > 0.6


def test_several_questions_have_a_legend_marks_and_a_plot_over_time(panel: ViewerPage) -> None:
    panel.ask("mug; sleeve", "sleeve")
    panel.wait(lambda: panel.drawings.count("polyline") == 2, "the plot")
    assert len(set(re.findall(r'<polyline[^>]*stroke="(#\w+)"', panel.drawings))) == 2
    for phrase in ("mug", "sleeve"):
        panel.wait(lambda phrase=phrase: re.search(rf"^{phrase} \d\.\d\d$", panel.text, re.M), "a mark with a label")


def test_the_next_moment_it_moves_is_gone_to(panel: ViewerPage) -> None:
    panel.ask("mug")
    panel.press("Next moment it moves")
    panel.wait(lambda: "It moves at frame" in panel.text, "the search for a move")
    named = re.search(r"It moves at frame (\d+)", panel.text)
    assert named is not None
    panel.wait(lambda: panel.box("Frame").input_value() == named[1] != "0", "the frame in its box")


def test_two_clients_share_the_question_and_see_it_answered(
    panel: ViewerPage, chromium: Any, server: ViewerServer
) -> None:
    other = ViewerPage(chromium, server.url)
    other.at_rest(MAX_WIDTH)
    with other.anew(MAX_WIDTH), panel.anew(MAX_WIDTH):
        panel.ask("sleeve")
    other.wait(lambda: "sleeve" in other.drawings, "the answer at the other client")
    assert other.box("Question").input_value() == "sleeve"
    assert difference(other.picture(), panel.picture()) < 8
    with other.anew(MAX_WIDTH), panel.anew(MAX_WIDTH):
        other.ask("mug")
    assert panel.box("Question").input_value() == "mug"
    assert difference(other.picture(), panel.picture()) < 8
    other.page.close()
    panel.ask("wall")


@pytest.mark.parametrize("text", ["x" * 10_000, "🥄 勺子 ложка ملعقة", *HOSTILE])
def test_any_text_is_only_text(panel: ViewerPage, text: str) -> None:
    panel.box("Question").fill(text)
    panel.wait(lambda: "The query took" in panel.text, "an answer")
    panel.wait(lambda: "[" not in text or "onerror" in panel.drawings or "alert" in panel.drawings, "the legend")
    panel.page.evaluate("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    assert panel.page.locator("[src='x'], script:not([src]):has-text('alert'), a[href*='alert']").count() == 0
    assert len(panel.text) < 3000


def test_too_many_phrases_are_refused_in_the_panel(panel: ViewerPage) -> None:
    panel.box("Question").fill("".join(f"a{i};" for i in range(40)))
    panel.wait(lambda: "at most 16 phrases" in panel.text, "the refusal")
    panel.ask("mug")


def test_an_empty_question_shows_the_picture(panel: ViewerPage) -> None:
    panel.ask("mug")
    panel.box("Question").fill("   ")
    panel.wait(lambda: "Type what to look for" in panel.text, "the idle line")
    panel.wait(lambda: "mug" not in panel.drawings, "the empty legend")


def test_an_encoder_that_cannot_be_had_is_named_in_the_panel(panel: ViewerPage) -> None:
    panel.ask("mug")
    panel.choose("Features", "video: what is done")
    panel.wait(lambda: "The text encoder of the video features cannot be used" in panel.text, "the error")
    assert MISSING in panel.text
    panel.choose("Features", "image: what it is")
    panel.ask("wall")


def test_a_browser_that_goes_in_the_middle_of_a_render_does_no_harm(
    panel: ViewerPage, chromium: Any, server: ViewerServer
) -> None:
    for _ in range(2):
        other = ViewerPage(chromium, server.url)
        other.at_rest(MAX_WIDTH)
        other.page.mouse.move(300, 300)
        other.page.mouse.down()
        other.page.mouse.move(340, 310, steps=2)
        other.page.mouse.up()
        # The smaller pictures have come, the full one is on its way.
        other.wait(lambda other=other: f"Resolution: {MAX_WIDTH}x" not in other.text, "a smaller picture")
        other.page.close()
    panel.ask("sleeve")


def test_a_still_film_is_written_with_its_state(panel: ViewerPage, trained: Scene) -> None:
    panel.ask("mug")
    panel.at_rest(MAX_WIDTH)
    panel.unfold("Film")
    panel.press("This view over all times")
    panel.wait(lambda: "divff video" in panel.text, "the command")
    (path,) = (trained.scene / "camera_paths").glob("still-*.json")
    panel.wait(panel_state_path(path).is_file, "the state")
    assert load_panel_state(panel_state_path(path)).query.text == "mug"
    panel.unfold("Film")


def test_typing_is_answered_at_once_where_the_view_is_kept(panel: ViewerPage) -> None:
    """No time is asserted, for machines differ; rendering is: the state says where a view had to be."""
    panel.ask("mug")
    panel.at_rest(MAX_WIDTH)
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
        "--pipeline.datamanager.train-num-rays-per-batch", 64, "--pipeline.model.moving-start-step", 1,
        "--pipeline.model.heads-start-step", 2, "--pipeline.model.joint-start-step", 3, *sizes,
    ]  # fmt: skip
    with serve(command, trained.root / "training.log", env=trained.env) as server:
        panel = ViewerPage(chromium, server.url)
        panel.ask("mug")

        def steps() -> list[str]:
            return re.findall(r"(\d+) \(\d+\.\d+%\)", server.said)

        before = len(steps())
        panel.box("Question").fill("sleeve")
        panel.wait(lambda: "sleeve" in panel.drawings, "the answer while training")
        panel.wait(lambda: len(steps()) > before, "training to go on")
        panel.page.close()
        assert server.alive, server.said[-3000:]
