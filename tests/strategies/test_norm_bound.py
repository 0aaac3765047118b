"""Norm bounding against a few plain lines of its paper."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.errors import StrategyError
from fedtiny.strategies.norm_bound import NormBound

vectors = st.lists(st.lists(st.floats(-9, 9), min_size=3, max_size=3), min_size=1, max_size=6)


@given(vectors, st.floats(0.1, 20))
def test_it_is_the_mean_of_deltas_that_are_shortened_to_the_bound(
    rows: list[list[float]], bound: float
) -> None:
    expected = np.mean([np.array(r) / max(1, np.linalg.norm(r) / bound) for r in rows], axis=0)
    found = NormBound(bound=bound).aggregate(np.array(rows))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_device_that_trained_a_part_has_the_norm_of_that() -> None:
    nan = np.nan
    rows = np.array([[30.0, 40.0, nan], [nan, 1.0, nan]])
    # (30, 40) has norm 50: shortened to 5 it is (3, 4). The second coordinate: (4 + 1) / 2.
    assert NormBound(bound=5.0).aggregate(rows).tolist() == [3.0, 2.5, 0.0]


def test_a_bound_of_nothing_is_refused() -> None:
    with pytest.raises(StrategyError, match=r"bound = 0.0; it must be a norm above 0"):
        NormBound(bound=0.0)
