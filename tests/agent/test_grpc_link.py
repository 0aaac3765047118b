"""The link alone: what breaks off is fetched on, what is not signed is not taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fedtiny.agent.faults import NoAnswerError
from fedtiny.agent.grpc_link import GrpcLink
from fedtiny.agent.store import Origin, Store
from fedtiny.device.link import Link
from fedtiny.errors import IdentityError, ImageError
from fedtiny.registry.profiles import board
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.values import Instruction, Lease, Phase, Sgd, Update
from fedtiny.wire import codec
from fedtiny.wire.pb import fleet_pb2 as pb
from tests.agent.small_fleet import PROGRAM, RUN, SmallFleet, agent_of, joined, served


@contextmanager
def linked(fleet: SmallFleet, folder: Path) -> Iterator[GrpcLink]:
    with served(fleet) as port:
        link = agent_of(joined(folder, fleet, port)).link
        yield link
        link.close()


def asked(link: GrpcLink) -> Lease:
    answer = link.check_in()
    assert not isinstance(answer, float)
    return answer[0]


def break_off_at(offset: int) -> Any:
    """A fault: the chunk at that offset is not answered the first time."""
    left = [True]

    def fault(request: pb.FetchRequest, context: Any) -> None:
        if request.offset == offset and left:
            left.clear()
            context.abort(grpc.StatusCode.UNAVAILABLE, "broken off")

    return fault


def offsets(fleet: SmallFleet) -> list[int]:
    return [call.offset for call in fleet.calls if isinstance(call, pb.FetchRequest)]


def test_it_is_a_link() -> None:
    link: type[Link] = GrpcLink
    assert link


def test_a_model_that_broke_off_is_fetched_on_by_the_next_process(tmp_path: Path) -> None:
    fleet = SmallFleet(chunk_bytes=40)
    fleet.faults["fetch"] = break_off_at(80)
    with linked(fleet, tmp_path) as link, pytest.raises(ConnectionError, match="broken off"):
        link.fetch(asked(link).version)
    with linked(fleet, tmp_path) as link:
        assert link.fetch(asked(link).version) == fleet.model.tobytes()
    assert fleet.model.nbytes == 100  # 25 parameters
    assert offsets(fleet) == [0, 40, 80, 80]


def test_what_arrives_damaged_is_fetched_anew(tmp_path: Path) -> None:
    fleet = SmallFleet(chunk_bytes=40)
    left = [True]

    def flip(reply: pb.FetchReply, _: Any) -> None:
        if left:
            left.clear()
            reply.chunk = reply.chunk[:-1] + bytes([reply.chunk[-1] ^ 1])

    fleet.after["fetch"] = flip
    with linked(fleet, tmp_path) as link:
        lease = asked(link)
        with pytest.raises(ConnectionError, match="arrived damaged: 100 B"):
            link.fetch(lease.version)
        assert link.fetch(lease.version) == fleet.model.tobytes()
    assert offsets(fleet) == [0, 40, 80] * 2


@pytest.mark.parametrize("total", [0, 39, 101, 1 << 40])
def test_a_coordinator_cannot_make_a_device_take_more_than_was_signed(
    tmp_path: Path, total: int
) -> None:
    fleet = SmallFleet(chunk_bytes=40)
    fleet.after["fetch"] = lambda reply, _: setattr(reply, "total", total)
    with linked(fleet, tmp_path) as link, pytest.raises(ConnectionError, match="is said to have"):
        link.fetch(asked(link).version)
    assert len(offsets(fleet)) == 1


def test_a_difference_to_the_last_model_may_come(tmp_path: Path) -> None:
    fleet = SmallFleet(FedAvg(cohort=1), rounds=2)
    with linked(fleet, tmp_path) as link:
        first = asked(link)
        model = np.frombuffer(link.fetch(first.version), np.float32).copy()
        model[3] += 1.0  # so only one coordinate of the next model differs
        update = Update(first.id, 0, 0, first.version, 8, model.tobytes(), ((0, model.size),))
        assert link.work
        link.origin = Origin(RUN, link.work.model.digest, model.size)
        link.submit(update)
        before = dict(link.traffic.today)
        assert link.fetch(asked(link).version) == fleet.model.tobytes()
        down = link.traffic.today["model_down"] - before["model_down"]
    assert fleet.model[3] == model[3]
    assert down < fleet.model.nbytes / 2


def test_what_the_coordinator_has_not_signed_is_not_fetched(tmp_path: Path) -> None:
    fleet, signed = SmallFleet(), SmallFleet.manifest

    def forged(kind: str, version: int, body: bytes) -> codec.Manifest:
        return replace(signed(fleet, kind, version, body), version=version + 1)

    fleet.manifest = forged  # type: ignore[method-assign]
    with linked(fleet, tmp_path) as link:
        link.check_in()
        with pytest.raises(ImageError, match="no valid signature"):
            link.fetch(1)
        with pytest.raises(ImageError, match="no valid signature"):
            link.program()
    assert offsets(fleet) == []


def test_versions_never_fall_not_even_over_a_restart(tmp_path: Path) -> None:
    fleet, signed = SmallFleet(), SmallFleet.manifest
    told = [5]

    def renumbered(kind: str, version: int, body: bytes) -> codec.Manifest:
        return signed(fleet, kind, told[0], body)

    fleet.manifest = renumbered  # type: ignore[method-assign]
    with linked(fleet, tmp_path) as link:
        link.check_in()
        assert link.fetch(5)
    told[0] = 4
    with linked(fleet, tmp_path) as link:
        link.check_in()
        with pytest.raises(ImageError, match=r"of version 4, this device has seen 5"):
            link.fetch(4)


class Corrected(FedAvg):
    """Sends a correction vector along."""

    vector = np.arange(PROGRAM.layout.size, dtype=np.float32).tobytes()

    def ask(self, round: Any, state: Any) -> Instruction:
        phase = Phase(0.01, 1, corrected=True, sgd=Sgd(correction=True))
        return Instruction(phases=(phase,), correction=self.vector)


def test_vectors_of_an_instruction_are_fetched_by_digest(tmp_path: Path) -> None:
    fleet = SmallFleet(Corrected(cohort=1))
    with linked(fleet, tmp_path) as link:
        link.check_in()
        assert link.instruction().correction == Corrected.vector
        assert link.instruction().correction == Corrected.vector  # from the folder
    assert offsets(fleet) == [0]


def test_the_bytes_counted_are_those_of_the_messages(tmp_path: Path) -> None:
    fleet = SmallFleet(rounds=1)
    replies: list[Any] = []
    for name in ("check_in", "fetch", "submit"):
        fleet.after[name] = lambda reply, _: replies.append(reply)
    with served(fleet) as port:
        hand = agent_of(joined(tmp_path, fleet, port))
        hand.agent.run()
    today = Store(tmp_path).document("traffic").popitem()[1]
    for way, messages in (("_up", fleet.calls), ("_down", replies)):
        counted = sum(nbytes for name, nbytes in today.items() if name.endswith(way))
        assert counted == sum(message.ByteSize() for message in messages)


@pytest.mark.parametrize(
    ("code", "raised", "told"),
    [
        ("UNAVAILABLE", NoAnswerError, "^why$"),
        ("RESOURCE_EXHAUSTED", ConnectionError, "^why$"),
        ("DEADLINE_EXCEEDED", NoAnswerError, "no answer in time"),
        ("UNAUTHENTICATED", IdentityError, "refuses this device: why"),
    ],
)
def test_a_status_means_what_a_session_knows(
    tmp_path: Path, code: str, raised: type[Exception], told: str
) -> None:
    fleet = SmallFleet()
    fleet.faults["check_in"] = lambda _, context: context.abort(grpc.StatusCode[code], "why")
    with linked(fleet, tmp_path) as link, pytest.raises(raised, match=told):
        link.check_in()


def test_a_card_is_told_until_it_has_been_heard(tmp_path: Path) -> None:
    fleet = SmallFleet(rounds=2)
    fails = iter([True])

    def down(_: Any, context: Any) -> None:
        if next(fails, False):
            context.abort(grpc.StatusCode.UNAVAILABLE, "down")

    fleet.faults["check_in"] = down
    with linked(fleet, tmp_path) as link:
        link.card, link.agent = board("pi-4").card(), "fedtiny 9"
        with pytest.raises(ConnectionError):
            link.check_in()
        link.check_in()
        link.check_in()
    told = [(call.HasField("card"), call.agent) for call in fleet.calls]
    assert told == [(True, "fedtiny 9"), (True, "fedtiny 9"), (False, "")]
