"""Per-FedAvg against a few plain lines of its paper."""

from __future__ import annotations

import numpy as np
import pytest

from fedtiny.errors import StrategyError
from fedtiny.strategies.perfedavg import PerFedAvg
from fedtiny.values import Instruction, Phase
from tests.harness.two_layers import DEVICES, gradient, initial, run, visit


def test_per_fedavg_steps_by_the_gradients_one_step_ahead() -> None:
    models, _, _ = run(PerFedAvg(beta=0.05, alpha=0.1, steps=3), rounds=3)
    x = initial().astype(float)
    for model in models:
        adapted = []
        for device in range(DEVICES):
            w = x.copy()
            for _ in range(3):  # a device has one batch: both of a step are that
                w -= 0.05 * gradient(w - 0.1 * gradient(w, device), device)
            adapted.append(w)
        x = np.mean(adapted, axis=0)
        np.testing.assert_allclose(model, x, rtol=1e-5, atol=1e-6)


def test_a_step_that_looks_ahead_uses_up_two_batches() -> None:
    one = Instruction(phases=(Phase(0.05, ahead=0.1),))
    assert one.used({"support": 16}, batch=4) == (2, 16)
    assert one.used({"support": 17}, batch=4) == (3, 17)
    update, _ = visit(one, initial(), 0, {})
    assert update.measures["steps"] == 1
    assert update.samples == 4


def test_momentum_is_refused_where_each_step_begins_at_rest() -> None:
    with pytest.raises(StrategyError, match=r"momentum = 0.9; it must be 0"):
        PerFedAvg(momentum=0.9)
