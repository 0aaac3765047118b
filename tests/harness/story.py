"""A whole run of a coordinator, from the first token to the last round, whatever happens to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import grpc

from fedtiny.experiment import Experiment
from fedtiny.experiment.workload import Workload
from fedtiny.masks import Mask
from fedtiny.rounds.journal import replay
from fedtiny.server.replaying import Recorded
from fedtiny.server.sqlite_journal import SqliteCommits
from fedtiny.wire.int8 import Weights, weights_of, write_int8
from tests.harness.coordinator_process import CoordinatorProcess
from tests.harness.fault_proxy import FaultProxy
from tests.harness.history_check import Entry, Ledger, Log, check, read_logs
from tests.harness.ledger import read_ledger, read_rows
from tests.harness.members import Applicant, Member
from tests.harness.swarm import Conduct, Figures, RealVisits, Swarm, Visitor

T = TypeVar("T")

_EXPERIMENT = """
seed = 11
seeded = {seeded}

[model]
build = "sine_mlp"

[data]
source = "sine"
support = 8

[device]
density = {density}

[strategy]
name = "{strategy}"
cohort = {cohort}
beta = 0.02

[fleet]
devices = {devices}
held_out = 0
profiles = {{ pi-4 = 1.0 }}

[run]
rounds = {rounds}
deadline = {deadline}
minimum = {minimum}
over_selection = {over_selection}
"""


def experiment(
    folder: Path, devices: int, *, cohort: int = 0, rounds: int = 4, deadline: float = 36000.0,
    minimum: int = 0, over_selection: str = "1.0", seeded: bool = True, strategy: str = "fedavg",
    density: float = 1.0,
) -> Path:  # fmt: skip
    """An experiment file; by default every round needs every device, and waits for it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sine.toml"
    cohort = cohort or devices
    text = _EXPERIMENT.format(
        devices=devices, cohort=cohort, rounds=rounds, deadline=deadline, strategy=strategy,
        minimum=minimum or cohort, over_selection=over_selection, seeded=str(seeded).lower(),
        density=density,
    )  # fmt: skip
    path.write_text(text)
    return path


Trouble = Callable[[CoordinatorProcess, Swarm], Coroutine[Any, Any, None]]


@dataclass
class Story:
    """What is to be told: a coordinator, devices that join it, and what goes wrong meanwhile.

    ``crash`` arms a crash point for the first start; a coordinator that dies is started again.
    ``trouble`` goes on beside the devices, which reach the coordinator over ``proxy`` if there is
    one. Their clocks run ``pace`` times as fast as the world's.
    """

    process: CoordinatorProcess
    devices: int
    crash: str = ""
    trouble: Trouble | None = None
    proxy: FaultProxy | None = None
    pace: float = 50.0
    within_s: float = 45.0
    conduct: Callable[[Visitor], Conduct] = Conduct

    async def tell(self) -> Told:
        """To the end of the run."""
        process, logs = self.process, self.process.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(process.start, self.crash)
        async with beside(process.keep_up()):
            members = await join(process, self.devices)
            if self.proxy:
                self.proxy.target_port = process.port
            with Log(logs / "swarm.jsonl") as log:
                swarm = self._swarm(members, log)
                async with beside(*([self.trouble(process, swarm)] if self.trouble else [])):
                    await swarm.live(self.within_s)
        process.kill()
        return Told.of(process, swarm.figures)

    def _swarm(self, members: list[Member], log: Log) -> Swarm:
        task = Workload.of(Experiment.load(self.process.experiment)).task
        port = self.proxy.listens_on if self.proxy else self.process.port
        return Swarm(members, port, self.conduct(RealVisits(task)), log, self.pace)

    def told(self) -> Told:
        """`tell` in an event loop of its own."""
        return asyncio.run(self.tell())


@dataclass(frozen=True)
class Told:
    """What came of a story: the ledger, what the devices saw, and what does not fit."""

    model: str
    """SHA-256 of the last model, in hex."""
    rows: list[dict[str, Any]]
    """The rounds of the history."""
    deaths: tuple[int, ...]
    flaws: list[str]
    figures: Figures
    entries: list[Entry]

    @classmethod
    def of(cls, process: CoordinatorProcess, figures: Figures) -> Told:
        """As the coordinator's folder has it, which serves no longer."""
        ledger = rebuilt(process.folder, read_ledger(process.folder))
        entries = read_logs(process.folder / "logs")
        rows = [row for row in read_rows(process.folder) if row["kind"] == "round"]
        model = ledger.commits[-1].digest if ledger.commits else ledger.first_digest
        flaws = check(entries, ledger)
        return cls(model, rows, tuple(process.deaths), flaws, figures, entries)

    @property
    def failed_rounds(self) -> int:
        """Rounds to which too few updates came."""
        return sum(row["failed"] for row in self.rows)

    @property
    def receipts(self) -> Counter[str]:
        """How often the devices were told what."""
        return Counter(self.figures.receipts)


def rebuilt(folder: Path, ledger: Ledger, name: str = "sine") -> Ledger:
    """The ledger with every model made anew from the journal."""
    recorded = Recorded.open(folder, name)
    with closing(recorded.connection):
        models = recorded.models()
        digests = {each.version: sha256(each.model.tobytes()).hexdigest() for each in models}
        compact = _compact(recorded)
    replayed = tuple(digests[c.version] for c in ledger.commits)
    late = recorded.work.strategy.max_staleness
    return replace(ledger, replayed=replayed, compact=compact, max_staleness=late)


def _int8_weights(work: Workload) -> set[Weights]:
    programs = [profile.program for profile in work.profiles if profile.program]
    return {weights_of(program, work.training) for program in programs} - {()}


def _compact(recorded: Recorded) -> dict[int, set[str]]:
    """By version, the digests of what of the model is live under each mask of its strategy, and of
    it as each Program with int8 gets it."""
    work, journal = recorded.work, SqliteCommits(recorded.connection, recorded.run)
    first = next(iter(recorded.models())).model
    steps = replay(journal, work.experiment.run.rounds, work.strategy, work.layout, first)
    versions = [0, *(commit.version for commit in journal.commits())]
    found: dict[int, set[str]] = {}
    for version, (model, state) in zip(versions, steps, strict=True):
        live = [Mask.read(blob, work.layout).bools for _, blob in work.strategy.masks(state)]
        sent = [model[each].tobytes() for each in live]
        sent += [write_int8(work.layout, weights, model) for weights in _int8_weights(work)]
        digests = {sha256(body).hexdigest() for body in sent}
        found.setdefault(version, set()).update(digests)
    return found


async def join(process: CoordinatorProcess, devices: int, tokens: int = 3) -> list[Member]:
    """The devices, joined by so many tokens."""
    members: list[Member] = []
    uses = -(-devices // tokens)
    for first in range(0, devices, uses):
        token = await persist(lambda: process.token(uses))
        numbers = range(first, min(first + uses, devices))
        applicants = [Applicant.of(f"device-{number}") for number in numbers]
        members += await asyncio.gather(*(applicant.join(token) for applicant in applicants))
    return members


async def persist(ask: Callable[[], T]) -> T:
    """What the operator is told, asked again until there is an answer."""
    while True:
        with contextlib.suppress(grpc.RpcError):
            return await asyncio.to_thread(ask)
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def beside(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """While these go on; when one of them fails, the block ends, and its error is raised."""
    block = asyncio.current_task()
    assert block is not None

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception():
            block.cancel()

    tasks = [asyncio.create_task(work) for work in works]
    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(end, Exception):
                raise end
