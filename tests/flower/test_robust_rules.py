"""Flower's robust rules and ours come to the same model from the same updates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedtiny.strategies.base import FleetFacts, Round
from fedtiny.strategies.table import build
from fedtiny.values import Update
from tests.harness.toys import INITIAL, LAYOUT, WHOLE

if TYPE_CHECKING:
    from tests.flower.conftest import Make

N = 9
SAMPLES = 10
"""Of every device alike: Flower's MultiKrum weighs those that it keeps by them, ours does not."""


def updates() -> list[Update]:
    """Seven that have trained much the same, and two liars."""
    drawn = np.random.default_rng(4).normal(1.0, 0.3, (N, LAYOUT.size))
    drawn[[1, 6]] *= -20
    values = (INITIAL + drawn).astype(np.float32)
    measures = {"loss_sum": 1.0, "steps": 1.0}
    return [
        Update(d, d, 0, 0, SAMPLES, row.tobytes(), WHOLE, measures) for d, row in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("theirs", "arguments", "ours"),
    [
        ("FedMedian", {}, {"name": "median"}),
        ("FedTrimmedAvg", {"beta": 0.25}, {"name": "trimmed-mean", "share": 0.25}),
        ("Krum", {"num_malicious_nodes": 2}, {"name": "krum", "byzantine": 2}),
        (
            "MultiKrum",
            {"num_malicious_nodes": 2, "num_nodes_to_select": 5},
            {"name": "multikrum", "byzantine": 2, "kept": 5},
        ),
    ],
)
def test_a_rule_of_ours_agrees_with_that_of_flower(
    make: Make, theirs: str, arguments: dict[str, Any], ours: dict[str, Any]
) -> None:
    models = []
    for strategy in (make(theirs, arguments, cohort=N), build({**ours, "cohort": N})):
        fitted = strategy.fitted(FleetFacts(layout=LAYOUT, devices=N, training=N))
        state = fitted.start(LAYOUT, INITIAL)
        model, _ = fitted.finish(Round(0, 3), INITIAL, updates(), state)
        models.append(model)
    np.testing.assert_allclose(models[0], models[1], rtol=0, atol=1e-6)
