from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedtiny.errors import UpdateError
from fedtiny.fold import DEFAULT_BOUND, FoldRule, Total, covered, delta_of, weight_units
from fedtiny.layout import Coverage, Ranges
from fedtiny.masks import Mask
from fedtiny.values import Update

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedtiny.tensors import Float32

SIZE = 6
WHOLE: Ranges = ((0, SIZE),)
ALL: Coverage = (WHOLE, None)
BASE = np.array([0.5, -1.0, 0.0, 3.0, 1e-3, -2.5], np.float32)

cohorts = st.integers(1, 2**20)
weight_caps = st.floats(2.0**-20, 2.0**20)
norm_bounds = st.just(0.0) | st.floats(1e-6, 1e6)
vectors = arrays(np.float32, SIZE, elements=st.floats(-100, 100, width=32))
ranges_of_six = st.sampled_from([WHOLE, ((0, 2),), ((1, 3), (4, 6)), ((5, 6),)])
weights = st.integers(2**14, 50 * 2**20).map(lambda units: units * 2.0**-20)
masks_of_six = st.sampled_from([None, *(Mask(SIZE, bytes([bits])) for bits in (0, 7, 37, 63))])
coverages = st.tuples(ranges_of_six, masks_of_six)
contributions = st.lists(st.tuples(vectors, coverages, weights), max_size=8)


def trained(coverage: Coverage) -> list[int]:
    """The coordinates, one by one."""
    ranges, mask = coverage
    within = [i for start, stop in ranges for i in range(start, stop)]
    return [i for i in within if mask is None or mask.bools[i]]


def update(values: npt.ArrayLike, coverage: Coverage = ALL) -> Update:
    sent = np.asarray(values, np.float32)[trained(coverage)]
    ranges, mask = coverage
    return Update(0, 0, 0, 0, samples=1, values=sent.tobytes(), ranges=ranges, mask=mask)


def folded(parts: list[tuple[Float32, Coverage, float]], rule: FoldRule) -> Total:
    total = Total.zero(SIZE, rule)
    for values, coverage, weight in parts:
        total = total.add(update(values, coverage), BASE, weight)
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
    wide = FoldRule.for_round(10, 1.0, default_bound=2.0**20)
    assert (wide.bound, wide.norm_bound) == (2.0**20, 0.0)


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
    parts: list[tuple[Float32, Coverage, float]], random: Random, i: int, j: int
) -> None:
    rule = FoldRule.for_round(8, 50.0)
    straight = folded(parts, rule)
    shuffled = list(parts)
    random.shuffle(shuffled)
    i, j = min(i, j), max(i, j)
    a, b, c = (folded(p, rule) for p in (shuffled[:i], shuffled[i:j], shuffled[j:]))
    assert a.merge(b).merge(c) == a.merge(b.merge(c)) == c.merge(a).merge(b) == straight
    assert a.merge(b).merge(c).mean().tobytes() == straight.mean().tobytes()


@given(contributions, coverages, st.sampled_from([0.0, 3.0]))
def test_updates_that_are_added_together_give_the_bits_of_each_alone(
    parts: list[tuple[Float32, Coverage, float]], coverage: Coverage, norm_bound: float
) -> None:
    rule = FoldRule.for_round(10, 64.0, norm_bound)
    parts = [(values, coverage, weight) for values, _, weight in parts]
    spoilt = np.full(SIZE, np.nan, np.float32)
    parts += [(spoilt, coverage, 1.0), (np.full(SIZE, 2000.0, np.float32), coverage, 1.0)]
    alone, good = Total.zero(SIZE, rule), []
    for values, _, weight in parts:
        try:
            alone = alone.add(update(values, coverage), BASE, weight)
        except UpdateError:
            good.append(False)
        else:
            good.append(True)
    updates = [update(values, coverage) for values, _, _ in parts]
    weights = np.array([weight for _, _, weight in parts])
    together, taken = Total.zero(SIZE, rule).add_all(updates, BASE, weights)
    assert together == alone
    assert taken.tolist() == good


@settings(max_examples=40)
@given(contributions, contributions)
def test_what_is_taken_out_again_has_never_been_in(
    first: list[tuple[Float32, Coverage, float]], second: list[tuple[Float32, Coverage, float]]
) -> None:
    rule = FoldRule.for_round(16, 50.0)
    kept, forgotten = folded(first, rule), folded(second, rule)
    assert kept.merge(forgotten).without(forgotten) == kept
    assert kept.without(kept) == Total.zero(SIZE, rule)


def test_only_what_is_in_a_total_can_be_taken_out() -> None:
    rule = FoldRule.for_round(4, 50.0)
    one, other = folded([(BASE, ALL, 1.0)], rule), folded([(BASE, (((0, 2),), None), 1.0)], rule)
    with pytest.raises(UpdateError, match="cannot lose 1 that are not in it"):
        one.without(other)
    with pytest.raises(UpdateError, match="of one round only"):
        one.without(Total.zero(SIZE, FoldRule.for_round(5, 50.0)))


@settings(max_examples=40)
@given(contributions)
def test_the_weighted_sums_are_the_mean_times_the_weights(
    parts: list[tuple[Float32, Coverage, float]],
) -> None:
    total = folded([(v, ALL, w) for v, _, w in parts], FoldRule.for_round(8, 50.0))
    expected = total.mean() * sum(w for _, _, w in parts)
    np.testing.assert_allclose(total.weighted_sums(), expected, rtol=1e-12, atol=1e-12)


@given(contributions)
def test_a_coordinate_is_averaged_over_those_who_trained_it(
    parts: list[tuple[Float32, Coverage, float]],
) -> None:
    rule = FoldRule.for_round(8, 50.0)
    total_weight, weighted = np.zeros(SIZE), np.zeros(SIZE)
    for values, coverage, weight in parts:
        for i in trained(coverage):
            weighted[i] += weight * (float(values[i]) - float(BASE[i]))
            total_weight[i] += weight
    expected = np.divide(weighted, total_weight, out=np.zeros(SIZE), where=total_weight > 0)
    # Each of 8 terms is off by 2^-36 at most (shift 35), divided by a weight of at least 2^-6.
    assert rule.shift == 35
    np.testing.assert_allclose(folded(parts, rule).mean(), expected, rtol=0, atol=8 * 2.0**-30)


def test_whole_number_weights_give_the_exact_mean() -> None:
    # 2 samples moved by 1.5 and 6 samples by -0.25: (2 * 1.5 - 6 * 0.25) / 8 = 0.1875.
    first: Coverage = (((0, 1),), None)
    parts = [(BASE + np.float32(1.5), ALL, 2.0), (BASE - np.float32(0.25), first, 6.0)]
    mean = folded(parts, FoldRule.for_round(2, 64.0)).mean()
    assert mean[0] == 0.1875
    assert mean[1] == 1.5


def test_channels_scattered_over_many_ranges_are_folded_like_others() -> None:
    base, odd = np.zeros(400, np.float32), tuple((i, i + 1) for i in range(1, 400, 2))
    total = Total.zero(400, FoldRule.for_round(2, 64.0))
    for values, ranges, weight in ((1.5, odd, 2.0), (-0.25, ((0, 101),), 6.0)):
        count = sum(stop - start for start, stop in ranges)
        sent = np.full(count, values, np.float32).tobytes()
        total = total.add(Update(0, 0, 0, 0, 1, sent, ranges), base, weight)
    # (2 * 1.5 - 6 * 0.25) / 8 = 0.1875 where both have trained
    mean = total.mean()
    assert mean[:4].tolist() == [-0.25, 0.1875, -0.25, 0.1875]
    assert mean[100:104].tolist() == [-0.25, 1.5, 0.0, 1.5]


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
    assert from_c == folded([(moved[0], ALL, 1.0), (moved[1], ALL, 2.7)], rule)
    assert weight_units(weights) == 2**20 + round(2.7 * 2**20)
    nobody = Total.from_sums(rule, np.zeros(SIZE, np.int64), WHOLE, [])
    assert nobody == Total.zero(SIZE, rule)


def test_a_partial_sum_under_a_mask_leaves_dead_coordinates_to_others() -> None:
    mask = Mask.of(np.array([True, False, True, False, False, True]))
    base = np.zeros(SIZE, np.float32)
    rule = FoldRule.for_round(3, 4.0)
    sums = rule.terms(np.where(mask.bools, 0.5, 0.0), 2.0)
    pruned = Total.from_sums(rule, sums, WHOLE, [2.0], mask)
    half = update(base + 0.5, (WHOLE, mask))
    assert pruned == Total.zero(SIZE, rule).add(half, base, 2.0)
    # Where both trained, (2 * 0.5 + 1 * 2) / 3 = 1; elsewhere the second alone counts.
    both = pruned.merge(Total.zero(SIZE, rule).add(update(base + 2.0), base, 1.0))
    assert both.mean().tolist() == [1, 2, 1, 2, 2, 1]


def test_equal_masks_are_one_denominator_wherever_they_were_made() -> None:
    made, again = (Mask(SIZE, bytes([5])) for _ in range(2))
    total = folded([(BASE, (WHOLE, mask), 1.0) for mask in (made, again)], FoldRule.for_round(2, 1))
    assert total.weights == {(WHOLE, made): 2 * 2**20}


def test_places_that_were_not_sent_count_as_unmoved() -> None:
    gradient, zero = np.array([6.0, -3.0], np.float32), np.zeros(0, np.float32)
    rule, total = FoldRule.for_round(3, 8.0), Total.zero(SIZE, FoldRule.for_round(3, 8.0))
    for sent, places, weight in (
        (gradient, [1, 4], 1.0),
        (gradient[:1], [4], 2.0),
        (zero, [], 3.0),
    ):
        at = np.array(places, np.uint32).tobytes()
        total = total.add(Update(0, 0, 0, 0, 1, sent, WHOLE, places=at), None, weight)
    # Coordinate 1: 6 * 1 of a weight of 6; coordinate 4: -3 * 1 + 6 * 2.
    assert total.mean().tolist() == [0, 1, 0, 0, 1.5, 0]
    assert total.weights == {ALL: 6 * 2**20}
    assert total.rule == rule


@given(vectors, coverages, st.sets(st.integers(0, 5)))
def test_a_delta_is_what_was_sent_less_the_base_and_nothing_elsewhere(
    values: Float32, coverage: Coverage, some: set[int]
) -> None:
    assert covered(coverage).tolist() == trained(coverage)
    sent = [i for i in trained(coverage) if i in some]
    places = np.array(sent, np.uint32).tobytes()
    whole, few = update(values, coverage), update(values, (((0, 6),), None))
    few = replace(few, ranges=coverage[0], mask=coverage[1], places=places, values=values[sent])
    for made, live in ((whole, trained(coverage)), (few, sent)):
        for base in (None, BASE):
            moved = values.astype(float) - (0.0 if base is None else BASE)
            expected = np.where(np.isin(np.arange(SIZE), live), moved, 0.0)
            assert delta_of(made, base, SIZE).tolist() == expected.tolist()


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
    with pytest.raises(UpdateError, match="20 bytes of values, its coordinates need 24"):
        Total.zero(SIZE, FoldRule.for_round(1, 1.0)).add(short, BASE, 1.0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"mask": Mask(5, b"\1")}, "a mask of 5 coordinates for a vector of 6"),
        ({"mask": Mask(SIZE, b"\7")}, "24 bytes of values, its coordinates need 12"),
        ({"places": np.array([0, 1], np.uint32).tobytes()}, "its coordinates need 8"),
        ({"places": bytes(6)}, "6 bytes of places are no whole number of uint32"),
        ({"places": np.array([0, 6], np.uint32).tobytes()}, "the 2 places are not ascending"),
        ({"places": np.array([1, 1], np.uint32).tobytes()}, "the 2 places are not ascending"),
        ({"places": np.array([2, 1], np.uint32).tobytes()}, "the 2 places are not ascending"),
        (
            {"places": np.array([3], np.uint32).tobytes(), "mask": Mask(SIZE, b"\7")},
            "the 1 places are not ascending, each once, among the coordinates that",
        ),
    ],
)
def test_what_does_not_fit_its_mask_or_its_places_is_refused(
    change: dict[str, object], why: str
) -> None:
    wrong = replace(update(BASE), **change)  # type: ignore[arg-type]
    with pytest.raises(UpdateError, match=why):
        Total.zero(SIZE, FoldRule.for_round(1, 1.0)).add(wrong, BASE, 1.0)


def test_no_more_updates_than_the_cohort_are_folded() -> None:
    rule = FoldRule.for_round(2, 1.0)
    full = folded([(BASE, ALL, 1.0)] * 2, rule)
    with pytest.raises(UpdateError, match="3 updates in a fold that was made for 2"):
        full.add(update(BASE), BASE, 1.0)
    with pytest.raises(UpdateError, match="4 updates"):
        full.merge(full)


def test_totals_of_different_rounds_are_never_merged() -> None:
    a, b = (Total.zero(SIZE, FoldRule.for_round(cohort, 1.0)) for cohort in (2, 3))
    with pytest.raises(UpdateError, match="one round only"):
        a.merge(b)
