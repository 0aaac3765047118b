"""The simulated fleet in columns: who is what board, who may train, with which Program.

What a run needs besides is made here too, once: the net, the task, the strategy, and a Program for
each profile whose budget the model fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fedtiny import draws
from fedtiny.data.tables import Task
from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile
from fedtiny.engine.program import Program
from fedtiny.errors import BudgetError, ExperimentError, RunError
from fedtiny.experiment import Experiment
from fedtiny.experiment.explain import Row, Visit, explain
from fedtiny.registry.cost import BoardColumns
from fedtiny.registry.match import misfits
from fedtiny.rng import Purpose
from fedtiny.strategies import calls
from fedtiny.strategies.base import Round, Strategy
from fedtiny.values import (
    QUERY,
    SUPPORT,
    Footprint,
    Instruction,
    Layout,
    Ranges,
    Sgd,
)  # fmt: skip

if TYPE_CHECKING:
    from fedtiny.tensors import Float32, Int64

    Column = Int64

WHOLE_BOARD = 1 << 62
"""RAM and flash of a device without a limit."""


@dataclass(frozen=True)
class Workload:
    """What is trained, on what, and how: the parts that an experiment names, built."""

    experiment: Experiment
    net: Net
    task: Task
    strategy: Strategy

    @classmethod
    def of(cls, experiment: Experiment) -> Workload:
        """Build the model, the task and the strategy. Raises ExperimentError or StrategyError."""
        net, task = experiment.build_net(), experiment.build_task()
        _check_fit(experiment, net, task)
        return cls(experiment, net, task, experiment.build_strategy())

    @property
    def loss(self) -> str:
        """The loss that fits the task's labels."""
        return "mse" if self.task.classes is None else "cross_entropy"

    @cached_property
    def layout(self) -> Layout:
        """What is averaged."""
        return self.net.graph(1).layout

    @cached_property
    def initial(self) -> Float32:
        """The model before the first round."""
        name = next(iter(self.experiment.fleet.profiles))
        return np.asarray(self.compile(name, limited=False).initial(self.experiment.seed))

    @cached_property
    def instruction(self) -> Instruction:
        """What the first round asks: it tells what memory the Programs must reserve."""
        rounds = max(1, self.experiment.run.rounds)
        state = calls.start(self.strategy, self.layout, np.zeros(self.layout.size, np.float32))
        return calls.ask(self.strategy, Round(0, rounds), state)

    def compile(
        self, profile: str, batch: int = 0, sgd: Sgd | None = None, limited: bool = True
    ) -> Program:
        """The Program of a profile. Raises BudgetError when it does not fit."""
        budget = self.experiment.budget(profile)
        return compile(
            self.net,
            loss=self.loss,
            ram=budget.ram_bytes if limited else WHOLE_BOARD,
            flash=budget.flash_bytes if limited else WHOLE_BOARD,
            batch=batch or budget.batch,
            plan=budget.plan,
            sgd=sgd or self.instruction.sgd,
            reserve=budget.reserve_bytes,
        )

    def samples(self, devices: Column) -> dict[str, Column]:
        """How many samples each device has, by part."""
        support, query = self.task.counts(self.experiment.seed, devices).T
        return {SUPPORT: support, QUERY: query}


def _check_fit(experiment: Experiment, net: Net, task: Task) -> None:
    graph = net.graph(1)
    takes, gives = graph.tensors[graph.input].shape[1], graph.tensors[graph.output].shape[1]
    if (takes, gives) != (task.features, task.outputs):
        raise ExperimentError(
            f"the model {experiment.model.build} takes {takes} features and gives {gives}; the "
            f"data {experiment.data.source} have {task.features} features and need {task.outputs} "
            "outputs"
        )


@dataclass(frozen=True)
class Profile:
    """One board of the fleet with its Program, or the reasons why none fits."""

    name: str
    program: Program | None
    reasons: tuple[str, ...]
    needed: Program


@dataclass(frozen=True)
class Fleet:
    """The devices in columns. ``profile[d]`` is an index of ``profiles``.

    Attributes:
        training: Devices that a Program fits and that are not held out, ascending.
        held_out: Devices that never train.
    """

    profiles: tuple[Profile, ...]
    profile: Column
    training: Column
    held_out: Column
    boards: BoardColumns

    @classmethod
    def of(cls, workload: Workload) -> Fleet:
        """The fleet of an experiment. Raises RunError when no device can take part."""
        experiment = workload.experiment
        names = tuple(experiment.fleet.profiles)
        profiles = tuple(fit(workload, name) for name in names)
        profile = _assign(experiment)
        able = np.array([not p.reasons for p in profiles])[profile]
        count, held_out = experiment.fleet.devices, experiment.fleet.held_out
        training = np.flatnonzero(able[: count - held_out])
        if not training.size:
            reasons = "; ".join(r for p in profiles for r in p.reasons)
            raise RunError(f"none of the {count:,} devices can take part: {reasons}")
        boards = BoardColumns.of([experiment.profile(name) for name in names]).take(profile)
        return cls(profiles, profile, training, np.arange(count - held_out, count), boards)

    @property
    def unfit(self) -> int:
        """How many devices no Program fits."""
        unfit = np.array([bool(p.reasons) for p in self.profiles])
        return int(unfit[self.profile].sum())

    def counts(self) -> list[int]:
        """Devices of each profile."""
        return [int((self.profile == i).sum()) for i in range(len(self.profiles))]

    def split(self, devices: Column) -> list[tuple[Profile, Column]]:
        """The devices by Program: positions within ``devices``."""
        if len(self.profiles) == 1:
            return [(self.profiles[0], np.arange(devices.size))]
        owner = self._distinct[self.profile[devices]]
        return [(self.profiles[i], np.flatnonzero(owner == i)) for i in np.unique(owner)]

    @cached_property
    def _distinct(self) -> Column:
        """For each profile, the first with the same Program."""
        digests = [p.program.digest if p.program else "" for p in self.profiles]
        return np.array([digests.index(d) for d in digests])


def fit(workload: Workload, name: str, batch: int = 0, sgd: Sgd | None = None) -> Profile:
    """The Program of a profile, or why it has none."""
    needed = workload.compile(name, batch, sgd, limited=False)
    try:
        program = workload.compile(name, batch, sgd)
    except BudgetError as error:
        return Profile(name, None, (f"{name}: {error}",), needed)
    reasons = misfits(program.footprint, workload.experiment.profile(name).card())
    return Profile(name, None if reasons else program, reasons, needed)


def _assign(experiment: Experiment) -> Column:
    """A profile for each device: exact shares, in a drawn order."""
    count, shares = experiment.fleet.devices, experiment.fleet.profiles
    words = draws.words(experiment.seed, 0, np.arange(count), Purpose.PROFILE, 1)[:, 0]
    bounds = np.rint(np.cumsum(list(shares.values())) * count).astype(np.int64)
    profile = np.empty(count, np.int64)
    profile[np.argsort(words, kind="stable")] = np.searchsorted(bounds, np.arange(count), "right")
    return np.minimum(profile, len(shares) - 1)


# ---- before anything runs --------------------------------------------------------------------


def explained(experiment: Experiment) -> list[Row]:
    """What each profile needs and what a visit costs it; see `fedtiny.experiment.explain`."""
    workload = Workload.of(experiment)
    counted = workload.samples(np.arange(experiment.fleet.devices))
    counts = {part: float(column.mean()) for part, column in counted.items()}
    programs: dict[str, Program] = {}

    def compile_for(name: str) -> Footprint:
        program = workload.compile(name)
        programs[program.digest] = program
        return program.footprint

    def visit_of(footprint: Footprint) -> Visit:
        instruction = workload.instruction
        steps, samples = instruction.used(counts, footprint.batch)
        ranges = programs[footprint.program].sent_ranges(instruction)
        macs = round(steps * footprint.macs_per_step)
        return Visit(macs, round(samples), 4 * workload.layout.size, 4 * length(ranges))

    return explain(experiment, compile_for, visit_of, workload.strategy.cohort)


def length(ranges: Ranges) -> int:
    """How many coordinates the ranges hold."""
    return sum(stop - start for start, stop in ranges)
