"""A coordinator that accepts one small batch after another until it is killed.

    python -m tests.harness.appending FOLDER

It prints each lease when its update is durable, which is when a device would hear of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fedtiny.server.sealing import RoundKeys
from fedtiny.server.sqlite_journal import SqliteJournal
from fedtiny.server.storage import Database
from fedtiny.strategies.base import Strategy
from fedtiny.strategies.fedopt import FedAvgM
from fedtiny.values import ACCEPTED
from tests.harness.toys import Run

RUN = b"appended"
ROUNDS = 1_000_000
STRATEGY: Strategy = FedAvgM(cohort=4, beta=0.01, server_momentum=0.5)


def opened(folder: Path) -> tuple[Database, Run]:
    """The run in the folder, where it was left."""
    database = Database(folder)
    journal = SqliteJournal(database, RUN, RoundKeys(folder / "round-keys"))
    run = Run(STRATEGY, ROUNDS, journal=journal)
    database.commit()
    return database, run


def tell(*words: object) -> None:
    """A line that is whole when a reader sees its end."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def main(folder: Path) -> None:
    """Go on for ever."""
    database, run = opened(folder)
    tell("ready")
    while True:
        updates = run.updates()
        database.commit()
        for batch in (updates[:3], updates[3:]):
            receipts = run.coordinator.submit(1.0, batch)
            database.commit()
            tell(*(receipt.lease for receipt in receipts if receipt.status == ACCEPTED))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
