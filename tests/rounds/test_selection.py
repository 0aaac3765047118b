from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny import draws
from fedtiny.rng import Purpose
from fedtiny.rounds.selection import choose, leases_wanted

fleets = st.lists(st.integers(0, 1000), max_size=40).map(np.array)


@pytest.mark.parametrize(
    ("missing", "cohort", "over_selection", "wanted"),
    [(10, 10, 1.0, 10), (10, 10, 1.3, 13), (3, 10, 1.3, 4), (0, 10, 1.3, 0), (1, 1, 1.3, 1)],
)
def test_over_selection_rounds_up_and_is_off_when_serial(
    missing: int, cohort: int, over_selection: float, wanted: int
) -> None:
    assert leases_wanted(missing, cohort, over_selection) == wanted


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6), fleets, st.integers(0, 50))
def test_the_chosen_are_those_with_the_lowest_draws(
    run: int, round: int, devices: np.ndarray[tuple[int], np.dtype[np.int64]], count: int
) -> None:
    devices = devices.astype(np.int64)
    word = {
        d: int(draws.words(run, round, np.array([d]), Purpose.SELECT, 1)[0, 0])
        for d in set(devices.tolist())
    }
    expected = sorted(word, key=lambda d: (word[d], d))[:count]
    if len(word) <= count:
        expected.sort()
    assert choose(run, round, devices, count).tolist() == expected


def test_every_device_is_chosen_about_equally_often() -> None:
    fleet = np.arange(20)
    times = np.bincount(np.concatenate([choose(1, r, fleet, 5) for r in range(400)]))
    # Binomial(400, 1/4): mean 100, deviation 8.7.
    assert times.min() > 100 - 5 * 8.7
    assert times.max() < 100 + 5 * 8.7
