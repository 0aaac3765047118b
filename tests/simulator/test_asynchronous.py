"""Asynchronous rounds under the virtual clock; devices that are barred; models held back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedtiny.errors import StrategyError
from fedtiny.experiment import Experiment
from fedtiny.simulator.run import simulate
from fedtiny.simulator.simulation import Simulation
from fedtiny.strategies.base import Round
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.fedbuff import FedBuff
from fedtiny.values import Instruction, Phase
from tests.simulator.experiments import SINE, run
from tests.simulator.test_one_model import publishes_the_same

if TYPE_CHECKING:
    from fedtiny.strategies.base import State
    from fedtiny.tensors import Int64

SIMULATIONS = Path(__file__).parents[2] / "simulations"
HERE = "tests.simulator.test_asynchronous"
SLOW: dict[str, Any] = {
    "seed": 3,
    "model": {"build": "sine_mlp"},
    "data": {"source": "sine", "support": 16, "query": 16},
    "device": {
        "ram": "64KiB",
        "fast": {"like": "pi-4", "ram": "64KiB"},
        "slow": {"like": "cortex-m4", "macs_per_s": 1e6, "uplink": "100kbit/s"},
    },
    "strategy": {
        "name": "fedbuff", "cohort": 5, "concurrency": 12, "max_staleness": 8, "beta": 0.02,
    },
    "fleet": {
        "devices": 40, "held_out": 4, "profiles": {"fast": 0.6, "slow": 0.4}, "drop_out": 0.1,
        "threads": 1,
    },
    "run": {"rounds": 10, "deadline": 1.5, "evaluate_every": 5},
    "evaluate": {"stream": {"lr": 0.02}},
}  # fmt: skip
"""Devices of two speeds, some of which are lost: their places are free when the deadline passes."""


@dataclass(frozen=True, kw_only=True)
class Cooling(FedBuff):
    """A learning rate that falls from round to round, and a state that moves the next one."""

    def start(self, layout: object, model: object) -> State:
        return {"heat": 1.0, "rows": np.ones(2)}

    def ask(self, round: Round, state: State) -> Instruction:
        heat, rows = state["heat"], np.asarray(state["rows"])
        return Instruction(phases=(Phase(self.beta * float(heat) * float(rows[0]), 3),))

    def finish(self, round: Round, model: Any, contribution: Any, state: State) -> Any:
        model, _ = super().finish(round, model, contribution, {})
        return model, {
            "heat": 0.9 * float(state["heat"]), "rows": 0.99 * np.asarray(state["rows"]),
        }  # fmt: skip


COOLING = (
    f"strategy={{build='{HERE}:Cooling', cohort=5, concurrency=12, max_staleness=8, beta=0.1}}"
)


def followed(*settings: str) -> tuple[Simulation, list[dict[str, Any]], list[int]]:
    """A whole run; the leases that counted in a later round than their own."""
    rows: list[dict[str, Any]] = []
    simulation = Simulation(Experiment.of(SLOW).override(*settings), "columns", rows.append)
    late: list[int] = []
    while simulation.step():
        leases = simulation.rounds.past._rounds[-1].tolist()
        late += [lease for lease in leases if lease >> 32 < simulation.rounds.round - 1]
        assert simulation.rounds.leases.is_live.sum() <= 12
    return simulation, rows, late


def test_work_outlives_its_round_and_no_more_goes_on_than_the_concurrency() -> None:
    simulation, rows, late = followed()
    assert len(late) > 5
    rounds = [row for row in rows if row["kind"] == "round"]
    assert [row["accepted"] for row in rounds] == [5] * 10
    assert simulation.standing.version == 10


def test_work_that_is_too_many_versions_late_is_told_so() -> None:
    _, rows, _ = followed("strategy.max_staleness=1", "fleet.drop_out=0", "run.deadline=60")
    assert sum(row["late"] for row in rows if row["kind"] == "round") > 0


def test_a_run_in_which_nobody_can_train_comes_to_an_end() -> None:
    _, rows, _ = followed("strategy.beta=1e6", "run.rounds=2", "fleet.drop_out=0")
    rounds = [row for row in rows if row["kind"] == "round"]
    assert [row["failed"] for row in rounds] == [True, True]
    # A device that has diverged may try again at its first deadline, 1.5 s later, not at once.
    assert all(row["refused"] >= 11 * 12 for row in rounds)
    assert rounds[0]["time_s"] > 1.5 * (11 * 12 // 36)


def test_columns_and_objects_give_the_same_history() -> None:
    columns, objects = (run(SLOW, COOLING, devices=kind) for kind in ("columns", "objects"))
    assert columns.history == objects.history
    assert columns.summary == objects.summary


def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    experiment = Experiment.of(SLOW).override("run.checkpoint_every=1", COOLING)
    whole = simulate(experiment)

    class PowerCut(Exception):
        pass

    def cut(progress: Any) -> None:
        if progress.round in (3, 7):
            raise PowerCut

    with pytest.raises(PowerCut):
        simulate(experiment, out=tmp_path / "cut", progress=cut)
    with pytest.raises(PowerCut):
        simulate(experiment, out=tmp_path / "cut", progress=cut, resume=True)
    resumed = simulate(experiment, out=tmp_path / "cut", resume=True)
    assert resumed.history == whole.history
    assert resumed.summary == whole.summary


def test_a_real_run_with_the_same_arrivals_publishes_the_same_models() -> None:
    publishes_the_same(Experiment.of(SLOW).override("evaluate={}"))


def test_it_learns_as_much_in_half_the_time_of_rounds_that_wait_for_the_slow() -> None:
    """The files that benchmarks/asynchronous.py measures, at their beginning."""
    waits = ended("digits_oversel", "run.rounds=16")
    goes_on = ended("digits_fedbuff", "run.rounds=40")
    assert goes_on["time_s"] <= 0.5 * waits["time_s"]
    assert goes_on["accuracy_before"] >= waits["accuracy_before"] > 0.6


def ended(name: str, *settings: str) -> dict[str, Any]:
    """The last evaluation of one of the experiments that come with fedtiny."""
    experiment = Experiment.load(SIMULATIONS / f"{name}.toml")
    return simulate(experiment.override(*settings, "run.evaluate_every=0")).evaluations()[-1]


# ---- who is barred, and what is held back ----------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Barring(FedAvg):
    """Asks nobody with an even index in the second round; with ``all``, nobody at all."""

    all: bool = False

    def start(self, layout: object, model: object) -> State:
        return {"round": 0.0}

    def finish(self, round: Round, model: Any, contribution: Any, state: State) -> Any:
        model, _ = super().finish(round, model, contribution, {})
        return model, {"round": float(state["round"]) + 1}

    def barred(self, state: State) -> Int64:
        return np.arange(0, 200, 1 if self.all else 2)[: 200 * (state["round"] == 1)]


def barring(more: str = "") -> Simulation:
    section = f"strategy={{build='{HERE}:Barring', cohort=20, beta=0.02{more}}}"
    experiment = Experiment.of(SINE).override(section, "run.rounds=3", "evaluate={}")
    return Simulation(experiment, "columns", lambda row: None)


def test_a_device_that_is_barred_is_not_asked() -> None:
    simulation, asked = barring(), []
    instruct = simulation.sessions.instruct

    def instructed(devices: Int64, *rest: Any) -> None:
        asked.append({int(device) % 2 for device in devices})
        instruct(devices, *rest)

    simulation.sessions.instruct = instructed  # type: ignore[method-assign,assignment]
    while simulation.step():
        pass
    assert asked == [{0, 1}, {1}, {0, 1}]


def test_a_strategy_that_bars_everybody_ends_the_run() -> None:
    simulation = barring(", all=true")
    simulation.step()
    with pytest.raises(StrategyError, match="180 of the 180 devices that train are barred"):
        simulation.step()


def test_a_model_that_is_held_back_is_told_in_the_history() -> None:
    tables = {
        "seed": 2,
        "model": {"build": "digits_mlp"},
        "data": {"source": "label-skew-digits", "public": 64},
        "device": {"batch": 10},
        "strategy": {"name": "fedavg", "cohort": 4, "beta": 20.0, "steps": 5},
        "fleet": {"devices": 20, "held_out": 2, "profiles": {"pi-4": 1.0}, "threads": 1},
        "run": {"rounds": 2, "gate": 1.1},
    }
    result = run(tables)
    rows = [row for row in result.history if row["kind"] == "round"]
    assert [row["version"] for row in rows] == [0, 0]
    assert all(row["gated"]["before"] == pytest.approx(np.log(10), rel=0.2) for row in rows)
