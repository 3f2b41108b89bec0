"""The viewer's panel, found and driven as nerfstudio does it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import viser
from nerfstudio.viewer.control_panel import ControlPanel
from nerfstudio.viewer.utils import parse_object
from nerfstudio.viewer.viewer_elements import ViewerControl, ViewerElement
from torch import nn

from divff_nerfstudio.panel import QueryPanel, as_markdown
from divff_nerfstudio.query import PUBLISHED_NEGATIVES, Query, QueryConfig


@dataclass
class Visibility:
    hide_actor: bool = False
    hide_dynamic: bool = False


def encode(phrases):
    if any("broken" in phrase for phrase in phrases):
        raise OSError("no <b>weights</b> here")
    return torch.eye(8)[[len(phrase) % 8 for phrase in phrases]]


class Pipeline(nn.Module):
    """A pipeline as far as the viewer is concerned."""

    def __init__(self, kinds=("image", "video")):
        super().__init__()
        self.query = Query(QueryConfig(), dict.fromkeys(kinds, encode))
        self.visibility = Visibility()
        ids = np.arange(0, 2000, 2)
        self.panel = QueryPanel(self.query, self.visibility, ids, (ids / ids[-1]).astype(np.float32))


@pytest.fixture
def pipeline():
    return Pipeline()


@pytest.fixture
def server():
    server = viser.ViserServer(host="127.0.0.1", port=0)
    yield server
    server.stop()


def elements(pipeline):
    return dict(parse_object(pipeline, ViewerElement, "Custom Elements"))


def test_nerfstudio_finds_every_element_in_its_order(pipeline):
    assert list(elements(pipeline)) == [
        f"Custom Elements/panel/{name}"
        for name in (
            "ask",
            "ask_features",
            "hide_actor",
            "hide_dynamic",
            "moment",
            "note",
            "settings/negatives",
            "settings/strength",
            "settings/threshold",
        )
    ]
    assert len(parse_object(pipeline, ViewerControl, "Custom Elements")) == 1
    assert pipeline.state_dict() == {}


def test_asking_sets_the_query_and_says_so(pipeline):
    panel = pipeline.panel
    panel.ask.value = "mug; bowl"
    panel.ask.cb_hook(panel.ask)
    assert pipeline.query.phrases == ("mug", "bowl")
    assert "image features" in panel.note.content and "ms" in panel.note.content
    panel.ask.value = " "
    panel.ask.cb_hook(panel.ask)
    assert panel.note.content == "Nothing is asked."


def test_settings_reach_the_query(pipeline):
    settings = pipeline.panel.settings
    settings.threshold.value, settings.strength.value = 0.6, 0.25
    settings.negatives.value = "stuff ;; floor"
    for element in (settings.threshold, settings.strength, settings.negatives):
        element.cb_hook(element)
    config = pipeline.query.config
    assert (config.threshold, config.strength, config.negatives_image) == (0.6, 0.25, ("stuff", "floor"))


def test_negatives_follow_the_features(pipeline):
    panel = pipeline.panel
    assert panel.settings.negatives.value == "; ".join(PUBLISHED_NEGATIVES["image"])
    panel.ask_features.value = "video"
    panel.ask_features.cb_hook(panel.ask_features)
    assert panel.settings.negatives.value == "; ".join(PUBLISHED_NEGATIVES["video"])
    panel.settings.negatives.value = "nothing"
    panel.settings.negatives.cb_hook(panel.settings.negatives)
    assert pipeline.query.config.negatives_video == ("nothing",)
    assert pipeline.query.config.negatives_image == ()


def test_switches_hide_layers(pipeline):
    panel = pipeline.panel
    for element in (panel.hide_actor, panel.hide_dynamic):
        element.value = True
        element.cb_hook(element)
    assert pipeline.visibility == Visibility(True, True)


@pytest.mark.parametrize("text", ["broken", ";".join(map(str, range(99))), "x" * 10_000, "🥄 勺子 {a} <script>"])
def test_no_text_raises_and_errors_are_shown(pipeline, text):
    panel = pipeline.panel
    panel.ask.value = text
    panel.ask.cb_hook(panel.ask)
    if text == "broken" or ";" in text:
        assert pipeline.query.phrases == ()
        assert "cannot be used" in panel.note.content or "at most" in panel.note.content
    else:
        assert pipeline.query.phrases == (text,)


def test_a_run_without_features_says_so():
    panel = Pipeline(kinds=()).panel
    assert panel.ask.disabled and "no features" in panel.note.content


def test_state_is_shown_literally():
    assert as_markdown("<b>*x*</b> {y}\n[z](w)") == r"\<b\>\*x\*\<\/b\> \{y\} \[z\]\(w\)"
    assert len(as_markdown("a" * 9999)) == 300


def test_every_frame_can_be_reached_in_a_running_viewer(pipeline, server):
    """The slider has steps of 0.01, the box reaches each of 1000 frames."""
    for element in elements(pipeline).values():
        element.install(server)
    rendered = []
    control = ControlPanel(server, True, 10.0, lambda: rendered.append(1), lambda _: None, lambda _: None)
    pipeline.panel.viewer_control.viewer = type("Viewer", (), {"control_panel": control})()
    pipeline.panel.moment.value = 1046
    deadline = time.time() + 5
    while not rendered and time.time() < deadline:
        time.sleep(0.01)
    assert control.time == pytest.approx(1046 / 1998, abs=1e-6)
    assert rendered, "a new time renders the view anew"
    assert "Frame 1046" in pipeline.panel.note.content
    assert pipeline.panel.note._markdown.content == as_markdown(pipeline.panel.note.content)


def test_the_box_without_a_viewer_says_so(pipeline):
    pipeline.panel.moment.cb_hook(pipeline.panel.moment)
    assert "could not be set" in pipeline.panel.note.content
