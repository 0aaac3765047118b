"""Both forms of the arithmetic give the same bits, and the numbers that they say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.device.learner import Key
from fedtiny.errors import UpdateError
from fedtiny.fold import FoldRule
from fedtiny.rng import Purpose
from fedtiny.transforms import arrays, plain
from fedtiny.transforms.arithmetic import Arithmetic
from tests.transforms.both import SEEDS, SIZES, drawn

PLACE = Key(7, 3, 11)
BLOCK = 16


def plainly(found: Any) -> Any:
    """A result as plain Python has it; floats by their bits."""
    if isinstance(found, bytes | float | int):
        return found
    if isinstance(found, list):
        return [float(each) for each in found]
    return memoryview(found).tobytes() if memoryview(found).format == "f" else list(found)


OPERATIONS: dict[str, Callable[[Arithmetic, Any, Any], Any]] = {
    "difference": lambda form, a, b: form.difference(a, b),
    "added": lambda form, a, b: form.added(a, b),
    "scaled": lambda form, a, b: form.scaled(a, 0.3),
    "noised": lambda form, a, b: form.noised(
        a, 0.1, form.words(PLACE, Purpose.NOISE, len(a) + len(a) % 2)
    ),
    "norm": lambda form, a, b: form.norm(a),
    "replaced": lambda form, a, b: form.replaced(a, [0], b[:1]),
    "block_maxima": lambda form, a, b: form.block_maxima(a, BLOCK),
    "block_squares": lambda form, a, b: form.block_squares(a, BLOCK),
    "block_magnitudes": lambda form, a, b: form.block_magnitudes(a, BLOCK),
    "signs": lambda form, a, b: form.signs(a),
    "unsigned": lambda form, a, b: form.unsigned(form.signs(a), b, 1, len(a)),
    "rounded": lambda form, a, b: form.rounded(
        a, form.scaled(form.vector(np.abs(np.asarray(b))), 0.01), 1, 127,
        form.words(PLACE, Purpose.ROUNDING, len(a)),
    ),
    "unrounded": lambda form, a, b: form.unrounded(bytes(range(len(a) % 256)), b, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=15)
@given(size=SIZES, seed=SEEDS)
def test_both_forms_give_the_same_bits(name: str, size: int, seed: int) -> None:
    a, b = drawn(seed, size), drawn(seed + 1, size)
    with_numpy, without = (
        OPERATIONS[name](form, form.vector(a), form.vector(b)) for form in (arrays, plain)
    )
    assert plainly(with_numpy) == plainly(without)


@settings(max_examples=30)
@given(size=SIZES, seed=SEEDS, data=st.data())
def test_the_largest_are_chosen_alike_and_of_equal_ones_the_first(
    size: int, seed: int, data: st.DataObject
) -> None:
    values, count = drawn(seed, size), data.draw(st.integers(1, size))
    found = arrays.largest(arrays.vector(values), count).tolist()
    assert found == plain.largest(plain.vector(values), count)
    ranked = sorted(range(size), key=lambda at: (-abs(plain.vector(values)[at]), at))
    assert found == sorted(ranked[:count])


@given(size=SIZES, seed=SEEDS)
def test_a_norm_is_that_of_the_fold(size: int, seed: int) -> None:
    values = np.frombuffer(drawn(seed, size), np.float32)
    norm = arrays.norm(values)
    assert norm == pytest.approx(math.dist(values, np.zeros(size)))
    if norm > 1e-9:
        FoldRule.for_round(1, 1.0, norm).check(values.astype(np.float64))
        with pytest.raises(UpdateError, match=r"the update has norm|a coordinate moved"):
            FoldRule.for_round(1, 1.0, math.nextafter(norm, 0)).check(values.astype(np.float64))


def test_rounding_goes_up_as_often_as_the_rest_is_large() -> None:
    scale, count = np.float32(0.5), 40_000
    values = np.full(count, np.float32(1.35))  # 2.7 scales
    words = arrays.words(PLACE, Purpose.ROUNDING, count)
    q = np.frombuffer(arrays.rounded(values, np.full(1, scale), count, 127, words), np.int8)
    assert set(q.tolist()) == {2, 3}
    # 4 deviations of a mean of 40,000 coins of 0.7
    assert abs(q.mean() - 2.7) < 4 * math.sqrt(0.7 * 0.3 / count)
