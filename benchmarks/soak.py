"""Soak: a coordinator under steady work for half an hour, and killed two hundred times.

    python benchmarks/soak.py [minutes] [kills]

Prints a record as JSON, and fails when memory grows, something stays open, or anything is lost.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fedtiny.values import Lease
from tests.harness.coordinator_process import CoordinatorProcess, fresh
from tests.harness.killing import killed_at_random, undisturbed
from tests.harness.story import Story, Told, experiment
from tests.harness.swarm import Conduct, Swarm

MINUTES, KILLS = 30.0, 200
DEVICES, COHORT = 100, 40
DROP_OUT = 0.1
SAMPLE_S = 5.0
WARM_SHARE = 1 / 3
"""Of the time: caches fill, and the allocator finds its level."""
MOST_MB_PER_H = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What the coordinator holds at a time."""

    at_s: float
    rss_bytes: int
    files: int
    wal_bytes: int

    @classmethod
    def of(cls, process: CoordinatorProcess, start: float) -> Sample:
        wal = process.folder / "fleet.db-wal"
        at_s = time.monotonic() - start
        return cls(at_s, process.rss_bytes, process.files, wal.stat().st_size)


def steady(folder: Path, minutes: float) -> tuple[list[Sample], Told]:
    """Devices that train, rest, drop out and come back over new connections."""
    draws = np.random.default_rng(1)
    samples: list[Sample] = []

    async def rest(lease: Lease) -> None:
        await asyncio.sleep(draws.uniform(0.0, 1.0))

    async def trouble(process: CoordinatorProcess, swarm: Swarm) -> None:
        start = time.monotonic()
        while time.monotonic() < start + 60 * minutes:
            samples.append(Sample.of(process, start))
            await asyncio.sleep(SAMPLE_S)
            await swarm.devices[draws.integers(DEVICES)].reconnect()
        swarm.stop()

    path = experiment(
        folder, DEVICES, cohort=COHORT, rounds=1_000_000, deadline=3.0, minimum=COHORT // 2,
        over_selection='"measured"', seeded=False,
    )  # fmt: skip
    conduct = partial(Conduct, pause=rest, answers=lambda lease: draws.random() >= DROP_OUT)
    with CoordinatorProcess(path, folder / "fleet", launch=fresh) as process:
        story = Story(process, DEVICES, conduct=conduct, trouble=trouble, pace=1.0)
        story.within_s = 60 * minutes + 60
        return samples, story.told()


def slope_mb_per_h(samples: list[Sample]) -> float:
    """Of the memory after warming up, by least squares."""
    warm = samples[int(len(samples) * WARM_SHARE) :]
    hours = np.array([sample.at_s for sample in warm]) / 3600
    megabytes = np.array([sample.rss_bytes for sample in warm]) / 1e6
    return float(np.polyfit(hours, megabytes, 1)[0])


def record(minutes: float, kills: int) -> dict[str, Any]:
    """What came of both."""
    with tempfile.TemporaryDirectory() as name:
        samples, told = steady(Path(name), minutes)
    with tempfile.TemporaryDirectory() as name:
        killed = killed_at_random(Path(name), kills, seed=int(time.time()))
        same = killed.model == undisturbed(Path(name), len(killed.rows))
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "minutes": minutes,
        "rounds": len(told.rows),
        "updates": sum(row["accepted"] for row in told.rows),
        "memory_slope_mb_per_h": slope_mb_per_h(samples),
        "first": asdict(samples[0]),
        "last": asdict(samples[-1]),
        "most_wal_bytes": max(sample.wal_bytes for sample in samples),
        "most_files": max(sample.files for sample in samples),
        "flaws": told.flaws,
        "kills": len(killed.deaths),
        "rounds_while_killed": len(killed.rows),
        "flaws_while_killed": killed.flaws,
        "same_model_as_undisturbed": same,
    }


def main(minutes: float = MINUTES, kills: int = KILLS) -> int:
    """The exit code: 0 if all of it holds."""
    found = record(minutes, kills)
    print(json.dumps(found, indent=2))
    lost = found["flaws"] or found["flaws_while_killed"] or not found["same_model_as_undisturbed"]
    return int(bool(lost) or found["memory_slope_mb_per_h"] >= MOST_MB_PER_H)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:3])))
