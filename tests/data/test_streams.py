"""Streams that drift: what a device meets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.data.domains import Change
from fedtiny.data.streams import Stream
from fedtiny.errors import DataError

if TYPE_CHECKING:
    from fedtiny.data.tables import Samples

RUN = 5


def given_samples(count: int, classes: int = 3) -> Samples:
    """Each sample says which it is; labels take turns."""
    x = np.repeat(np.arange(count, dtype=np.float32)[:, None], 4, axis=1)
    return x, (np.arange(count) % classes).astype(np.int32)


JUDGED = given_samples(12)


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(0, 60), st.integers(0, 60), st.integers(0, 99))
def test_a_stream_without_repeats_meets_each_sample_once_in_a_drawn_order(
    samples: int, begins: int, longer: int, device: int
) -> None:
    stream = Stream(samples, begins, begins + longer)
    (x, y), is_new, *_ = vars(stream.drawn(RUN, device, given_samples(40), JUDGED)).values()
    met = x[:, 0].astype(int)
    assert len({*met.tolist()}) == samples
    assert y.tolist() == (met % 3).tolist()
    assert not is_new[:begins].any()
    assert is_new[begins + longer :].all()


def test_devices_and_runs_have_orders_of_their_own_and_always_the_same() -> None:
    stream, given_x = Stream(40, 10, 10), given_samples(40)
    (one, again), (other,), (later,) = (
        [stream.rows(run, device, given_x[1])[0].tolist() for _ in range(times)]
        for run, device, times in ((1, 2, 2), (1, 3, 1), (2, 2, 1))
    )
    assert one == again
    assert len({tuple(order) for order in (one, other, later)}) == 3


def test_a_gradual_drift_has_ever_more_of_the_new_domain() -> None:
    stream, (_, y) = Stream(900, 300, 600), given_samples(900)
    share = np.mean([stream.rows(RUN, d, y)[1] for d in range(40)], axis=0).reshape(9, 100)
    # In a straight line from 0 to 1 over 300 samples: 1/6, 1/2 and 5/6 in the three hundreds.
    expected = [0, 0, 0, 1 / 6, 1 / 2, 5 / 6, 1, 1, 1]
    np.testing.assert_allclose(share.mean(axis=1), expected, atol=0.02)


def test_the_inputs_of_the_new_domain_are_changed_and_those_judged_in_it() -> None:
    stream = Stream(40, 10, 30, Change("invert"))
    drawn = stream.drawn(RUN, 0, given_samples(40), JUDGED)
    rows, is_new = stream.rows(RUN, 0, given_samples(40)[1])
    expected = np.where(is_new, 39 - rows, rows)  # of 0 to 39
    assert drawn.stream[0][:, 0].tolist() == expected.tolist()
    assert drawn.first is JUDGED
    assert drawn.new[0][:, 0].tolist() == [39 - i for i in range(12)]
    assert drawn.weight.tolist() == [1 / 12] * 12


def test_noise_is_drawn_for_each_sample_and_each_device() -> None:
    stream = Stream(9, 0, 0, Change("noise", 1.0))
    one, other = (stream.drawn(RUN, d, given_samples(9), given_samples(9)) for d in (1, 2))
    added = [drawn.stream[0] - np.round(drawn.stream[0]) for drawn in (one, other)]
    assert not np.array_equal(added[0], added[1])
    assert not np.array_equal(one.new[0], one.stream[0])


def test_the_new_mix_has_the_classes_of_its_weights() -> None:
    x, y = given_samples(300)
    stream = Stream(300, 100, 100, mix=(3.0, 1.0, 0.0), repeats=True)
    labels = np.array([y[stream.rows(RUN, d, y)[0]] for d in range(40)])
    shares = [np.bincount(part.ravel(), minlength=3) / part.size
              for part in (labels[:, :100], labels[:, 100:])]  # fmt: skip
    np.testing.assert_allclose(shares[0], 1 / 3, atol=0.02)
    np.testing.assert_allclose(shares[1], [0.75, 0.25, 0.0], atol=0.02)
    # Of four judged samples of each class: 3/4 and 1/4 are shared out among four.
    weight = stream.drawn(RUN, 0, (x, y), JUDGED).weight
    np.testing.assert_allclose(weight, [3 / 16, 1 / 16, 0.0] * 4)


@given(st.integers(1, 30), st.integers(0, 9))
def test_with_repeats_all_come_before_one_comes_again(samples: int, device: int) -> None:
    _, y = given_samples(7)
    rows, _ = Stream(samples, 0, 0, repeats=True).rows(RUN, device, y)
    counts = np.bincount(rows, minlength=7)
    assert counts.max() - counts.min() <= 1


def test_targets_of_a_regression_are_no_classes() -> None:
    x, _ = given_samples(20)
    drawn = Stream(20, 5, 5, Change("invert")).drawn(RUN, 0, (x, x[:, :1]), (x, x[:, :1]))
    assert len({*drawn.stream[1].ravel().tolist()}) == 20


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (
            Stream(30, 0, 0),
            "a stream of 30 samples, all different, takes 30; device 4 has 20: lower samples, or "
            "set repeats = true",
        ),
        (Stream(18, 0, 0, mix=(1.0, 0.0, 0.0)), "takes 18 of class 0; device 4 has 7: lower"),
        (Stream(18, 0, 0, mix=(0, 0, 0, 1.0), repeats=True), "of class 3; device 4 has 0: give"),
    ],
)
def test_a_stream_longer_than_the_data_is_refused_with_the_numbers(
    stream: Stream, told: str
) -> None:
    with pytest.raises(DataError) as refused:
        stream.rows(RUN, 4, given_samples(20)[1])
    assert told in str(refused.value)


def test_a_device_that_cannot_be_judged_in_the_new_domain_is_refused() -> None:
    stream = Stream(3, 0, 0, mix=(0.0, 0.0, 1.0))
    with pytest.raises(DataError, match="device 4 is judged on no sample of a class"):
        stream.drawn(RUN, 4, given_samples(30), given_samples(2))
