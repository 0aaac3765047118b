"""An agent over real gRPC: what it does, what it keeps, what it survives."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fedtiny.agent.limits import Limits
from fedtiny.agent.sources import RowSource
from fedtiny.agent.tables import Rows
from fedtiny.device.learner import Key, Learner
from fedtiny.device.session import State
from fedtiny.engine.compile import compile
from fedtiny.engine.program import Program
from fedtiny.engine.zoo import mlp
from fedtiny.errors import DataError, IdentityError, OutdatedError
from fedtiny.strategies.base import FleetFacts, Strategy
from fedtiny.strategies.ditto import Ditto
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.scaffold import Scaffold
from fedtiny.values import (
    ACCEPTED,
    DUPLICATE,
    EVALUATE,
    OWN_MODEL,
    Instruction,
    Kept,
    Phase,
    Sgd,
    Update,
)
from fedtiny.wire import codec
from fedtiny.wire.pb import fleet_pb2 as pb
from tests.agent.small_fleet import PROGRAM, SEED, TASK, Hand, SmallFleet, agent_of, joined, served

ROOT = Path(__file__).resolve().parents[2]
PERSONAL = compile(mlp((1, 8, 1), head="local"), loss="mse", ram="64KiB", batch=4)
CORRECTED = compile(
    mlp((1, 8, 1), head="local"), loss="mse", ram="64KiB", batch=4, sgd=Sgd(correction=True)
)


@contextmanager
def hand_of(fleet: SmallFleet, folder: Path, **options: Any) -> Iterator[Hand]:
    with served(fleet) as port:
        yield agent_of(joined(folder, fleet, port), **options)


def undisturbed(fleet: SmallFleet) -> bytes:
    """The model of the same rounds over Learners that are called by hand, without any network."""
    twin = SmallFleet(fleet.strategy, fleet.rounds, fleet.devices, fleet.program)
    learner = Learner(twin.program)
    kept: dict[int, Kept] = {device: {} for device in range(twin.devices)}
    while twin.coordinator.rounds.phase != "done":
        for device in range(twin.devices):
            answer = twin.coordinator.check_in(0.0, device)
            if isinstance(answer, float):
                continue
            lease, instruction = answer
            key = Key(SEED, lease.round, device)

            def samples(part: str, key: Key = key) -> Any:
                return learner.samples(*TASK.samples(key.run, key.round, key.device, part))

            done = learner.visit(instruction, twin.model, samples, key, kept[device])
            kept[device] = {**kept[device], **done.kept}
            ids = lease.id, device, lease.round, lease.version
            update = Update(
                *ids, done.samples, done.values, done.ranges, done.measures, done.mask, done.places,
                done.quantised,
            )  # fmt: skip
            twin.coordinator.submit(0.0, [update])
    return twin.model.tobytes()


# --- what it does


@pytest.mark.parametrize(
    ("program", "strategy"),
    [
        (PROGRAM, FedAvg(cohort=3)),
        (PERSONAL, FedAvg(cohort=3)),
        (CORRECTED, Scaffold(cohort=3, steps=2, fleet=FleetFacts(training=3))),
        (CORRECTED, Ditto(cohort=3, transforms=("feedback", "topk:0.4", "int8"))),
    ],
    ids=["shared", "with a local head", "with control variates", "with own models and residuals"],
)
def test_agents_make_the_model_that_learners_make(
    tmp_path: Path, program: Program, strategy: Strategy
) -> None:
    fleet = SmallFleet(strategy, rounds=4, devices=3, program=program)
    with served(fleet) as port:
        hands = [
            agent_of(
                joined(tmp_path / str(d), fleet, port, d),
            )
            for d in range(3)
        ]
        threads = [threading.Thread(target=hand.agent.run) for hand in hands]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert fleet.model.tobytes() == undisturbed(fleet)
    assert [[v.status for v in hand.visits] for hand in hands] == [[ACCEPTED] * 4] * 3
    if isinstance(strategy, Ditto):  # what a device predicts with is its own model
        stores = [hand.store for hand in hands]
        owned = [store.kept(b"run-of-8")[OWN_MODEL] for store in stores]
        assert [trained and trained.vector for trained in (s.trained() for s in stores)] == owned
    assert [hand.notes for hand in hands] == [["the run is over"]] * 3


def test_the_answer_to_an_update_saves_the_next_check_in(tmp_path: Path) -> None:
    fleet = SmallFleet(rounds=5)
    with hand_of(fleet, tmp_path) as hand:
        hand.agent.run()
    assert fleet.count(pb.CheckInRequest) == 1
    assert fleet.count(pb.SubmitRequest) == 5


def test_a_number_of_visits_ends_it(tmp_path: Path) -> None:
    fleet = SmallFleet(rounds=5)
    with hand_of(fleet, tmp_path) as hand:
        hand.agent.run(visits=2)
    assert (len(hand.visits), fleet.coordinator.rounds.round) == (2, 2)


def test_a_visit_is_told_in_a_line(tmp_path: Path) -> None:
    with hand_of(SmallFleet(rounds=1), tmp_path) as hand:
        hand.agent.run()
    line = hand.visits[0].line()
    assert line.startswith("round 0 · trained 8 samples in 0.")
    # Of the 4 * 25 bytes of values and what tells whose they are, and the fetches before it.
    assert line.endswith("KB · next now")
    assert 200 < hand.visits[0].bytes_up < 1000


class Evaluating(FedAvg):
    """Asks for an evaluation in place of training."""

    def ask(self, round: Any, state: Any) -> Instruction:
        return Instruction(EVALUATE, (Phase(0.01, 2),))


def test_an_evaluation_sends_counts_and_sums(tmp_path: Path) -> None:
    fleet = SmallFleet(Evaluating(cohort=1), rounds=1)
    with hand_of(fleet, tmp_path) as hand:
        hand.agent.run()
    (update,) = (call.update for call in fleet.calls if isinstance(call, pb.SubmitRequest))
    assert set(update.measures) == {
        "count", "loss_sum_before", "loss_sum_after", "correct_before", "correct_after",
    }  # fmt: skip
    assert update.measures["count"] == TASK.query
    assert hand.visits[0].line().startswith("round 0 · evaluated 8 samples")
    assert hand.store.trained() is None


def test_the_trained_model_stays_on_the_device(tmp_path: Path) -> None:
    fleet = SmallFleet(rounds=2)
    with hand_of(fleet, tmp_path) as hand:
        hand.agent.run()
    kept = hand.store.trained()
    assert kept
    assert (kept.round, kept.program.hex()) == (1, PROGRAM.digest)
    np.testing.assert_allclose(np.frombuffer(kept.vector, np.float32), fleet.model, atol=1e-6)


# --- what it survives


def test_the_update_is_on_the_disk_before_it_is_sent(tmp_path: Path) -> None:
    fleet = SmallFleet(rounds=1)
    seen = []
    with hand_of(fleet, tmp_path) as hand:
        fleet.faults["submit"] = lambda *_: seen.append(hand.store.held())
        hand.agent.run()
    assert seen[0]
    assert seen[0].update.samples == TASK.support
    assert hand.store.held() is None


def test_an_update_whose_receipt_was_lost_counts_once(tmp_path: Path) -> None:
    fleet = SmallFleet(rounds=2)
    lost = iter([True])

    def lose(_: Any, context: Any) -> None:
        if next(lost, False):
            context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")

    fleet.after["submit"] = lose
    with hand_of(fleet, tmp_path) as hand:
        hand.agent.run()
    assert [visit.status for visit in hand.visits] == [DUPLICATE, ACCEPTED]
    assert fleet.model.tobytes() == undisturbed(fleet)
    address = hand.link.peer.address
    assert hand.notes[0].startswith(f"no answer from {address} (the answer was lost); next try in")
    assert hand.notes[1] == f"connected again to {address}"


def test_after_a_loss_of_power_the_update_is_sent_again(tmp_path: Path) -> None:
    fleet = SmallFleet(rounds=1, program=PERSONAL)
    with served(fleet) as port:
        store = joined(tmp_path, fleet, port)
        first = agent_of(store)

        def cut(_: Any, context: Any) -> None:
            first.agent.stop()
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

        fleet.faults["submit"] = cut
        first.agent.run()
        assert store.held()
        assert store.kept(b"run-of-8") == {}
        del fleet.faults["submit"]
        second = agent_of(store)
        second.agent.run()
    (visit,) = second.visits
    assert (visit.status, visit.seconds, visit.kind) == (ACCEPTED, None, None)
    assert visit.line().startswith("round 0 · handed in what 8 samples gave before the restart")
    # The bytes of this process's one call, not those of the whole day.
    request = next(c for c in reversed(fleet.calls) if isinstance(c, pb.SubmitRequest))
    assert visit.bytes_up == request.ByteSize()
    assert fleet.model.tobytes() == undisturbed(fleet)
    assert fleet.count(pb.CheckInRequest) == 1  # the first agent's
    assert store.held() is None
    (head,) = store.kept(b"run-of-8").values()
    assert len(head) == 4 * 9  # 8 weights and a bias


def test_what_is_refused_is_dropped_and_leaves_nothing(tmp_path: Path) -> None:
    fleet = SmallFleet(rounds=2, program=PERSONAL)
    refuse = iter([True])

    def malformed(_: Any, context: Any) -> None:
        if next(refuse, False):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "norm: too far")

    fleet.faults["submit"] = malformed
    with hand_of(fleet, tmp_path) as hand:
        hand.agent.run(visits=1)
    assert [(visit.status, visit.detail) for visit in hand.visits] == [("invalid", "norm: too far")]
    assert hand.store.held() is None
    assert hand.store.kept(b"run-of-8") == {}


def test_a_revoked_device_stops_and_drops_what_it_holds(tmp_path: Path) -> None:
    fleet = SmallFleet()
    fleet.faults["submit"] = lambda _, context: context.abort(
        grpc.StatusCode.PERMISSION_DENIED, "device 0 is revoked"
    )
    with hand_of(fleet, tmp_path) as hand, pytest.raises(IdentityError, match="0 is revoked"):
        hand.agent.run()
    assert hand.store.held() is None


def test_an_old_agent_is_told_to_be_updated(tmp_path: Path) -> None:
    fleet = SmallFleet()
    fleet.faults["check_in"] = lambda _, context: context.abort(
        grpc.StatusCode.FAILED_PRECONDITION, "the agent speaks protocol 1, this coordinator 3"
    )
    with hand_of(fleet, tmp_path) as hand, pytest.raises(OutdatedError, match="update fedtiny"):
        hand.agent.run()


def test_an_outage_is_one_line_and_one_when_it_is_over(tmp_path: Path) -> None:
    fleet = SmallFleet(rounds=1)
    fails = iter([True, True])

    def down(_: Any, context: Any) -> None:
        if next(fails, False):
            context.abort(grpc.StatusCode.UNAVAILABLE, "draining")

    fleet.faults["check_in"] = down
    with hand_of(fleet, tmp_path) as hand:
        hand.agent.run()
    address = hand.link.peer.address
    told, *after = hand.notes
    assert re.fullmatch(rf"no answer from {address} \(draining\); next try in 0\.\d s", told)
    assert after == [f"connected again to {address}", "the run is over"]
    assert fleet.calls[2].counters["lost"] == 2


def test_an_outage_names_who_does_not_answer_and_the_plain_reason(tmp_path: Path) -> None:
    fleet = SmallFleet(rounds=1)
    with served(fleet) as port:
        hand = agent_of(joined(tmp_path, fleet, port))
    working = threading.Thread(target=hand.agent.run)
    working.start()
    while not hand.notes:
        time.sleep(0.01)
    assert hand.agent.doing == hand.notes[0]
    hand.agent.stop()
    working.join()
    told = rf"no answer from 127\.0\.0\.1:{port} \(connection refused\); next try in 0\.\d s"
    assert re.fullmatch(told, hand.notes[0])


def test_what_a_coordinator_that_answers_says_is_no_outage(tmp_path: Path) -> None:
    fleet = SmallFleet(rounds=1)
    busy = iter([True, True])

    def refuse(_: Any, context: Any) -> None:
        if next(busy, False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "more than 50 calls/s")

    fleet.faults["check_in"] = refuse
    with hand_of(fleet, tmp_path) as hand:
        hand.agent.run()
    assert hand.notes == ["more than 50 calls/s; trying again", "the run is over"]


def test_an_agent_that_stays_waits_for_the_next_run(tmp_path: Path) -> None:
    fleet = SmallFleet(rounds=1)
    with hand_of(fleet, tmp_path, stay=True) as hand:
        working = threading.Thread(target=hand.agent.run)
        working.start()
        while not hand.notes:
            time.sleep(0.01)
        assert hand.agent.session.state == State.IDLE
        assert 590 < hand.agent.session.wakes_at - hand.link.clock() <= 600
        hand.agent.stop()
        working.join()
    assert hand.notes == ["the run is over: asking for another every 10 min"]


def test_another_thread_can_end_an_agent_that_waits_for_an_answer(tmp_path: Path) -> None:
    fleet, waits = SmallFleet(), threading.Event()

    def park(*_: Any) -> None:
        waits.set()
        time.sleep(0.5)

    fleet.faults["check_in"] = park
    with hand_of(fleet, tmp_path) as hand:
        thread = threading.Thread(target=hand.agent.run)
        thread.start()
        assert waits.wait(5)
        hand.agent.stop()
        thread.join(0.4)
        assert not thread.is_alive()


# --- visits that cannot be done


def rows(*labels: float, x: float = 0.5) -> RowSource:
    found = Rows((1,))
    for label in labels:
        found.add([x], label)
    return RowSource("the sensor", lambda: found)


RAISE = "this device's owner allows 512 B, which `fedtiny-agent limits --ram` raises"


@pytest.mark.parametrize(
    ("source", "limits", "told"),
    [
        (rows(), Limits(), "the sensor has no samples: it is empty"),
        (rows(*[3e38] * 5, x=3e38), Limits(), "parameters are not finite after training"),
        (
            rows(1.0, 2.0),
            Limits(ram_bytes=512),
            f"needs {PROGRAM.footprint.ram_bytes:,} B of RAM; {RAISE}",
        ),
    ],
    ids=["no samples", "diverged", "too little memory"],
)
def test_a_visit_that_cannot_be_done_is_told_with_its_reason(
    tmp_path: Path, source: RowSource, limits: Limits, told: str
) -> None:
    fleet = SmallFleet()
    with hand_of(fleet, tmp_path, source=source, limits=limits) as hand:
        hand.agent.run(visits=1)
    assert told in hand.notes[0]
    assert hand.link.counters == {"failures": 1}
    assert fleet.count(pb.SubmitRequest) == 0
    assert hand.store.held() is None


def test_the_coordinator_hears_at_once_which_lease_was_given_up_and_why(tmp_path: Path) -> None:
    fleet = SmallFleet()
    with hand_of(fleet, tmp_path, source=rows()) as hand:
        asked = fleet.coordinator.check_in(0.0, 0)
        assert not isinstance(asked, float)
        hand.agent.run(visits=2)
    first, second = (call for call in fleet.calls if isinstance(call, pb.CheckInRequest))
    assert not first.HasField("gave_up")
    assert (second.gave_up, second.why) == (asked[0].id, "there are no samples")


def test_why_is_told_in_a_line_of_300_characters(tmp_path: Path) -> None:
    def give() -> Rows:
        raise DataError("a secret", public="two\nlines " + "x" * 400)

    fleet = SmallFleet()
    with hand_of(fleet, tmp_path, source=RowSource("", give)) as hand:
        hand.agent.run(visits=2)
    why = [call for call in fleet.calls if isinstance(call, pb.CheckInRequest)][1].why
    assert why == "two lines " + "x" * 290


def test_a_reason_is_told_again_until_it_was_heard(tmp_path: Path) -> None:
    fleet = SmallFleet()
    with hand_of(fleet, tmp_path, source=rows()) as hand:
        down = iter([False, True])
        fleet.faults["check_in"] = lambda _, context: (
            context.abort(grpc.StatusCode.UNAVAILABLE, "down") if next(down, False) else None
        )
        hand.agent.run(visits=2)
    asked = [call for call in fleet.calls if isinstance(call, pb.CheckInRequest)]
    assert [call.HasField("gave_up") for call in asked] == [False, True, True]


def test_a_damaged_image_is_not_run(tmp_path: Path) -> None:
    fleet = SmallFleet()
    broken = PROGRAM.image[:-1] + b"?"
    fleet.program = Program(broken)
    fleet.blobs[bytes.fromhex(fleet.program.digest)] = broken
    with hand_of(fleet, tmp_path) as hand:
        hand.agent.run(visits=1)
    assert "its checksum is" in hand.notes[0]


# --- the owner's limits


def test_when_the_bytes_of_today_are_used_up_the_agent_waits_for_tomorrow(tmp_path: Path) -> None:
    fleet = SmallFleet(rounds=14)
    hands: list[Hand] = []

    def unix_s() -> float:  # a fifth of a second before midnight, until the agent has waited
        waits = any("looking again" in note for hand in hands for note in hand.notes)
        return 20_000 * 86_400 - 0.2 + waits

    limits = Limits(bytes_a_day=12_000)
    with hand_of(fleet, tmp_path, limits=limits, unix_s=unix_s) as hand:
        hands.append(hand)
        hand.agent.run()
    assert any("KB moved today, the limit is 12.0 KB: looking again in" in n for n in hand.notes)
    first, second = hand.store.document("traffic").values()
    # A visit that has begun is not broken off.
    most = max(visit.bytes_up + visit.bytes_down for visit in hand.visits)
    assert 12_000 <= sum(first.values()) <= 12_000 + most
    assert 0 < sum(second.values()) < 12_000
    assert len(hand.visits) == 14


def test_an_owner_whose_limit_keeps_the_device_out_is_told_which(tmp_path: Path) -> None:
    fleet = SmallFleet(rounds=1)
    reason = "needs 70,000 B of RAM, linux has 512 B; train fewer layers or lower the batch"
    answers: Iterator[codec.Answer] = iter([codec.ComeBack(0.0, reason), codec.Dismissed()])
    fleet._answer = lambda device: next(answers)  # type: ignore[method-assign]
    with hand_of(fleet, tmp_path, limits=Limits(ram_bytes=512)) as hand:
        hand.agent.run()
    assert hand.notes == [f"no work: {reason}; {RAISE}", "the run is over"]


def test_with_a_low_battery_the_agent_does_not_even_check_in(tmp_path: Path) -> None:
    supply = tmp_path / "power" / "BAT0"
    supply.mkdir(parents=True)
    for name, text in (("type", "Battery"), ("status", "Discharging"), ("capacity", "12")):
        (supply / name).write_text(text)
    fleet, limits = SmallFleet(rounds=1), Limits(battery_percent=30.0)
    options = {"limits": limits, "power": tmp_path / "power"}
    with hand_of(fleet, tmp_path / "agent", **options) as hand:
        thread = threading.Thread(target=hand.agent.run)
        thread.start()
        time.sleep(0.2)
        hand.agent.stop()
        thread.join(5)
    assert fleet.calls == []
    assert hand.notes == ["battery at 12 %, the limit is 30 %: looking again in 60 s"]


# --- without NumPy

WITHOUT_NUMPY = """
import sys
from pathlib import Path
sys.modules.update(dict.fromkeys(("numpy", "torch", "flwr", "ray")))
from fedtiny.agent.cli import main
raise SystemExit(main(["run", "--dir", sys.argv[1], "--data", sys.argv[2]]))
"""


def run_in_a_process(fleet: SmallFleet, folder: Path, numpy: bool) -> str:
    """What an agent of its own process tells that trains on ten samples, with NumPy or without."""
    x = np.linspace(-1, 1, 10, dtype=np.float32)[:, None]
    np.savez(folder / "data.npz", x=x, y=np.sin(x))
    with served(fleet) as port:
        own = joined(folder / f"agent-{numpy}", fleet, port).folder
        code = WITHOUT_NUMPY.replace("sys.modules.up", "{}.up") if numpy else WITHOUT_NUMPY
        done = subprocess.run(
            [sys.executable, "-c", code, str(own), str(folder / "data.npz")],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_an_agent_without_numpy_trains_the_same_bits(tmp_path: Path) -> None:
    models = []
    for numpy in (False, True):
        fleet = SmallFleet(rounds=2)
        told = run_in_a_process(fleet, tmp_path, numpy)
        assert told.count("trained 8 samples") == 2
        models.append(fleet.model.tobytes())
    assert models[0] == models[1] != np.asarray(PROGRAM.initial(SEED)).tobytes()
