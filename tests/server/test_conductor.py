"""The conductor, cycle by cycle: who gets work, who waits, what survives, what is undone."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtiny.errors import IdentityError, RunError
from fedtiny.rounds.journal import replay
from fedtiny.runs import RunFolder
from fedtiny.server.conductor import Conductor, Unavailable
from fedtiny.server.facts import write_fact
from fedtiny.server.inbox import Call, CheckIn
from fedtiny.values import ACCEPTED, DUPLICATE, INVALID, LATE, UNKNOWN
from fedtiny.wire.codec import ComeBack, Dismissed, Work
from tests.server.broken_strategy import AsksOnce, Broken
from tests.server.desk import CARD, Desk, Opened, answer_in, experiment, given

# ---- who gets work


def test_a_device_that_checks_in_is_given_work_until_its_deadline(opened: Opened) -> None:
    desk = opened("strategy.cohort=3")
    work = given(desk, 0)
    assert (work.lease.device, work.lease.round, work.lease.version) == (0, 0, 0)
    assert work.expires_in_s == 100.0
    assert work.model.digest in desk.hosted.models.blobs


def test_the_same_lease_is_given_again_to_a_device_whose_answer_was_lost(opened: Opened) -> None:
    desk = opened("strategy.cohort=3")
    work = given(desk, 0)
    desk.clock.seconds += 40.0
    again = given(desk, 0)
    assert again.lease.id == work.lease.id
    assert again.expires_in_s == 60.0


def test_who_waits_is_given_work_when_a_round_opens(opened: Opened) -> None:
    desk = opened("seeded=false", "strategy.cohort=3", "fleet.held_out=0", devices=4)
    works = [given(desk, device) for device in (0, 1, 3)]
    waiting = desk.check_in(2, wait_s=30.0)
    desk.cycle()
    assert not waiting.done()
    for work in works:
        desk.hand_in(desk.visit(work), work)
    assert isinstance(answer_in(waiting), Work)


def test_who_has_waited_long_enough_may_ask_again_at_once(opened: Opened) -> None:
    desk = opened()
    for device in (0, 1, 2):
        desk.answer(device)
    (idle,) = {0, 1, 2} - _holders(desk)
    waiting = desk.check_in(idle, wait_s=30.0)
    desk.cycle()
    desk.cycle(29.0)
    assert not waiting.done()
    desk.cycle(1.5)
    assert answer_in(waiting) == ComeBack(0.0)


def _holders(desk: Desk) -> set[int]:
    return set(desk.hosted.coordinator.rounds.leases.devices.tolist())


def test_who_does_not_wait_is_told_when_to_come_back(opened: Opened) -> None:
    desk = opened()
    answers = [desk.answer(device) for device in (0, 1, 2)]
    (later,) = [answer for answer in answers if isinstance(answer, ComeBack)]
    assert 1.0 <= later.after_s <= 3600.0


def test_a_seeded_run_asks_the_devices_that_a_simulated_one_asks(opened: Opened) -> None:
    for order in ((0, 1, 2), (2, 1, 0)):
        desk = opened("seed=11")
        for device in order:
            desk.answer(device)
        assert sorted(_holders(desk)) == sorted(desk.hosted._invited())
        assert len(_holders(desk)) == 2


def test_a_device_that_nothing_fits_is_told_why(opened: Opened) -> None:
    desk = opened()
    desk.conductor.devices.change_card(
        0, replace(desk.conductor.devices[0].card, ram_bytes=1000), "test"
    )
    answer = desk.answer(0, wait_s=30.0)
    assert isinstance(answer, ComeBack)
    assert "B of RAM, pi-4 has 1,000 B" in answer.reason


def test_a_device_that_asks_twice_has_given_up_its_first_call(opened: Opened) -> None:
    desk = opened()
    for device in (0, 1, 2):
        desk.answer(device)
    (idle,) = {0, 1, 2} - _holders(desk)
    first = desk.check_in(idle, 30.0)
    desk.cycle()
    second = desk.check_in(idle, 30.0)
    desk.cycle()
    assert answer_in(first) == ComeBack(0.0)
    assert not second.done()


def test_an_open_round_goes_on_with_the_devices_that_are_left(opened: Opened) -> None:
    desk = opened("seeded=false", "strategy.cohort=2")
    lost, kept = given(desk, 0), given(desk, 1)
    too_late = desk.visit(lost)
    desk.hand_in(desk.visit(kept), kept)
    desk.cycle(101.0)
    assert desk.hosted.coordinator.rounds.round == 1  # with the minimum of one update
    assert desk.hand_in(too_late, lost).status == LATE


# ---- updates


def test_an_update_is_counted_once_however_often_it_comes(opened: Opened) -> None:
    desk = opened("seeded=false")
    work, other = given(desk, 0), given(desk, 1)
    update = desk.visit(work)
    replies = [desk.offer(update, work), desk.offer(update, work)]
    desk.cycle()
    assert {reply.result()[0].status for reply in replies if reply.result()[0]} == {ACCEPTED}
    assert desk.hand_in(update, work).status == DUPLICATE
    desk.hand_in(desk.visit(other), other)
    assert desk.hand_in(update, work).status == DUPLICATE
    (row,) = desk.hosted.history()[-1:]
    assert (row["accepted"], row["leases"]) == (2, 2)


def test_an_update_of_another_base_or_with_a_flaw_is_refused_and_its_lease_spent(
    opened: Opened,
) -> None:
    desk = opened("seeded=false", "strategy.cohort=3")
    work, other = given(desk, 0), given(desk, 1)
    forged = replace(work, model=replace(work.model, digest=bytes(32)))
    refused = desk.hand_in(desk.visit(work), forged)
    assert (refused.status, refused.detail) == (
        INVALID, "it says version 0, but its base is another model",
    )  # fmt: skip
    flawed = desk.hand_in(replace(desk.visit(other), values=b""), other, "malformed: no vector")
    assert (flawed.status, flawed.detail) == (INVALID, "malformed: no vector")
    assert desk.hosted.ledger.open.refused == 2
    assert desk.hand_in(desk.visit(work), work).status == INVALID


def test_an_update_for_a_run_that_is_not_served_is_unknown(opened: Opened) -> None:
    desk = opened()
    work = next(a for d in (0, 1, 2) if isinstance(a := desk.answer(d), Work))
    update = desk.visit(work)
    assert desk.hand_in(update, replace(work, run=b"elsewher")).status == UNKNOWN


def test_an_update_may_say_no_more_than_was_asked_for(opened: Opened) -> None:
    desk = opened("seeded=false", "strategy.cohort=3", "device.plan='last:1'")
    works = [given(desk, device) for device in (0, 1, 2)]
    whole = desk.hosted.work.layout.size
    updates = [desk.visit(work) for work in works]
    refused = [
        replace(updates[0], ranges=((0, whole),), values=bytes(4 * whole)),
        replace(updates[1], measures={"steps": 1.0}),
        replace(updates[2], measures={"loss_sum": 1e308, "steps": -1.0}),
    ]
    details = [desk.hand_in(u, w).detail for u, w in zip(refused, works, strict=True)]
    assert details[0].startswith("ranges: it has values for 0-1,153, those asked for are 1,120-1,1")
    assert details[1] == "measures: loss_sum are missing, or were not asked for"
    assert details[2].startswith("measures: loss_sum is 1e+308; it must be in [-1e+30, 1e+30]")


def test_nobody_can_spend_the_lease_of_another(opened: Opened) -> None:
    desk = opened("seeded=false")
    work, theirs = given(desk, 0), given(desk, 1)
    update = desk.visit(work)
    forged = replace(desk.visit(theirs), lease=update.lease)
    first, second = desk.offer(forged, theirs, "malformed: on purpose"), desk.offer(update, work)
    desk.cycle()
    assert first.result()[0].status == UNKNOWN
    assert second.result()[0].status == ACCEPTED


# ---- evaluation


def test_held_out_devices_judge_the_model_and_never_train(opened: Opened) -> None:
    desk = opened("evaluate.few.lr=0.02", "run.evaluate_every=2")
    desk.work_off(range(4))
    rows = [row for row in desk.hosted.history() if row["kind"] == "evaluation"]
    assert [(row["round"], row["devices"]) for row in rows] == [(0, 1), (2, 1), (3, 1)]
    assert desk.hosted.done
    accepted = {d for c in desk.hosted.coordinator.journal.commits() for d in c.leases.tolist()}
    assert len(accepted) == 6
    assert desk.answer(3) == Dismissed("every run is over")


def test_an_evaluation_that_nobody_came_to_makes_way_for_the_next(opened: Opened) -> None:
    desk = opened("evaluate.few.lr=0.02", "run.evaluate_every=1")
    desk.work_off(range(3))
    assert [sitting.round for sitting in desk.hosted.sittings.open] == [3]
    desk.work_off(range(3, 4))
    assert [r["round"] for r in desk.hosted.history() if r["kind"] == "evaluation"] == [3]


def test_an_evaluation_that_nobody_finishes_closes_at_the_deadline(opened: Opened) -> None:
    desk = opened("evaluate.few.lr=0.02")
    desk.work_off(range(3))
    assert not desk.hosted.done
    assert desk.hosted.coordinator.rounds.phase == "done"
    given(desk, 3)
    desk.cycle(101.0)
    assert desk.hosted.done


def test_an_evaluation_goes_on_after_a_crash(opened: Opened) -> None:
    desk = opened("evaluate.few.lr=0.02")
    desk.work_off(range(3))
    desk.crash()
    assert not desk.hosted.done
    desk.work_off(range(3, 4))
    assert desk.hosted.done
    assert [r["round"] for r in desk.hosted.history() if r["kind"] == "evaluation"] == [3]


def test_an_evaluation_of_an_earlier_round_goes_on_after_a_crash(opened: Opened) -> None:
    desk = opened(
        "evaluate.few.lr=0.02", "fleet.devices=5", "fleet.held_out=2", "run.evaluate_every=1",
        devices=5,
    )  # fmt: skip
    judging, other = given(desk, 3), given(desk, 4)
    desk.hand_in(desk.visit(judging), judging)
    update = desk.visit(other)
    desk.work_off(range(3))
    desk.crash()
    assert [s.round for s in desk.hosted.sittings.open] == [0, 3]
    desk.work_off(range(3, 5))
    rows = [(r["round"], r["devices"]) for r in desk.hosted.history() if r["kind"] == "evaluation"]
    assert rows == [(0, 2), (3, 2)]
    assert desk.hand_in(update, other).status == LATE
    kept = desk.conductor.database.connection.execute("SELECT count(*) FROM blobs").fetchone()
    assert kept == (1,)


# ---- crashes, failures and the operator


def replayed(desk: Desk) -> list[bytes]:
    """The models that the journal makes, which must be those that were published."""
    hosted = desk.hosted
    models = replay(
        hosted.coordinator.journal, hosted.coordinator.rules.rounds, hosted.work.strategy,
        hosted.work.layout, hosted.models.initial(),
    )  # fmt: skip
    published = [model.tobytes() for model, _ in models]
    rows = desk.conductor.database.connection.execute(
        "SELECT digest FROM versions WHERE run = ? ORDER BY version", (hosted.run,)
    ).fetchall()
    digests = [hashlib.sha256(model).digest() for model, _ in groupby(published)]
    assert [digest for (digest,) in rows] == digests
    return published


def test_a_round_that_ends_while_nobody_serves_is_committed_at_the_start(opened: Opened) -> None:
    desk = opened("seeded=false", "run.rounds=2")
    works = [given(desk, device) for device in (0, 1)]
    desk.hand_in(desk.visit(works[0]), works[0])
    # The clock of a restarted coordinator goes on, and the other lease is over by then.
    write_fact(desk.conductor.database, "clock_s", 101.0)
    desk.conductor.database.commit()
    desk.crash()
    assert desk.hosted.coordinator.rounds.round == 1
    assert [row["accepted"] for row in desk.hosted.history()] == [1]
    desk.work_off(range(3))
    assert len(replayed(desk)) == 3


def test_what_a_strategy_has_committed_before_it_fails_is_kept(tmp_path: Path) -> None:
    broken = "strategy={build='tests.server.broken_strategy:AsksOnce', cohort=2}"
    desk = Desk(tmp_path, experiment("seeded=false", broken))
    hosted = desk.hosted
    for work in [given(desk, device) for device in (0, 1)]:
        desk.offer(desk.visit(work), work)
    desk.cycle()
    assert hosted.run in desk.conductor.halted
    assert [row["round"] for row in hosted.history()] == [0]
    desk.conductor.database.close()
    AsksOnce.repaired = True
    try:
        desk.open()
        assert len(replayed(desk)) == 2
    finally:
        AsksOnce.repaired = False
    desk.close()


def test_no_call_is_answered_when_another_lost_the_transaction(opened: Opened) -> None:
    desk = opened("seeded=false")
    connection = desk.conductor.database.connection

    def fills_the_disk(conductor: Conductor) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        try:
            connection.execute("INSERT INTO blobs VALUES (x'00', zeroblob(1000000))")
        finally:
            connection.execute("PRAGMA max_page_count = 1000000")

    joined: asyncio.Future[int] = desk.loop.create_future()
    failing: asyncio.Future[None] = desk.loop.create_future()
    desk.asked += [
        Call(lambda conductor: conductor.devices.join("late", CARD, "", 0.0), joined),
        Call(fills_the_disk, failing),
    ]
    desk.cycle()
    assert isinstance(joined.exception(), Unavailable)
    desk.cycle()
    assert len(desk.conductor.devices) == 4


def test_a_crash_loses_nothing_that_was_acknowledged(opened: Opened) -> None:
    undisturbed, desk = opened(), opened()
    undisturbed.work_off(range(3))
    for _ in range(40):
        for device in range(3):
            answer = desk.answer(device)
            if isinstance(answer, Work):
                update = desk.visit(answer)
                desk.crash()
                assert desk.hand_in(update, answer).status == ACCEPTED
                desk.crash()
                assert desk.hand_in(update, answer).status == DUPLICATE
    np.testing.assert_array_equal(
        desk.hosted.coordinator.model, undisturbed.hosted.coordinator.model
    )
    assert desk.hosted.done


def test_service_time_goes_on_where_it_was(opened: Opened) -> None:
    desk = opened("strategy.cohort=3")
    desk.cycle(50.0)
    work = given(desk, 0)
    desk.crash()
    assert desk.clock.seconds == pytest.approx(50.0, abs=1.0)
    assert given(desk, 0).lease.id == work.lease.id


def test_a_cycle_that_fails_has_not_happened(opened: Opened) -> None:
    desk = opened("seeded=false")
    work = given(desk, 0)
    connection = desk.conductor.database.connection
    connection.execute("VACUUM")
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    update = desk.visit(work)
    reply = desk.offer(update, work)
    desk.cycle()
    failure = reply.exception()
    assert isinstance(failure, Unavailable)
    assert "make room" in str(failure)
    connection.execute("PRAGMA max_page_count = 1000000")
    assert desk.hand_in(update, work).status == ACCEPTED


def test_a_run_whose_strategy_fails_is_halted_and_the_others_go_on(tmp_path: Path) -> None:
    broken = "strategy={build='tests.server.broken_strategy:Broken', cohort=2}"
    desk = Desk(tmp_path, experiment(broken, name="broken"), experiment(name="sound"))
    run = desk.conductor.hosted["broken"].run
    for _ in range(20):
        works = [(a, desk.visit(a)) for d in range(3) if isinstance(a := desk.answer(d), Work)]
        replies = [desk.offer(update, work) for work, update in works if work.run not in
                   desk.conductor.halted]  # fmt: skip
        desk.cycle()
        for reply in replies:
            assert not reply.exception() or isinstance(reply.exception(), Unavailable)
    assert list(desk.conductor.hosted) == ["sound"]
    assert desk.hosted.done
    assert desk.conductor.halted[run].startswith(
        "the run broken is halted: Broken.finish failed in round 0 of 3"
    )
    assert isinstance(desk.answer(0), ComeBack)
    # Nothing is lost: with the strategy repaired, the round is finished with what had come.
    desk.conductor.database.close()
    Broken.repaired = True
    try:
        desk.open()
        assert desk.conductor.hosted["broken"].coordinator.rounds.round == 1
    finally:
        Broken.repaired = False
    desk.close()


def test_the_disk_that_fails_for_the_folder_of_a_run_stops_nothing(opened: Opened) -> None:
    desk = opened()
    folder = desk.conductor.folder / "runs" / desk.hosted.name
    shutil.rmtree(folder)
    folder.write_text("in the way")
    desk.work_off(range(3))
    assert desk.hosted.done
    folder.unlink()
    desk.cycle()
    assert len(RunFolder(folder).history()) == 3


def test_a_rollback_publishes_the_older_model_as_the_newest(opened: Opened) -> None:
    desk = opened("seeded=false", "run.rounds=5")
    works = [given(desk, device) for device in (0, 1)]
    for work in works:
        desk.hand_in(desk.visit(work), work)
    first = desk.hosted.coordinator.model.copy()
    works = [given(desk, device) for device in (0, 1)]
    for work in works:
        desk.hand_in(desk.visit(work), work)
    open_work = given(desk, 0)
    update = desk.visit(open_work)
    desk.call(lambda conductor: desk.hosted.rollback(conductor.now(), 1))
    assert desk.hosted.coordinator.rounds.version == 3
    np.testing.assert_array_equal(desk.hosted.coordinator.model, first)
    assert desk.hand_in(update, open_work).status == LATE
    desk.crash()
    hosted = desk.hosted
    *_, (rebuilt, _) = replay(
        hosted.coordinator.journal, 5, hosted.work.strategy, hosted.work.layout,
        hosted.models.initial(),
    )  # fmt: skip
    np.testing.assert_array_equal(rebuilt, first)
    with pytest.raises(RunError, match="has no version 9 of its model; it has 0 to 3"):
        desk.hosted.rollback(0.0, 9)


def test_a_run_that_is_over_can_be_rolled_back_and_its_folder_follows(opened: Opened) -> None:
    desk = opened("seeded=false")
    desk.work_off(range(3))
    desk.call(lambda conductor: conductor.rollback(desk.hosted, 1))
    summary = desk.conductor._folders[desk.hosted.name].run.summary()
    assert summary is not None
    digest = hashlib.sha256(desk.hosted.coordinator.model.tobytes()).hexdigest()
    assert summary["model_digest"] == digest
    replayed(desk)


def test_a_revoked_device_contributes_nothing_whatever_it_is_at(opened: Opened) -> None:
    desk = opened("seeded=false", "strategy.cohort=3")
    work = given(desk, 0)
    update = desk.visit(work)
    reply = desk.offer(update, work)  # arrives in the cycle of the revocation
    desk.call(lambda conductor: conductor.revoke("device-0"))
    with pytest.raises(IdentityError, match="device 0: the device was revoked"):
        reply.result()
    for device in (1, 2):
        desk.answer(device)
    waiting = desk.check_in(3, 30.0)
    desk.cycle()
    desk.call(lambda conductor: conductor.revoke("3"))
    with pytest.raises(IdentityError, match="device 3: the device was revoked"):
        waiting.result()
    assert desk.hosted.coordinator.rounds.accepted == 0


def test_a_device_that_is_revoked_as_it_waits_is_told_that_its_update_counts(
    opened: Opened,
) -> None:
    desk = opened("seeded=false", "strategy.cohort=3")
    work = given(desk, 0)
    reply = desk.offer(desk.visit(work), work, wait_s=30.0)
    desk.cycle()
    assert not reply.done()  # the receipt is to bring the next work
    desk.call(lambda conductor: conductor.revoke("device-0"))
    receipt, _ = reply.result()
    assert receipt.status == ACCEPTED
    assert desk.hosted.coordinator.rounds.accepted == 1


def test_nobody_waits_for_a_device_that_was_revoked_or_has_given_up(opened: Opened) -> None:
    desk = opened("seeded=false", "strategy.cohort=3")
    works = [given(desk, device) for device in (0, 1, 2)]
    desk.hand_in(desk.visit(works[0]), works[0])
    desk.call(lambda conductor: conductor.revoke("1"))
    assert desk.hosted.working == 1
    reply: asyncio.Future[Any] = desk.loop.create_future()
    stolen = desk.loop.create_future()
    desk.asked.append(CheckIn(0, stolen, gave_up=(works[2].lease.id, "not mine")))
    desk.cycle()
    assert desk.hosted.working == 1
    desk.asked.append(CheckIn(2, reply, gave_up=(works[2].lease.id, "row 3 is not finite")))
    desk.cycle()
    # With the minimum of one update the round is over, long before its deadline.
    (row,) = desk.hosted.history()
    assert (row["accepted"], row["leases"], row["failed"]) == (1, 3, False)
    assert list(row["reasons"].values()) == [{"count": 1, "example": "row 3 is not finite"}]


def test_a_coordinator_that_is_about_to_stop_gives_no_work(opened: Opened) -> None:
    desk = opened()
    desk.conductor.draining = True
    answer = desk.answer(0, wait_s=30.0)
    assert answer == ComeBack(2.0, "the coordinator is about to stop")
