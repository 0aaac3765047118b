"""Run every experiment of simulations/ with three seeds and print the tables of its README.

    python benchmarks/simulations.py [PREFIX ...]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import mean

from fedtiny import Experiment, simulate

FOLDER = Path(__file__).parent.parent / "simulations"
SEEDS = (1, 2, 3)


def row(path: Path) -> str:
    """The means over the seeds; seeds vary the devices, the samples and the initial model."""
    started = time.perf_counter()
    results = [simulate(Experiment.load(path).override(f"seed={seed}")) for seed in SEEDS]
    wall_s = (time.perf_counter() - started) / len(SEEDS)
    cells = [path.stem]
    for name in results[0].summary["evaluations"]:
        rows = [result.summary["evaluations"][name] for result in results]
        what = "accuracy" if "accuracy_after" in rows[0] else "loss"
        before, after, ci = (
            mean(r[f"{what}_{k}"] for r in rows) for k in ("before", "after", "after_ci")
        )
        cells.append(f"{name} {what}: {before:.3f} -> {after:.3f} +- {ci:.3f}")
    megabytes = mean(r.summary["bytes_up"] for r in results) / 1e6
    hours = mean(r.summary["time_s"] for r in results) / 3600
    cells += [f"{megabytes:.1f}", f"{hours:.2f}", f"{wall_s:.1f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    prefixes = tuple(sys.argv[1:]) or ("",)
    for path in sorted(FOLDER.glob("*.toml")):
        if path.stem.startswith(prefixes) and path.stem != "demo":
            print(row(path), flush=True)


main()
