"""FedRTS against a few plain lines of its paper, and its draws against the distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedtiny.errors import StrategyError
from fedtiny.rng import Purpose, words
from fedtiny.strategies.fedrts import FedRTS, log_gamma
from fedtiny.strategies.pruned import part
from fedtiny.values import VOTES
from tests.harness.pruned_toys import FLEET, LAYOUT, MODEL, PRUNABLE, Played, play

STRATEGY = FedRTS(cohort=6, beta=0.1, every=2, stop=12, gamma=0.3, lam=7.0).fitted(FLEET)


def adjustments() -> list[Played]:
    return [round for round in play(STRATEGY, 14) if round.asked.grow]


def by_layer(column: object) -> dict[str, list[float]]:
    """A column over all prunable weights, layer by layer."""
    ends = np.cumsum([LAYOUT[layer].size for layer in PRUNABLE])
    parts = np.split(np.asarray(column), ends[:-1])
    return {layer: list(values) for layer, values in zip(PRUNABLE, parts, strict=True)}


def test_the_first_belief_is_the_density_of_the_layer() -> None:
    state = STRATEGY.start(LAYOUT, MODEL)
    for layer, a in by_layer(state["a"]).items():
        density = np.count_nonzero(STRATEGY.pool(state).bools[part(LAYOUT[layer])]) / len(a)
        assert a == [density] * len(a)
    assert np.asarray(state["times"]).tolist() == [0, 0, 0]


def test_devices_send_only_places() -> None:
    for round in adjustments():
        assert round.asked.returns == VOTES
        for update in round.updates:
            assert set(np.frombuffer(bytes(update.values), np.float32)) == {1.0}


def test_beliefs_add_up_the_outcomes_of_kept_weights_and_of_votes() -> None:
    for number, round in enumerate(adjustments()):
        state, after = round.before[1], round.after[1]
        votes = round.mean(list(np.nan_to_num(round.sent())))  # shares of the weight
        sizes, live = np.abs(round.before[0]), round.live[0]
        exchanged, learned = dict(round.asked.grow), by_layer(after["a"])
        for layer, before in by_layer(state["a"]).items():
            at = range(LAYOUT[layer].offset, LAYOUT[layer].offset + LAYOUT[layer].size)
            mine = sorted((i for i in at if live[i]), key=lambda i: -sizes[i])
            kept = set(mine[: len(mine) - exchanged[layer]])
            X = [float(i in kept) if live[i] else (1 - 0.3) * votes[i] for i in at]
            wanted = np.array(before) + 7.0 * np.array(X)
            np.testing.assert_allclose(learned[layer], wanted, rtol=1e-6)
        assert np.asarray(after["times"]).tolist() == [number + 1] * 3


def test_the_mask_is_the_top_of_the_draws() -> None:
    for round in adjustments():
        state, live = round.after[1], round.live[1]
        for index, (layer, a) in enumerate(by_layer(state["a"]).items()):
            at = np.arange(LAYOUT[layer].offset, LAYOUT[layer].offset + LAYOUT[layer].size)
            b = 1 + 7.0 * np.asarray(state["times"])[index] - np.array(a)
            odds = log_gamma(5, round.t, 2 * at, np.array(a)) - log_gamma(5, round.t, 2 * at + 1, b)
            count = np.count_nonzero(round.live[0][at])
            assert set(np.flatnonzero(live[at])) == set(np.argsort(-odds)[:count])


def test_weights_that_stay_large_stay_and_votes_decide_who_joins() -> None:
    joined, voted, kept, large = 0, 0, 0, 0
    for round in adjustments():
        before, after = round.live
        votes = np.nan_to_num(round.sent()).sum(axis=0) > 0
        joined += int(np.count_nonzero(after & ~before))
        voted += int(np.count_nonzero(after & ~before & votes))
        sizes = np.where(before, np.abs(round.before[0]), 0)
        top = sizes >= np.sort(sizes)[-30]
        kept, large = kept + int(np.count_nonzero(top & after)), large + int(np.count_nonzero(top))
    assert joined > 20
    assert voted >= 0.9 * joined
    assert kept >= 0.9 * large


@pytest.mark.parametrize("shape", [0.03, 0.5, 1.0, 4.0, 60.0])
def test_the_draws_are_of_the_gamma_distribution(shape: float) -> None:
    n = 40_000
    logs = log_gamma(1, 2, np.arange(n), np.full(n, shape))
    # E G = Var G = shape; E log G = digamma(shape), here as a difference of log Gamma
    digamma = (math.lgamma(shape + 1e-5) - math.lgamma(shape - 1e-5)) / 2e-5
    assert np.exp(logs).mean() == pytest.approx(shape, abs=5 * math.sqrt(shape / n))
    assert np.exp(logs).var() == pytest.approx(shape, rel=0.05 + 0.3 / math.sqrt(shape * 100))
    assert logs.mean() == pytest.approx(digamma, abs=5 * logs.std() / math.sqrt(n))


def test_a_draw_depends_on_its_stream_alone() -> None:
    shapes = np.linspace(0.01, 30, 64)
    together = log_gamma(9, 4, np.arange(64), shapes)
    alone = [log_gamma(9, 4, np.array([i]), shapes[[i]])[0] for i in range(64)]
    assert together.tolist() == alone
    assert (together != log_gamma(9, 5, np.arange(64), shapes)).all()


def test_a_draw_is_that_of_marsaglia_and_tsang() -> None:
    for stream in range(50):
        drawn = log_gamma(9, 4, np.array([stream]), np.array([0.4]))[0]
        found = words(9, 4, stream, Purpose.MASK, 40)
        for at in range(0, 40, 4):
            u1, u2, u, power = (((word >> 8) + 1) / 2**24 for word in found[at : at + 4])
            x = math.sqrt(-2 * math.log(u1)) * math.cos(2 * math.pi * (u2 - 2**-24))
            d = 1.4 - 1 / 3
            v = (1 + x / math.sqrt(9 * d)) ** 3
            if v > 0 and math.log(u) < x * x / 2 + d - d * v + d * math.log(v):
                break
        assert drawn == pytest.approx(math.log(d * v) + math.log(power) / 0.4, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("field", [{"lam": 0.0}, {"gamma": 1.0}, {"gamma": -0.1}])
def test_a_field_out_of_range_is_named(field: dict[str, float]) -> None:
    with pytest.raises(StrategyError, match=f"FedRTS: {next(iter(field))} = "):
        FedRTS(**field)  # type: ignore[arg-type]
