"""The trimmed mean against a few plain lines of its paper."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.errors import StrategyError
from fedtiny.strategies.trimmed_mean import TrimmedMean


@given(
    st.lists(st.lists(st.floats(-9, 9), min_size=3, max_size=3), min_size=1, max_size=9),
    st.floats(0, 0.49),
)
def test_it_leaves_out_so_many_at_each_end_of_every_coordinate(
    rows: list[list[float]], share: float
) -> None:
    cut = int(share * len(rows))
    expected = [np.mean(sorted(column)[cut : len(rows) - cut]) for column in np.array(rows).T]
    found = TrimmedMean(share=share).aggregate(np.array(rows))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_half_is_too_much() -> None:
    with pytest.raises(StrategyError, match=r"share = 0.5; it must be in \[0, 0.5\)"):
        TrimmedMean(share=0.5)
