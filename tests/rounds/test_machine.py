from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pytest

from fedtiny.errors import RunError
from fedtiny.rounds import machine
from fedtiny.rounds.events import (
    NEVER,
    Abandon,
    Begin,
    CheckIns,
    ComeBack,
    Commands,
    Commit,
    Committed,
    Done,
    Event,
    Fold,
    Folded,
    Grant,
    Offers,
    Open,
    Reply,
    Tick,
)
from fedtiny.rounds.leases import Past
from fedtiny.rounds.rules import Rules
from fedtiny.values import ACCEPTED, DUPLICATE, INVALID, LATE, STALE, UNKNOWN

if TYPE_CHECKING:
    from fedtiny.tensors import Int64

C = TypeVar("C")


def ids(*numbers: int) -> Int64:
    return np.array(numbers, np.int64)


class Play:
    """A machine in the middle of a run; ``heard`` is what it commanded last."""

    def __init__(self, rules: Rules, devices: int = 100) -> None:
        self.state = machine.start(rules)
        self.heard: Commands = ()
        self.tell(Begin(0.0, devices))

    def tell(self, event: Event) -> Commands:
        self.state, self.heard = machine.step(self.state, event)
        return self.heard

    def one(self, kind: type[C]) -> C:
        """The only command of this kind that was heard last."""
        (command,) = (c for c in self.heard if isinstance(c, kind))
        return command

    def check_in(self, now: float, *devices: int) -> Grant:
        self.tell(CheckIns(now, ids(*devices)))
        return self.one(Grant)

    def offer(self, now: float, leases: Sequence[int], devices: Sequence[int]) -> Commands:
        versions = np.full(len(leases), self.state.version)
        return self.tell(Offers(now, ids(*leases), ids(*devices), versions))

    def deliver(self, now: float, grant: Grant, *which: int) -> Commands:
        """These updates of the grant arrive and are folded."""
        leases = grant.leases[list(which)]
        self.tell(
            Offers(now, leases, grant.devices[list(which)], np.full(len(which), grant.version))
        )
        return self.tell(Folded(now, self.one(Fold).leases))

    @property
    def kinds(self) -> list[str]:
        return [type(command).__name__ for command in self.heard]

    def heard_by(self, lease: int) -> str:
        replies = [c for c in self.heard if isinstance(c, Reply)]
        (status,) = [reply.status for reply in replies if lease in reply.leases]
        return status


def rules(**changes: float) -> Rules:
    settings = {"rounds": 2, "cohort": 3, "deadline_s": 10.0, "minimum": 2} | changes
    return Rules(**settings)  # type: ignore[arg-type]


# --- a round in which nothing goes wrong


def test_a_round_asks_folds_and_commits() -> None:
    play = Play(rules(rounds=1))
    assert play.heard == (Open(0, window=0, wanted=3),)
    grant = play.check_in(0.0, 7, 8, 9)
    assert sorted(grant.devices.tolist()) == [7, 8, 9]
    assert (grant.version, grant.deadlines.tolist()) == (0, [10.0] * 3)
    play.deliver(4.0, grant, 0)
    assert play.kinds == ["Reply"]
    play.deliver(5.0, grant, 1, 2)
    commit = play.one(Commit)
    assert (commit.leases.tolist(), commit.failed) == (grant.leases.tolist(), False)
    assert play.tell(Committed(6.0)) == (Done(1),)
    assert (play.state.phase, play.state.version) == ("done", 1)


def test_lease_ids_tell_the_round_and_are_unique() -> None:
    play = Play(rules())
    first = play.check_in(0.0, 1, 2, 3)
    play.deliver(1.0, first, 0, 1, 2)
    play.tell(Committed(2.0))
    second = play.check_in(3.0, 1, 2, 3)
    assert first.leases.tolist() == [0, 1, 2]
    assert second.leases.tolist() == [2**32, 2**32 + 1, 2**32 + 2]
    assert second.version == 1


def test_the_choice_among_many_depends_on_the_seed_and_the_round_alone() -> None:
    def chosen(seed: int, order: int = 1) -> set[int]:
        play = Play(rules(seed=seed))
        return set(play.check_in(0.0, *range(100)[::order]).devices.tolist())

    assert chosen(1) == chosen(1, order=-1)
    assert chosen(1) != chosen(2)


def test_over_selection_asks_for_more_and_the_surplus_is_late() -> None:
    play = Play(rules(over_selection=1.5))
    assert play.one(Open).wanted == 5  # ceil(3 * 1.5)
    grant = play.check_in(0.0, *range(9))
    assert grant.leases.size == 5
    assert play.one(ComeBack).at == 10.0
    play.deliver(1.0, grant, 0, 1, 2)
    play.tell(Committed(2.0))
    play.offer(3.0, [3], grant.devices[3:4].tolist())
    assert play.heard_by(3) == LATE


def test_a_batch_beyond_the_cohort_is_folded_up_to_the_cohort_in_order_of_arrival() -> None:
    play = Play(rules(over_selection=1.5))
    grant = play.check_in(0.0, *range(5))
    order = [4, 2, 0, 1, 3]
    play.offer(1.0, grant.leases[order].tolist(), grant.devices[order].tolist())
    fold = play.one(Fold)
    assert fold.leases.tolist() == [4, 2, 0]
    assert fold.at.tolist() == [0, 1, 2]
    assert (play.heard_by(1), play.heard_by(3)) == (LATE, LATE)


def test_a_serial_round_is_never_over_selected() -> None:
    play = Play(rules(cohort=1, minimum=1, over_selection=3.0))
    assert play.one(Open).wanted == 1


# --- deadlines


def test_a_serial_round_whose_lease_expires_passes_to_the_next_device() -> None:
    play = Play(rules(cohort=1, minimum=1))
    play.check_in(0.0, 5)
    assert play.state.wakes_at == 10.0
    assert play.tell(Tick(9.9)) == ()
    (opened,) = play.tell(Tick(10.0))
    assert isinstance(opened, Open)
    assert (opened.window, opened.wanted) == (1, 1)
    assert play.check_in(11.0, 5, 6).devices.tolist() == [6]
    play.offer(12.0, [0], [5])
    assert play.heard_by(0) == LATE


def test_a_device_whose_lease_expired_is_asked_again_if_there_is_no_other() -> None:
    play = Play(rules(cohort=1, minimum=1))
    play.check_in(0.0, 5)
    play.tell(Tick(10.0))
    grant = play.check_in(11.0, 5)
    assert (grant.leases.tolist(), grant.devices.tolist()) == ([1], [5])


def test_at_the_deadline_the_minimum_completes_the_round() -> None:
    play = Play(rules())
    grant = play.check_in(0.0, 1, 2, 3)
    play.deliver(5.0, grant, 0, 2)
    play.tell(Tick(10.0))
    commit = play.one(Commit)
    assert (commit.leases.tolist(), commit.failed) == ([0, 2], False)


def test_below_the_minimum_another_window_opens_for_what_is_missing() -> None:
    play = Play(rules(over_selection=1.5))
    grant = play.check_in(0.0, *range(5))
    play.deliver(5.0, grant, 0)
    play.tell(Tick(10.0))
    assert (play.one(Open).window, play.one(Open).wanted) == (1, 3)  # ceil((3 - 1) * 1.5)
    more = play.check_in(11.0, 20, 21, 22)
    assert more.leases.tolist() == [5, 6, 7]
    play.deliver(12.0, more, 0, 1)
    assert play.one(Commit).leases.tolist() == [0, 5, 6]


def test_after_the_last_extension_the_round_fails_and_the_model_stays() -> None:
    play = Play(rules(max_extensions=1))
    play.deliver(1.0, play.check_in(0.0, 1, 2, 3), 0)
    play.tell(Tick(10.0))
    play.check_in(10.0, 4, 5)
    play.tell(Tick(20.0))
    commit = play.one(Commit)
    assert (commit.leases.tolist(), commit.failed) == ([0], True)
    play.tell(Committed(21.0, changed=False))
    assert (play.state.round, play.state.version) == (1, 0)
    play.offer(22.0, [0], [1])
    assert play.heard_by(0) == LATE  # acknowledged once, but its round used nothing


def test_a_window_that_nobody_fills_closes_a_deadline_after_its_first_lease() -> None:
    play = Play(rules())
    assert play.state.wakes_at == NEVER  # waits for the first device, however long
    grant = play.check_in(100.0, 1, 2)
    play.deliver(101.0, grant, 0, 1)
    assert play.state.phase == "open"  # two are enough, but a third may still come
    assert play.state.wakes_at == 110.0
    play.tell(Tick(110.0))
    assert play.one(Commit).leases.tolist() == [0, 1]


def test_each_lease_lasts_its_whole_time_but_none_is_given_after_the_window_closes() -> None:
    play = Play(rules())
    play.check_in(0.0, 1)
    late = play.check_in(9.0, 2)
    assert late.deadlines.tolist() == [19.0]
    play.tell(CheckIns(10.0, ids(3)))
    assert play.kinds == ["ComeBack"]
    play.deliver(18.0, late, 0)
    assert play.one(Open).window == 1


# --- offers


@pytest.mark.parametrize(
    ("lease", "device", "version", "status"),
    [
        (99, 1, 0, UNKNOWN),  # no such lease
        (2**40, 1, 0, UNKNOWN),  # of a round to come
        (-1, 1, 0, UNKNOWN),
        (0, 2, 0, UNKNOWN),  # of another device
        (0, 1, -1, STALE),
        (0, 1, 1, STALE),
    ],
)
def test_an_offer_that_cannot_count_is_not_folded(
    lease: int, device: int, version: int, status: str
) -> None:
    play = Play(rules())
    play.check_in(0.0, 1)
    play.tell(Offers(1.0, ids(lease), ids(device), ids(version)))
    assert play.kinds == ["Reply"]
    assert play.heard_by(lease) == status


def test_a_copy_of_an_accepted_update_is_a_duplicate_even_after_the_commit() -> None:
    play = Play(rules())
    grant = play.check_in(0.0, 1, 2, 3)
    device = [int(grant.devices[0])]
    play.deliver(1.0, grant, 0)
    play.offer(2.0, [0], device)
    assert play.heard_by(0) == DUPLICATE
    play.deliver(3.0, grant, 1, 2)
    play.offer(3.0, [0], device)
    assert play.heard_by(0) == DUPLICATE
    play.tell(Committed(4.0))
    play.offer(5.0, [0], device)
    assert play.heard_by(0) == DUPLICATE


def test_copies_in_one_batch_are_folded_once_and_the_others_get_no_answer() -> None:
    play = Play(rules())
    play.check_in(0.0, 1)
    play.offer(1.0, [0, 0, 0], [1, 1, 1])
    assert play.kinds == ["Fold"]
    assert play.one(Fold).at.tolist() == [0]
    play.offer(1.0, [0], [1])
    assert play.heard == ()
    play.tell(Folded(1.0, ids(0)))
    assert play.heard_by(0) == ACCEPTED


def test_what_is_being_folded_holds_its_place_in_the_cohort() -> None:
    play = Play(rules(cohort=2, over_selection=1.5))
    grant = play.check_in(0.0, 1, 2, 3)
    play.offer(1.0, [0, 1], grant.devices[:2].tolist())
    play.offer(1.0, [2], grant.devices[2:].tolist())
    assert (play.kinds, play.heard_by(2)) == (["Reply"], LATE)


def test_what_is_refused_for_its_content_frees_its_place() -> None:
    play = Play(rules(cohort=1, minimum=1))
    play.check_in(0.0, 1)
    play.offer(1.0, [0], [1])
    play.tell(Folded(1.0, ids(), ids(0), ("not finite",)))
    assert play.one(Reply) == Reply(play.one(Reply).leases, INVALID, ("not finite",))
    assert play.one(Open).window == 1
    play.offer(2.0, [0], [1])
    assert play.heard_by(0) == INVALID


# --- check-ins


def test_a_device_that_lost_the_answer_gets_the_same_lease_again() -> None:
    play = Play(rules())
    first = play.check_in(0.0, 1)
    again = play.check_in(5.0, 1)
    assert again.repeated
    assert (again.leases.tolist(), again.deadlines.tolist()) == ([0], [10.0])
    assert play.state.given == first.leases.size == 1


def test_a_device_that_has_delivered_waits_for_the_next_round() -> None:
    play = Play(rules())
    play.deliver(1.0, play.check_in(0.0, 1), 0)
    play.tell(CheckIns(2.0, ids(1)))
    assert play.kinds == ["ComeBack"]


def test_a_device_named_twice_gets_one_lease() -> None:
    play = Play(rules())
    grant = play.check_in(0.0, 4, 4, 4, 5)
    assert sorted(grant.devices.tolist()) == [4, 5]
    assert play.check_in(1.0, 4, 4, 5).leases.size == 2


def test_after_the_run_devices_are_told_never_to_come_back() -> None:
    play = Play(rules(rounds=0))
    assert play.heard == (Done(0),)
    play.tell(CheckIns(1.0, ids(1)))
    assert play.one(ComeBack).at == math.inf


# --- drop-out


def measured(minimum: int = 1) -> Play:
    return Play(rules(over_selection=0.0, cohort=4, minimum=minimum))


def test_a_window_that_loses_leases_makes_the_next_one_ask_more() -> None:
    play = measured(minimum=4)
    assert play.one(Open) == Open(0, 0, wanted=4, drop_out=0.0)
    play.deliver(1.0, play.check_in(0.0, 1, 2, 3, 4), 0, 1)
    play.tell(Tick(10.0))
    # 2 of 4 are lost, 2 / (32 + 4); 3 leases bring the 2 missing with probability 0.991, 2 do 0.89
    assert play.one(Open) == Open(0, 1, wanted=3, drop_out=2 / 36)


def test_an_update_that_is_refused_counts_as_lost() -> None:
    play = measured()
    grant = play.check_in(0.0, 1, 2, 3, 4)
    play.offer(1.0, grant.leases.tolist(), grant.devices.tolist())
    play.tell(Folded(1.0, grant.leases[:3], grant.leases[3:], ("not finite",)))
    assert play.tell(Committed(2.0))[0] == Open(1, 0, wanted=5, drop_out=1 / 36)


def late_after_an_early_end(*late: int) -> float:
    """What is known of round 0, which gave 8 leases and ended with 4; these came late."""
    play = Play(rules(over_selection=2.0, cohort=4, rounds=9))
    grant = play.check_in(0.0, *range(8))
    play.deliver(1.0, grant, 0, 1, 2, 3)
    play.tell(Committed(1.0))
    for at in late:
        play.offer(2.0, [int(grant.leases[at])], [int(grant.devices[at])])
        assert play.heard_by(int(grant.leases[at])) in (LATE, DUPLICATE)
    assert play.state.drop_out.share == 0.0  # nothing is known before the deadline
    play.tell(Tick(10.0))
    return play.state.drop_out.share


def test_who_is_out_when_a_round_ends_early_is_waited_for() -> None:
    assert late_after_an_early_end() == 4 / (32 + 8)
    assert late_after_an_early_end(4, 6) == 2 / (32 + 8)
    assert late_after_an_early_end(0, 1, 4) == 3 / (32 + 8)  # 0 and 1 had delivered already


def test_a_copy_of_a_late_update_says_nothing_new() -> None:
    assert late_after_an_early_end(4, 4, 4) == 3 / (32 + 8)


def test_a_stranger_learns_nothing_of_a_lease_under_watch_and_changes_nothing() -> None:
    play = Play(rules(over_selection=2.0, cohort=4, rounds=9))
    grant = play.check_in(0.0, *range(8))
    play.deliver(1.0, grant, 0, 1, 2, 3)
    play.tell(Committed(1.0))
    for lease in grant.leases.tolist():
        play.offer(2.0, [lease], [99])
        assert play.heard_by(lease) == UNKNOWN
    play.tell(Tick(10.0))
    assert play.state.drop_out.share == 4 / (32 + 8)
    play.offer(11.0, [0, 4], [99, 99])  # whose they were is known no longer
    assert (play.heard_by(0), play.heard_by(4)) == (DUPLICATE, LATE)


def test_what_comes_beyond_the_cohort_has_not_dropped_out() -> None:
    play = Play(rules(over_selection=2.0, cohort=4, rounds=9))
    grant = play.check_in(0.0, *range(8))
    play.offer(1.0, grant.leases.tolist(), grant.devices.tolist())
    play.tell(Folded(1.0, grant.leases[:4]))
    assert play.tell(Committed(1.0))[0] == Open(1, 0, wanted=8, drop_out=0.0)


# --- abandoned rounds


def test_an_abandoned_round_fails_and_its_leases_end() -> None:
    play = Play(rules())
    grant = play.check_in(0.0, 1, 2, 3)
    play.deliver(1.0, grant, 0, 1)
    commit = play.tell(Abandon(2.0))[0]
    assert isinstance(commit, Commit)
    assert (commit.leases.size, commit.failed) == (0, True)
    assert play.tell(Committed(2.0, changed=False))[0] == Open(1, 0, wanted=3)
    assert (play.state.round, play.state.version) == (1, 0)
    for at in range(3):
        play.offer(3.0, [int(grant.leases[at])], [int(grant.devices[at])])
        assert play.heard_by(int(grant.leases[at])) == LATE


def test_an_abandoned_round_may_bring_a_model() -> None:
    play = Play(rules())
    play.tell(Abandon(1.0))
    play.tell(Committed(1.0, changed=True))
    assert (play.state.round, play.state.version) == (1, 1)


def test_a_run_that_is_over_can_still_get_a_model() -> None:
    play = Play(rules(rounds=0))
    play.tell(Abandon(1.0))
    play.tell(Committed(1.0, changed=True))
    assert (play.state.phase, play.state.version) == ("done", 1)


# --- schedules and shells that cannot be


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"minimum": 4}, "minimum = 4 updates with a cohort of 3"),
        ({"minimum": 0}, "minimum = 0"),
        ({"rounds": -1}, "rounds = -1; it must be at least 0"),
        ({"over_selection": 0.9}, "over_selection = 0.9; it must be at least 1, or 0: measured"),
        ({"over_selection": math.nan}, "over_selection = nan"),
        ({"max_extensions": -1}, "max_extensions = -1"),
        ({"deadline_s": 0.0}, "deadline_s = 0.0"),
        ({"deadline_s": math.inf}, "deadline_s = inf"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused(changes: dict[str, float], match: str) -> None:
    with pytest.raises(RunError, match=match):
        rules(**changes)


def test_a_fleet_that_can_never_reach_the_minimum_is_refused_at_once() -> None:
    with pytest.raises(RunError, match="1 devices can run the Program, each round needs updates"):
        Play(rules(), devices=1)


def test_a_shell_that_breaks_the_protocol_is_told() -> None:
    play = Play(rules())
    with pytest.raises(RunError, match="begun already"):
        play.tell(Begin(1.0, 100))
    with pytest.raises(RunError, match="nothing to commit"):
        play.tell(Committed(1.0))
    with pytest.raises(RunError, match="in round 0 0 are being folded"):
        play.tell(Folded(1.0, ids(0)))
    with pytest.raises(RunError, match="round 0 is idle: it cannot be abandoned"):
        machine.step(machine.start(rules()), Abandon(1.0))
    play.check_in(1.0, 1)
    play.offer(1.0, [0], [1])
    with pytest.raises(RunError, match="1 reasons for 0 refusals"):
        play.tell(Folded(1.0, ids(0), reasons=("?",)))


# --- history and speed


def test_two_futures_of_one_past_do_not_meet() -> None:
    past = Past().then(ids(0))
    left, right = past.then(ids(2**32)), past.then(ids(2**32 + 1))
    both = ids(2**32, 2**32 + 1)
    assert left.accepted(both).tolist() == [True, False]
    assert right.accepted(both).tolist() == [False, True]
    assert left.accepted(ids(0)).all()
    assert right.accepted(ids(0)).all()
    assert len(past) == 1


@pytest.mark.parametrize(("cohort", "limit_us"), [(1, 400.0), (1000, 2000.0)])
def test_a_round_is_cheap(cohort: int, limit_us: float) -> None:
    """About 90 us for one device and 200 us for a thousand; the limits allow a busy machine."""
    play = Play(rules(rounds=200, cohort=cohort, minimum=1), cohort)
    started = time.process_time()
    while play.state.phase != "done":
        play.tell(CheckIns(0.0, np.arange(cohort)))
        grant = play.one(Grant)
        versions = np.full(cohort, grant.version)
        play.tell(Offers(1.0, grant.leases, grant.devices, versions))
        play.tell(Folded(1.0, play.one(Fold).leases))
        play.tell(Committed(2.0))
    assert (time.process_time() - started) / 200 * 1e6 < limit_us
