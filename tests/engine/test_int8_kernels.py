"""The int8 operations against the float operations on what their operands stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny import draws
from fedtiny.engine.ir import Scalars, Window
from fedtiny.engine.kernels import conv, elementwise, linear, pool
from fedtiny.engine.kernels.int8 import Int8, add8, avg_pool8, conv8, mask8, max_pool8
from fedtiny.engine.kernels.update import Rule, apply_update8
from fedtiny.quantised import ends_of, range_of, scale16
from tests.engine.nets import Array
from tests.int8_vectors import VECTORS, floats_of, unhexed

FEW = settings(max_examples=30, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def activation(draw: np.random.Generator, shape: tuple[int, ...], reach: float = 2.0) -> Int8:
    lo, hi = sorted(draw.normal(size=2) * reach)
    scale, zero = map(np.float32, range_of(lo, hi))
    return Int8(draw.integers(-128, 128, shape).astype(np.int8), scale, zero)


def weight(draw: np.random.Generator, shape: tuple[int, ...]) -> Int8:
    step = scale16(draw.uniform(0.001, 0.02, shape[-1]).astype(np.float32))
    return Int8(draw.integers(-127, 128, shape).astype(np.int8), step, np.float32(0))


def real(x: Int8) -> Array:
    return np.asarray(x.real, np.float64)


def assert_near(y: Int8, wanted: Array, unsure: Array | float = 0.0) -> None:
    """y holds the nearest of its values, or the end of its range beyond which it would lie."""
    lo, hi = (float(end) for end in ends_of(y.scale, y.zero))
    error = abs(real(y) - np.clip(wanted, lo, hi))
    assert (error <= 0.5001 * float(y.scale) + unsure).all()


@FEW
@given(SEEDS, st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 2), st.booleans())
def test_a_convolution_rounds_what_the_float_one_makes(
    seed: int, groups: int, kernel: int, stride: int, biased: bool
) -> None:
    draw = np.random.default_rng(seed)
    window = Window((stride, stride), (1, 0, 1, kernel - 1), groups)
    x = activation(draw, (2, 5, 4, 4))
    w = weight(draw, (kernel, kernel, 4 // groups, 8))
    b = draw.normal(size=8).astype(np.float32) if biased else None
    height, width = (5 + 2 - kernel) // stride + 1, (4 + kernel - 1 - kernel) // stride + 1
    y = activation(draw, (2, height, width, 8), 5.0)
    wanted = np.zeros(y.values.shape)
    conv.conv(real(x), real(w), None if b is None else b.astype(np.float64), wanted, window)
    conv8(x, w, b, y, window)
    assert_near(y, wanted, 0.5001 * float(x.scale) * w.scale if biased else 0.0)


@FEW
@given(SEEDS)
def test_a_linear_layer_reads_one_row_of_an_image(seed: int) -> None:
    draw = np.random.default_rng(seed)
    x, w = activation(draw, (3, 2, 2, 5)), weight(draw, (20, 6))
    y, b = activation(draw, (3, 6), 5.0), draw.normal(size=6).astype(np.float32)
    wanted = np.zeros((3, 6))
    linear.linear(real(x), real(w), b.astype(np.float64), wanted)
    conv8(x, w, b, y, Window(groups=1))
    assert_near(y, wanted, 0.5001 * float(x.scale) * w.scale)


def held_by(x: Array, scale: float, zero: float) -> list[int]:
    """The int8 of real values."""
    made = Int8(np.zeros(x.shape, np.int8), np.float32(scale), np.float32(zero))
    made.settle(x / made.scale)
    return [int(q) for q in made.values]


@pytest.mark.parametrize("case", VECTORS["quantise"])
def test_an_activation_gives_the_shared_int8(case: dict[str, Any]) -> None:
    scale, zero = unhexed(case["scale"]), unhexed(case["zero"])
    assert held_by(floats_of(case["x"]), scale, zero) == case["q"]


def test_an_activation_that_is_no_number_is_the_least() -> None:
    assert held_by(np.array([np.nan, np.inf, -np.inf], np.float32), 1.0, 3.0) == [-128, 127, -128]


@pytest.mark.parametrize("case", VECTORS["rounding"])
def test_an_update_moves_weights_as_the_shared_words_say(case: dict[str, Any]) -> None:
    q = Int8(np.array([case["q"]], np.int8), np.ones(8, np.float32), np.float32(0))
    u = draws.uniform(np.array(case["words"], np.uint32))
    apply_update8(floats_of(case["t"]), q, None, Rule(1.0), u)
    assert q.values[0].tolist() == case["moved"]


@given(st.floats(2.0**-60, 2.0**60, width=32), st.integers(-128, 127), st.integers(-128, 127))
def test_what_an_int8_stands_for_is_exact(x: float, q: int, zero: int) -> None:
    scale = scale16(np.float32(x))
    held = Int8(np.array([q], np.int8), scale, np.float32(zero))
    assert float(held.real[0]) == (q - zero) * float(scale)  # in float64, where it has room


def test_padding_adds_nothing_whatever_the_zero() -> None:
    one = np.float32(1)
    for zero in (-128, -5, 127):
        x = Int8(np.full((1, 1, 1, 1), max(-128, min(127, zero + 3)), np.int8), one, one * zero)
        y = Int8(np.zeros((1, 3, 3, 1), np.int8), one, np.float32(0))
        w = Int8(np.full((3, 3, 1, 1), 2, np.int8), np.ones(1, np.float32), np.float32(0))
        conv8(x, w, None, y, Window((1, 1), (2, 2, 2, 2), 1))
        assert (y.values == 2 * int(x.units[0, 0, 0, 0])).all()


def test_the_longest_sum_does_not_overflow() -> None:
    """32,768 products, each the largest, and the largest bias: 2^31 - 1 is not reached."""
    terms, one = 1 << 15, np.float32(1)
    x = Int8(np.full((1, terms), 127, np.int8), one, np.float32(-128))
    w = Int8(np.full((terms, 1), 127, np.int8), np.ones(1, np.float32), np.float32(0))
    y = Int8(np.zeros((1, 1), np.int8), np.float32(2.0**25), np.float32(0))
    conv8(x, w, np.array([1e30], np.float32), y, Window(groups=1))
    acc = terms * 255 * 127 + 2**30
    assert acc < 2**31 - 1
    assert y.values[0, 0] == round(acc / 2**25)


@FEW
@given(SEEDS, st.booleans())
def test_a_sum_may_take_the_place_of_an_operand(seed: int, first: bool) -> None:
    draw = np.random.default_rng(seed)
    a, b = activation(draw, (2, 3, 4)), activation(draw, (2, 3, 4))
    own = (a if first else b).values
    scale, zero = map(np.float32, range_of(-3.0, 3.0))
    y, wanted = Int8(own, scale, zero), real(a) + real(b)
    add8(a, b, y)
    assert_near(y, wanted)


@FEW
@given(SEEDS, st.integers(1, 3))
def test_an_average_rounds_what_the_float_one_makes(seed: int, kernel: int) -> None:
    draw = np.random.default_rng(seed)
    x, window = activation(draw, (2, 5, 3, 4)), Window((2, 1), (1, 0, 0, 0), 0, (kernel, 1))
    y = activation(draw, (2, (6 - kernel) // 2 + 1, 3, 4))
    wanted = np.zeros(y.values.shape)
    pool.avg_pool(real(x), wanted, window)
    avg_pool8(x, y, window)
    assert_near(y, wanted)


@FEW
@given(SEEDS)
def test_a_maximum_is_that_of_the_real_values(seed: int) -> None:
    draw, window = np.random.default_rng(seed), Window((2, 2), (0, 0, 0, 0), 0, (2, 2))
    x = activation(draw, (2, 4, 4, 3))
    y, codes = Int8(np.zeros((2, 2, 2, 3), np.int8), x.scale, x.zero), np.zeros((2, 1), np.int32)
    wanted, expected = np.zeros(y.values.shape), np.zeros_like(codes)
    pool.max_pool(real(x), wanted, expected, window)
    max_pool8(x, y, codes, window)
    np.testing.assert_array_equal(real(y), wanted)
    np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize(
    ("top", "mask_of"), [(0.0, elementwise.relu), (6.0, elementwise.relu6)]
)  # fmt: skip
def test_a_mask_is_that_of_the_float_activation(
    top: float, mask_of: Callable[[Array, Array, Array], None]
) -> None:
    numbers = np.arange(-128, 128).astype(np.int8).reshape(2, 128)
    for ends in ((0.0, 6.0), (0.0, 255 / 32), (-1.0, 6.5)):  # a number of the second is 6
        y = Int8(numbers, *map(np.float32, range_of(*ends)))
        mask, expected = (np.zeros((2, 4), np.int32) for _ in range(2))
        mask8(y, mask, Scalars(value=top))
        mask_of(real(y), np.empty((2, 128)), expected)
        np.testing.assert_array_equal(mask, expected)


def test_the_range_of_relu6_ends_where_its_gradient_does() -> None:
    """So that what was clipped at 6 lets no gradient through."""
    scale, zero = map(np.float32, range_of(0.0, 6.0))
    assert Int8(np.array([127], np.int8), scale, zero).real[0] >= 6.0


def test_in_float64_nothing_is_rounded_and_the_ends_stay() -> None:
    draw = np.random.default_rng(1)
    x = Int8(draw.uniform(-100, 100, (2, 4)), np.float64(0.01), np.float64(-3.25))
    w = Int8(draw.normal(size=(4, 3)), np.array([0.1, 0.2, 0.3]), np.float64(0))
    y = Int8(np.zeros((2, 3)), np.float64(0.05), np.float64(-128))
    conv8(x, w, None, y, Window(groups=1))
    np.testing.assert_allclose(real(y), np.maximum(real(x) @ real(w), 0), rtol=1e-12, atol=1e-12)
