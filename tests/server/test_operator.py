"""What an operator asks for over the socket, and how a coordinator refuses it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from fedtiny.errors import ExperimentError, RunError
from fedtiny.server import operator
from fedtiny.server.asking import SOCKET, ask, socket_address
from fedtiny.server.conductor import Unavailable
from fedtiny.server.documents import Place
from fedtiny.wire.joining import JoinString
from fedtiny.wire.pb import admin_pb2 as pb
from fedtiny.wire.services import OPERATOR, handler
from tests.harness import story
from tests.harness.coordinator_process import CoordinatorProcess

# ---- what goes wrong -------------------------------------------------------------------------


class Long:
    """A conductor with a long list."""

    async def call(self, function: Callable[[Any], Any]) -> Any:
        return {"devices": ["x" * 400] * 20_000}


class Failing:
    """A conductor that answers each call with this error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def call(self, function: Callable[[Any], Any]) -> Any:
        raise self.error


@contextmanager
def serving(conductor: Any, folder: Path) -> Iterator[None]:
    """The operator's service over the socket of a folder."""
    place = Place(folder, "127.0.0.1:1", "127.0.0.1:2")
    up, loop = threading.Event(), asyncio.new_event_loop()
    down = asyncio.Event()

    async def serve() -> None:
        server = grpc.aio.server()
        service = operator.OperatorService(conductor, place, lambda within_s: None)
        server.add_generic_rpc_handlers([handler(OPERATOR, service)])
        server.add_insecure_port(socket_address(folder))
        await server.start()
        up.set()
        await down.wait()
        await server.stop(None)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert up.wait(10)
        yield
    finally:
        loop.call_soon_threadsafe(down.set)
        thread.join()
        loop.close()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ExperimentError("no run 'sin' is served"), ExperimentError),
        (RunError("the run is over"), RunError),
        (Unavailable("the disk is full; make room there"), RunError),
    ],
)
def test_an_error_of_the_coordinator_is_that_of_the_command(
    error: Exception, kind: type[Exception], tmp_path: Path
) -> None:
    with serving(Failing(error), tmp_path), pytest.raises(kind) as told:
        ask(tmp_path, "status", pb.StatusRequest())
    assert str(told.value) == str(error)


def test_a_document_may_be_longer_than_other_messages(tmp_path: Path) -> None:
    with serving(Long(), tmp_path):
        assert len(ask(tmp_path, "devices", pb.DevicesRequest())["devices"]) == 20_000


def test_where_nobody_serves_the_error_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"start one with: .* --dir {tmp_path}$"):
        ask(tmp_path, "status", pb.StatusRequest())


# ---- the socket ------------------------------------------------------------------------------


def test_the_socket_of_a_long_folder_is_named_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("a" * 100)
    deep.mkdir()
    with pytest.raises(RunError, match=r"has \d+ bytes, .* may have 107; choose a shorter --dir"):
        socket_address(deep)
    monkeypatch.chdir(deep)
    assert socket_address(deep) == f"unix:{SOCKET}"


# ---- tokens ----------------------------------------------------------------------------------


def _token(place: Place, host: str = "", made: Callable[[], None] = lambda: None) -> JoinString:
    def secret(*asked: Any) -> str:
        made()
        return "s" * 22

    conductor: Any = SimpleNamespace(
        devices=SimpleNamespace(create_token=secret), authority=SimpleNamespace(pin="ab" * 32)
    )
    told = operator.create_token(conductor, place, "lab", 60.0, 1, host)
    return JoinString.parse(told["join"])


def test_a_join_string_has_the_address_and_the_pin_of_enrolment(tmp_path: Path) -> None:
    joined = _token(Place(tmp_path, "10.0.0.1:8470", "10.0.0.1:8471"))
    assert (joined.host, joined.port, joined.pin) == ("10.0.0.1", 8471, "ab" * 32)


@pytest.mark.parametrize("everywhere", ["0.0.0.0:8471", "[::]:8471"])
def test_a_coordinator_on_every_address_names_one_of_them(everywhere: str, tmp_path: Path) -> None:
    assert _token(Place(tmp_path, everywhere, everywhere)).host not in ("0.0.0.0", "::")


def test_without_certificates_a_join_string_is_for_this_machine(tmp_path: Path) -> None:
    place = Place(tmp_path, "127.0.0.1:8470", "127.0.0.1:8471", insecure=True)
    assert (_token(place).insecure, _token(place).pin) == (True, "")
    with pytest.raises(ExperimentError, match=r"only this machine can join, not 10\.0\.0\.1"):
        _token(place, "10.0.0.1")


@pytest.mark.parametrize("host", ["fleet.local", "pi-7", "192.168.1.10", "fe80::1", "a_b.c"])
def test_devices_reach_a_coordinator_by_a_name_or_an_address(host: str, tmp_path: Path) -> None:
    assert _token(Place(tmp_path, "0.0.0.0:1", "0.0.0.0:2"), host).host == host


@pytest.mark.parametrize("host", ["bad/host", "fleet.local:8471", "two words", "-x", "a?b", "a@b"])
def test_no_token_is_made_for_a_host_that_is_none(host: str, tmp_path: Path) -> None:
    made: list[str] = []
    with pytest.raises(ExperimentError, match="names no machine; give --host a name"):
        _token(Place(tmp_path, "0.0.0.0:1", "0.0.0.0:2"), host, lambda: made.append(host))
    assert made == []


# ---- a coordinator ---------------------------------------------------------------------------


def test_an_operator_ends_a_coordinator_over_the_socket(tmp_path: Path) -> None:
    with CoordinatorProcess(story.experiment(tmp_path, 2), tmp_path / "fleet") as process:
        process.start()
        assert (process.folder / SOCKET).stat().st_mode & 0o777 == 0o600
        told = process.call("drain", pb.DrainRequest(within_s=1.0))
        assert told == {"draining": True, "working": 0}
        assert process._process is not None
        assert process._process.wait(10) == 0
