"""Some of many are evenly spaced, none twice, and the first and the last are among them."""

from __future__ import annotations

import numpy as np
import pytest

from divff_nerfstudio.evenly import evenly_spaced


def test_few_of_many_reach_from_the_first_to_the_last():
    assert evenly_spaced(11, 3).tolist() == [0, 5, 10]
    assert evenly_spaced(9, 1).tolist() == [0]


@pytest.mark.parametrize("most", [3, 10, None])
def test_all_are_taken_where_there_are_no_more(most):
    assert evenly_spaced(3, most).tolist() == [0, 1, 2]
    assert evenly_spaced(0, most).tolist() == []


def test_none_comes_twice_and_no_gap_is_larger_than_another_by_more_than_one():
    for count in range(2, 301):
        for most in range(2, count + 1):
            chosen = evenly_spaced(count, most)
            gaps = np.diff(chosen)
            assert len(chosen) == most and chosen[0] == 0 and chosen[-1] == count - 1
            assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1, (count, most)
