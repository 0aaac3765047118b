"""A coordinator as it serves: real ports, real TLS, a real socket."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import stat
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedtiny.errors import ExperimentError, RunError
from fedtiny.server import operator
from fedtiny.server.addresses import check_free
from fedtiny.server.asking import SOCKET, socket_address
from fedtiny.server.documents import Place
from fedtiny.server.server import Coordinating, Options
from fedtiny.server.service import Allowance
from fedtiny.values import Update
from fedtiny.wire import codec, services
from fedtiny.wire.codec import Work
from fedtiny.wire.pb import fleet_pb2 as pb
from tests.server.desk import CARD, experiment

NOTHING = bytes(32)


class Caller:
    """One device without certificates, or one that claims to be it."""

    def __init__(self, serving: Coordinating, index: int) -> None:
        self.index = index
        self.channel = grpc.aio.insecure_channel(serving.place.listen)
        self.calls = services.stubs(services.FLEET, self.channel)
        self.metadata = (("fedtiny-device", str(index)),)

    async def call(self, method: str, request: Any) -> Any:
        return await getattr(self.calls, method)(request, metadata=self.metadata, timeout=10)

    async def check_in(self, wait_s: float = 0.0, protocol: int = codec.PROTOCOL) -> codec.Answer:
        card = codec.write_card(CARD)
        request = pb.CheckInRequest(protocol=protocol, wait_s=wait_s, card=card, agent="test")
        return codec.read_answer((await self.call("check_in", request)).answer)

    async def work(self) -> Work:
        answer = await self.check_in()
        assert isinstance(answer, Work)
        return answer

    async def fetch(self, digest: bytes, have: bytes = NOTHING, offset: int = 0) -> Any:
        return await self.call("fetch", pb.FetchRequest(digest=digest, offset=offset, have=have))

    async def status_of(self, method: str, request: Any) -> tuple[str, str]:
        """How the call fails."""
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await self.call(method, request)
        return failed.value.code().name, str(failed.value.details())


async def started(options: Options) -> Coordinating:
    return await Coordinating.start(options, asyncio.Event())


def serve(
    folder: Path, act: Callable[[Coordinating], Awaitable[None]], *settings: str, **options: Any
) -> None:
    """Let an insecure coordinator with four devices serve while something happens."""

    async def whole() -> None:
        said: dict[str, Any] = {"listen": "127.0.0.1:0", "insecure": True} | options
        serving = await started(Options([experiment(*settings)], folder, **said))

        def join(conductor: Any) -> None:
            for number in range(4 - len(conductor.devices)):
                conductor.devices.join(f"device-{number}", CARD, "test", 0.0)

        await serving.conductor.call(join)
        try:
            await act(serving)
        finally:
            serving.ask_to_stop(0.0)
            await serving.stop()

    asyncio.run(whole())


def unchanged(work: Work, body: bytes, lease: int | None = None) -> Update:
    """An update that leaves the model as it was."""
    return Update(
        work.lease.id if lease is None else lease, work.lease.device, work.lease.round,
        work.lease.version, 4, body, ((0, len(body) // 4),), {"loss_sum": 1.0, "steps": 1.0},
    )  # fmt: skip


def requests(update: Update, work: Work, body: bytes) -> list[pb.SubmitRequest]:
    payload = codec.write_values(update, len(body) // 4)
    return list(codec.submit_requests(update, work.run, work.model.digest, payload, wait_s=0.0))


# ---- what a device may ask


def test_a_model_is_fetched_whole_or_as_the_difference_to_one_that_the_device_has(
    tmp_path: Path,
) -> None:
    async def act(serving: Coordinating) -> None:
        device = Caller(serving, 0)
        work = await device.work()
        whole = await device.fetch(work.model.digest)
        assert hashlib.sha256(whole.chunk).digest() == work.model.digest
        assert (whole.total, whole.is_delta) == (work.model.size, False)
        (hosted,) = serving.conductor.hosted.values()
        near = np.frombuffer(whole.chunk, np.float32).copy()
        near[7:9] += 1.0
        hosted.models.hold(1, near)
        digest = hashlib.sha256(near.tobytes()).digest()
        delta = await device.fetch(digest, have=work.model.digest)
        assert delta.is_delta
        assert delta.total < 60
        assert codec.lay_over(whole.chunk, delta.chunk) == near.tobytes()

    serve(tmp_path, act, "seeded=false")


def test_what_is_gone_is_not_found_and_the_rest_of_a_blob_is(tmp_path: Path) -> None:
    async def act(serving: Coordinating) -> None:
        device = Caller(serving, 0)
        work = await device.work()
        status, text = await device.status_of("fetch", pb.FetchRequest(digest=NOTHING))
        assert (status, text) == ("NOT_FOUND", f"the blob {'00' * 8} is gone; check in again")
        whole = (await device.fetch(work.program.digest, b"")).chunk
        rest = (await device.fetch(work.program.digest, b"", offset=1000)).chunk
        assert rest == whole[1000:]
        assert (await device.fetch(work.program.digest, b"", offset=2**63)).chunk == b""

    serve(tmp_path, act, "seeded=false")


def test_an_update_in_chunks_counts_when_it_is_whole(tmp_path: Path) -> None:
    async def act(serving: Coordinating) -> None:
        device = Caller(serving, 0)
        work = await device.work()
        body = (await device.fetch(work.model.digest)).chunk
        (request,) = requests(unchanged(work, body), work, body)
        first, second = pb.SubmitRequest(), pb.SubmitRequest()
        for part in (first, second):
            part.CopyFrom(request)
        first.chunk, second.chunk = request.chunk[:1000], request.chunk[1000:]
        second.offset = 1000
        halfway = await device.call("submit", first)
        assert (halfway.received, halfway.HasField("receipt")) == (1000, False)
        again = await device.call("submit", first)
        assert again.received == 1000
        done = await device.call("submit", second)
        assert done.receipt.status == "accepted"
        assert (await device.call("submit", request)).receipt.status == "duplicate"

    serve(tmp_path, act, "seeded=false")


def test_what_is_no_update_is_refused_with_its_reason_and_counted(tmp_path: Path) -> None:
    async def act(serving: Coordinating) -> None:
        device, other = Caller(serving, 0), Caller(serving, 1)
        work, theirs = await device.work(), await other.work()
        body = (await device.fetch(work.model.digest)).chunk
        (request,) = requests(unchanged(work, body), work, body)
        request.update.device = 1
        stolen = (await device.call("submit", request)).receipt
        assert stolen.status == "invalid"
        assert stolen.detail == "device: device 0 sends an update of 1"
        (request,) = requests(unchanged(theirs, body), theirs, body)
        request.total = 10**12
        status, text = await other.status_of("submit", request)
        assert status == "INVALID_ARGUMENT"
        assert text.startswith("size: an update of 1,000,000,000,000 B; this run takes")
        (request,) = requests(unchanged(theirs, body), theirs, body)
        request.chunk = request.chunk[:-4] + np.float32(np.nan).tobytes()
        refused = (await other.call("submit", request)).receipt
        assert (refused.status, refused.detail.partition(":")[0]) == ("invalid", "not-finite")
        assert dict(serving.service.refusals) == {"device": 1, "size": 1, "not-finite": 1}

    serve(tmp_path, act, "seeded=false", "strategy.cohort=3")


def test_an_agent_of_an_older_protocol_is_told_to_update(tmp_path: Path) -> None:
    async def act(serving: Coordinating) -> None:
        older = pb.CheckInRequest(protocol=codec.OLDEST - 1)
        status, text = await Caller(serving, 0).status_of("check_in", older)
        assert status == "FAILED_PRECONDITION"
        assert "update the agent" in text
        newer = await Caller(serving, 0).check_in(protocol=codec.PROTOCOL + 1)
        assert isinstance(newer, Work)

    serve(tmp_path, act, "seeded=false")


def test_who_calls_too_often_is_refused_and_harms_nobody_else(tmp_path: Path) -> None:
    async def act(serving: Coordinating) -> None:
        serving.service._allowance = Allowance(rate_per_s=0.01, burst=20.0)
        busy, other = Caller(serving, 0), Caller(serving, 1)
        request = pb.FetchRequest(digest=NOTHING)
        statuses = [(await busy.status_of("fetch", request))[0] for _ in range(30)]
        assert statuses == ["NOT_FOUND"] * 20 + ["RESOURCE_EXHAUSTED"] * 10
        assert isinstance(await other.check_in(), Work)

    serve(tmp_path, act, "seeded=false")


def test_an_allowance_fills_up_again() -> None:
    allowance = Allowance(rate_per_s=1000.0, burst=2.0)
    assert [allowance.spend(0), allowance.spend(0)] == [True, True]
    time.sleep(0.01)
    assert allowance.spend(0)


def test_a_message_that_does_not_parse_is_refused(tmp_path: Path) -> None:
    async def act(serving: Coordinating) -> None:
        device = Caller(serving, 0)
        raw = device.channel.unary_unary("/fedtiny.v1.Fleet/CheckIn")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await raw(b"\xff\xff\xff", metadata=device.metadata)
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert serving.service.refusals["malformed"] == 1

    serve(tmp_path, act)


def test_an_unknown_or_revoked_device_is_refused(tmp_path: Path) -> None:
    async def act(serving: Coordinating) -> None:
        nobody = Caller(serving, 17)
        assert (await nobody.status_of("check_in", pb.CheckInRequest()))[0] == "UNAUTHENTICATED"
        device = Caller(serving, 0)
        await device.work()
        await serving.conductor.call(lambda c: c.devices.revoke(0, 0.0))
        status, text = await device.status_of("check_in", pb.CheckInRequest(protocol=1))
        assert (status, "revoked" in text) == ("PERMISSION_DENIED", True)

    serve(tmp_path, act, "seeded=false")


def test_a_parked_call_is_answered_as_soon_as_there_is_work(tmp_path: Path) -> None:
    async def act(serving: Coordinating) -> None:
        one, two = Caller(serving, 0), Caller(serving, 1)
        work = await one.work()
        body = (await one.fetch(work.model.digest)).chunk
        waiting = asyncio.create_task(two.check_in(wait_s=30.0))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await one.call("submit", requests(unchanged(work, body), work, body)[0])
        # The next round is for one of the two, whichever is drawn: both ask for it now.
        asking = {waiting, asyncio.create_task(one.check_in(wait_s=30.0))}
        done, others = await asyncio.wait(asking, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert all(isinstance(call.result(), Work) for call in done)
        assert len(done) == 1
        for call in others:
            call.cancel()

    serve(tmp_path, act, "seeded=false", "strategy.cohort=1", "run.rounds=9")


# ---- the process


def test_metrics_and_health_are_shown(tmp_path: Path) -> None:
    async def act(serving: Coordinating) -> None:
        await Caller(serving, 0).work()
        url = f"http://{serving.place.metrics}/metrics"
        text = (await asyncio.to_thread(lambda: urllib.request.urlopen(url).read())).decode()
        assert "fedtiny_devices_joined 4.0" in text
        assert 'fedtiny_round{run="the experiment"} 0.0' in text
        for address in (serving.place.enrol, socket_address(serving.options.folder)):
            async with grpc.aio.insecure_channel(address) as channel:
                check = health_pb2_grpc.HealthStub(channel).Check
                reply = await check(health_pb2.HealthCheckRequest())
                assert reply.status == health_pb2.HealthCheckResponse.SERVING

    serve(tmp_path, act, "seeded=false", metrics="127.0.0.1:0")


def test_the_operators_socket_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    async def act(serving: Coordinating) -> None:
        mode = (serving.options.folder / SOCKET).stat().st_mode
        assert stat.S_IMODE(mode) == 0o600

    serve(tmp_path, act)
    assert not (tmp_path / SOCKET).exists()


def test_a_coordinator_that_stops_lets_updates_come_in(tmp_path: Path) -> None:
    async def act(serving: Coordinating) -> None:
        device = Caller(serving, 0)
        work = await device.work()
        body = (await device.fetch(work.model.digest)).chunk
        await serving.conductor.call(operator.drain)
        assert isinstance(await Caller(serving, 1).check_in(wait_s=30.0), codec.ComeBack)
        reply = await device.call("submit", requests(unchanged(work, body), work, body)[0])
        assert reply.receipt.status == "accepted"

    serve(tmp_path, act, "seeded=false")


def test_insecure_mode_is_for_this_machine_alone(tmp_path: Path) -> None:
    options = Options([experiment()], tmp_path, "0.0.0.0:0", insecure=True)
    with pytest.raises(ExperimentError, match=r"0\.0\.0\.0 is reached from others"):
        asyncio.run(started(options))


def test_a_folder_serves_one_coordinator_and_an_address_too(tmp_path: Path) -> None:
    async def act(serving: Coordinating) -> None:
        same = Options([experiment()], tmp_path / "fleet", "127.0.0.1:0")
        with pytest.raises(RunError, match="is in use by the process"):
            await started(same)
        elsewhere = Options([experiment()], tmp_path / "other", serving.place.listen)
        with pytest.raises(RunError, match="cannot be had"):
            await started(elsewhere)

    serve(tmp_path / "fleet", act)


def test_an_address_of_metrics_that_is_taken_ends_the_start_with_nothing_left(
    tmp_path: Path,
) -> None:
    async def fail(options: Options) -> None:
        with pytest.raises(RunError, match=r"cannot be had: .*; stop what listens there"):
            await started(options)

    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        asyncio.run(fail(Options([experiment()], tmp_path, "127.0.0.1:0", metrics=taken)))
    assert not (tmp_path / SOCKET).exists()
    serve(tmp_path, _nothing, insecure=False)  # the folder is free again


async def _nothing(serving: Coordinating) -> None:
    pass


def test_a_start_that_fails_gives_back_the_addresses_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[Place] = []
    bind = Coordinating._bind

    def note(serving: Coordinating) -> Place:
        places.append(bind(serving))
        return places[0]

    async def fail(health: Any, service: str, status: Any) -> None:
        raise RunError("no")

    monkeypatch.setattr(Coordinating, "_bind", note)
    monkeypatch.setattr("fedtiny.server.server._Health.set", fail)
    options = Options([experiment()], tmp_path, "127.0.0.1:0", metrics="127.0.0.1:0")
    with pytest.raises(RunError, match="no"):
        asyncio.run(started(options))
    (place,) = places
    assert [check_free(at)[0] for at in (place.listen, place.enrol, place.metrics)] == [
        "127.0.0.1"
    ] * 3
    assert not (tmp_path / SOCKET).exists()


def test_a_folder_that_has_served_with_certificates_serves_with_them_for_good(
    tmp_path: Path,
) -> None:
    serve(tmp_path, _nothing, insecure=False)
    with pytest.raises(ExperimentError, match="has served with certificates"):
        serve(tmp_path, _nothing)
    serve(tmp_path, _nothing, insecure=False)


def test_a_file_is_no_folder_to_serve_from(tmp_path: Path) -> None:
    (tmp_path / "one.toml").touch()
    options = Options([experiment()], tmp_path / "one.toml", "127.0.0.1:0")
    with pytest.raises(RunError, match=r"one\.toml is a file; name a folder with --dir"):
        asyncio.run(started(options))


def test_judgements_are_no_updates_to_the_metrics(tmp_path: Path) -> None:
    async def act(serving: Coordinating) -> None:
        counted = serving.metrics.registry.get_sample_value
        serving.metrics.submitted("accepted")
        serving.metrics.submitted("accepted", judged=True)
        serving.metrics.submitted("accepted", judged=True)
        assert counted("fedtiny_updates_total", {"status": "accepted"}) == 1
        assert counted("fedtiny_judgements_total", {"status": "accepted"}) == 2

    serve(tmp_path, act)
