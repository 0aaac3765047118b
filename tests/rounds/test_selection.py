from __future__ import annotations

import math

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


def coming(n: int, missing: int, drop_out: float) -> float:
    """P(Binomial(n, 1 - drop_out) >= missing), term by term."""
    came = 1 - drop_out
    return math.fsum(math.comb(n, k) * came**k * drop_out ** (n - k) for k in range(missing, n + 1))


@pytest.mark.parametrize(
    ("missing", "wanted"),
    [  # at a drop-out of 6, 10, 20, 30 and 50 %; computed apart from this code
        (10, (13, 14, 18, 21, 33)),
        (20, (25, 27, 32, 38, 57)),
        (50, (58, 62, 73, 86, 125)),
        (100, (113, 120, 139, 162, 235)),
    ],
)
def test_a_measured_drop_out_asks_as_many_as_bring_enough_in_99_of_100(
    missing: int, wanted: tuple[int, ...]
) -> None:
    asked = tuple(leases_wanted(missing, 1000, 0.0, p) for p in (0.06, 0.1, 0.2, 0.3, 0.5))
    assert asked == wanted


@given(st.integers(1, 60), st.floats(0.01, 0.6))
def test_one_lease_fewer_would_not_be_enough(missing: int, drop_out: float) -> None:
    n = leases_wanted(missing, 1000, 0.0, drop_out)
    if n < 3 * missing + 10:
        assert coming(n, missing, drop_out) >= 0.99 - 1e-9
    assert n == missing or coming(n - 1, missing, drop_out) < 0.99 + 1e-9


@pytest.mark.parametrize(
    ("missing", "cohort", "drop_out", "wanted"),
    [
        (7, 10, 0.0, 7),  # nobody drops out
        (10, 10, 0.9, 40),  # 3 * missing + 10: another window is cheaper than 183 leases
        (10, 10, 1.0, 40),
        (1, 1, 0.5, 1),  # serial
        (0, 10, 0.5, 0),
        (2000, 2000, 0.1, 2260),  # 0.1^2000 is no float
    ],
)
def test_a_measured_drop_out_has_its_limits(
    missing: int, cohort: int, drop_out: float, wanted: int
) -> None:
    assert leases_wanted(missing, cohort, 0.0, drop_out) == wanted


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
