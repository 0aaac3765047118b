"""Served runs whose work outlives their rounds; devices that are barred; models held back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedtiny.errors import WireError
from fedtiny.rounds.journal import replay
from fedtiny.simulator.run import simulate
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.median import Median
from fedtiny.values import ACCEPTED, DUPLICATE, INVALID, LATE
from fedtiny.wire import codec
from fedtiny.wire.codec import ComeBack, Work
from tests.server.desk import Desk, Opened, answer_in, experiment, given

if TYPE_CHECKING:
    from fedtiny.strategies.base import State
    from fedtiny.tensors import Bools, Float32, Float64, Int64

FEDBUFF = (
    "strategy={name='fedbuff', cohort=2, concurrency=3, max_staleness=4, beta=0.02}",
    "seeded=false", "fleet.devices=6", "fleet.held_out=0", "run.rounds=4",
)  # fmt: skip


def asynchronous(opened: Opened) -> Desk:
    return opened(*FEDBUFF, devices=6)


def works(desk: Desk, *devices: int) -> list[Work]:
    return [given(desk, device) for device in devices]


def test_a_device_may_fetch_and_hand_in_after_its_round_is_over(opened: Opened) -> None:
    desk = asynchronous(opened)
    a, b, slow = works(desk, 0, 1, 2)
    for work in (a, b):
        assert desk.hand_in(desk.visit(work), work).status == ACCEPTED
    assert desk.hosted.coordinator.rounds.round == 1
    assert slow.model.digest in desk.hosted.models.blobs
    assert given(desk, 2).lease == slow.lease  # the answer was lost: the model stays its own
    update = desk.visit(slow)
    assert desk.hand_in(update, slow).status == ACCEPTED
    assert desk.hand_in(update, slow).status == DUPLICATE


def test_after_a_crash_the_models_that_work_goes_on_from_can_be_fetched(opened: Opened) -> None:
    desk = asynchronous(opened)
    a, b, slow = works(desk, 0, 1, 2)
    for work in (a, b):
        desk.hand_in(desk.visit(work), work)
    desk.crash()
    assert slow.model.digest in desk.hosted.models.blobs
    assert given(desk, 2).model == slow.model
    assert desk.hand_in(desk.visit(slow), slow).status == ACCEPTED
    (other,) = works(desk, 3)
    assert desk.hand_in(desk.visit(other), other).status == ACCEPTED
    hosted = desk.hosted
    rounds = replay(
        hosted.coordinator.journal, 4, hosted.work.strategy, hosted.work.layout,
        hosted.models.initial(),
    )  # fmt: skip
    *_, (last, _) = rounds
    assert last.tobytes() == hosted.coordinator.model.tobytes()
    assert slow.model.digest == hashlib.sha256(hosted.models.initial().tobytes()).digest()


def test_a_model_that_nobody_works_from_is_let_go(opened: Opened) -> None:
    desk = asynchronous(opened)
    desk.work_off(range(6))
    assert desk.hosted.done
    rows = desk.conductor.database.connection.execute("SELECT version FROM bases").fetchall()
    assert rows == [(4,)]


def test_what_is_due_on_a_lease_has_the_mask_that_all_drew_in_its_own_round(opened: Opened) -> None:
    desk = opened(*FEDBUFF, "strategy.transforms=['randomk:0.3', 'int8']", devices=6)
    a, b, slow = works(desk, 0, 1, 2)
    for work in (a, b):
        assert desk.hand_in(desk.visit(work), work).status == ACCEPTED
    (newer,) = works(desk, 0)
    update, asked = desk.visit(slow), slow.instruction
    size = desk.hosted.work.layout.size
    payload = codec.write_values(update, size, given=codec.given_mask(update, asked))
    assert codec.read_vector(payload, desk.hosted.due(slow.lease.id, bytes(32))).mask == update.mask
    for lease in (newer.lease.id, 3 * 2**32, 2**64 - 1):  # of other rounds, or none at all
        with pytest.raises(WireError, match="none that was given"):
            codec.read_vector(payload, desk.hosted.due(lease, bytes(32)))
    assert desk.hand_in(update, slow).status == ACCEPTED


def test_another_model_as_the_base_of_a_lease_is_refused(opened: Opened) -> None:
    desk = asynchronous(opened)
    a, b, slow = works(desk, 0, 1, 2)
    for work in (a, b):
        desk.hand_in(desk.visit(work), work)
    (newer,) = works(desk, 0)
    receipt = desk.hand_in(desk.visit(slow), newer)  # it names the digest of the newer one
    assert (receipt.status, receipt.detail) == (
        INVALID, "it says version 0, but its base is another model",
    )  # fmt: skip


def test_who_waits_gets_the_place_that_another_leaves(opened: Opened) -> None:
    desk = asynchronous(opened)
    first, *_ = works(desk, 0, 1, 2)
    waiting = desk.check_in(5, wait_s=50.0)
    desk.cycle()
    assert not waiting.done()
    desk.hand_in(desk.visit(first), first)
    desk.cycle()
    assert isinstance(answer_in(waiting), Work)


def test_a_revoked_device_leaves_its_place_and_its_work_counts_nowhere(opened: Opened) -> None:
    desk = asynchronous(opened)
    a, b, slow = works(desk, 0, 1, 2)
    for work in (a, b):
        desk.hand_in(desk.visit(work), work)
    update = desk.visit(slow)
    desk.call(lambda conductor: conductor.revoke("device-2"))
    assert desk.hosted.holds() == {1}  # who completed the round has asked again
    assert desk.hosted.demand == 2
    (receipt,) = desk.hosted.coordinator.submit(desk.clock.now(), [update])
    assert receipt.status == LATE


# ---- who is barred, and what is held back ----------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Barring(FedAvg):
    """Never asks the first two devices."""

    def barred(self, state: State) -> Int64:
        return np.array([0, 1])


def barring(opened: Opened, *settings: str) -> Desk:
    build = f"{__name__}:Barring"
    section = f"strategy={{build='{build}', cohort=2, beta=0.02}}"
    return opened(section, "fleet.devices=5", "fleet.held_out=0", *settings, devices=5)


def test_nobody_who_is_barred_gets_work(opened: Opened) -> None:
    for seeded in ("true", "false"):
        desk = barring(opened, f"seeded={seeded}")
        answers = [desk.answer(device) for device in range(5)]
        worked = [device for device, answer in enumerate(answers) if isinstance(answer, Work)]
        assert len(worked) == 2
        assert not {0, 1} & {*worked}
        assert isinstance(answers[0], ComeBack)


def held_back(before: Float32, after: Float32) -> Mapping[str, float | None]:
    return {"before": 2.5, "after": None}


def test_a_model_that_is_held_back_is_told_in_the_history(opened: Opened) -> None:
    desk = opened("run.rounds=2", "fleet.held_out=0")
    gates: list[Any] = [held_back, None]
    while gates:
        desk.hosted.coordinator.gate = gates.pop(0)
        for work in [a for d in range(4) if isinstance(a := desk.answer(d), Work)]:
            desk.hand_in(desk.visit(work), work)
    rows = [row for row in desk.hosted.history() if row["kind"] == "round"]
    assert [row.get("gated") for row in rows] == [{"before": 2.5, "after": None}, None]
    assert [row["version"] for row in rows] == [0, 1]


@dataclass(frozen=True, kw_only=True)
class Distrusting(Median):
    """Suspects whose update comes first, by the number of the device."""

    def suspects(self, rows: Float64, aggregate: Float64) -> Bools:
        return np.asarray(np.arange(len(rows)) == 0)


def test_who_is_barred_and_what_is_held_back_is_served_as_simulated(opened: Opened) -> None:
    settings = (
        f"strategy={{build='{__name__}:Distrusting', cohort=2, quarantine=1, strikes=1, beta=0.3}}",
        "model={build='digits_mlp'}", "data={source='label-skew-digits', public=64}",
        "device.batch=10", "fleet.devices=6", "fleet.held_out=0", "run.rounds=8", "run.gate=0.99",
    )  # fmt: skip
    desk = opened(*settings, devices=6)
    desk.work_off(range(6))
    simulated = simulate(experiment(*settings))
    rows = [
        [row for row in history if row["kind"] == "round"]
        for history in (desk.hosted.history(), simulated.history)
    ]
    told = [[(row.get("gated"), row["version"], row["telemetry"]) for row in each] for each in rows]
    assert told[0] == told[1]
    gated = [held is not None for held, _, _ in told[0]]
    assert {True, False} == {*gated}
    assert {1.0} == {telemetry["barred"] for _, _, telemetry in told[0][1:]} - {0.0}
    assert desk.hosted.coordinator.model.tobytes() == simulated.model.tobytes()


def test_a_served_run_has_the_gate_of_its_experiment(opened: Opened) -> None:
    digits = "model={build='digits_mlp'}", "data={source='label-skew-digits', public=64}"
    desk = opened(*digits, "run.gate=1.5")
    assert desk.hosted.work.gate is not None
    assert desk.hosted.coordinator.gate is desk.hosted.work.gate
