"""Run the experiments of simulations/ with three seeds and print the rows of its README.

python benchmarks/simulations.py [PREFIX ...]
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from fedtiny import Experiment, simulate

FOLDER = Path(__file__).parent.parent / "simulations"
SEEDS = (1, 2, 3)
_EXAMPLES = ("demo", "fleet")


@dataclass(frozen=True)
class Figures:
    """Means over the seeds, which vary the devices, the samples and the initial model.

    ``evaluations``: by name, the loss or accuracy before and after adaptation, and the half-width
    of the 95 % interval after it.
    """

    name: str
    evaluations: dict[str, tuple[float, float, float]]
    megabytes_up: float
    virtual_hours: float
    seconds: float

    @classmethod
    def of(cls, name: str, *settings: str) -> Figures:
        """Run the experiment of that name once for each seed."""
        started = time.perf_counter()
        experiment = Experiment.load(FOLDER / f"{name}.toml")
        runs = [simulate(experiment.override(f"seed={s}", *settings)).summary for s in SEEDS]
        seconds = (time.perf_counter() - started) / len(SEEDS)
        evaluations = {}
        for protocol in runs[0]["evaluations"]:
            rows = [run["evaluations"][protocol] for run in runs]
            what = "accuracy" if "accuracy_after" in rows[0] else "loss"
            columns = (f"{what}_before", f"{what}_after", f"{what}_after_ci")
            before, after, ci = (mean(row[column] for row in rows) for column in columns)
            evaluations[protocol] = before, after, ci
        megabytes = mean(run["bytes_up"] for run in runs) / 1e6
        hours = mean(run["time_s"] for run in runs) / 3600
        return cls(name, evaluations, megabytes, hours, seconds)

    def row(self) -> str:
        """The row of the README, but for the seconds, which are the machine's."""
        cells = [f"[`{self.name}`]({self.name}.toml)"]
        if len(self.evaluations) == 1:  # what a model is worth as it is, too
            cells += [f"{before:.3f}" for before, _, _ in self.evaluations.values()]
        cells += [f"{after:.3f} +- {ci:.3f}" for _, after, ci in self.evaluations.values()]
        cells += [f"{self.megabytes_up:.1f}", f"{self.virtual_hours:.2f}"]
        return "| " + " | ".join(cells) + " |"


def names() -> list[str]:
    """The experiments with a row each; those that prune are in the tables of pruning.py."""
    found = sorted(path.stem for path in FOLDER.glob("*.toml"))
    return [name for name in found if name not in _EXAMPLES and "_prune_" not in name]


def main() -> None:
    prefixes = tuple(sys.argv[1:]) or ("",)
    for name in names():
        if name.startswith(prefixes):
            figures = Figures.of(name)
            print(f"{figures.row()} {figures.seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
