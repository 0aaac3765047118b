"""The service of the devices, over gRPC: who calls, what may be asked how often, bytes and chunks.

It keeps nothing that must last: what counts is decided and written by the conductor.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from fedtiny.errors import FedtinyError, IdentityError, WireError
from fedtiny.server.conductor import Unavailable
from fedtiny.server.enrolment import Attempts, enrol, renew
from fedtiny.server.hosting import Offered
from fedtiny.server.inbox import CheckIn, Offer
from fedtiny.server.uploads import Uploads
from fedtiny.values import Update, round_of
from fedtiny.wire import codec, visit
from fedtiny.wire.pb import fleet_pb2 as pb

if TYPE_CHECKING:
    from fedtiny.server.conductor import Conductor
    from fedtiny.server.hosting import Hosted
    from fedtiny.server.metrics import Metrics

Context = Any  # grpc.aio.ServicerContext, whose stubs are incomplete

MOST_WAIT_S = 60.0
CALLS_PER_S, CALLS_BURST = 50.0, 400.0
"""What one device may ask for; a fleet of honest ones is paced far below."""


class Allowance:
    """A token bucket for each device."""

    def __init__(self, rate_per_s: float, burst: float) -> None:
        self._rate, self._burst = rate_per_s, burst
        self._levels: dict[int, tuple[float, float]] = {}

    def spend(self, device: int) -> bool:
        """Whether the device may call now."""
        now = time.monotonic()
        level, then = self._levels.get(device, (self._burst, now))
        level = min(self._burst, level + (now - then) * self._rate)
        self._levels[device] = (max(0.0, level - 1.0), now)
        return level >= 1.0


@dataclass(slots=True)
class Traffic:
    """Bytes of the visit that a device is on: those of the model that it fetches."""

    up: int = 0
    down: int = 0


@dataclass(eq=False)
class FleetService:
    """Serves `fedtiny.v1.Fleet`; its methods are called by gRPC."""

    conductor: Conductor
    metrics: Metrics
    insecure: bool = False
    uploads: Uploads = field(default_factory=Uploads)

    def __post_init__(self) -> None:
        self._allowance = Allowance(CALLS_PER_S, CALLS_BURST)
        self._traffic: dict[int, Traffic] = {}
        self.refusals: Counter[str] = Counter()

    # ---- calls

    async def check_in(self, request: pb.CheckInRequest, context: Context) -> pb.CheckInReply:
        """Work, or when to come back; answered when there is work, or the device's wait is over."""
        device = await self._caller(context)
        if request.protocol < codec.OLDEST:
            await self._refuse(
                context, "protocol", grpc.StatusCode.FAILED_PRECONDITION,
                f"the agent speaks protocol {request.protocol}, this coordinator {codec.OLDEST} to "
                f"{codec.PROTOCOL}; update the agent",
            )  # fmt: skip
        self.uploads.forget(device)
        self._traffic.pop(device, None)
        check_in = CheckIn(device, _future(), _patience_s(request))
        if request.HasField("card"):
            check_in.card, check_in.agent = codec.read_card(request.card), request.agent[:100]
        check_in.counters = dict(request.counters)
        if request.HasField("gave_up"):
            check_in.gave_up = min(request.gave_up, _MOST_LEASE), request.why[:_MOST_WHY]
        self.conductor.put(check_in)
        _, answer = await self._answer(check_in.reply, context)
        return pb.CheckInReply(answer=answer, protocol=codec.PROTOCOL)

    async def fetch(self, request: pb.FetchRequest, context: Context) -> pb.FetchReply:
        """A chunk of a Program, a mask, a vector, a model, or what two models differ in."""
        device = await self._caller(context)
        found = self._blob(request.digest)
        if found is None:
            await self._refuse(
                context, "gone", grpc.StatusCode.NOT_FOUND,
                f"the blob {request.digest.hex()[:16]} is gone; check in again",
            )  # fmt: skip
        hosted, body = found
        # A seeded run is to cost what it costs simulated, where models are always whole.
        base = None if hosted.work.experiment.seeded else hosted.models.blobs.get(request.have)
        delta = _delta(base, body) if request.have else None
        content = body if delta is None else delta
        chunk = content[request.offset : request.offset + codec.CHUNK_BYTES]
        reply = pb.FetchReply(chunk=chunk, total=len(content), is_delta=delta is not None)
        if not hosted.models.is_program(request.digest):
            traffic = self._traffic.setdefault(device, Traffic())
            traffic.up += visit.share(request)
            traffic.down += visit.share(reply)
        self.metrics.fetched(len(chunk))
        return reply

    def _blob(self, digest: bytes) -> tuple[Hosted, bytes] | None:
        for hosted in self.conductor.hosted.values():
            body = hosted.models.blobs.get(digest)
            if body is not None:
                return hosted, body
        return None

    async def submit(self, request: pb.SubmitRequest, context: Context) -> pb.SubmitReply:
        """A chunk of an update; the last one is answered with the receipt and what comes next."""
        device = await self._caller(context)
        traffic = self._traffic.setdefault(device, Traffic())
        traffic.up += request.ByteSize()
        hosted = self.conductor.by_id.get(request.update.run)
        if hosted is None:
            await self._refuse_run(context, request.update.run)
        due = hosted.due(request.update.lease, request.update.base)
        payload = self.uploads.add(device, request, due.most_bytes)
        if isinstance(payload, int):
            reply = pb.SubmitReply(received=payload)
            traffic.down += visit.share(reply)
            return reply
        offered = self._read(request.update, payload, device, due)
        offer = Offer(device, hosted.run, offered, _future(), _patience_s(request))
        del self._traffic[device]
        self.conductor.put(offer)
        receipt, answer = await self._answer(offer.reply, context)
        self.metrics.submitted(receipt.status, judged=hosted.sittings.knows(receipt.lease))
        told = codec.write_receipt(receipt)
        return pb.SubmitReply(receipt=told, received=len(payload), answer=answer)

    async def _refuse_run(self, context: Context, run: bytes) -> NoReturn:
        """No run of that id is served; one that is halted may be again."""
        if halted := self.conductor.halted.get(run):
            await self._refuse(context, "halted", grpc.StatusCode.UNAVAILABLE, halted)
        raise WireError("run", f"the run {run.hex()} is not served here")

    def _read(self, message: pb.Update, payload: bytes, device: int, due: codec.Due) -> Offered:
        """The update, or the lease with what is wrong with it: the lease is spent either way."""
        traffic = self._traffic[device]
        try:
            if message.device != device:
                raise WireError("device", f"device {device} sends an update of {message.device}")
            _, base, update = codec.read_update(message, payload, due)
        except WireError as error:
            self.count(error)
            lease = min(message.lease, _MOST_LEASE)
            empty = Update(lease, device, round_of(lease), message.version, 0)
            return Offered(empty, b"", f"{error.reason}: {error}", traffic.up, traffic.down)
        return Offered(update, base, "", traffic.up, traffic.down)

    async def renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewReply:
        """A new certificate for a device that has one."""
        device = await self._caller(context)
        try:
            return await self.conductor.call(
                lambda c: renew(c.devices, c.authority, device, request, time.time())
            )
        except IdentityError as error:
            await self._refuse(context, error.reason, grpc.StatusCode[error.status], str(error))
        except (FedtinyError, Unavailable) as error:
            await _abort(context, error)

    # ---- who, and what was refused

    async def _caller(self, context: Context) -> int:
        """The device that calls: by its certificate or, without any, by what it says."""
        try:
            device = self._identify(context)
        except IdentityError as error:
            await self._refuse(context, error.reason, grpc.StatusCode[error.status], str(error))
        if not self._allowance.spend(device):
            await self._refuse(
                context, "rate", grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"more than {CALLS_PER_S:g} calls/s of one device; call less often",
            )  # fmt: skip
        return device

    def _identify(self, context: Context) -> int:
        devices = self.conductor.devices
        if not self.insecure:
            return devices.identify(context.auth_context())
        told = dict(context.invocation_metadata()).get("fedtiny-device", "")
        index = int(told) if told.isascii() and told.isdecimal() and len(told) < 10 else -1
        devices.check_may_take_part(index)
        return index

    async def _refuse(
        self, context: Context, reason: str, status: grpc.StatusCode, text: str
    ) -> NoReturn:
        self.count(WireError(reason, text))
        await context.abort(status, text)
        raise AssertionError("abort raises")

    def count(self, error: WireError) -> None:
        """One more refusal for that reason."""
        self.refusals[error.reason] += 1
        self.metrics.refused(error.reason)

    async def _answer(self, reply: asyncio.Future[Any], context: Context) -> Any:
        try:
            return await reply
        except Unavailable as error:
            await self._refuse(context, "unavailable", grpc.StatusCode.UNAVAILABLE, str(error))
        except IdentityError as error:
            await self._refuse(context, error.reason, grpc.StatusCode[error.status], str(error))


@dataclass(eq=False)
class EnrolmentService:
    """Serves `fedtiny.v1.Enrolment` to devices that have a token and no certificate."""

    conductor: Conductor
    metrics: Metrics
    fleet_port: int
    insecure: bool = False
    attempts: Attempts = field(default_factory=Attempts)

    async def enrol(self, request: pb.EnrolRequest, context: Context) -> pb.EnrolReply:
        """A device's index and certificate."""
        try:
            with self.attempts.of(context.peer(), time.monotonic()) as attempt:
                reply: pb.EnrolReply = await self.conductor.call(
                    lambda c: enrol(
                        c.devices, c.authority, request, time.time(), self.insecure, attempt
                    )
                )
        except (FedtinyError, Unavailable) as error:
            if not isinstance(error, WireError):  # those are counted where they are answered
                self.count(error)
            await _abort(context, error)
        reply.fleet_port = self.fleet_port
        return reply

    def count(self, error: Exception) -> None:
        """One more refusal for its reason."""
        self.metrics.refused(getattr(error, "reason", "unavailable"))


async def _abort(context: Context, error: Exception) -> NoReturn:
    """End the call with the status that says the error."""
    if isinstance(error, WireError):
        raise error
    if isinstance(error, IdentityError):
        await context.abort(grpc.StatusCode[error.status], str(error))
    busy = isinstance(error, Unavailable)
    status = grpc.StatusCode.UNAVAILABLE if busy else grpc.StatusCode.FAILED_PRECONDITION
    await context.abort(status, str(error))
    raise AssertionError("abort raises")


_MOST_LEASE, _MOST_WHY = 2**63 - 1, 300


def _patience_s(request: pb.CheckInRequest | pb.SubmitRequest) -> float:
    """How long a device may wait for its answer; NaN is not at all."""
    return min(request.wait_s, MOST_WAIT_S) if request.wait_s > 0 else 0.0


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


@lru_cache(maxsize=32)
def _delta(have: bytes | None, model: bytes) -> bytes | None:
    """The difference, if it is shorter than the model; made once for all who have the same."""
    return None if have is None or len(have) != len(model) else codec.write_delta(have, model)
