"""One run under a coordinator: its rounds, its Programs and models, its figures."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import lru_cache
from itertools import islice
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
from fedtiny.rounds.pacing import Pace
from fedtiny.runs import differences
from fedtiny.server.admission import Expected, flaw_of, shared_masks
from fedtiny.server.models import Models
from fedtiny.server.sittings import Sittings
from fedtiny.server.sqlite_journal import SqliteJournal, discard
from fedtiny.strategies import calls
from fedtiny.strategies.base import Round
from fedtiny.tensors import FLOAT_BYTES
from fedtiny.values import (
    INVALID,
    LATE,
    STALE,
    UNKNOWN,
    DeviceCard,
    Instruction,
    Lease,
    Receipt,
    Update,
    round_of,
)
from fedtiny.wire import codec, visit
from fedtiny.wire.codec import RUN_BYTES
from fedtiny.wire.pb import fleet_pb2 as pb

if TYPE_CHECKING:
    from fedtiny.rounds.journal import Published
    from fedtiny.server.sealing import RoundKeys
    from fedtiny.server.signing import Signer
    from fedtiny.server.storage import Database
    from fedtiny.strategies.base import State
    from fedtiny.tensors import Float32, Int64
    from fedtiny.values import Masks

_BYTES_A_RANGE, _BYTES_A_PLACE = 16, 9
"""What a message spends on each range of coordinates, and on each coordinate alone, at most."""

Row = dict[str, Any]
Grants = dict[int, codec.Work]


@dataclass(frozen=True, slots=True, eq=False)
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
    sittings: Sittings
    now: float
    """Seconds of service at the last thing that the run was told."""
    coordinator: Coordinator = field(init=False)
    ledger: Ledger = field(default_factory=Ledger)
    pace: Pace = field(default_factory=Pace)
    rows: list[Row] = field(default_factory=list)
    """Rows of the history that are not written yet."""
    durable: list[Row] = field(default_factory=list)
    """Rows that are written, and not yet in the folder of the run."""
    cards: Callable[[], Iterable[DeviceCard]] = tuple
    """Those of all devices."""
    _ended: list[tuple[Published, int]] = field(default_factory=list)
    _asked: tuple[tuple[int, int], list[int]] = field(default_factory=lambda: ((-1, -1), []))
    _expects: tuple[Instruction | None, Sequence[Expected]] = (None, ())
    is_shut_out: Callable[[int], bool] = lambda device: False
    """Whether a device was revoked."""

    @classmethod
    def open(
        cls, work: Workload, database: Database, keys: RoundKeys, signer: Signer, now: float,
        *, new_run: bool = False,
    ) -> Hosted:  # fmt: skip
        """The run of an experiment, where it was left, or a new one.

        Raises RunError if there is a run of that name whose experiment was another.
        """
        identity = _identity(work.experiment, database, keys, new_run)
        models = Models(database, signer, identity.run, work)
        hosted = cls(
            identity, work, database, models, Sittings.of(work, models, database, identity.run), now
        )
        hosted._restore_ledger()
        # A round may be over as soon as its time goes on: it is then committed in here.
        hosted.coordinator = Coordinator(
            work.rules(identity.seed), work.strategy, work.layout, models.initial(),
            SqliteJournal(database, identity.run, keys), _training(work).size, now,
            hosted._committed, work.gate,
        )  # fmt: skip
        rounds = hosted.coordinator.rounds
        for version, model in hosted.coordinator.bases.items():
            models.hold(version, model)
        hosted._close_rounds()
        hosted.pace = hosted.pace.next(now)
        hosted.sittings.resume(now)
        hosted.sittings.begin_due(
            rounds.round, rounds.version, hosted._masks_of(hosted.coordinator.strategy_state), now
        )
        hosted.write_history()
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
        """How many leases may still bring an update."""
        return int(self.coordinator.rounds.leases.is_open.sum())

    def due(self, lease: int, base: bytes) -> codec.Due:
        """What the payload of an update on a lease may be that started from the model ``base``."""
        layout, rounds = self.work.layout, self.coordinator.rounds
        most_bytes = layout.nbytes + _BYTES_A_RANGE * (len(layout.parameters) + 4)
        if rounds.phase != "open":
            return codec.Due(layout.size, most_bytes)
        size, asked = self.coordinator.open.size, self.coordinator.open.instruction
        most_bytes = max(most_bytes, FLOAT_BYTES * size + _BYTES_A_RANGE)
        if asked.transforms:
            most_bytes += 2 * layout.size  # a place takes a byte, and another one if it is far
            given = [round_of(lease)] if round_of(lease) in round_of(rounds.leases.ids) else []
            drawn = shared_masks(asked, self.identity.seed, given, layout.size)
            return codec.Due(size, most_bytes, {**self.models.masks(asked.masks), **drawn})
        if not asked.grow:
            steps = self.models.steps(base)
            return codec.Due(size, most_bytes, self.models.masks(asked.masks), steps=steps)
        most_bytes += layout.size // 8 + _BYTES_A_PLACE * sum(most for _, most in asked.grow)
        return codec.Due(size, most_bytes, self.models.masks(asked.masks), layout)

    @property
    def occasion(self) -> tuple[int, ...]:
        """What there is work for; when it changes, those who wait may have a chance."""
        rounds = self.coordinator.rounds
        freed = 0  # places that one device has left to another
        if rounds.rules.asynchronous:
            freed = rounds.leases.ids.size - self.working
        return rounds.round, rounds.window, freed, *(s.number for s in self.sittings.open)

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
        with self._telling(now):
            leases, _ = self.coordinator.check_ins(now, np.array(devices, np.int64))
        return {
            device: self._work(lease, instruction, self.models.program(cards[device]), now)
            for device, (lease, instruction) in leases.items()
        }

    def _evaluate(self, device: int, card: DeviceCard, now: float) -> codec.Work | None:
        """What a held-out device is to judge, if a Program for it fits."""
        if (given := self.sittings.lease(device, card, now)) is None:
            return None
        return self._work(*given, now)

    def _welcome(self, devices: Sequence[int]) -> Sequence[int]:
        """Those that may get work, and who holds a lease.

        None that is barred; in a seeded run those that a simulated one would ask, so that it makes
        the same model. Asynchronous rounds depend on who is faster: they ask whoever comes.
        """
        known = {*self.coordinator.rounds.leases.devices.tolist()}
        if self._is_planned:
            known |= {*self._invited()}
        else:
            known |= {*devices} - {*self._barred()}
        return [device for device in devices if device in known]

    @property
    def _is_planned(self) -> bool:
        """Whether it is known who is to be asked."""
        return self.work.experiment.seeded and not self.coordinator.rules.asynchronous

    def _barred(self) -> list[int]:
        """Whom the strategy wants nothing of in the open round."""
        if self.coordinator.rounds.phase != "open":
            return []
        return [int(device) for device in self.coordinator.open.barred]

    def _invited(self) -> list[int]:
        """Whom a simulated run would ask in this window, without those who are shut out."""
        rounds = self.coordinator.rounds
        if self._asked[0] != (rounds.round, rounds.window):
            self._asked = (rounds.round, rounds.window), self._invitation()
        return self._asked[1]

    def _invitation(self) -> list[int]:
        rounds = self.coordinator.rounds
        drawn = order(self.identity.seed, rounds.round, rounds.window, _training(self.work))
        earlier = rounds.leases.devices[: rounds.leases.ids.size - rounds.given]
        left = drawn[~np.isin(drawn, [*earlier.tolist(), *self._barred()])]
        fresh = (d for d in left.tolist() if not self.is_shut_out(d))
        return list(islice(fresh, rounds.wanted))

    @property
    def missing(self) -> list[int]:
        """Devices that a seeded run waits for: asked in this window, and not come yet."""
        if not self._is_planned or not self.demand:
            return []
        return sorted({*self._invited()} - {*self.coordinator.rounds.leases.devices.tolist()})

    def holds(self) -> set[int]:
        """The devices with a lease on which an update may still come."""
        leases = self.coordinator.rounds.leases
        return {*leases.devices[leases.is_open].tolist()}

    def _work(
        self, lease: Lease, instruction: Instruction, program: Program | None, now: float
    ) -> codec.Work:
        assert program is not None
        detached, blobs = _detached(instruction, program.density)
        self.models.lend(blobs)
        form = self.models.form_of(program, instruction)
        return codec.Work(
            self.run, self.identity.seed, lease, lease.deadline - now, detached,
            self.models.manifest_of(program), self.models.manifest(lease.version, form),
        )  # fmt: skip

    # ---- updates that arrive

    def submit(self, now: float, offers: Sequence[Offered]) -> list[Receipt]:
        """A receipt for each offer."""
        # Who offers the lease of another must not spend it.
        mine = [o for o in offers if self._is_of(o.update.device, o.update.lease)]
        judged = [o for o in mine if self.sittings.knows(o.update.lease)]
        trained = [o for o in mine if not self.sittings.knows(o.update.lease)]
        told = [self.sittings.submit(o.update, o.flaw) for o in judged]
        if trained:
            told += self._offer(now, trained)
        receipts = {receipt.lease: receipt for receipt in told}
        known = {id(offer) for offer in mine}
        unknown = (Receipt(o.update.lease, UNKNOWN) for o in offers)
        return [
            receipts.get(o.update.lease, none) if id(o) in known else none
            for o, none in zip(offers, unknown, strict=True)
        ]

    def _offer(self, now: float, offers: Sequence[Offered]) -> list[Receipt]:
        flaws = {o.update.lease: flaw for o in offers if (flaw := self._flaw(o))}
        updates = [o.update if o.update.lease in flaws else self._folded(o) for o in offers]
        with self._telling(now):
            receipts = self.coordinator.submit(now, updates, flaws)
            self._count(offers, receipts)
        return receipts

    def _is_of(self, device: int, lease: int) -> bool:
        """Whether the lease is the device's, or of a round that is over."""
        if self.sittings.knows(lease):
            return lease & 0xFFFFFFFF == device
        leases = self.coordinator.rounds.leases
        (at,) = leases.places(np.array([lease])).tolist()
        return at < 0 or int(leases.devices[at]) == device

    def _flaw(self, offer: Offered) -> str:
        """Why it cannot be folded, as far as that shows without its values."""
        update, version = offer.update, offer.update.version
        if offer.flaw:
            return offer.flaw
        if version not in self.coordinator.bases:  # stale, which the rounds know
            return ""
        asked = self.coordinator.open.instruction
        if self.models.form(version, offer.base, asked) is None:
            return f"it says version {version:,}, but its base is another model"
        return flaw_of(update, self._expected(asked))

    def _folded(self, offer: Offered) -> Update:
        """The update as the rounds take it, whatever form of the model it started from."""
        update = offer.update
        if self.coordinator.rounds.phase != "open":
            return update
        opened = self.coordinator.open
        form = self.models.form(update.version, offer.base, opened.instruction)
        is_of_values = opened.trains and not opened.sends_deltas
        return self.models.with_whole_base(update, form) if form and is_of_values else update

    def _expected(self, asked: Instruction) -> Sequence[Expected]:
        if self._expects[0] != asked:
            programs = filter(None, (p.program for p in self.models.training.profiles))
            layout, mask = self.work.layout, self.models.mask
            seed = self.identity.seed
            self._expects = asked, Expected.of(asked, programs, layout, mask, seed)
        return self._expects[1]

    def _count(self, offers: Sequence[Offered], receipts: Sequence[Receipt]) -> None:
        spent = self.ledger.open
        for offer in offers:
            spent.bytes_up += offer.bytes_up
            spent.bytes_down += offer.bytes_down
        for receipt in receipts:
            spent.late += receipt.status in (LATE, STALE)
            spent.bytes_down += visit.receipt_bytes(receipt)
            if receipt.status == INVALID:
                self.ledger.refuse([receipt.detail])

    # ---- time

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self.coordinator.rounds.wakes_at <= now:
            with self._telling(now):
                self.coordinator.tick(now)
        self.rows += self.sittings.tick(now)

    def give_up(self, now: float, device: int, lease: int, why: str) -> None:
        """The device will send nothing on its lease, and says why."""
        if self.sittings.knows(lease):
            return self.sittings.give_up(device, lease)
        if device in self.holds() and self._is_of(device, lease):
            self.ledger.refuse([why])
            with self._telling(now):
                self.coordinator.give_up(now, [lease])
        return None

    def shut_out(self, now: float, device: int) -> None:
        """Nobody waits for a device that was revoked, and another is asked in its place."""
        self._asked = (-1, -1), []
        leases = self.coordinator.rounds.leases
        mine = leases.ids[leases.is_open & (leases.devices == device)]
        with self._telling(now):
            self.coordinator.give_up(now, mine.tolist())

    def rollback(self, now: float, version: int) -> None:
        """Publish an older model as the newest; the open round is given up."""
        model = self._model_of(version)
        with self._telling(now):
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

    @contextmanager
    def _telling(self, now: float) -> Iterator[None]:
        """While the rounds are told something, which may end one of them."""
        self.now = now
        try:
            yield
        finally:  # also when a strategy then fails: what was committed is committed
            self._close_rounds()

    def _committed(self, published: Published, leases: int) -> None:
        self._ended.append((published, leases))

    def _close_rounds(self) -> None:
        """The row, the model and the evaluation of each round that has ended."""
        while self._ended:
            published, leases = self._ended.pop(0)
            spent = self.ledger.open
            spent.accepted, spent.leases = published.leases.size, leases
            row: Row = {
                "kind": "round", "round": published.round, "time_s": self.now,
                "version": published.version, **self.ledger.close(published.failed),
            }  # fmt: skip
            row |= {"gated": published.gated} if published.gated else {}
            self.rows.append(row | _figures(published) | self._telemetry(published))
            self._publish(published)

    def _telemetry(self, published: Published) -> Row:
        """What the strategy tells of the round."""
        assert published.model is not None
        turn = Round(published.round, self.coordinator.rules.rounds)
        told = calls.telemetry(self.work.strategy, turn, published.model, published.state)
        return {"telemetry": told} if told else {}

    def _masks_of(self, state: State) -> Callable[[], Masks]:
        """The masks of that state, when they are asked for."""
        turn = Round(self.coordinator.rounds.round, self.coordinator.rules.rounds)
        return lambda: calls.masks(self.work.strategy, turn, state, self.work.layout)

    def _publish(self, published: Published) -> None:
        if published.changed:
            assert published.model is not None
            self.models.publish(published.version, published.model)
        self.pace = self.pace.next(self.now)
        self.rows += self.sittings.begin_due(
            published.round + 1, published.version, self._masks_of(published.state), self.now
        )
        self.models.forget(published.version, self.sittings.versions | {*published.bases})


def _training(work: Workload) -> Int64:
    """The devices that may train: all of the experiment's fleet but the held-out ones."""
    return np.arange(work.experiment.fleet.devices - work.experiment.held_out)


def _figures(published: Published) -> Row:
    """The mean training loss of the round, or what it measured."""
    measured = published.measures.values()
    if measured.keys() == {"loss_sum", "steps"}:
        steps = measured["steps"]
        return {"loss": published.measures.mean("loss_sum", "steps") if steps else None}
    return {"loss": None, "measures": measured} if measured else {"loss": None}


@lru_cache(maxsize=8)
def _detached(instruction: Instruction, density: float) -> tuple[Instruction, dict[bytes, bytes]]:
    """What Programs of a density get; hashed once for all the devices of a round."""
    return codec.detach(instruction.of(density))


# ---- which run it is -------------------------------------------------------------------------

_SEED_BITS = 2**64 - 1


def _identity(
    experiment: Experiment, database: Database, keys: RoundKeys, new_run: bool
) -> Identity:
    """The run that this experiment goes on with, or begins."""
    stem = Path(experiment.origin.name).stem or "run"
    rows = database.connection.execute(
        "SELECT id, name, seed, digest FROM runs WHERE experiment = ? ORDER BY rowid", (stem,)
    ).fetchall()
    if not rows:
        return _begin(experiment, database, stem, stem)
    if new_run:
        discard(database, rows[-1][0], keys)
        return _begin(experiment, database, stem, f"{stem}-{len(rows) + 1}")
    same = [row for row in rows if row[3] == experiment.digest]
    if not same:
        _, name, _, _ = rows[-1]
        raise RunError(
            f"the run {name} was begun with another experiment: "
            f"{_differences(experiment, database)}; begin another run with --new-run, or give the "
            "experiment as it was"
        )
    run, name, seed, _ = same[-1]
    return Identity(run, name, int(seed) & _SEED_BITS)


def _differences(experiment: Experiment, database: Database) -> str:
    """The keys in which the newest run of that name differs, and how."""
    stem = Path(experiment.origin.name).stem or "run"
    (text, folder) = database.connection.execute(
        "SELECT text, folder FROM runs WHERE experiment = ? ORDER BY rowid DESC", (stem,)
    ).fetchone()
    then = Experiment.parse(text, stem, folder).to_json()
    return ", ".join(differences(then, experiment.to_json()))


def _begin(experiment: Experiment, database: Database, stem: str, name: str) -> Identity:
    nonce = secrets.token_bytes(16)
    named = b"\0".join([name.encode(), experiment.digest.encode(), nonce])
    run = hashlib.sha256(named).digest()[:RUN_BYTES]
    seed = experiment.seed if experiment.seeded else secrets.randbits(63)
    database.connection.execute(
        "INSERT INTO runs (id, name, experiment, text, folder, digest, nonce, seed, started_s) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (run, name, stem, experiment.text, experiment.folder, experiment.digest, nonce, seed,
         time.time()),
    )  # fmt: skip
    return Identity(run, name, seed)
