"""Whatever goes wrong, nothing acknowledged is lost and nothing is counted twice.

Hypothesis drives a coordinator and its devices through crashes, lost requests and answers,
copies, reordering, losses of power, forged, stale and broken updates, and the passing of time.
Once in rounds of a cohort, and once asynchronously.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fedtiny.device.link import MemoryLink
from fedtiny.device.session import Event
from fedtiny.fold import Total
from fedtiny.rounds.coordinator import Coordinator
from fedtiny.rounds.events import Grant
from fedtiny.rounds.journal import (
    Accepted,
    Journal,
    MemoryJournal,
    Published,
    Record,
    replay,
)
from fedtiny.rounds.rules import Rules
from fedtiny.strategies.base import Round, Strategy
from fedtiny.strategies.fedbuff import FedBuff
from fedtiny.strategies.fedopt import FedAvgM
from fedtiny.values import ACCEPTED, DUPLICATE, UNKNOWN, Instruction, Lease, Receipt, Update
from tests.harness.node import Fate, FaultyLink, Node
from tests.harness.toys import INITIAL, LAYOUT

if TYPE_CHECKING:
    from fedtiny.tensors import Float32

N_DEVICES = 5
RULES = Rules(
    rounds=4, cohort=2, deadline_s=10.0, minimum=1, over_selection=1.5, max_extensions=2, seed=3
)
ASYNCHRONOUS = replace(RULES, concurrency=3, max_staleness=2)

devices = st.integers(0, N_DEVICES - 1)
FATES: tuple[Fate, ...] = ("delivered", "request lost", "answer lost")
fates = st.sampled_from(FATES)
mostly_delivered = st.sampled_from(("delivered",) * 4 + FATES)


class Witness:
    """A journal that remembers everything that was ever committed, too."""

    def __init__(self, journal: Journal, written: list[Record]) -> None:
        self.journal, self.written = journal, written
        self._appended: list[Record] = []
        self.pending, self.commits = journal.pending, journal.commits
        self.outcomes, self.latest, self.bases = journal.outcomes, journal.latest, journal.bases

    def append(self, record: Record) -> None:
        self.journal.append(record)
        self._appended.append(record)

    def commit(self) -> None:
        self.journal.commit()
        self.written += self._appended
        self._appended = []


class Fleet(RuleBasedStateMachine):
    run_rules: ClassVar[Rules] = RULES
    strategy: ClassVar[Strategy] = FedAvgM(cohort=2, beta=0.1)

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.written: list[Record] = []
        self.memory = MemoryJournal()
        self.boot()
        self.links = [FaultyLink(MemoryLink(self, d, lambda: self.now)) for d in range(N_DEVICES)]
        self.nodes = [Node(RULES.seed, d, link) for d, link in enumerate(self.links)]
        self.wire: list[Update] = []
        self.honest: dict[int, Update] = {}
        self.acknowledged: set[int] = set()

    def boot(self) -> None:
        """The coordinator starts, or starts again with what the journal has."""
        self.journal = Witness(self.open_journal(), self.written)
        self.coordinator = Coordinator(
            self.run_rules, self.strategy, LAYOUT, INITIAL, self.journal, N_DEVICES, self.now
        )
        self.journal.commit()

    def open_journal(self) -> Journal:
        """What has survived."""
        return self.memory

    # ---- the service that the links see: the coordinator, with a witness

    def check_in(self, now: float, device: int) -> tuple[Lease, Instruction] | float:
        answer = self.coordinator.check_in(now, device)
        self.journal.commit()
        return answer

    def fetch(self, version: int) -> bytes:
        return self.coordinator.fetch(version)

    def submit(self, now: float, updates: Sequence[Update]) -> list[Receipt]:
        counted = set(self.counted())
        receipts = self.coordinator.submit(now, updates)
        self.journal.commit()
        failed = self.failed()
        for receipt in receipts:
            delivered = receipt.status in (ACCEPTED, DUPLICATE)
            self.acknowledged |= {receipt.lease} if delivered else set()
            assert receipt.status != ACCEPTED or receipt.lease not in counted
            assert receipt.status != ACCEPTED or now < self.leases()[receipt.lease]
            if receipt.lease in counted and receipt.status != UNKNOWN:  # unknown: forged
                assert receipt.status == DUPLICATE or receipt.lease in failed
        return receipts

    def leases(self) -> dict[int, float]:
        """The deadline of every lease that was ever given."""
        grants = [record for record in self.written if isinstance(record, Grant)]
        return {
            lease: deadline
            for grant in grants
            for lease, deadline in zip(grant.leases.tolist(), grant.deadlines.tolist(), strict=True)
        }

    # ---- what can happen

    @rule(device=devices, asking=mostly_delivered, handing_in=fates)
    def a_device_acts(self, device: int, asking: Fate, handing_in: Fate) -> None:
        self.links[device].asking, self.links[device].handing_in = asking, handing_in
        node = self.nodes[device]
        seen = len(node.sent)
        node.act(self.now)
        for update in node.sent[seen:]:
            self.wire.append(update)
            self.honest[update.lease] = update

    @rule(device=devices)
    def the_power_fails(self, device: int) -> None:
        self.nodes[device].meet(Event.POWER_LOST, self.now)

    @rule()
    def the_coordinator_crashes(self) -> None:
        model, state = self.coordinator.model.tobytes(), self.coordinator.rounds
        self.boot()
        after = self.coordinator.rounds
        assert self.coordinator.model.tobytes() == model or after.round > state.round
        if (after.round, after.window) == (state.round, state.window):
            assert after.accepted == state.accepted

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def the_network_delivers_old_copies(self, data: st.DataObject) -> None:
        copies = data.draw(st.lists(st.sampled_from(self.wire[-9:]), min_size=1, max_size=5))
        self.submit(self.now, copies)

    @precondition(lambda self: self.wire)
    @rule(data=st.data(), lie=st.sampled_from(("nan", "stale", "forged", "made up")))
    def somebody_sends_nonsense(self, data: st.DataObject, lie: str) -> None:
        update = data.draw(st.sampled_from(self.wire[-3:]))
        values = np.full(LAYOUT.size, np.nan if lie == "nan" else 7.0, np.float32).tobytes()
        wrong = replace(update, values=values, measures={})
        if lie == "stale":
            wrong = replace(wrong, version=update.version - 1)
        if lie == "forged":
            wrong = replace(wrong, device=N_DEVICES + 1)
        if lie == "made up":
            wrong = replace(wrong, lease=update.lease + 1000)
        self.submit(self.now, [wrong, update][: data.draw(st.integers(1, 2))])

    @rule(seconds=st.sampled_from((0.5, 3.0, 11.0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.coordinator.tick(self.now)
        self.journal.commit()

    @precondition(lambda self: self.coordinator.rounds.phase == "open")
    @rule(back_to=st.integers(0, 9))
    def an_operator_interferes(self, back_to: int) -> None:
        """Gives up the round, or goes back to an earlier model."""
        version, models = self.coordinator.rounds.version, list(self.replayed())
        if back_to < len(models):
            self.coordinator.publish(self.now, models[back_to])
            assert self.coordinator.fetch(version + 1) == models[back_to].tobytes()
        else:
            self.coordinator.abandon(self.now)
            assert self.coordinator.rounds.version == version
        self.journal.commit()

    # ---- what always holds

    def commits(self) -> list[Published]:
        return list(self.journal.commits())

    def counted(self) -> list[int]:
        committed = [lease for commit in self.commits() for lease in commit.leases.tolist()]
        pending = [r for r in self.journal.pending() if isinstance(r, Accepted)]
        return committed + [lease for record in pending for lease in record.leases.tolist()]

    def accepted_in(self) -> Mapping[int, int]:
        """The round in which each lease that was ever accepted counts."""
        accepted = (record for record in self.written if isinstance(record, Accepted))
        return {lease: record.round for record in accepted for lease in record.leases.tolist()}

    def failed(self) -> set[int]:
        """The accepted leases of rounds that then failed."""
        rounds = {commit.round for commit in self.commits() if commit.failed}
        return {lease for lease, round in self.accepted_in().items() if round in rounds}

    @invariant()
    def nothing_is_counted_twice(self) -> None:
        counted, rounds = self.counted(), self.accepted_in()
        assert len(set(counted)) == len(counted)
        of_round = [(self.honest[lease].device, rounds[lease]) for lease in counted]
        assert len(set(of_round)) == len(of_round)
        assert all(commit.leases.size <= self.run_rules.cohort for commit in self.commits())

    @invariant()
    def an_update_counts_in_its_round_or_while_it_is_not_too_late(self) -> None:
        versions = [0, *(commit.version for commit in self.commits())]
        for lease, round in self.accepted_in().items():
            late = versions[round] - self.honest[lease].version
            assert 0 <= late <= self.run_rules.max_staleness
            assert round == lease >> 32 or self.run_rules.asynchronous

    @invariant()
    def nothing_acknowledged_is_lost(self) -> None:
        assert self.acknowledged - set(self.counted()) <= self.failed()

    @invariant()
    def lease_ids_are_unique(self) -> None:
        grants = [r.leases.tolist() for r in self.written if isinstance(r, Grant)]
        ids = [lease for leases in grants for lease in leases]
        assert len(set(ids)) == len(ids)

    @invariant()
    def versions_rise(self) -> None:
        versions = [0, *(commit.version for commit in self.commits())]
        changed = [commit.changed for commit in self.commits()]
        assert [b - a for a, b in pairwise(versions)] == changed
        assert self.coordinator.rounds.version == versions[-1]

    @invariant()
    def contents_live_only_until_their_round_commits(self) -> None:
        current = self.coordinator.rounds.round
        assert all(record.round == current for record in self.journal.pending())

    # ---- the end

    def teardown(self) -> None:
        patience = self.now + 2000.0
        while not all(node.stopped for node in self.nodes):
            assert self.now < patience, "the run does not end"
            for device in range(N_DEVICES):
                self.a_device_acts(device, "delivered", "delivered")
            self.now += 1.0
            self.coordinator.tick(self.now)
            self.journal.commit()
        self.check_models()

    def replayed(self) -> Iterator[Float32]:
        """Every model, before the first round and after each."""
        for model, _ in replay(self.journal, self.run_rules.rounds, self.strategy, LAYOUT, INITIAL):
            yield model

    def check_models(self) -> None:
        assert [commit.round for commit in self.commits()] == list(range(self.run_rules.rounds))
        models = list(self.replayed())
        assert models[-1].tobytes() == self.coordinator.model.tobytes()
        model, state = INITIAL, self.strategy.start(LAYOUT, INITIAL)
        bases = {0: INITIAL}
        for commit, published in zip(self.commits(), models[1:], strict=True):
            if not commit.failed:
                total = self.folded(commit, bases)
                model, state = self.strategy.finish(Round(commit.round, 4), model, total, state)
            elif commit.changed:
                model = published  # by an operator
            assert published.tobytes() == model.tobytes()
            bases[commit.version] = model

    def weights(self, updates: Sequence[Update], version: int) -> Sequence[float]:
        """What the updates count for in a round that began with the model of this version."""
        return [update.samples for update in updates]

    def folded(self, commit: Published, bases: Mapping[int, Float32]) -> Total:
        """The accepted set in the order of its leases; and its mean in plain NumPy."""
        updates = [self.honest[lease] for lease in commit.leases.tolist()]
        weights = self.weights(updates, max(bases))
        total = Total.zero(LAYOUT.size, self.strategy.fold_rule)
        for update, weight in zip(updates, weights, strict=True):
            total = total.add(update, bases[update.version], weight)
        deltas = [np.frombuffer(bytes(u.values), np.float32) - bases[u.version] for u in updates]
        plain = np.average(deltas, axis=0, weights=weights)
        np.testing.assert_allclose(total.mean(), plain, rtol=1e-4, atol=1e-6)
        return total


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


class AsynchronousFleet(Fleet):
    """Leases outlive their rounds, and their updates count as deltas to the model they are on."""

    run_rules = ASYNCHRONOUS
    strategy = FedBuff(cohort=2, concurrency=3, max_staleness=2, beta=0.1)

    def weights(self, updates: Sequence[Update], version: int) -> Sequence[float]:
        return [(1 + version - update.version) ** -0.5 for update in updates]

    @invariant()
    def no_more_work_than_the_concurrency(self) -> None:
        assert np.count_nonzero(self.coordinator.rounds.leases.is_live) <= 3


TestAsynchronousFleet = AsynchronousFleet.TestCase
TestAsynchronousFleet.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
