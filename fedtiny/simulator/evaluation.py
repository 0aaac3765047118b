"""Devices adapt on their support and are judged on their query, before and after: those that are
held out, or those that train, with what they have kept.

Evaluation takes no virtual time: it observes the run. Every evaluation of a run meets the same
samples (those of round 0), so that two rounds, or two strategies, are compared like for like.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.data.tables import Task
from fedtiny.engine.program import Program
from fedtiny.errors import ExperimentError, RunError
from fedtiny.experiment.evaluation import Scores, instruction_of, summary
from fedtiny.experiment.schema import Evaluation
from fedtiny.experiment.workload import Workload
from fedtiny.simulator.fleet import Fleet
from fedtiny.simulator.visits import Workers
from fedtiny.values import Instruction, Masks

if TYPE_CHECKING:
    from fedtiny.tensors import Float32, Int64


@dataclass(frozen=True, eq=False)
class Adaptation:
    """One way to adapt, ready to run: a Program for each kind of device to judge that it fits."""

    name: str
    task: Task
    instruction: Instruction
    programs: tuple[tuple[Program, Int64], ...]

    @classmethod
    def of(cls, name: str, asked: Evaluation, workload: Workload, fleet: Fleet) -> Adaptation:
        """What an experiment asks for. Raises RunError when it fits none of the devices."""
        instruction = instruction_of(asked)
        fitted = [workload.fit(p.name, asked.batch, instruction.sgd) for p in fleet.profiles]
        judged = fleet.training if asked.trained else fleet.held_out
        kind = fleet.profile[judged]
        programs = tuple(
            (p.program, judged[kind == i])
            for i, p in enumerate(fitted)
            if p.program and (kind == i).any()
        )
        if not programs:
            reasons = "; ".join(r for p in fitted for r in p.reasons)
            raise RunError(f"evaluation {name!r} fits no {asked.devices} device: {reasons}")
        return cls(name, _resized(workload.task, name, asked), instruction, programs)

    def run(self, workers: Workers, model: Float32, masks: Masks = ()) -> dict[str, Any]:
        """Means over devices with 95 % intervals: a row of the history."""
        asked = replace(self.instruction, masks=masks) if masks else self.instruction
        parts = [
            workers.evaluate(program, self.task, asked, model, devices)
            for program, devices in self.programs
        ]
        columns = ([getattr(part, f.name) for part in parts] for f in fields(Scores))
        return summary(Scores(*map(np.concatenate, columns)), self.task.classes is not None)


def _resized(task: Task, name: str, asked: Evaluation) -> Task:
    """The task with the adaptation's own number of samples."""
    sizes = {key: getattr(asked, key) for key in ("support", "query") if getattr(asked, key)}
    if not sizes:
        return task
    if not all(hasattr(task, key) for key in sizes):
        raise ExperimentError(
            f"evaluate.{name} sets {', '.join(sizes)}, which {type(task).__name__} has not; "
            "set the sizes in [data]"
        )
    resized: Task = replace(task, **sizes)  # type: ignore[type-var]
    return resized
