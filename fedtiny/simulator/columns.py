"""Whole cohorts at once: one call of the C runtime for each thread, over a range of visits.

What C cannot do goes to the objects, which are its judge: visits that measure or grow, that look a
step ahead, or that have a control variate or a model of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.data.tables import Task
from fedtiny.device.learner import Outcome
from fedtiny.engine.fleet_call import FleetCall
from fedtiny.engine.native import Status
from fedtiny.engine.program import Program
from fedtiny.errors import DataError
from fedtiny.experiment.evaluation import Scores
from fedtiny.fold import Total, covered
from fedtiny.layout import coordinates
from fedtiny.masks import remembered
from fedtiny.rounds import calibration
from fedtiny.simulator.attacks import Attackers
from fedtiny.simulator.keeping import Keeping
from fedtiny.simulator.visits import (
    Cohort,
    ObjectWorkers,
    Visited,
    in_pieces,
    is_collected,
    told,
)
from fedtiny.values import LOCAL_VALUES, OWN_MODEL, RESIDUAL, Instruction

if TYPE_CHECKING:
    from fedtiny.engine.fleet_call import Visits
    from fedtiny.masks import Mask
    from fedtiny.rounds.content import OpenRound, Part
    from fedtiny.tensors import Float32, Int64


class ColumnWorkers:
    """One call of the C runtime for each thread, over a range of visits."""

    def __init__(
        self, task: Task, run: int, keeping: Keeping, attackers: Attackers | None, threads: int
    ) -> None:
        self.task, self.run, self.keeping, self.attackers = task, run, keeping, attackers
        self._objects = ObjectWorkers(task, run, keeping, attackers, "native")
        self._pool = ThreadPoolExecutor(threads)
        self._call: Callable[[Program], FleetCall] = cache(
            lambda program: FleetCall(program, self._pool, threads)
        )

    def visit(self, cohort: Cohort) -> Visited:
        """Make the visits; fold what they send back, or merge what they measure."""
        if not _runs_in_c(cohort.open):
            return self._objects.visit(cohort)
        try:
            samples = self.task.native(self.run, cohort.open.round.t, cohort.devices)
        except DataError:  # one device's samples are bad: the objects find out whose
            return self._objects.visit(cohort)
        return self._visit(cohort, samples)

    def _visit(self, cohort: Cohort, samples: Any) -> Visited:
        rows = self._rows(cohort.program, cohort.devices, cohort.open.model)
        done = self._run(cohort, samples, rows)
        figures, refused = done.outcomes, self._refused(cohort, done)
        good = np.flatnonzero(figures["status"] == 0)
        if done.vectors is None:
            part, exact_bytes = _summed(cohort, done, good), 0
        else:
            part, reasons, exact_bytes = self._collected(cohort, done, good)
            why = {at: reason for at, reason in zip(good.tolist(), reasons, strict=True) if reason}
            good = good[[not reason for reason in reasons]]
            refused = dict(sorted({**refused, **why}.items()))
        if rows is not None and good.size:
            local = rows[np.ix_(good, coordinates(cohort.program.local_ranges))]
            self.keeping.keep(LOCAL_VALUES, cohort.devices[good], local)
        return Visited(
            part, refused=tuple(refused), reasons=tuple(refused.values()),
            loss_sum=float(figures["loss_sum"][good].sum()),
            steps=int(figures["steps"][good].sum()), exact_bytes=exact_bytes,
        )  # fmt: skip

    def _run(self, cohort: Cohort, samples: Any, rows: Float32 | None) -> Visits:
        """Each visit's vector, or the sums of their deltas."""
        round, asked, program = cohort.open, cohort.instruction, cohort.program
        apart = is_collected(round, self.attackers)
        return self._call(program).run(
            asked, samples, round.model, self.run, round.round.t, cohort.devices,
            rule=None if apart else round.rule, weight=None if apart else cohort.weights,
            personal=rows, mask=_mask(program, asked), keep_vectors=apart,
        )  # fmt: skip

    def _refused(self, cohort: Cohort, done: Visits) -> dict[int, str]:
        """Why C refused visits, in the words of the objects."""
        status = done.outcomes["status"]
        return {
            at: self._objects.refusal(cohort, at) or Status(status[at]).meaning
            for at in np.flatnonzero(status).tolist()
        }

    def _collected(self, cohort: Cohort, done: Visits, good: Int64) -> tuple[Part, list[str], int]:
        """The part of these visits, each by itself; why some are refused; bytes of the others."""
        if not good.size:
            return cohort.open.nothing, [], 0
        at = good.tolist()
        outcomes = told(
            cohort, at, _outcomes(cohort, done, at), self.attackers, self.keeping, self.run
        )
        updates = [cohort.update(*pair) for pair in zip(at, outcomes, strict=True)]
        part, reasons = cohort.open.add_all(cohort.open.nothing, updates)
        counted = [i for i, reason in enumerate(reasons) if not reason]
        left = {at[i]: outcomes[i].kept[RESIDUAL] for i in counted if outcomes[i].kept}
        if left:
            rows = np.array([np.frombuffer(one, np.float32) for one in left.values()])
            self.keeping.keep(RESIDUAL, cohort.devices[list(left)], rows)
        return part, reasons, sum(cohort.exact_bytes(updates[i]) for i in counted)

    def evaluate(
        self, program: Program, task: Task, instruction: Instruction, model: Float32, devices: Int64
    ) -> Scores:
        """Adapt and measure on each device; nothing is kept."""
        parts = [
            self._evaluate(program, task, instruction, model, piece)
            for piece in in_pieces(devices, model.nbytes if program.local_ranges else 0)
        ]
        columns = ([getattr(part, f.name) for part in parts] for f in fields(Scores))
        return Scores(*map(np.concatenate, columns))

    def _evaluate(
        self, program: Program, task: Task, instruction: Instruction, model: Float32, devices: Int64
    ) -> Scores:
        if program.range_parameters and calibration.is_due(program.layout, model):
            return self._objects.evaluate(program, task, instruction, model, devices)
        try:
            samples = task.native(self.run, 0, devices)
        except DataError:  # one device's samples are bad: the objects find out whose
            return self._objects.evaluate(program, task, instruction, model, devices)
        asked = instruction.of(program.density)
        done = self._call(program).run(
            asked, samples, model, self.run, 0, devices,
            personal=self._rows(program, devices, model), mask=_mask(program, asked),
        )  # fmt: skip
        before, after = done.outcomes["before"], done.outcomes["after"]
        after = after if instruction.phases else before
        columns = (
            before["count"], before["loss_sum"], after["loss_sum"], before["correct"],
            after["correct"],
        )  # fmt: skip
        scores = Scores(*(column.astype(np.float64) for column in columns))
        # the objects judge who diverged, or has no samples, or a model of its own
        again = (done.outcomes["status"] != 0) | self.keeping.known(OWN_MODEL, devices)
        if again.any():
            found = self._objects.evaluate(program, task, instruction, model, devices[again])
            for column in fields(Scores):
                getattr(scores, column.name)[again] = getattr(found, column.name)
        return scores

    def close(self) -> None:
        """No more work will come."""
        self._pool.shutdown()

    def _rows(self, program: Program, devices: Int64, model: Float32) -> Float32 | None:
        """The model once for each device, with its own values where it has kept some."""
        if not program.local_ranges:
            return None
        rows = np.repeat(model[None], devices.size, axis=0)
        known = np.flatnonzero(self.keeping.known(LOCAL_VALUES, devices))
        if known.size:
            kept = self.keeping.values(LOCAL_VALUES, devices[known])
            rows[np.ix_(known, coordinates(program.local_ranges))] = kept
        return rows


def _runs_in_c(round: OpenRound) -> bool:
    asked = round.instruction
    beyond = asked.grow or asked.control or asked.own or any(p.ahead for p in asked.phases)
    return round.trains and not beyond


def _mask(program: Program, asked: Instruction) -> Mask | None:
    """The live coordinates of a Program with a density."""
    return remembered(asked.mask, program.layout) if asked.mask is not None else None


def _summed(cohort: Cohort, done: Visits, good: Int64) -> Part:
    """What C has folded."""
    assert done.sums is not None
    ranges = cohort.program.sent_ranges(cohort.instruction)
    mask, weights = _mask(cohort.program, cohort.instruction), cohort.weights[good]
    return Total.from_sums(cohort.open.rule, done.sums, ranges, weights, mask)


def _outcomes(cohort: Cohort, done: Visits, good: list[int]) -> list[Outcome]:
    """What a Learner would have given, but for what it keeps."""
    assert done.vectors is not None
    ranges = cohort.program.sent_ranges(cohort.instruction)
    mask, figures = _mask(cohort.program, cohort.instruction), done.outcomes
    values = done.vectors[:, covered((ranges, mask))]
    return [
        Outcome(
            values[at].tobytes(), ranges, int(cohort.samples[at]),
            {name: float(figures[name][at]) for name in ("loss_sum", "steps")}, mask=mask,
        )
        for at in good
    ]  # fmt: skip
