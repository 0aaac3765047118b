"""TinyMetaFed learns what TinyReptile learns, with a sixth of what devices send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedtiny.experiment import Experiment
from fedtiny.simulator.run import simulate

FOLDER = Path(__file__).resolve().parents[2] / "simulations"


def summary(name: str) -> dict[str, Any]:
    experiment = Experiment.load(FOLDER / f"{name}.toml")
    return simulate(experiment.override("run.rounds=400", "run.evaluate_every=0")).summary


def test_a_tenth_of_the_changes_teaches_as_much_in_as_many_rounds() -> None:
    tiny, meta = summary("sine_tinyreptile"), summary("sine_tinymetafed")
    assert meta["bytes_up"] <= 0.2 * tiny["bytes_up"]
    for name, before in tiny["evaluations"].items():
        assert meta["evaluations"][name]["loss_after"] <= 1.15 * before["loss_after"]
