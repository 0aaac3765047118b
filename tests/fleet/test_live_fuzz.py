"""Mutated requests over the wire: the coordinator says no by reason, stays up, does not grow."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from random import Random
from statistics import mean
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from google.protobuf.message import Message

from fedtiny.engine.program import Program
from fedtiny.experiment import Experiment
from fedtiny.experiment.workload import Workload
from fedtiny.wire import codec, services
from fedtiny.wire.pb import fleet_pb2 as pb
from tests.harness.coordinator_process import CoordinatorProcess
from tests.harness.history_check import Log
from tests.harness.members import CARD, Member, enlist
from tests.harness.mutation import mutated
from tests.harness.story import Told, beside, experiment
from tests.harness.swarm import Conduct, Figures, RealVisits, Swarm
from tests.wire.forms import rounded

REQUESTS = int(os.environ.get("FEDTINY_LIVE_FUZZ", "20000"))
FUZZERS, HONEST = 80, 4
"""Devices that send what is mutated; each may call as often as any other."""
ANSWER_S = 0.5
"""A mutated check-in may ask to wait for long; nobody waits for it."""
PASSES = 8
MOST_GROWTH_BYTES = 12 << 20
"""Between the first half of the passes and the last; the allocator swings by as much."""
WITHIN_S = 60 + REQUESTS // 200

pytestmark = pytest.mark.timeout(2 * WITHIN_S)

CODES = {
    grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.DEADLINE_EXCEEDED,
}  # fmt: skip
"""What a device may be told. UNKNOWN and INTERNAL are errors that nobody caught."""
COUNTED = {
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.PERMISSION_DENIED,
}  # fmt: skip

Methods = Mapping[str, Sequence[Message]]


@dataclass(frozen=True)
class Fuzzed:
    """What came of it."""

    codes: Counter[grpc.StatusCode]
    refusals: Mapping[str, float]
    grown_bytes: float
    told: Told


async def _methods(member: Member, port: int, task: Any) -> Methods:
    """What an honest device sends, of each kind: a visit that it does not hand in."""
    async with member.connect(port) as channel:
        calls = services.stubs(services.FLEET, channel)
        check_in = pb.CheckInRequest(
            protocol=1, wait_s=0.0, card=codec.write_card(CARD), agent="x", counters={"visits": 1.0}
        )
        work = codec.read_answer((await calls.check_in(check_in)).answer)
        assert isinstance(work, codec.Work)
        fetches = [
            pb.FetchRequest(digest=work.program.digest, offset=0),
            pb.FetchRequest(digest=work.model.digest, offset=0, have=bytes(32)),
        ]
        image, model = [(await calls.fetch(fetch)).chunk for fetch in fetches]
    program = Program(image)
    update = RealVisits(task)(work, program, model)
    run, base, size = work.run, work.model.digest, program.layout.size
    grown = replace(update, values=bytes(8), places=bytes(4) + b"\7\0\0\0")
    small = rounded(update, "int8")
    payloads = [codec.write_values(each, size) for each in (update, small, grown)]
    submits = [s for p in payloads for s in codec.submit_requests(update, run, base, p, 0.0)]
    renewals = [pb.RenewRequest(csr_der=bytes(300))]
    return {"CheckIn": [check_in], "Fetch": fetches, "Submit": submits, "Renew": renewals}


async def _fuzz(
    member: Member, port: int, methods: Methods, count: int, codes: Counter[grpc.StatusCode]
) -> None:
    draws = Random(f"{member.device} {codes.total()}")
    async with member.connect(port) as channel:
        calls = {name: channel.unary_unary(f"/fedtiny.v1.Fleet/{name}") for name in methods}
        for _ in range(count):
            name = draws.choice(("CheckIn", "Fetch", "Submit", "Submit", "Submit", "Renew"))
            # Now and then the message of another method.
            kind = name if draws.random() < 0.95 else draws.choice(list(methods))
            try:
                await calls[name](mutated(methods[kind], draws), timeout=ANSWER_S)
                codes[grpc.StatusCode.OK] += 1
            except grpc.aio.AioRpcError as error:
                codes[error.code()] += 1


@asynccontextmanager
async def _living(
    process: CoordinatorProcess, members: list[Member], task: Any
) -> AsyncIterator[Figures]:
    logs = process.folder / "logs"
    logs.mkdir()
    with Log(logs / "swarm.jsonl") as log:
        swarm = Swarm(members, process.port, Conduct(RealVisits(task)), log)
        async with beside(swarm.live(WITHIN_S)):
            yield swarm.figures


async def _run(process: CoordinatorProcess, members: list[Member], task: Any) -> Fuzzed:
    methods = await _methods(members[-1], process.port, task)
    codes: Counter[grpc.StatusCode] = Counter()
    fuzzers = members[HONEST:]

    async def all_of_them(count: int) -> None:
        each = count // FUZZERS
        await asyncio.gather(*(_fuzz(m, process.port, methods, each, codes) for m in fuzzers))

    async with _living(process, members[:HONEST], task) as figures:
        held_bytes = []
        for _ in range(PASSES):
            await all_of_them(REQUESTS // PASSES)
            held_bytes.append(process.rss_bytes)
        early, late = held_bytes[1 : PASSES // 2], held_bytes[-PASSES // 2 + 1 :]
        delivered = figures.delivered
        end = time.monotonic() + 10
        while figures.delivered < delivered + HONEST and time.monotonic() < end:
            await asyncio.sleep(0.02)
        assert figures.delivered >= delivered + HONEST, "nobody can work any more"
    refusals = _refusals(process)
    process.kill()
    return Fuzzed(codes, refusals, mean(late) - mean(early), Told.of(process, figures))


def _refusals(process: CoordinatorProcess) -> dict[str, float]:
    text = urlopen(f"http://{process.status()['metrics']}/metrics").read().decode()
    found = re.findall(r'fedtiny_refusals_total\{reason="(.+?)"\} (\S+)', text)
    return {reason: float(count) for reason, count in found}


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Fuzzed:
    folder = tmp_path_factory.mktemp("fuzz")
    path = experiment(
        folder, HONEST + FUZZERS, cohort=HONEST, rounds=100_000, deadline=0.5, minimum=1,
        over_selection="2.0", seeded=False,
    )  # fmt: skip
    members = enlist(folder / "fleet", HONEST + FUZZERS)
    task = Workload.of(Experiment.load(path)).task
    with CoordinatorProcess(path, folder / "fleet", "--metrics", "127.0.0.1:0") as process:
        process.serve()
        return asyncio.run(_run(process, members, task))


def test_the_coordinator_stays_up_and_no_error_is_its_own(fuzzed: Fuzzed) -> None:
    assert fuzzed.told.deaths == ()
    assert fuzzed.codes.total() >= REQUESTS * 0.99
    assert fuzzed.codes.keys() <= CODES
    assert fuzzed.codes[grpc.StatusCode.OK] > REQUESTS / 20
    assert fuzzed.codes[grpc.StatusCode.INVALID_ARGUMENT] > REQUESTS / 20


def test_every_refusal_is_counted_by_its_reason(fuzzed: Fuzzed) -> None:
    told = sum(fuzzed.codes[code] for code in COUNTED)
    assert sum(fuzzed.refusals.values()) >= told
    assert len(fuzzed.refusals) >= 8


def test_its_memory_does_not_grow(fuzzed: Fuzzed) -> None:
    assert fuzzed.grown_bytes < MOST_GROWTH_BYTES


def test_honest_devices_lose_nothing_meanwhile(fuzzed: Fuzzed) -> None:
    # What a fuzzer handed in may have been right: nobody has a log of it.
    flaws = [flaw for flaw in fuzzed.told.flaws if not flaw.endswith("nobody handed it in")]
    assert flaws == []
    assert fuzzed.told.figures.refused == []
