"""The two ports of a coordinator with nothing behind them: enrolment, and calls that say who calls.

No rounds and no conductor: each call is answered under one lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc

from fedtiny.errors import IdentityError
from fedtiny.server import enrolment
from fedtiny.server.authority import Authority
from fedtiny.server.devices import Devices
from fedtiny.server.storage import Database
from fedtiny.values import DeviceCard
from fedtiny.wire import services
from fedtiny.wire.joining import JoinString
from fedtiny.wire.pb import fleet_pb2 as pb

T = TypeVar("T")

CARD = DeviceCard("pi-4", 1 << 30, 1 << 33, 1e9, 1e7, 1e6)


@dataclass
class FleetPort:
    """Serves `grpc.server` threads; ``heard`` collects (method, device) of the calls let in."""

    authority: Authority
    database: Database
    devices: Devices
    insecure: bool
    now: Callable[[], float]
    heard: list[tuple[str, int]] = field(default_factory=list)
    fleet_port: int = 0
    enrol_port: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def join_string(self, uses: int = 1, expires_in_s: float = 3600.0) -> JoinString:
        token = self.devices.create_token("test", expires_in_s, uses, self.now())
        pin = "" if self.insecure else self.authority.pin
        self.database.commit()
        until = int(self.now() + expires_in_s)
        return JoinString("127.0.0.1", self.enrol_port, pin, token, until, self.insecure)

    # ---- what the ports serve ----

    def enrol(self, request: pb.EnrolRequest, context: Any) -> pb.EnrolReply:
        def answer() -> pb.EnrolReply:
            reply = enrolment.enrol(
                self.devices, self.authority, request, self.now(), self.insecure
            )
            reply.fleet_port = self.fleet_port
            return reply

        return self._answered(context, answer)

    def renew(self, request: pb.RenewRequest, context: Any) -> pb.RenewReply:
        def answer() -> pb.RenewReply:
            device = self.devices.identify(context.auth_context())
            return enrolment.renew(self.devices, self.authority, device, request, self.now())

        return self._answered(context, answer)

    def check_in(self, request: pb.CheckInRequest, context: Any) -> pb.CheckInReply:
        return self._answered(context, lambda: pb.CheckInReply(protocol=self._let_in(context)))

    def fetch(self, request: pb.FetchRequest, context: Any) -> pb.FetchReply:
        return self._answered(context, lambda: pb.FetchReply(total=self._let_in(context)))

    def submit(self, request: pb.SubmitRequest, context: Any) -> pb.SubmitReply:
        def answer() -> pb.SubmitReply:
            self._let_in(context)
            return pb.SubmitReply(received=request.offset + len(request.chunk))

        return self._answered(context, answer)

    def _let_in(self, context: Any) -> int:
        device = self.devices.identify(context.auth_context())
        self.heard.append((context.peer(), device))
        return device

    def _answered(self, context: Any, answer: Callable[[], T]) -> T:
        with self.lock:
            try:
                answered = answer()
                self.database.commit()
                return answered
            except IdentityError as error:
                refused = error
        context.abort(getattr(grpc.StatusCode, refused.status), str(refused))
        raise AssertionError("abort raises")


@contextmanager
def serving(
    folder: Path, insecure: bool = False, now: Callable[[], float] = time.time
) -> Iterator[FleetPort]:
    """The ports of the coordinator in the folder, on two free ports of this machine."""
    authority, database = Authority.open(folder), Database(folder)
    port = FleetPort(authority, database, Devices(database.connection), insecure, now)
    with ThreadPoolExecutor(4) as threads:
        fleet, enrol = grpc.server(threads), grpc.server(threads)
        fleet.add_generic_rpc_handlers((services.handler(services.FLEET, port),))
        enrol.add_generic_rpc_handlers((services.handler(services.ENROLMENT, port),))
        port.fleet_port = _listen(fleet, None if insecure else authority.server_credentials())
        port.enrol_port = _listen(enrol, None if insecure else authority.enrolment_credentials())
        fleet.start()
        enrol.start()
        try:
            yield port
        finally:
            fleet.stop(None).wait()
            enrol.stop(None).wait()
            database.close()


def _listen(server: grpc.Server, credentials: grpc.ServerCredentials | None) -> int:
    address = "127.0.0.1:0"
    if credentials is None:
        return int(server.add_insecure_port(address))
    return int(server.add_secure_port(address, credentials))
