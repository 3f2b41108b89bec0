"""What the panel is made of: drawings, moments, points, background work."""

from __future__ import annotations

import json
import re
import threading
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nerfstudio.cameras.cameras import Cameras
from waiting import PATIENCE, until, until_idle

from divff_nerfstudio.cli.video import VideoConfig
from divff_nerfstudio.models.view import Features
from divff_nerfstudio.overlays import PALETTE, as_rgb, outline, outlined, overlay_several
from divff_nerfstudio.query import Query, QueryConfig
from divff_nerfstudio.relevancy import Example
from divff_nerfstudio.viewer.background import Latest
from divff_nerfstudio.viewer.layout import LAYOUT
from divff_nerfstudio.viewer.lettering import width
from divff_nerfstudio.viewer.markup import as_code, as_image, as_markdown, legend, one_line, plot, strip
from divff_nerfstudio.viewer.panel_state import PanelState, panel_state_path
from divff_nerfstudio.viewer.pointing import layer_at, pixel_at, place_of, vocabulary
from divff_nerfstudio.viewer.timeline import Timeline, change, coarse_to_fine
from divff_nerfstudio.viewer.views import AnsweredView, small_camera, take_resolution


def test_markdown_shows_text_literally():
    assert as_markdown("<b>*x*</b> {y}\n[z](w)") == r"\<b\>\*x\*\<\/b\> \{y\} \[z\]\(w\)"
    assert len(as_markdown("a" * 9999)) == 300
    # MDX takes a line that begins so for JavaScript.
    assert as_markdown("import x") == "&#105;mport x" and as_markdown("exports") == "&#101;xports"


@settings(max_examples=100)
@given(st.text(alphabet='`\n ab{}<>"\\\u2028é'))
def test_code_stays_within_its_quotes(text):
    found = re.fullmatch(r'<code style=\{\{wordBreak: "break-all"\}\}>\{(".*")\}</code>', as_code(text))
    assert found is not None and not set(found[1]) & set("{}<>`\n") and found[1].isascii()
    assert json.loads(found[1]) == one_line(text, 4000)


@settings(max_examples=100)
@given(st.text())
def test_drawings_are_well_formed_whatever_is_asked(text):
    scores = np.array([[np.nan], [0.5]], np.float32)
    for svg in (legend([text], [0.6], 0.53), plot([text], np.array([0.0, 1.0]), scores, 0.53, 0.2, (0, 98))):
        root = ET.fromstring(svg)
        assert root.tag.endswith("svg")
        kinds = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert kinds <= {"svg", "defs", "linearGradient", "stop", "rect", "text", "line", "polyline", "circle"}
    assert "<script" not in as_image(legend([text], [0.6], 0.53))


@pytest.mark.parametrize("threshold", [0.39, 0.51, 0.53, 0.57, 0.64])
def test_the_threshold_is_named_beside_its_line(threshold):
    scores = np.array([[0.2], [0.75]], np.float32)
    root = ET.fromstring(plot(["mug"], np.array([0.0, 1.0]), scores, threshold, 0.2, (0, 98)))
    (label,) = (each for each in root.iter() if each.text == f"{threshold:.2f}"[1:])
    (line,) = (each for each in root.iter() if each.get("stroke-dasharray"))
    assert float(label.attrib["y"]) == pytest.approx(float(line.attrib["y1"]) + 4, abs=0.11)


def test_the_legend_tells_what_is_seen():
    svg = legend(["mug", "bowl"], [0.7, 0.4], 0.53)
    assert svg.index("mug") < svg.index("0.70") < svg.index("bowl") < svg.index("0.40 · not in view")
    assert PALETTE[0] in svg and PALETTE[1] in svg
    judged = legend(["mug", "bowl"], [0.7, 0.4], 0.53, ["not in the scene", "in view"])
    assert judged.index("0.70 · not in the scene") < judged.index("0.40<")


@pytest.mark.parametrize("state", ["in view", "in the scene, not in view", "not in the scene"])
@pytest.mark.parametrize(
    "phrase", ["mug", "the largest of the white mugs on the table", "W" * 24, "i" * 300, "汉字" * 20, "🥕" * 40]
)
def test_no_words_of_the_legend_lie_on_others(phrase, state):
    root = ET.fromstring(legend([phrase], [0.7], 0.53, [state]))
    name, said = (each for each in root.iter() if each.tag.endswith("text"))
    assert name.text and said.text and name.text.rstrip("…") == phrase[: len(name.text.rstrip("…"))]
    end = float(name.attrib["x"]) + width(name.text, 12)
    assert end < float(said.attrib["x"]) - width(said.text, 12)
    assert (name.text == phrase) == (phrase == "mug")


def test_each_phrase_has_its_colour_and_its_outline():
    relevancies = torch.zeros(20, 20, 2)
    relevancies[2:9, 2:9, 0] = relevancies[10:18, 10:18, 1] = 0.9
    picture = overlay_several(torch.zeros(20, 20, 3), relevancies)
    assert torch.allclose(picture[5, 5], torch.tensor(as_rgb(PALETTE[0])))
    assert torch.allclose(picture[15, 15], torch.tensor(as_rgb(PALETTE[1])))
    assert torch.allclose(picture[0, 19], torch.tensor(0.5))
    assert overlay_several(torch.rand(20, 20, 3), relevancies, strength=0).max() <= 1
    drawn = outlined(torch.zeros(20, 20, 3), relevancies >= 0.53)
    assert torch.allclose(drawn[2, 5], torch.tensor(as_rgb(PALETTE[0]))) and not drawn[5, 5].any()
    edge = outline(torch.ones(4, 4, dtype=torch.bool), 1)
    assert not edge.any()


def test_a_strip_shows_what_happens_to_a_thing():
    spans = [("rests", 0, 4), ("carried", 5, 6), ("rests", 7, 8), ("out of sight", 9, 9)]
    bars = ET.fromstring(strip(spans, 8)).findall("{*}rect")
    shown = [(bar.get("fill"), float(bar.get("x")), float(bar.get("width"))) for bar in bars[: len(spans) + 1]]
    assert len({colour for colour, _, _ in shown[:4]}) == 4
    ends = [x + width for _, x, width in shown[:4]]
    assert [x for _, x, _ in shown[1:4]] == pytest.approx(ends[:3], abs=0.2)
    assert ends[1] < shown[4][1] < ends[2]
    legend = {bar.get("fill") for bar in bars[len(spans) + 1 :]}
    assert legend == {colour for colour, _, _ in shown[:4]}


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 32])
def test_looking_goes_from_coarse_to_fine(count):
    order = coarse_to_fine(count)
    assert sorted(order) == list(range(count))
    if count == 32:
        assert max(np.diff(sorted(order[:9]))) <= 5


def test_change_is_what_two_maps_do_not_share():
    here, there = torch.zeros(8, 8), torch.zeros(8, 8)
    here[:4, :4] = there[4:, 4:] = 1
    assert change(here, here) == 0 and change(here, there) == 1
    assert change(here, torch.zeros(8, 8)) == 1
    speck = torch.zeros(8, 8)
    speck[0, 0] = 1
    assert change(speck, torch.zeros(8, 8)) == 0


def test_scores_over_time_are_found_once_for_each_question():
    decoded = []

    def decode(kind):
        decoded.append(kind)
        return torch.eye(4)[None, :2]

    query = Query(QueryConfig(), {"image": lambda phrases: torch.eye(4)[[int(phrase == "b") for phrase in phrases]]})
    timeline = Timeline("here", view().camera, np.array([0.0, 0.5, 1.0]))
    timeline.views[0] = timeline.views[2] = AnsweredView(None, {}, Features(["image"], decode))  # pyright: ignore
    query.ask(text="a; b")
    for _ in range(2):
        scores = timeline.scores(query)
        assert scores.shape == (3, 2) and np.isnan(scores[1]).all() and len(decoded) == 2
    timeline.views[1] = timeline.views[0]
    assert np.isfinite(timeline.scores(query)).all() and len(decoded) == 3
    query.ask(text="a")
    assert timeline.scores(query).shape == (3, 1) and len(decoded) == 6


def view() -> AnsweredView:
    camera = Cameras(torch.eye(4)[None, :3], 10.0, 10.0, 8.0, 4.0, 16, 8, times=torch.tensor([[0.0]]))
    pictures = {
        "rgb": torch.zeros(8, 16, 3),
        "depth": torch.full((8, 16, 1), 3.0),
        "accumulation": torch.ones(8, 16, 1),
        "mask_dynamic": torch.full((8, 16, 1), 0.3),
        "mask_actor": torch.full((8, 16, 1), 0.6),
    }
    return AnsweredView(camera, pictures, Features())


def test_a_pixel_has_a_layer_and_a_place():
    seen = view()
    layer = layer_at(seen, 2, 3)
    assert (layer.name, layer.share) == ("actor", pytest.approx(0.6))
    assert pixel_at(seen, 0.999, 1.5) == (7, 15)
    place = place_of(seen, 3, 7)
    assert float(place.norm()) == pytest.approx(3) and place[2] < -2.9


def test_cameras_take_sizes_and_times():
    camera, before = view().camera, view().camera
    small = small_camera(camera, 4, 0.5)
    assert (int(small.height), int(small.width), float(small.times)) == (4, 8, 0.5)
    assert int(camera.height) == 8 and float(camera.times) == 0
    take_resolution(small, camera)
    assert torch.allclose(small.generate_rays(0).directions, before.generate_rays(0).directions)
    elsewhere = camera.to("meta")
    take_resolution(elsewhere, camera)
    assert elsewhere.fx.device == elsewhere.height.device == torch.device("meta")


def test_an_example_is_held_against_its_view():
    random = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.rand(6, 6, 8, generator=random) + 1, dim=-1)
    example = Example.of(features, 2, 3)
    found = example.relevancy(features)
    assert float(found[2, 3]) == pytest.approx(0.982, abs=1e-3)
    assert int(found.argmax()) == 2 * 6 + 3 and float(found.mean()) < 0.2
    same = Example.of(features[:1, :1].expand(6, 6, -1), 0, 0)
    assert torch.isfinite(same.relevancy(features)).all()


def test_vocabularies_are_words():
    for kind in ("image", "video"):
        words = vocabulary(kind)
        assert len(words) > 50 and len(set(words)) == len(words) and all(word == word.strip() for word in words)


def test_only_the_newest_job_is_done_after_the_one_under_way():
    done, errors, go = [], [], threading.Event()
    lane = Latest("test", errors.append)
    lane.submit(lambda: (go.wait(PATIENCE), done.append(0)))
    until(lambda: not lane.outdated)
    for i in (1, 2, 3):
        lane.submit(lambda i=i: done.append(i))
    assert lane.outdated and not lane.idle
    go.set()
    until_idle(lane)
    assert done == [0, 3]
    lane.submit(lambda: 1 / 0)
    lane.submit(lambda: done.append(4))
    until_idle(lane)
    assert done[-1] == 4


def test_a_failed_job_is_told_and_the_thread_lives_on():
    errors = []
    lane = Latest("test", errors.append)
    lane.submit(lambda: 1 / 0)
    until_idle(lane)
    assert [type(error) for error in errors] == [ZeroDivisionError]
    lane.submit(lambda: errors.append("alive"))
    until_idle(lane)
    assert errors[-1] == "alive"


def test_a_film_asks_and_hides_what_the_panel_did(tmp_path):
    path = tmp_path / "tour.json"
    query = Query(QueryConfig(), {"image": lambda phrases: torch.eye(12)[: len(phrases)]})
    trained = SimpleNamespace(query=query)
    assert VideoConfig(tmp_path, camera_path=path)._as_in_the_panel(trained) == ()  # pyright: ignore
    state = PanelState(QueryConfig(text="mug"), hide_actor=True)
    state.save(panel_state_path(path))
    assert VideoConfig(tmp_path, camera_path=path, queries=("bowl",))._as_in_the_panel(trained) == ("actor",)  # pyright: ignore
    assert query.phrases == ()
    film = VideoConfig(tmp_path, camera_path=path, hide=("dynamic",))
    assert film._as_in_the_panel(trained) == ("dynamic",) and query.phrases == ("mug",)  # pyright: ignore


def test_what_the_manual_names_is_in_the_panel():
    """Emphasised words of its first sections, and the first column of its table, are labels."""
    root = Path(__file__).parents[1]
    manual = (root / "docs" / "viewer.md").read_text(encoding="utf-8").partition("## Safety")[0]
    rooms = (root / "divff_nerfstudio" / "viewer" / "elements").glob("*.py")
    source = "".join(room.read_text(encoding="utf-8") for room in rooms)
    labels = {*re.findall(r'add_\w+\(\s*"([^"]+)"', source), *LAYOUT}
    nerfstudios = {"Output type", "Render", "Max res"}
    named = re.findall(r"(?<![*\w])\*([A-Z][^*]+)\*", manual.replace("\n", " "))
    named += [row for row in re.findall(r"^\| ([^|]+?) \|", manual, re.MULTILINE) if row != "Element"]
    assert len(named) > 15
    assert [name for name in named if name not in labels | nerfstudios] == []
