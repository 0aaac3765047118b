"""The journal of a run in the coordinator's database.

What is pending lies in one table, each accepted update sealed under the key of its round. Every
accepted lease is also a row whose key is unique, for all time: to count one twice is impossible.
A commit moves the round into three tables: who counted (``commits``), what makes the model again
(``contributions``), and the last model (``latest``). To go on reads no contribution: the models
that asynchronous work started from are kept as well (``bases``), while leases on them live.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from sqlite3 import Connection
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.errors import RunError
from fedtiny.rounds.journal import Accepted, Outcome, Published
from fedtiny.server import crash_points, records

if TYPE_CHECKING:
    from fedtiny.rounds.journal import Pending, Record
    from fedtiny.server.sealing import RoundKeys
    from fedtiny.server.storage import Database
    from fedtiny.strategies.base import State
    from fedtiny.tensors import Float32, Int64


class SqliteCommits:
    """The committed rounds of a run, to be read: also beside the coordinator that writes them."""

    def __init__(self, connection: Connection, run: bytes) -> None:
        self._connection, self._run = connection, run

    def commits(self) -> Iterator[Published]:
        """Every committed round, in order."""
        rows = self._connection.execute(
            "SELECT version, round, leases, digest, failed, measures, state, drop_out, total, model"
            " FROM commits LEFT JOIN contributions USING (run, seq) WHERE run = ? ORDER BY seq",
            (self._run,),
        )
        before = 0
        for row in rows:
            with records.checking(f"round {row[1]:,}"):
                published = _published(before, *row)
            yield published
            before = published.version

    def outcomes(self) -> Iterator[Outcome]:
        """The same, as far as the rounds need it to go on."""
        rows = self._connection.execute(
            "SELECT version, leases, drop_out FROM commits WHERE run = ? ORDER BY seq", (self._run,)
        )
        for (before, *_), (version, leases, drop_out) in pairwise([(0,), *rows]):
            with records.checking(f"the round that made version {version:,}"):
                outcome = Outcome(_int64(leases), version > before, drop_out)
            yield outcome

    def latest(self) -> tuple[Float32, State] | None:
        """The model and the strategy's state after the last of them; None before the first."""
        row = self._connection.execute(
            "SELECT model, state FROM commits JOIN latest USING (run) WHERE run = ?"
            " ORDER BY seq DESC LIMIT 1",
            (self._run,),
        ).fetchone()
        with records.checking("the last committed round"):
            return (_float32(row[0]), records.read_state(row[1])) if row else None

    def bases(self) -> Mapping[int, Float32]:
        """The models of the versions that the last of them names as ``bases``."""
        rows = self._connection.execute(
            "SELECT version, model FROM bases WHERE run = ?", (self._run,)
        )
        return {version: _float32(model) for version, model in rows}


class SqliteJournal(SqliteCommits):
    """A Journal that survives. It keeps nothing in memory: after a rollback it is as it was."""

    def __init__(self, database: Database, run: bytes, keys: RoundKeys) -> None:
        super().__init__(database.connection, run)
        self._database, self._keys = database, keys
        database.afterwards(self._shred)  # what a crash has left

    def append(self, record: Record) -> None:
        """Write the record into the open transaction; a Published destroys what was pending."""
        if isinstance(record, Published):
            self._publish(record)
        else:
            self._keep(record)

    def commit(self) -> None:
        """What was appended survives a crash from here on; nothing may be answered before."""
        self._database.commit()

    def pending(self) -> Iterator[Pending]:
        """The records since the last committed round, in order."""
        rows = self._connection.execute(
            "SELECT seq, kind, body FROM pending WHERE run = ? ORDER BY seq", (self._run,)
        ).fetchall()
        round = self._next("commits")
        for seq, kind, body in rows:
            if kind == _SEALED:
                body = self._keys.open(self._run, round, seq, body)
            yield records.read(kind, body)

    def _keep(self, record: Pending) -> None:
        seq, kind, body = self._next("pending"), records.kind_of(record), records.write(record)
        if isinstance(record, Accepted):
            body = self._keys.seal(self._run, record.round, seq, body)
            self._connection.executemany(
                "INSERT INTO accepted (run, lease, round) VALUES (?, ?, ?)",
                [(self._run, lease, record.round) for lease in record.leases.tolist()],
            )
        self._connection.execute(
            "INSERT INTO pending (run, seq, kind, body) VALUES (?, ?, ?, ?)",
            (self._run, seq, kind, body),
        )

    def _publish(self, done: Published) -> None:
        seq = self._next("commits")
        crash_points.reach("publish.before")
        self._insert(
            "commits",
            run=self._run,
            seq=seq,
            round=done.round,
            version=done.version,
            digest=done.digest,
            failed=done.failed,
            leases=done.leases.tobytes(),
            measures=json.dumps(records.measures_to_json(done.measures)),
            state=records.write_state(done.state),
            drop_out=done.drop_out,
        )
        if done.changed:
            self._contribute(seq, done)
        self._keep_model(done)
        self._keep_bases(done)
        self._connection.execute("DELETE FROM pending WHERE run = ?", (self._run,))
        crash_points.reach("publish.after")
        self._database.afterwards(self._shred)

    def _contribute(self, seq: int, done: Published) -> None:
        total = None if done.total is None else records.write_total(done.total)
        model = _bytes(done.model) if done.total is None else None
        self._insert("contributions", run=self._run, seq=seq, total=total, model=model)

    def _keep_model(self, done: Published) -> None:
        # A first round that changes nothing leaves the initial model.
        conflict = "REPLACE" if done.changed else "IGNORE"
        self._connection.execute(
            f"INSERT OR {conflict} INTO latest (run, model) VALUES (?, ?)",
            (self._run, _bytes(done.model)),
        )

    def _keep_bases(self, done: Published) -> None:
        """Of asynchronous rounds: the others go."""
        if not done.bases:
            return
        kept = ", ".join(map(str, done.bases))
        self._connection.execute(
            f"DELETE FROM bases WHERE run = ? AND version NOT IN ({kept})", (self._run,)
        )
        if done.changed:
            self._insert("bases", run=self._run, version=done.version, model=_bytes(done.model))

    def _insert(self, table: str, **columns: object) -> None:
        names, places = ", ".join(columns), ", ".join("?" * len(columns))
        self._connection.execute(
            f"INSERT INTO {table} ({names}) VALUES ({places})", tuple(columns.values())
        )

    def _next(self, table: str) -> int:
        """The number of the next row of this run: for commits, that of the open round."""
        (number,) = self._connection.execute(
            f"SELECT coalesce(max(seq) + 1, 0) FROM {table} WHERE run = ?", (self._run,)
        ).fetchone()
        return int(number)

    def _shred(self) -> None:
        """Destroy the keys of all rounds that are committed, durably."""
        committed = self._next("commits")
        for round in self._keys.rounds(self._run):
            if round < committed:
                self._keys.shred(self._run, round)


_SEALED = "accepted"


def discard(database: Database, run: bytes, keys: RoundKeys) -> None:
    """Give up the open round of a run that nobody goes on with: its updates and their key, and the
    models that its work started from.

    The key is shredded when that is committed. A crash in between leaves it: discard the run again
    at the next start, which costs nothing where nothing is left.
    """
    connection = database.connection
    if connection.execute("SELECT 1 FROM pending WHERE run = ? LIMIT 1", (run,)).fetchone():
        (round,) = connection.execute(
            "SELECT count(*) FROM commits WHERE run = ?", (run,)
        ).fetchone()
        connection.execute("DELETE FROM pending WHERE run = ?", (run,))
        connection.execute("DELETE FROM accepted WHERE run = ? AND round >= ?", (run, round))
        connection.execute("DELETE FROM bases WHERE run = ?", (run,))
    database.afterwards(lambda: keys.shred_all(run))


def _published(
    before: int, version: int, round: int, leases: bytes, digest: str, failed: int, measures: str,
    state: bytes, drop_out: float, total: bytes | None, model: bytes | None,
) -> Published:  # fmt: skip
    changed = version > before
    if changed and total is None and model is None:
        raise RunError(
            f"round {round:,} made version {version:,}, but its contribution is gone; restore the "
            "folder from a backup"
        )
    return Published(
        round=round,
        leases=_int64(leases),
        version=version,
        digest=digest,
        changed=changed,
        total=None if total is None else records.read_total(total),
        model=None if model is None else _float32(model),
        state=records.read_state(state),
        measures=records.measures_from_json(json.loads(measures)),
        failed=bool(failed),
        drop_out=drop_out,
    )


def _bytes(model: Float32 | None) -> bytes:
    assert model is not None
    return model.tobytes()


def _float32(body: bytes) -> Float32:
    return np.frombuffer(body, np.float32)


def _int64(body: bytes) -> Int64:
    return np.frombuffer(body, np.int64)
