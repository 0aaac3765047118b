"""TinyMetaFed beside TinyReptile at equal rounds: what is learned, and the bytes that it takes.

python benchmarks/tinymetafed.py [sine] [omniglot] [SETTING=VALUE ...]

A row is the mean over the seeds 4, 5 and 6; the settings were chosen on lower ones. Bytes are those
of the messages of all visits, as shares of TinyReptile's: up, and in both directions.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from fedtiny import Experiment, simulate

FOLDER = Path(__file__).parent.parent / "simulations"
SEEDS = (4, 5, 6)


@dataclass(frozen=True)
class Problem:
    """Two experiments that differ in the strategy, and the column of their evaluations.

    ``alphas`` are further outer steps of TinyReptile, ``shares`` what TinyMetaFed sends; ``more``
    are settings of it by their name.
    """

    tinyreptile: str
    tinymetafed: str
    column: str
    alphas: Sequence[float]
    shares: Sequence[float]
    more: Mapping[str, Sequence[str]]


PROBLEMS = {
    "sine": Problem(
        "sine_tinyreptile", "sine_tinymetafed", "loss_after", (0.5,), (1.0, 0.5, 0.2, 0.1, 0.05),
        {
            "20% as int8, alpha 0.5": (
                "strategy.alpha=0.5", "strategy.upload=0.2", "strategy.transforms=['int8']",
            )
        },
    ),
    "omniglot": Problem(
        "omniglot_5way5shot_tinyreptile", "omniglot_5way5shot_tinymetafed", "accuracy_after", (),
        (0.1,), {},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What an experiment comes to; the figures of each evaluation, and the bytes of the run."""

    figures: dict[str, float]
    up: float
    both: float

    @classmethod
    def of(cls, name: str, column: str, settings: Sequence[str]) -> Found:
        """Run it once for each seed."""
        experiment = Experiment.load(FOLDER / f"{name}.toml")
        runs = [_summary(experiment, seed, settings) for seed in SEEDS]
        figures = {
            protocol: mean(run["evaluations"][protocol][column] for run in runs)
            for protocol in runs[0]["evaluations"]
        }
        up, down = (mean(run[f"bytes_{way}"] for run in runs) for way in ("up", "down"))
        return cls(figures, up, up + down)

    def row(self, name: str, reference: Found) -> str:
        """Its figures, and its bytes as shares of the reference's."""
        shares = (self.up / reference.up, self.both / reference.both)
        cells = [name, *(f"{figure:.3f}" for figure in self.figures.values())]
        return "| " + " | ".join([*cells, *(f"{share:.3f}" for share in shares)]) + " |"


def _summary(experiment: Experiment, seed: int, settings: Sequence[str]) -> dict[str, Any]:
    return simulate(experiment.override(f"seed={seed}", "run.evaluate_every=0", *settings)).summary


def table(problem: Problem, settings: Sequence[str]) -> None:
    """TinyReptile, and TinyMetaFed by the share of the coordinates that it sends."""
    reference = Found.of(problem.tinyreptile, problem.column, settings)
    print("| | " + " | ".join([*reference.figures, "up", "both ways"]) + " |")
    print("|---|" + "---:|" * (len(reference.figures) + 2))
    print(reference.row("tinyreptile", reference), flush=True)
    for alpha in problem.alphas:
        chosen = [*settings, f"strategy.alpha={alpha}"]
        found = Found.of(problem.tinyreptile, problem.column, chosen)
        print(found.row(f"tinyreptile, alpha {alpha}", reference), flush=True)
    for share in problem.shares:
        chosen = [*settings, f"strategy.upload={share}"]
        found = Found.of(problem.tinymetafed, problem.column, chosen)
        print(found.row(f"tinymetafed, {share:.0%}", reference), flush=True)
    for name, more in problem.more.items():
        found = Found.of(problem.tinymetafed, problem.column, [*settings, *more])
        print(found.row(f"tinymetafed, {name}", reference), flush=True)


def main() -> None:
    settings = [word for word in sys.argv[1:] if "=" in word]
    for name in [word for word in sys.argv[1:] if word in PROBLEMS] or PROBLEMS:
        table(PROBLEMS[name], settings)


if __name__ == "__main__":
    main()
