"""FedBuff against over-selection of 130 % with a deadline, on devices that differ 100 : 1 in speed.

python benchmarks/asynchronous.py

The accuracy to reach is that of the synchronous run at its end, the mean of its last ten models; a
run has reached it when the mean of five models in a row has. Means over three seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean

from fedtiny import Experiment, simulate
from fedtiny.simulator.run import Result

FOLDER = Path(__file__).parent.parent / "simulations"
SEEDS = (1, 2, 3)
IN_A_ROW, AT_THE_END = 5, 10

SYNCHRONOUS = "over-selection 130 %"
RUNS: Mapping[str, tuple[str, ...]] = {
    SYNCHRONOUS: ("digits_oversel",),
    "the same, without the slowest fifth": ("digits_oversel", "run.deadline=5.0"),
    "FedBuff, 13 at a time": ("digits_fedbuff", "strategy.concurrency=13"),
    "FedBuff, 30 at a time": ("digits_fedbuff",),
}


@dataclass(frozen=True, slots=True)
class Reached:
    """What a run has spent when it reaches the accuracy, and its accuracy at the end."""

    time_s: float
    updates: float
    uplink_mb: float
    energy_j: float
    accuracy: float


def run(seed: int, name: str, *settings: str) -> Result:
    """One run; its threads change no result."""
    return simulate(Experiment.load(FOLDER / f"{name}.toml").override(f"seed={seed}", *settings))


def accuracies(result: Result) -> Sequence[float]:
    """After each model, of the shared one on devices that never train."""
    return [row["accuracy_before"] for row in result.evaluations("adapted")[1:]]


def reached(result: Result, target: float) -> Reached:
    """What was spent until the accuracy was there."""
    found = accuracies(result)
    at = next(
        (at for at in range(IN_A_ROW, len(found) + 1) if mean(found[at - IN_A_ROW : at]) >= target),
        None,
    )
    if at is None:
        never = float("inf")
        return Reached(never, never, never, never, mean(found[-AT_THE_END:]))
    rows = [row for row in result.history if row["kind"] == "round"][:at]
    return Reached(
        rows[-1]["time_s"],
        sum(row["accepted"] for row in rows),
        sum(row["bytes_up"] for row in rows) / 1e6,
        sum(row["energy_j"] for row in rows),
        mean(found[-AT_THE_END:]),
    )


def measured() -> Mapping[str, Reached]:
    """The mean over the seeds of each run."""
    each: dict[str, list[Reached]] = {name: [] for name in RUNS}
    for seed in SEEDS:
        results = {name: run(seed, *settings) for name, settings in RUNS.items()}
        target = mean(accuracies(results[SYNCHRONOUS])[-AT_THE_END:])
        for name, result in results.items():
            each[name].append(reached(result, target))
    return {name: _mean(rows) for name, rows in each.items()}


def _mean(rows: Sequence[Reached]) -> Reached:
    return Reached(*(mean(getattr(row, f.name) for row in rows) for f in fields(Reached)))


def main() -> None:
    """Print the table."""
    table = measured()
    waited_s = table[SYNCHRONOUS].time_s
    print("| run | virtual time | | updates | uplink | energy | accuracy at the end |")
    print("|---|---|---|---|---|---|---|")
    for name, row in table.items():
        print(
            f"| {name} | {row.time_s:.0f} s | {row.time_s / waited_s:.2f} | {row.updates:.0f} "
            f"| {row.uplink_mb:.1f} MB | {row.energy_j:.0f} J | {100 * row.accuracy:.1f} % |"
        )


if __name__ == "__main__":
    main()
