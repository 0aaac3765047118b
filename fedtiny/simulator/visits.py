"""What the devices of a cohort compute: whole visits in C, or one `Learner` at a time.

Both give the same bits. The columns need the native runtime; the objects run on either executor,
and are the judge of the columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedtiny.data.tables import Task
from fedtiny.device.learner import Key, Learner, Outcome, Samples
from fedtiny.engine.program import Program
from fedtiny.errors import DataError, RunError, UpdateError
from fedtiny.fold import FoldRule, Total, delta_of
from fedtiny.rounds.measures import Measures
from fedtiny.values import GRADIENT, Instruction, Ranges, Update

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedtiny.tensors import Float32, Float64, Int64


@dataclass(frozen=True, eq=False)
class Cohort:
    """Visits to be made in one round with one Program, in columns.

    ``weights`` are those of the fold (``rule``). With ``keep``, the updates themselves are wanted.
    """

    program: Program
    instruction: Instruction
    model: Float32
    run: int
    round: int
    version: int
    leases: Int64
    devices: Int64
    samples: Int64
    weights: Float64
    rule: FoldRule
    keep: bool

    def take(self, at: Int64) -> Cohort:
        """The visits at these positions."""
        columns = {n: getattr(self, n)[at] for n in ("leases", "devices", "samples", "weights")}
        return replace(self, **columns)

    @property
    def base(self) -> Float32 | None:
        """What an update is the difference to; a gradient is one already."""
        return None if self.instruction.returns == GRADIENT else self.model


@dataclass(frozen=True, eq=False)
class Trained:
    """What a cohort gave. ``refused`` are positions, each with its reason."""

    total: Total
    updates: tuple[Update, ...] = ()
    refused: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()
    loss_sum: float = 0.0
    steps: int = 0


@dataclass(frozen=True, eq=False)
class Measured:
    """What a cohort measured. ``refused`` are positions, each with its reason."""

    measures: Measures
    refused: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Scores:
    """Sums over the query of each device, before and after adaptation; columns."""

    count: Float64
    loss_before: Float64
    loss_after: Float64
    correct_before: Float64
    correct_after: Float64


class Visits(Protocol):
    """Who computes."""

    def train(self, cohort: Cohort) -> Trained:
        """Make the visits and fold what they give."""

    def measure(self, cohort: Cohort) -> Measured:
        """Make visits that send back measures alone, and merge these."""

    def evaluate(
        self, program: Program, task: Task, instruction: Instruction, model: Float32, devices: Int64
    ) -> Scores:
        """Adapt and measure on each device; nothing is kept."""


@dataclass(eq=False)
class Personal:
    """The local parameters that each device has kept: float32 [devices, local]."""

    ranges: Ranges
    values: Float32
    known: npt.NDArray[np.bool_]

    @classmethod
    def empty(cls, ranges: Ranges, devices: int) -> Personal:
        """Nothing kept yet."""
        width = sum(stop - start for start, stop in ranges)
        return cls(ranges, np.zeros((devices, width), np.float32), np.zeros(devices, bool))

    @property
    def coordinates(self) -> Int64:
        """Where the local parameters stand in the averaged vector."""
        return np.concatenate([np.arange(*pair) for pair in self.ranges])

    def keep(self, devices: Int64, values: Float32) -> None:
        """Remember the local values of these devices."""
        self.values[devices] = values
        self.known[devices] = True

    def of(self, device: int) -> bytes:
        """One device's values; empty when it has kept none."""
        return self.values[device].tobytes() if self.known[device] else b""


# ---- one at a time ---------------------------------------------------------------------------


class ObjectVisits:
    """A Learner for each Program, device after device."""

    def __init__(self, task: Task, run: int, personal: Personal | None, executor: str = "") -> None:
        self.task, self.run, self.personal = task, run, personal
        self._learner: Callable[[Program], Learner] = cache(lambda p: Learner(p, executor))

    def train(self, cohort: Cohort) -> Trained:
        """Make the visits and fold what they give."""
        total = Total.zero(cohort.model.size, cohort.rule)
        done: list[tuple[int, Outcome, Update]] = []
        refused: dict[int, str] = {}
        for at in range(cohort.devices.size):
            try:
                outcome, update = self._visit(cohort, at)
                total = self._fold(cohort, total, update, at)
                done.append((at, outcome, update))
            except (DataError, UpdateError) as error:
                refused[at] = str(error)
        self._keep(cohort, done)
        losses = np.array([outcome.measures["loss_sum"] for _, outcome, _ in done])
        steps = sum(int(outcome.measures["steps"]) for _, outcome, _ in done)
        updates = tuple(update for _, _, update in done) if cohort.keep else ()
        return Trained(
            total, updates, tuple(refused), tuple(refused.values()), float(losses.sum()), steps
        )

    def evaluate(
        self, program: Program, task: Task, instruction: Instruction, model: Float32, devices: Int64
    ) -> Scores:
        """Adapt and measure on each device; nothing is kept."""
        rows = [
            self._score(program, task, instruction, model, device) for device in devices.tolist()
        ]
        return Scores(*np.array(rows, np.float64).reshape(-1, len(_SCORES)).T)

    def measure(self, cohort: Cohort) -> Measured:
        """Make visits that send back measures alone, and merge these."""
        merged = Measures()
        refused: dict[int, str] = {}
        for at in range(cohort.devices.size):
            try:
                merged = merged.merge(Measures.of(self._outcome(cohort, at).measures))
            except (DataError, UpdateError) as error:
                refused[at] = str(error)
        return Measured(merged, tuple(refused), tuple(refused.values()))

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

    def _visit(self, cohort: Cohort, at: int) -> tuple[Outcome, Update]:
        outcome = self._outcome(cohort, at)
        return outcome, _update(cohort, at, outcome.values, outcome.ranges)

    def _outcome(self, cohort: Cohort, at: int) -> Outcome:
        device = int(cohort.devices[at])
        key = Key(self.run, cohort.round, device)
        learner = self._learner(cohort.program)
        samples = _sampler(learner, self.task, key)
        own = self.personal.of(device) if self.personal else b""
        return learner.visit(cohort.instruction, cohort.model, samples, key, own)

    def _fold(self, cohort: Cohort, total: Total, update: Update, at: int) -> Total:
        if cohort.keep:
            cohort.rule.check(delta_of(update, cohort.base, cohort.model.size))
            return total
        return total.add(update, cohort.base, float(cohort.weights[at]))

    def _keep(self, cohort: Cohort, done: list[tuple[int, Outcome, Update]]) -> None:
        if self.personal and done:
            values = [np.frombuffer(outcome.personal, np.float32) for _, outcome, _ in done]
            self.personal.keep(cohort.devices[[at for at, _, _ in done]], np.array(values))


_COLUMNS = tuple(Scores.__dataclass_fields__)
_SCORES = ("count", "loss_sum_before", "loss_sum_after", "correct_before", "correct_after")


def _sampler(learner: Learner, task: Task, key: Key) -> Callable[[str], Samples]:
    return cache(lambda part: learner.samples(*task.samples(key.run, key.round, key.device, part)))


def _update(cohort: Cohort, at: int, values: bytes, ranges: Ranges) -> Update:
    return Update(
        int(cohort.leases[at]), int(cohort.devices[at]), cohort.round, cohort.version,
        int(cohort.samples[at]), values, ranges,
    )  # fmt: skip


# ---- whole cohorts in C ----------------------------------------------------------------------


class ColumnVisits:
    """One call of the C runtime for each thread, over a range of visits."""

    def __init__(self, task: Task, run: int, personal: Personal | None, threads: int) -> None:
        from fedtiny.engine import native
        from fedtiny.engine.fleet_call import FleetCall

        self.task, self.run, self.personal = task, run, personal
        self._objects = ObjectVisits(task, run, personal, "native")
        self._call: Callable[[Program], FleetCall] = cache(
            lambda program: FleetCall(native.library(), program, threads)
        )

    def train(self, cohort: Cohort) -> Trained:
        """Make the visits and fold what they give."""
        rows = self._personal_rows(cohort)
        done = self._call(cohort.program).run(
            cohort.instruction, self.task.native(self.run, cohort.round, cohort.devices),
            cohort.model, self.run, cohort.round, cohort.devices,
            rule=cohort.rule, weight=cohort.weights, personal=rows, keep_vectors=cohort.keep,
        )  # fmt: skip
        ok = done.outcomes["status"] == 0
        if rows is not None and self.personal is not None:
            self.personal.keep(cohort.devices[ok], rows[ok][:, self.personal.coordinates])
        refused = np.flatnonzero(~ok)
        return Trained(
            self._total(cohort, done.sums, ok),
            self._updates(cohort, done.vectors, ok) if done.vectors is not None else (),
            tuple(refused.tolist()),
            tuple(self._reason(cohort, at) for at in refused),
            float(done.outcomes["loss_sum"][ok].sum()),
            int(done.outcomes["steps"][ok].sum()),
        )

    def evaluate(
        self, program: Program, task: Task, instruction: Instruction, model: Float32, devices: Int64
    ) -> Scores:
        """Adapt and measure on each device; nothing is kept."""
        rows = self._rows_of(devices, model)
        done = self._call(program).run(
            instruction, task.native(self.run, 0, devices), model, self.run, 0, devices,
            personal=rows,
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
            for name in _COLUMNS:
                getattr(scores, name)[failed] = getattr(again, name)
        return scores

    def measure(self, cohort: Cohort) -> Measured:
        """Make visits that send back measures alone, and merge these."""
        return self._objects.measure(cohort)

    def _total(self, cohort: Cohort, sums: Int64 | None, ok: npt.NDArray[np.bool_]) -> Total:
        assert sums is not None
        if cohort.keep:
            return Total.zero(cohort.model.size, cohort.rule)
        ranges = cohort.program.sent_ranges(cohort.instruction)
        return Total.from_sums(cohort.rule, sums, ranges, cohort.weights[ok])

    def _updates(
        self, cohort: Cohort, vectors: Float32, ok: npt.NDArray[np.bool_]
    ) -> tuple[Update, ...]:
        ranges = cohort.program.sent_ranges(cohort.instruction)
        sent = [np.arange(*pair) for pair in ranges]
        values = vectors[:, np.concatenate(sent)]
        return tuple(
            _update(cohort, at, values[at].tobytes(), ranges) for at in np.flatnonzero(ok).tolist()
        )

    def _personal_rows(self, cohort: Cohort) -> Float32 | None:
        return self._rows_of(cohort.devices, cohort.model)

    def _rows_of(self, devices: Int64, model: Float32) -> Float32 | None:
        """The model once for each device, with its own values where it has kept some."""
        if self.personal is None:
            return None
        rows = np.repeat(model[None], devices.size, axis=0)
        known = np.flatnonzero(self.personal.known[devices])
        rows[np.ix_(known, self.personal.coordinates)] = self.personal.values[devices[known]]
        return rows

    def _reason(self, cohort: Cohort, at: np.int64) -> str:
        """Why C refused a visit, in the words of the objects."""
        again = self._objects.train(cohort.take(np.array([at])))
        if not again.reasons:
            raise RunError(f"device {cohort.devices[at]} failed in C, but not in Python")
        return again.reasons[0]
