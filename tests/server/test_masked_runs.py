"""Runs that prune: masks and compact models for each class of devices, before and after a crash."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from fedtiny.masks import Mask, remembered
from fedtiny.simulator.run import simulate
from fedtiny.values import ACCEPTED, EVALUATE, INVALID, TRAIN, Update
from fedtiny.wire import codec
from fedtiny.wire.codec import Work
from tests.server.desk import Desk, Opened, experiment, given

PRUNING = (
    "strategy.name=fedtiny", "strategy.every=2", "strategy.candidates=0", "strategy.cohort=2",
    "device.density=0.2", "run.rounds=6",
)  # fmt: skip
SIZE = 1153  # of sine_mlp: 1 x 32 + 32, 32 x 32 + 32, 32 x 1 + 1


def mask_of(desk: Desk, work: Work) -> Mask:
    ((_, digest),) = work.instruction.masks
    hosted = desk.hosted
    return remembered(hosted.models.blobs[digest], hosted.work.layout)


def test_a_device_is_given_its_mask_and_what_of_the_model_is_live(opened: Opened) -> None:
    desk = opened(*PRUNING)
    work = given(desk, desk.hosted._invited()[0])
    models, whole = desk.hosted.models, desk.hosted.coordinator.model
    mask = mask_of(desk, work)
    assert mask.count < 0.27 * SIZE  # a fifth of the weights, and all biases
    assert work.model.size == 4 * mask.count
    assert models.blobs[work.model.digest] == whole[mask.bools].tobytes()


def test_devices_of_two_densities_are_given_two_nested_masks(opened: Opened) -> None:
    desk = opened(
        *PRUNING, "seeded=false", 'fleet.profiles={ "pi-4" = 0.5, "pi-zero-2w" = 0.5 }',
        "device.pi-zero-2w.density=0.05", "fleet.held_out=0",
    )  # fmt: skip
    card = desk.conductor.devices[1].card
    desk.conductor.devices.change_card(1, replace(card, profile="pi-zero-2w"), "test")
    dense, sparse = (given(desk, device) for device in (0, 1))
    more, less = mask_of(desk, dense), mask_of(desk, sparse)
    assert less.count < more.count
    assert not (less.bools & ~more.bools).any()
    assert dense.instruction.masks[0][0] == 0.2
    assert sparse.instruction.masks[0][0] == 0.05
    for work in (dense, sparse):
        assert desk.hand_in(desk.visit(work), work).status == ACCEPTED


def test_an_update_under_another_mask_is_refused(opened: Opened) -> None:
    desk = opened(*PRUNING)
    work = given(desk, desk.hosted._invited()[0])
    update = desk.visit(work)
    mask = mask_of(desk, work)
    dead, alive = np.flatnonzero(~mask.bools)[0], np.flatnonzero(mask.bools)[0]
    moved = replace(update, mask=mask.moved([int(alive)], [int(dead)]))
    receipt = desk.hand_in(moved, work)
    assert (receipt.status, receipt.detail[:5]) == (INVALID, "mask:")


@pytest.mark.parametrize("strategy", ["fedtiny", "fedrts", "feddst", "sap", "oneshot"])
def test_a_pruning_run_gives_the_simulated_model_though_it_crashes_in_every_round(
    opened: Opened, strategy: str
) -> None:
    settings = [s for s in PRUNING if not s.startswith(("strategy.every", "strategy.cand"))]
    settings += [f"strategy.name={strategy}", "fleet.held_out=0"]
    desk = opened(*settings)
    while not desk.hosted.done:
        works = [given(desk, device) for device in list(desk.hosted._invited())]
        updates = [desk.visit(work) for work in works]
        assert desk.hand_in(updates[0], works[0]).status == ACCEPTED
        desk.crash()
        assert desk.hand_in(updates[1], works[1]).status == ACCEPTED
        desk.crash()
    digest = hashlib.sha256(desk.hosted.coordinator.model.tobytes()).hexdigest()
    assert digest == simulate(experiment(*settings)).summary["model_digest"]


def test_an_evaluation_keeps_the_masks_that_its_model_had(opened: Opened) -> None:
    desk = opened(*PRUNING, "run.evaluate_every=1", "evaluate.plain.lr=0.01")
    held_out = 3
    before = given(desk, held_out)
    assert before.instruction.kind == EVALUATE
    mask = mask_of(desk, before)
    while desk.hosted.coordinator.rounds.round < 4:  # the pool has moved
        for work in [given(desk, device) for device in list(desk.hosted._invited())]:
            desk.hand_in(desk.visit(work), work)
    sitting = desk.hosted.sittings.open[0]
    assert sitting.version == 0
    desk.crash()
    again = given(desk, held_out)
    assert (again.lease.version, mask_of(desk, again)) == (0, mask)
    assert again.model.digest == before.model.digest
    assert desk.hand_in(desk.visit(again), again).status == ACCEPTED
    work = given(desk, desk.hosted._invited()[0])
    assert work.instruction.kind == TRAIN
    assert mask_of(desk, work) != mask


def test_masks_of_a_closed_evaluation_are_stored_no_longer(opened: Opened) -> None:
    desk = opened(*PRUNING, "run.rounds=1", "evaluate.plain.lr=0.01")

    def stored() -> int:
        (nbytes,) = desk.conductor.database.connection.execute(
            "SELECT sum(length(measures)) FROM evaluations WHERE device = -2"
        ).fetchone()
        return int(nbytes)

    desk.work_off(range(2))
    assert stored() > 200
    desk.work_off(range(4))
    assert desk.hosted.done
    assert stored() < 20


def test_the_history_tells_densities(opened: Opened) -> None:
    desk = opened(*PRUNING)
    desk.work_off(range(4))
    rows = [row for row in desk.hosted.history() if row["kind"] == "round"]
    assert any("density.linear2" in row.get("telemetry", {}) for row in rows)


def test_what_is_due_follows_the_open_round(opened: Opened) -> None:
    desk = opened(*PRUNING)
    grows = set()
    while not desk.hosted.done:
        asked = desk.hosted.coordinator.open.instruction
        due = desk.hosted.due(0, bytes(32))
        assert (due.size, due.layout is not None) == (SIZE, bool(asked.grow))
        assert {mask.count for mask in due.masks.values()} == {
            mask_of(desk, given(desk, desk.hosted._invited()[0])).count
        }
        grows.add(bool(asked.grow))
        for work in [given(desk, device) for device in list(desk.hosted._invited())]:
            update = desk.visit(work)
            asked = codec.resolve(work.instruction, desk.hosted.models.blobs)
            payload = codec.write_values(update, SIZE, given=codec.given_mask(update, asked))
            assert len(payload) <= due.most_bytes
            assert _same(codec.read_vector(payload, due), update)
            desk.hand_in(update, work)
        desk.work_off(range(3, 4))
    assert grows == {True, False}


def _same(found: object, update: Update) -> bool:
    return found == (update.ranges, update.values, update.mask, update.places, update.quantised)
