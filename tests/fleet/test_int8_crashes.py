"""Killed while int8 and float32 train together: the same last model, calibrated in the first round.

Every round needs all devices and waits for them, so the last model is that of the undisturbed run.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from fedtiny.experiment import Experiment
from fedtiny.experiment.workload import Workload
from fedtiny.simulator.fleet import Fleet
from fedtiny.simulator.run import simulate
from fedtiny.values import DeviceCard
from tests.harness.coordinator_process import CoordinatorProcess
from tests.harness.members import CARD
from tests.harness.story import Story, Told, experiment
from tests.harness.swarm import Conduct

DEVICES, ROUNDS = 4, 5
CRASHES = ("journal.after:2", "answer.before:9")


def mixed(folder: Path) -> Path:
    path = experiment(folder, DEVICES, rounds=ROUNDS)
    text = path.read_text().replace("{ pi-4 = 1.0 }", "{ cortex-m4 = 0.5, pi-4 = 0.5 }")
    path.write_text(text + '\n[device.cortex-m4]\ndtype = "int8"\nplan = "biases+last:1"\n')
    return path


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> list[Told]:
    folder = tmp_path_factory.mktemp("int8")

    async def tell(number: int, crash: str) -> Told:
        path = mixed(folder / str(number))
        fleet = Fleet.of(Workload.of(Experiment.load(path)))

        def card(device: int) -> DeviceCard:
            return replace(CARD, profile=fleet.profiles[fleet.profile[device]].name)

        with CoordinatorProcess(path, folder / f"{number}-fleet") as process:
            story = Story(process, DEVICES, crash, conduct=lambda visit: Conduct(visit, card=card))
            return await story.tell()

    async def all_of_them() -> list[Told]:
        return await asyncio.gather(*(tell(*pair) for pair in enumerate(CRASHES)))

    return asyncio.run(all_of_them())


@pytest.mark.timeout(120)
def test_a_crash_loses_nothing_and_changes_nothing(stories: list[Told], tmp_path: Path) -> None:
    undisturbed = simulate(mixed(tmp_path))
    history = [row for row in undisturbed.history if row["kind"] == "round"]
    assert [row["loss"] is None for row in history] == [t in (0, 2, 4) for t in range(ROUNDS)]
    for crash, told in zip(CRASHES, stories, strict=True):
        assert told.deaths == (-signal.SIGKILL,), f"{crash} was not reached"
        assert told.flaws == [], crash
        assert [row["loss"] for row in told.rows] == [row["loss"] for row in history]
        assert told.model == undisturbed.summary["model_digest"], crash
