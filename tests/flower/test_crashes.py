"""Killed under a strategy of Flower's: nothing is lost, and the last model is the same.

Every round needs all devices and waits for them, so the last model is that of the undisturbed run.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from fedtiny.experiment import Experiment
from fedtiny.simulator.run import simulate
from tests.harness.coordinator_process import CoordinatorProcess
from tests.harness.story import Story, Told, experiment

DEVICES, ROUNDS = 4, 4
CRASHES = ("journal.before:4", "publish.before:2")


def adaptive(folder: Path) -> Path:
    path = experiment(folder, DEVICES, rounds=ROUNDS)
    theirs = 'build = "flwr.serverapp.strategy:FedAdam"\neta = 0.05'
    path.write_text(path.read_text().replace('name = "fedavg"', theirs))
    return path


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Told]:
    """One with each crash; all at the same time."""
    folder = tmp_path_factory.mktemp("flower")

    async def tell(crash: str) -> Told:
        own = folder / crash
        with CoordinatorProcess(adaptive(own), own / "fleet") as process:
            return await Story(process, DEVICES, crash).tell()

    async def all_of_them() -> list[Told]:
        return await asyncio.gather(*(tell(crash) for crash in CRASHES))

    return dict(zip(CRASHES, asyncio.run(all_of_them()), strict=True))


@pytest.mark.timeout(120)
def test_a_coordinator_that_is_killed_goes_on_to_the_same_model(
    stories: Mapping[str, Told], tmp_path: Path
) -> None:
    undisturbed = simulate(Experiment.load(adaptive(tmp_path))).summary["model_digest"]
    for crash, told in stories.items():
        assert told.deaths == (-signal.SIGKILL,), f"{crash} was not reached"
        assert told.flaws == [], crash
        assert len(told.rows) == ROUNDS
        assert told.model == undisturbed, crash


_RUN = """
from fedtiny.flower.child import Child
child = Child()
spec = {"reference": "flwr.serverapp.strategy:FedAvg", "arguments": {}}
child.ask("check", spec=spec, said=[], ours=[])
print(child.pid, flush=True)
input()
"""


def test_the_process_of_a_strategy_ends_when_the_run_is_killed() -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", _RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with run:
        assert run.stdout
        child = int(run.stdout.readline())
        os.kill(child, 0)  # it is there
        run.kill()
    until = time.monotonic() + 10
    while _lives(child):
        assert time.monotonic() < until, "it goes on without its run"
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    """Whether it runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
