"""What the panel says of an answer: in view, in the scene, or not at all; and of what was typed badly."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_calibration import DIM, scene
from waiting import until_idle

from divff_nerfstudio.features.oracle import phrase_code
from divff_nerfstudio.query import QueryError
from divff_nerfstudio.spelling import respelled
from divff_nerfstudio.viewer.judging import Judging
from divff_nerfstudio.viewer.signals import Signal

KNOWN = ("a red mug", "bowl", "cutting boards", "glass", "a jacket", "wash")


class Panel:
    """As much of a panel as judging uses: a view of a table with a mug on its left half."""

    def __init__(self, height=8, width=16, calibrate=None):
        self.calibration = scene()
        self.query = self.calibration.query
        self.notes: list[str] = []
        self.drawn: Signal = Signal()
        context = SimpleNamespace(query=self.query, note=self.notes.append, failed=pytest.fail)
        answering = SimpleNamespace(drawn=self.drawn)
        self.judging = Judging(context, answering, calibrate or (lambda kind: self.calibration))  # pyright: ignore
        self.told: list[list[str]] = []
        self.judging.judged.connect(lambda _, __, states: self.told.append(states))
        left = np.arange(width) < width // 2
        codes = np.stack([phrase_code(name, DIM) for name in ("table", "mug")]).astype(np.float32)
        self.features = {"image": torch.from_numpy(codes)[np.broadcast_to(left, (height, width)).astype(int)]}
        self.height, self.width = height, width

    def ask(self, text, at_rest=True):
        self.query.ask(text=text)
        answer = self.query.look(self.features)
        view = SimpleNamespace(answer=answer, features=self.features, height=self.height, width=self.width)
        self.drawn(7, view, at_rest)
        until_idle(self.judging.lane)
        return self.told[-1] if self.told else None


@pytest.mark.parametrize("size", [(8, 16), (300, 400)])
def test_phrases_are_in_view_in_the_scene_or_not_there(size):
    panel = Panel(*size)
    assert panel.ask("mug; kettle; violin") == ["in view", "in the scene, not in view", "not in the scene"]
    assert panel.notes == []


def test_a_moving_view_is_not_judged():
    assert Panel().ask("mug", at_rest=False) is None


def test_a_slip_of_the_finger_is_asked_back():
    panel = Panel()
    assert panel.ask("the kettel") == ["not in the scene"]
    assert panel.notes == ["the kettel is not in the scene. Did you mean the kettle?"]


def test_the_scene_is_read_before_anybody_asks_and_without_words_nothing_is_said():
    read = []

    def calibrate(kind):
        read.append(kind)
        return scene()

    panel = Panel(calibrate=calibrate)
    panel.judging.prepare()
    until_idle(panel.judging.lane)
    assert read == ["image"]
    assert panel.ask("mug") == ["in view"] and read == ["image"]
    assert Panel(calibrate=lambda kind: None).ask("mug") is None

    def speechless(kind):
        found = scene()
        found.query.encoders["image"] = lambda phrases: (_ for _ in ()).throw(QueryError("no weights"))
        return found

    silent = Panel(calibrate=speechless)
    silent.judging.prepare()
    until_idle(silent.judging.lane)
    assert silent.notes == []


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("the mugg", "the mug"),
        ("cuting board", "cutting board"),
        ("Bowll and glas", "bowl and glass"),
        ("mugs", None),
        ("bowl", None),
        ("xylophone", None),
        ("tennis racket", None),
        ("dish washer", None),
        ("", None),
    ],
)
def test_respelled(typed, meant):
    assert respelled(typed, KNOWN) == meant


@given(st.text())
def test_what_is_known_is_never_respelled(text):
    assert respelled(text, [text]) is None
