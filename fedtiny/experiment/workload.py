"""What an experiment names, built: the net, the task, the strategy, a Program for each board."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np

from fedtiny.data.tables import Task
from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile
from fedtiny.engine.program import Program
from fedtiny.errors import BudgetError, ExperimentError
from fedtiny.experiment import Experiment
from fedtiny.registry.match import misfits
from fedtiny.strategies import calls
from fedtiny.strategies.base import Round, Strategy
from fedtiny.values import QUERY, SUPPORT, Instruction, Layout, Sgd

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
    def instruction(self) -> Instruction:
        """What the first round asks: it tells what memory the Programs must reserve."""
        rounds = max(1, self.experiment.run.rounds)
        state = calls.start(self.strategy, self.layout, np.zeros(self.layout.size, np.float32))
        return calls.ask(self.strategy, Round(0, rounds), state)

    @cached_property
    def profiles(self) -> tuple[Profile, ...]:
        """The boards of the fleet, each with its Program for the strategy's rounds."""
        return tuple(self.fit(name) for name in self.experiment.fleet.profiles)

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
                sgd=sgd or self.instruction.sgd,
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

    def samples(self, devices: Int64) -> dict[str, Int64]:
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
