"""What every strategy learns on small data, as the table of the README.

python benchmarks/strategies.py [NAME ...]

A row is the mean over the seeds 1, 2 and 3: of the accuracy before the first round and after the
last, and of the bytes that devices send in the run. All rows of a problem have the same devices,
samples and initial model.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from fedtiny import Experiment, simulate
from fedtiny.strategies.table import TABLE

FOLDER = Path(__file__).parent.parent / "simulations"
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Problem:
    """An experiment in which strategies are compared, and what they are judged by.

    ``judged`` names the evaluation and the column of its row; ``changes`` are what the sections of
    the file say otherwise (another model, and other evaluations, take the place of the file's), and
    ``strategy`` what every strategy has, unless its row says otherwise.
    """

    file: str
    judged: tuple[str, str]
    changes: Mapping[str, Mapping[str, Any]]
    strategy: Mapping[str, Any]


_TRAINING = {"own": {"lr": 0.1, "devices": "training"}}
_TWENTY = {"devices": 30, "held_out": 10}
_SKEW = {"cohort": 10, "beta": 0.1, "steps": 20}
PROBLEMS = {
    # One model for all: label skew, judged on devices that never train.
    "skew": Problem(
        "digits_skew_fedavg", ("adapted", "accuracy_before"), {"run": {"rounds": 60}}, _SKEW
    ),
    # A start from which to adapt: five classes, five shots, digits that nobody trained on.
    "few-shot": Problem(
        "digits_fewshot_reptile", ("adapted", "accuracy_after"),
        {"run": {"rounds": 600}, "model": {"build": "mlp", "widths": [64, 32, 5], "head": "head"}},
        {"cohort": 5, "beta": 0.1, "steps": 10},
    ),
    # A model for each: label skew, judged on the twenty devices that train.
    "personal": Problem(
        "digits_skew_fedavg", ("own", "accuracy_before"),
        {"run": {"rounds": 60}, "fleet": _TWENTY, "evaluate": _TRAINING}, _SKEW,
    ),
    # The same for a net with norms.
    "norms": Problem(
        "digits_skew_fedavg", ("own", "accuracy_before"),
        {
            "run": {"rounds": 40}, "fleet": _TWENTY, "evaluate": _TRAINING,
            "device": {"ram": "1MiB"},
            "model": {"build": "digits_bn", "channels": [8, 16, 16]},
        },
        {"cohort": 10, "beta": 0.05, "steps": 10},
    ),
    # A tenth of the weights: label skew, judged on devices that never train.
    "pruned": Problem(
        "digits_prune_fedtiny", ("adapted", "accuracy_before"),
        {"run": {"rounds": 30}, "device": {"density": 0.1}},
        {"cohort": 10, "beta": 0.05, "clip": 5.0, "shuffle": True},
    ),
}  # fmt: skip

_ADJUSTED = {"every": 5, "alpha": 0.4}
ROWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "fedavg": ("skew", {}),
    "fedprox": ("skew", {"mu": 0.1}),
    "fednova": ("skew", {}),
    "scaffold": ("skew", {}),
    "fedavgm": ("skew", {"server_momentum": 0.5}),
    "fedadagrad": ("skew", {"server_lr": 0.05}),
    "fedadam": ("skew", {"server_lr": 0.03}),
    "fedyogi": ("skew", {"server_lr": 0.03}),
    "fedbuff": ("skew", {}),
    "joint": ("skew", {"beta": 0.5, "steps": None}),
    "fedncm": ("skew", {"beta": None, "steps": None}),
    "fedridge": ("skew", {"beta": None, "steps": None}),
    "norm-bound": ("skew", {"bound": 2.0}),
    "median": ("skew", {}),
    "trimmed-mean": ("skew", {"share": 0.2}),
    "krum": ("skew", {"byzantine": 2}),
    "multikrum": ("skew", {"byzantine": 2}),
    "geometric-median": ("skew", {}),
    "reptile": ("few-shot", {}),
    "tinyreptile": ("few-shot", {"cohort": 1, "beta": 0.05, "alpha": 0.5}),
    "tinymetafed": ("few-shot", {"cohort": 1, "beta": 0.05, "alpha": 0.5}),
    "fomaml": ("few-shot", {"steps": 5}),
    "anil": ("few-shot", {"steps": 5}),
    "perfedavg": ("few-shot", {}),
    "fedbn": ("norms", {}),
    "fedper": ("personal", {}),
    "fedrep": ("personal", {}),
    "ditto": ("personal", {}),
    "oneshot": ("pruned", {}),
    "fedtiny": ("pruned", _ADJUSTED),
    "fedrts": ("pruned", _ADJUSTED),
    "feddst": ("pruned", _ADJUSTED),
    "sap": ("pruned", {"every": 5}),
}
"""The problem of each strategy, and its own settings (None: it has no such field); "none" learns
nothing."""


@dataclass(frozen=True)
class Learned:
    """Accuracy before the first round and after the last, and megabytes sent by all devices."""

    start: float
    end: float
    megabytes_up: float


def learned(name: str, seed: int, *settings: str) -> Learned:
    """One run of a strategy."""
    problem = PROBLEMS[ROWS[name][0]]
    run = simulate(_experiment(name, problem).override(f"seed={seed}", *settings))
    evaluation, column = problem.judged
    rows = run.evaluations(evaluation)
    return Learned(rows[0][column], rows[-1][column], run.summary["bytes_up"] / 1e6)


def _experiment(name: str, problem: Problem) -> Experiment:
    tables = Experiment.load(FOLDER / f"{problem.file}.toml").to_json()
    for section, changes in problem.changes.items():
        base = {} if "build" in changes or section == "evaluate" else tables[section]
        tables[section] = {**base, **changes}
    said = {"name": name, **problem.strategy, **ROWS[name][1]}
    tables["strategy"] = {key: value for key, value in said.items() if value is not None}
    return Experiment.of(tables).override("fleet.threads=1")


def row(name: str) -> str:
    """The row of the README."""
    runs = [learned(name, seed) for seed in SEEDS]
    start, end, sent = (
        mean(getattr(run, column) for run in runs) for column in ("start", "end", "megabytes_up")
    )
    return f"| `{name}` | {ROWS[name][0]} | {start:.3f} | {end:.3f} | {sent:.2f} |"


def main() -> None:
    for name in sys.argv[1:] or [name for name in ROWS if name in TABLE]:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
