"""Pruning experiments: every method at every density with paired seeds, as tables of a README.

python benchmarks/pruning.py [digits] [omniglot] [--seeds 5] [--methods fedtiny,oneshot]
python benchmarks/pruning.py cifar    # the files of CIFAR-10 as they are

A run is kept in build/pruning and not repeated. Seeds are paired: one seed deals out the same
samples and begins with the same dense model whatever the method. They begin at 21: the settings
were chosen on lower ones.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fedtiny import Experiment, simulate
from fedtiny.device.learner import Learner
from fedtiny.engine import zoo
from fedtiny.engine.compile import build
from fedtiny.experiment.workload import Workload
from fedtiny.values import QUERY, SUPPORT

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "build" / "pruning"
DENSITIES = (0.1, 0.03, 0.01)
FIRST_SEED = 21
METHODS = ("fedtiny", "fedrts", "feddst", "oneshot", "uniform", "small", "dense")
_T_975 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Quantiles of Student's t with 1, 2, ... degrees of freedom."""

Row = Mapping[str, Any]


# ---- one run ---------------------------------------------------------------------------------


def experiment_of(task: str, method: str, density: float, seed: int) -> Experiment:
    """The experiment of a method at a density; a dense net ignores the density."""
    name = "oneshot" if method == "uniform" else method
    experiment = Experiment.load(ROOT / "simulations" / f"{task}_prune_{name}.toml")
    settings = [f"seed={seed}", "fleet.threads=1"]
    if method == "uniform":
        settings.append("strategy.layers_by=uniform")
    if method == "small":
        settings += smaller(task, density)
    elif method != "dense":
        settings.append(f"device.density={density}")
    return experiment.override(*settings)


def smaller(task: str, density: float) -> list[str]:
    """The widest net of the same form that has no more parameters than a pruned one has live."""
    full = zoo.digits_bn() if task == "digits" else zoo.omniglot_bn()
    fixed = sum(p.size for p in full.graph(1).layout.parameters if len(p.shape) == 1)
    weights = full.graph(1).layout.size - fixed
    most = density * weights + fixed
    fitting = (
        width for width in range(64, 0, -1) if _narrow(task, width).graph(1).layout.size <= most
    )
    width = next(fitting, 1)
    channels = [max(1, width // 2), width, width] if task == "digits" else width
    return [f"model.channels={channels}"]


def _narrow(task: str, width: int) -> Any:
    if task == "digits":
        return zoo.digits_bn(channels=(max(1, width // 2), width, width))
    return zoo.omniglot_bn(channels=width)


def run(job: tuple[str, str, float, int]) -> Row:
    """The figures of one run, from the disk if it was run before."""
    experiment = experiment_of(*job)
    path = KEPT / f"{experiment.digest[:24]}.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    row = figures(experiment, job)
    KEPT.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row))
    return row


def figures(experiment: Experiment, job: tuple[str, str, float, int]) -> Row:
    """Run it; accuracy of the last model as it is, bytes, and those of growth rounds."""
    done, work = simulate(experiment), Workload.of(experiment)
    rounds = [row for row in done.history if row["kind"] == "round"]
    growths = [row for row in rounds if row["round"] in adjustments(experiment)]
    return {
        "job": job,
        "accuracy": accuracy(work, done.model),
        "bytes_up": done.summary["bytes_up"],
        "bytes_down": done.summary["bytes_down"],
        "energy_j": done.summary["energy_j"],
        "growth_bytes": sum(r["bytes_up"] for r in growths),
        "growth_updates": sum(r["accepted"] for r in growths),
        "parameters": work.layout.size,
    }


def accuracy(work: Workload, model: Any) -> float:
    """Per cent of all samples of the held-out devices that the model as it is gets right."""
    fleet = work.experiment
    learner = Learner(build(work.net, loss=work.loss, batch=50).program)
    learner.load(model)
    correct = count = 0.0
    for device in range(fleet.fleet.devices - fleet.held_out, fleet.fleet.devices):
        for part in (SUPPORT, QUERY):
            x, y = work.task.samples(fleet.seed, 0, device, part)
            if len(y):
                found = learner.evaluate(x, y)
                correct, count = correct + found["correct"], count + found["count"]
    return 100 * correct / count


def adjustments(experiment: Experiment) -> range:
    """The rounds in which masks move, where a strategy has such rounds."""
    every = int(experiment.strategy.get("every", 0))
    rounds = experiment.run.rounds
    return range(every, rounds // 2 + 1, every) if every else range(0)


# ---- tables ----------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> str:
    """Mean and half-width of the 95 % interval."""
    half = _T_975[len(values) - 2] * stdev(values) / math.sqrt(len(values))
    return f"{mean(values):.1f} +- {half:.1f}"


def tables(task: str, rows: Iterable[Row], methods: Sequence[str], seeds: range) -> None:
    """Accuracies and paired differences, then bytes."""
    found = {tuple(row["job"]): row for row in rows}

    def column(method: str, density: float, key: str) -> list[float]:
        shared = 1.0 if method == "dense" else density
        return [float(found[task, method, shared, s][key]) for s in seeds]

    def differences(a: str, b: str, density: float) -> str:
        pairs = zip(column(a, density, "accuracy"), column(b, density, "accuracy"), strict=True)
        return interval([x - y for x, y in pairs])

    heads = " | ".join(f"{density:.0%}" for density in DENSITIES)
    print(f"\n| {task} | {heads} | MB up | MB down |\n| --- |{' ---: |' * (len(DENSITIES) + 2)}")
    for method in methods:
        cells = [interval(column(method, density, "accuracy")) for density in DENSITIES]
        for key in ("bytes_up", "bytes_down"):
            spent = (mean(column(method, density, key)) / 1e6 for density in DENSITIES)
            cells.append(" / ".join(f"{mb:.2f}" for mb in spent))
        print(f"| {method} | {' | '.join(cells)} |")
    pairs = [("fedtiny", "oneshot"), ("fedtiny", "uniform"), ("fedrts", "fedtiny"),
             ("fedtiny", "small")]  # fmt: skip
    for a, b in pairs:
        if {a, b} <= set(methods):
            cells = [differences(a, b, density) for density in DENSITIES]
            print(f"| {a} - {b} | {' | '.join(cells)} | | |")
    for method in methods:
        growths = [sum(column(method, d, "growth_bytes")) for d in DENSITIES]
        if not any(growths):
            continue
        dense = [
            sum(4 * row * n for row, n in zip(column(method, d, "parameters"),
                                              column(method, d, "growth_updates"), strict=True))
            for d in DENSITIES
        ]  # fmt: skip
        shares = " | ".join(f"{a / b:.0f} x" for a, b in zip(dense, growths, strict=True))
        print(f"| {method}: dense gradients / growth bytes | {shares} | | |")


def short_rows() -> None:
    """Each experiment on CIFAR-10 as its file says: before the first round, and after the last."""
    for path in sorted((ROOT / "simulations").glob("cifar_prune_*.toml")):
        experiment = Experiment.load(path)
        done, work = simulate(experiment), Workload.of(experiment)
        figures = accuracy(work, work.initial), accuracy(work, done.model)
        sent = (done.summary["bytes_up"] + done.summary["bytes_down"]) / 1e6
        print(f"{path.stem}: {figures[0]:.1f} -> {figures[1]:.1f} %, {sent:.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=["digits", "omniglot"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", default=",".join(METHODS))
    asked = parser.parse_args()
    methods = asked.methods.split(",")
    seeds = range(FIRST_SEED, FIRST_SEED + asked.seeds)
    if "cifar" in asked.tasks:
        return short_rows()
    for task in asked.tasks:
        jobs = {
            (task, m, 1.0 if m == "dense" else d, s)
            for m in methods for d in DENSITIES for s in seeds
        }  # fmt: skip
        with ProcessPoolExecutor(2) as pool:
            rows = []
            for row in pool.map(run, sorted(jobs, key=lambda job: (job[3], job[1:]))):
                rows.append(row)
                print(f"\r{len(rows)} of {len(jobs)}", end="", file=sys.stderr, flush=True)
        tables(task, rows, methods, seeds)


if __name__ == "__main__":
    main()
