"""The link of an agent: one gRPC channel for the life of the process, nothing retried behind it.

The session decides when to try again; gRPC only carries. What the coordinator says about the next
step comes with the receipt, and stands for the next check-in.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from fedtiny.agent.blobs import Blobs
from fedtiny.agent.faults import fault
from fedtiny.agent.identity import Identity, signer
from fedtiny.agent.limits import Traffic
from fedtiny.agent.store import Origin, Store
from fedtiny.engine.image import MAX_IMAGE_BYTES
from fedtiny.errors import (
    IdentityError,
    ImageError,
    OutdatedError,
    RunError,
)
from fedtiny.values import INVALID, DeviceCard, Instruction, Lease, Receipt, Update
from fedtiny.wire import codec, signing
from fedtiny.wire.pb import fleet_pb2 as pb
from fedtiny.wire.services import FLEET, stubs

if TYPE_CHECKING:
    from fedtiny.wire.codec import Answer, Manifest, Work

MOST_MESSAGE_BYTES = 1 << 20
MOST_MODEL_BYTES = 1 << 26
CALL_S = 10.0
"""How long a call may take beyond the time for which it asks the coordinator to wait."""
SUBMIT_WAIT_S = 5.0
"""How long a receipt may wait for the next work to come with it: where rounds are short, that saves
a call in three."""
WAIT_S = 30.0

CHANNEL_OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_send_message_length", MOST_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who this device is to the coordinator, how to reach it, and whose manifests it trusts.

    ``connect`` makes a channel to the ``address`` with the certificate of the moment.
    """

    device: int
    address: str
    connect: Callable[[], grpc.Channel]
    signer: bytes
    metadata: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, folder: Path) -> Peer:
        """The device that has joined from this folder."""
        identity = Identity.load(folder)

        def connect() -> grpc.Channel:
            return identity.channel(folder, list(CHANNEL_OPTIONS))

        return cls(identity.index, identity.address, connect, signer(folder), identity.metadata)


class GrpcLink:
    """`fedtiny.device.link.Link` over gRPC, and what an agent needs beside it.

    Args:
        peer: Who is calling, and whom.
        blobs: Where what was fetched is kept.
        traffic: Counts the bytes of messages.
        clock: Seconds, those of the session.
        wait_s: How long a check-in may wait at the coordinator for work.
    """

    def __init__(
        self,
        peer: Peer,
        blobs: Blobs,
        traffic: Traffic,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait_s: float = WAIT_S,
    ) -> None:
        self.peer, self.blobs, self.traffic, self.wait_s = peer, blobs, traffic, wait_s
        self.work: Work | None = None
        self.origin: Origin | None = None
        """Of the update that is to be handed in."""
        self.card: DeviceCard | None = None
        """To be told at the next check-in."""
        self.agent = ""
        self.counters: dict[str, float] = {}
        self.gave_up: tuple[int, str] | None = None
        """A lease on which nothing will be sent, and why; to be told at the next check-in."""
        self.reason = ""
        """Why there was no work, if the coordinator said so."""
        self._store: Store = blobs.store
        self.clock = clock
        self._next: tuple[float, Answer] | None = None
        self._versions: dict[str, Any] = self._store.document("versions")
        self._verified: dict[str, tuple[bytes, bytes]] = {}
        self._have = _NOTHING
        self.reconnect()

    def reconnect(self) -> None:
        """A new channel, with the certificate of the moment."""
        if hasattr(self, "_channel"):
            self.close()
        self._channel = self.peer.connect()
        self._stubs = stubs(FLEET, self._channel)

    def close(self) -> None:
        """Ends every call that is under way."""
        self._channel.close()

    # -- what a session asks --

    def check_in(self) -> tuple[Lease, Instruction] | float:
        """Work, or the time (seconds) to come back at; infinity: the run is over."""
        at, answer = self._next or (0.0, None)
        self._next = None
        if answer is None or self._is_over(at, answer):
            at, answer = self._ask()
        return self._told(at, answer)

    def fetch(self, version: int) -> bytes:
        """The model of that version: little-endian float32."""
        work = self._work
        if work.model.version != version:
            raise ConnectionError(f"version {version:,} is not what this device was asked to train")
        run = work.run.hex()
        self._check_version(run, version)
        model = self._trusted(work.model, MOST_MODEL_BYTES)
        self._have = work.model.digest
        if version > self._versions.get(run, -1):
            self._versions[run] = version
            self._store.write_document("versions", self._versions)
        return model

    def program(self) -> bytes:
        """The image of the Program to run."""
        return self._trusted(self._work.program, MAX_IMAGE_BYTES)

    def instruction(self) -> Instruction:
        """What is asked, with the masks and vectors that it names by digest."""
        asked = self._work.instruction
        found = {
            digest: self._fetched(digest, MOST_MODEL_BYTES, "vector")
            for digest in codec.digests_of(asked)
        }
        return codec.resolve(asked, found)

    def submit(self, update: Update) -> Receipt:
        """Hand an update in; may be repeated until there is a receipt."""
        origin = self.origin
        if origin is None:
            raise RunError("there is no update to hand in: nothing has been worked on")
        reply, wait_s = None, min(self.wait_s, SUBMIT_WAIT_S)
        payload = codec.write_values(update, origin.size, given=origin.mask)
        for request in codec.submit_requests(update, origin.run, origin.base, payload, wait_s):
            try:
                reply = self._call("submit", "submit", request, wait_s)
            except _RefusedError as error:
                return Receipt(update.lease, INVALID, str(error))
            if reply.HasField("receipt"):
                break
        if reply is None or not reply.HasField("receipt"):
            raise ConnectionError("the update was taken in, but there is no receipt")
        if reply.HasField("answer"):
            self._next = self.clock(), codec.read_answer(reply.answer)
        return codec.read_receipt(reply.receipt)

    @property
    def next_s(self) -> float | None:
        """Seconds until there is more to do, as far as the coordinator has said so."""
        answer = self._next[1] if self._next else None
        return answer.after_s if isinstance(answer, codec.ComeBack) else None

    # -- answers --

    def _ask(self) -> tuple[float, Answer]:
        request = pb.CheckInRequest(
            protocol=codec.PROTOCOL, wait_s=self.wait_s, agent=self.agent if self.card else "",
            counters={name: value for name, value in self.counters.items() if value},
        )  # fmt: skip
        if self.card:
            request.card.CopyFrom(codec.write_card(self.card))
        if self.gave_up:
            request.gave_up, request.why = self.gave_up
        reply = self._call("check_in", "check_in", request, self.wait_s)
        if reply.protocol < codec.OLDEST:
            raise OutdatedError(
                f"the coordinator speaks protocol {reply.protocol}, this agent at least "
                f"{codec.OLDEST}; update the coordinator, or install an older agent"
            )
        self.card = self.gave_up = None
        self.counters.clear()
        return self.clock(), codec.read_answer(reply.answer)

    def _told(self, at: float, answer: Answer) -> tuple[Lease, Instruction] | float:
        self.reason = "" if isinstance(answer, codec.Work) else answer.reason
        if isinstance(answer, codec.Dismissed):
            return math.inf
        if isinstance(answer, codec.ComeBack):
            return at + answer.after_s
        self.work = answer
        return answer.since(at), answer.instruction

    def _is_over(self, at: float, answer: Answer) -> bool:
        """Whether the lease of a kept answer has ended meanwhile."""
        return isinstance(answer, codec.Work) and at + answer.expires_in_s <= self.clock()

    @property
    def _work(self) -> Work:
        if self.work is None:
            raise RunError("nothing was asked of this device yet: check in first")
        return self.work

    # -- fetching --

    def _trusted(self, manifest: Manifest, most_bytes: int) -> bytes:
        """What the manifest names, if the coordinator has signed it."""
        kind = manifest.kind
        text = manifest.text(self._work.run)
        known = self._verified.get(kind) == (text, manifest.signature)
        if not known and not signing.verify(self.peer.signer, text, manifest.signature):
            raise ImageError(
                f"the {kind} of version {manifest.version:,} has no valid signature of the "
                "coordinator; join again if its keys were made anew"
            )
        self._verified[kind] = text, manifest.signature
        if manifest.size > most_bytes:
            raise ImageError(
                f"the {kind} is to have {manifest.size:,} B; at most {most_bytes:,} B are fetched"
            )
        return self._fetched(manifest.digest, manifest.size, kind)

    def _check_version(self, run: str, version: int) -> None:
        known = self._versions.get(run, 0)
        if version < known:
            raise ImageError(
                f"the model is of version {version:,}, this device has seen {known:,}; an older "
                "one is not trained"
            )

    def _fetched(self, digest: bytes, size: int, kind: str) -> bytes:
        """The blob: from the folder, or over the link."""
        body = self.blobs.get(digest)
        if body is None:
            body = self._download(digest, size, kind)
            self.blobs.keep(digest, body)
        return body

    def _download(self, digest: bytes, size: int, kind: str) -> bytes:
        begun = self.blobs.begun(digest)
        have = self._have if kind == "model" and not begun else _NOTHING
        first = self._chunk(digest, len(begun), have, kind)
        if first.is_delta:
            base = self.blobs.get(have)
            delta = b"".join(self._chunks(digest, first, 0, size, have, kind))
            body = codec.lay_over(base or b"", delta)
        else:
            body = begun
            for chunk in self._chunks(digest, first, len(begun), size, _NOTHING, kind):
                body += chunk
                if len(body) < first.total:
                    self.blobs.go_on(digest, chunk)
        if hashlib.sha256(body).digest() != digest:
            self._have = _NOTHING
            self.blobs.give_up(digest)
            raise ConnectionError(f"the {kind} has arrived damaged: {len(body):,} B")
        return body

    def _chunks(
        self, digest: bytes, first: Any, at: int, size: int, have: bytes, kind: str
    ) -> Iterator[bytes]:
        """What follows from byte ``at`` on; all of it together is no longer than ``size``."""
        reply = first
        while True:
            at += len(reply.chunk)
            yield reply.chunk
            if reply.total > size or reply.total != first.total or at > reply.total:
                raise ConnectionError(f"the {kind} is said to have {reply.total:,} of {size:,} B")
            if at == reply.total:
                return
            if not reply.chunk:
                raise ConnectionError(f"the {kind} broke off at byte {at:,} of {reply.total:,}")
            reply = self._chunk(digest, at, have, kind)

    def _chunk(self, digest: bytes, offset: int, have: bytes, kind: str) -> Any:
        # A model's requests always name one to compare with, so that they are equally long.
        compared = {"have": have} if kind == "model" else {}
        return self._call(kind, "fetch", pb.FetchRequest(digest=digest, offset=offset, **compared))

    # -- calls --

    def _call(self, kind: str, method: str, request: Any, wait_s: float = 0.0) -> Any:
        down = 0
        try:
            reply = getattr(self._stubs, method)(
                request, timeout=wait_s + CALL_S, metadata=self.peer.metadata
            )
            down = reply.ByteSize()
            return reply
        except grpc.RpcError as error:
            raise _fault(error) from None
        except ValueError as closed:  # of grpc, for a channel that `close` has ended
            raise ConnectionError(str(closed)) from None
        finally:
            self.traffic.add(kind, request.ByteSize(), down)


class _RefusedError(ConnectionError):
    """The coordinator says that the request itself is wrong."""


_NOTHING = bytes(codec.DIGEST_BYTES)
_IDENTITY = {"UNAUTHENTICATED": "unknown", "PERMISSION_DENIED": "revoked"}
_PROTOCOL = ("FAILED_PRECONDITION", "UNIMPLEMENTED")


def _fault(error: Any) -> Exception:
    """What a failed call means to a session."""
    code, details = error.code().name, str(error.details())
    if code in _IDENTITY:
        return IdentityError(_IDENTITY[code], f"the coordinator refuses this device: {details}")
    if code in _PROTOCOL:
        return OutdatedError(f"the coordinator refuses this agent: {details}; update fedtiny")
    if code == "INVALID_ARGUMENT":
        return _RefusedError(details)
    return fault(error)
