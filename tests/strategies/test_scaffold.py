"""SCAFFOLD against a few plain lines of its paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from fedtiny.errors import StrategyError
from fedtiny.strategies.base import Round
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.scaffold import Scaffold
from fedtiny.values import CONTROL
from tests.harness.two_layers import DEVICES, HEAD, gradient, initial, layout, run

K, BETA, ETA, ROUNDS = 5, 0.04, 0.8, 6
STRATEGY = Scaffold(cohort=2, beta=BETA, steps=K, server_lr=ETA)


def two_of_three(t: int) -> Sequence[int]:
    return (t % DEVICES, (t + 1) % DEVICES)


def test_scaffold_is_its_algorithm_1_with_option_2() -> None:
    models, state, kept = run(STRATEGY, ROUNDS, two_of_three)
    x, c, c_i = initial().astype(float), np.zeros(HEAD.stop), np.zeros((DEVICES, HEAD.stop))
    for t in range(ROUNDS):
        dx, dc = [], []
        for i in two_of_three(t):
            y = x.copy()
            for _ in range(K):
                y -= BETA * (gradient(y, i) - c_i[i] + c)
            change = -c + (x - y) / (K * BETA)
            c_i[i] += change
            dx.append(y - x)
            dc.append(change)
        x = x + ETA * np.mean(dx, axis=0)
        c = c + len(dc) / DEVICES * np.mean(dc, axis=0)
        np.testing.assert_allclose(models[t], x, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(state["c"], c, rtol=1e-4, atol=1e-5)
    for i in range(DEVICES):
        own = np.frombuffer(kept[i][CONTROL], np.float32)
        np.testing.assert_allclose(own, c_i[i], rtol=1e-4, atol=1e-5)


def test_the_servers_control_variate_is_the_mean_of_the_devices() -> None:
    _, state, kept = run(STRATEGY, ROUNDS, two_of_three)
    own = [np.frombuffer(kept[i][CONTROL], np.float32) for i in range(DEVICES)]
    np.testing.assert_allclose(state["c"], np.mean(own, axis=0), atol=1e-5)


def test_scaffold_comes_to_rest_where_fedavg_drifts() -> None:
    """On tasks that pull apart: at the optimum of the mean loss, to which K steps do not lead."""

    def drift(strategy: FedAvg | Scaffold) -> float:
        model = run(strategy, 300)[0][-1].astype(float)
        return float(np.linalg.norm(np.mean([gradient(model, i) for i in range(DEVICES)], axis=0)))

    fedavg = drift(FedAvg(cohort=3, beta=BETA, steps=K))
    scaffold = drift(Scaffold(cohort=3, beta=BETA, steps=K))
    assert scaffold < 0.05 * fedavg


def test_devices_are_told_the_correction_and_to_keep_their_own() -> None:
    asked = STRATEGY.ask(Round(0, 5), STRATEGY.start(layout(), initial()))
    assert asked.correction == bytes(4 * HEAD.stop)
    assert asked.control
    assert all(phase.corrected for phase in asked.phases)


@pytest.mark.parametrize(
    ("fields", "match"),
    [({"steps": 0}, "steps = 0; it must be at least 1"),
     ({"momentum": 0.5}, "momentum = 0.5; it must be 0"),
     ({"server_lr": 0.0}, "server_lr = 0.0; it must be a positive")],
)  # fmt: skip
def test_what_would_make_the_variates_wrong_is_refused(
    fields: dict[str, float], match: str
) -> None:
    with pytest.raises(StrategyError, match=match):
        Scaffold(**fields)  # type: ignore[arg-type]
