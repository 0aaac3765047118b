"""A coordinator in a few lines, for agents: the rounds in memory behind a real gRPC server."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtiny.agent.agent import Agent
from fedtiny.agent.blobs import Blobs
from fedtiny.agent.grpc_link import GrpcLink, Peer
from fedtiny.agent.identity import Identity, Told
from fedtiny.agent.limits import Limits, Traffic
from fedtiny.agent.reports import VisitReport
from fedtiny.agent.sources import Source, TaskSource
from fedtiny.agent.store import Store
from fedtiny.data.tasks import SineTask
from fedtiny.durable import write_whole
from fedtiny.engine.compile import compile
from fedtiny.engine.program import Program
from fedtiny.engine.zoo import mlp
from fedtiny.masks import remembered
from fedtiny.rounds.coordinator import Coordinator
from fedtiny.rounds.journal import MemoryJournal
from fedtiny.rounds.rules import Rules
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.values import Receipt, Sgd
from fedtiny.wire import codec
from fedtiny.wire.pb import fleet_pb2 as pb
from fedtiny.wire.services import FLEET, handler

if TYPE_CHECKING:
    from fedtiny.strategies.base import Strategy
    from fedtiny.tensors import Float32

RUN = b"run-of-8"
SEED = 7
TASK = SineTask(support=8, query=4)
PROGRAM = compile(mlp((1, 8, 1)), loss="mse", ram="64KiB", batch=4, sgd=Sgd())

Fault = Callable[[Any, grpc.ServicerContext], None]


@dataclass
class SmallFleet:
    """Serves `devices` devices ``rounds`` rounds.

    ``faults`` are called by method before it acts, and ``after`` it acted, before it answers.
    """

    strategy: Strategy = field(default_factory=lambda: FedAvg(cohort=1))
    rounds: int = 3
    devices: int = 1
    program: Program = PROGRAM
    faults: dict[str, Fault] = field(default_factory=dict)
    after: dict[str, Fault] = field(default_factory=dict)
    chunk_bytes: int = codec.CHUNK_BYTES

    def __post_init__(self) -> None:
        initial = np.asarray(self.program.initial(SEED))
        rules = Rules(self.rounds, self.strategy.cohort, 100.0, self.strategy.cohort, seed=SEED)
        self.coordinator = Coordinator(
            rules, self.strategy, self.program.layout, initial, MemoryJournal(), self.devices
        )
        self.density = self.program.density
        self.key = Ed25519PrivateKey.generate()
        self.blobs = {bytes.fromhex(self.program.digest): self.program.image}
        self.calls: list[Any] = []
        self.payloads: dict[int, bytes] = {}
        self.receipts: list[Receipt] = []
        self.lock = threading.Lock()

    @property
    def due(self) -> codec.Due:
        """What the open round takes."""
        open = self.coordinator.open
        masks = {codec.mask_name(b): remembered(b, open.layout) for _, b in open.instruction.masks}
        return codec.Due(open.size, 1 << 20, masks, open.layout)

    @property
    def signer(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    @property
    def model(self) -> Float32:
        return self.coordinator.model

    def count(self, kind: type) -> int:
        return sum(isinstance(call, kind) for call in self.calls)

    # -- the service --

    def check_in(self, request: pb.CheckInRequest, context: Any) -> pb.CheckInReply:
        self._meet("check_in", request, context)
        with self.lock:
            answer = self._answer(_device(context))
        reply = pb.CheckInReply(answer=codec.write_answer(answer), protocol=codec.PROTOCOL)
        self.after.get("check_in", _nothing)(reply, context)
        return reply

    def fetch(self, request: pb.FetchRequest, context: Any) -> pb.FetchReply:
        self._meet("fetch", request, context)
        body = self.blobs.get(request.digest)
        if body is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "the blob is gone")
        assert body is not None
        have = self.blobs.get(request.have)
        delta = codec.write_delta(have, body) if have else None
        content = body if delta is None else delta
        chunk = content[request.offset : request.offset + self.chunk_bytes]
        reply = pb.FetchReply(chunk=chunk, total=len(content), is_delta=delta is not None)
        self.after.get("fetch", _nothing)(reply, context)
        return reply

    def submit(self, request: pb.SubmitRequest, context: Any) -> pb.SubmitReply:
        self._meet("submit", request, context)
        with self.lock:
            before = self.payloads.get(request.update.lease, b"") if request.offset else b""
            payload = before + request.chunk
            self.payloads[request.update.lease] = payload
            if len(payload) < request.total:
                return pb.SubmitReply(received=len(payload))
            _, _, update = codec.read_update(request.update, payload, self.due)
            (receipt,) = self.coordinator.submit(0.0, [update])
            self.receipts.append(receipt)
            answer = self._answer(_device(context))
        reply = pb.SubmitReply(
            receipt=codec.write_receipt(receipt),
            received=len(payload),
            answer=codec.write_answer(answer),
        )
        self.after.get("submit", _nothing)(reply, context)
        return reply

    def renew(self, request: pb.RenewRequest, context: Any) -> pb.RenewReply:
        raise NotImplementedError

    # -- what it says --

    def _meet(self, name: str, request: Any, context: Any) -> None:
        self.calls.append(request)
        self.faults.get(name, _nothing)(request, context)

    def _answer(self, device: int) -> codec.Answer:
        found = self.coordinator.check_in(0.0, device)
        if found == float("inf"):
            return codec.Dismissed("the run is over")
        if isinstance(found, float):
            return codec.ComeBack(0.05)
        lease, instruction = found
        instruction = instruction.of(self.density)
        detached, vectors = codec.detach(instruction)
        model = self.coordinator.model.tobytes()
        if instruction.mask:
            live = remembered(instruction.mask, self.coordinator.layout).bools
            model = self.coordinator.model[live].tobytes()
        self.blobs |= vectors | {hashlib.sha256(model).digest(): model}
        return codec.Work(
            RUN, SEED, lease, 100.0, detached,
            self.manifest("program", 0, self.program.image),
            self.manifest("model", lease.version, model),
        )  # fmt: skip

    def manifest(self, kind: str, version: int, body: bytes) -> codec.Manifest:
        bare = codec.Manifest(kind, version, len(body), hashlib.sha256(body).digest())
        return replace(bare, signature=self.key.sign(bare.text(RUN)))


def _nothing(_: Any, __: Any) -> None:
    """No fault."""


def _device(context: Any) -> int:
    return int(dict(context.invocation_metadata())["fedtiny-device"])


@contextmanager
def served(fleet: SmallFleet) -> Iterator[int]:
    """The port at which the fleet is served, over loopback."""
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([handler(FLEET, fleet)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


# ---- agents of it --------------------------------------------------------------------------------


def joined(folder: Path, fleet: SmallFleet, port: int, device: int = 0) -> Store:
    """The folder of a device that has joined the fleet."""
    store = Store(folder)
    store.make()
    Identity(device, "127.0.0.1", port, True, 0.0, 0.0, Told.now(time.time())).save(folder)
    write_whole(folder / "signer.bin", fleet.signer)
    return store


@dataclass
class Hand:
    """An agent, its parts at hand, and what it reported."""

    agent: Agent
    store: Store
    link: GrpcLink
    said: list[VisitReport | str]

    @property
    def visits(self) -> list[VisitReport]:
        return [one for one in self.said if isinstance(one, VisitReport)]

    @property
    def notes(self) -> list[str]:
        return [one for one in self.said if isinstance(one, str)]


def agent_of(
    store: Store,
    source: Source | None = None,
    limits: Limits | None = None,
    unix_s: Callable[[], float] = time.time,
    **options: Any,
) -> Hand:
    """The agent of a joined folder; by default its samples are those of the sine task."""
    link = GrpcLink(Peer.of(store.folder), Blobs(store), Traffic(store, unix_s), wait_s=0.0)
    said: list[VisitReport | str] = []
    source = source or TaskSource(TASK)
    agent = Agent(link, store, source, limits, report=said.append, **options)
    return Hand(agent, store, link, said)
