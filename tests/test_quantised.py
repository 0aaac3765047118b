"""The numbers of int8: the vectors that Python and C share, and the laws of the grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedtiny import draws, quantised, rng
from fedtiny.layout import Parameter
from tests.int8_vectors import VECTORS, floats_of, made_vectors, unhexed

Array = npt.NDArray[Any]
FINITE = st.floats(-(2.0**60), 2.0**60, width=32)
LARGE = st.floats(2.0**-60, 2.0**60, width=32)


def test_the_vectors_that_c_reads_are_those_of_exact_arithmetic() -> None:
    assert made_vectors() == VECTORS


def test_a_scale_is_rounded_up_to_sixteen_bits() -> None:
    x, scale = floats_of(VECTORS["scale16"]).T
    np.testing.assert_array_equal(quantised.scale16(x), scale)


@pytest.mark.parametrize("case", VECTORS["range"])
def test_a_range_gives_the_shared_scale_and_zero(case: list[str]) -> None:
    lo, hi, scale, zero = map(unhexed, case)
    assert quantised.range_of(lo, hi) == (scale, zero)


@pytest.mark.parametrize("case", VECTORS["weights"])
def test_weights_give_the_shared_steps_and_int8(case: dict[str, Any]) -> None:
    w, step = floats_of(case["w"]), floats_of(case["step"])
    np.testing.assert_array_equal(quantised.steps(w), step)
    assert quantised.quantise_weight(w, step).tolist() == case["q"]


@pytest.mark.parametrize("case", VECTORS["rounding"])
def test_a_step_of_a_visit_draws_the_shared_words(case: dict[str, Any]) -> None:
    run, round, device, step, first = (
        case[name] for name in ("run", "round", "device", "step", "first")
    )
    purpose, count = rng.rounding_purpose(step), first + len(case["words"])
    assert rng.words(run, round, device, purpose, count)[first:] == case["words"]
    drawn = draws.words(run, round, np.array([device], np.uint32), purpose, count)
    assert drawn[0, first:].tolist() == case["words"]


# ---- laws ------------------------------------------------------------------------------------


def test_what_is_no_number_counts_as_nothing() -> None:
    nan, inf = math.nan, math.inf
    assert quantised.range_of(nan, nan) == quantised.range_of(0.0, 0.0) == (2.0**-7, 0.0)
    assert quantised.range_of(nan, 6.0) == quantised.range_of(0.0, 6.0)
    assert quantised.range_of(0.0, inf) == (2.0**-7, 0.0)
    wrong = np.array([[nan, 1.0, inf], [2.0, nan, 1.0]], np.float32)
    assert quantised.steps(wrong)[:2].tolist() == quantised.steps(np.array([[2.0, 1.0]])).tolist()
    assert quantised.quantise_weight(wrong, np.ones(3, np.float32)).tolist() == [
        [-127, 1, 127], [2, -127, 1],
    ]  # fmt: skip


@given(FINITE, FINITE)
def test_a_range_holds_zero_exactly_and_its_ends_within_a_scale(lo: float, hi: float) -> None:
    if quantised.extent(lo, hi) < quantised.LEAST:
        return
    scale, zero = quantised.range_of(lo, hi)
    least, most = quantised.ends_of(scale, zero)
    assert zero == round(zero)
    assert least <= min(lo, 0.0) + scale
    assert most >= max(hi, 0.0) - scale
    if lo >= 0:
        assert zero == -128  # what clips at 0 uses every number


@given(FINITE, FINITE)
def test_a_range_that_was_stored_is_stored_again(lo: float, hi: float) -> None:
    first = quantised.range_of(lo, hi)
    again = quantised.range_of(*(float(np.float32(end)) for end in quantised.ends_of(*first)))
    assert again == first


@given(LARGE)
def test_a_scale_is_the_next_of_sixteen_bits(x: float) -> None:
    scale = float(quantised.scale16(np.float32(x)))
    assert x <= scale < x * (1 + 2.0**-15)
    assert math.frexp(scale)[0] * 2**16 % 1 == 0
    assert quantised.scale16(np.float32(scale)) == scale


WEIGHTS = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 4)),
    elements=st.one_of(st.just(0.0), st.floats(-8, 8, width=32).filter(lambda x: abs(x) > 1e-6)),
)  # fmt: skip


@given(WEIGHTS)
def test_weights_on_their_grid_stay_there(weight: Array) -> None:
    step = quantised.steps(weight)
    grid = quantised.quantise_weight(weight, step) * step
    assert (abs(grid - weight) <= step * 0.5001).all()
    np.testing.assert_array_equal(quantised.steps(grid), step)
    np.testing.assert_array_equal(quantised.quantise_weight(grid, step) * step, grid)


@given(WEIGHTS)
def test_the_largest_weight_of_a_channel_is_96_steps_so_that_it_can_grow(weight: Array) -> None:
    q = quantised.quantise_weight(weight, quantised.steps(weight))
    for channel in np.flatnonzero(abs(weight).max(axis=0)):
        assert abs(q[:, channel]).max() == 96


def test_a_channel_of_zeros_has_the_step_of_the_largest() -> None:
    step = quantised.steps(np.array([[0, 2, 1], [0, -4, 1]], np.float32))
    assert step[0] == step[1] > step[2]


@dataclass(frozen=True)
class _Program:
    """One weight that is int8, one bias that is not, and a range."""

    int8_parameters: tuple[Parameter, ...] = (Parameter("w", (2, 2), offset=0),)
    range_parameters: tuple[Parameter, ...] = (Parameter("y.range", (2,), offset=5),)


def test_what_a_device_holds_is_on_the_grid_and_nothing_else_changes() -> None:
    vector = np.array([1, 0.3, -0.26, 0.1, 0.123, -1, 2], np.float32)
    held = np.asarray(quantised.held(_Program(), vector))
    step = quantised.steps(vector[:4].reshape(2, 2))
    assert np.rint(held[:4] / np.tile(step, 2)).tolist() == [96, 96, -25, 32]
    assert held[4] == vector[4]
    assert held[5:].tolist() == [*quantised.ends_of(*quantised.range_of(-1.0, 2.0))]
    np.testing.assert_array_equal(quantised.held(_Program(), held), held)
