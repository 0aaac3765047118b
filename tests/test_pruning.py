"""How many weights of each layer live, and which: counted and chosen alike on every host."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from fedtiny import rng
from fedtiny.errors import ExperimentError
from fedtiny.layout import Layout, Parameter
from fedtiny.pruning import candidate_counts, erk_counts, largest, pq_index, top, uniform_counts

CONV, HIDDEN, HEAD = "conv.weight", "hidden.weight", "head.weight"
LAYOUT = Layout.of(
    [
        Parameter(CONV, (3, 3, 1, 8)),  # 72 weights; ERK score 15 / 72
        Parameter("conv.bias", (8,)),
        Parameter(HIDDEN, (128, 64)),  # 8,192 weights; 192 / 8192
        Parameter(HEAD, (64, 10)),  # 640 weights; 74 / 640
    ]
)
PRUNABLE = (CONV, HIDDEN, HEAD)
WEIGHTS = 72 + 8192 + 640

densities = st.floats(0.05, 1.0)  # below it the noise of a candidate may empty the convolution


@contextmanager
def no_numpy() -> Iterator[None]:
    with (
        patch("fedtiny.pruning.has_numpy", lambda: False),
        patch("fedtiny.masks.has_numpy", lambda: False),
    ):
        yield


# ---- counts


def test_erk_deals_in_proportion_to_the_sum_of_a_shape() -> None:
    # 10 %: 890 of 8,904. In proportion 15 : 192 : 74 would be 47.5 : 608.1 : 234.4.
    counts = erk_counts(LAYOUT, PRUNABLE, 0.1)
    assert counts == {CONV: 48, HIDDEN: 608, HEAD: 234}


def test_a_layer_that_erk_would_overfill_is_dense_and_the_others_share_the_rest() -> None:
    # 20 %: 1,780; conv would get 95 of 72. Of the other 1,708 the head gets 74 / 266: 475.2.
    assert erk_counts(LAYOUT, PRUNABLE, 0.2) == {CONV: 72, HIDDEN: 1233, HEAD: 475}


def test_uniform_counts_have_one_density() -> None:
    # 7.2 + 819.2 + 64.0, and what rounding down leaves goes to no one: floor(890.4) = 890
    assert uniform_counts(LAYOUT, PRUNABLE, 0.1) == {CONV: 7, HIDDEN: 819, HEAD: 64}


@given(densities, st.integers(0, 99))
@example(1.0, 3)
@example(0.29, 1)
def test_every_candidate_spends_exactly_the_budget_and_overfills_no_layer(
    density: float, seed: int
) -> None:
    counts = candidate_counts(LAYOUT, PRUNABLE, density, seed)
    assert list(counts) == list(PRUNABLE)
    assert sum(counts.values()) == math.floor(density * WEIGHTS)
    assert all(1 <= count <= LAYOUT[name].size for name, count in counts.items())


@given(densities, densities, st.integers(0, 9))
def test_a_lower_density_has_no_more_in_a_layer_but_for_rounding(
    one: float, other: float, seed: int
) -> None:
    low, high = (candidate_counts(LAYOUT, PRUNABLE, d, seed) for d in sorted((one, other)))
    assert all(low[name] <= high[name] + 1 for name in PRUNABLE)


def test_the_first_two_candidates_are_erk_and_uniform_and_the_others_differ() -> None:
    pools = [candidate_counts(LAYOUT, PRUNABLE, 0.05, seed) for seed in range(6)]
    assert pools[:2] == [erk_counts(LAYOUT, PRUNABLE, 0.05), uniform_counts(LAYOUT, PRUNABLE, 0.05)]
    assert len({tuple(pool.values()) for pool in pools}) == 6
    for seed in range(2, 6):  # factors in [0.5, 1.5] of that of its kind: at most three times apart
        factors = [pools[seed][name] / pools[seed % 2][name] for name in PRUNABLE]
        assert max(factors) < 3.3 * min(factors)


@pytest.mark.parametrize(
    ("seed", "shares", "expected"),
    [(2, [15, 192, 74], [20, 265, 160]), (3, [72, 8192, 640], [4, 414, 27])],
    ids=["erk", "uniform"],
)
def test_the_noise_of_a_candidate_is_that_of_the_counter_generator(
    seed: int, shares: list[int], expected: list[int]
) -> None:
    factors = [0.5 + (word >> 8) / 2**24 for word in rng.words(seed, 0, 0, rng.Purpose.MASK, 3)]
    wanted = np.array(factors) * shares
    wanted *= math.floor(0.05 * WEIGHTS) / wanted.sum()
    counts = list(candidate_counts(LAYOUT, PRUNABLE, 0.05, seed).values())
    assert np.abs(np.array(counts) - wanted).max() < 1
    assert counts == expected


def test_a_density_that_empties_a_layer_is_refused_by_name() -> None:
    told = r"density = 0.005 leaves none of the 72 weights of conv.weight: 44 live .*raise"
    with pytest.raises(ExperimentError, match=told):
        uniform_counts(LAYOUT, PRUNABLE, 0.005)


# ---- the largest

floats = st.floats(-8, 8, width=32)


@given(st.lists(floats, min_size=6, max_size=6), st.integers(0, 4))
def test_the_largest_are_those_of_a_stable_sort_with_numpy_and_without(
    values: list[float], count: int
) -> None:
    layout = Layout.of([Parameter("b", (1,)), Parameter("w", (2, 2)), Parameter("c", (1,))])
    order = sorted(range(4), key=lambda at: -abs(values[1 + at]))
    expected = [True, *(at in order[:count] for at in range(4)), True]
    vector = np.array(values, np.float32)
    mask = largest(vector, layout, {"w": count})
    assert mask.bools.tolist() == expected
    with no_numpy():
        assert largest(vector.tobytes(), layout, {"w": count}) == mask


@pytest.mark.parametrize("seed", range(4))
def test_a_candidate_is_rebuilt_bit_by_bit_without_numpy(seed: int) -> None:
    base = np.random.default_rng(seed).standard_normal(LAYOUT.size).astype(np.float32)
    base[::3] = 0.25  # many are equal
    counts = candidate_counts(LAYOUT, PRUNABLE, 0.03, seed)
    mask = largest(base, LAYOUT, counts)
    with no_numpy():
        again = largest(base, LAYOUT, candidate_counts(LAYOUT, PRUNABLE, 0.03, seed))
    assert again.bits == mask.bits
    assert mask.count == sum(counts.values()) + LAYOUT["conv.bias"].size


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.data())
def test_top_is_the_head_of_a_stable_sort(scores: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(scores)))
    order = sorted(range(len(scores)), key=lambda at: -scores[at])
    marked = top(np.array(scores, float), count)
    assert np.flatnonzero(marked).tolist() == sorted(order[:count])


# ---- the PQ index


def test_the_pq_index_is_that_of_the_paper() -> None:
    w = [4.0, 1.0, -1.0, 0.0]
    # d = 4: 1 - 4^(1 - 2) (2 + 1 + 1 + 0)^2 / 6
    assert pq_index(w) == pytest.approx(1 - 16 / 4 / 6)


def test_the_pq_index_of_gaussian_weights_is_known() -> None:
    # E sqrt|x| = 2^(1/4) Gamma(3/4) / sqrt(pi), E|x| = sqrt(2 / pi)
    root = 2**0.25 * math.gamma(0.75) / math.sqrt(math.pi)
    known = 1 - root**2 / math.sqrt(2 / math.pi)
    w = np.random.default_rng(1).standard_normal(100_000)
    assert pq_index(w.tolist()) == pytest.approx(known, abs=2e-3)
    assert known == pytest.approx(0.153, abs=5e-4)


@given(st.lists(floats, min_size=1, max_size=20), st.floats(0.5, 2.0))
def test_the_pq_index_ignores_scale_and_order_and_lies_in_0_1(w: list[float], scale: float) -> None:
    assume(max(map(abs, w)) > 1e-6)
    index = pq_index(w)
    assert -1e-12 <= index < 1
    assert pq_index([scale * x for x in w]) == pytest.approx(index, abs=1e-9)
    assert pq_index(w[::-1]) == index


def test_equal_weights_have_index_0_and_so_has_nothing() -> None:
    assert pq_index([0.5] * 7) == pytest.approx(0, abs=1e-12)
    assert pq_index([0.0, 0.0]) == 0
