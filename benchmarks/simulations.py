"""Run the experiments of simulations/ with three seeds, note the figures of each run in
simulations/figures.json and print the rows of its README.

python benchmarks/simulations.py [PREFIX ...]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from fedtiny import Experiment, simulate

FOLDER = Path(__file__).parent.parent / "simulations"
NOTED = FOLDER / "figures.json"
SEEDS = (1, 2, 3)
_ELSEWHERE = (
    "demo", "fleet", "_prune_", "_attack_", "digits_fedbuff", "digits_online", "digits_oversel",
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """Of one run, or means over the seeds, which vary the devices, the samples and the initial
    model.

    ``evaluations``: by name, the loss or accuracy before and after adaptation, and the half-width
    of the 95 % interval after it.
    """

    evaluations: dict[str, tuple[float, float, float]]
    megabytes_up: float
    virtual_hours: float

    @classmethod
    def of(cls, name: str, seed: int, *settings: str) -> Figures:
        """Run the experiment of that name."""
        experiment = Experiment.load(FOLDER / f"{name}.toml")
        run = simulate(experiment.override(f"seed={seed}", *settings)).summary
        evaluations = {}
        for protocol, row in run["evaluations"].items():
            what = "accuracy" if "accuracy_after" in row else "loss"
            evaluations[protocol] = (
                row[f"{what}_before"], row[f"{what}_after"], row[f"{what}_after_ci"],
            )  # fmt: skip
        return cls(evaluations, run["bytes_up"] / 1e6, run["time_s"] / 3600)

    @classmethod
    def mean(cls, runs: Sequence[Figures]) -> Figures:
        """The means over runs of one experiment."""
        evaluations = {}
        for protocol in runs[0].evaluations:
            columns = zip(*(run.evaluations[protocol] for run in runs), strict=True)
            before, after, ci = map(mean, columns)
            evaluations[protocol] = before, after, ci
        return cls(
            evaluations,
            mean(run.megabytes_up for run in runs),
            mean(run.virtual_hours for run in runs),
        )

    def row(self, name: str) -> str:
        """The row of the README, but for the seconds, which are the machine's."""
        cells = [f"[`{name}`]({name}.toml)"]
        if len(self.evaluations) == 1:  # what a model is worth as it is, too
            cells += [f"{before:.3f}" for before, _, _ in self.evaluations.values()]
        cells += [f"{after:.3f} +- {ci:.3f}" for _, after, ci in self.evaluations.values()]
        cells += [f"{self.megabytes_up:.1f}", f"{self.virtual_hours:.2f}"]
        return "| " + " | ".join(cells) + " |"


def noted() -> dict[str, list[Figures]]:
    """By the experiment's name, the figures of each seed as they were when it was last run."""
    return {
        name: [
            Figures(
                {protocol: tuple(row) for protocol, row in run.pop("evaluations").items()}, **run
            )
            for run in runs
        ]
        for name, runs in json.loads(NOTED.read_text(encoding="utf-8")).items()
    }


def note(name: str, runs: Sequence[Figures]) -> None:
    """Put the figures of each seed among those that are noted."""
    found = {**noted(), name: runs}
    lines = [
        f' "{key}": {json.dumps([asdict(run) for run in found[key]])}' for key in sorted(found)
    ]
    NOTED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def names() -> list[str]:
    """The experiments with a row each; others are examples, or in tables of other benchmarks."""
    found = sorted(path.stem for path in FOLDER.glob("*.toml"))
    return [name for name in found if not any(part in name for part in _ELSEWHERE)]


def main() -> None:
    prefixes = tuple(sys.argv[1:]) or ("",)
    for name in names():
        if name.startswith(prefixes):
            started = time.perf_counter()
            runs = [Figures.of(name, seed) for seed in SEEDS]
            seconds = (time.perf_counter() - started) / len(SEEDS)
            note(name, runs)
            print(f"{Figures.mean(runs).row(name)} {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
