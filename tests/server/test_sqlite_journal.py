from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest

from fedtiny.errors import RunError
from fedtiny.fold import FoldRule, Total
from fedtiny.rounds.events import Open
from fedtiny.rounds.journal import Accepted, Published, digest, recover, replay
from fedtiny.rounds.measures import Measures
from fedtiny.rounds.rules import Rules
from fedtiny.server import crash_points
from fedtiny.server.sealing import RoundKeys
from fedtiny.server.sqlite_journal import SqliteCommits, SqliteJournal, discard
from fedtiny.server.storage import FILE, Database, read_only
from fedtiny.strategies.base import Strategy
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.fedopt import FedAdam, FedAvgM
from fedtiny.strategies.median import Median
from fedtiny.values import ACCEPTED, Update, lease_id
from tests.harness import appending
from tests.harness.toys import INITIAL, LAYOUT, Run

RUN, OTHER = b"01234567", b"89abcdef"
STRATEGIES: list[Strategy] = [
    FedAvgM(cohort=3, beta=0.1, server_momentum=0.9),
    FedAdam(cohort=3, beta=0.1),
    Median(cohort=3, beta=0.1),
]
by_name = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)


class Server:
    """A database in a folder, and the journals of runs in it; `crash` and go on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open()

    def open(self) -> None:
        self.database = Database(self.folder)
        self.keys = RoundKeys(self.folder / "round-keys")

    def journal(self, run: bytes = RUN) -> SqliteJournal:
        return SqliteJournal(self.database, run, self.keys)

    def crash(self) -> None:
        """What was not committed is gone."""
        self.database.close()
        self.open()

    def begin(self, strategy: Strategy, rounds: int = 3) -> Run:
        run = Run(strategy, rounds, journal=self.journal())
        self.database.commit()
        return run

    def resume(self, run: Run) -> None:
        run.journal = self.journal()
        run.restart()
        self.database.commit()

    def count(self, table: str) -> int:
        (count,) = self.database.connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(count)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "fleet")
    yield made
    made.database.close()


# --- going on


@by_name
def test_a_run_that_crashes_after_every_step_makes_the_same_models(
    server: Server, strategy: Strategy
) -> None:
    undisturbed = Run(strategy)
    undisturbed.finish()
    run = server.begin(strategy)
    while run.coordinator.rounds.phase != "done":
        updates = run.updates()
        server.database.commit()
        for update in updates:
            server.crash()
            server.resume(run)
            run.now += 1.0
            run.coordinator.submit(run.now, [update])
            server.database.commit()
    assert undisturbed.journal is not None
    for ours, theirs in zip(server.journal().commits(), undisturbed.journal.commits(), strict=True):
        for name in ("round", "version", "digest", "changed", "total", "failed", "measures"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert ours.leases.tolist() == theirs.leases.tolist()
        assert list(ours.state) == list(theirs.state)
        for name, value in theirs.state.items():
            assert np.array_equal(ours.state[name], value)
    assert run.coordinator.model.tobytes() == undisturbed.coordinator.model.tobytes()


@by_name
def test_recovery_stands_where_the_crash_was(server: Server, strategy: Strategy) -> None:
    run = server.begin(strategy)
    run.round()
    updates = run.updates()
    run.coordinator.submit(9.0, updates[:2])
    server.database.commit()
    before = run.coordinator.rounds
    server.crash()
    after = recover(run.rules, server.journal())
    assert (after.round, after.version, after.accepted) == (1, 1, 2)
    for column in ("ids", "devices", "versions", "deadlines", "status"):
        assert np.array_equal(getattr(after.leases, column), getattr(before.leases, column))
    leases = lease_id(0, np.arange(4))
    assert after.past.accepted(leases).tolist() == before.past.accepted(leases).tolist()


def test_what_was_not_committed_has_not_happened(server: Server) -> None:
    run = server.begin(FedAvg(cohort=3, beta=0.1))
    updates = run.updates()
    server.database.commit()
    run.coordinator.submit(1.0, updates)  # the whole round
    server.crash()
    server.resume(run)
    assert (run.coordinator.rounds.round, run.coordinator.rounds.accepted) == (0, 0)
    receipts = run.coordinator.submit(2.0, updates)
    assert {receipt.status for receipt in receipts} == {ACCEPTED}


def test_a_journal_is_as_it_was_after_a_rollback(server: Server) -> None:
    run = server.begin(FedAvg(cohort=3, beta=0.1))
    updates = run.updates()
    run.coordinator.submit(1.0, updates[:1])
    server.database.commit()
    run.coordinator.submit(1.0, updates[1:])
    server.database.connection.rollback()
    run.restart()  # on the same journal
    assert (run.coordinator.rounds.round, run.coordinator.rounds.accepted) == (0, 1)
    run.coordinator.submit(1.0, updates[1:])
    server.database.commit()
    assert run.coordinator.rounds.round == 1


def test_a_first_round_that_changes_nothing_leaves_the_initial_model(server: Server) -> None:
    run = server.begin(FedAvg(cohort=3, beta=0.1))
    assert server.journal().latest() is None
    run.coordinator.abandon(1.0)
    server.database.commit()
    latest = server.journal().latest()
    assert latest is not None
    assert latest[0].tobytes() == INITIAL.tobytes()


def test_runs_in_one_database_do_not_meet(server: Server) -> None:
    runs = [
        Run(FedAvgM(cohort=3, beta=beta), journal=server.journal(name))
        for name, beta in ((RUN, 0.1), (OTHER, 0.2))
    ]
    for _ in range(3):
        for run in runs:
            run.round()
    server.database.commit()
    for run, name in zip(runs, (RUN, OTHER), strict=True):
        alone = Run(run.strategy)
        assert alone.finish().tobytes() == run.coordinator.model.tobytes()
        assert [c.round for c in server.journal(name).commits()] == [0, 1, 2]


def test_a_lease_that_is_accepted_twice_is_a_mistake_that_shows(server: Server) -> None:
    record = Accepted(0, np.array([5]), None, Measures())
    journal = server.journal()
    journal.append(record)
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE constraint failed: accepted"):
        journal.append(record)


def test_recovery_of_5000_rounds_reads_no_contribution_and_is_quick(server: Server) -> None:
    """About 30 ms; the limit allows a busy machine."""
    journal, model = server.journal(), np.zeros(1150, np.float32)
    for round in range(5000):
        leases = lease_id(round, np.arange(20))
        journal.append(
            Published(round, leases, round + 1, "", True, None, model, {}, Measures(), False, 0.1)
        )
    server.database.commit()
    server.database.connection.execute("DROP TABLE contributions")
    server.crash()
    started = time.process_time()
    state = recover(Rules(9999, 20, 60.0, 1), server.journal())
    latest = server.journal().latest()
    assert time.process_time() - started < 0.5
    assert (state.round, state.version, state.drop_out.share) == (5000, 5000, 0.1)
    assert latest is not None
    assert state.past.accepted(np.array([lease_id(77, 19), lease_id(77, 20)])).tolist() == [1, 0]


def batch(form: str) -> Accepted:
    """Fifty updates of 5 KB, folded or not."""
    rng = np.random.default_rng(1)
    size, total = 1250, Total.zero(1250, FoldRule.for_round(50, 1.0))
    vectors = rng.normal(size=(50, size)).astype(np.float32)
    updates = tuple(
        Update(at, at, 0, 0, 1, vector.tobytes(), ((0, size),), {"loss_sum": 0.1, "steps": 3.0})
        for at, vector in enumerate(vectors)
    )
    if form == "all":
        return Accepted(0, np.arange(50), updates, Measures())
    for update in updates:
        total = total.add(update, None, 1.0)
    return Accepted(0, np.arange(50), total, Measures())


@pytest.mark.parametrize("form", ["sum", "all"])
def test_updates_are_journalled_cheaply(server: Server, form: str) -> None:
    """About 0.2 ms a batch of fifty folded ones, 0.6 ms of fifty kept ones, and the disk's own
    time. 2,000 updates/s would be 25 ms; the limit is on the processor's time."""
    record, journal = batch(form), server.journal()
    started = time.process_time()
    for at in range(20):
        leases = record.leases + 50 * at
        journal.append(Accepted(0, leases, record.part, record.measures))
        journal.commit()
    assert (time.process_time() - started) / 20 < 0.025


# --- what becomes of contents


def traces(folder: Path, wanted: list[bytes]) -> list[bytes]:
    """Which of these bytes stand somewhere in the database or in its log."""
    found = b"".join(path.read_bytes() for path in folder.glob(FILE + "*"))
    return [needle for needle in wanted if needle in found]


@by_name
def test_a_copied_database_shows_no_update_of_the_open_round(
    server: Server, tmp_path: Path, strategy: Strategy
) -> None:
    run = server.begin(strategy)
    updates = run.updates()
    run.coordinator.submit(1.0, updates[:2])
    server.database.commit()
    (record,) = (r for r in server.journal().pending() if isinstance(r, Accepted))
    if isinstance(record.part, Total):
        secrets = [record.part.sums.tobytes()]
    else:
        secrets = [bytes(update.values) for update in updates[:2]]
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in server.folder.glob(FILE + "*"):
        shutil.copy(path, copy / path.name)
    assert traces(copy, [secret[:8] for secret in secrets]) == []
    assert traces(copy, [b"loss_sum"]) == []
    with closing(Database(copy)) as stolen:
        journal = SqliteJournal(stolen, RUN, RoundKeys(copy / "round-keys"))
        with pytest.raises(RunError, match="has no key of round 0; restore the whole folder from"):
            list(journal.pending())


def test_no_update_is_left_when_its_round_is_committed(server: Server) -> None:
    run = server.begin(Median(cohort=3, beta=0.1))
    updates = run.updates()
    for update in updates:
        run.coordinator.submit(1.0, [update])
        server.database.commit()
    assert server.keys.rounds(RUN) == []  # what old pages still hold, nobody can open
    assert traces(server.folder, [bytes(update.values) for update in updates]) == []
    assert [type(record) for record in server.journal().pending()] == [Open]
    assert server.count("accepted") == 3


def test_a_key_lives_until_the_commit_of_its_round_is_durable(server: Server) -> None:
    run = server.begin(FedAvg(cohort=3, beta=0.1))
    run.round()
    assert run.coordinator.rounds.round == 1
    assert server.keys.rounds(RUN) == [0]  # not committed yet
    server.database.connection.rollback()
    put_off = server.journal()
    put_off.append(Open(0, 0, 3))
    put_off.commit()
    assert server.keys.rounds(RUN) == [0]  # round 0 is open again
    server.resume(run)
    run.round()
    server.database.commit()
    assert server.keys.rounds(RUN) == []


def test_a_key_that_a_crash_has_left_is_shredded_at_the_start(server: Server) -> None:
    run = server.begin(FedAvg(cohort=3, beta=0.1))
    run.round()
    updates = run.updates()
    run.coordinator.submit(1.0, updates[:1])
    server.database.connection.commit()  # and then the power fails, before anything is shredded
    server.crash()
    assert server.keys.rounds(RUN) == [0, 1]
    server.resume(run)
    assert server.keys.rounds(RUN) == [1]  # that of the open round stays
    assert run.coordinator.rounds.accepted == 1


def test_nothing_is_left_of_the_open_round_of_a_run_that_is_given_up(server: Server) -> None:
    run, other = server.begin(Median(cohort=3, beta=0.1)), server.journal(OTHER)
    run.round()
    updates = run.updates()
    run.coordinator.submit(1.0, updates[:2])
    for record in (Open(0, 0, 3), Accepted(0, np.array([5]), None, Measures())):
        other.append(record)
    server.database.commit()
    assert server.count("accepted") == 3 + 2 + 1
    discard(server.database, RUN, server.keys)
    assert server.keys.rounds(RUN) == [1]  # until that is durable
    server.database.commit()
    assert server.keys.rounds(RUN) == []
    assert list(server.journal().pending()) == []
    assert server.count("accepted") == 3 + 1  # what was committed, and what is another run's
    assert len(list(server.journal().commits())) == 1
    assert (server.keys.rounds(OTHER), len(list(other.pending()))) == ([0], 2)


def test_no_model_that_work_started_from_is_left_of_a_run_that_is_given_up(server: Server) -> None:
    journal, other = server.journal(), server.journal(OTHER)
    made = Published(0, np.empty(0, np.int64), 1, "", True, None, INITIAL, {}, Measures(), False, 0)
    for each in (journal, other):
        each.append(replace(made, bases=(1,)))
        each.append(replace(made, round=1, version=2, bases=(1, 2)))
        each.append(Open(2, 0, 3))
    assert (sorted(journal.bases()), sorted(other.bases())) == ([1, 2], [1, 2])
    discard(server.database, RUN, server.keys)
    assert (sorted(journal.bases()), sorted(other.bases())) == ([], [1, 2])


def test_a_run_that_is_not_given_up_after_all_keeps_its_key(server: Server) -> None:
    run = server.begin(FedAvg(cohort=3, beta=0.1))
    run.coordinator.submit(1.0, run.updates()[:2])
    server.database.commit()
    discard(server.database, RUN, server.keys)
    server.crash()
    server.resume(run)
    assert run.coordinator.rounds.accepted == 2


def test_a_run_that_a_crash_left_half_given_up_is_given_up_again(server: Server) -> None:
    run = server.begin(FedAvg(cohort=3, beta=0.1))
    run.coordinator.submit(1.0, run.updates()[:2])
    server.database.commit()
    discard(server.database, RUN, server.keys)
    server.database.connection.commit()  # and then the power fails, before anything is shredded
    server.crash()
    assert server.keys.rounds(RUN) == [0]
    discard(server.database, RUN, server.keys)
    assert server.keys.rounds(RUN) == []
    assert not server.database.connection.in_transaction


def test_a_published_model_has_a_crash_point_before_and_after_it_is_written(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = server.begin(FedAvg(cohort=3, beta=0.1))
    updates = run.updates()
    written: list[tuple[str, int]] = []
    monkeypatch.setattr(
        crash_points, "reach", lambda name: written.append((name, server.count("commits")))
    )
    run.coordinator.submit(1.0, updates)
    assert [reached for reached in written if reached[0].startswith("publish")] == [
        ("publish.before", 0), ("publish.after", 1),
    ]  # fmt: skip


# --- replay


@by_name
def test_replay_needs_nothing_but_a_reader(server: Server, strategy: Strategy) -> None:
    run = server.begin(strategy, rounds=4)
    made = [INITIAL.tobytes()]
    for at in range(4):
        run.round() if at != 2 else run.coordinator.publish(run.now, INITIAL)
        made.append(run.coordinator.model.tobytes())
    server.database.commit()
    with closing(read_only(server.folder)) as connection:
        journal = SqliteCommits(connection, RUN)
        rebuilt = replay(journal, 4, strategy, LAYOUT, INITIAL)
        assert [model.tobytes() for model, _ in rebuilt] == made
        versions = [commit.version for commit in journal.commits()]
    assert all(a < b for a, b in pairwise([0, *versions]))


def damaged(server: Server, sql: str) -> SqliteCommits:
    """The commits of a run of three rounds, after somebody has changed the database."""
    run = server.begin(FedAvgM(cohort=3, beta=0.1))
    run.finish()
    server.database.connection.execute(sql)
    server.database.commit()
    return server.journal()


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        (
            "UPDATE contributions SET total = (SELECT total FROM contributions WHERE seq = 0)"
            " WHERE seq = 1",
            "round 1 gives the model .*, its journal says",
        ),
        ("DELETE FROM contributions WHERE seq = 2", "round 2 made version 3, but its contribution"),
        ("UPDATE commits SET digest = 'x' WHERE seq = 0", "round 0 gives the model"),
        ("UPDATE contributions SET total = x'00' WHERE seq = 1", "round 1 is damaged"),
        ("UPDATE commits SET leases = x'00' WHERE seq = 1", "round 1 is damaged"),
        ("UPDATE commits SET measures = '[' WHERE seq = 1", "round 1 is damaged"),
    ],
)
def test_replay_says_at_which_round_it_differs(server: Server, sql: str, why: str) -> None:
    journal = damaged(server, sql)
    with pytest.raises(RunError, match=why):
        list(replay(journal, 3, FedAvgM(cohort=3, beta=0.1), LAYOUT, INITIAL))


# --- disks and deaths


def test_a_full_disk_acknowledges_nothing_and_the_run_goes_on_when_there_is_room(
    server: Server,
) -> None:
    run = server.begin(Median(cohort=3, beta=0.1))
    updates = run.updates()
    run.coordinator.submit(1.0, updates[:1])
    server.database.commit()
    connection = server.database.connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    journal = server.journal()
    much = Accepted(0, np.arange(9, 306), tuple(updates) * 99, Measures())
    with pytest.raises(RunError, match="database or disk is full; make room there"):
        journal.append(much)
    connection.execute("PRAGMA max_page_count = 100000")
    server.resume(run)
    assert run.coordinator.rounds.accepted == 1
    run.coordinator.submit(2.0, updates[1:])
    server.database.commit()
    assert run.coordinator.rounds.round == 1


@pytest.mark.timeout(120)
def test_kill_9_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Twenty-one lives of one coordinator; the last one looks at what it finds."""
    draws, acknowledged = Random(4), set[int]()
    for _ in range(20):
        acknowledged |= one_life(tmp_path, draws.randrange(8), draws.uniform(0.0, 0.02))
    database, run = appending.opened(tmp_path)
    with closing(database):
        assert run.journal is not None
        committed = [x for commit in run.journal.commits() for x in commit.leases.tolist()]
        pending = [r for r in run.journal.pending() if isinstance(r, Accepted)]
        counted = committed + [x for record in pending for x in record.leases.tolist()]
        models = replay(run.journal, appending.ROUNDS, run.strategy, LAYOUT, INITIAL)
        *_, (model, _) = models
    assert len(acknowledged) > 20 * 4  # the lives have got somewhere
    assert acknowledged <= set(counted)
    assert len(set(counted)) == len(counted)
    assert digest(model) == digest(run.coordinator.model)


def one_life(folder: Path, answers: int, seconds: float) -> set[int]:
    """What a coordinator has acknowledged before it was killed, so long after so many answers."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.harness.appending", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        lines = [process.stdout.readline() for _ in range(answers)]
        time.sleep(seconds)
        process.kill()
        lines += process.stdout
    whole_lines = [line for line in lines if line.endswith("\n")]
    return {int(lease) for line in whole_lines for lease in line.split()}
