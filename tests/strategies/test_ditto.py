"""Ditto against a few plain lines of its paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedtiny.strategies.ditto import Ditto
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.values import EVALUATE, OWN_MODEL, Instruction
from tests.harness.two_layers import DEVICES, gradient, initial, run, samples, visit

BETA, MU, K, ROUNDS = 0.05, 0.3, 4, 5
STRATEGY = Ditto(cohort=2, beta=BETA, mu=MU, steps=K)


def two_of_three(t: int) -> Sequence[int]:
    return (t % DEVICES, (t + 1) % DEVICES)


def test_ditto_is_fedavg_with_a_model_of_its_own_on_each_device() -> None:
    models, _, kept = run(STRATEGY, ROUNDS, two_of_three)
    fedavg, _, _ = run(FedAvg(cohort=2, beta=BETA, steps=K), ROUNDS, two_of_three)
    np.testing.assert_array_equal(models, fedavg)
    own: dict[int, np.ndarray] = {}
    for t in range(ROUNDS):
        w = initial() if t == 0 else models[t - 1]
        for k in two_of_three(t):
            v = own.get(k, w.astype(float)).copy()
            for _ in range(K):
                v -= BETA * (gradient(v, k) + MU * (v - w))
            own[k] = v
    for k, v in own.items():
        np.testing.assert_allclose(
            np.frombuffer(kept[k][OWN_MODEL], np.float32), v, rtol=2e-5, atol=2e-6
        )


def test_a_device_is_judged_with_its_own_model() -> None:
    models, _, kept = run(STRATEGY, ROUNDS, two_of_three)
    x, y = (of.astype(float) for of in samples(0, "query"))
    v = np.frombuffer(kept[0][OWN_MODEL], np.float32).astype(float)
    loss = np.sum(((x @ v[:6].reshape(3, 2)) @ v[6:] - y[:, 0]) ** 2)
    judged, left = visit(Instruction(EVALUATE), models[-1], 0, kept[0])
    assert judged.measures["loss_sum_after"] == np.float32(judged.measures["loss_sum_before"])
    np.testing.assert_allclose(judged.measures["loss_sum_after"], loss, rtol=1e-5)
    assert left == kept[0]
