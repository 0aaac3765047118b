from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fedtiny.errors import RunError
from fedtiny.server import crash_points, storage
from fedtiny.server.storage import FILE, Database, read_only

WAL = FILE + "-wal"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(Database(tmp_path / "fleet")) as made:
        yield made


def put(database: Database, key: str, value: object) -> None:
    database.connection.execute("INSERT INTO facts VALUES (?, ?)", (key, value))


def keys(connection: sqlite3.Connection) -> list[str]:
    return [key for (key,) in connection.execute("SELECT key FROM facts ORDER BY rowid")]


# --- opening


def test_what_is_committed_is_there_again_and_nothing_else(database: Database) -> None:
    put(database, "kept", 1)
    database.commit()
    put(database, "lost", 2)
    database.close()
    with closing(Database(database.path.parent)) as again:
        assert keys(again.connection) == ["kept"]


def test_every_commit_is_synced(database: Database) -> None:
    (mode,) = database.connection.execute("PRAGMA journal_mode").fetchone()
    (level,) = database.connection.execute("PRAGMA synchronous").fetchone()
    assert (mode, level) == ("wal", 2)  # 2 is FULL


def test_a_second_process_is_refused_and_told_who_has_it(database: Database) -> None:
    code = (
        "import sys; from pathlib import Path; from fedtiny.server.storage import Database;"
        "Database(Path(sys.argv[1]))"
    )
    folder = database.path.parent
    told = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert (
        f"RunError: {folder} is in use by the process {os.getpid()}; stop that one" in told.stderr
    )


def test_the_lock_goes_with_its_holder(database: Database) -> None:
    folder = database.path.parent
    with pytest.raises(RunError, match=f"in use by the process {os.getpid()}"):
        Database(folder)
    database.close()
    Database(folder).close()


def test_a_database_of_an_older_version_is_brought_up(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(database, "old", 1)
    database.commit()
    database.close()
    added = "CREATE TABLE more (x); INSERT INTO more SELECT value FROM facts;"
    monkeypatch.setattr(storage, "MIGRATIONS", (*storage.MIGRATIONS, added))
    with closing(Database(database.path.parent)) as again:
        assert again.connection.execute("SELECT x FROM more").fetchall() == [(1,)]
        assert again.connection.execute("PRAGMA user_version").fetchone() == (3,)


def test_a_migration_that_fails_leaves_the_database_as_it_was(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.close()
    broken = (*storage.MIGRATIONS, "CREATE TABLE more (x); INSERT INTO nowhere VALUES (1);")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "MIGRATIONS", broken)
        with pytest.raises(sqlite3.OperationalError, match="nowhere"):
            Database(database.path.parent)
    with closing(Database(database.path.parent)) as again:
        tables = again.connection.execute("SELECT name FROM sqlite_master").fetchall()
        assert ("more",) not in tables


def test_a_database_of_a_newer_version_is_refused(database: Database) -> None:
    database.connection.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(
        RunError, match="has version 99, this fedtiny knows 2; use the fedtiny that"
    ):
        Database(database.path.parent)


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"something else entirely" * 99)
    with pytest.raises(RunError, match="file is not a database; restore the folder from a backup"):
        Database(tmp_path)


# --- committing


def test_a_commit_of_nothing_costs_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[str] = []
    monkeypatch.setattr(crash_points, "reach", reached.append)
    database.connection.execute("SELECT * FROM facts").fetchall()
    database.commit()
    assert reached == []
    put(database, "a", 1)
    database.commit()
    assert reached == ["journal.before", "journal.after"]


def test_what_waits_for_durability_is_done_after_the_commit(database: Database) -> None:
    done: list[str] = []
    database.afterwards(lambda: done.append("at once: nothing is open"))
    put(database, "a", 1)
    database.afterwards(lambda: done.append("after the commit"))
    assert done == ["at once: nothing is open"]
    database.commit()
    database.commit()
    assert done == ["at once: nothing is open", "after the commit"]


def test_what_waits_for_a_transaction_that_is_undone_is_never_done(database: Database) -> None:
    done: list[str] = []
    put(database, "a", 1)
    database.afterwards(lambda: done.append("never"))
    database.connection.rollback()
    put(database, "b", 1)
    database.commit()
    assert done == []
    assert keys(database.connection) == ["b"]


def test_who_goes_on_after_an_error_of_the_disk_can_see_that_all_before_it_is_lost(
    database: Database,
) -> None:
    put(database, "lost", 1)
    before = database.rollbacks
    database.connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(RunError, match="full; make room there"):
        put(database, "no room", bytes(100_000))
    database.connection.execute("PRAGMA max_page_count = 100000")
    put(database, "of another transaction", 1)
    assert database.rollbacks == before + 1
    database.commit()
    assert keys(database.connection) == ["of another transaction"]


def test_a_mistake_of_ours_undoes_no_transaction(database: Database) -> None:
    put(database, "a", 1)
    with pytest.raises(sqlite3.IntegrityError):
        put(database, "a", 2)
    database.commit()
    assert (database.rollbacks, keys(database.connection)) == (0, ["a"])


def test_a_mistake_of_ours_is_not_dressed_up(database: Database) -> None:
    put(database, "a", 1)
    with pytest.raises(sqlite3.IntegrityError):
        put(database, "a", 2)
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        database.connection.execute("SELECT * FROM nowhere")


# --- a disk that is full, or cannot be written


def write_much(database: Database, then: Callable[[], None]) -> None:
    """Ten megabytes in one transaction."""
    for number in range(100):
        put(database, f"lost {number}", bytes(100_000))
        database.afterwards(then)
    database.commit()


def check_full(database: Database, make_room: Callable[[], object]) -> None:
    """A transaction that finds no room is undone and says so; the next one finds it."""
    done: list[str] = []
    put(database, "kept", 1)
    database.commit()
    with pytest.raises(RunError, match=r"full; make room there|I/O error; check the disk"):
        write_much(database, lambda: done.append("never"))
    assert not database.connection.in_transaction
    assert database.rollbacks == 1
    make_room()
    assert keys(database.connection) == ["kept"]
    put(database, "kept, too", bytes(100_000))
    database.commit()
    assert keys(database.connection) == ["kept", "kept, too"]
    assert done == []


def test_a_full_database_undoes_the_transaction_and_goes_on(database: Database) -> None:
    database.connection.execute("PRAGMA max_page_count = 200")
    check_full(database, lambda: database.connection.execute("PRAGMA max_page_count = 100000"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system can be mounted only by root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_undoes_the_transaction_and_goes_on(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_000_000))
    with closing(Database(small_disk / "fleet")) as database:
        check_full(database, make_room=ballast.unlink)


def test_a_disk_that_became_read_only_is_told(small_disk: Path) -> None:
    Database(small_disk / "fleet").close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(RunError, match=r"fleet: Read-only file system; make room there, or"):
        Database(small_disk / "fleet")
    with closing(read_only(small_disk / "fleet")) as connection:
        assert keys(connection) == []


def test_a_database_that_may_not_be_written_is_told(database: Database) -> None:
    database.connection.execute("PRAGMA query_only = ON")
    with pytest.raises(RunError, match="readonly database; make room there, or the right to write"):
        put(database, "a", 1)


# --- looking at it


def test_a_reader_sees_what_is_committed_and_cannot_write(database: Database) -> None:
    put(database, "a", 1)
    database.commit()
    put(database, "b", 1)
    with closing(read_only(database.path.parent)) as connection:
        assert keys(connection) == ["a"]
        database.commit()  # a reader stops nobody
        assert keys(connection) == ["a", "b"]
        with pytest.raises(RunError, match="readonly"):
            connection.execute("DELETE FROM facts")


def test_a_folder_without_a_database_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not there; name the --dir of a coordinator"):
        read_only(tmp_path)


# --- power cuts: what the log of the last commits can look like afterwards


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A folder after twelve commits of one to nine pages, as a power cut leaves it; and how long
    the log was after each of them."""
    folder, lengths = tmp_path_factory.mktemp("torn"), [0]
    with closing(Database(folder / "live")) as database:
        database.connection.execute("PRAGMA wal_autocheckpoint = 0")
        database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for number in range(12):
            put(database, f"{number}", bytes([number]) * (200 + 3000 * number))
            database.commit()
            lengths.append((folder / "live" / WAL).stat().st_size)
        for name in (FILE, WAL):
            shutil.copy(folder / "live" / name, folder / name)
    assert all(a < b for a, b in pairwise(lengths))
    return folder, lengths


def survivors(torn: Path, folder: Path, log: bytes) -> int:
    """How many transactions are there with this log: the first ones, each whole."""
    for name in (FILE, WAL):
        (folder / name).unlink(missing_ok=True)
    (folder / (FILE + "-shm")).unlink(missing_ok=True)
    shutil.copy(torn / FILE, folder / FILE)
    (folder / WAL).write_bytes(log)
    with closing(read_only(folder)) as connection:
        rows = connection.execute("SELECT key, value FROM facts ORDER BY rowid").fetchall()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    expected = [(f"{n}", bytes([n]) * (200 + 3000 * n)) for n in range(len(rows))]
    assert rows == expected
    return len(rows)


def whole(lengths: list[int], size: int) -> int:
    """How many transactions lie within the first ``size`` bytes of the log."""
    return sum(length <= size for length in lengths[1:])


def test_a_log_that_is_cut_anywhere_keeps_the_commits_before(
    torn: tuple[Path, list[int]], tmp_path: Path
) -> None:
    folder, lengths = torn
    log = (folder / WAL).read_bytes()
    drawn = np.random.default_rng(1).integers(0, len(log), 100).tolist()
    for size in [*range(0, len(log), 512), *lengths, *drawn]:
        assert survivors(folder, tmp_path, log[:size]) == whole(lengths, size), size


def test_a_log_that_is_damaged_anywhere_keeps_the_commits_before(
    torn: tuple[Path, list[int]], tmp_path: Path
) -> None:
    folder, lengths = torn
    log = (folder / WAL).read_bytes()
    rng = np.random.default_rng(2)
    for at in [*range(0, len(log), 300), *rng.integers(0, len(log), 60).tolist()]:
        damaged = bytearray(log)
        damaged[at] ^= int(rng.integers(1, 256))
        assert survivors(folder, tmp_path, bytes(damaged)) == whole(lengths, at), at


def test_a_log_with_rubbish_behind_it_is_whole(
    torn: tuple[Path, list[int]], tmp_path: Path
) -> None:
    folder, _ = torn
    log = (folder / WAL).read_bytes()
    rubbish = np.random.default_rng(3).bytes(9000)
    for tail in (rubbish, bytes(9000), log[32:9000]):
        assert survivors(folder, tmp_path, log + tail) == 12


def test_a_coordinator_goes_on_after_a_torn_commit(
    torn: tuple[Path, list[int]], tmp_path: Path
) -> None:
    folder, lengths = torn
    shutil.copy(folder / FILE, tmp_path / FILE)
    (tmp_path / WAL).write_bytes((folder / WAL).read_bytes()[: lengths[5] + 4000])
    with closing(Database(tmp_path)) as database:
        assert keys(database.connection) == ["0", "1", "2", "3", "4"]
        put(database, "next", 1)
        database.commit()
    with closing(read_only(tmp_path)) as connection:
        assert keys(connection) == ["0", "1", "2", "3", "4", "next"]


def test_the_folder_is_for_its_owner_alone_whatever_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    folder.mkdir()
    folder.chmod(0o777)
    with closing(Database(folder)) as database:
        database.connection.execute("INSERT INTO facts VALUES ('a', 1)")
        database.commit()
        rights = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert set(rights.values()) == {0o600}, rights
