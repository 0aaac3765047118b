from __future__ import annotations

import math
from fractions import Fraction
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedtiny.errors import UpdateError
from fedtiny.fold import DEFAULT_BOUND, FoldRule, Total, weight_units
from fedtiny.values import Ranges, Update

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedtiny.tensors import Float32

SIZE = 6
WHOLE: Ranges = ((0, SIZE),)
BASE = np.array([0.5, -1.0, 0.0, 3.0, 1e-3, -2.5], np.float32)

cohorts = st.integers(1, 2**20)
weight_caps = st.floats(2.0**-20, 2.0**20)
norm_bounds = st.just(0.0) | st.floats(1e-6, 1e6)
vectors = arrays(np.float32, SIZE, elements=st.floats(-100, 100, width=32))
ranges_of_six = st.sampled_from([WHOLE, ((0, 2),), ((1, 3), (4, 6)), ((5, 6),)])
weights = st.integers(2**14, 50 * 2**20).map(lambda units: units * 2.0**-20)
contributions = st.lists(st.tuples(vectors, ranges_of_six, weights), max_size=8)


def update(values: npt.ArrayLike, ranges: Ranges = WHOLE) -> Update:
    whole = np.asarray(values, np.float32)
    sent = np.concatenate([whole[start:stop] for start, stop in ranges])
    return Update(0, 0, 0, 0, samples=1, values=sent.tobytes(), ranges=ranges)


def folded(parts: list[tuple[Float32, Ranges, float]], rule: FoldRule) -> Total:
    total = Total.zero(SIZE, rule)
    for values, ranges, weight in parts:
        total = total.add(update(values, ranges), BASE, weight)
    return total


# --- the fixed point


@given(cohorts, weight_caps, norm_bounds)
def test_no_cohort_can_overflow_and_no_finer_fixed_point_is_safe(
    cohort: int, weight_cap: float, norm_bound: float
) -> None:
    rule = FoldRule.for_round(cohort, weight_cap, norm_bound)
    largest = Fraction(weight_cap * rule.bound) * Fraction(2) ** rule.shift
    assert round(largest) < 2**51
    assert cohort * round(largest) < 2**62
    finer = 2 * largest
    assert finer > 2**51 - 1 or cohort * finer > 2**62 - cohort


@given(cohorts, weight_caps, norm_bounds, st.floats(0, 1), st.floats(-1, 1))
def test_a_term_is_the_exactly_rounded_product(
    cohort: int, weight_cap: float, norm_bound: float, part: float, move: float
) -> None:
    rule = FoldRule.for_round(cohort, weight_cap, norm_bound)
    weight, delta = part * weight_cap, move * rule.bound
    exact = Fraction(weight * delta) * Fraction(2) ** rule.shift
    (term,) = rule.terms(np.array([delta]), weight)
    assert int(term) == round(exact)  # Python rounds a Fraction to nearest even, too
    assert abs(int(term)) <= min(2**51 - 1, (2**62 - 1) // cohort)


def test_without_a_clip_the_documented_bound_applies() -> None:
    assert FoldRule.for_round(10, 1.0).bound == DEFAULT_BOUND == 1024.0
    assert FoldRule.for_round(10, 1.0, norm_bound=2.0).bound == 2.0


@pytest.mark.parametrize(
    ("cohort", "weight_cap", "norm_bound"),
    [(0, 1.0, 0.0), (1, 0.0, 0.0), (2**22, 2.0**20, 0.0), (1, math.nan, 0.0), (1, 1.0, math.inf),
     (1, 1.0, -1.0)],
)  # fmt: skip
def test_a_fold_that_cannot_be_is_refused_with_the_numbers(
    cohort: int, weight_cap: float, norm_bound: float
) -> None:
    with pytest.raises(UpdateError, match=r"\d"):
        FoldRule.for_round(cohort, weight_cap, norm_bound)


# --- the law: order and partition change no bit


@given(contributions, st.randoms(use_true_random=False), st.integers(0, 8), st.integers(0, 8))
def test_any_order_and_any_partition_give_the_same_bits(
    parts: list[tuple[Float32, Ranges, float]], random: Random, i: int, j: int
) -> None:
    rule = FoldRule.for_round(8, 50.0)
    straight = folded(parts, rule)
    shuffled = list(parts)
    random.shuffle(shuffled)
    i, j = min(i, j), max(i, j)
    a, b, c = (folded(p, rule) for p in (shuffled[:i], shuffled[i:j], shuffled[j:]))
    assert a.merge(b).merge(c) == a.merge(b.merge(c)) == c.merge(a).merge(b) == straight
    assert a.merge(b).merge(c).mean().tobytes() == straight.mean().tobytes()


@given(contributions, st.sampled_from([0.0, 3.0]))
def test_updates_that_are_added_together_give_the_bits_of_each_alone(
    parts: list[tuple[Float32, Ranges, float]], norm_bound: float
) -> None:
    rule = FoldRule.for_round(10, 64.0, norm_bound)
    parts = [(values, WHOLE, weight) for values, _, weight in parts]
    spoilt = np.full(SIZE, np.nan, np.float32)
    parts += [(spoilt, WHOLE, 1.0), (np.full(SIZE, 2000.0, np.float32), WHOLE, 1.0)]
    alone, good = Total.zero(SIZE, rule), []
    for values, ranges, weight in parts:
        try:
            alone = alone.add(update(values, ranges), BASE, weight)
        except UpdateError:
            good.append(False)
        else:
            good.append(True)
    updates = [update(values) for values, _, _ in parts]
    weights = np.array([weight for _, _, weight in parts])
    together, taken = Total.zero(SIZE, rule).add_all(updates, BASE, weights)
    assert together == alone
    assert taken.tolist() == good


@given(contributions)
def test_a_coordinate_is_averaged_over_those_who_trained_it(
    parts: list[tuple[Float32, Ranges, float]],
) -> None:
    rule = FoldRule.for_round(8, 50.0)
    total_weight, weighted = np.zeros(SIZE), np.zeros(SIZE)
    for values, ranges, weight in parts:
        for start, stop in ranges:
            delta = values[start:stop].astype(float) - BASE[start:stop]
            weighted[start:stop] += weight * delta
            total_weight[start:stop] += weight
    expected = np.divide(weighted, total_weight, out=np.zeros(SIZE), where=total_weight > 0)
    # Each of 8 terms is off by 2^-36 at most (shift 35), divided by a weight of at least 2^-6.
    assert rule.shift == 35
    np.testing.assert_allclose(folded(parts, rule).mean(), expected, rtol=0, atol=8 * 2.0**-30)


def test_whole_number_weights_give_the_exact_mean() -> None:
    # 2 samples moved by 1.5 and 6 samples by -0.25: (2 * 1.5 - 6 * 0.25) / 8 = 0.1875.
    parts = [(BASE + np.float32(1.5), WHOLE, 2.0), (BASE - np.float32(0.25), ((0, 1),), 6.0)]
    mean = folded(parts, FoldRule.for_round(2, 64.0)).mean()
    assert mean[0] == 0.1875
    assert mean[1] == 1.5


def test_a_partial_sum_of_the_runtime_is_a_total_like_any_other() -> None:
    rule = FoldRule.for_round(3, 4.0)
    moved = [BASE + np.float32(0.1), BASE * np.float32(2.0)]
    weights = rule.weights([1.0, 2.7])
    sums = sum(
        np.rint(w * (v.astype(float) - BASE.astype(float)) * 2.0**rule.shift).astype(np.int64)
        for v, w in zip(moved, weights, strict=True)
    )
    assert isinstance(sums, np.ndarray)
    from_c = Total.from_sums(rule, sums, WHOLE, weights)
    assert from_c == folded([(moved[0], WHOLE, 1.0), (moved[1], WHOLE, 2.7)], rule)
    assert weight_units(weights) == 2**20 + round(2.7 * 2**20)
    nobody = Total.from_sums(rule, np.zeros(SIZE, np.int64), WHOLE, [])
    assert nobody == Total.zero(SIZE, rule)


def test_a_gradient_is_folded_without_a_base() -> None:
    total = Total.zero(SIZE, FoldRule.for_round(1, 1.0)).add(update(BASE), None, 1.0)
    assert total.mean().tolist() == BASE.astype(float).tolist()


def test_adding_leaves_the_old_total_as_it_was() -> None:
    empty = Total.zero(SIZE, FoldRule.for_round(1, 1.0))
    empty.add(update(BASE + 1), BASE, 1.0)
    assert empty == Total.zero(SIZE, empty.rule)
    assert not empty.mean().any()


# --- refusals


def refused(values: npt.ArrayLike, match: str, **rule: float) -> None:
    total = Total.zero(SIZE, FoldRule.for_round(2, 1.0, **rule))
    with pytest.raises(UpdateError, match=match):
        total.add(update(values), BASE, 1.0)


def test_an_update_that_is_not_finite_is_refused() -> None:
    refused([1, math.nan, math.inf, 0, 0, 0], r"2 of 6 values are not finite")


def test_an_update_beyond_the_bound_is_refused_and_at_the_bound_it_is_not() -> None:
    refused(BASE + np.float32(1100), r"moved by 1100, the bound is 1024")
    rule = FoldRule.for_round(1, 1.0)
    at_the_bound = update([1024.5, -1, 0, 3, 0, 0])
    assert Total.zero(SIZE, rule).add(at_the_bound, BASE, 1.0).mean()[0] == 1024.0


def test_an_update_whose_norm_exceeds_the_clip_is_refused() -> None:
    moved = BASE.copy()
    moved[:2] += np.array([3, 4], np.float32)  # norm 5
    refused(moved, r"norm 5, update_clip is 4.9", norm_bound=4.9)
    total = Total.zero(SIZE, FoldRule.for_round(2, 1.0, norm_bound=5.0))
    assert total.add(update(moved), BASE, 1.0).count == 1


@given(arrays(np.float32, 21, elements=st.floats(-100, 100, width=32)))
def test_the_norm_is_added_up_in_eight_lanes_and_a_tree(moved: Float32) -> None:
    lanes = [0.0] * 8
    for i, delta in enumerate(moved.tolist()):
        lanes[i % 8] += delta * delta
    a, b, c, d, e, f, g, h = lanes
    norm = math.sqrt(((a + b) + (c + d)) + ((e + f) + (g + h)))
    assume(norm > 1e-3)
    delta = moved.astype(float)
    FoldRule.for_round(1, 1.0, norm_bound=norm).check(delta)
    with pytest.raises(UpdateError, match=r"the update has norm|the bound is"):
        FoldRule.for_round(1, 1.0, norm_bound=math.nextafter(norm, 0.0)).check(delta)


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.1, math.nan, math.inf, 2.0**-22])
def test_a_weight_outside_its_range_is_refused(weight: float) -> None:
    with pytest.raises(UpdateError, match="weight"):
        Total.zero(SIZE, FoldRule.for_round(2, 1.0)).add(update(BASE), BASE, weight)


@pytest.mark.parametrize(
    "ranges", [(), ((0, 7),), ((-1, 2),), ((3, 4), (1, 2)), ((0, 2), (2, 3)), ((2, 2),)]
)
def test_ranges_that_do_not_fit_the_model_are_refused(ranges: Ranges) -> None:
    wrong = Update(0, 0, 0, 0, 1, bytes(4 * sum(max(0, b - a) for a, b in ranges)), ranges)
    with pytest.raises(UpdateError, match=r"ranges .* 0 \.\.\. 6"):
        Total.zero(SIZE, FoldRule.for_round(1, 1.0)).add(wrong, BASE, 1.0)


def test_values_that_do_not_fill_the_ranges_are_refused() -> None:
    short = Update(0, 0, 0, 0, 1, bytes(20), WHOLE)
    with pytest.raises(UpdateError, match="20 bytes of values, its ranges need 24"):
        Total.zero(SIZE, FoldRule.for_round(1, 1.0)).add(short, BASE, 1.0)


def test_no_more_updates_than_the_cohort_are_folded() -> None:
    rule = FoldRule.for_round(2, 1.0)
    full = folded([(BASE, WHOLE, 1.0)] * 2, rule)
    with pytest.raises(UpdateError, match="3 updates in a fold that was made for 2"):
        full.add(update(BASE), BASE, 1.0)
    with pytest.raises(UpdateError, match="4 updates"):
        full.merge(full)


def test_totals_of_different_rounds_are_never_merged() -> None:
    a, b = (Total.zero(SIZE, FoldRule.for_round(cohort, 1.0)) for cohort in (2, 3))
    with pytest.raises(UpdateError, match="one round only"):
        a.merge(b)
