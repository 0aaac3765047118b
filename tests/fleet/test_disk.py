"""A disk that is full or cannot be written: nothing is acknowledged until it can be again."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedtiny.errors import RunError
from fedtiny.experiment import Experiment
from fedtiny.simulator.run import simulate
from tests.harness.coordinator_process import CoordinatorProcess
from tests.harness.story import Story, Told, Trouble, experiment
from tests.harness.swarm import Swarm

DEVICES, ROUNDS = 6, 8
DISK_BYTES = 4 << 20
TROUBLE_S = 1.5


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a tmpfs takes root and mount(8)")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def told(tmp_path: Path, disk: Path, trouble: Trouble) -> Told:
    path = experiment(tmp_path, DEVICES, rounds=ROUNDS)
    # The clients' logs are not on that disk: they must not fail with it.
    (tmp_path / "logs").mkdir()
    (disk / "fleet").mkdir(parents=True)
    (disk / "fleet" / "logs").symlink_to(tmp_path / "logs")
    with CoordinatorProcess(path, disk / "fleet") as process:
        story = Story(process, DEVICES, trouble=trouble).told()
    model = simulate(Experiment.load(path)).summary["model_digest"]
    assert story.model == model
    return story


async def _until_delivered(swarm: Swarm, count: int) -> None:
    while swarm.figures.delivered < count:
        await asyncio.sleep(0.005)


async def _stands_still(swarm: Swarm) -> None:
    """For a while; what was on its way when the trouble began may still arrive."""
    await asyncio.sleep(0.3)
    before = swarm.figures.delivered
    await asyncio.sleep(TROUBLE_S)
    assert swarm.figures.delivered == before


def test_a_full_disk_stops_the_run_until_there_is_room(tmp_path: Path, disk: Path) -> None:
    async def trouble(process: CoordinatorProcess, swarm: Swarm) -> None:
        await _until_delivered(swarm, 2 * DEVICES)
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        await _stands_still(swarm)
        filler.unlink()

    story = told(tmp_path, disk, trouble)
    assert story.flaws == []
    assert story.deaths == ()
    assert story.figures.lost >= 1
    details = {e.detail for e in story.entries if "make room" in e.detail}
    assert details, "the devices were not told why"


def test_a_disk_that_fails_stops_the_run_until_it_works(tmp_path: Path) -> None:
    async def trouble(process: CoordinatorProcess, swarm: Swarm) -> None:
        await _until_delivered(swarm, 2 * DEVICES)
        _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, most))  # every write fails
        await _stands_still(swarm)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))

    story = told(tmp_path, tmp_path / "disk", trouble)
    assert story.flaws == []
    assert story.figures.lost >= 1


def test_on_a_read_only_disk_a_coordinator_does_not_start(tmp_path: Path, disk: Path) -> None:
    path = experiment(tmp_path, DEVICES)
    log = tmp_path / "output.log"
    (disk / "fleet").mkdir()
    (disk / "fleet" / "output.log").symlink_to(log)
    with CoordinatorProcess(path, disk / "fleet") as process:
        assert process.start()
        process.kill()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert not process.start()
        assert process.deaths == [RunError.exit_code]
        assert "Read-only file system" in log.read_text()
        assert "make room there, or the right to write" in log.read_text()
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert process.start()
