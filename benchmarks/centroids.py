"""Omniglot, 5-way 5-shot, without a net: the nearest centroid of the pixels.

python benchmarks/centroids.py

The tasks are those of simulations/omniglot_5way5shot_reptile.toml, seeds 1, 2 and 3.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedtiny import Experiment
from fedtiny.data.tables import Task

FILE = Path(__file__).parent.parent / "simulations" / "omniglot_5way5shot_reptile.toml"


def accuracy(task: Task, seed: int, device: int) -> float:
    """The share of a task's query that lies nearest to the mean of its own class."""
    (x, label), (query, truth) = (
        task.samples(seed, 0, device, part) for part in ("support", "query")
    )
    centroids = np.stack([x[label == way].mean(0) for way in range(int(label.max()) + 1)])
    distance = np.square(query[:, None] - centroids[None]).sum(2)
    return float((distance.argmin(1) == truth).mean())


def main() -> None:
    found = []
    for seed in (1, 2, 3):
        experiment = Experiment.load(FILE).override(f"seed={seed}")
        devices = range(experiment.fleet.devices - experiment.held_out, experiment.fleet.devices)
        found += [accuracy(experiment.build_task(), seed, device) for device in devices]
    half = 1.96 * np.std(found) / len(found) ** 0.5
    print(f"nearest centroid on pixels: {np.mean(found):.3f} +- {half:.3f} ({len(found)} tasks)")


if __name__ == "__main__":
    main()
