"""Evaluation on held-out devices: each adapts a copy of the model, and sends counts and sums.

A sitting judges one version of the model in one way. It begins when its round has committed, and
does not hold up the rounds that follow. It closes when every held-out device has reported, or when
its first lease has been out for the deadline of the run; one that nobody came to closes when the
next begins.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.experiment.evaluation import Scores, instruction_of, summary
from fedtiny.rounds.events import NEVER
from fedtiny.server.admission import flaw_of_measures
from fedtiny.server.models import Models, Shelf
from fedtiny.values import (
    ACCEPTED,
    DUPLICATE,
    INVALID,
    LATE,
    UNKNOWN,
    DeviceCard,
    Instruction,
    Lease,
    Receipt,
    Update,
)

if TYPE_CHECKING:
    from fedtiny.engine.program import Program
    from fedtiny.experiment.workload import Workload
    from fedtiny.server.storage import Database
    from fedtiny.values import Masks

EVALUATION = 1 << 62
"""Set in the lease ids of evaluations: ``EVALUATION | sitting << 32 | device``."""
_BEGUN, _CLOSED = -2, -1  # in place of a device: the sitting has begun, is over
_MEASURES = ("count", "loss_sum_before", "loss_sum_after", "correct_before", "correct_after")


@dataclass(frozen=True)
class Way:
    """One of the experiment's ways to adapt: what is asked, and a Program for each board."""

    name: str
    instruction: Instruction
    shelf: Shelf


@dataclass(eq=False)
class Sitting:
    """One way to adapt, one version of the model with the masks that it had."""

    number: int
    way: Way
    round: int
    version: int
    masks: Masks
    closes_at: float
    leases: dict[int, Lease] = field(default_factory=dict)
    results: dict[int, Mapping[str, float]] = field(default_factory=dict)


@dataclass(eq=False)
class Sittings:
    """The evaluations of a run. Nothing here commits."""

    work: Workload
    models: Models
    database: Database
    run: bytes
    ways: tuple[Way, ...]
    open: list[Sitting] = field(default_factory=list)

    @classmethod
    def of(cls, work: Workload, models: Models, database: Database, run: bytes) -> Sittings:
        """What the experiment asks for."""
        ways = []
        for name, asked in work.experiment.evaluate.items():
            instruction = instruction_of(asked)
            names = work.experiment.fleet.profiles
            fitted = tuple(work.fit(p, asked.batch, instruction.sgd) for p in names)
            ways.append(Way(name, instruction, Shelf(fitted)))
        return cls(work, models, database, run, tuple(ways))

    # ---- who is judged

    @property
    def held_out(self) -> range:
        """The devices that never train: the last ones of the experiment's fleet."""
        devices = self.work.experiment.fleet.devices
        return range(devices - self.work.experiment.held_out, devices)

    @property
    def versions(self) -> set[int]:
        """The versions that open sittings judge."""
        return {sitting.version for sitting in self.open}

    @property
    def wakes_at(self) -> float:
        """When the first of them closes by itself."""
        return min((sitting.closes_at for sitting in self.open), default=NEVER)

    # ---- beginning and closing

    def begin_due(
        self, done: int, version: int, masks: Callable[[], Masks], now: float
    ) -> list[dict[str, Any]]:
        """Begin what is due after ``done`` rounds; the rows of what closes for it."""
        run = self.work.experiment.run
        every = run.evaluate_every
        due = done in (0, run.rounds) or (every and done % every == 0)
        if not due or not self.held_out or any(s.round == done for s in self.open):
            return []
        idle = [s for s in self.open if not s.leases and not s.results]
        closed = [row for sitting in idle for row in self._close(sitting, now)]
        for at, way in enumerate(self.ways):
            sitting = Sitting(done * len(self.ways) + at, way, done, version, masks(), NEVER)
            if not self._is_stored(sitting):
                self._begin(sitting, now)
        return closed

    def _begin(self, sitting: Sitting, now: float) -> None:
        run = self.work.experiment.run
        self.models.keep(sitting.version)
        self._store(sitting, _BEGUN, {"masks": _masks_to_json(sitting.masks)})
        if sitting.round == run.rounds:  # nothing follows that would close it
            sitting.closes_at = now + run.deadline
        self.open.append(sitting)

    def _is_stored(self, sitting: Sitting) -> bool:
        row = self.database.connection.execute(
            "SELECT 1 FROM evaluations WHERE run = ? AND sitting = ?", (self.run, sitting.number)
        ).fetchone()
        return row is not None

    def resume(self, now: float) -> None:
        """Go on with what was open when the coordinator ended; who had a lease may ask again."""
        rows = self.database.connection.execute(
            "SELECT sitting, round, version, device, measures FROM evaluations WHERE run = ?1 AND "
            "sitting NOT IN (SELECT sitting FROM evaluations WHERE run = ?1 AND device = ?2) "
            "ORDER BY sitting, device", (self.run, _CLOSED),
        ).fetchall()  # fmt: skip
        for number, round, version, device, measures in rows:
            if device == _BEGUN:
                way = self.ways[number % len(self.ways)]
                deadline = now + self.work.experiment.run.deadline
                masks = _masks_from_json(json.loads(measures).get("masks", []))
                self.models.recall(version)
                self.open.append(Sitting(number, way, round, version, masks, deadline))
            else:
                self.open[-1].results[device] = json.loads(measures)

    def tick(self, now: float) -> list[dict[str, Any]]:
        """The rows of the sittings that are over."""
        return [
            row
            for sitting in list(self.open)
            if sitting.closes_at <= now or len(sitting.results) == len(self.held_out)
            for row in self._close(sitting, now)
        ]

    def _close(self, sitting: Sitting, now: float) -> Iterator[dict[str, Any]]:
        self.open.remove(sitting)
        self._store(sitting, _CLOSED, {})
        self._forget_masks(sitting)
        if sitting.version not in self.versions:
            self.models.drop(sitting.version)
        if not sitting.results:
            return
        columns = zip(*(_scores(m) for _, m in sorted(sitting.results.items())), strict=True)
        scores = Scores(*(np.array(column, np.float64) for column in columns))
        row = {"kind": "evaluation", "round": sitting.round, "time_s": now}
        yield row | {"name": sitting.way.name} | summary(scores, self.work.task.classes is not None)

    def _store(self, sitting: Sitting, device: int, measures: Mapping[str, Any]) -> None:
        self.database.connection.execute(
            "INSERT INTO evaluations (run, sitting, name, round, version, device, measures) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self.run, sitting.number, sitting.way.name, sitting.round, sitting.version, device,
             json.dumps(measures)),
        )  # fmt: skip

    def _forget_masks(self, sitting: Sitting) -> None:
        """Nobody judges under them any more."""
        self.database.connection.execute(
            "UPDATE evaluations SET measures = '{}' WHERE run = ? AND sitting = ? AND device = ?",
            (self.run, sitting.number, _BEGUN),
        )

    # ---- devices

    def lease(
        self, device: int, card: DeviceCard, now: float
    ) -> tuple[Lease, Instruction, Program] | None:
        """What a held-out device is to judge next, and with which Program."""
        deadline = now + self.work.experiment.run.deadline
        for sitting in self.open:
            program = sitting.way.shelf.pick(card)
            if device in sitting.results or program is None:
                continue
            id = EVALUATION | sitting.number << 32 | device
            # Round 0: whatever is drawn is the same each time, as in a simulated run.
            lease = Lease(id, device, 0, sitting.version, deadline)
            sitting.leases[device] = lease
            sitting.closes_at = min(sitting.closes_at, deadline)
            return lease, replace(sitting.way.instruction, masks=sitting.masks), program
        return None

    @staticmethod
    def knows(lease: int) -> bool:
        """Whether the lease is one of an evaluation."""
        return bool(lease & EVALUATION)

    def give_up(self, device: int, lease: int) -> None:
        """The device cannot judge: it counts no sample."""
        number = (lease ^ EVALUATION) >> 32
        for sitting in self.open:
            if (
                sitting.number == number
                and device in sitting.leases.keys() - sitting.results.keys()
            ):
                sitting.results[device] = {}
                self._store(sitting, device, {})

    def submit(self, update: Update, flaw: str) -> Receipt:
        """The receipt for what a device has measured."""
        number = (update.lease ^ EVALUATION) >> 32
        sitting = next((s for s in self.open if s.number == number), None)
        if sitting is None:
            return Receipt(update.lease, LATE)
        if update.device in sitting.results:
            return Receipt(update.lease, DUPLICATE)
        if update.device not in sitting.leases or update.lease & 0xFFFFFFFF != update.device:
            return Receipt(update.lease, UNKNOWN)
        flaw = flaw or flaw_of_measures(update.measures, _MEASURES)
        measures = {} if flaw else dict(update.measures)
        sitting.results[update.device] = measures
        self._store(sitting, update.device, measures)
        return Receipt(update.lease, INVALID if flaw else ACCEPTED, flaw)


def _masks_to_json(masks: Masks) -> list[tuple[float, str]]:
    return [(density, base64.b64encode(blob).decode()) for density, blob in masks]


def _masks_from_json(pairs: Iterable[tuple[float, str]]) -> Masks:
    return tuple((density, base64.b64decode(text)) for density, text in pairs)


def _scores(measures: Mapping[str, float]) -> list[float]:
    """A row of `Scores`; a device that failed counts no sample."""
    return [float(measures.get(name, 0.0)) for name in _MEASURES]
