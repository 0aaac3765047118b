"""The database of a coordinator: one SQLite file, one writer, durable at every commit.

What is written belongs to the open transaction; it begins with the first change. `commit` makes it
durable as a whole. When the disk is full, cannot be written, or fails, the transaction is rolled
back and a RunError says what to do: nothing of it may then be answered.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from fedtiny.durable import make_private, naming_files
from fedtiny.errors import RunError
from fedtiny.server import crash_points

FILE = "fleet.db"
LOCK = "fleet.lock"

_TABLES = """
CREATE TABLE devices (
    idx INTEGER PRIMARY KEY, name TEXT UNIQUE, card BLOB, agent TEXT,
    joined_s REAL, seen_s REAL, revoked_s REAL, figures TEXT, key BLOB UNIQUE, token BLOB
);
CREATE TABLE certificates (
    serial TEXT PRIMARY KEY, device INTEGER REFERENCES devices, not_after_s REAL
);
CREATE INDEX certificates_of ON certificates (device);
CREATE TABLE tokens (
    hash BLOB PRIMARY KEY, label TEXT, uses_left INTEGER, expires_s REAL, made_s REAL
);
CREATE TABLE runs (
    id BLOB PRIMARY KEY, name TEXT UNIQUE, text TEXT, folder TEXT, digest TEXT, nonce BLOB,
    seed INTEGER, started_s REAL, experiment TEXT
);
CREATE TABLE pending (run BLOB, seq INTEGER, kind TEXT, body BLOB, PRIMARY KEY (run, seq));
CREATE TABLE accepted (run BLOB, lease INTEGER, PRIMARY KEY (run, lease)) WITHOUT ROWID;
CREATE TABLE commits (
    run BLOB, round INTEGER, seq INTEGER, version INTEGER, digest TEXT, failed INTEGER,
    leases BLOB, measures TEXT, state BLOB, drop_out REAL, PRIMARY KEY (run, seq)
);
CREATE TABLE contributions (
    run BLOB, seq INTEGER, total BLOB, model BLOB, PRIMARY KEY (run, seq)
);
CREATE TABLE latest (run BLOB PRIMARY KEY, model BLOB);
CREATE TABLE blobs (digest BLOB PRIMARY KEY, body BLOB);
CREATE TABLE versions (
    run BLOB, version INTEGER, digest BLOB, signature BLOB, made_s REAL,
    PRIMARY KEY (run, version)
);
CREATE TABLE history (run BLOB, seq INTEGER, row TEXT, PRIMARY KEY (run, seq));
CREATE TABLE evaluations (
    run BLOB, sitting INTEGER, name TEXT, round INTEGER, version INTEGER, device INTEGER,
    measures TEXT, PRIMARY KEY (run, sitting, name, device)
);
CREATE TABLE facts (key TEXT PRIMARY KEY, value);
"""

_ASYNCHRONOUS = """
ALTER TABLE accepted ADD COLUMN round INTEGER;
UPDATE accepted SET round = lease >> 32;
CREATE TABLE bases (run BLOB, version INTEGER, model BLOB, PRIMARY KEY (run, version));
"""

MIGRATIONS = (_TABLES, _ASYNCHRONOUS)
"""What makes a database of version n + 1 of one of version n."""


class Database:
    """The database in ``folder``, for one process and one thread at a time.

    Raises RunError when another process has it open, or when it cannot be read and written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        make_private(folder)
        with naming_files(_MAKE_ROOM):
            self._lock = _locked(folder / LOCK)
            self.path.touch(mode=0o600)
            self.path.chmod(0o600)  # SQLite gives its log the rights of the database
        try:
            self.connection = _opened(self.path, f"{self.path.absolute().as_uri()}?mode=rwc")
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        connection = self.connection
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA journal_size_limit = 16777216")
        version = _version(connection)
        for number in range(version, len(MIGRATIONS)):
            connection.executescript(
                f"BEGIN; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;"
            )

    def afterwards(self, action: Callable[[], None]) -> None:
        """To be done when all that was written is durable; never, if it is rolled back."""
        if self.connection.in_transaction:
            self.connection.afterwards.append(action)
        else:
            action()

    @property
    def rollbacks(self) -> int:
        """How many transactions were undone: while it stays, what was written is not lost.

        A statement that fails for want of room undoes its transaction, and the next one begins
        another, which does not hold what was written before.
        """
        return self.connection.rollbacks

    def commit(self) -> None:
        """What was written is durable when this returns. Costs nothing if nothing was."""
        if not self.connection.in_transaction:
            return
        crash_points.reach("journal.before")
        self.connection.commit()
        crash_points.reach("journal.after")
        actions, self.connection.afterwards = self.connection.afterwards, []
        for action in actions:
            action()

    def close(self) -> None:
        """Let another process have it. What was not committed is gone."""
        if hasattr(self, "connection"):
            self.connection.close()
        self._lock.close()


def read_only(folder: Path) -> sqlite3.Connection:
    """The database in ``folder`` for looking at it, beside the coordinator that writes it."""
    path = folder / FILE
    if not path.exists():
        raise RunError(f"{path} is not there; name the --dir of a coordinator")
    uri = path.absolute().as_uri()
    try:
        connection = _opened(path, f"{uri}?mode=ro")
        _version(connection)
    except RunError:
        if path.with_name(FILE + "-wal").exists():
            raise
        # Nobody writes it, and a folder that is read-only has no place for the log of a reader.
        connection = _opened(path, f"{uri}?immutable=1")
        _version(connection)
    return connection


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise RunError(
            f"the database has version {version}, this fedtiny knows {len(MIGRATIONS)}; use the "
            "fedtiny that wrote it, or a newer one"
        )
    return int(version)


def _locked(path: Path) -> IO[str]:
    """The lock file, held as long as it is open; it names its holder."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    lock = os.fdopen(descriptor, "r+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise RunError(
            f"{path.parent} is in use by the process {holder}; stop that one, or choose another "
            "--dir"
        ) from None
    lock.truncate()
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


# ---- errors ----------------------------------------------------------------------------------

_MAKE_ROOM = "make room there, or the right to write"
_RESTORE = "restore the folder from a backup"
_REMEDIES = {
    sqlite3.SQLITE_FULL: _MAKE_ROOM,
    sqlite3.SQLITE_READONLY: _MAKE_ROOM,
    sqlite3.SQLITE_CANTOPEN: _MAKE_ROOM,
    sqlite3.SQLITE_PERM: _MAKE_ROOM,
    sqlite3.SQLITE_IOERR: "check the disk and the room on it",
    sqlite3.SQLITE_BUSY: "stop the other program that writes to it",
    sqlite3.SQLITE_CORRUPT: _RESTORE,
    sqlite3.SQLITE_NOTADB: _RESTORE,
}
"""Of the errors that are no mistake of ours, by SQLite's primary result code."""


class _Connection(sqlite3.Connection):
    """Says the errors of the disk as a RunError, with the transaction rolled back."""

    path: Path
    afterwards: list[Callable[[], None]]
    rollbacks: int

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        try:
            return super().execute(sql, parameters)
        except sqlite3.DatabaseError as error:
            raise self._told(error) from error

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        try:
            return super().executemany(sql, parameters)
        except sqlite3.DatabaseError as error:
            raise self._told(error) from error

    def executescript(self, script: str, /) -> sqlite3.Cursor:
        try:
            return super().executescript(script)
        except sqlite3.DatabaseError as error:
            raise self._told(error) from error

    def commit(self) -> None:
        try:
            super().commit()
        except sqlite3.DatabaseError as error:
            raise self._told(error) from error

    def rollback(self) -> None:
        self.rollbacks += 1
        self.afterwards.clear()
        super().rollback()

    def _told(self, error: sqlite3.DatabaseError) -> Exception:
        remedy = _REMEDIES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
        if remedy is None:
            return error
        self.rollback()
        return RunError(f"{self.path}: {error}; {remedy}")


def _opened(path: Path, uri: str) -> _Connection:
    try:
        connection = sqlite3.connect(uri, uri=True, factory=_Connection, check_same_thread=False)
    except sqlite3.DatabaseError as error:
        raise RunError(f"{path}: {error}; {_MAKE_ROOM}") from error
    assert isinstance(connection, _Connection)
    connection.path, connection.afterwards, connection.rollbacks = path, [], 0
    return connection
