"""Many devices in one process: real sessions over real channels, each call in a log.

A device here is the agent's table of the session, interpreted by a coroutine: it has a certificate
and a connection of its own, and differs from an agent in what it lacks: a disk, limits, a process.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Protocol

import grpc
import numpy as np

from fedtiny.agent.grpc_link import SUBMIT_WAIT_S
from fedtiny.data.tables import Task
from fedtiny.device.learner import Key, Learner
from fedtiny.device.session import Command, Event, Session, State, advance
from fedtiny.engine.program import Program
from fedtiny.errors import DataError, WireError
from fedtiny.layout import Ranges
from fedtiny.values import ACCEPTED, DUPLICATE, DeviceCard, Lease, Receipt, Update
from fedtiny.wire import codec, services
from fedtiny.wire.codec import ComeBack, Work
from fedtiny.wire.int8 import grid_of, on_grid, sent_model
from fedtiny.wire.pb import fleet_pb2 as pb
from tests.harness.history_check import CHECK_IN, FAIL, OK, SUBMIT, UNKNOWN, Log
from tests.harness.members import CARD, Member

AGENT = "swarm"
_NONE_YET = bytes(32)
"""The `have` of a device that has no model."""
_REFUSED = (
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED,
)  # fmt: skip
_TAKEN_OUT = (
    grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.FAILED_PRECONDITION,
)  # fmt: skip


class Clock:
    """The devices' time, which may run faster than the world's: their pauses are then shorter."""

    def __init__(self, pace: float = 1.0) -> None:
        self._pace, self._start = pace, time.monotonic()

    def now(self) -> float:
        return (time.monotonic() - self._start) * self._pace

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds) / self._pace)


# ---- what a device does with its instruction -----------------------------------------------------


class Visitor(Protocol):
    """Carries out an instruction. Raises DataError when it cannot be done."""

    def __call__(self, work: Work, program: Program, model: bytes) -> Update: ...


@dataclass
class RealVisits:
    """Real training on the samples of a task; one Learner for each Program."""

    task: Task
    learners: dict[str, Learner] = field(default_factory=dict)

    def __call__(self, work: Work, program: Program, model: bytes) -> Update:
        learner = self.learners.setdefault(program.digest, Learner(program))
        key = Key(work.seed, work.lease.round, work.lease.device)
        outcome = learner.visit(
            work.instruction,
            sent_model(program, program.layout, work.instruction, model),
            lambda part: learner.samples(*self.task.samples(key.run, key.round, key.device, part)),
            key,
        )
        update = _update(
            work.lease, outcome.samples, outcome.values, outcome.ranges, outcome.measures
        )
        update = replace(update, mask=outcome.mask, places=outcome.places)
        steps = grid_of(program, program.layout, work.instruction, model)
        return on_grid(update, steps) if steps else update


@dataclass
class CannedVisits:
    """Updates that cost next to nothing: a model that moves everywhere. For load."""

    def __call__(self, work: Work, program: Program, model: bytes) -> Update:
        ranges = program.sent_ranges(work.instruction)
        moved = np.frombuffer(model, np.float32) * np.float32(0.99)
        values = b"".join(moved[start:stop].tobytes() for start, stop in ranges)
        return _update(work.lease, 8, values, ranges, {"loss_sum": 1.0, "steps": 8.0})


def _update(
    lease: Lease, samples: int, values: bytes, ranges: Ranges, measures: Mapping[str, float]
) -> Update:
    ids = lease.id, lease.device, lease.round, lease.version
    return Update(*ids, samples, values, ranges, measures)


# ---- a device ------------------------------------------------------------------------------------


@dataclass
class Figures:
    """What a swarm has done."""

    receipts: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    refused: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    """Answers that came with the wrong bytes."""
    up_bytes: int = 0
    down_bytes: int = 0
    check_in_s: list[float] = field(default_factory=list)
    submit_s: list[float] = field(default_factory=list)

    def receive(self, status: str) -> None:
        self.receipts[status] = self.receipts.get(status, 0) + 1

    @property
    def delivered(self) -> int:
        """Updates that were acknowledged."""
        return sum(self.receipts.get(status, 0) for status in (ACCEPTED, DUPLICATE))


class Blobs:
    """What the devices of a process have fetched: one copy of each, the last few models."""

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._bodies: dict[bytes, bytes] = {}
        self._programs: dict[bytes, Program] = {}

    def keep(self, digest: bytes, body: bytes) -> bytes:
        body = self._bodies.pop(digest, body)
        self._bodies[digest] = body
        while len(self._bodies) > self._most:
            del self._bodies[next(iter(self._bodies))]
        return body

    def program(self, image: bytes) -> Program:
        digest = hashlib.sha256(image).digest()
        return self._programs.setdefault(digest, Program(image))


@dataclass
class Conduct:
    """How the devices of a swarm behave."""

    visit: Visitor
    wait_s: float = 20.0
    receipt_wait_s: float = SUBMIT_WAIT_S
    """How long a receipt may wait for the next work to come with it."""
    call_s: float = 10.0
    """How long a call may take beyond that."""
    answers: Callable[[Lease], bool] = lambda lease: True
    """Whether the device of this lease comes back at all."""
    pause: Callable[[Lease], Awaitable[None]] | None = None
    """Between the work and handing it in."""
    twice: bool = False
    """Whether every update is handed in a second time, after its receipt."""
    protocol: int = codec.PROTOCOL
    card: Callable[[int], DeviceCard] = lambda device: CARD
    """What each device says that it can do."""


class Device:
    """One device: a session, a connection, and a coroutine that lives it."""

    # There once the table of the session asks for something that needs them.
    work: Work
    program: Program
    update: Update

    def __init__(
        self, member: Member, port: int, conduct: Conduct, clock: Clock, log: Log,
        blobs: Blobs, figures: Figures,
    ) -> None:  # fmt: skip
        self.member, self.conduct, self.clock, self.log = member, conduct, clock, log
        self.blobs, self.figures = blobs, figures
        self.session = Session(0, member.device)
        self.port = port
        self.channel = member.connect(port)
        self.calls: SimpleNamespace = services.stubs(services.FLEET, self.channel)
        self.answer: codec.Answer | None = None
        self.image = b""
        self.have = _NONE_YET
        self.model = b""
        self.introduced = False
        self.why_stopped = ""

    async def live(self) -> None:
        """Until the run is over, or the device is taken out of it."""
        try:
            while self.session.state != State.STOPPED:
                event = self.session.due(self.clock.now())
                if event is None:
                    await self.clock.sleep(self._next_due() - self.clock.now())
                while event is not None:
                    event = await self._meet(event)
        finally:
            await self.channel.close()

    async def reconnect(self) -> None:
        """Over a new connection; calls that are under way are lost."""
        old, self.channel = self.channel, self.member.connect(self.port)
        self.calls = services.stubs(services.FLEET, self.channel)
        await old.close()

    def _next_due(self) -> float:
        waiting = self.session.state in (State.IDLE, State.HOLDING)
        wakes_at = self.session.wakes_at if waiting else float("inf")
        return min(wakes_at, self.session.lease.deadline if self.session.lease else float("inf"))

    async def _meet(
        self, event: Event, lease: Lease | None = None, until: float = 0.0
    ) -> Event | None:
        """One event, and the command that it leads to."""
        self.session, command = advance(self.session, event, self.clock.now(), lease, until)
        try:
            return await self._carry_out(command)
        except grpc.aio.AioRpcError as error:
            return self._failed(error)
        except WireError as damaged:
            self.figures.damaged.append(str(damaged))
            return Event.LOST

    def _failed(self, error: grpc.aio.AioRpcError) -> Event:
        if error.code() in _TAKEN_OUT:
            self.why_stopped = error.details() or ""
            return Event.REVOKED
        refused = error.code() == grpc.StatusCode.INVALID_ARGUMENT
        if refused:
            self.figures.refused.append(error.details() or "")
        else:
            self.figures.lost += 1
        return Event.REFUSED if refused and self.session.state == State.SENDING else Event.LOST

    async def _carry_out(self, command: Command) -> Event | None:
        match command:
            case Command.CHECK_IN:
                return await self._check_in()
            case Command.FETCH:
                await self._fetch_work()
                return Event.FETCHED
            case Command.WORK:
                return await self._visit()
            case Command.SUBMIT:
                return await self._submit()
        return None

    # ---- checking in

    async def _check_in(self) -> Event | None:
        if self.answer:  # it came with the last receipt
            answer, self.answer = self.answer, None
            self._log_answer(self.log.invoke(CHECK_IN, self.member.device), answer)
        else:
            answer = await self._ask()
        if isinstance(answer, Work):
            self.work = answer
            return await self._meet(Event.INSTRUCTED, answer.since(self.clock.now()))
        if isinstance(answer, ComeBack):
            until = self.clock.now() + answer.after_s
            return await self._meet(Event.TOLD_TO_WAIT, until=until)
        self.why_stopped = answer.reason
        return Event.DISMISSED

    async def _ask(self) -> codec.Answer:
        request = pb.CheckInRequest(protocol=self.conduct.protocol, wait_s=self.conduct.wait_s)
        if not self.introduced:
            request.card.CopyFrom(codec.write_card(self.conduct.card(self.member.device)))
            request.agent = AGENT
        call = self.log.invoke(CHECK_IN, self.member.device)
        start = time.perf_counter()
        reply = await self._call(self.calls.check_in, request, call, CHECK_IN)
        self.introduced = True
        answer = codec.read_answer(reply.answer)
        if isinstance(answer, Work):
            self.figures.check_in_s.append(time.perf_counter() - start)
        self._log_answer(call, answer)
        return answer

    def _log_answer(self, call: int, answer: codec.Answer) -> None:
        facts: dict[str, str | int] = {}
        if isinstance(answer, Work):
            facts = {"run": answer.run.hex(), "version": answer.lease.version}
            facts |= {"lease": answer.lease.id, "digest": answer.model.digest.hex()}
        self.log.end(call, CHECK_IN, OK, self.member.device, **facts)

    # ---- fetching and working

    async def _fetch_work(self) -> None:
        if self.image != self.work.program.digest:
            self.program = self.blobs.program(await self._fetch(self.work.program.digest, b""))
            self.image = self.work.program.digest
        self.model = await self._fetch(self.work.model.digest, self.have)
        self.have = self.work.model.digest
        wanted = codec.digests_of(self.work.instruction)
        bodies = {digest: await self._fetch(digest, b"") for digest in wanted}
        instruction = codec.resolve(self.work.instruction, bodies)
        self.work = replace(self.work, instruction=instruction)

    async def _fetch(self, digest: bytes, have: bytes) -> bytes:
        """The whole body; with ``have`` it is a model, and may come as a difference."""
        body, total, is_delta = b"", 1, False
        while len(body) < total:
            request = pb.FetchRequest(digest=digest, offset=len(body), have=have)
            reply = await self._call(self.calls.fetch, request)
            body, total, is_delta = body + reply.chunk, reply.total, reply.is_delta
        if is_delta:
            body = bytes(codec.lay_over(self.model, body))
        if hashlib.sha256(body).digest() != digest:
            raise WireError("digest", f"{digest.hex()[:12]} came as other bytes")
        return self.blobs.keep(digest, body)

    async def _visit(self) -> Event | None:
        if not self.conduct.answers(self.work.lease):
            return None
        try:
            self.update = self.conduct.visit(self.work, self.program, self.model)
        except DataError:
            return Event.FAILED
        if self.conduct.pause:
            await self.conduct.pause(self.work.lease)
        return Event.FINISHED

    # ---- handing in

    async def _submit(self) -> Event:
        receipt = await self._hand_in(min(self.conduct.wait_s, self.conduct.receipt_wait_s))
        if self.conduct.twice:
            again = await self._hand_in(wait_s=0.0)
            assert again.status == (DUPLICATE if receipt.status == ACCEPTED else receipt.status)
        delivered = receipt.status in (ACCEPTED, DUPLICATE)
        return Event.ACCEPTED if delivered else Event.REFUSED

    @property
    def payload(self) -> bytes:
        """The vector of the update."""
        asked = self.work.instruction
        given = codec.given_mask(self.update, asked)
        return codec.write_values(self.update, asked.floats(self.program.layout), given=given)

    async def _hand_in(self, wait_s: float) -> Receipt:
        update, work = self.update, self.work
        facts: dict[str, str | int] = {"run": work.run.hex(), "lease": update.lease}
        base = work.model.digest
        call = self.log.invoke(
            SUBMIT, self.member.device, version=update.version, digest=base.hex(), **facts
        )
        start = time.perf_counter()
        for request in codec.submit_requests(update, work.run, base, self.payload, wait_s):
            reply = await self._call(self.calls.submit, request, call, SUBMIT, facts)
        self.figures.submit_s.append(time.perf_counter() - start)
        receipt = codec.read_receipt(reply.receipt)
        self.log.end(
            call, SUBMIT, OK, self.member.device, status=receipt.status, detail=receipt.detail,
            **facts,
        )  # fmt: skip
        self.figures.receive(receipt.status)
        if reply.HasField("answer"):
            self.answer = codec.read_answer(reply.answer)
        return receipt

    # ---- one call

    async def _call(
        self, method: Any, request: Any, call: int = 0, op: str = "",
        facts: Mapping[str, str | int] = {},
    ) -> Any:  # fmt: skip
        """The reply; what fails is written to the log as end of ``call``, if that is one."""
        timeout = self.conduct.wait_s + self.conduct.call_s
        self.figures.up_bytes += request.ByteSize()
        try:
            reply = await method(request, timeout=timeout, metadata=self.member.metadata)
        except grpc.aio.AioRpcError as error:
            if op:
                kind = FAIL if error.code() in (*_REFUSED, *_TAKEN_OUT) else UNKNOWN
                detail = f"{error.code().name}: {error.details()}"
                self.log.end(call, op, kind, self.member.device, detail=detail, **facts)
            raise
        if reply is None:  # what grpc.aio gives for bytes that are no such message
            raise WireError("malformed", "the answer is no message")
        self.figures.down_bytes += reply.ByteSize()
        return reply


@dataclass
class Swarm:
    """Devices that share a process, a log, and what they have fetched."""

    members: Sequence[Member]
    port: int
    conduct: Conduct
    log: Log
    pace: float = 1.0
    figures: Figures = field(default_factory=Figures)

    @cached_property
    def devices(self) -> list[Device]:
        """Made within the event loop that lives them."""
        clock, blobs = Clock(self.pace), Blobs()
        return [
            Device(member, self.port, self.conduct, clock, self.log, blobs, self.figures)
            for member in self.members
        ]

    async def live(self, within_s: float = 60.0) -> None:
        """Until every device was told that the run is over, or `stop`. Raises TimeoutError."""
        self._lives = [asyncio.create_task(device.live()) for device in self.devices]
        try:
            ended, late = await asyncio.wait(
                self._lives, timeout=within_s, return_when=asyncio.FIRST_EXCEPTION
            )
        finally:
            self.stop()
            await asyncio.gather(*self._lives, return_exceptions=True)
        for life in ended:
            if not life.cancelled():
                life.result()
        if late:
            raise TimeoutError(f"{len(late):,} devices still live after {within_s:g} s")

    def stop(self) -> None:
        """The devices lose their power, all at once."""
        for life in self._lives:
            life.cancel()
