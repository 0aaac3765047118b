"""A strategy with a fault is named with its round, and once it is repaired its run goes on.

In each world that runs strategies: a coordinator that recovers from its journal, a simulation that
is resumed, a server that halts the run. And updates of devices that were not in a round count for
nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedtiny import simulate
from fedtiny.errors import StrategyError
from fedtiny.experiment import Experiment
from fedtiny.runs import RunFolder
from fedtiny.testing.trial import Trial, tables, undisturbed
from fedtiny.values import ACCEPTED, INVALID, UNKNOWN, Update, lease_id
from fedtiny.wire.codec import Work
from tests.server.desk import Desk, experiment
from tests.strategies.own import FAULTS, Faulty

TOLD = {
    "wrong shape": r"Faulty.finish in round 1 of \d must give a model of float32 \((\d+),\), not "
    r"float32 \(\d+,\)",
    "wrong type": r"Faulty.finish in round 1 of \d must give a model of float32 .* not float64",
    "not finite": r"Faulty.finish in round 1 of \d must give a finite model, but .* values are not",
    "nothing": r"Faulty.finish in round 1 of \d must give a pair \(model, state\)",
    "a state that cannot be stored": r"Faulty.state in round 1 of \d .*; 'rng' is object",
    "raises": r"Faulty.finish failed in round 1 of \d: ZeroDivisionError: division by zero",
}


def spec(fault: str) -> dict[str, Any]:
    return {"build": "tests.strategies.own:Faulty", "cohort": 2, "beta": 0.1, "fault": fault}


def test_every_fault_is_told() -> None:
    assert TOLD.keys() == FAULTS.keys()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_coordinator_finishes_the_round_once_its_strategy_is_repaired(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(spec(fault))
    with pytest.raises(StrategyError, match=TOLD[fault]):
        trial.finish()
    with pytest.raises(StrategyError, match=TOLD[fault]):
        trial.restart()  # still broken: nothing is done without it
    monkeypatch.setattr(Faulty, "repaired", True)
    trial.restart()
    assert trial.coordinator.rounds.round == 2  # of the updates that had come
    honest = {"name": "fedavg", "cohort": 2, "beta": 0.1}
    assert trial.finish().tobytes() == undisturbed(honest).tobytes()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_simulation_goes_on_once_its_strategy_is_repaired(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, made = tmp_path / "run", Experiment.of(tables(spec(fault)))
    with pytest.raises(StrategyError, match=rf"{TOLD[fault]}.*simulate --resume {run}"):
        simulate(made, out=run)
    assert [row["round"] for row in RunFolder.open(run).history()] == [0]
    monkeypatch.setattr(Faulty, "repaired", True)
    resumed = simulate(made, out=run, resume=True)
    assert resumed.history == simulate(made).history


@pytest.mark.parametrize("fault", ["wrong shape", "not finite"])
def test_a_server_halts_the_run_until_its_strategy_is_repaired(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = "strategy={build='tests.strategies.own:Faulty', cohort=2, fault='" + fault + "'}"
    desk = Desk(tmp_path, experiment(broken, name="broken"))
    try:
        while desk.conductor.hosted:
            for device in range(3):
                answer = desk.answer(device)
                if isinstance(answer, Work):
                    desk.offer(desk.visit(answer), answer)
            desk.cycle(100.0)
        (told,) = desk.conductor.halted.values()
        assert told.startswith(f"the run broken is halted: {TOLD[fault][:13]}")
        desk.conductor.database.close()
        monkeypatch.setattr(Faulty, "repaired", True)
        desk.open()
        assert desk.hosted.coordinator.rounds.round == 2
    finally:
        desk.close()


# ---- devices that were not in the round ------------------------------------------------------


@pytest.mark.parametrize("name", ["fedavg", "median"])
def test_an_update_of_a_device_that_was_not_in_the_round_changes_nothing(name: str) -> None:
    honest = {"name": name, "cohort": 2, "beta": 0.1}
    trial = Trial(honest)

    def forging(trial: Trial) -> None:
        for update in trial.visits():
            stranger = trial.devices - 1
            round = trial.coordinator.rounds.round
            for forged in (
                replace(update, device=stranger),  # the lease of another
                replace(update, device=stranger, lease=lease_id(round, 9)),  # none of this round
                replace(update, lease=lease_id(round + 5, 0)),  # of a round to come
            ):
                assert statuses(trial, forged) == [UNKNOWN]
            trial.submit(update)

    assert trial.each(forging).tobytes() == undisturbed(honest).tobytes()


@pytest.mark.parametrize("name", ["fedavg", "median"])
def test_a_device_that_sends_nonsense_is_told_so_and_the_round_goes_on(name: str) -> None:
    trial = Trial({"name": name, "cohort": 2, "beta": 0.1})
    first, second = trial.visits()
    assert statuses(trial, replace(first, values=b"\0" * 8)) == [INVALID]
    trial.submit(second)
    (again,) = trial.visits()  # whoever asks first takes its place
    assert statuses(trial, again) == [ACCEPTED]
    assert trial.coordinator.rounds.round == 1


def statuses(trial: Trial, *updates: Update) -> list[str]:
    return [receipt.status for receipt in trial.coordinator.submit(trial.now, updates)]
