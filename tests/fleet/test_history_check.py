"""The history checker passes what is sound and finds every way in which a history can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from fedtiny.values import ACCEPTED, DUPLICATE, LATE, lease_id
from tests.harness.history_check import (
    CHECK_IN,
    FAIL,
    INVOKE,
    OK,
    SUBMIT,
    UNKNOWN,
    Commit,
    Entry,
    Ledger,
    Log,
    check,
    read_logs,
)

ROUNDS, DEVICES, RUN = 5, 8, "77" * 8


def digest(version: int) -> str:
    return f"{version:064x}"


FATES: dict[str, tuple[tuple[str, ...], bool]] = {
    "acknowledged": ((ACCEPTED,), True),
    "the answer was lost, it was sent again": ((UNKNOWN, DUPLICATE), True),
    "the request was lost, it was sent again": ((UNKNOWN, ACCEPTED), True),
    "nobody knows, it had arrived": ((UNKNOWN,), True),
    "nobody knows, it was lost": ((UNKNOWN,), False),
    "late": ((LATE,), False),
    "the request was malformed": ((FAIL,), False),
    "malformed at first": ((FAIL, ACCEPTED), True),
}
"""What the attempts of a visit met, and whether its update counts."""


@dataclass
class History:
    """A sound history: every fate at least once, in an order drawn from the seed."""

    seed: int
    entries: list[Entry] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draws = np.random.default_rng(self.seed)
        self.calls = 0
        self.accepted: list[int] = []
        for round in range(ROUNDS):
            self.round(round)
        self.hand_in(ROUNDS)
        self.ledger = Ledger(
            RUN, tuple(self.commits), tuple(self.accepted), digest(0),
            tuple(commit.digest for commit in self.commits),
        )  # fmt: skip

    def round(self, round: int) -> None:
        counted = self.hand_in(round)
        failed = round == 2
        version = self.version + (not failed)
        self.commits.append(
            Commit(round, version, digest(version), () if failed else counted, failed)
        )

    @property
    def version(self) -> int:
        return self.commits[-1].version if self.commits else 0

    def hand_in(self, round: int) -> tuple[int, ...]:
        counted = []
        for ordinal, device in enumerate(self.draws.permutation(DEVICES).tolist()):
            attempts, counts = FATES[list(FATES)[ordinal]]
            lease = lease_id(round, ordinal)
            self.call(CHECK_IN, device, OK, "", lease)
            for told in attempts:
                kind = told if told in (UNKNOWN, FAIL) else OK
                self.call(SUBMIT, device, kind, told if kind == OK else "", lease)
            counted += [lease] * counts
        self.accepted += counted
        return tuple(counted)

    def call(self, op: str, device: int, kind: str, status: str, lease: int) -> None:
        self.calls += 1
        version, base = self.version, digest(self.version)
        begun = Entry("swarm", self.calls, op, INVOKE, device, RUN, lease, version, base)
        self.entries.append(begun if op == SUBMIT else replace(begun, lease=-1, version=-1))
        self.entries.append(replace(begun, kind=kind, status=status))

    # ---- drawing what to break

    def commit(self) -> int:
        """The place of a commit that has not failed."""
        return int(self.draws.choice([i for i, c in enumerate(self.commits) if not c.failed]))

    def counted(self) -> Entry:
        """A receipt of an update that counts in a commit."""
        leases = {lease for c in self.commits for lease in c.leases}
        told = [e for e in self.entries if e.lease in leases and e.status]
        return told[int(self.draws.integers(len(told)))]

    def change(self, place: int, **what: object) -> None:
        """The commit at that place says something else."""
        commits = list(self.ledger.commits)
        commits[place] = replace(commits[place], **what)  # type: ignore[arg-type]
        self.ledger = replace(self.ledger, commits=tuple(commits))


def acknowledged_is_lost(h: History, lease: int = -1) -> None:
    lease = h.counted().lease if lease < 0 else lease
    place = next(i for i, c in enumerate(h.commits) if lease in c.leases)
    h.change(place, leases=tuple(x for x in h.commits[place].leases if x != lease))


def counted_twice_in_a_round(h: History) -> None:
    place = h.commit()
    h.change(place, leases=(*h.commits[place].leases, h.commits[place].leases[0]))


def counted_in_two_rounds(h: History) -> None:
    h.change(0, leases=(*h.commits[0].leases, h.commits[1].leases[0]))


def accepted_and_forgotten(h: History) -> None:
    """The device may have crashed before it was told: the coordinator's own tables disagree."""
    lease = h.counted().lease
    acknowledged_is_lost(h, lease)
    h.entries = [e for e in h.entries if e.lease != lease]


def counted_without_being_accepted(h: History) -> None:
    lease = h.counted().lease
    h.ledger = replace(h.ledger, accepted=tuple(x for x in h.accepted if x != lease))


def refused_and_counted(h: History) -> None:
    lease = next(e.lease for e in h.entries if e.status == LATE)
    h.change(0, leases=(*h.commits[0].leases, lease))


def malformed_and_counted(h: History) -> None:
    told = {e.lease for e in h.entries if e.status}
    lease = next(e.lease for e in h.entries if e.kind == FAIL and e.lease not in told)
    h.change(0, leases=(*h.commits[0].leases, lease))


def told_two_stories(h: History) -> None:
    found = h.counted()
    h.call(SUBMIT, found.device, OK, LATE, found.lease)


def nobody_handed_it_in(h: History) -> None:
    h.change(0, leases=(*h.commits[0].leases, lease_id(0, 99)))


def one_device_counts_twice_in_a_round(h: History) -> None:
    place = h.commit()
    one, other = h.commits[place].leases[:2]
    owner = next(e.device for e in h.entries if e.lease == one)
    h.entries = [replace(e, device=owner) if e.lease == other else e for e in h.entries]


def a_version_falls(h: History) -> None:
    h.change(4, version=1)


def a_round_without_a_new_version_changes_the_model(h: History) -> None:
    h.change(2, digest=digest(999))


def a_round_is_missing(h: History) -> None:
    place = int(h.draws.integers(ROUNDS - 1))
    commits = h.ledger.commits
    h.ledger = replace(h.ledger, commits=(*commits[:place], *commits[place + 1 :]), replayed=None)


def a_failed_round_counts(h: History) -> None:
    h.change(h.commit(), failed=True)


def another_round_s_lease_counts(h: History) -> None:
    moved = h.commits[0].leases[0]
    h.change(0, leases=h.commits[0].leases[1:])
    h.change(1, leases=(*h.commits[1].leases, moved))


def a_lease_counts_before_it_was_given(h: History) -> None:
    counts_in(h, h.commits[3].leases[0], 1, max_staleness=9)


def an_update_counts_too_late(h: History) -> None:
    counts_in(h, h.commits[0].leases[0], 4, max_staleness=2)


def an_update_of_an_earlier_round_counts_in_one_of_a_cohort(h: History) -> None:
    of_the_failed_round = next(lease for lease in h.accepted if lease >> 32 == 2)
    counts_in(h, of_the_failed_round, 3, max_staleness=0)


def counts_in(h: History, lease: int, place: int, max_staleness: int) -> None:
    """The lease counts in another round than its own; all records agree."""
    for at, commit in enumerate(h.commits):
        leases = tuple(each for each in commit.leases if each != lease)
        h.change(at, leases=(*leases, lease) if at == place else leases)
    h.ledger = replace(h.ledger, later={lease: place}, max_staleness=max_staleness)


def replay_gives_another_model(h: History) -> None:
    assert h.ledger.replayed
    at = int(h.draws.integers(ROUNDS))
    rebuilt = [*h.ledger.replayed[:at], digest(777), *h.ledger.replayed[at + 1 :]]
    h.ledger = replace(h.ledger, replayed=tuple(rebuilt))


def replay_ends_early(h: History) -> None:
    assert h.ledger.replayed
    h.ledger = replace(h.ledger, replayed=h.ledger.replayed[:-1])


def a_device_had_another_model(h: History) -> None:
    at = int(h.draws.choice([i for i, e in enumerate(h.entries) if e.op == SUBMIT]))
    call = h.entries[at].call
    h.entries = [replace(e, digest=digest(55)) if e.call == call else e for e in h.entries]


def a_device_is_sent_back(h: History) -> None:
    device = int(h.draws.integers(DEVICES))
    h.calls += 1
    asked = Entry("swarm", h.calls, CHECK_IN, INVOKE, device, RUN)
    h.entries += [asked, replace(asked, kind=OK, version=1)]


def a_call_ends_twice(h: History) -> None:
    h.entries.append(h.counted())


FLAWS: dict[Callable[[History], None], str] = {
    acknowledged_is_lost: "it is lost",
    counted_twice_in_a_round: "counts 2 times",
    counted_in_two_rounds: "counts 2 times",
    accepted_and_forgotten: "is accepted and counts nowhere",
    counted_without_being_accepted: "it was not accepted",
    refused_and_counted: "was told ['late'] and counts",
    malformed_and_counted: "was told ['failed'] and counts",
    told_two_stories: "'late']",
    nobody_handed_it_in: "nobody handed it in",
    one_device_counts_twice_in_a_round: "counts 2 times in round",
    a_version_falls: "goes from version",
    a_round_without_a_new_version_changes_the_model: "goes from version",
    a_round_is_missing: "follows round",
    a_failed_round_counts: "has failed, and counts",
    another_round_s_lease_counts: "counts in round 1",
    a_lease_counts_before_it_was_given: "counts in round 1",
    an_update_counts_too_late: "3 versions late",
    an_update_of_an_earlier_round_counts_in_one_of_a_cohort: "counts in round 3, 0 versions late",
    replay_gives_another_model: "rebuilt",
    replay_ends_early: "rounds were rebuilt",
    a_device_had_another_model: "had another model",
    a_device_is_sent_back: "got version 1 after",
    a_call_ends_twice: "is damaged",
}


@pytest.mark.parametrize("seed", range(20))
def test_a_sound_history_passes(seed: int) -> None:
    history = History(seed)
    assert check(history.entries, history.ledger) == []


@pytest.mark.parametrize("mutate", FLAWS, ids=lambda f: f.__name__)
def test_every_flaw_is_found(mutate: Callable[[History], None]) -> None:
    for seed in range(20):
        history = History(seed)
        mutate(history)
        found = check(history.entries, history.ledger)
        assert any(FLAWS[mutate] in flaw for flaw in found), (seed, found)


def test_an_update_may_count_in_a_later_round_of_an_asynchronous_run() -> None:
    history = History(3)
    owners = {e.lease: e.device for e in history.entries if e.op == SUBMIT}
    devices = {owners[lease] for lease in history.commits[3].leases}
    free = [lease for lease in history.commits[1].leases if owners[lease] not in devices]
    counts_in(history, free[0], 3, max_staleness=1)  # version 1, where 2 was the newest
    assert check(history.entries, history.ledger) == []


def test_an_acknowledged_update_of_a_failed_round_is_not_lost() -> None:
    history = History(0)
    told = [e for e in history.entries if e.status == ACCEPTED and e.lease >> 32 == 2]
    assert told
    assert check(history.entries, history.ledger) == []


def test_another_run_s_entries_are_of_no_concern() -> None:
    history = History(1)
    other = [replace(e, run="00" * 8, client="other", lease=7) for e in history.entries]
    assert check([*history.entries, *other], history.ledger) == []


def test_a_log_that_was_cut_short_is_read_up_to_there(tmp_path: Path) -> None:
    with Log(tmp_path / "a.jsonl") as log:
        call = log.invoke(SUBMIT, 3, run=RUN, lease=5, version=2)
        log.end(call, SUBMIT, OK, 3, run=RUN, lease=5, status=ACCEPTED)
        log.invoke(SUBMIT, 3, run=RUN, lease=6)
    path = tmp_path / "a.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    assert [(e.call, e.kind, e.lease) for e in read_logs(tmp_path)] == [
        (1, INVOKE, 5),
        (1, OK, 5),
    ]
