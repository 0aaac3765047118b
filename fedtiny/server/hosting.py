"""One run under a coordinator: its rounds, its Programs and models, its figures."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.engine.program import Program
from fedtiny.errors import RunError
from fedtiny.experiment import Experiment
from fedtiny.experiment.workload import Workload
from fedtiny.rounds.coordinator import Coordinator
from fedtiny.rounds.invitation import order
from fedtiny.rounds.journal import replay
from fedtiny.rounds.ledger import Figures, Ledger
from fedtiny.rounds.machine import FOLDING
from fedtiny.rounds.pacing import Pace
from fedtiny.server.models import Models
from fedtiny.server.sittings import Sittings
from fedtiny.server.sqlite_journal import SqliteJournal
from fedtiny.values import (
    INVALID,
    LATE,
    DeviceCard,
    Instruction,
    Lease,
    Receipt,
    Update,
)
from fedtiny.wire import codec, visit
from fedtiny.wire.pb import fleet_pb2 as pb

if TYPE_CHECKING:
    from fedtiny.rounds.journal import Published
    from fedtiny.server.sealing import RoundKeys
    from fedtiny.server.signing import Signer
    from fedtiny.server.storage import Database
    from fedtiny.tensors import Float32, Int64

_BYTES_A_RANGE = 16
"""What a message spends on each range of coordinates, at most."""

Row = dict[str, Any]
Grants = dict[int, codec.Work]


@dataclass(frozen=True, slots=True)
class Offered:
    """An update as it has arrived: from the model with the digest ``base``, or with a flaw.

    ``bytes_up`` and ``bytes_down`` are those of the visit so far, from the fetch of the model on.
    """

    update: Update
    base: bytes
    flaw: str = ""
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """How a run is called: on the wire, by people, and what its random draws are keyed by."""

    run: bytes
    name: str
    seed: int


@dataclass(eq=False)
class Hosted:
    """One run. Everything here happens in the conductor's thread; nothing here commits."""

    identity: Identity
    work: Workload
    database: Database
    models: Models
    coordinator: Coordinator
    sittings: Sittings
    ledger: Ledger = field(default_factory=Ledger)
    pace: Pace = field(default_factory=Pace)
    rows: list[Row] = field(default_factory=list)
    """Rows of the history that are not written yet."""
    durable: list[Row] = field(default_factory=list)
    """Rows that are written, and not yet in the folder of the run."""
    cards: Callable[[], Iterable[DeviceCard]] = tuple
    """Those of all devices."""
    _invited: tuple[tuple[int, int], Int64] = ((-1, -1), np.empty(0, np.int64))

    @classmethod
    def open(
        cls, work: Workload, database: Database, keys: RoundKeys, signer: Signer, now: float,
        *, new_run: bool = False,
    ) -> Hosted:  # fmt: skip
        """The run of an experiment, where it was left, or a new one.

        Raises RunError if there is a run of that name whose experiment was another.
        """
        identity = _identity(work.experiment, database, new_run)
        models = Models(database, signer, identity.run, work)
        coordinator = Coordinator(
            work.rules(identity.seed), work.strategy, work.layout, models.initial(),
            SqliteJournal(database, identity.run, keys), _training(work).size, now,
        )  # fmt: skip
        models.hold(coordinator.rounds.version, coordinator.model)
        sittings = Sittings.of(work, models, database, identity.run)
        hosted = cls(identity, work, database, models, coordinator, sittings)
        hosted.pace = hosted.pace.next(now)
        hosted._restore_ledger()
        hosted.sittings.begin_due(coordinator.rounds.round, coordinator.rounds.version, now)
        return hosted

    @property
    def run(self) -> bytes:
        """Its id on the wire."""
        return self.identity.run

    @property
    def name(self) -> str:
        """What people call it."""
        return self.identity.name

    @property
    def done(self) -> bool:
        """Whether every round is committed and every evaluation closed."""
        return self.coordinator.rounds.phase == "done" and not self.sittings.open

    @property
    def wakes_at(self) -> float:
        """When time alone will change something."""
        return min(self.coordinator.rounds.wakes_at, self.sittings.wakes_at)

    @property
    def demand(self) -> int:
        """How many leases the open window would give now."""
        return self.coordinator.demand

    @property
    def working(self) -> int:
        """How many leases of the open round may still bring an update."""
        return int((self.coordinator.rounds.status <= FOLDING).sum())

    @property
    def most_upload_bytes(self) -> int:
        """The longest update that this run takes."""
        layout = self.work.layout
        return layout.nbytes + _BYTES_A_RANGE * (len(layout.parameters) + 4)

    @property
    def occasion(self) -> tuple[int, ...]:
        """What there is work for; when it changes, those who wait may have a chance."""
        rounds = self.coordinator.rounds
        return rounds.round, rounds.window, *(sitting.number for sitting in self.sittings.open)

    # ---- its history

    def write_history(self) -> None:
        """Write the rows that have come up; they count when the cycle is committed."""
        for row in self.rows:
            self.database.connection.execute(
                "INSERT INTO history (run, seq, row) SELECT ?, coalesce(max(seq), -1) + 1, ? "
                "FROM history WHERE run = ?",
                (self.run, json.dumps(row), self.run),
            )
        self.durable += self.rows
        self.rows = []

    def history(self) -> list[Row]:
        """Every row that is written."""
        rows = self.database.connection.execute(
            "SELECT row FROM history WHERE run = ? ORDER BY seq", (self.run,)
        )
        return [json.loads(row) for (row,) in rows]

    def _restore_ledger(self) -> None:
        names = [f.name for f in fields(Figures)]
        for row in self.history():
            if row["kind"] == "round":
                self.ledger.open = Figures(*(row[name] for name in names))
                self.ledger.open_reasons = row.get("reasons", {})
                self.ledger.close(row["failed"])

    # ---- devices that ask

    def misfits(self, card: DeviceCard) -> tuple[str, ...]:
        """Why no Program of this run fits the device; empty if one does."""
        return () if self.models.program(card) else self.models.training.reasons(card)

    def check_ins(self, now: float, cards: Mapping[int, DeviceCard]) -> dict[int, pb.Answer]:
        """Work for those of the devices that get some. An evaluation is no visit of a round."""
        held_out = self.sittings.held_out
        training = [d for d, c in cards.items() if d not in held_out and self.models.program(c)]
        works = self._train(now, self._welcome(training), cards)
        answers = {device: codec.write_answer(work) for device, work in works.items()}
        self.ledger.open.bytes_down += sum(map(visit.answer_bytes, answers.values()))
        for device in [device for device in cards if device in held_out]:
            if work := self._evaluate(device, cards[device], now):
                answers[device] = codec.write_answer(work)
        return answers

    def _train(self, now: float, devices: Sequence[int], cards: Mapping[int, DeviceCard]) -> Grants:
        if not devices:
            return {}
        with _Following(self, now):
            leases, _ = self.coordinator.check_ins(now, np.array(devices, np.int64))
        return {
            device: self._work(lease, instruction, self.models.program(cards[device]), now)
            for device, (lease, instruction) in leases.items()
        }

    def _evaluate(self, device: int, card: DeviceCard, now: float) -> codec.Work | None:
        """What a held-out device is to judge, if a Program for it fits."""
        if (given := self.sittings.lease(device, card, now)) is None:
            return None
        lease, way, program = given
        return self._work(lease, way.instruction, program, now)

    def _welcome(self, devices: Sequence[int]) -> Sequence[int]:
        """All of them; in a seeded run those that a simulated one would ask, and who hold leases.

        So a seeded run makes the same model, simulated or real.
        """
        if not self.work.experiment.seeded:
            return devices
        rounds = self.coordinator.rounds
        window = rounds.round, rounds.window
        if self._invited[0] != window:
            drawn = order(self.identity.seed, *window, _training(self.work))
            earlier = rounds.devices[: rounds.devices.size - rounds.given]
            fresh = drawn[~np.isin(drawn, earlier)]
            self._invited = window, fresh[: rounds.wanted]
        known = set(self._invited[1].tolist()) | set(rounds.devices.tolist())
        return [device for device in devices if device in known]

    def _work(
        self, lease: Lease, instruction: Instruction, program: Program | None, now: float
    ) -> codec.Work:
        assert program is not None
        detached, blobs = codec.detach(instruction)
        self.models.lend(blobs)
        return codec.Work(
            self.run, self.identity.seed, lease, lease.deadline - now, detached,
            self.models.manifest_of(program), self.models.manifest(lease.version),
        )  # fmt: skip

    # ---- updates that arrive

    def submit(self, now: float, offers: Sequence[Offered]) -> dict[int, Receipt]:
        """A receipt for each lease that was offered."""
        judged = [o for o in offers if self.sittings.knows(o.update.lease)]
        trained = [o for o in offers if not self.sittings.knows(o.update.lease)]
        receipts = [self.sittings.submit(offer.update, offer.flaw) for offer in judged]
        if trained:
            with _Following(self, now):
                flaws = {o.update.lease: flaw for o in trained if (flaw := self._flaw(o))}
                told = self.coordinator.submit(now, [o.update for o in trained], flaws)
                self._count(trained, told)
            receipts += told
        return {receipt.lease: receipt for receipt in receipts}

    def _flaw(self, offer: Offered) -> str:
        """Why it cannot be folded, as far as that shows without its values."""
        version = offer.update.version
        if offer.flaw:
            return offer.flaw
        if not self.models.is_version(version, offer.base) and (
            version == self.coordinator.rounds.version
        ):
            return f"it says version {version:,}, but its base is another model"
        return ""

    def _count(self, offers: Sequence[Offered], receipts: Sequence[Receipt]) -> None:
        spent = self.ledger.open
        for offer in offers:
            spent.bytes_up += offer.bytes_up
            spent.bytes_down += offer.bytes_down
        for receipt in receipts:
            spent.late += receipt.status == LATE
            spent.bytes_down += visit.receipt_bytes(receipt)
            if receipt.status == INVALID:
                self.ledger.refuse([receipt.detail])

    # ---- time

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self.coordinator.rounds.wakes_at <= now:
            with _Following(self, now):
                self.coordinator.tick(now)
        self.rows += self.sittings.tick(now)

    def rollback(self, now: float, version: int) -> None:
        """Publish an older model as the newest; the open round is given up."""
        model = self._model_of(version)
        with _Following(self, now):
            self.coordinator.publish(now, model)

    def _model_of(self, version: int) -> Float32:
        """That version of the model, rebuilt from the journal."""
        rules, journal, initial = (
            self.coordinator.rules,
            self.coordinator.journal,
            self.models.initial(),
        )
        if version == 0:
            return initial
        models = replay(journal, rules.rounds, self.work.strategy, self.work.layout, initial)
        next(models)
        for published, (model, _) in zip(journal.commits(), models, strict=True):
            if published.version == version:
                return model
        raise RunError(
            f"the run {self.name} has no version {version:,} of its model; it has 0 to "
            f"{self.coordinator.rounds.version:,}"
        )

    # ---- rounds that end

    def committed(self, published: Published, leases: int, now: float) -> None:
        """A round is over: its row, its model, and the evaluation that is due."""
        spent = self.ledger.open
        spent.accepted, spent.leases = published.leases.size, leases
        row: Row = {
            "kind": "round", "round": published.round, "time_s": now,
            "version": published.version, **self.ledger.close(published.failed),
        }  # fmt: skip
        self.rows.append(row | _figures(published))
        if published.changed:
            self.models.publish(published.version, self.coordinator.model)
        self.pace = self.pace.next(now)
        done = self.coordinator.rounds.round
        self.rows += self.sittings.begin_due(done, published.version, now)
        self.models.forget({self.coordinator.rounds.version, *self.sittings.versions})


class _Following:
    """Notices that a round was committed while the rounds were told something."""

    def __init__(self, hosted: Hosted, now: float) -> None:
        self._hosted, self._now = hosted, now

    def __enter__(self) -> None:
        self._rounds = self._hosted.coordinator.rounds
        self._last = self._hosted.coordinator.published

    def __exit__(self, *failed: object) -> None:
        published = self._hosted.coordinator.published
        if published is not None and published is not self._last and failed[0] is None:
            self._hosted.committed(published, self._rounds.devices.size, self._now)


def _training(work: Workload) -> Int64:
    """The devices that may train: all of the experiment's fleet but the held-out ones."""
    return np.arange(work.experiment.fleet.devices - work.experiment.held_out)


def _figures(published: Published) -> Row:
    """The mean training loss of the round, or what it measured."""
    measured = published.measures.values()
    if "steps" in measured:
        mean = published.measures.mean("loss_sum", "steps") if measured["steps"] else None
        return {"loss": mean}
    return {"loss": None, "measures": measured} if measured else {"loss": None}


# ---- which run it is -------------------------------------------------------------------------


def _identity(experiment: Experiment, database: Database, new_run: bool) -> Identity:
    """The run that this experiment goes on with, or begins."""
    stem = Path(experiment.origin.name).stem or "run"
    rows = database.connection.execute(
        "SELECT id, name, seed, digest FROM runs WHERE name = ? OR name GLOB ? "
        "ORDER BY started_s, rowid", (stem, f"{stem}-[0-9]*"),
    ).fetchall()  # fmt: skip
    if rows and not new_run:
        run, name, seed, digest = rows[-1]
        if digest != experiment.digest:
            raise RunError(
                f"the run {name} was begun with another experiment (digest {digest[:12]}, this one "
                f"has {experiment.digest[:12]}); begin another with --new-run, or give its own file"
            )
        return Identity(run, name, int(seed) & _SEED_BITS)
    name = f"{stem}-{len(rows) + 1}" if rows else stem
    return _begin(experiment, database, name)


_SEED_BITS = 2**64 - 1


def _begin(experiment: Experiment, database: Database, name: str) -> Identity:
    nonce = secrets.token_bytes(16)
    run = hashlib.sha256(b"\0".join([name.encode(), experiment.digest.encode(), nonce])).digest()[
        :8
    ]
    seed = experiment.seed if experiment.seeded else secrets.randbits(63)
    database.connection.execute(
        "INSERT INTO runs (id, name, text, folder, digest, nonce, seed, started_s, clock_s) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)",
        (run, name, experiment.text, experiment.folder, experiment.digest, nonce, seed,
         time.time()),
    )  # fmt: skip
    return Identity(run, name, seed)
