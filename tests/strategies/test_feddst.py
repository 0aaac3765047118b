"""FedDST against a few plain lines of its paper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedtiny.fold import Total
from fedtiny.masks import Mask
from fedtiny.pruning import erk_counts
from fedtiny.strategies.base import Round
from fedtiny.strategies.feddst import FedDST
from fedtiny.strategies.pruned import part
from fedtiny.values import VALUES, Update
from tests.harness.pruned_toys import FLEET, LAYOUT, MODEL, PRUNABLE, play

STRATEGY = FedDST(cohort=6, beta=0.1, every=2, stop=12).fitted(FLEET)


def test_the_first_mask_is_drawn_by_the_seed_of_the_run_with_erk_counts() -> None:
    state = STRATEGY.start(LAYOUT, MODEL)
    drawn = Mask.draw(LAYOUT, erk_counts(LAYOUT, PRUNABLE, 0.3), 5)
    assert STRATEGY.pool(state) == drawn
    assert dict(STRATEGY.masks(state))[0.3] == drawn.blob
    other = replace(STRATEGY, fleet=replace(FLEET, seed=6))
    assert other.pool(other.start(LAYOUT, MODEL)) != drawn


def test_a_readjusting_device_trains_on_both_sides_and_returns_values() -> None:
    rounds = list(play(STRATEGY, 6))
    assert [len(round.asked.phases) for round in rounds] == [1, 1, 2, 1, 2, 1]
    asked = rounds[2].asked
    assert asked.returns == VALUES
    assert [layer for layer, _ in asked.grow] == list(PRUNABLE)
    assert asked.phases[0] == asked.phases[1] == rounds[0].asked.phases[0]


def test_the_server_takes_the_sparse_mean_and_prunes_it_to_the_counts() -> None:
    adjusted = [round for round in play(STRATEGY, 13) if round.asked.grow]
    assert len(adjusted) == 6
    moved = 0
    for round in adjusted:
        before, after = round.live
        dense = np.nan_to_num(round.averaged())
        for own in (part(LAYOUT[layer]) for layer in PRUNABLE):
            count = np.count_nonzero(before[own])
            kept = np.sort(np.abs(dense[own]))[-count:]
            np.testing.assert_allclose(
                np.sort(np.abs(round.after[0][own]))[-count:], kept, rtol=1e-5
            )
        np.testing.assert_allclose(round.after[0][after], dense[after], rtol=2e-6, atol=1e-7)
        moved += int(np.count_nonzero(after & ~before))
    assert moved > 0


def test_a_live_coordinate_that_nobody_sent_is_kept_only_where_places_are_left() -> None:
    state = STRATEGY.start(LAYOUT, MODEL)
    pool = STRATEGY.pool(state).bools
    own = part(LAYOUT["head.weight"])
    live, dead = (own.start + np.flatnonzero(found) for found in (pool[own], ~pool[own]))
    sent = pool.copy()
    sent[live[:3]], sent[dead[:2]] = False, True  # three were pruned, two have grown
    mask = Mask.of(sent)
    values = np.full(mask.count, 0.5, np.float32)
    update = Update(0, 0, 2, 0, 1, values.tobytes(), ((0, LAYOUT.size),), mask=mask)
    total = Total.zero(LAYOUT.size, STRATEGY.fold_rule).add(update, MODEL, 1.0)
    model, after = STRATEGY.finish(Round(2, 13), MODEL, total, state)
    expected = sent.copy()
    expected[live[0]] = True  # one place is left: the first of the three
    assert STRATEGY.pool(after).bools.tolist() == expected.tolist()
    assert model[live[0]] == MODEL[live[0]]
