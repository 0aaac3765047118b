"""What devices leave out of their deltas costs little accuracy: a whole run beside another."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedtiny import Experiment, simulate

EXPERIMENT = Path(__file__).parents[2] / "simulations" / "digits_transforms.toml"


def learned(*settings: str) -> tuple[float, float, int]:
    """Accuracy before and after the devices adapt, and the bytes of the uplink; of two seeds."""
    rows = []
    for seed in (1, 2):
        run = simulate(Experiment.load(EXPERIMENT).override(f"seed={seed}", *settings)).summary
        found = run["evaluations"]["adapted"]
        rows.append((found["accuracy_before"], found["accuracy_after"], run["bytes_up"]))
    before, after, uplink = np.mean(rows, axis=0)
    return before, after, uplink


def test_a_twentieth_of_the_uplink_learns_as_well() -> None:
    dense, sparse = learned("strategy.transforms=[]"), learned()
    assert dense[0] > 0.85
    assert sparse[0] >= dense[0] - 0.02
    assert sparse[1] >= dense[1] - 0.02
    assert sparse[2] <= 0.1 * dense[2]
