"""SAP against a few plain lines of its paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.errors import StrategyError
from fedtiny.strategies.pruned import part
from fedtiny.strategies.sap import SAP
from tests.harness.pruned_toys import FLEET, LAYOUT, PRUNABLE, play

weights = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40)


@given(weights, st.floats(0, 0.5), st.floats(0.5, 1.5))
def test_it_keeps_what_the_paper_says(w: list[float], eta: float, gamma: float) -> None:
    p, q, d = 0.5, 1.0, len(w)
    size = np.abs(w)
    if not size.any():
        return
    norms = [(size**r).sum() ** (1 / r) for r in (p, q)]
    index = 1 - d ** (1 / q - 1 / p) * norms[0] / norms[1]
    m = math.ceil(d * (1 + eta) ** (q / (p - q)) * (1 - index) ** (p * q / (q - p)) - 1e-9)
    kept = d - math.floor(d * np.clip(gamma * (1 - m / d), 0, 0.9))
    assert (
        abs(SAP(eta=eta, gamma=gamma).kept(np.array(w, np.float32)) - kept) <= 1
    )  # the last bit may tip a rounding


def test_alike_weights_all_stay_and_few_large_ones_do_not_keep_the_others() -> None:
    assert SAP().kept(np.full(50, 0.25, np.float32)) == 50
    # d = 101: roots sum to 1 + 100 * 0.1, weights to 1 + 100 * 0.01; m = ceil(121 / 2) = 61
    assert SAP().kept(np.array([1.0] + [0.01] * 100, np.float32)) == 61


def test_the_pool_only_falls_and_stops_by_itself() -> None:
    rounds = list(play(SAP(cohort=6, beta=0.2, every=1).fitted(FLEET), 30))
    live = [round.live for round in rounds]
    assert all(not (after & ~before).any() for before, after in live)
    counts = [int(np.count_nonzero(after)) for _, after in live]
    assert counts[0] < np.count_nonzero(live[0][0])
    assert counts[-1] == counts[-5]
    assert counts[-1] > LAYOUT.size - 208 + 10


def test_the_smallest_of_the_averaged_weights_go_every_few_rounds() -> None:
    strategy, gone = SAP(cohort=6, beta=0.1, every=2).fitted(FLEET), 0
    for round in play(strategy, 8):
        before, after = round.live
        averaged = round.averaged().astype(np.float32)
        for own in (part(LAYOUT[layer]) for layer in PRUNABLE):
            live = [i for i in range(own.start, own.stop) if before[i]]
            order = sorted(live, key=lambda i: -abs(averaged[i]))
            kept = strategy.kept(averaged[live]) if round.t % 2 else len(live)
            assert [i for i in live if after[i]] == sorted(order[:kept])
            gone += len(live) - kept
    assert gone > 8


@pytest.mark.parametrize("field", [{"every": 0}, {"eta": -0.1}, {"gamma": 0.0}, {"most": 1.0}])
def test_a_field_out_of_range_is_named(field: dict[str, float]) -> None:
    with pytest.raises(StrategyError, match=f"SAP: {next(iter(field))} = "):
        SAP(**field)  # type: ignore[arg-type]
