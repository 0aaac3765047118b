"""Small experiments for the tests of the simulator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedtiny.engine.builder import Net
from fedtiny.engine.zoo import mlp
from fedtiny.experiment import Experiment
from fedtiny.simulator.run import Result, simulate
from fedtiny.simulator.simulation import DeviceForm


def personal_mlp() -> Net:
    """Digits with a head that stays on the device."""
    return mlp((64, 16, 10), head="local")


SINE: dict[str, Any] = {
    "seed": 3,
    "model": {"build": "sine_mlp"},
    "data": {"source": "sine", "support": 16, "query": 16},
    "device": {"ram": "64KiB"},
    "strategy": {"name": "reptile", "cohort": 20, "beta": 0.02},
    "fleet": {"devices": 200, "held_out": 20, "threads": 1},
    "run": {"rounds": 5},
    "evaluate": {"stream": {"lr": 0.02}},
}
HARD: dict[str, Any] = SINE | {
    "fleet": {
        "devices": 1000,
        "held_out": 100,
        "profiles": {"cortex-m4": 0.4, "esp32-s3": 0.3, "pi-4": 0.3},
        "availability": "diurnal",
        "drop_out": 0.2,
        "threads": 1,
    },
    "device": {"ram": "64KiB", "esp32-s3": {"batch": 4}, "pi-4": {"ram": "4KiB"}},
    "strategy": {"name": "fedadam", "cohort": 40, "beta": 0.02, "clip": 5.0},
    "run": {"rounds": 4, "over_selection": 1.3, "minimum": 30, "deadline": 0.6},
}


def small_bn() -> Net:
    """Digits through a tracked normalisation; 1,776 weights to prune."""
    net = Net(64)
    net.linear(net.relu(net.batch_norm(net.linear(net.input, 24), tracked=True)), 10)
    return net


PRUNED: dict[str, Any] = {
    "seed": 5,
    "model": {"build": "tests.simulator.experiments:small_bn"},
    "data": {"source": "label-skew-digits", "public": 100},
    "device": {"ram": "1MiB", "batch": 16, "density": 0.1, "pi-4": {"density": 0.3}},
    "pretrain": {"steps": 20},
    "strategy": {"name": "fedtiny", "cohort": 5, "beta": 0.05, "every": 3, "stop": 7},
    "fleet": {
        "devices": 12,
        "held_out": 2,
        "profiles": {"pi-zero-2w": 0.5, "pi-4": 0.5},
        "threads": 1,
    },
    "run": {"rounds": 9, "evaluate_every": 4},
    "evaluate": {"shift": {"lr": 0.01}},
}
"""A fleet that prunes: two classes of devices, a selection, two adjustments."""


MIXED: dict[str, Any] = {
    "seed": 7,
    "model": {"build": "digits_mlp", "hidden": 8},
    "data": {"source": "label-skew-digits"},
    "device": {"ram": "64KiB", "batch": 5, "dtype": "int8", "pi-4": {"dtype": "float32"}},
    "strategy": {"name": "fedavg", "cohort": 6, "beta": 0.05, "steps": 3},
    "fleet": {
        "devices": 20,
        "held_out": 4,
        "profiles": {"cortex-m4": 0.7, "pi-4": 0.3},
        "threads": 1,
    },
    "run": {"rounds": 3},
    "evaluate": {"shift": {"lr": 0.05, "steps": 2}},
}
"""A fleet of int8 and float32: these observe the ranges of activations in the first round."""


def run(tables: dict[str, Any], *settings: str, devices: DeviceForm = "columns") -> Result:
    return simulate(Experiment.of(tables).override(*settings), devices=devices)


def history_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
