from __future__ import annotations

import math
from functools import reduce
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.errors import UpdateError
from fedtiny.rounds.measures import Measures

values = st.floats(-1e30, 1e30)
names = st.sampled_from(("loss_sum", "count", "conv1.min", "conv1.max", "loss_sum.3"))
reports = st.lists(st.dictionaries(names, values), max_size=8)


@given(reports, st.randoms(use_true_random=False))
def test_no_order_of_merging_changes_a_bit(
    measured: list[dict[str, float]], random: Random
) -> None:
    straight = reduce(Measures.merge, map(Measures.of, measured), Measures())
    random.shuffle(measured)
    shuffled = reduce(lambda a, b: Measures.of(b).merge(a), measured, Measures())
    assert shuffled.values() == straight.values()
    sums = [report["loss_sum"] for report in measured if "loss_sum" in report]
    assert straight.values().get("loss_sum", 0.0) == math.fsum(sums)


def test_counts_and_sums_add_and_extremes_stay() -> None:
    a = Measures.of({"x.count": 2, "x.sum": 1.5, "x.min": -1, "x.max": 4})
    b = Measures.of({"x.count": 1, "x.sum": 9, "x.min": 9, "x.max": 9, "correct": 1})
    assert a.merge(b).values() == {
        "x.count": 3, "x.sum": 10.5, "x.min": -1, "x.max": 9, "correct": 1,
    }  # fmt: skip
    assert a.merge(b).mean("x.sum", "x.count") == 3.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_measure_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(UpdateError, match="the measure loss_sum is"):
        Measures.of({"loss_sum": value})
