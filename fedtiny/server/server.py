"""A coordinator as a process serves it: its ports, its socket, its thread, and their end."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedtiny.errors import ExperimentError, RunError, WireError
from fedtiny.experiment import Experiment
from fedtiny.server.addresses import beside, check_free, read_address
from fedtiny.server.asking import SOCKET, socket_address
from fedtiny.server.authority import DEVICE_S, Authority
from fedtiny.server.conductor import Conductor
from fedtiny.server.devices import Devices
from fedtiny.server.documents import Place, counted
from fedtiny.server.facts import read_fact, write_fact
from fedtiny.server.metrics import Metrics
from fedtiny.server.operator import OperatorService
from fedtiny.server.sealing import RoundKeys
from fedtiny.server.service import EnrolmentService, FleetService
from fedtiny.server.storage import Database
from fedtiny.wire.services import ENROLMENT, FLEET, OPERATOR, handler

log = logging.getLogger("fedtiny.coordinator")

MOST_MESSAGE_BYTES = 1 << 20
_OPTIONS = (
    ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 8192),
    ("grpc.max_concurrent_streams", 8),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)  # fmt: skip
_DRAIN_S, _GRACE_S = 30.0, 1.0
_CERTIFICATES = "certificates"
"""The fact that a folder has served with certificates."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve. Addresses are HOST:PORT; port 0 takes one that is free.

    Attributes:
        folder: Where everything lies that must last.
        enrol: Where devices join; empty: beside ``listen``, one port further.
        insecure: No certificates: on this machine alone.
        metrics: Where Prometheus asks; empty: nowhere.
        device_s: How long a device's certificate lives, in seconds.
    """

    experiments: Sequence[Experiment]
    folder: Path
    listen: str = "127.0.0.1:8470"
    enrol: str = ""
    new_run: bool = False
    insecure: bool = False
    metrics: str = ""
    device_s: float = DEVICE_S


class Coordinating:
    """A coordinator that serves, from `start` to `stop`. ``place`` says where.

    When ``asked_to_stop`` is set, whoever waits for it calls `stop`.
    """

    place: Place

    def __init__(
        self, options: Options, conductor: Conductor, asked_to_stop: asyncio.Event
    ) -> None:
        self.options, self.conductor = options, conductor
        self.metrics = Metrics(conductor)
        self.service = FleetService(conductor, self.metrics, options.insecure)
        self.asked_to_stop = asked_to_stop
        self._within_s = _DRAIN_S
        self._servers: list[Any] = []
        self._scrape: Any = None
        self._healthy = _Health()
        self._failure: BaseException | None = None
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(
            target=self._conduct, args=(loop,), name="conductor", daemon=True
        )

    @classmethod
    async def start(cls, options: Options, asked_to_stop: asyncio.Event) -> Coordinating:
        """Open the folder and serve. Raises RunError or ExperimentError when that is impossible."""
        _check_insecure(options)
        _raise_file_limit()
        conductor = _conductor(options)
        self = cls(options, conductor, asked_to_stop)
        try:
            self.place = self._bind()
            for server in self._servers:
                await server.start()
            await self._healthy.set("", health_pb2.HealthCheckResponse.SERVING)
        except BaseException:
            await self._let_go()
            conductor.database.close()
            raise
        self._thread.start()
        return self

    def _bind(self) -> Place:
        """Take the addresses."""
        options, authority = self.options, self.conductor.authority
        secure, aside = not options.insecure, options.enrol or beside(options.listen)
        for address in filter(None, (options.listen, aside, options.metrics)):
            check_free(address)
        fleet = self._server(FLEET, self.service, self.service.count)
        credentials = authority.server_credentials() if secure else None
        listen, port = _bound(fleet, options.listen, credentials)
        enrolling = EnrolmentService(self.conductor, self.metrics, port, options.insecure)
        enrolment = self._server(ENROLMENT, enrolling, enrolling.count)
        credentials = authority.enrolment_credentials() if secure else None
        enrol, _ = _bound(enrolment, aside, credentials)
        place = Place(options.folder, listen, enrol, options.insecure, self._show_metrics())
        self._open_socket(place)
        return place

    def _server(self, service: Any, servicer: object, count: Callable[[WireError], None]) -> Any:
        """A server of that service, and of its health."""
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers([handler(service, servicer, count)])
        health_pb2_grpc.add_HealthServicer_to_server(self._healthy, server)
        self._servers.append(server)
        return server

    def _show_metrics(self) -> str:
        if not self.options.metrics:
            return ""
        host, wanted = read_address(self.options.metrics)
        self._scrape, port = self.metrics.serve(host, wanted)
        return f"{host}:{port}"

    def _open_socket(self, place: Place) -> None:
        """The operator's socket, which only the owner of the folder may open."""
        path = self.options.folder / SOCKET
        path.unlink(missing_ok=True)
        service = OperatorService(self.conductor, place, self.ask_to_stop)
        operator = self._server(OPERATOR, service, lambda error: None)
        before = os.umask(0o177)
        try:
            operator.add_insecure_port(socket_address(self.options.folder))
        finally:
            os.umask(before)
        path.chmod(0o600)

    def _conduct(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self.conductor.conduct()
        except BaseException as error:
            log.critical("the conductor failed", exc_info=error)
            self._failure = error
            loop.call_soon_threadsafe(self.ask_to_stop, 0.0)
        finally:
            self.conductor.database.close()

    async def until_stopped(self, tell: Callable[[str], None]) -> None:
        """Serve until somebody asks to stop, and say what the end waits for."""
        await self.asked_to_stop.wait()
        if working := self._working():
            tell(
                f"stopping: waits for {counted(working, 'device')}, at most {self._within_s:g} s; "
                "Ctrl-C again ends at once"
            )
        await self.stop()
        if self._failure is not None:
            raise RunError(f"the coordinator failed: {self._failure}; see its log, and start again")
        tell("stopped; everything accepted is kept")

    def ask_to_stop(self, within_s: float = _DRAIN_S) -> None:
        """Have who waits for ``asked_to_stop`` call `stop`, which may take so many seconds."""
        self._within_s = within_s
        self.asked_to_stop.set()

    async def stop(self) -> None:
        """Give no more work, let updates come in for a while, and end."""
        await self._healthy.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        deadline = time.monotonic() + self._within_s
        self.conductor.draining = True
        while self._thread.is_alive() and self._working() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await self._let_go()
        self.conductor.stop()
        await asyncio.to_thread(self._thread.join)

    async def _let_go(self) -> None:
        """Give the addresses back; a server that is left to itself complains when it is gone."""
        await asyncio.gather(*(server.stop(_GRACE_S) for server in self._servers))
        if self._scrape is not None:
            self._scrape.shutdown()
            self._scrape.server_close()
        (self.options.folder / SOCKET).unlink(missing_ok=True)

    def _working(self) -> int:
        return sum(hosted.working for hosted in self.conductor.hosted.values())


class _Health(health.aio.HealthServicer):  # type: ignore[misc]
    """Whether it serves, for those who ask now and then."""

    async def Watch(self, request: Any, context: Any) -> None:
        """Nobody without a certificate may hold a call open."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "ask by Check")


def heed_signals(asked: asyncio.Event) -> None:
    """Set the event at the first SIGINT or SIGTERM; a second one ends the process at once.

    To be called before `Coordinating.start`, so that an early signal finds nothing half made.
    """
    loop, signals = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)

    def first() -> None:
        for number in signals:
            loop.remove_signal_handler(number)
        asked.set()

    for number in signals:
        loop.add_signal_handler(number, first)


def _check_insecure(options: Options) -> None:
    host, _ = read_address(options.listen)
    if options.insecure and not _is_loopback(host):
        raise ExperimentError(
            f"--insecure serves without certificates, on this machine alone; {host} is reached "
            "from others: listen on 127.0.0.1, or leave --insecure away"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _conductor(options: Options) -> Conductor:
    if options.folder.is_file():
        raise RunError(f"{options.folder} is a file; name a folder with --dir")
    database = Database(options.folder)
    try:
        _keep_certificates(database, options)
        return Conductor(
            options.folder,
            database,
            Devices(database.connection),
            Authority.open(options.folder / "authority", device_s=options.device_s),
            RoundKeys(options.folder / "round-keys"),
            options.experiments,
            options.new_run,
        )
    except BaseException:
        database.close()
        raise


def _keep_certificates(database: Database, options: Options) -> None:
    """Raises ExperimentError for ``insecure`` where devices have certificates to lose."""
    if not options.insecure:
        write_fact(database, _CERTIFICATES, 1)
    elif read_fact(database, _CERTIFICATES):
        raise ExperimentError(
            f"{options.folder} has served with certificates; with --insecure everybody on this "
            "machine could pass for one of its devices: leave it away, or choose another --dir"
        )


def _bound(server: Any, address: str, credentials: Any) -> tuple[str, int]:
    """Bind; HOST:PORT as it came to be, and the port. Raises RunError when it cannot be had."""
    host, _ = read_address(address)
    try:
        port = (
            server.add_secure_port(address, credentials)
            if credentials
            else server.add_insecure_port(address)
        )
    except RuntimeError as error:
        raise RunError(
            f"{address} cannot be had: {error}; stop what listens there, or choose another address"
        ) from None
    return f"{host}:{port}", port


def _raise_file_limit() -> None:
    """Each connected device is an open file."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
