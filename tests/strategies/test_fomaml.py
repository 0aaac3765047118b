"""First-order MAML and ANIL against a few plain lines of their papers."""

from __future__ import annotations

import numpy as np
import pytest

from fedtiny.errors import StrategyError
from fedtiny.strategies.anil import ANIL
from fedtiny.strategies.base import Round
from fedtiny.strategies.fomaml import FOMAML
from fedtiny.values import QUERY, SUPPORT
from tests.harness.two_layers import BODY, DEVICES, gradient, initial, run

ROUNDS = 3


def test_fomaml_steps_against_the_mean_gradient_at_the_adapted_points() -> None:
    models, _, _ = run(FOMAML(cohort=3, beta=0.05, steps=4, alpha=0.5, anneal="none"), ROUNDS)
    phi = initial().astype(float)
    for model in models:
        gradients = []
        for device in range(DEVICES):
            theta = phi.copy()
            for _ in range(4):
                theta -= 0.05 * gradient(theta, device, SUPPORT)
            gradients.append(gradient(theta, device, QUERY))
        phi -= 0.5 * np.mean(gradients, axis=0)
        np.testing.assert_allclose(model, phi, rtol=1e-5, atol=1e-6)


def test_anil_adapts_the_head_alone_and_moves_everything() -> None:
    models, _, _ = run(ANIL(cohort=3, beta=0.05, steps=4, alpha=0.5, anneal="none"), ROUNDS)
    phi = initial().astype(float)
    for model in models:
        gradients = []
        for device in range(DEVICES):
            theta = phi.copy()
            for _ in range(4):
                g = gradient(theta, device, SUPPORT)
                g[BODY] = 0.0
                theta -= 0.05 * g
            gradients.append(gradient(theta, device, QUERY))
        phi -= 0.5 * np.mean(gradients, axis=0)
        np.testing.assert_allclose(model, phi, rtol=1e-5, atol=1e-6)
    assert (models[-1][BODY] != initial()[BODY]).all()


def test_the_outer_step_falls_over_the_run() -> None:
    strategy = FOMAML(alpha=0.5)
    lrs = [strategy.server(Round(t, 4)).lr for t in range(4)]  # type: ignore[attr-defined]
    assert lrs == [-0.5, -0.375, -0.25, -0.125]


def test_anil_of_a_model_without_such_a_group_is_refused() -> None:
    from fedtiny.strategies import calls
    from tests.harness.two_layers import layout

    with pytest.raises(StrategyError, match=r"groups = \('tail',\); the model has shared, head"):
        calls.ask(ANIL(head="tail"), Round(0, 4), {}, layout())
