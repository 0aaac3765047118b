"""After the last round devices meet streams that drift, and learn from them sample by sample.

It takes no virtual time and changes no model of the run. Sections that differ in their gate alone
meet the same streams, so that gates are compared like for like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.device.learner import Key, Learner
from fedtiny.device.streaming import FIRST, NEW, STREAM, Met, Streaming
from fedtiny.errors import CompileError, DataError
from fedtiny.experiment.online import (
    Cost,
    Scores,
    gate_of,
    instruction_of,
    stream_of,
    summary,
)  # fmt: skip
from fedtiny.registry.cost import BoardColumns, visit_cost
from fedtiny.simulator.evaluation import fitted, resized
from fedtiny.tensors import floats
from fedtiny.values import QUERY, SUPPORT, Instruction, Masks

if TYPE_CHECKING:
    from fedtiny.data.streams import Drawn
    from fedtiny.data.tables import Samples, Task
    from fedtiny.device.learner import Samples as DeviceSamples
    from fedtiny.engine.program import Program
    from fedtiny.experiment import Experiment
    from fedtiny.experiment.schema import Online
    from fedtiny.experiment.workload import Workload
    from fedtiny.simulator.fleet import Fleet
    from fedtiny.simulator.keeping import Keeping
    from fedtiny.tensors import Float32, Float64, Int64


@dataclass(frozen=True, eq=False)
class _Visited:
    """One device, its Program, what it came to, and what each sample of the new domain that it was
    judged on counts for."""

    device: int
    program: Program
    met: Met
    weight: Float64


@dataclass(frozen=True, eq=False)
class Meeting:
    """One ``[online.NAME]``, ready to run: a Program of batch 1 for each kind of device that it
    fits, and the boards of the whole fleet."""

    name: str
    asked: Online
    experiment: Experiment
    task: Task
    instruction: Instruction
    programs: tuple[tuple[Program, Int64], ...]
    boards: BoardColumns

    @classmethod
    def of(cls, name: str, asked: Online, work: Workload, fleet: Fleet) -> Meeting:
        """What an experiment asks for.

        Raises RunError when it fits none of the devices, CompileError where the net cannot learn
        from one sample, DataError when a device has too few.
        """
        section, instruction, experiment = f"online.{name}", instruction_of(asked), work.experiment
        every = np.concatenate([fleet.training, fleet.held_out])
        devices = every if asked.devices == "all" else fleet.held_out
        try:
            task = resized(work.task, section, asked)
            programs = fitted(section, work, fleet, devices, 1, instruction)
            meeting = cls(name, asked, experiment, task, instruction, programs, fleet.boards)
            meeting._check_supply()
        except (CompileError, DataError) as error:
            batch = " learns at batch 1" if isinstance(error, CompileError) else ""
            place = experiment.origin.place(("online", name))
            error.args = (f"{place}: {section}{batch}: {error}",)
            raise
        return meeting

    def run(self, model: Float32, keeping: Keeping, masks: Masks = ()) -> dict[str, Any]:
        """Means over devices with 95 % intervals: a row of the history.

        Devices without a sample to meet, or to be judged on, are left out.
        """
        asked = replace(self.instruction, masks=masks) if masks else self.instruction
        done = list(self._visits(asked, model, keeping))
        scores, labelled = _scores(done, self.asked.samples), self.task.classes is not None
        return summary(self.asked, scores, self._cost(done), labelled)

    def _visits(self, asked: Instruction, model: Float32, keeping: Keeping) -> Iterator[_Visited]:
        base, seed = floats(model), self.experiment.seed
        stream, gate = stream_of(self.asked), gate_of(self.asked)
        for program, devices in self.programs:
            learner, own = Learner(program), asked.of(program.density)
            for device, given, judged in self._supplied(devices):
                drawn = stream.drawn(seed, device, given, judged)
                samples_of = _sampler(learner, drawn)
                key, kept = Key(seed, 0, device), keeping.of(device)
                visit = Streaming(learner, own, base, samples_of, key, kept)
                yield _Visited(device, program, visit.meet(gate), drawn.weight)

    def _supplied(self, devices: Int64) -> Iterator[tuple[int, Samples, Samples]]:
        """Those that have samples to meet and to be judged on, each with these."""
        seed = self.experiment.seed
        for device in devices.tolist():
            given, judged = (self.task.samples(seed, 0, device, p) for p in (SUPPORT, QUERY))
            if len(given[0]) and len(judged[0]):
                yield device, given, judged

    def _check_supply(self) -> None:
        """Raises DataError where a device has too few samples."""
        for _, devices in self.programs:
            for device, (_, y), _ in self._supplied(devices):
                stream_of(self.asked).rows(self.experiment.seed, device, y)

    def _cost(self, done: Sequence[_Visited]) -> Cost:
        """Of one step on each of the devices."""
        macs = np.array([one.program.footprint.macs_per_step for one in done], np.float64)
        boards = self.boards.take(np.array([one.device for one in done], np.int64))
        cost = visit_cost(boards, macs=macs, download_bytes=0, upload_bytes=0)
        return Cost(macs, cost.compute_s, cost.joules)


def _sampler(learner: Learner, drawn: Drawn) -> Callable[[str], DeviceSamples]:
    sets = {STREAM: drawn.stream, FIRST: drawn.first, NEW: drawn.new}
    return cache(lambda name: learner.samples(*sets[name]))


def _scores(done: Sequence[_Visited], samples: int) -> Scores:
    return Scores(
        met=np.array([one.met.scores for one in done], np.float64).reshape(-1, samples),
        adapted=np.array([one.met.adapted for one in done], np.bool_).reshape(-1, samples),
        first_before=np.array([np.mean(one.met.first_before) for one in done]),
        first_after=np.array([np.mean(one.met.first_after) for one in done]),
        new_before=np.array([one.weight @ one.met.new_before for one in done]),
        new_after=np.array([one.weight @ one.met.new_after for one in done]),
        diverged=np.array([one.met.diverged for one in done], np.bool_),
    )
