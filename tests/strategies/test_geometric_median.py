"""The geometric median against what defines it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.strategies.geometric_median import GeometricMedian

if TYPE_CHECKING:
    from fedtiny.tensors import Float64


@settings(max_examples=30)
@given(st.integers(0, 200), st.integers(3, 12))
def test_no_other_point_has_a_smaller_sum_of_distances(seed: int, n: int) -> None:
    drawn = np.random.default_rng(seed)
    rows = drawn.normal(0, 1, (n, 4))
    found = GeometricMedian().aggregate(rows)

    def objective(v: Float64) -> float:
        return float(np.linalg.norm(rows - v, axis=1).sum())

    around = found + drawn.normal(0, 1e-2, (50, 4))
    assert objective(found) <= min(map(objective, [*around, rows.mean(axis=0), *rows])) + 1e-5


def test_it_reaches_a_median_that_is_one_of_the_deltas() -> None:
    # The passes slow down as they come near it.
    rows = np.random.default_rng(144).normal(0, 1, (3, 4))
    found = GeometricMedian().aggregate(rows)
    np.testing.assert_allclose(found, rows[1], atol=1e-4)


def test_it_is_where_the_pulls_of_all_deltas_cancel() -> None:
    # Fermat's point of a triangle with a right angle and legs 1 sees each side under 120 degrees:
    # it lies on the axis of symmetry at (3 - sqrt(3)) / 6.
    found = GeometricMedian().aggregate(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_allclose(found, (3 - 3**0.5) / 6, atol=1e-5)


def test_of_points_on_a_line_it_is_the_median() -> None:
    rows = np.array([[0.0], [1.0], [2.0], [3.0], [1e6]])
    np.testing.assert_allclose(GeometricMedian().aggregate(rows), [2.0], atol=1e-3)


def test_all_in_one_place_is_that_place() -> None:
    rows = np.full((4, 3), 0.25)
    assert GeometricMedian().aggregate(rows).tolist() == [0.25] * 3
