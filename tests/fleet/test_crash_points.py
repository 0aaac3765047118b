"""Killed before or after any durable step, or at any moment: the run goes on, and nothing is lost.

Every round needs all devices and waits for them, so the last model is that of the undisturbed run.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from fedtiny.experiment import Experiment
from fedtiny.server.crash_points import POINTS
from fedtiny.simulator.run import simulate
from tests.harness.coordinator_process import CoordinatorProcess
from tests.harness.killing import killed_at_random, undisturbed
from tests.harness.story import Story, Told, experiment
from tests.harness.swarm import Swarm

DEVICES, ROUNDS = 6, 4
KILLS = 20
AT_A_TIME = 8
CRASHES = [f"{point}:{time}" for point in POINTS for time in (1, 3)]


async def _told(folder: Path, crashes: list[str]) -> dict[str, Told]:
    """One story for each crash, a few at a time: most of a story is waiting."""
    room = asyncio.Semaphore(AT_A_TIME)

    async def tell(number: int, crash: str) -> Told:
        own = folder / str(number)
        async with room:
            with CoordinatorProcess(experiment(own, DEVICES, rounds=ROUNDS), own / "fleet") as it:
                return await Story(it, DEVICES, crash).tell()

    stories = await asyncio.gather(*(tell(*each) for each in enumerate(crashes)))
    return dict(zip(crashes, stories, strict=True))


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Told]:
    return asyncio.run(_told(tmp_path_factory.mktemp("crashes"), ["", *CRASHES]))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What nothing has disturbed: the same experiment, simulated."""
    path = experiment(tmp_path_factory.mktemp("simulated"), DEVICES, rounds=ROUNDS)
    return str(simulate(Experiment.load(path)).summary["model_digest"])


@pytest.mark.timeout(120)
def test_an_undisturbed_run_publishes_the_simulated_model(
    stories: Mapping[str, Told], model: str
) -> None:
    told = stories[""]
    assert (told.model, told.deaths, told.flaws) == (model, (), [])
    assert told.receipts == {"accepted": DEVICES * ROUNDS}


@pytest.mark.parametrize("crash", CRASHES)
def test_a_crash_loses_nothing_and_changes_nothing(
    stories: Mapping[str, Told], model: str, crash: str
) -> None:
    told = stories[crash]
    assert told.deaths == (-signal.SIGKILL,), "the crash point was not reached"
    assert told.flaws == []
    assert len(told.rows) == ROUNDS
    assert told.model == model


def test_asked_to_stop_it_ends_well_and_goes_on_at_the_next_start(
    tmp_path: Path, model: str
) -> None:
    async def trouble(process: CoordinatorProcess, swarm: Swarm) -> None:
        while swarm.figures.delivered < 2 * DEVICES:
            await asyncio.sleep(0.005)
        assert await asyncio.to_thread(process.stop) == 0

    path = experiment(tmp_path, DEVICES, rounds=ROUNDS)
    with CoordinatorProcess(path, tmp_path / "fleet") as process:
        told = Story(process, DEVICES, trouble=trouble).told()
    assert told.deaths == (0,)
    assert told.flaws == []
    assert told.model == model


@pytest.mark.timeout(120)
def test_killed_at_random_moments_it_loses_nothing(tmp_path: Path) -> None:
    told = killed_at_random(tmp_path, kills=KILLS, seed=1)
    assert len(told.deaths) >= KILLS
    assert told.flaws == []
    assert told.model == undisturbed(tmp_path, len(told.rows))
