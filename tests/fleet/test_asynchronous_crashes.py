"""Killed while work outlives its rounds: every update counts once, as a delta to its own base.

Which updates meet in a round depends on who is faster, so there is no undisturbed model to compare
with: the models that were published are compared with those that the journal gives again.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.harness.coordinator_process import CoordinatorProcess
from tests.harness.ledger import read_ledger
from tests.harness.story import Story, Told, experiment

DEVICES, ROUNDS = 6, 8
CRASHES = ("journal.before:5", "journal.after:9", "publish.after:3", "answer.before:12")


def asynchronous(folder: Path) -> Path:
    path = experiment(folder, DEVICES, cohort=2, rounds=ROUNDS, strategy="fedbuff", seeded=False)
    fields = "beta = 0.02\nconcurrency = 4\nmax_staleness = 5"
    path.write_text(path.read_text().replace("beta = 0.02", fields))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("asynchronous")


@pytest.fixture(scope="module")
def stories(folder: Path) -> Mapping[str, Told]:
    """One with each crash; all at the same time."""

    async def tell(crash: str) -> Told:
        own = folder / crash
        with CoordinatorProcess(asynchronous(own), own / "fleet") as process:
            return await Story(process, DEVICES, crash).tell()

    async def all_of_them() -> list[Told]:
        return await asyncio.gather(*(tell(crash) for crash in CRASHES))

    return dict(zip(CRASHES, asyncio.run(all_of_them()), strict=True))


@pytest.mark.timeout(120)
def test_a_crash_loses_nothing_and_counts_nothing_twice(stories: Mapping[str, Told]) -> None:
    for crash, told in stories.items():
        assert told.deaths == (-signal.SIGKILL,), f"{crash} was not reached"
        assert told.flaws == [], crash
        assert [row["accepted"] for row in told.rows] == [2] * ROUNDS
        assert told.rows[-1]["version"] == ROUNDS


def test_some_of_what_counted_was_of_an_earlier_round(
    stories: Mapping[str, Told], folder: Path
) -> None:
    assert stories
    ledgers = [read_ledger(folder / crash / "fleet") for crash in CRASHES]
    assert all(ledger.later for ledger in ledgers)
