"""The panel's state as a file."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from divff_nerfstudio.query import Query, QueryConfig, QueryError
from divff_nerfstudio.relevancy import Example
from divff_nerfstudio.viewer.panel_state import PanelState, PanelStateError, load_panel_state, panel_state_path


def encode(phrases):
    return torch.eye(4)[[len(phrase) % 4 for phrase in phrases]]


@pytest.fixture
def query():
    config = QueryConfig(text="[point 1]; 勺子 <b>", negatives_image=("stuff",), threshold=0.61, contour=True)
    query = Query(config, {"image": encode, "video": encode})
    for name in ("[point 1]", "[point 2]"):
        query.examples[name] = {"image": Example(torch.eye(4)[2], 0.75)}
    return query


@pytest.fixture
def saved(query, tmp_path):
    path = panel_state_path(tmp_path / "camera_paths" / "tour.json")
    PanelState.of(query, SimpleNamespace(hide_actor=True, hide_dynamic=False), "relevancy").save(path)
    return path


def test_it_lies_where_the_render_tab_does_not_take_it_for_a_camera_path(saved, tmp_path):
    assert saved == tmp_path / "camera_paths" / "panel" / "tour.json"
    assert not list((tmp_path / "camera_paths").glob("*.json"))


def test_a_state_comes_back_and_is_applied(saved, query):
    state = load_panel_state(saved)
    assert state.output == "relevancy" and list(state.examples) == ["[point 1]"]
    other = Query(QueryConfig(presets=("mug",)), {"image": encode, "video": encode})
    state.ask(other)
    assert other.config == replace(query.config, presets=("mug",))
    assert (state.hide_actor, state.hide_dynamic) == (True, False)
    features = {"image": torch.eye(4)[None]}
    theirs, ours = other.look(features), query.look(features)
    assert torch.equal(theirs.relevancies, ours.relevancies)


def test_a_state_that_cannot_be_asked_changes_nothing(saved):
    other = Query(QueryConfig(text="mug"), {"video": encode})
    with pytest.raises(QueryError, match="not image features"):
        load_panel_state(saved).ask(other)
    assert other.config.text == "mug" and other.examples == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content.update(version=2), "version: should be 1"),
        (lambda content: content.pop("visibility"), "visibility: Field required"),
        (lambda content: content["query"].update(text=3), "query.text: should be a valid string"),
        (lambda content: content["query"].update(features="sound"), "query.features: should be 'image' or 'video'"),
        (lambda content: content["query"].update(threshold=float("nan")), "NaN is no finite number"),
        (lambda content: content["query"].update(_target="os.system"), "query._target"),
        (lambda content: content["query"].update(text=";".join(map(str, range(99)))), "at most 16"),
        (lambda content: content["query"].update(negatives_image=[1]), "negatives_image"),
        (lambda content: content["query"].update(negatives_image=[" "]), "negatives_image.0: should say something"),
        (lambda content: content["query"].update(negatives_video=["a"] * 1001), "negatives_video"),
        (lambda content: content["examples"]["[point 1]"]["image"].update(level=1), "level"),
        (lambda content: content["examples"]["[point 1]"]["image"].update(feature=[3, 4]), "unit length"),
        (lambda content: content["examples"].update({"../x": {}}), "examples"),
        (lambda content: content.update(examples=[]), "examples"),
        (lambda content: content.update(added=1), "added"),
        (lambda content: content["query"].update(threshold=1.5), "threshold: should be less than"),
    ],
)
def test_what_is_no_state_is_named(saved, change, reason):
    content = json.loads(saved.read_text())
    change(content)
    saved.write_text(json.dumps(content))
    with pytest.raises(PanelStateError, match=reason):
        load_panel_state(saved)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(PanelStateError, match="no such file"):
        load_panel_state(tmp_path / "none.json")
    (tmp_path / "broken.json").write_bytes(b"\xff{")
    with pytest.raises(PanelStateError, match="not a saved state"):
        load_panel_state(tmp_path / "broken.json")
