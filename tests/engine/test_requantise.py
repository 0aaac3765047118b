"""A requantisation without floats gives the bits of the one with floats."""

from __future__ import annotations

import ctypes
import subprocess
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine.runtime import build
from tests.engine.test_canonical import HERE, pointer

Array = npt.NDArray[Any]
INT32 = st.integers(-(2**31), 2**31 - 1)
FACTORS = st.floats(0, float(np.finfo(np.float32).max), width=32)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("requantise") / "forms.so"
    flags = [*build.FLAGS, "-fsanitize=undefined", "-shared", f"-I{build.HERE}"]
    source = [str(HERE / "requantise.c"), "-o", str(library)]
    subprocess.run([*build.compiler(), *flags, *source], check=True)
    return ctypes.CDLL(str(library))


def both(forms: ctypes.CDLL, sums: Array, factors: Array, zero: int) -> list[list[int]]:
    sums, factors = sums.astype(np.int32), factors.astype(np.float32)
    found = []
    for form in (forms.with_floats, forms.with_integers):
        q = np.empty(len(sums), np.int8)
        form(pointer(sums), pointer(factors), zero, pointer(q), len(sums))
        found.append(q.tolist())
    return found


@settings(max_examples=200)
@given(st.lists(st.tuples(INT32, FACTORS), min_size=1, max_size=50), st.integers(-128, 127))
def test_any_sum_and_factor_give_the_same_number(
    forms: ctypes.CDLL, pairs: list[tuple[int, float]], zero: int
) -> None:
    sums, factors = (np.array(column) for column in zip(*pairs, strict=True))
    with_floats, with_integers = both(forms, sums, factors, zero)
    assert with_integers == with_floats


def test_a_million_usual_ones_do_too(forms: ctypes.CDLL) -> None:
    """Sums of all sizes, and factors that put them within the numbers or near the middle of two."""
    draw = np.random.default_rng(0)
    sums = (draw.uniform(-1, 1, 1 << 20) * 2.0 ** draw.integers(1, 32, 1 << 20)).astype(np.int64)
    sums = np.clip(sums, -(2**31), 2**31 - 1)
    halves = draw.integers(-300, 300, 1 << 20) / 2
    factors = abs(halves / np.where(sums == 0, 1, sums))
    with_floats, with_integers = both(forms, sums, factors, 3)
    assert with_integers == with_floats
    assert len(set(with_floats)) > 200


def test_halves_go_to_the_even_number(forms: ctypes.CDLL) -> None:
    sums = np.array([1, 3, 5, -1, -3, -5, 7])
    wanted = [0, 2, 2, 0, -2, -2, 4]
    assert both(forms, sums, np.full(7, 0.5), 0) == [wanted, wanted]


def test_a_sum_above_24_bits_is_rounded_twice(forms: ctypes.CDLL) -> None:
    """2^24 + 1 is 2^24 as a float: times 2^-25 that is a half, which goes to the even 0."""
    sums, wanted = np.array([2**24 + 1, 2**24 + 2]), [0, 1]
    assert both(forms, sums, np.full(2, 2.0**-25), 0) == [wanted, wanted]
