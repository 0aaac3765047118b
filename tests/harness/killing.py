"""kill -9 at random moments of a run that goes on until its coordinator was killed often enough."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

from fedtiny.experiment import Experiment
from fedtiny.simulator.run import simulate
from tests.harness.coordinator_process import CoordinatorProcess
from tests.harness.story import Story, Told, experiment
from tests.harness.swarm import Swarm

DEVICES = 6
_ENDLESS = 1_000_000
_LONGEST_LIFE_S = 1.2
_A_KILL_S = 6.0


def killed_at_random(folder: Path, kills: int, seed: int) -> Told:
    """What came of it. A kill comes at a drawn moment after the one before: often while the
    coordinator still starts or recovers."""
    draws = Random(seed)

    async def trouble(process: CoordinatorProcess, swarm: Swarm) -> None:
        while len(process.deaths) < kills:
            await asyncio.sleep(draws.uniform(0.0, _LONGEST_LIFE_S))
            process.strike()
        wanted = swarm.figures.delivered + 2 * DEVICES
        while swarm.figures.delivered < wanted:
            await asyncio.sleep(0.01)
        swarm.stop()

    path = experiment(folder, DEVICES, rounds=_ENDLESS)
    with CoordinatorProcess(path, folder / "fleet") as process:
        story = Story(process, DEVICES, trouble=trouble, within_s=60 + _A_KILL_S * kills)
        return story.told()


def undisturbed(folder: Path, rounds: int) -> str:
    """SHA-256 of the model after so many rounds of the same experiment, simulated."""
    path = experiment(folder / "simulated", DEVICES, rounds=rounds)
    return str(simulate(Experiment.load(path)).summary["model_digest"])
