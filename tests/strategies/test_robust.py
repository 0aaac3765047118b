"""What robust strategies have in common: liars move little, and are shut out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.errors import StrategyError
from fedtiny.strategies.base import Round
from fedtiny.strategies.geometric_median import GeometricMedian
from fedtiny.strategies.krum import Krum, MultiKrum
from fedtiny.strategies.median import Median
from fedtiny.strategies.norm_bound import NormBound
from fedtiny.strategies.robust import Robust, distances, mean, mixed
from fedtiny.strategies.trimmed_mean import TrimmedMean
from fedtiny.values import Update
from tests.harness.toys import INITIAL, LAYOUT, WHOLE

if TYPE_CHECKING:
    from fedtiny.tensors import Float64

T = Round(0, 9)
RULES: list[Robust] = [
    NormBound(cohort=11, bound=2.0),
    Median(cohort=11),
    TrimmedMean(cohort=11, share=0.3),
    Krum(cohort=11, byzantine=3),
    MultiKrum(cohort=11, byzantine=3),
    GeometricMedian(cohort=11),
    Median(cohort=11, mix=3),
    Krum(cohort=11, byzantine=3, mix=3),
]
of_each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)


def sent(device: int, delta: Float64, samples: int = 1) -> Update:
    values = (INITIAL + delta).astype(np.float32)
    return Update(device, device, 0, 0, samples, values.tobytes(), WHOLE)


def moved(rule: Robust, deltas: Float64) -> Float64:
    updates = [sent(device, delta) for device, delta in enumerate(deltas)]
    model, _ = rule.finish(T, INITIAL, updates, rule.start(LAYOUT, INITIAL))
    return np.asarray(model - INITIAL, float)


def cloud(seed: int, lies: float) -> Float64:
    """Eight honest deltas around 1, and three lies."""
    drawn = np.random.default_rng(seed).normal(1.0, 0.1, (11, LAYOUT.size))
    drawn[[2, 5, 7]] = lies
    return drawn


@of_each_rule
@settings(max_examples=25)
@given(seed=st.integers(0, 99), lies=st.sampled_from([-500.0, -5.0, 0.0, 1e3]))
def test_three_liars_of_eleven_cannot_lead_the_model_away(
    rule: Robust, seed: int, lies: float
) -> None:
    deltas = cloud(seed, lies)
    # Norm bounding lets a liar move its bound, 2, as any device may: by 2 * 3 / 11 at most.
    slack = 0.9 if isinstance(rule, NormBound) else 0.25
    assert np.abs(moved(rule, deltas) - 1.0).max() < slack
    assert np.abs(deltas.mean(axis=0) - 1.0).min() > 0.2  # the mean is led away by each of these


@of_each_rule
def test_nobody_counts_for_more_by_claiming_more_samples(rule: Robust) -> None:
    rows = cloud(1, -5.0)
    honest = [sent(device, row) for device, row in enumerate(rows)]
    boasting = [replace(honest[0], samples=60_000), *honest[1:]]
    state = rule.start(LAYOUT, INITIAL)
    models = [rule.finish(T, INITIAL, updates, state)[0] for updates in (honest, boasting)]
    assert models[0].tobytes() == models[1].tobytes()


# ---- distances and means of updates that have trained a part ---------------------------------

nan = np.nan


def test_a_distance_is_over_what_both_have_and_counts_the_rest_alike() -> None:
    rows = np.array([[3, 4, nan, nan], [3, nan, nan, nan], [nan, nan, 0, nan], [0, 0, 0, nan]])
    # Three coordinates are trained by anybody. Of the first row two: sqrt(25 * 3 / 2); of the
    # second one: sqrt(9 * 3).
    point = np.zeros(4)
    np.testing.assert_allclose(distances(rows, point), [37.5**0.5, 27**0.5, 0, 0])
    assert distances(rows, rows[1])[2] == np.inf


def test_a_mean_is_over_those_who_trained_a_coordinate() -> None:
    rows = np.array([[1, 8, nan], [4, nan, nan]])
    assert mean(rows, np.array([1.0, 2.0])).tolist() == [3, 8, 0]


# ---- quarantine ------------------------------------------------------------------------------


def told(rule: Robust, *liars: set[int]) -> list[list[int]]:
    """Who is barred after each round of five devices that are not barred, with these liars."""
    state, history = rule.start(LAYOUT, INITIAL), []
    for t, lying in enumerate(liars):
        asked = [device for device in range(5) if device not in rule.barred(state)]
        step = np.linspace(0.9, 1.1, LAYOUT.size)
        updates = [sent(d, -50.0 * step if d in lying else (1 + d / 99) * step) for d in asked]
        _, state = rule.finish(Round(t, 9), INITIAL, updates, state)
        history.append(rule.barred(state).tolist())
    return history


@pytest.mark.parametrize(
    "rule", [Median(cohort=5), MultiKrum(cohort=5, byzantine=1)], ids=["by distance", "by score"]
)
def test_who_is_suspected_three_times_is_out_for_the_quarantine_and_begins_anew(
    rule: Robust,
) -> None:
    rule = replace(rule, quarantine=2, strikes=3)
    # Out in the two rounds after the third lie; back in round 5, and out after three more lies.
    history = told(rule, *[{4}] * 8)
    assert [4 in barred for barred in history] == [
        False, False, True, True, False, False, False, True,
    ]  # fmt: skip


def test_a_round_without_suspicion_clears_a_device() -> None:
    rule = Median(cohort=5, quarantine=9, strikes=2)
    assert told(rule, {1}, set(), {1}, {1})[1:] == [[], [], [1]]


def test_honest_devices_are_not_suspected() -> None:
    assert told(Median(cohort=5, quarantine=9, strikes=1), set(), set()) == [[], []]


def test_without_quarantine_nothing_is_remembered() -> None:
    rule = Median(cohort=5)
    assert told(rule, {1}, {1}, {1}) == [[], [], []]
    assert rule.start(LAYOUT, INITIAL) == {}
    assert rule.telemetry(T, INITIAL, {}) == {}


def test_the_history_tells_how_many_are_barred() -> None:
    rule = Median(cohort=5, quarantine=9)
    state = {"strikes": np.zeros(5, np.uint8), "barred": np.array([0.0, 3.0, 0.0, 1.0])}
    assert rule.telemetry(T, INITIAL, state) == {"barred": 2.0}


@pytest.mark.parametrize("wrong", [{"quarantine": -1}, {"strikes": 0}, {"strikes": 256}])
def test_what_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(StrategyError, match=f"{next(iter(wrong))} = .*it must be"):
        Median(**wrong)  # type: ignore[arg-type]


# ---- mixing


@settings(max_examples=25)
@given(seed=st.integers(0, 99), liars=st.integers(0, 5))
def test_each_delta_gives_way_to_the_mean_of_those_closest_to_it(seed: int, liars: int) -> None:
    rows = cloud(seed, 5.0)
    expected = []
    for row in rows:
        order = np.argsort(((rows - row) ** 2).sum(axis=1))
        expected.append(rows[order[: 11 - liars]].mean(axis=0))
    np.testing.assert_allclose(mixed(rows, liars), expected, rtol=1e-12)


def test_mixing_leaves_what_nobody_trained_unknown() -> None:
    rows = np.array([[1.0, np.nan, 2.0], [3.0, np.nan, np.nan]])
    np.testing.assert_array_equal(mixed(rows, 0), [[2.0, np.nan, 2.0]] * 2)


def test_mixing_saves_what_only_some_devices_know() -> None:
    # Four of nine know coordinate 0, the other five coordinate 1: the median sees but one of them.
    rows = np.array([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 5)
    assert np.median(rows, axis=0).tolist() == [0.0, 1.0]
    known, other = np.median(mixed(rows, 2), axis=0)
    assert known > 0.25
    assert other > 0.5
