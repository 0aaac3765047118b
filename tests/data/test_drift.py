"""Drift: the mix of labels goes to and fro."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.data.drift import Drift
from fedtiny.data.tables import PARTS
from fedtiny.errors import DataError, ExperimentError
from tests.data import small

RUN = 8
DATA = small.labelled(classes=3, each=60)
SPLIT = small.labelled(classes=3, each=60, test=0.5)
WIDE = small.labelled(classes=3, each=120)
TO_AND_FRO = Drift(
    WIDE, 20, 4, (2, 1, 1), (0, 0, 1), period=8, support=16, query=8
)  # fmt: skip


def test_the_mix_goes_in_a_straight_line_and_back() -> None:
    # From (1/2, 1/4, 1/4) to (0, 0, 1) in four rounds.
    line = [(0.5 - 0.125 * k, 0.25 - 0.0625 * k, 0.25 + 0.1875 * k) for k in range(5)]
    for round, expected in enumerate([*line, *line[-2::-1], line[1]]):
        np.testing.assert_allclose(TO_AND_FRO.mix(round), expected)


@pytest.mark.parametrize(("round", "expected"), [(0, (8, 4, 4)), (2, (4, 2, 10)), (4, (0, 0, 16))])
def test_a_visit_has_the_mix_of_its_round(round: int, expected: tuple[int, ...]) -> None:
    for device in (0, 19):
        _, labels = TO_AND_FRO.samples(RUN, round, device, PARTS[0])
        assert np.bincount(labels.astype(int), minlength=3).tolist() == list(expected)


mixes = st.tuples(*[st.floats(0, 10)] * 3).filter(lambda mix: sum(mix) > 0.1)


@settings(max_examples=40)
@given(mixes, mixes, st.integers(2, 50), st.integers(1, 14), st.integers(1, 14),
       st.sampled_from([DATA, SPLIT]), st.integers(0, 99))  # fmt: skip
def test_visits_are_whole_distinct_and_apart_from_those_held_out(
    first: Any, second: Any, period: int, support: int, queries: int, data: Any, round: int
) -> None:
    task = Drift(data, 12, 4, first, second, period=period,
                 support=support, query=queries, held_out_samples=0.5)  # fmt: skip
    table = task.table(RUN, round, range(12))
    assert np.diff(table.starts).reshape(-1, 2).tolist() == task.counts(RUN, range(12)).tolist()
    rows = table.rows.reshape(12, support + queries)
    assert all(len(set(visit)) == support + queries for visit in rows.tolist())
    assert not set(rows[:8].ravel().tolist()) & set(rows[8:].ravel().tolist())
    share = np.bincount(data.label[rows[0, :support]], minlength=3) / support
    np.testing.assert_allclose(share, task.mix(round), atol=1.0 / support + 1e-9)
    alone = task.table(RUN, round, [5])
    np.testing.assert_array_equal(alone.rows, rows[5])


def test_samples_come_in_a_drawn_order_and_anew_in_each_round() -> None:
    rows = [TO_AND_FRO.table(RUN, round, [3]).rows[:16] for round in (0, 8)]
    assert set(rows[0].tolist()) != set(rows[1].tolist())
    labels = [WIDE.label[r].tolist() for r in rows]
    assert labels[0] != labels[1]
    assert sorted(labels[0]) == sorted(labels[1]) != labels[0]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"first_mix": ()}, ExperimentError, r"first_mix = \[\] must be 3 weights"),
        ({"first_mix": (1, 1)}, ExperimentError, r"first_mix = \[1, 1\] must be 3 weights"),
        ({"second_mix": (1, 1, -1)}, ExperimentError, "second_mix.*none below 0"),
        ({"second_mix": (0, 0, 0)}, ExperimentError, "second_mix.*one above"),
        ({"first_mix": (1, 1, float("nan"))}, ExperimentError, "first_mix"),
        ({"period": 1}, ExperimentError, "period = 1"),
        ({"query": 0}, ExperimentError, "query = 0"),
        ({"held_out_samples": 1.5}, ExperimentError, "held_out_samples = 1.5"),
        # 45 of the 60 samples of a class train; a mix of one class draws 40 + 6 of it.
        ({"support": 40, "query": 6}, DataError, "46 samples of class 'class 0'.*have 45"),
        ({"support": 10, "query": 6}, DataError, "16 samples.*held-out devices have 15"),
    ],
)
def test_an_impossible_drift_is_refused(
    values: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Drift(**{"data": DATA, "devices": 8, "held_out": 2, "first_mix": (1, 0, 0),
                 "second_mix": (0, 1, 0), "support": 4, "query": 4, **values})  # fmt: skip
