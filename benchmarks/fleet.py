"""Load: one coordinator and a thousand devices over mutual TLS, on the same cores.

    python benchmarks/fleet.py [devices]

The coordinator is a process of its own; the devices are sessions in this one, each with its own
certificate and connection, sending updates of 5 KB that cost them nothing to make. All figures are
of the coordinator; its updates are journalled, each before it is acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from fedtiny.values import Lease
from fedtiny.wire import services
from fedtiny.wire.pb import fleet_pb2 as pb

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.harness.coordinator_process import CoordinatorProcess, fresh
from tests.harness.history_check import Log
from tests.harness.members import Member, enlist, register_absent
from tests.harness.swarm import CannedVisits, Conduct, Figures, Swarm

DEVICES = 1000
ABSENT = 10_000
ROUNDS = 6
PROBES = 8
FULL_LOAD = 500.0
"""Device-rounds a second that are asked for; half of it is the load of the check-ins' figure."""
_OTHER_FILES = 200

EXPERIMENT = """
seed = 1
seeded = true

[model]
build = "sine_mlp"

[data]
source = "sine"
support = 8

[strategy]
name = "fedavg"
cohort = {cohort}
beta = 0.02

[fleet]
devices = {devices}
held_out = {held_out}
profiles = {{ pi-4 = 1.0 }}

[run]
rounds = {rounds}
deadline = 600.0
"""


def allow_files(count: int) -> int:
    """How many connections this process and its children may hold, asking for ``count``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if soft < wanted:
        soft = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < wanted:
        print(f"only {soft:,} open files are allowed; raise `ulimit -n`", file=sys.stderr)
    return min(count, soft - _OTHER_FILES)


@dataclass(frozen=True, slots=True)
class Moment:
    """What a coordinator has cost by then."""

    at_s: float
    cpu_s: float
    rss_bytes: int

    @classmethod
    def of(cls, process: CoordinatorProcess) -> Moment:
        return cls(time.monotonic(), process.cpu_s, process.rss_bytes)


@contextmanager
def coordinator(
    devices: int, rounds: int, cohort: int = 0, held_out: int = 0, absent: int = 0
) -> Iterator[tuple[CoordinatorProcess, list[Member]]]:
    """A coordinator that does not run yet, with devices that have joined."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "load.toml"
        path.write_text(
            EXPERIMENT.format(
                cohort=cohort or devices,
                devices=devices + held_out,
                held_out=held_out,
                rounds=rounds,
            )
        )
        members = enlist(folder / "fleet", devices + held_out)
        register_absent(folder / "fleet", absent)
        with CoordinatorProcess(path, folder / "fleet", launch=fresh) as process:
            yield process, members


@asynccontextmanager
async def living(
    process: CoordinatorProcess, members: list[Member], conduct: Conduct
) -> AsyncIterator[Figures]:
    """The devices at work, until the end of the block."""
    with Log(process.folder / "swarm.jsonl") as log:
        swarm = Swarm(members, process.port, conduct, log)
        task = asyncio.create_task(swarm.live(600))
        try:
            yield swarm.figures
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    """As soon as it holds."""
    while not condition():
        await asyncio.sleep(0.005)


# ---- the figures -------------------------------------------------------------------------------


def start_s(absent: int) -> tuple[float, int]:
    """Seconds from the start to serving with so many devices registered, and the memory then."""
    with coordinator(1, 1, absent=absent) as (process, _):
        start = time.monotonic()
        process.serve()
        took_s = time.monotonic() - start
        time.sleep(1.0)
        return took_s, process.rss_bytes


async def idle_bytes(devices: int) -> float:
    """Memory of a device that is connected and waits for work."""
    with coordinator(devices, 1, cohort=1) as (process, members):
        process.serve()
        before = Moment.of(process)
        conduct = Conduct(CannedVisits(), wait_s=60.0, answers=lambda lease: False)
        async with living(process, members, conduct):
            await until(lambda: process.files > devices)
            await asyncio.sleep(5.0)
            return (process.rss_bytes - before.rss_bytes) / devices


async def whole_rounds(devices: int, rounds: int) -> dict[str, float]:
    """Check-in, model, update and receipt, of every device in every round; the first one warms."""
    with coordinator(devices, rounds) as (process, members):
        process.serve()
        async with living(process, members, Conduct(CannedVisits(), wait_s=60.0)) as figures:
            await until(lambda: figures.delivered >= devices)
            before = Moment.of(process)
            await until(lambda: figures.delivered >= devices * rounds)
            after = Moment.of(process)
        visits = devices * (rounds - 1)
        return {
            "device_rounds_per_s": visits / (after.at_s - before.at_s),
            "cpu_ms_per_device_round": 1e3 * (after.cpu_s - before.cpu_s) / visits,
            "bytes_up_per_device_round": figures.up_bytes / (devices * rounds),
            "bytes_down_per_device_round": figures.down_bytes / (devices * rounds),
            "lost_calls": figures.lost,
        }


async def submits_per_s(devices: int, rounds: int) -> float:
    """Every device has its update ready; all hand them in, and want the receipt, at once."""
    arrived = asyncio.Barrier(devices)
    released: dict[int, float] = {}

    async def pause(lease: Lease) -> None:
        await arrived.wait()
        released.setdefault(lease.round, time.monotonic())

    with coordinator(devices, rounds) as (process, members):
        process.serve()
        conduct = Conduct(CannedVisits(), wait_s=60.0, pause=pause, receipt_wait_s=0.0)
        seconds = []
        async with living(process, members, conduct) as figures:
            for done in range(1, rounds + 1):
                await until(partial(_delivered, figures, devices * done))
                seconds.append(time.monotonic() - released[done - 1])
        return devices * (rounds - 1) / sum(seconds[1:])


def _delivered(figures: Figures, count: int) -> bool:
    return figures.delivered >= count


async def check_ins(devices: int, load: float, seconds: float) -> dict[str, float]:
    """How long a check-in takes that is answered at once, while rounds of a few devices follow each
    other at so many device-rounds a second, and all others are connected and wait."""
    cohort = max(1, devices // 20)
    draws = np.random.default_rng(1)

    async def pause(lease: Lease) -> None:
        await asyncio.sleep(draws.uniform(0, cohort / load))

    with coordinator(devices, 100_000, cohort=cohort, held_out=PROBES) as (process, members):
        process.serve()
        conduct = Conduct(CannedVisits(), wait_s=60.0, pause=pause)
        async with living(process, members[:devices], conduct) as figures:
            await until(lambda: figures.delivered >= devices)
            taken: list[float] = []
            before, start = figures.delivered, time.monotonic()
            end = start + seconds
            await asyncio.gather(*(_probe(m, process.port, end, taken) for m in members[devices:]))
            done = figures.delivered - before
            return {
                "load_beside_check_ins": done / (time.monotonic() - start),
                "check_in_median_ms": 1e3 * float(np.percentile(taken, 50)),
                "check_in_p99_ms": 1e3 * float(np.percentile(taken, 99)),
            }


async def _probe(member: Member, port: int, end: float, taken: list[float]) -> None:
    async with member.connect(port) as channel:
        calls = services.stubs(services.FLEET, channel)
        await calls.check_in(pb.CheckInRequest(protocol=1, wait_s=0.0))
        while time.monotonic() < end:
            start = time.perf_counter()
            await calls.check_in(pb.CheckInRequest(protocol=1, wait_s=0.0))
            taken.append(time.perf_counter() - start)
            await asyncio.sleep(0.05)


def measure(devices: int, rounds: int = ROUNDS, seconds: float = 10.0) -> dict[str, Any]:
    """All figures, by name."""
    devices = allow_files(devices)
    few_s, few_bytes = start_s(0)
    many_s, _ = start_s(devices)
    most_s, many_bytes = start_s(ABSENT)
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "grpc": grpc.__version__,
        "devices": devices,
        "start_s": few_s,
        f"start_s_{devices}_registered": many_s,
        f"start_s_{ABSENT}_registered": most_s,
        "bytes_per_absent_device": (many_bytes - few_bytes) / ABSENT,
        "bytes_per_idle_device": asyncio.run(idle_bytes(devices)),
        **asyncio.run(whole_rounds(devices, rounds)),
        "submits_per_s": asyncio.run(submits_per_s(devices, rounds)),
        **asyncio.run(check_ins(devices, FULL_LOAD / 2, seconds)),
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else DEVICES), indent=2))
