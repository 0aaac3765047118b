"""Krum and Multi-Krum against a few plain lines of their paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.errors import StrategyError
from fedtiny.strategies.krum import Krum, MultiKrum

if TYPE_CHECKING:
    from fedtiny.tensors import Float64

seeds = st.integers(0, 200)


def cloud(seed: int, n: int) -> Float64:
    return np.random.default_rng(seed).normal(0, 1, (n, 5))


def scores(rows: Float64, f: int) -> list[float]:
    """s(i): the squared distances to the n - f - 2 closest of the others."""
    n = len(rows)
    return [
        sum(sorted(float(np.sum((a - b) ** 2)) for j, b in enumerate(rows) if j != i)[: n - f - 2])
        for i, a in enumerate(rows)
    ]


@settings(max_examples=30)
@given(seeds, st.integers(0, 3))
def test_krum_takes_the_delta_with_the_smallest_score(seed: int, f: int) -> None:
    rows = cloud(seed, 9)
    best = rows[np.argmin(scores(rows, f))]
    np.testing.assert_array_equal(Krum(cohort=9, byzantine=f).aggregate(rows), best)


@settings(max_examples=30)
@given(seeds, st.integers(0, 3), st.integers(1, 6))
def test_multikrum_takes_the_mean_of_those_with_the_smallest_scores(
    seed: int, f: int, kept: int
) -> None:
    rows = cloud(seed, 9)
    best = rows[np.argsort(scores(rows, f))[:kept]]
    found = MultiKrum(cohort=9, byzantine=f, kept=kept).aggregate(rows)
    np.testing.assert_allclose(found, best.mean(axis=0), atol=1e-12)


@settings(max_examples=30)
@given(seeds)
def test_multikrum_keeps_all_but_those_who_may_lie(seed: int) -> None:
    rows = cloud(seed, 9)
    kept = np.argsort(scores(rows, 2))[:7]
    found = MultiKrum(cohort=9, byzantine=2).aggregate(rows)
    np.testing.assert_allclose(found, rows[kept].mean(axis=0), atol=1e-12)


def test_who_is_left_out_is_only_suspected_if_it_lies_far_away() -> None:
    rows, rule = cloud(5, 9), MultiKrum(cohort=9, byzantine=2)
    assert not rule.suspects(rows, rule.aggregate(rows)).any()
    rows[[2, 6, 7]] *= [[20.0], [30.0], [40.0]]
    # Three lie far away, and the rule leaves two out.
    suspected = rule.suspects(rows, rule.aggregate(rows[[0, 1, 3, 4, 5, 8]]))
    assert np.flatnonzero(suspected).tolist() == [6, 7]


def test_liars_who_agree_with_each_other_are_too_few_to_be_believed() -> None:
    rows = cloud(3, 9) / 10
    rows[:3] = 7.0  # three in the same place: each has two others at distance 0, and no more
    assert np.abs(Krum(cohort=9, byzantine=3).aggregate(rows)).max() < 1
    assert np.abs(MultiKrum(cohort=9, byzantine=3).aggregate(rows)).max() < 1


def test_a_round_that_closes_with_two_updates_still_takes_one() -> None:
    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert Krum(cohort=9, byzantine=3).aggregate(rows).tolist() == [1.0, 2.0]


def test_what_the_chosen_device_did_not_train_stays() -> None:
    rows = cloud(1, 9)
    rows[np.argmin(scores(rows, 1)), 2] = np.nan
    found = Krum(cohort=9, byzantine=1).aggregate(rows)
    assert np.isfinite(found).all()


def test_a_cohort_that_could_be_outvoted_is_refused() -> None:
    # 2 f + 2 < n: three of nine may lie, four may not
    assert Krum(cohort=9, byzantine=3).byzantine == 3
    with pytest.raises(StrategyError, match=r"byzantine = 4; .* a cohort of 11 or more"):
        Krum(cohort=9, byzantine=4)
    with pytest.raises(StrategyError, match=r"kept = 8; .* cohort - byzantine = 7"):
        MultiKrum(cohort=9, byzantine=2, kept=8)
