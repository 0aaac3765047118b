"""What a coordinator's database says of a run, read without the coordinator's own code."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from tests.harness.history_check import Commit, Ledger


def read_ledger(folder: Path, name: str = "") -> Ledger:
    """The ledger of the run of that name, or of the only one."""
    with closing(_database(folder)) as database:
        found = database.execute("SELECT id, name FROM runs").fetchall()
        ((run, _),) = [row for row in found if name in ("", row[1])]
        rows = database.execute(
            "SELECT round, version, digest, leases, failed FROM commits WHERE run = ? ORDER BY seq",
            (run,),
        ).fetchall()
        accepted = database.execute(
            "SELECT lease, round FROM accepted WHERE run = ?", (run,)
        ).fetchall()
        ((first,),) = database.execute(
            "SELECT lower(hex(digest)) FROM versions WHERE run = ? AND version = 0", (run,)
        ).fetchall()
    leases = tuple(lease for lease, _ in accepted)
    later = {lease: round for lease, round in accepted if round != lease >> 32}
    return Ledger(run.hex(), tuple(_commit(row) for row in rows), leases, first, later=later)


def read_rows(folder: Path, name: str = "") -> list[dict[str, Any]]:
    """The rows of the history of the run of that name, or of the only one."""
    with closing(_database(folder)) as database:
        rows = database.execute(
            "SELECT row FROM history JOIN runs ON run = id WHERE ? IN ('', name) ORDER BY seq",
            (name,),
        ).fetchall()
    return [json.loads(row) for (row,) in rows]


def _database(folder: Path) -> sqlite3.Connection:
    uri = (folder / "fleet.db").absolute().as_uri()
    return sqlite3.connect(f"{uri}?mode=ro", uri=True)


def _commit(row: Sequence[object]) -> Commit:
    round, version, digest, leases, failed = row
    assert isinstance(leases, bytes)
    ids = tuple(np.frombuffer(leases, "<i8").tolist())
    return Commit(int(str(round)), int(str(version)), str(digest), ids, bool(failed))
