"""Which events can be known of an object's motion, and which of those that are told are true."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from divff_nerfstudio.evaluation.found_events import KnownEvent, score_events, true_events
from divff_nerfstudio.objects.things import Move

MUG, STEP, COUNT = 3, 5, 40
NUMBERS = STEP * np.arange(COUNT)
PLACE = np.zeros(3)


def moved(*motion):
    """A mug that moves so in a video of 200 frames."""
    instance = SimpleNamespace(id=MUG, motion=motion)
    return SimpleNamespace(objects=[SimpleNamespace(instance=instance, numbers=np.arange(200))])


def shown(*spans):
    """Pixels of the mug in frames from one to another, both included."""
    frames = np.zeros((COUNT, 256), np.int64)
    for first, last in spans:
        frames[first : last + 1, MUG] = 50
    return frames


@pytest.mark.parametrize(
    ("motion", "spans", "known"),
    [
        (((52, 98),), [(0, 39)], [(52, 98, True, True)]),
        (((52, 98),), [(0, 5), (30, 39)], [(52, 98, True, True)]),
        (((52, 98),), [(14, 39)], [(70, 98, False, True)]),
        (((52, 98),), [(0, 15)], [(52, 75, True, False)]),
        (((52, 98),), [(9, 39)], [(52, 98, None, True)]),
        (((0, 98),), [(0, 39)], [(0, 98, False, True)]),
        (((0, 98),), [(4, 39)], [(20, 98, False, True)]),
        (((52, 199),), [(0, 39)], [(52, 195, True, False)]),
        (((52, 199),), [(0, 30)], [(52, 150, True, False)]),
        (((52, 98),), [(17, 39)], [(85, 98, False, True)]),
        (((52, 98),), [(18, 39)], []),
        (((52, 98),), [(0, 13)], [(52, 65, True, False)]),
        (((52, 98),), [(0, 12)], []),
        (((52, 98),), [(0, 9), (15, 15), (20, 39)], [(52, 98, True, True)]),
        (((52, 98),), [(30, 39)], []),
        (((52, 98),), [(0, 5)], []),
        (((52, 98),), [(13, 16)], []),
        (((52, 98),), [], []),
        (((190, 199),), [(0, 39)], []),
        (((52, 98), (152, 178)), [(0, 14), (33, 39)], [(52, 70, True, False), (165, 178, False, True)]),
    ],
)
def test_an_event_is_what_frames_show_of_a_motion(motion, spans, known):
    found = true_events(moved(*motion), shown(*spans), NUMBERS)
    assert found == [KnownEvent(MUG, *each) for each in known]


@pytest.mark.parametrize(
    ("move", "right"),
    [
        (Move(15, 20, None, PLACE), True),
        (Move(11, 20, None, PLACE), True),
        (Move(9, 20, None, PLACE), False),
        (Move(14, 20, PLACE, PLACE), False),
        (Move(14, 20, None, None), False),
    ],
)
def test_what_is_brought_in_is_found_if_it_is_told_so(move, right):
    """The mug is first seen in the hand, at frame 14, and is put down in frame 20."""
    things = SimpleNamespace(things=[SimpleNamespace(moves=(move,))])
    scores = score_events(things, moved((52, 98)), np.array([MUG]), shown((14, 39)), NUMBERS, 20.0)  # pyright: ignore
    assert (scores["events"], scores["events_told"]) == (1, 1)
    assert (scores["events_found"], scores["events_false"]) == (right, not right)
