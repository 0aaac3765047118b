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
from fedtiny.experiment.schema import Evaluation, Online
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
        instruction, section = instruction_of(asked), f"evaluate.{name}"
        judged = fleet.training if asked.trained else fleet.held_out
        programs = fitted(section, workload, fleet, judged, asked.batch, instruction)
        return cls(name, resized(workload.task, section, asked), instruction, programs)

    def run(self, workers: Workers, model: Float32, masks: Masks = ()) -> dict[str, Any]:
        """Means over devices with 95 % intervals: a row of the history."""
        asked = replace(self.instruction, masks=masks) if masks else self.instruction
        parts = [
            workers.evaluate(program, self.task, asked, model, devices)
            for program, devices in self.programs
        ]
        columns = ([getattr(part, f.name) for part in parts] for f in fields(Scores))
        return summary(Scores(*map(np.concatenate, columns)), self.task.classes is not None)


def fitted(
    section: str,
    workload: Workload,
    fleet: Fleet,
    devices: Int64,
    batch: int,
    instruction: Instruction,
) -> tuple[tuple[Program, Int64], ...]:
    """A Program for each kind of these devices that it fits, and who they are.

    Raises RunError when it fits none of them.
    """
    made = [workload.fit(p.name, batch, instruction.sgd) for p in fleet.profiles]
    kind = fleet.profile[devices]
    programs = tuple(
        (p.program, devices[kind == i])
        for i, p in enumerate(made)
        if p.program and (kind == i).any()
    )
    if not programs:
        reasons = "; ".join(r for p in made for r in p.reasons)
        raise RunError(f"{section} fits none of its {devices.size:,} devices: {reasons}")
    return programs


def resized(task: Task, section: str, asked: Evaluation | Online) -> Task:
    """The task with a section's own number of samples."""
    sizes = {key: getattr(asked, key) for key in ("support", "query") if getattr(asked, key)}
    if not sizes:
        return task
    if not all(hasattr(task, key) for key in sizes):
        raise ExperimentError(
            f"{section} sets {', '.join(sizes)}, which {type(task).__name__} has not; "
            "set the sizes in [data]"
        )
    changed: Task = replace(task, **sizes)  # type: ignore[type-var]
    return changed
