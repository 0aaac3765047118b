from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.rounds.drop_out import MEMORY, DropOut

if TYPE_CHECKING:
    from fedtiny.tensors import Int64

FIRST = 7 << 32
"""The first lease of round 7."""


def closed(
    known: DropOut, given: int, came: int, out: int, until: float, now: float, first: int = FIRST
) -> DropOut:
    """A window has closed. Device 100 + k holds its k-th lease, and the last ones are still out."""
    devices = np.arange(100, 100 + given)
    is_out = np.arange(given) >= given - out
    return known.closed(first, devices, is_out, came, until, now)


def leases(*ordinals: int) -> Int64:
    return FIRST + np.array(ordinals, np.int64)


def test_a_window_that_has_ended_counts_at_once() -> None:
    known = closed(DropOut(), given=8, came=6, out=0, until=5.0, now=5.0)
    assert (known.share, known.given) == (2 / (MEMORY + 8), 0)
    # 8 leases weigh as 8 of 40: 0.8 * 0.05 + 0.2 * 0.5
    assert closed(known, 8, 4, 0, 6.0, 6.0).share == pytest.approx(0.04 + 0.1)


def test_leases_that_are_still_out_are_waited_for() -> None:
    watched = closed(DropOut(), given=8, came=5, out=2, until=9.0, now=4.0)
    assert watched.share == 0.0
    assert watched.at(8.9) is watched
    assert watched.at(9.0).share == 3 / (MEMORY + 8)


def test_who_comes_too_late_to_count_has_not_dropped_out() -> None:
    watched = closed(DropOut(), 8, came=5, out=3, until=9.0, now=4.0, first=FIRST + 10)
    known = watched.late(leases(9, 16, 18))  # of which 16 alone is of the window
    assert known.at(9.0).share == 2 / (MEMORY + 8)


def test_copies_of_a_late_update_count_once() -> None:
    watched = closed(DropOut(), 8, came=5, out=3, until=9.0, now=4.0)
    for copies in ([7], [7, 7], [7, 7, 7]):
        watched = watched.late(leases(*copies))
    assert watched.at(9.0).share == 2 / (MEMORY + 8)


def test_an_update_that_came_before_or_was_refused_does_not_come_again() -> None:
    # 0 to 4 have come, 5 was refused, 6 and 7 are out.
    watched = closed(DropOut(), 8, came=5, out=2, until=9.0, now=4.0)
    assert watched.late(leases(0, 4, 5)).at(9.0).share == 3 / (MEMORY + 8)


def test_it_is_known_who_holds_a_lease_of_the_window() -> None:
    watched = closed(DropOut(), 8, came=5, out=3, until=9.0, now=4.0)
    offered, devices = leases(0, 7, 7, 8, -1), np.array([100, 107, 106, 3, 3])
    assert watched.strangers(offered, devices).tolist() == [False, False, True, False, False]
    assert not DropOut().strangers(offered, devices).any()


def test_one_window_is_watched_at_a_time() -> None:
    watched = closed(DropOut(), 8, came=5, out=3, until=9.0, now=4.0)
    assert closed(watched, 8, 0, 0, 5.0, 5.0, first=FIRST + 8) is watched


def test_a_window_that_gave_nothing_says_nothing() -> None:
    known = DropOut(0.25)
    assert closed(known, 0, 0, 0, 5.0, 5.0) is known


def test_a_record_brings_back_the_share() -> None:
    watched = closed(DropOut(0.25), 8, came=5, out=3, until=9.0, now=4.0)
    assert DropOut().recalled(0.25).share == 0.25
    assert watched.recalled(0.25) is watched  # nothing has crashed


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), max_size=30))
def test_a_share_stays_a_share(windows: list[tuple[int, float]]) -> None:
    known = DropOut()
    for now, (given_leases, came) in enumerate(windows):
        known = closed(known, given_leases, int(came * given_leases), 0, now, now)
        assert 0.0 <= known.share <= 1.0
        assert math.isinf(known.until)


@given(st.floats(0.0, 0.9), st.integers(5, 50))
def test_the_share_converges_to_what_is_lost(share: float, given_leases: int) -> None:
    known = DropOut(0.5)
    came = round(given_leases * (1 - share))
    for now in range(100):
        known = closed(known, given_leases, came, 0, now, now)
    assert known.share == pytest.approx(1 - came / given_leases, abs=1e-5)
