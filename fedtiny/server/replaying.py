"""Every published model of a run, rebuilt from the journal of its folder: nobody need serve it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.errors import RunError, did_you_mean
from fedtiny.experiment import Experiment
from fedtiny.experiment.workload import Workload
from fedtiny.rounds.journal import digest, replay
from fedtiny.server.sqlite_journal import SqliteCommits
from fedtiny.server.storage import read_only

if TYPE_CHECKING:
    from sqlite3 import Connection

    from fedtiny.tensors import Float32


@dataclass(frozen=True, slots=True, eq=False)
class Rebuilt:
    """A model, and the round that made it: None for the initial one."""

    version: int
    round: int | None
    digest: str
    model: Float32


@dataclass(frozen=True, eq=False)
class Recorded:
    """A run as the database has it, opened beside its coordinator or without one."""

    name: str
    run: bytes
    work: Workload
    connection: Connection

    @classmethod
    def open(cls, folder: Path, name: str) -> Recorded:
        """The run of that name in the coordinator's folder. Raises RunError when there is none."""
        connection = read_only(folder)
        row = connection.execute(
            "SELECT id, text, folder FROM runs WHERE name = ?", (name,)
        ).fetchone()
        if row is None:
            names = [name for (name,) in connection.execute("SELECT name FROM runs ORDER BY rowid")]
            known = f"{did_you_mean(name, names)}there are {', '.join(names)}" if names else "none"
            raise RunError(f"{folder} has no run {name!r}; {known}")
        run, text, modules = row
        return cls(name, run, Workload.of(Experiment.parse(text, name, modules)), connection)

    def models(self) -> Iterator[Rebuilt]:
        """Each published model, oldest first, with the digest that it was published with.

        Raises RunError at the first round whose model is another.
        """
        journal, rounds = SqliteCommits(self.connection, self.run), self.work.experiment.run.rounds
        steps = replay(journal, rounds, self.work.strategy, self.work.layout, self._initial())
        model, _ = next(steps)
        yield self._checked(Rebuilt(0, None, digest(model), model))
        version = 0
        for commit, (model, _) in zip(journal.commits(), steps, strict=True):
            if commit.version > version:
                version = commit.version
                yield self._checked(Rebuilt(version, commit.round, commit.digest, model))

    def _initial(self) -> Float32:
        row = self.connection.execute(
            "SELECT body FROM versions JOIN blobs USING (digest) WHERE run = ? AND version = 0",
            (self.run,),
        ).fetchone()
        if row is None:
            raise RunError(f"{self.name} has no initial model; its coordinator was never started")
        return np.frombuffer(row[0], np.float32)

    def _checked(self, rebuilt: Rebuilt) -> Rebuilt:
        """The model, if it is the one that devices were given under its version."""
        row = self.connection.execute(
            "SELECT hex(digest) FROM versions WHERE run = ? AND version = ?",
            (self.run, rebuilt.version),
        ).fetchone()
        published = row[0].lower() if row else "nothing"
        if published != rebuilt.digest:
            raise RunError(
                f"version {rebuilt.version:,} of {self.name} is {rebuilt.digest[:12]} by its "
                f"journal, and devices were given {published[:12]}; the database was changed"
            )
        return rebuilt
