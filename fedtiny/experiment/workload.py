"""What an experiment names, built: the net, the task, the strategy, a Program for each board."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fedtiny.data.tables import Task
from fedtiny.engine.compile import Compilable, compile
from fedtiny.engine.program import FEATURES, Program
from fedtiny.errors import BudgetError, ExperimentError, StrategyError
from fedtiny.experiment import Experiment
from fedtiny.registry.cost import BoardColumns, VisitCost, visit_cost
from fedtiny.registry.match import misfits
from fedtiny.rounds.machine import Rules
from fedtiny.strategies import calls
from fedtiny.strategies.base import Round, Strategy
from fedtiny.values import (
    CALIBRATE,
    EVALUATE,
    QUERY,
    SUPPORT,
    TRAIN,
    Instruction,
    Layout,
    Sgd,
)
from fedtiny.wire.visit import VisitBytes, visit_bytes

if TYPE_CHECKING:
    from fedtiny.tensors import Float32, Int64


@dataclass(frozen=True)
class Profile:
    """One board of the fleet: the Program made for it, and the reasons why that does not fit."""

    name: str
    needed: Program
    reasons: tuple[str, ...]

    @property
    def program(self) -> Program | None:
        """The Program that it runs, if it fits."""
        return None if self.reasons else self.needed


@dataclass(frozen=True)
class Workload:
    """What is trained, on what, and how: the parts that an experiment names, built."""

    experiment: Experiment
    net: Compilable
    task: Task
    strategy: Strategy

    @classmethod
    def of(cls, experiment: Experiment) -> Workload:
        """Build the model, the task and the strategy. Raises ExperimentError or StrategyError."""
        if experiment.fleet.drop_out >= 1:
            raise ExperimentError(
                f"fleet.drop_out = {experiment.fleet.drop_out:g}: no device would ever come back; "
                "it must be in [0, 1)"
            )
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
    def instruction(self) -> Instruction:
        """What the first round asks."""
        rounds = max(1, self.experiment.run.rounds)
        state = calls.start(self.strategy, self.layout, np.zeros(self.layout.size, np.float32))
        return calls.ask(self.strategy, Round(0, rounds), state, self.layout)

    def rules(self, seed: int) -> Rules:
        """The rules of the rounds; ``seed`` keys the choice of devices."""
        run = self.experiment.run
        return Rules(
            rounds=run.rounds,
            cohort=self.strategy.cohort,
            deadline_s=run.deadline,
            minimum=run.minimum,
            over_selection=run.leases_per_update,
            seed=seed,
        )

    @property
    def reserved(self) -> Sgd:
        """What the Programs are compiled with: for the first round, and what else may come."""
        pairs = ((getattr(sgd, f.name) for sgd in (self.instruction.sgd, self.strategy.reserve))
                 for f in fields(Sgd))  # fmt: skip
        return Sgd(*map(max, pairs))

    @cached_property
    def profiles(self) -> tuple[Profile, ...]:
        """The boards of the fleet, each with its Program for the strategy's rounds."""
        return tuple(self._fit_rounds(name) for name in self.experiment.fleet.profiles)

    def _fit_rounds(self, name: str) -> Profile:
        """The board with its Program, which must also be of use to the rounds."""
        fitted = self.fit(name)
        if fitted.reasons:
            return fitted
        return replace(fitted, reasons=tuple(self._hindrances(name, fitted.needed)))

    def _hindrances(self, name: str, program: Program) -> Iterator[str]:
        """Why a Program that fits the board would do nothing for a round."""
        if self.instruction.kind == TRAIN and not program.sent_ranges(self.instruction):
            yield (
                f"{name}: its plan trains only parameters that stay on the device: nothing to "
                "send; choose another plan"
            )
        shortest_s, deadline_s = self._shortest_s(name, program), self.experiment.run.deadline
        if shortest_s >= deadline_s:
            yield (
                f"{name}: its shortest visit takes {shortest_s:.3g} s, the deadline is "
                f"{deadline_s:g} s; raise run.deadline, or train on fewer samples"
            )

    def _shortest_s(self, name: str, program: Program) -> float:
        """Seconds of the visit with the fewest samples among those that have any."""
        support = self.counts[SUPPORT] + self.counts[QUERY]
        some = {part: column[support > 0] for part, column in self.counts.items()}
        cost = self.cost(name, program, some)
        return float(cost.seconds.min(initial=np.inf)) if some[SUPPORT].size else 0.0

    def cost(self, name: str, program: Program, counts: Mapping[str, Any]) -> VisitCost:
        """What visits of the first round with so many samples cost a board of that name."""
        visit = self.visit_bytes(program, self.instruction)
        return visit_cost(
            BoardColumns.of([self.experiment.profile(name)]),
            macs=self.instruction.macs(counts, program.footprint),
            download_bytes=visit.down,
            upload_bytes=visit.up,
            samples=self.instruction.used(counts, program.batch)[1],
            sample_period_s=self.experiment.data.sample_period,
        )

    def visit_bytes(self, program: Program, asked: Instruction) -> VisitBytes:
        """What a visit of such a round carries."""
        sent = program.sent_ranges(asked)
        return visit_bytes(asked, self.layout.size, sent, measured(program, asked))

    def check(self, round: Round, asked: Instruction) -> None:
        """StrategyError if a Program of the fleet cannot carry out what a round asks."""
        if asked == self.instruction:  # the Programs are made for it
            return
        for program in (p.program for p in self.profiles if p.program):
            for flaw in _flaws(program, asked):
                raise StrategyError(
                    f"{type(self.strategy).__name__}.ask in round {round.t:,} of {round.T:,} {flaw}"
                )

    def fit(self, name: str, batch: int = 0, sgd: Sgd | None = None) -> Profile:
        """The board of that name, with a Program of another batch or other rules if given."""
        budget = self.experiment.budget(name)
        try:
            program = compile(
                self.net,
                loss=self.loss,
                ram=budget.ram_bytes,
                flash=budget.flash_bytes,
                batch=batch or budget.batch,
                plan=budget.plan,
                sgd=sgd or self.reserved,
                reserve=budget.reserve_bytes,
            )
        except BudgetError as error:
            return Profile(name, cast("Program", error.program), (f"{name}: {error}",))
        card = self.experiment.profile(name).card()
        return Profile(name, program, misfits(program.footprint, card))

    @cached_property
    def initial(self) -> Float32:
        """The model before the first round."""
        return np.asarray(self.profiles[0].needed.initial(self.experiment.seed))

    @cached_property
    def counts(self) -> dict[str, Int64]:
        """How many samples each device has, by part; columns."""
        devices = np.arange(self.experiment.fleet.devices)
        support, query = self.task.counts(self.experiment.seed, devices).T
        return {SUPPORT: support, QUERY: query}


def measured(program: Program, asked: Instruction) -> tuple[str, ...]:
    """The names of what a visit measures, as a Learner gives them."""
    if asked.kind == TRAIN:
        return ("loss_sum", "steps")
    if asked.kind == EVALUATE:
        return (
            *(f"{n}_{at}" for n in ("loss_sum", "correct") for at in ("before", "after")),
            "count",
        )
    if asked.kind == CALIBRATE:
        moments = ("count", "sum", "sum_squares", "min", "max")
        return tuple(f"{name}.{what}" for name in program.forward_names for what in moments)
    return (*(f"loss_sum.{index}" for index in range(len(asked.candidates))), "count")


def _check_fit(experiment: Experiment, net: Compilable, task: Task) -> None:
    graph = net.graph(1)
    takes, gives = graph.tensors[graph.input].size, graph.tensors[graph.output].size
    if (takes, gives) != (task.features, task.outputs):
        raise ExperimentError(
            f"the model {experiment.model.build} takes {takes} features and gives {gives}; the "
            f"data {experiment.data.source} have {task.features} features and need {task.outputs} "
            "outputs"
        )


def _flaws(program: Program, asked: Instruction) -> Iterator[str]:
    """What of an instruction the Program cannot carry out."""
    # The gradient is returned in the memory of the momentum.
    sgd, bits = asked.sgd, FEATURES | {"gradient": FEATURES["momentum"]}
    for feature, bit in bits.items():
        if getattr(sgd, feature) and not program.tables.features & bit:
            yield (
                f"uses {feature}, for which the Programs have no memory; ask for it in round 0 "
                f"too, or declare `reserve: ClassVar[Sgd] = Sgd({feature}=...)`"
            )
    if asked.kind == TRAIN and not program.sent_ranges(asked):
        yield (
            "trains groups of which a Program of the fleet sends nothing; name others, or change "
            "the plan"
        )
