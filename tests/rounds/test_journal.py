from __future__ import annotations

import numpy as np
import pytest

from fedtiny.errors import RunError
from fedtiny.rounds.events import Grant, Open
from fedtiny.rounds.journal import Accepted, MemoryJournal, recover, replay
from fedtiny.rounds.rules import Rules
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.fedopt import FedAvgM
from fedtiny.strategies.median import Median
from fedtiny.values import Update
from tests.harness.toys import INITIAL, LAYOUT, Run

FEDAVG = FedAvg(cohort=3, beta=0.1)


def test_a_commit_destroys_the_contents_of_its_round() -> None:
    run = Run(Median(cohort=3, beta=0.1))
    updates = run.updates()
    run.coordinator.submit(1.0, updates[:2])
    assert run.journal is not None
    (kept,) = (r for r in run.journal.pending() if isinstance(r, Accepted))
    assert isinstance(kept.part, tuple)
    assert all(isinstance(update, Update) for update in kept.part)
    run.coordinator.submit(2.0, updates[2:])
    assert [type(record) for record in run.journal.pending()] == [Open]
    (commit,) = run.journal.commits()
    assert commit.total is None
    assert commit.model is not None  # what finish returned; no update is left anywhere


def test_a_sum_is_journalled_as_a_sum() -> None:
    run = Run(FEDAVG)
    run.round()
    assert run.journal is not None
    (commit,) = run.journal.commits()
    assert commit.total is not None
    assert commit.total.count == 3


def test_recovery_brings_back_accepted_and_live_leases() -> None:
    run = Run(FEDAVG)
    updates = run.updates()
    run.coordinator.submit(1.0, updates[:1])
    assert run.journal is not None
    before, after = run.coordinator.rounds, recover(run.rules, run.journal)
    assert (after.accepted, after.demand, after.wakes_at) == (1, 0, before.wakes_at)
    for column in ("ids", "devices", "versions", "deadlines", "status"):
        assert np.array_equal(getattr(after.leases, column), getattr(before.leases, column))


def test_recovery_knows_the_drop_out_and_who_was_accepted_in_rounds_before() -> None:
    run = Run(FEDAVG, minimum=2)
    first = run.updates()
    run.coordinator.submit(1.0, first[:2])
    run.coordinator.tick(10.0)  # the third lease has ended: 1 / (32 + 3)
    assert run.journal is not None
    after = recover(run.rules, run.journal)
    assert after.drop_out.share == run.coordinator.rounds.drop_out.share == 1 / 35
    leases = np.array([update.lease for update in first])
    assert after.past.accepted(leases).tolist() == [True, True, False]


def test_recovery_goes_on_from_the_last_model_and_rebuilds_none() -> None:
    run = Run(FedAvgM(cohort=3, beta=0.1, server_momentum=0.9))
    run.round()
    assert run.journal is not None
    (commit,) = run.journal.commits()
    model, state = run.coordinator.model, run.coordinator.strategy_state
    run.strategy = FEDAVG  # whose finish is not called
    run.restart()
    assert run.coordinator.model.tobytes() == model.tobytes()
    assert run.coordinator.strategy_state is state
    assert run.journal.latest() == (commit.model, commit.state)
    assert [outcome.leases.tolist() for outcome in run.journal.outcomes()] == [[0, 1, 2]]


def test_an_empty_journal_is_the_beginning() -> None:
    rules = Rules(1, 1, 1.0, 1)
    assert recover(rules, MemoryJournal()).phase == "idle"
    assert MemoryJournal().latest() is None


def test_a_repeated_grant_is_not_a_new_one() -> None:
    run = Run(FEDAVG)
    for _ in range(2):
        run.coordinator.check_in(0.0, 4)
    assert run.journal is not None
    assert sum(isinstance(record, Grant) for record in run.journal.pending()) == 1


def test_replay_refuses_a_strategy_that_is_not_that_of_the_run() -> None:
    run = Run(FEDAVG)
    run.finish()
    assert run.journal is not None
    assert len(list(replay(run.journal, 3, FEDAVG, LAYOUT, INITIAL))) == 4
    other = FedAvgM(cohort=3, beta=0.1, server_lr=0.5)
    for strategy, initial in ((other, INITIAL), (FEDAVG, INITIAL + 1)):
        with pytest.raises(RunError, match=r"round 0 gives the model \w+, its journal says"):
            list(replay(run.journal, 3, strategy, LAYOUT, initial))
