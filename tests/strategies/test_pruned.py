"""What all strategies that prune keep, and the baseline that does nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.errors import ExperimentError, StrategyError
from fedtiny.masks import Mask
from fedtiny.pruning import erk_counts, pq_index
from fedtiny.strategies.base import Round, ServerSgd
from fedtiny.strategies.feddst import FedDST
from fedtiny.strategies.fedrts import FedRTS
from fedtiny.strategies.fedtiny import FedTiny
from fedtiny.strategies.oneshot import OneShot
from fedtiny.strategies.pruned import Adjusting, Pruned, part
from fedtiny.strategies.sap import SAP
from tests.harness.pruned_toys import (
    DENSE,
    FLEET,
    LAYOUT,
    MODEL,
    PRUNABLE,
    WEIGHTS,
    Played,
    play,
)

ALL: tuple[Pruned, ...] = (
    OneShot(cohort=6, beta=0.1),
    FedTiny(cohort=6, beta=0.1, every=3, stop=12),
    FedTiny(cohort=6, beta=0.1, every=2, stop=12, blocks="all", candidates=0),
    FedRTS(cohort=6, beta=0.1, every=3, stop=12),
    FedDST(cohort=6, beta=0.1, every=3, stop=12),
    SAP(cohort=6, beta=0.1, every=2),
)
ADJUSTING = [strategy for strategy in ALL if isinstance(strategy, Adjusting)]


def name(strategy: Pruned) -> str:
    return f"{type(strategy).__name__} {getattr(strategy, 'blocks', '')}".strip()


@pytest.fixture(params=ALL, ids=name)
def played(request: pytest.FixtureRequest) -> list[Played]:
    return list(play(request.param.fitted(FLEET), 14))


def layer_counts(mask: Mask) -> list[int]:
    return [int(np.count_nonzero(mask.bools[part(LAYOUT[layer])])) for layer in PRUNABLE]


# ---- masks


def test_masks_are_nested_by_density_and_keep_the_budget_of_each_class(
    played: list[Played],
) -> None:
    for round in played:
        masks = round.strategy.masks(round.after[1])
        sparse, pool = (Mask.read(blob, LAYOUT) for _, blob in masks)
        assert [density for density, _ in masks] == [0.1, 0.3]
        assert not (sparse.bools & ~pool.bools).any()
        # floor(0.1 * 208) = 20 and floor(0.3 * 208) = 62; what is not prunable always lives
        assert sparse.count - DENSE <= 20
        assert pool.count - DENSE <= 62
        assert all(min(layer_counts(mask)) >= 1 for mask in (sparse, pool))


def test_a_sparser_class_holds_the_largest_weights_of_the_pool(played: list[Played]) -> None:
    for round in played:
        model, state = round.after
        if state["moved"] == round.t > 0:
            sparse, pool = (
                Mask.read(blob, LAYOUT).bools for _, blob in round.strategy.masks(state)
            )
            for own in (part(LAYOUT[layer]) for layer in PRUNABLE):
                sizes = np.abs(model[own])
                left_out = pool[own] & ~sparse[own]
                assert sizes[left_out].max(initial=0) <= sizes[sparse[own]].min()


def test_masks_change_only_in_rounds_in_which_the_pool_moves(played: list[Played]) -> None:
    for round in played:
        before, after = (round.strategy.masks(state) for _, state in (round.before, round.after))
        if round.after[1]["moved"] != round.t:
            assert before == after


def test_dead_coordinates_of_the_model_are_exactly_0(played: list[Played]) -> None:
    trained = [round for round in played if round.after[0] is not MODEL]
    assert len(trained) >= 12
    for round in trained:
        model, state = round.after
        assert not model[~round.strategy.pool(state).bools].any()


@pytest.mark.parametrize("strategy", ADJUSTING, ids=name)
def test_an_adjustment_leaves_the_count_of_every_layer(strategy: Adjusting) -> None:
    adjusted = [round for round in play(strategy.fitted(FLEET), 14) if round.asked.grow]
    assert len(adjusted) >= 4
    for round in adjusted:
        pools = (round.strategy.pool(state) for _, state in (round.before, round.after))
        before, after = map(layer_counts, pools)
        assert before == after


def test_a_coordinate_is_averaged_over_the_devices_whose_mask_has_it() -> None:
    for round in play(OneShot(cohort=6, beta=0.1).fitted(FLEET), 2):
        live = round.live[0]
        np.testing.assert_allclose(round.after[0][live], round.averaged()[live], rtol=2e-6)
        devices = np.count_nonzero(~np.isnan(round.sent()), axis=0)
        assert np.bincount(devices).tolist()[3:] == [62 - 20, 0, 0, 20 + DENSE]


def test_the_servers_optimiser_keeps_its_state_beside_the_masks() -> None:
    class Heavy(OneShot):
        def server(self, round: Round) -> ServerSgd:
            return ServerSgd(1.0, 0.9)

    *_, last = play(Heavy(cohort=6, beta=0.1).fitted(FLEET), 3)
    assert {"v", "mask.0.1", "mask.0.3", "moved"} == set(last.after[1])
    assert not last.after[0][~last.live[1]].any()


def test_one_shot_keeps_the_largest_weights_of_the_initial_model() -> None:
    *_, last = play(OneShot(cohort=6, beta=0.1).fitted(FLEET), 3)
    counts = erk_counts(LAYOUT, PRUNABLE, 0.3)
    assert sum(counts.values()) == math.floor(0.3 * WEIGHTS)
    for layer, count in counts.items():
        own = part(LAYOUT[layer])
        order = np.argsort(-np.abs(MODEL[own]), kind="stable")
        assert np.flatnonzero(last.live[1][own]).tolist() == sorted(order[:count])


# ---- the schedule


def test_the_share_falls_by_half_a_cosine_over_the_live_weights() -> None:
    strategy = FedRTS(alpha=0.4, every=5, stop=20).fitted(FLEET)
    state = strategy.start(LAYOUT, MODEL)
    live = layer_counts(strategy.pool(state))
    assert live == [16, 28, 18]  # ERK: 62 in proportion 12 : 20 : 13
    for t in (5, 10, 15, 20):
        share = 0.4 / 2 * (1 + math.cos(math.pi * t / 20))
        wanted = [max(1, math.floor(share * n + 0.5)) for n in live]
        assert list(strategy.scheduled(Round(t, 50), state).values()) == wanted
    assert all(not strategy.scheduled(Round(t, 50), state) for t in (0, 1, 4, 6, 19, 21, 25))


def test_adjustments_stop_at_half_of_the_run_unless_told_otherwise() -> None:
    strategy = FedRTS(every=5).fitted(FLEET)
    state = strategy.start(LAYOUT, MODEL)
    assert [t for t in range(41) if strategy.scheduled(Round(t, 40), state)] == [5, 10, 15, 20]


def test_layers_take_turns_from_the_last_to_the_first() -> None:
    rounds = play(FedTiny(cohort=6, every=2, stop=12, candidates=0).fitted(FLEET), 13)
    turns = [layer for round in rounds for layer, _ in round.asked.grow]
    assert turns == [*reversed(PRUNABLE)] * 2


def test_a_dense_layer_has_no_turn() -> None:
    # ERK of 75 %: of 156 the head would get 13 / 45, more than its 40
    strategy = FedTiny(every=2, stop=8, candidates=0).fitted(replace(FLEET, densities=(0.75,)))
    state = strategy.start(LAYOUT, MODEL)
    turns = [next(iter(strategy.scheduled(Round(t, 20), state))) for t in (2, 4, 6, 8)]
    assert turns == ["hidden.weight", "conv.weight"] * 2


@pytest.mark.parametrize("strategy", ADJUSTING, ids=name)
def test_no_growth_returns_more_places_than_the_bucket_holds(strategy: Adjusting) -> None:
    fitted = strategy.fitted(FLEET)
    sizes = [sum(k for _, k in round.asked.grow) for round in play(fitted, 14)]
    bucket = fitted.bucket(LAYOUT)
    assert 0 < max(sizes) <= bucket
    assert all(
        update.places is None or len(update.places) <= 4 * bucket
        for round in play(fitted, 14)
        for update in round.updates
    )


def test_the_bucket_is_the_largest_share_of_a_layer_or_of_all() -> None:
    # live at first: 16, 28 and 18 by ERK; the noise of candidate 4 gives a layer 36
    assert FedTiny(alpha=0.2, candidates=1).fitted(FLEET).bucket(LAYOUT) == 6
    assert FedTiny(alpha=0.2, candidates=5).fitted(FLEET).bucket(LAYOUT) == 7
    assert FedRTS(alpha=0.4).fitted(FLEET).bucket(LAYOUT) == 6 + 11 + 7
    assert OneShot().fitted(FLEET).bucket(LAYOUT) == 0


# ---- what is told


def test_density_and_pq_index_are_told_when_the_pool_moves_and_every_tenth_of_a_run(
    played: list[Played],
) -> None:
    for round in played:
        model, state = round.after
        told = round.strategy.telemetry(Round(round.t, 140), model, state)
        assert bool(told) == (state["moved"] == round.t or round.t == 13)
        live = round.live[1][part(LAYOUT["head.weight"])]
        weights = model[part(LAYOUT["head.weight"])][live]
        if told:
            assert told["density.head"] == len(weights) / 40
            assert told["pq.head"] == pq_index(weights.tolist())
            assert len(told) == 2 * len(PRUNABLE)


@pytest.mark.parametrize(
    ("T", "rounds"), [(1, [0]), (3, [0, 1, 2]), (25, [0, 2, 4, 7, 9, 12, 14, 17, 19, 22, 24])]
)
def test_a_mask_that_never_moves_is_told_of_at_the_start_and_ten_times(
    T: int, rounds: list[int]
) -> None:
    strategy = OneShot().fitted(FLEET)
    state = strategy.start(LAYOUT, MODEL)
    assert [t for t in range(T) if strategy.telemetry(Round(t, T), MODEL, state)] == rounds


# ---- what cannot be


def test_a_fleet_with_nothing_to_prune_is_refused_with_the_remedy() -> None:
    with pytest.raises(StrategyError, match=r"FedTiny: the model has nothing to prune"):
        FedTiny().fitted(replace(FLEET, prunable=()))
    with pytest.raises(StrategyError, match=r"OneShot: a device has density 1.*set density below"):
        OneShot().fitted(replace(FLEET, densities=(0.1, 1.0)))
    with pytest.raises(StrategyError, match=r"SAP knows no Programs; call fitted"):
        SAP().start(LAYOUT, MODEL)


def test_a_density_that_empties_a_layer_of_any_class_or_candidate_is_refused() -> None:
    thin = replace(FLEET, densities=(0.01, 0.3))
    with pytest.raises(ExperimentError, match=r"density = 0.01 leaves none of the .* weights of"):
        OneShot().fitted(thin).start(LAYOUT, MODEL)
    fleet = replace(FLEET, densities=(0.015, 0.3))  # 3 weights for 3 layers
    FedTiny(candidates=4).fitted(fleet).start(LAYOUT, MODEL)
    with pytest.raises(ExperimentError, match=r"leaves none of the 72 weights of conv.*candidates"):
        FedTiny(candidates=5).fitted(fleet).start(LAYOUT, MODEL)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"alpha": 0.0}, "alpha = 0.0; it must be a share"),
        ({"every": 1}, "every = 1; it must be at least 2"),
        ({"stop": -1}, "stop = -1; it must be 0"),
        ({"blocks": "forward"}, "blocks = 'forward'; it must be one of backward, all"),
        ({"candidates": -1}, "candidates = -1"),
        ({"selection": "loos"}, "selection = 'loos'; it must be one of auto, bn, loss"),
    ],
)
def test_a_field_out_of_range_is_named(fields: dict[str, object], match: str) -> None:
    with pytest.raises(StrategyError, match=match):
        FedTiny(**fields)  # type: ignore[arg-type]


@settings(max_examples=25)
@given(st.floats(0.05, 0.9), st.floats(0.05, 0.9), st.integers(0, 9))
def test_any_two_classes_of_any_candidate_are_nested(one: float, other: float, seed: int) -> None:
    low, high = sorted((one, other))
    densities = (low, high) if low < high else (low,)
    strategy = FedTiny(candidates=0).fitted(replace(FLEET, densities=densities))
    pool = Mask.draw(LAYOUT, strategy.counts(high, {"chosen": seed}), seed)
    state = strategy.masked(pool, MODEL, {"chosen": float(seed)}, 0)
    bools = [Mask.read(blob, LAYOUT).bools for _, blob in strategy.masks(state)]
    assert not (bools[0] & ~bools[-1]).any()
    assert np.count_nonzero(bools[0]) - DENSE <= math.floor(low * WEIGHTS)
