"""The canonical elementary functions: their accuracy, their edges, and the shared vectors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fedtiny import elementary

VECTORS = json.loads((Path(__file__).parent / "vectors" / "elementary.json").read_text())
FUNCTIONS = ["exp", "log", "tanh", "sigmoid", "sin", "cos"]

Array = npt.NDArray[Any]


def exact(name: str, x: Array) -> Array:
    wide = x.astype(np.float64)
    if name == "sigmoid":
        return np.asarray(1.0 / (1.0 + np.exp(-wide)))
    result: Array = getattr(np, name)(wide)
    return result


def canonical(name: str) -> Callable[[Array], Array]:
    function: Callable[[Array], Array] = getattr(elementary, name)
    return function


def errors_in_ulp(name: str, x: Array) -> Array:
    expected = exact(name, x)
    ulp = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    return np.asarray(np.abs(canonical(name)(x) - expected) / ulp)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_shared_vectors_hold(name: str) -> None:
    x, y = np.array([[int(word, 16) for word in pair] for pair in VECTORS[name]], np.uint32).T
    found = canonical(name)(x.view(np.float32))
    assert [f"{word:08x}" for word in found.view(np.uint32)] == [f"{word:08x}" for word in y]


def test_exp_is_within_two_ulp() -> None:
    assert errors_in_ulp("exp", np.linspace(-87.33, 88.72, 500_001).astype(np.float32)).max() <= 2
    assert errors_in_ulp("exp", np.linspace(-1, 1, 500_001).astype(np.float32)).max() <= 2


def test_log_is_within_two_ulp_of_every_positive_number() -> None:
    positive = np.linspace(1, 0x7F7FFFFF, 500_001).astype(np.uint32).view(np.float32)
    assert positive[0] == np.float32(1e-45)
    assert errors_in_ulp("log", positive).max() <= 2
    assert errors_in_ulp("log", np.linspace(0.5, 2, 500_000).astype(np.float32)).max() <= 2


def test_tanh_is_within_4e_7_and_never_beyond_one() -> None:
    x = np.linspace(-12, 12, 1_000_001).astype(np.float32)
    y = elementary.tanh(x)
    assert np.abs(y - exact("tanh", x)).max() <= 4e-7
    assert np.abs(y).max() == 1.0


def test_sigmoid_is_within_2e_7() -> None:
    x = np.linspace(-80, 80, 500_001).astype(np.float32)
    assert np.abs(elementary.sigmoid(x) - exact("sigmoid", x)).max() <= 2e-7


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_sin_and_cos_are_within_3e_7_up_to_1e4(name: str) -> None:
    for limit in (10, 1e4):
        x = np.linspace(-limit, limit, 500_001).astype(np.float32)
        assert np.abs(canonical(name)(x) - exact(name, x)).max() <= 3e-7


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_sin_and_cos_of_large_numbers_stay_small(name: str) -> None:
    x = np.array([1e5, 1e10, 3.4e38, -3.4e38], np.float32)
    assert np.abs(canonical(name)(x)).max() <= 1.01


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_in_is_nan_out(name: str) -> None:
    nan = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(canonical(name)(nan)).all()


INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("exp", [INF, -INF, 0, -0.0, 89, -88], [INF, 0, 1, 1, INF, 0]),
        ("log", [INF, -INF, 0, -0.0, 1, -1], [INF, NAN, -INF, -INF, 0, NAN]),
        ("tanh", [INF, -INF, 0], [1, -1, 0]),
        ("sigmoid", [INF, -INF, 0], [1, 0, 0.5]),
        ("sin", [INF, -INF, 0], [NAN, NAN, 0]),
        ("cos", [INF, -INF, 0], [NAN, NAN, 1]),
    ],
)
def test_the_edges_are_those_of_the_c_library(name: str, x: list[float], y: list[float]) -> None:
    found = canonical(name)(np.array(x, np.float32))
    np.testing.assert_array_equal(found, np.array(y, np.float32))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_gets_the_exact_function(name: str) -> None:
    x = np.array([0.3, 2.0, 1e-3])
    found = canonical(name)(x)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, exact(name, x))
