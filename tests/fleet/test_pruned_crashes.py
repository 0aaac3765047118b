"""Killed while it prunes: masks and values agree after every start, and the last model is the same.

Every round needs all devices and waits for them, so the last model is that of the undisturbed run.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from fedtiny.experiment import Experiment
from fedtiny.simulator.run import simulate
from tests.harness.coordinator_process import CoordinatorProcess
from tests.harness.story import Story, Told, experiment

DEVICES, ROUNDS = 4, 8
CRASHES = ("journal.before:3", "journal.after:6", "answer.before:9", "shred.after:4")
STRATEGIES = {
    "fedtiny": 'every = 2\nstop = 8\ncandidates = 3\nselection = "auto"',
    "fedrts": "every = 2\nstop = 8",
    "feddst": "every = 2\nstop = 8",
}


def pruning(folder: Path, strategy: str) -> Path:
    path = experiment(folder, DEVICES, rounds=ROUNDS, strategy=strategy, density=0.25)
    text = path.read_text().replace("beta = 0.02", f"beta = 0.02\n{STRATEGIES[strategy]}")
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], Told]:
    """The first strategy with every crash, the others with one each; all at the same time."""
    first, *others = STRATEGIES
    pairs = [(first, crash) for crash in CRASHES]
    pairs += zip(others, CRASHES, strict=False)
    folder = tmp_path_factory.mktemp("pruned")

    async def tell(number: int, strategy: str, crash: str) -> Told:
        own = folder / str(number)
        with CoordinatorProcess(pruning(own, strategy), own / "fleet") as process:
            return await Story(process, DEVICES, crash).tell()

    async def all_of_them() -> list[Told]:
        return await asyncio.gather(*(tell(at, *pair) for at, pair in enumerate(pairs)))

    return dict(zip(pairs, asyncio.run(all_of_them()), strict=True))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What nothing has disturbed: the same experiments, simulated."""
    folder = tmp_path_factory.mktemp("simulated")
    paths = {name: pruning(folder / name, name) for name in STRATEGIES}
    runs = {name: simulate(Experiment.load(path)) for name, path in paths.items()}
    return {name: str(run.summary["model_digest"]) for name, run in runs.items()}


@pytest.mark.timeout(120)
def test_a_crash_loses_nothing_and_changes_nothing(
    stories: Mapping[tuple[str, str], Told], models: Mapping[str, str]
) -> None:
    assert len(set(models.values())) == len(models)
    for (strategy, crash), told in stories.items():
        assert told.deaths == (-signal.SIGKILL,), f"{crash} was not reached"
        assert told.flaws == [], (strategy, crash)
        assert len(told.rows) == ROUNDS
        assert told.model == models[strategy], (strategy, crash)
