from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.rounds.pacing import LEAST_S, MOST_S, Pace


def _steady(round_s: float, rounds: int = 10) -> Pace:
    pace = Pace()
    for number in range(rounds):
        pace = pace.next(number * round_s)
    return pace


def test_the_length_of_a_round_is_learnt() -> None:
    assert Pace().next(5.0) == Pace(0.0, 5.0, 1)
    assert Pace().next(5.0).next(25.0).round_s == 20.0
    assert _steady(30.0).round_s == pytest.approx(30.0)
    slower = _steady(30.0).next(9 * 30.0 + 80.0)
    assert slower.round_s == pytest.approx(0.8 * 30.0 + 0.2 * 80.0)


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
def test_a_small_population_is_told_to_come_when_the_next_round_opens(draw: float) -> None:
    pace = _steady(60.0)
    now = pace.opened_at + 20.0
    assert 40.0 <= pace.after_s(now, asking=10, wanted=10, draw=draw) <= 40.0 + LEAST_S


def test_a_large_population_is_spread_so_that_each_round_gets_about_what_it_can_use() -> None:
    pace, wanted, asking = _steady(60.0), 100, 13_000
    comes = [pace.after_s(pace.opened_at, asking, wanted, i / asking) for i in range(asking)]
    a_round = Counter(int(s // 60.0) for s in comes if s < MOST_S)
    whole = [count for turn, count in a_round.items() if 1 <= turn < MOST_S // 60 - 1]
    assert all(1.2 * wanted <= count <= 1.4 * wanted for count in whole)


@given(
    st.floats(0, 1e6), st.floats(0, 1e6), st.integers(0, 10**7), st.integers(0, 10**5),
    st.floats(0, 1, exclude_max=True),
)  # fmt: skip
def test_nobody_is_told_to_come_at_once_or_never(
    round_s: float, waited_s: float, asking: int, wanted: int, draw: float
) -> None:
    pace = Pace().next(0.0).next(round_s)
    assert LEAST_S <= pace.after_s(round_s + waited_s, asking, wanted, draw) <= MOST_S
