"""What robust rules keep of a model when a fifth of the devices lie; FedAvg beside them.

python benchmarks/robust.py [digits] [har] [kinds]

``digits`` and ``har``: every rule on simulations/*_attack_fedavg.toml, under the attack: alone,
with its deltas mixed, and mixed with quarantine. ``kinds``: digits under each attack, mixed.
Accuracy on held-out devices, as the model is and after adaptation: means over the seeds 21 to 25.
The settings were chosen on others.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from fedtiny import Experiment
from fedtiny.simulator.simulation import Simulation

FOLDER = Path(__file__).parent.parent / "simulations"
SEEDS = range(21, 26)
QUARANTINE = {"quarantine": 30}
MIX = {"digits": {"mix": 6}, "har": {"mix": 4}}
"""As many of a cohort as may lie."""
RULES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "digits": {
        "norm-bound": {"bound": 0.05},
        "median": {},
        "trimmed-mean": {"share": 0.3},
        "krum": {"byzantine": 6},
        "multikrum": {"byzantine": 6},
        "geometric-median": {},
    },
    "har": {
        "norm-bound": {"bound": 0.5},
        "median": {},
        "trimmed-mean": {"share": 0.27},
        "krum": {"byzantine": 4},
        "multikrum": {"byzantine": 4},
        "geometric-median": {},
    },
}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "sign-flip": {"scale": 6.0},
    "scale": {"scale": 20.0},
    "label-flip": {},
    "collude": {"scale": 2.0},
}


@dataclass(frozen=True)
class Figures:
    """Means over the seeds; ``liars`` and ``honest`` are those that are barred at the end."""

    before: float
    after: float
    liars: float
    honest: float

    @classmethod
    def of(cls, data: str, strategy: Mapping[str, Any], attack: Mapping[str, Any]) -> Figures:
        """Run the experiment of the data set with each seed; an empty attack is none."""
        columns = zip(*(_run(data, strategy, attack, seed) for seed in SEEDS), strict=True)
        return cls(*map(mean, columns))

    def __str__(self) -> str:
        return f"{self.before:.3f} / {self.after:.3f}"


def _run(
    data: str, strategy: Mapping[str, Any], attack: Mapping[str, Any], seed: int
) -> tuple[float, float, int, int]:
    tables = dict(Experiment.load(FOLDER / f"{data}_attack_fedavg.toml").given)
    given = {**tables["strategy"], **strategy}
    tables |= {"strategy": given, "seed": seed, "attack": {"share": 0.2, **attack}}
    if not attack:
        del tables["attack"]
    experiment = Experiment.of(tables)
    rows: list[dict[str, Any]] = []
    simulation = Simulation(experiment, "columns", rows.append)
    while simulation.step():
        pass
    simulation.close()
    barred = set(simulation.work.strategy.barred(simulation.standing.state).tolist())
    liars = set(simulation.attackers.devices.tolist()) if simulation.attackers else set()
    last = rows[-1]
    return last["accuracy_before"], last["accuracy_after"], len(barred & liars), len(barred - liars)


def _rows(data: str) -> Iterator[str]:
    flip = {"kind": "sign-flip", **KINDS["sign-flip"]}
    clean, attacked = (Figures.of(data, {"name": "fedavg"}, attack) for attack in ({}, flip))
    yield "| rule | attacked | mixed | mixed, quarantine | liars barred | honest barred |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    yield f"| fedavg, no attack | {clean} | | | | |"
    yield f"| fedavg | {attacked} | | | | |"
    for name, fields in RULES[data].items():
        plain = {"name": name, **fields}
        mix = plain | MIX[data]
        alone, mixed, kept = (Figures.of(data, s, flip) for s in (plain, mix, mix | QUARANTINE))
        yield f"| {name} | {alone} | {mixed} | {kept} | {kept.liars:.1f} | {kept.honest:.1f} |"


def _kinds() -> Iterator[str]:
    yield f"| rule | {' | '.join(KINDS)} |"
    yield "| --- |" + " ---: |" * len(KINDS)
    for name, fields in {"fedavg": {}, **RULES["digits"]}.items():
        mix = {} if name == "fedavg" else MIX["digits"]
        strategy = {"name": name, **fields, **mix}
        found = [Figures.of("digits", strategy, {"kind": k, **v}) for k, v in KINDS.items()]
        yield "| " + " | ".join([name, *(f"{figures.before:.3f}" for figures in found)]) + " |"


def main() -> None:
    """Print the tables that are asked for, or all."""
    for name in sys.argv[1:] or [*RULES, "kinds"]:
        print(f"\n{name}\n")
        for row in _kinds() if name == "kinds" else _rows(name):
            print(row, flush=True)


if __name__ == "__main__":
    main()
