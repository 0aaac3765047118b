"""What is remembered of the leases of rounds that are over."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.rounds.leases import Past
from fedtiny.values import lease_id

LEASES = st.builds(lease_id, st.integers(0, 5), st.integers(0, 3))


@given(st.lists(st.sets(LEASES, max_size=4), max_size=6), st.lists(LEASES, max_size=6), st.data())
def test_a_lease_that_outlives_its_round_is_known_from_the_one_that_it_counted_in(
    rounds: list[set[int]], asked: list[int], data: st.DataObject
) -> None:
    pasts = [(Past(), set[int]())]
    for counted in rounds:
        past, before = data.draw(st.sampled_from(pasts))  # a second continuation shares nothing
        pasts.append((past.then(np.array(sorted(counted), np.int64)), before | counted))
        for each, known in data.draw(st.permutations(pasts)):
            found = each.accepted(np.array(asked, np.int64), outlive=True)
            assert found.tolist() == [lease in known for lease in asked]


def test_to_ask_about_an_old_lease_of_a_long_run_takes_no_time() -> None:
    past = Past()
    for round in range(20_000):
        past = past.then(lease_id(round, np.arange(10)))
    old = np.array([lease_id(3, 7), lease_id(3, 10)])
    past.accepted(old, outlive=True)
    started = time.process_time()
    for _ in range(100):
        assert past.accepted(old, outlive=True).tolist() == [True, False]
    assert time.process_time() - started < 0.1
