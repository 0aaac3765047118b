"""What devices make of streams that drift, gate beside gate: the table of simulations/README.md.

python benchmarks/online.py

Means over the seeds 21 to 25 of simulations/digits_online.toml, with the mean half-width of the
95 % interval over its 20 held-out devices. The settings were chosen on other seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from fedtiny import Experiment, simulate

FILE = Path(__file__).parent.parent / "simulations" / "digits_online.toml"
SEEDS = range(21, 26)
Row = dict[str, Any]


def met(seed: int, *settings: str) -> dict[str, Row]:
    """What became of each stream of the file under one seed."""
    run = simulate(Experiment.load(FILE).override(f"seed={seed}", *settings))
    return dict(run.summary["online"])


def row(name: str, runs: Sequence[Row]) -> str:
    """A row of the README: the means over the seeds."""
    pairs = ("accuracy_from_drift", "accuracy_new_after", "accuracy_first_after", "forgetting")
    cells = [
        " +- ".join(f"{mean(run[key] for run in runs):.3f}" for key in (pair, f"{pair}_ci"))
        for pair in pairs
    ]
    steps = 100 * mean(run["adapted"] for run in runs)
    millijoules = 1e3 * mean(run["adaptation_j"] for run in runs)
    return f"| {name} | " + " | ".join([*cells, f"{steps:.0f} %", f"{millijoules:.2f}"]) + " |"


def main() -> None:
    found = [met(seed) for seed in SEEDS]
    for name in found[0]:
        print(row(name, [each[name] for each in found]))
    for key in ("accuracy_first_before", "accuracy_new_before"):
        told = {n: f"{mean(each[n][key] for each in found):.3f}" for n in found[0] if "never" in n}
        print(key, told)


if __name__ == "__main__":
    main()
