"""What the devices of a cohort compute, one `Learner` at a time: the judge of whole cohorts in C.

Both give the same bits. These run on either executor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedtiny.data.tables import Task
from fedtiny.device.learner import Key, Learner, Outcome, Samples
from fedtiny.device.training import sent
from fedtiny.engine.program import Program
from fedtiny.errors import DataError, UpdateError
from fedtiny.experiment.evaluation import Scores
from fedtiny.fold import covered
from fedtiny.rounds.content import OpenRound, Part
from fedtiny.rounds.measures import Measures
from fedtiny.simulator.attacks import Attackers
from fedtiny.simulator.keeping import Keeping
from fedtiny.values import RESIDUAL, Instruction, Update
from fedtiny.wire.visit import update_bytes

if TYPE_CHECKING:
    from fedtiny.tensors import Float32, Float64, Int64


@dataclass(frozen=True, eq=False)
class Cohort:
    """Visits to be made in one round with one Program, in columns; ``weights`` are the fold's."""

    program: Program
    open: OpenRound
    version: int
    leases: Int64
    devices: Int64
    samples: Int64
    weights: Float64

    @property
    def instruction(self) -> Instruction:
        """What its Program is asked to do."""
        return self.open.instruction.of(self.program.density)

    def update(self, at: int, done: Outcome) -> Update:
        """What one of the devices sends back."""
        return Update(
            int(self.leases[at]), int(self.devices[at]), self.open.round.t, self.version,
            done.samples, done.values, done.ranges, done.measures, done.mask, done.places,
            done.quantised,
        )  # fmt: skip

    def exact_bytes(self, update: Update) -> int:
        """Those of an update, if only its content tells its length; else 0."""
        asked = self.instruction
        return update_bytes(update, self.open.size, asked) if has_own_length(asked) else 0


@dataclass(frozen=True, eq=False)
class Visited:
    """What a cohort gave: a part of the round, or what it measured, and the losses of all steps.

    ``refused`` are positions, each with its reason; ``exact_bytes`` those of the updates that have
    a length of their own.
    """

    part: Part
    measures: Measures = field(default_factory=Measures)
    refused: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()
    loss_sum: float = 0.0
    steps: int = 0
    exact_bytes: int = 0


class Workers(Protocol):
    """Who computes."""

    def visit(self, cohort: Cohort) -> Visited:
        """Make the visits; fold what they send back, or merge what they measure."""

    def evaluate(
        self, program: Program, task: Task, instruction: Instruction, model: Float32, devices: Int64
    ) -> Scores:
        """Adapt and measure on each device; nothing is kept."""

    def close(self) -> None:
        """No more work will come."""


ROWS_BYTES = 64 * 2**20
"""The most that the rows of whole cohorts take at a time."""


def in_pieces(devices: Int64, row_bytes: int) -> list[Int64]:
    """The devices cut so that each piece has at most ROWS_BYTES of rows; at least one device."""
    size = max(1, ROWS_BYTES // row_bytes) if row_bytes else max(1, devices.size)
    return [devices[at : at + size] for at in range(0, max(1, devices.size), size)]


def has_own_length(asked: Instruction) -> bool:
    """Whether only the content of an update tells how long it is."""
    return bool(asked.grow or asked.transforms)


def row_bytes(round: OpenRound, attackers: Attackers | None) -> int:
    """Bytes that a visit takes in the rows of whole cohorts; 0 if they have none."""
    has_rows = is_collected(round, attackers) or round.layout.local_ranges
    return round.layout.nbytes if has_rows else 0


def is_collected(round: OpenRound, attackers: Attackers | None) -> bool:
    """Whether each update is looked at by itself, where the deltas of others are summed in C."""
    asked = round.instruction
    return bool(attackers or asked.transforms or round.strategy.needs == "all")


def told(
    cohort: Cohort,
    at: Sequence[int],
    done: Sequence[Outcome],
    attackers: Attackers | None,
    keeping: Keeping,
    run: int,
) -> list[Outcome]:
    """What these of a cohort's devices send that have all trained the same coordinates, and have
    not transformed them yet."""
    asked, place = cohort.instruction, covered((done[0].ranges, done[0].mask))
    base = None if asked.sends_gradient else cohort.open.model[place]
    if attackers:
        rows = np.array([np.frombuffer(one.values, np.float32) for one in done])
        rows = attackers.falsified(cohort.devices[list(at)], rows, base)
        done = [replace(one, values=row.tobytes()) for one, row in zip(done, rows, strict=True)]
    if not asked.transforms:
        return list(done)
    keys = [Key(run, cohort.open.round.t, device) for device in cohort.devices[list(at)].tolist()]
    left = (keeping.of(key.device).get(RESIDUAL, b"") for key in keys)
    size = cohort.program.layout.size
    rest = zip(done, keys, left, strict=True)
    return [sent(asked, one, base, size, key, residual) for one, key, residual in rest]


class ObjectWorkers:
    """A Learner for each Program, device after device."""

    def __init__(
        self,
        task: Task,
        run: int,
        keeping: Keeping,
        attackers: Attackers | None = None,
        executor: str = "",
    ) -> None:
        self.task, self.run, self.keeping, self.attackers = task, run, keeping, attackers
        self._learner: Callable[[Program], Learner] = cache(lambda p: Learner(p, executor))

    def visit(self, cohort: Cohort) -> Visited:
        """Make the visits; fold what they send back, or merge what they measure."""
        part, measures, exact_bytes = cohort.open.nothing, Measures(), 0
        done: dict[int, Outcome] = {}
        refused: dict[int, str] = {}
        for at in range(cohort.devices.size):
            try:
                found = self._visit(cohort, at)
                if not cohort.open.trains:
                    measures = measures.merge(Measures.of(found.measures))
                update = cohort.update(at, found)
                part = cohort.open.add(part, update)
                exact_bytes += cohort.exact_bytes(update)
                done[at] = found
            except (DataError, UpdateError) as error:
                refused[at] = str(error)
        self._keep(cohort, done)
        steps = sum(int(found.measures.get("steps", 0)) for found in done.values())
        losses = np.array([found.measures.get("loss_sum", 0.0) for found in done.values()])
        return Visited(
            part, measures, tuple(refused), tuple(refused.values()), float(losses.sum()), steps,
            exact_bytes,
        )  # fmt: skip

    def refusal(self, cohort: Cohort, at: int) -> str:
        """Why a visit that trains would be refused; "" if it would not."""
        try:
            found = self._visit(cohort, at)
            cohort.open.add(cohort.open.nothing, cohort.update(at, found))
        except (DataError, UpdateError) as error:
            return str(error)
        return ""

    def evaluate(
        self, program: Program, task: Task, instruction: Instruction, model: Float32, devices: Int64
    ) -> Scores:
        """Adapt and measure on each device; nothing is kept."""
        rows = [
            self._score(program, task, instruction, model, device) for device in devices.tolist()
        ]
        return Scores(*np.array(rows, np.float64).reshape(-1, len(_SCORES)).T)

    def close(self) -> None:
        """No more work will come."""

    def _score(
        self, program: Program, task: Task, instruction: Instruction, model: Float32, device: int
    ) -> list[float]:
        """The row of one device; one that has no samples to adapt on is not judged."""
        learner, key = self._learner(program), Key(self.run, 0, device)
        samples, kept = _sampler(learner, task, key), self.keeping.of(device)
        try:
            found = learner.visit(instruction, model, samples, key, kept)
        except DataError:
            return [0.0] * len(_SCORES)
        return [found.measures[name] for name in _SCORES]

    def _visit(self, cohort: Cohort, at: int) -> Outcome:
        device, round = int(cohort.devices[at]), cohort.open
        key, learner = Key(self.run, round.round.t, device), self._learner(cohort.program)
        samples, kept = _sampler(learner, self.task, key), self.keeping.of(device)
        asked = round.instruction
        if not (self.attackers and round.trains):
            return learner.visit(asked, round.model, samples, key, kept)
        plain = replace(asked, transforms=())
        found = learner.visit(plain, round.model, samples, key, kept)
        if found.places is not None:
            return found
        return told(cohort, [at], [found], self.attackers, self.keeping, self.run)[0]

    def _keep(self, cohort: Cohort, done: Mapping[int, Outcome]) -> None:
        for name in {name for found in done.values() for name in found.kept}:
            left = {at: found.kept[name] for at, found in done.items() if name in found.kept}
            values = [np.frombuffer(one, np.float32) for one in left.values()]
            self.keeping.keep(name, cohort.devices[list(left)], np.array(values))


_SCORES = ("count", "loss_sum_before", "loss_sum_after", "correct_before", "correct_after")


def _sampler(learner: Learner, task: Task, key: Key) -> Callable[[str], Samples]:
    return cache(lambda part: learner.samples(*task.samples(key.run, key.round, key.device, part)))
