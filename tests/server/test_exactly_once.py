"""The histories of tests/rounds/test_exactly_once.py, on a database that is all a crash leaves."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from fedtiny.rounds.journal import Journal
from fedtiny.server.sealing import RoundKeys
from fedtiny.server.sqlite_journal import SqliteJournal
from fedtiny.server.storage import Database
from tests.rounds.test_exactly_once import AsynchronousFleet, Fleet

RUN = b"01234567"
# Only the process dies here, not the machine: what a disk has synced is not the question.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


class DurableFleet(Fleet):
    """Each coordinator but the first finds what the one before it has committed."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        self.database: Database | None = None
        super().__init__()

    def open_journal(self) -> Journal:
        if self.database:
            self.database.close()
        self.database, self.keys = Database(self.folder), RoundKeys(self.folder / "round-keys")
        return SqliteJournal(self.database, RUN, self.keys)

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def the_coordinator_crashes_before_it_commits(self, data: st.DataObject) -> None:
        """Whatever it has decided, nobody has heard of it."""
        counted = self.counted()
        copies = data.draw(st.lists(st.sampled_from(self.wire[-9:]), min_size=1, max_size=3))
        self.coordinator.submit(self.now, copies)
        self.boot()
        assert self.counted() == counted

    @invariant()
    def only_the_open_round_has_a_key(self) -> None:
        assert set(self.keys.rounds(RUN)) <= {self.coordinator.rounds.round}

    @invariant()
    def every_accepted_lease_is_a_row_of_its_own(self) -> None:
        assert self.database
        rows = self.database.connection.execute("SELECT lease FROM accepted ORDER BY lease")
        failed = self.failed()
        leases = [lease for (lease,) in rows if lease not in failed]
        assert leases == sorted(self.counted())

    @invariant()
    def the_models_that_work_goes_on_from_are_kept(self) -> None:
        assert self.database
        rows = self.database.connection.execute("SELECT version FROM bases")
        kept, needed = {version for (version,) in rows}, self.coordinator.bases.keys() - {0}
        if self.run_rules.asynchronous:
            assert needed <= kept
        assert len(kept) <= bool(kept) + self.run_rules.concurrency

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            assert self.database
            self.database.close()
            shutil.rmtree(self.folder)


TestDurableFleet = DurableFleet.TestCase
TestDurableFleet.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


class DurableAsynchronousFleet(AsynchronousFleet, DurableFleet):
    """The same, while work outlives its rounds."""


TestDurableAsynchronousFleet = DurableAsynchronousFleet.TestCase
TestDurableAsynchronousFleet.settings = settings(
    max_examples=20, stateful_step_count=40, deadline=None
)
