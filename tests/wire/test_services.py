"""Services over a socket: their methods by name, and requests that are no messages."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import pytest

from fedtiny.errors import WireError
from fedtiny.wire.pb import fleet_pb2 as pb
from fedtiny.wire.services import ENROLMENT, FLEET, OPERATOR, handler, snake_case, stubs


class Fleet:
    """Answers with what it was asked."""

    def check_in(self, request: pb.CheckInRequest, context: Any) -> pb.CheckInReply:
        return pb.CheckInReply(protocol=request.protocol)

    def fetch(self, request: pb.FetchRequest, context: Any) -> pb.FetchReply:
        raise WireError("digest", f"{len(request.digest)} B are no digest; send 32")

    def submit(self, request: pb.SubmitRequest, context: Any) -> pb.SubmitReply:
        return pb.SubmitReply(received=len(request.chunk))

    def renew(self, request: pb.RenewRequest, context: Any) -> pb.RenewReply:
        return pb.RenewReply()


class AsyncFleet:
    """The same on a server of grpc.aio."""

    def __getattr__(self, name: str) -> Any:
        async def method(request: Any, context: Any) -> Any:
            return getattr(Fleet(), name)(request, context)

        return method


@pytest.fixture
def told() -> list[WireError]:
    return []


@pytest.fixture
def channel(told: list[WireError]) -> Iterator[grpc.Channel]:
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers([handler(FLEET, Fleet(), told.append)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as open_channel:
        yield open_channel
    server.stop(None).wait()


def refusal(call: Any, request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        call(request, timeout=10)
    return error.value.code(), error.value.details()


def test_methods_have_the_names_of_the_protos() -> None:
    names = {
        service.full_name: [snake_case(m.name) for m in service.methods]
        for service in (FLEET, ENROLMENT, OPERATOR)
    }
    assert names["fedtiny.v1.Fleet"] == ["check_in", "fetch", "submit", "renew"]
    assert names["fedtiny.v1.Enrolment"] == ["enrol"]
    assert "create_token" in names["fedtiny.v1.Operator"]


def test_a_call_arrives_and_is_answered(channel: grpc.Channel) -> None:
    fleet = stubs(FLEET, channel)
    assert fleet.check_in(pb.CheckInRequest(protocol=3), timeout=10).protocol == 3
    assert fleet.submit(pb.SubmitRequest(chunk=b"abc"), timeout=10).received == 3


def test_bytes_that_are_no_message_are_refused_and_told(
    channel: grpc.Channel, told: list[WireError]
) -> None:
    raw = channel.unary_unary("/fedtiny.v1.Fleet/CheckIn")
    code, details = refusal(raw, b"\xff\xff")
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("malformed: 2 B are no CheckInRequest")
    assert [error.reason for error in told] == ["malformed"]


def test_a_flaw_that_the_service_finds_is_refused_and_told(
    channel: grpc.Channel, told: list[WireError]
) -> None:
    code, details = refusal(stubs(FLEET, channel).fetch, pb.FetchRequest(digest=b"x"))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details == "digest: 1 B are no digest; send 32"
    assert [error.reason for error in told] == ["digest"]


def test_a_server_of_asyncio_does_the_same(told: list[WireError]) -> None:
    async def talk() -> tuple[int, list[grpc.StatusCode]]:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([handler(FLEET, AsyncFleet(), told.append)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        codes = []
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            fleet = stubs(FLEET, channel)
            reply = await fleet.check_in(pb.CheckInRequest(protocol=3), timeout=10)
            raw = channel.unary_unary("/fedtiny.v1.Fleet/CheckIn")
            for call in (fleet.fetch(pb.FetchRequest(), timeout=10), raw(b"\xff", timeout=10)):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await call
                codes.append(error.value.code())
        await server.stop(None)
        return reply.protocol, codes

    assert asyncio.run(talk()) == (3, [grpc.StatusCode.INVALID_ARGUMENT] * 2)
    assert [error.reason for error in told] == ["digest", "malformed"]
