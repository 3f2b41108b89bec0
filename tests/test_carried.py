"""Depths of what is carried, from where it rests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divff_nerfstudio.evidence.carried import Sights, carried_depths, extents, joined

MUG, PAN = (0.0, 0.0), (4.0, 0.0)


def sights(*each: tuple[int, tuple[float, float], float, float]) -> Sights:
    """Segments by frame, looks, extent and depth."""
    frames, looks, sizes, depths = zip(*each, strict=True)
    return Sights(np.array(frames), [np.array(looks)], np.array(sizes), np.array(depths))


@given(size=st.floats(2.0, 50.0), depth=st.floats(0.5, 5.0), times=st.floats(0.5, 2.0))
def test_what_looks_half_as_large_is_twice_as_far(size: float, depth: float, times: float):
    resting = sights((0, MUG, size, depth), (0, MUG, size / 2, 2 * depth), (1, PAN, size, 9.0), (1, MUG, 0.0, 77.0))
    (found,) = carried_depths(sights((10**6, MUG, times * size, 0.0)), resting)
    assert found == pytest.approx(depth / times, rel=1e-6)


def test_rests_next_to_a_frame_say_more_than_those_that_are_long_ago():
    resting = sights((10, MUG, 8.0, 1.0), (20, MUG, 8.0, 2.0))
    carried = sights(*((frame, MUG, 0.0, 0.0) for frame in (11, 13, 15, 17, 19)))
    found = carried_depths(carried, resting)
    assert found[0] < 1.05 and found[2] == pytest.approx(2**0.5) and found[4] > 1.9 and (np.diff(found) > 0).all()


def test_what_rests_in_the_same_frame_is_another_thing():
    resting = sights((5, MUG, 8.0, 3.0), (9, MUG, 0.0, 1.0))
    assert carried_depths(sights((5, MUG, 0.0, 0.0)), resting).tolist() == pytest.approx([1.0])
    assert carried_depths(sights((5, MUG, 0.0, 0.0)), resting[[0]]).tolist() == [0.0]


def test_where_nothing_alike_rests_nothing_is_said():
    carried = sights((3, MUG, 8.0, 0.0))
    assert carried_depths(carried, sights((2, MUG, 8.0, 1.0))[[]]).tolist() == [0.0]
    assert carried_depths(carried, sights((2, PAN, 8.0, 1.0))).tolist() == [0.0]


@given(angle=st.floats(0, np.pi), length=st.floats(6, 12), at=st.tuples(st.floats(16, 24), st.floats(16, 24)))
def test_extents_follow_the_longest_axis_whichever_way_it_lies(angle: float, length: float, at: tuple[float, float]):
    row, column = np.mgrid[:40, :40]
    along = np.cos(angle) * (row - at[0]) + np.sin(angle) * (column - at[1])
    across = -np.sin(angle) * (row - at[0]) + np.cos(angle) * (column - at[1])
    segments = np.where((abs(along) < length) & (abs(across) < 2.5), 1, -1)
    found = extents(segments, 3)
    assert found[1] == pytest.approx(length / 3**0.5, rel=0.1) and found[0] == found[2] == 0


def test_colours_that_change_in_a_hand_do_not_make_another_thing():
    known, colours = sights((0, MUG, 8.0, 1.0), (0, MUG, 8.0, 3.0)), np.array([PAN, (9.0, 9.0)])
    resting = replace(known, looks=[*known.looks, colours])
    asked = sights((5, MUG, 8.0, 0.0))
    (found,) = carried_depths(replace(asked, looks=[*asked.looks, np.array([MUG])]), resting)
    assert 1 <= found <= 3  # both are as alike
    asked = replace(asked, looks=[*asked.looks, np.array([PAN])])
    assert carried_depths(asked, joined([resting, resting])).tolist() == pytest.approx([1.0])


def test_what_the_edge_cuts_has_no_extent():
    segments = np.full((10, 10), -1)
    segments[0:4, 3:6], segments[5:8, 3:8] = 0, 1
    assert extents(segments, 2)[0] == 0 < extents(segments, 2)[1]
