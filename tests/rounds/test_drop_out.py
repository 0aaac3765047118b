from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.rounds.drop_out import MEMORY, DropOut

FIRST = 7 << 32
"""The first lease of round 7."""


def late(drop_out: DropOut, *ordinals: int) -> DropOut:
    return drop_out.late(FIRST + np.array(ordinals, np.int64))


def test_a_window_that_has_ended_counts_at_once() -> None:
    known = DropOut().closed(FIRST, given=8, came=6, until=5.0, now=5.0)
    assert known == DropOut(2 / (MEMORY + 8))
    # 8 leases weigh as 8 of 40: 0.8 * 0.05 + 0.2 * 0.5
    assert known.closed(FIRST, 8, 4, 6.0, 6.0).share == pytest.approx(0.04 + 0.1)


def test_leases_that_are_still_out_are_waited_for() -> None:
    watched = DropOut().closed(FIRST, given=8, came=5, until=9.0, now=4.0)
    assert watched.share == 0.0
    assert watched.at(8.9) == watched
    assert watched.at(9.0).share == 3 / (MEMORY + 8)


def test_who_comes_too_late_to_count_has_not_dropped_out() -> None:
    watched = DropOut().closed(FIRST + 10, given=8, came=5, until=9.0, now=4.0)
    known = late(watched, 9, 10, 17, 18)  # of which 10 and 17 are of the window
    assert known.at(9.0).share == 1 / (MEMORY + 8)
    assert late(known, *range(10, 18)).at(9.0).share == 0.0  # copies change little


def test_one_window_is_watched_at_a_time() -> None:
    watched = DropOut().closed(FIRST, given=8, came=5, until=9.0, now=4.0)
    assert watched.closed(FIRST + 8, 8, 0, 5.0, 5.0) == watched
    assert watched.closed(FIRST + 8, 0, 0, 5.0, 5.0) == watched


def test_a_window_that_gave_nothing_says_nothing() -> None:
    assert DropOut(0.25).closed(FIRST, 0, 0, 5.0, 5.0) == DropOut(0.25)


def test_a_record_brings_back_the_share() -> None:
    watched = DropOut(0.25).closed(FIRST, 8, 5, 9.0, 4.0)
    assert DropOut().recalled(0.25) == DropOut(0.25)
    assert watched.recalled(0.25) == watched  # nothing has crashed


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), max_size=30))
def test_a_share_stays_a_share(windows: list[tuple[int, float]]) -> None:
    known = DropOut()
    for now, (given_leases, came) in enumerate(windows):
        known = known.closed(FIRST, given_leases, int(came * given_leases), now, now)
        assert 0.0 <= known.share <= 1.0
        assert math.isinf(known.until)


@given(st.floats(0.0, 0.9), st.integers(5, 50))
def test_the_share_converges_to_what_is_lost(share: float, leases: int) -> None:
    known = DropOut(0.5)
    came = round(leases * (1 - share))
    for now in range(100):
        known = known.closed(FIRST, leases, came, now, now)
    assert known.share == pytest.approx(1 - came / leases, abs=1e-5)
