"""What the devices of a cohort compute: whole visits in C, or one `Learner` at a time.

Both give the same bits. The columns need the native runtime; the objects run on either executor,
and are the judge of the columns.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedtiny.data.tables import Task
from fedtiny.device.learner import Key, Learner, Outcome, Samples
from fedtiny.engine.native import Status
from fedtiny.engine.program import Program
from fedtiny.errors import DataError, UpdateError
from fedtiny.experiment.evaluation import Scores
from fedtiny.fold import Total, covered
from fedtiny.masks import remembered
from fedtiny.rounds.content import OpenRound, Part
from fedtiny.rounds.measures import Measures
from fedtiny.values import Instruction, Ranges, Update, coordinates, length
from fedtiny.wire.visit import update_bytes

if TYPE_CHECKING:
    from fedtiny.masks import Mask
    from fedtiny.tensors import Bools, Float32, Float64, Int64


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

    def take(self, at: Int64) -> Cohort:
        """The visits at these positions."""
        columns = {n: getattr(self, n)[at] for n in ("leases", "devices", "samples", "weights")}
        return replace(self, **columns)

    @property
    def instruction(self) -> Instruction:
        """What its Program is asked to do."""
        return self.open.instruction.of(self.program.density)

    def update(self, at: int, done: Outcome) -> Update:
        """What one of the devices sends back."""
        return Update(
            int(self.leases[at]), int(self.devices[at]), self.open.round.t, self.version,
            done.samples, done.values, done.ranges, done.measures, done.mask, done.places,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Visited:
    """What a cohort gave: a part of the round, or what it measured, and the losses of all steps.

    ``refused`` are positions, each with its reason; ``grown_bytes`` those of the updates of a round
    that grows, whose length only their content tells.
    """

    part: Part
    measures: Measures = field(default_factory=Measures)
    refused: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()
    loss_sum: float = 0.0
    steps: int = 0
    grown_bytes: int = 0


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


@dataclass(eq=False)
class Personal:
    """The local parameters that each device has kept: float32 [devices, local].

    What a round keeps counts when it commits, so that between two rounds nothing of an open one
    is seen; a device whose update is accepted has no second visit in a round.
    """

    ranges: Ranges
    values: Float32
    known: Bools
    open: list[tuple[Int64, Float32]] = field(default_factory=list)

    @classmethod
    def empty(cls, ranges: Ranges, devices: int) -> Personal:
        """Nothing kept yet."""
        return cls(ranges, np.zeros((devices, length(ranges)), np.float32), np.zeros(devices, bool))

    def keep(self, devices: Int64, values: Float32) -> None:
        """Remember the local values of these devices, from the next commit on."""
        self.open.append((devices, values))

    def commit(self) -> None:
        """The round is over."""
        for devices, values in self.open:
            self.values[devices] = values
            self.known[devices] = True
        self.open.clear()

    def of(self, device: int) -> bytes:
        """One device's values; empty when it has kept none."""
        return self.values[device].tobytes() if self.known[device] else b""


ROWS_BYTES = 64 * 2**20
"""The most that the rows of a fleet with personal parameters take at a time."""


def in_pieces(devices: Int64, row_bytes: int) -> list[Int64]:
    """The devices cut so that each piece has at most ROWS_BYTES of rows; at least one device."""
    size = max(1, ROWS_BYTES // row_bytes) if row_bytes else max(1, devices.size)
    return [devices[at : at + size] for at in range(0, max(1, devices.size), size)]


# ---- one at a time ---------------------------------------------------------------------------


class ObjectWorkers:
    """A Learner for each Program, device after device."""

    def __init__(self, task: Task, run: int, personal: Personal | None, executor: str = "") -> None:
        self.task, self.run, self.personal = task, run, personal
        self._learner: Callable[[Program], Learner] = cache(lambda p: Learner(p, executor))

    def visit(self, cohort: Cohort) -> Visited:
        """Make the visits; fold what they send back, or merge what they measure."""
        part, measures, grown_bytes = cohort.open.nothing, Measures(), 0
        done: dict[int, Outcome] = {}
        refused: dict[int, str] = {}
        for at in range(cohort.devices.size):
            try:
                found = self._visit(cohort, at)
                if not cohort.open.trains:
                    measures = measures.merge(Measures.of(found.measures))
                part = cohort.open.add(part, cohort.update(at, found))
                grown_bytes += _grown_bytes(cohort, at, found)
                done[at] = found
            except (DataError, UpdateError) as error:
                refused[at] = str(error)
        self._keep(cohort, done)
        steps = sum(int(found.measures.get("steps", 0)) for found in done.values())
        losses = np.array([found.measures.get("loss_sum", 0.0) for found in done.values()])
        return Visited(
            part, measures, tuple(refused), tuple(refused.values()), float(losses.sum()), steps,
            grown_bytes,
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
        own = self.personal.of(device) if self.personal else b""
        try:
            found = learner.visit(instruction, model, _sampler(learner, task, key), key, own)
        except DataError:
            return [0.0] * len(_SCORES)
        return [found.measures[name] for name in _SCORES]

    def _visit(self, cohort: Cohort, at: int) -> Outcome:
        device, round = int(cohort.devices[at]), cohort.open
        key = Key(self.run, round.round.t, device)
        learner = self._learner(cohort.program)
        samples = _sampler(learner, self.task, key)
        own = self.personal.of(device) if self.personal else b""
        return learner.visit(round.instruction, round.model, samples, key, own)

    def _keep(self, cohort: Cohort, done: dict[int, Outcome]) -> None:
        if self.personal and done and cohort.open.trains:
            values = [np.frombuffer(found.personal, np.float32) for found in done.values()]
            self.personal.keep(cohort.devices[list(done)], np.array(values))


_SCORES = ("count", "loss_sum_before", "loss_sum_after", "correct_before", "correct_after")


def _sampler(learner: Learner, task: Task, key: Key) -> Callable[[str], Samples]:
    return cache(lambda part: learner.samples(*task.samples(key.run, key.round, key.device, part)))


# ---- whole cohorts in C ----------------------------------------------------------------------


class ColumnWorkers:
    """One call of the C runtime for each thread, over a range of visits."""

    def __init__(self, task: Task, run: int, personal: Personal | None, threads: int) -> None:
        from fedtiny.engine.fleet_call import FleetCall

        self.task, self.run, self.personal = task, run, personal
        self._objects = ObjectWorkers(task, run, personal, "native")
        self._pool = ThreadPoolExecutor(threads)
        self._call: Callable[[Program], FleetCall] = cache(
            lambda program: FleetCall(program, self._pool, threads)
        )

    def visit(self, cohort: Cohort) -> Visited:
        """Make the visits; fold what they send back, or merge what they measure."""
        round, t, asked = cohort.open, cohort.open.round.t, cohort.instruction
        if not round.trains or asked.grow:
            return self._objects.visit(cohort)
        try:
            samples = self.task.native(self.run, t, cohort.devices)
        except DataError:  # one device's samples are bad: the objects find out whose
            return self._objects.visit(cohort)
        rows = self._rows(cohort.devices, round.model)
        done = self._call(cohort.program).run(
            asked, samples, round.model,
            self.run, t, cohort.devices, rule=round.rule, weight=cohort.weights, personal=rows,
            mask=_mask(cohort.program, asked), keep_vectors=round.strategy.needs == "all",
        )  # fmt: skip
        ok = done.outcomes["status"] == 0
        if rows is not None and self.personal is not None:
            self.personal.keep(cohort.devices[ok], rows[ok][:, coordinates(self.personal.ranges)])
        refused = np.flatnonzero(~ok)
        return Visited(
            _part(cohort, done.sums, done.vectors, ok),
            refused=tuple(refused.tolist()),
            reasons=tuple(
                self._reason(cohort, at, done.outcomes["status"][at]) for at in refused.tolist()
            ),
            loss_sum=float(done.outcomes["loss_sum"][ok].sum()),
            steps=int(done.outcomes["steps"][ok].sum()),
        )

    def evaluate(
        self, program: Program, task: Task, instruction: Instruction, model: Float32, devices: Int64
    ) -> Scores:
        """Adapt and measure on each device; nothing is kept."""
        parts = [
            self._evaluate(program, task, instruction, model, piece)
            for piece in in_pieces(devices, model.nbytes if self.personal else 0)
        ]
        columns = ([getattr(part, f.name) for part in parts] for f in fields(Scores))
        return Scores(*map(np.concatenate, columns))

    def _evaluate(
        self, program: Program, task: Task, instruction: Instruction, model: Float32, devices: Int64
    ) -> Scores:
        try:
            samples = task.native(self.run, 0, devices)
        except DataError:  # one device's samples are bad: the objects find out whose
            return self._objects.evaluate(program, task, instruction, model, devices)
        asked = instruction.of(program.density)
        done = self._call(program).run(
            asked, samples, model, self.run, 0, devices,
            personal=self._rows(devices, model), mask=_mask(program, asked),
        )  # fmt: skip
        before, after = done.outcomes["before"], done.outcomes["after"]
        after = after if instruction.phases else before
        columns = (
            before["count"], before["loss_sum"], after["loss_sum"], before["correct"],
            after["correct"],
        )  # fmt: skip
        scores = Scores(*(column.astype(np.float64) for column in columns))
        failed = np.flatnonzero(done.outcomes["status"])
        if failed.size:  # the objects judge who diverged or has no samples
            again = self._objects.evaluate(program, task, instruction, model, devices[failed])
            for column in fields(Scores):
                getattr(scores, column.name)[failed] = getattr(again, column.name)
        return scores

    def close(self) -> None:
        """No more work will come."""
        self._pool.shutdown()

    def _rows(self, devices: Int64, model: Float32) -> Float32 | None:
        """The model once for each device, with its own values where it has kept some."""
        if self.personal is None:
            return None
        rows = np.repeat(model[None], devices.size, axis=0)
        known = np.flatnonzero(self.personal.known[devices])
        kept = self.personal.values[devices[known]]
        rows[np.ix_(known, coordinates(self.personal.ranges))] = kept
        return rows

    def _reason(self, cohort: Cohort, at: int, status: int) -> str:
        """Why C refused a visit, in the words of the objects."""
        return self._objects.refusal(cohort, at) or Status(status).meaning


def _mask(program: Program, asked: Instruction) -> Mask | None:
    """The live coordinates of a Program with a density."""
    return remembered(asked.mask, program.layout) if asked.mask is not None else None


def _grown_bytes(cohort: Cohort, at: int, done: Outcome) -> int:
    asked = cohort.instruction
    if not asked.grow:
        return 0
    return update_bytes(cohort.update(at, done), cohort.open.size, asked)


def _part(cohort: Cohort, sums: Int64 | None, vectors: Float32 | None, ok: Bools) -> Part:
    """What C has folded, or the updates where it has kept them."""
    asked, rule = cohort.instruction, cohort.open.rule
    ranges, mask = cohort.program.sent_ranges(asked), _mask(cohort.program, asked)
    if vectors is None:
        assert sums is not None
        return Total.from_sums(rule, sums, ranges, cohort.weights[ok], mask)
    values = vectors[:, covered((ranges, mask))]
    return tuple(
        cohort.update(at, Outcome(values[at].tobytes(), ranges, int(cohort.samples[at]), mask=mask))
        for at in np.flatnonzero(ok).tolist()
    )
