"""FedTiny against a few plain lines: the choice of a candidate, and one adjustment."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedtiny.errors import StrategyError
from fedtiny.fold import FoldRule, Total
from fedtiny.masks import Mask
from fedtiny.pruning import candidate_counts, largest
from fedtiny.rounds.content import OpenRound
from fedtiny.rounds.measures import Measures
from fedtiny.strategies import fedtiny
from fedtiny.strategies.base import Observed, Round
from fedtiny.strategies.fedtiny import FedTiny
from fedtiny.strategies.pruned import part
from fedtiny.values import CALIBRATE, GRADIENT, SCORE, TRAIN, Update
from tests.harness.pruned_toys import DENSE, FLEET, LAYOUT, MODEL, PRUNABLE, Played, PrunedToy, play

T = 14
STRATEGY = FedTiny(cohort=6, beta=0.1, every=2, stop=12).fitted(FLEET)
NO_SELECTION = replace(STRATEGY, candidates=0, blocks="all", alpha=0.4)


def adjustments() -> list[Played]:
    found = [round for round in play(NO_SELECTION, T) if round.asked.grow]
    assert [round.t for round in found] == [2, 4, 6, 8, 10, 12]
    return found


# ---- selection


def test_candidates_are_calibrated_then_scored_then_one_is_trained() -> None:
    rounds = list(play(STRATEGY, 3))
    assert [round.asked.kind for round in rounds] == [CALIBRATE, SCORE, TRAIN]
    assert rounds[0].asked.candidates == rounds[1].asked.candidates == (0, 1, 2, 3, 4)
    assert rounds[0].after[0] is MODEL
    assert "statistics" not in rounds[1].after[1]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Played:
    """The round after which the least loss wins, by whatever lead."""
    monkeypatch.setattr(fedtiny, "LEAD", 0.0)
    _, scored, *_ = play(STRATEGY, 3)
    return scored


def test_the_candidate_of_the_least_mean_loss_becomes_the_model(scored: Played) -> None:
    sums = np.zeros(5)
    for update in scored.updates:  # what a device measured is already a sum over its samples
        sums += [update.measures[f"loss_sum.{seed}"] for seed in range(5)]
    best = int(np.argmin(sums))
    model, state = scored.after
    assert state["chosen"] == best
    assert best > 0  # so that the choice can be told from the default
    counts = candidate_counts(LAYOUT, PRUNABLE, 0.3, best)
    expected = largest(MODEL, LAYOUT, counts)
    assert scored.strategy.pool(state) == expected
    weights = np.concatenate([np.arange(LAYOUT.size)[part(LAYOUT[name])] for name in PRUNABLE])
    assert model[weights].tolist() == np.where(expected.bools, MODEL, 0)[weights].tolist()


@pytest.mark.parametrize(("least", "chosen"), [(3.79, 4), (3.81, 0)])
def test_a_candidate_needs_a_lead_of_a_twentieth_over_the_first(least: float, chosen: int) -> None:
    losses = (4.0, 3.9, 5.0, 4.0, least)
    seen = Observed(measures={f"loss_sum.{seed}": loss for seed, loss in enumerate(losses)})
    begun = {**STRATEGY.start(LAYOUT, MODEL), "statistics": np.ones(5 * 8)}
    assert STRATEGY.observe(Round(1, T), MODEL, seen, begun)[1]["chosen"] == chosen


def test_a_sparser_class_gets_the_very_mask_that_it_has_scored(scored: Played) -> None:
    state = scored.after[1]
    sparse = Mask.read(dict(scored.strategy.masks(state))[0.1], LAYOUT)
    counts = candidate_counts(LAYOUT, PRUNABLE, 0.1, int(np.asarray(state["chosen"])))
    assert sparse == largest(MODEL, LAYOUT, counts)


def test_the_pooled_statistics_are_those_of_the_pooled_data() -> None:
    rng = np.random.default_rng(8)
    data = [rng.normal(rng.uniform(-3, 3), rng.uniform(0.1, 2), (n, 4)) for n in (3, 40, 7, 150)]
    rule = FoldRule.for_round(6, 65536.0, default_bound=2.0**20)
    total = Total.zero(5 * 8, rule)
    for device, x in enumerate(data):
        moments = np.concatenate([x.mean(axis=0), (x * x).mean(axis=0)])
        values = np.tile(moments, 5).astype(np.float32).tobytes()
        update = Update(device, device, 0, 0, len(x), values, ((0, 40),))
        total = total.add(update, None, float(len(x)))
    state = STRATEGY.start(LAYOUT, MODEL)
    model, state = STRATEGY.observe(Round(0, T), MODEL, Observed(total), state)
    assert model is MODEL
    asked = STRATEGY.ask(Round(1, T), state)
    assert asked.statistics is not None
    sent = np.frombuffer(asked.statistics, np.float32).reshape(5, 2, 4)
    pooled = np.concatenate(data)
    np.testing.assert_allclose(sent[3], [pooled.mean(axis=0), (pooled**2).mean(axis=0)], rtol=1e-6)
    losses = Observed(measures={f"loss_sum.{seed}": abs(seed - 3.0) for seed in range(5)})
    model, state = STRATEGY.observe(Round(1, T), MODEL, losses, state)
    assert state["chosen"] == 3
    np.testing.assert_allclose(model[part(LAYOUT["bn.mean"])], pooled.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(model[part(LAYOUT["bn.var"])], pooled.var(axis=0), rtol=2e-6)


def test_a_variance_that_rounding_makes_negative_is_0() -> None:
    rows = np.tile([1.0] * 4 + [0.999] * 4, 5)
    begun = {**STRATEGY.start(LAYOUT, MODEL), "statistics": rows}
    losses = Observed(measures={f"loss_sum.{seed}": 1.0 for seed in range(5)})
    model, state = STRATEGY.observe(Round(1, T), MODEL, losses, begun)
    assert state["chosen"] == 0  # of equal losses the first
    assert model[part(LAYOUT["bn.var"])].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("fields", "tracked", "kinds"),
    [
        ({}, (), [SCORE, TRAIN]),
        ({"selection": "loss"}, FLEET.tracked, [SCORE, TRAIN]),
        ({"selection": "bn"}, FLEET.tracked, [CALIBRATE, SCORE]),
        ({"candidates": 1}, FLEET.tracked, [TRAIN, TRAIN]),
        ({"candidates": 0, "selection": "bn"}, (), [TRAIN, TRAIN]),
    ],
)
def test_selection_is_by_what_the_model_and_the_user_allow(
    fields: dict[str, object], tracked: tuple[str, ...], kinds: list[str]
) -> None:
    strategy = FedTiny(cohort=6, **fields).fitted(replace(FLEET, tracked=tracked))  # type: ignore[arg-type]
    assert [round.asked.kind for round in play(strategy, 2)] == kinds


def test_selection_by_statistics_needs_some() -> None:
    with pytest.raises(StrategyError, match=r"selection = 'bn' with 5 candidates.*add batch norm"):
        FedTiny(selection="bn").fitted(replace(FLEET, tracked=()))


def test_a_selection_round_that_failed_is_asked_again() -> None:
    state = STRATEGY.start(LAYOUT, MODEL)
    for t, kind in ((0, CALIBRATE), (1, CALIBRATE), (2, CALIBRATE)):
        round = OpenRound.of(STRATEGY, Round(t, T), LAYOUT, MODEL, state)
        assert round.instruction.kind == kind
        state = round.conclude([round.nothing], Measures(), failed=True).state


# ---- progressive pruning


def test_an_adjustment_asks_for_the_largest_gradients_of_one_batch() -> None:
    asked = adjustments()[0].asked
    assert (asked.kind, asked.returns, [layer for layer, _ in asked.grow]) == (
        TRAIN, GRADIENT, list(PRUNABLE),
    )  # fmt: skip
    (phase,) = asked.phases
    assert (phase.lr, phase.steps) == (0.0, 1)


def test_it_grows_the_largest_mean_gradients_and_prunes_the_smallest_weights() -> None:
    for round in adjustments():
        before, after = round.live
        gradient = np.abs(round.mean(list(np.nan_to_num(round.sent()))))
        sizes = np.abs(round.before[0])
        for layer, count in round.asked.grow:
            at = range(LAYOUT[layer].offset, LAYOUT[layer].offset + LAYOUT[layer].size)
            dead = sorted((i for i in at if not before[i]), key=lambda i: -gradient[i])
            live = sorted((i for i in at if before[i]), key=lambda i: sizes[i])
            assert {i for i in at if after[i] and not before[i]} == set(dead[:count])
            assert {i for i in at if before[i] and not after[i]} == set(live[:count])


def test_what_grows_starts_at_0_and_the_rest_of_the_model_stays() -> None:
    for round in adjustments():
        before, after = round.live
        model = round.after[0]
        assert not model[after & ~before].any()
        assert model[after & before].tolist() == round.before[0][after & before].tolist()


def test_only_coordinates_with_a_gradient_grow() -> None:
    state = NO_SELECTION.start(LAYOUT, MODEL)
    asked = NO_SELECTION.ask(Round(2, T), state)
    dead = np.flatnonzero(~NO_SELECTION.pool(state).bools)
    one = Update(0, 0, 2, 0, 4, np.array([3.0], np.float32).tobytes(), ((0, LAYOUT.size),),
                 places=dead[:1].astype(np.uint32).tobytes())  # fmt: skip
    total = Total.zero(LAYOUT.size, NO_SELECTION.fold_rule).add(one, None, 4.0)
    _, after = NO_SELECTION.finish(Round(2, T), MODEL, total, state)
    before, live = NO_SELECTION.pool(state).bools, NO_SELECTION.pool(after).bools
    assert sum(count for _, count in asked.grow) > 3
    assert np.flatnonzero(live & ~before).tolist() == [dead[0]]
    assert np.count_nonzero(live) == np.count_nonzero(before) == 62 + DENSE


def test_what_grows_starts_at_0_even_if_no_round_has_trained() -> None:
    state = NO_SELECTION.start(LAYOUT, MODEL)
    asked = NO_SELECTION.ask(Round(2, T), state)
    asked = replace(asked, masks=NO_SELECTION.masks(state))
    total = Total.zero(LAYOUT.size, NO_SELECTION.fold_rule)
    toy = PrunedToy(FLEET, 1)
    places = toy.largest_gradients(asked, MODEL, NO_SELECTION.pool(state).bools)
    sent = Update(0, 1, 2, 0, 4, np.ones(len(places), np.float32).tobytes(), ((0, LAYOUT.size),),
                  places=places.astype(np.uint32).tobytes())  # fmt: skip
    model, after = NO_SELECTION.finish(Round(2, T), MODEL, total.add(sent, None, 4.0), state)
    assert MODEL[places].all()  # a dense start
    assert NO_SELECTION.pool(after).bools[places].all()
    assert not model[places].any()


def test_places_that_live_in_the_pool_already_do_not_grow_again() -> None:
    # Devices of the sparser class report dead coordinates of their own that others hold.
    reported = 0
    for round in adjustments():
        before, after = round.live
        rows = round.sent()
        reported += int(np.count_nonzero(~np.isnan(rows) & before))
        assert np.count_nonzero(after) == np.count_nonzero(before)
    assert reported > 0
