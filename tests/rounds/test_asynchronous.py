"""Rounds whose leases outlive them: the machine alone, and the coordinator with toy devices."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedtiny.errors import RunError
from fedtiny.rounds.coordinator import Coordinator
from fedtiny.rounds.events import (
    Abandon,
    Carry,
    CheckIns,
    ComeBack,
    Commit,
    Committed,
    Done,
    Fold,
    Folded,
    GiveUp,
    Grant,
    Offers,
    Open,
    Tick,
)
from fedtiny.rounds.journal import MemoryJournal, replay
from fedtiny.rounds.rules import Rules
from fedtiny.strategies.fedbuff import FedBuff
from fedtiny.values import ACCEPTED, DUPLICATE, LATE, STALE, UNKNOWN, Update
from tests.harness.toys import INITIAL, LAYOUT, visit
from tests.rounds.test_machine import Play, ids

if TYPE_CHECKING:
    from fedtiny.tensors import Float32, Float64

RULES = Rules(
    rounds=4, cohort=2, deadline_s=10.0, minimum=1, concurrency=4, max_staleness=1, seed=3
)


def offered(play: Play, now: float, grant: Grant, *which: int) -> None:
    """Updates of the grant arrive; they start from the model that it was given with."""
    at = list(which)
    versions = np.full(len(at), grant.version)
    play.tell(Offers(now, grant.leases[at], grant.devices[at], versions))


def committed(play: Play, now: float, grant: Grant, *which: int) -> None:
    """They complete a round."""
    play.deliver(now, grant, *which)
    play.tell(Committed(now))


# --- leases and rounds


def test_a_lease_outlives_its_round_and_counts_in_a_later_one() -> None:
    play = Play(RULES)
    assert play.heard == (Open(0, 0, wanted=4),)
    grant = play.check_in(0.0, 1, 2, 3, 4)
    play.deliver(1.0, grant, 0, 1)
    assert play.one(Commit) == Commit(0, play.one(Commit).leases, failed=False)
    play.tell(Committed(1.0))
    carry = play.one(Carry)
    assert (carry.round, carry.leases.tolist()) == (1, [2, 3])
    assert (carry.devices.tolist(), carry.versions.tolist()) == ([3, 4], [0, 0])
    assert play.one(Open) == Open(1, 0, wanted=4)
    play.deliver(2.0, grant, 3)
    assert play.heard_by(3) == ACCEPTED
    newer = play.check_in(2.0, 1)
    assert newer.leases.tolist() == [2**32]
    play.deliver(3.0, newer, 0)
    assert play.one(Commit).leases.tolist() == [3, 2**32]


def test_as_many_work_as_the_concurrency_says() -> None:
    play = Play(RULES)
    assert play.state.demand == 4
    grant = play.check_in(0.0, *range(9))
    assert (grant.leases.size, play.state.demand) == (4, 0)
    play.deliver(1.0, grant, 0)
    assert play.state.demand == 1
    play.tell(GiveUp(1.0, grant.leases[1:2]))
    assert play.state.demand == 2
    play.tell(Tick(10.0))
    assert play.state.demand == 4
    assert play.check_in(10.0, *range(9)).leases.size == 4


def test_a_place_is_free_as_soon_as_a_lease_ends() -> None:
    play = Play(RULES)
    play.check_in(0.0, 1, 2)
    play.check_in(4.0, 3, 4)
    assert play.state.wakes_at == 10.0  # the first deadline, though others live on
    play.tell(Tick(10.0))
    assert (play.state.demand, play.state.wakes_at) == (2, 14.0)


def test_a_device_counts_in_a_round_once_and_may_work_again_after_it() -> None:
    play = Play(RULES)
    grant = play.check_in(0.0, 1, 2, 3)
    play.deliver(1.0, grant, 0)
    play.tell(CheckIns(1.0, ids(1)))
    assert play.kinds == ["ComeBack"]
    committed(play, 2.0, grant, 1)
    assert play.check_in(2.0, 1).leases.tolist() == [2**32]


def test_a_round_waits_for_its_updates_however_long_that_takes() -> None:
    play = Play(RULES)
    play.deliver(1.0, play.check_in(0.0, 1, 2), 0)
    play.tell(Tick(5000.0))
    assert (play.kinds, play.state.window) == ([], 0)
    play.deliver(5001.0, play.check_in(5000.0, 7), 0)
    assert play.kinds == ["Reply", "Commit"]


def test_who_fails_at_once_gets_no_other_lease_until_the_first_one_would_have_ended() -> None:
    play = Play(RULES)
    grant = play.check_in(0.0, 1)
    play.tell(GiveUp(1.0, grant.leases))
    play.tell(CheckIns(9.9, ids(1)))
    assert play.heard == (ComeBack(19.9),)
    assert play.check_in(10.0, 1).leases.tolist() == [1]
    refused = play.check_in(11.0, 2)
    offered(play, 11.0, refused, 0)
    play.tell(Folded(11.0, ids(), refused.leases, ("NaN",)))
    play.tell(CheckIns(12.0, ids(2)))
    assert play.kinds == ["ComeBack"]
    committed(play, 13.0, play.check_in(13.0, 3, 4), 0, 1)
    assert play.check_in(13.0, 2).leases.tolist() == [2**32]  # a new round, a new chance


@pytest.mark.parametrize(("came", "failed"), [(0, True), (1, False)])
def test_a_round_whose_leases_come_to_nothing_again_and_again_ends(came: int, failed: bool) -> None:
    play = Play(replace(RULES, max_extensions=2))
    if came:
        play.deliver(0.0, play.check_in(0.0, 90), 0)
    for window in range(3):  # 1 + max_extensions, of 4 leases each
        assert play.state.phase == "open"
        grant = play.check_in(float(window), *range(4 * window, 4 * window + 4))
        play.tell(GiveUp(float(window), grant.leases))
    commit = play.one(Commit)
    assert (commit.failed, commit.leases.size) == (failed, came)
    play.tell(Committed(3.0, changed=not failed))
    assert len(play.state.past) == 1
    assert play.check_in(3.0, 0).leases.tolist() == [2**32]


def test_nobody_gets_a_lease_of_a_round_that_ends_at_that_moment() -> None:
    play = Play(replace(RULES, rounds=1, max_extensions=0))
    play.check_in(0.0, 1, 2, 3, 4)
    play.tell(CheckIns(10.0, ids(5)))  # all four have just expired
    assert play.heard == (ComeBack(10.0), Commit(0, play.one(Commit).leases, failed=True))


def test_an_update_that_is_too_many_versions_late_is_stale() -> None:
    play = Play(RULES)
    slow = play.check_in(0.0, 1, 2)
    for now in (1.0, 2.0):
        committed(play, now, play.check_in(now, int(10 * now), int(10 * now) + 1), 0, 1)
    offered(play, 3.0, slow, 0)  # of version 0, and 2 is the newest: one too many
    assert play.heard_by(0) == STALE
    offered(play, 3.0, slow, 0)
    assert play.kinds == ["Reply"]
    assert play.heard_by(0) != ACCEPTED
    fresh = play.check_in(3.0, 1)  # of the newest model at once, though its deadline was 10
    assert (fresh.version, fresh.leases.tolist()) == (2, [2 * 2**32])


def test_a_base_that_is_not_that_of_the_lease_is_stale() -> None:
    play = Play(RULES)
    grant = play.check_in(0.0, 1, 2, 3)
    committed(play, 1.0, grant, 0, 1)
    play.tell(Offers(2.0, grant.leases[2:], grant.devices[2:], ids(1)))
    assert play.heard_by(2) == STALE


def test_a_copy_is_a_duplicate_whatever_round_the_first_one_counted_in() -> None:
    play = Play(RULES)
    slow = play.check_in(0.0, 1, 2)
    committed(play, 1.0, play.check_in(1.0, 3, 4), 0, 1)
    play.deliver(2.0, slow, 0)
    offered(play, 2.0, slow, 0)
    assert play.heard_by(0) == DUPLICATE
    committed(play, 3.0, play.check_in(3.0, 5), 0)
    offered(play, 4.0, slow, 0)
    assert play.heard_by(0) == DUPLICATE
    offered(play, 4.0, replace(slow, devices=ids(8, 9)), 1)
    assert play.heard_by(1) == UNKNOWN  # a stranger


def test_what_comes_while_the_round_is_full_is_offered_again() -> None:
    play = Play(RULES)
    grant = play.check_in(0.0, 1, 2, 3)
    assert play.state.room == 2
    offered(play, 1.0, grant, 0, 1, 2)
    assert (play.kinds, play.one(Fold).leases.tolist()) == (["Fold"], [0, 1])
    play.tell(Folded(1.0, ids(0, 1)))
    play.tell(Committed(1.0))
    play.deliver(1.0, grant, 2)
    assert play.heard_by(2) == ACCEPTED


def test_who_lost_the_answer_gets_the_lease_again_on_its_own_model() -> None:
    play = Play(RULES)
    old = play.check_in(0.0, 1, 2, 3)
    committed(play, 1.0, old, 0, 1)
    play.check_in(1.0, 7)
    play.tell(CheckIns(2.0, ids(3, 7)))
    again = [(g.version, g.leases.tolist(), g.repeated) for g in play.heard if isinstance(g, Grant)]
    assert again == [(0, [2], True), (1, [2**32], True)]


def test_an_abandoned_round_ends_all_leases() -> None:
    play = Play(RULES)
    grant = play.check_in(0.0, 1, 2, 3)
    play.deliver(1.0, grant, 0)
    play.tell(Abandon(2.0))
    assert play.tell(Committed(2.0, changed=False)) == (Open(1, 0, wanted=4),)
    offered(play, 3.0, grant, 0, 1)
    assert (play.heard_by(0), play.heard_by(1)) == (LATE, LATE)


def test_no_lease_outlives_the_run() -> None:
    play = Play(replace(RULES, rounds=1))
    grant = play.check_in(0.0, 1, 2, 3)
    play.deliver(1.0, grant, 0, 1)
    assert play.tell(Committed(1.0)) == (Done(1),)
    offered(play, 2.0, grant, 2)
    assert play.heard_by(2) == LATE


def test_a_fleet_smaller_than_a_buffer_is_refused() -> None:
    with pytest.raises(RunError, match="each round needs updates of 2; lower the cohort"):
        Play(RULES, devices=1)


def test_devices_come_back_when_the_first_place_is_free() -> None:
    play = Play(RULES)
    play.check_in(0.0, 1, 2, 3, 4)
    play.tell(CheckIns(6.0, ids(5)))
    assert play.one(ComeBack).at == 10.0


def test_an_update_is_cheap() -> None:
    """About 150 us at a concurrency of 1,000; the limit allows a busy machine."""
    play = Play(replace(RULES, rounds=50, cohort=10, concurrency=1000, max_staleness=99), 2000)
    grants = [play.check_in(0.0, *range(2000))]
    started, told = time.process_time(), 0
    while play.state.phase != "done":
        grant, at = grants[told // 1000], told % 1000
        play.deliver(1.0, grant, at)
        if any(isinstance(command, Commit) for command in play.heard):
            play.tell(Committed(1.0))
        told += 1
    assert told == 500
    assert (time.process_time() - started) / told * 1e6 < 1500


# --- the coordinator


STRATEGY = FedBuff(cohort=2, concurrency=4, max_staleness=1, beta=0.1)


class Office:
    """A coordinator; ``bases`` are the models that its devices were given."""

    def __init__(self) -> None:
        self.journal, self.now = MemoryJournal(), 0.0
        self.restart()

    def restart(self) -> None:
        self.coordinator = Coordinator(RULES, STRATEGY, LAYOUT, INITIAL, self.journal, 9, self.now)

    def visits(self, *devices: int) -> list[Update]:
        """What these devices send on the leases that they are given now."""
        made = []
        for device in devices:
            lease, instruction = self.coordinator.check_in(self.now, device)  # type: ignore[misc]
            model = np.frombuffer(self.coordinator.fetch(lease.version), np.float32)
            made.append(visit(lease, instruction, model))
        return made

    def submit(self, *updates: Update) -> list[str]:
        self.now += 1.0
        return [receipt.status for receipt in self.coordinator.submit(self.now, updates)]


def delta(update: Update, base: Float32) -> Float64:
    return np.frombuffer(bytes(update.values), np.float32).astype(np.float64) - base


def test_a_late_update_counts_as_a_delta_to_its_own_base_and_for_less() -> None:
    office = Office()
    a, b, slow = office.visits(1, 2, 3)
    assert office.submit(a, b) == [ACCEPTED, ACCEPTED]
    first = INITIAL + (delta(a, INITIAL) + delta(b, INITIAL)) / 2
    np.testing.assert_allclose(office.coordinator.model, first, atol=1e-6)
    (c,) = office.visits(1)
    assert office.submit(slow, c) == [ACCEPTED, ACCEPTED]
    weight = 1 / np.sqrt(2)
    mean = (weight * delta(slow, INITIAL) + delta(c, first.astype(np.float32))) / (weight + 1)
    np.testing.assert_allclose(office.coordinator.model, first + mean, atol=1e-6)


def test_a_batch_that_fills_more_than_one_round_counts_in_all_of_them() -> None:
    office = Office()
    updates = office.visits(1, 2, 3, 4)
    assert office.submit(*updates) == [ACCEPTED] * 4
    assert office.coordinator.rounds.round == 2
    one, other = office.journal.commits()
    assert [one.leases.tolist(), other.leases.tolist()] == [[0, 1], [2, 3]]


def test_after_a_crash_work_goes_on_from_the_models_that_it_had() -> None:
    office, other = Office(), Office()
    for each in (office, other):
        a, b, slow = each.visits(1, 2, 3)
        each.submit(a, b)
        (c,) = each.visits(4)
        if each is other:
            each.restart()
            assert each.coordinator.bases.keys() == {0, 1}
            assert each.coordinator.fetch(0) == INITIAL.tobytes()
            assert each.visits(3)[0].lease == slow.lease
        each.submit(slow)
        if each is other:
            each.restart()
        each.submit(c)
    assert other.coordinator.model.tobytes() == office.coordinator.model.tobytes()
    assert office.coordinator.rounds.round == 2
    rebuilt = [m for m, _ in replay(other.journal, RULES.rounds, STRATEGY, LAYOUT, INITIAL)]
    assert rebuilt[-1].tobytes() == other.coordinator.model.tobytes()


def test_a_model_that_no_lease_is_on_is_gone() -> None:
    office = Office()
    office.submit(*office.visits(1, 2))
    with pytest.raises(RunError, match="version 0 of the model is gone, the current one is 1"):
        office.coordinator.fetch(0)


def test_going_back_to_an_older_model_ends_the_work_on_newer_ones() -> None:
    office = Office()
    a, b, slow = office.visits(1, 2, 3)
    office.submit(a, b)
    office.coordinator.publish(office.now, INITIAL)
    assert office.submit(slow) == [LATE]
    assert office.coordinator.bases.keys() == {2}
