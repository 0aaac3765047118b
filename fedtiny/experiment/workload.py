"""What an experiment names, built: the net, the task, the strategy, a Program for each board."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fedtiny.data.partitions import Partition
from fedtiny.data.tables import Task
from fedtiny.engine import sparsity
from fedtiny.engine.compile import Compilable, compile
from fedtiny.engine.program import Program, initial_values
from fedtiny.engine.quantize import INT8
from fedtiny.errors import BudgetError, ExperimentError, StrategyError
from fedtiny.experiment import Experiment
from fedtiny.experiment.asking import flaws, kept_vectors, measured, returned
from fedtiny.experiment.gate import Gate, check_gate
from fedtiny.experiment.localising import Localised
from fedtiny.experiment.online import check as check_online
from fedtiny.experiment.planning import found_budget
from fedtiny.experiment.pretraining import check_public, pretrained
from fedtiny.experiment.quantising import check_observers, with_public_ranges, with_some_ranges
from fedtiny.experiment.rehearsal import Outlook, rehearsed
from fedtiny.experiment.starting import started
from fedtiny.layout import Layout
from fedtiny.masks import remembered
from fedtiny.registry.cost import BoardColumns, VisitCost, visit_cost
from fedtiny.registry.match import misfits
from fedtiny.rounds.rules import Rules
from fedtiny.strategies import calls
from fedtiny.strategies.base import FleetFacts, Round, Strategy
from fedtiny.tensors import FLOAT_BYTES
from fedtiny.values import QUERY, SUPPORT, TRAIN, Instruction, Sgd
from fedtiny.wire.int8 import grid_count, int8_bytes, weights_of
from fedtiny.wire.visit import VisitBytes, visit_bytes

if TYPE_CHECKING:
    from fedtiny.experiment.schema import Budget
    from fedtiny.masks import Mask
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
        strategy = experiment.build_strategy()
        net, task = experiment.build_net(), experiment.build_task()
        net = Localised(net, experiment.local(strategy, net.graph(1).layout))
        _check_fit(experiment, net, task)
        check_public(experiment, task)
        check_gate(experiment, net.graph(1).layout)
        check_online(experiment, task)
        work = cls(experiment, net, task, experiment.fit(strategy, _facts(experiment, net)))
        if work.quantises:
            check_observers(
                experiment, bool(getattr(task, "public", 0)), work.untrained, work.layout
            )
        return work

    @property
    def loss(self) -> str:
        """The loss that fits the task's labels."""
        return "mse" if self.task.classes is None else "cross_entropy"

    @cached_property
    def layout(self) -> Layout:
        """What is averaged."""
        return self.net.graph(1).layout

    @cached_property
    def prunes(self) -> bool:
        """Whether some Program of the fleet has a density below 1."""
        return self.experiment.densities[0] < 1

    @property
    def quantises(self) -> bool:
        """Whether some Program of the fleet is int8."""
        return INT8 in self.experiment.dtypes

    @cached_property
    def untrained(self) -> Float32:
        """The model that ``model.start`` names, or as the run's seed draws it, with all of its
        weights."""
        if self.experiment.model.start:
            return started(self.experiment, self.layout)
        graph, seed = self.net.graph(1), self.experiment.seed
        return np.asarray(initial_values(graph.layout, graph.initial, graph.start, seed))

    @cached_property
    def outlook(self) -> Outlook:
        """What the rounds ask that matters to the Programs: of a fleet that prunes all of them."""
        return Outlook.of(self.rehearsal() if self.prunes else islice(self.rehearsal(), 1))

    @property
    def instruction(self) -> Instruction:
        """What the first round asks: of a model that is not trained yet, if that matters."""
        return self.outlook.first

    @property
    def training(self) -> Instruction:
        """What the first round asks that trains; of a fleet that prunes others may come before."""
        return self.outlook.training

    def rehearsal(self) -> Iterator[Instruction]:
        """What each round of the run asks, as far as one can tell beforehand; one at least."""
        model = np.zeros(self.layout.size, np.float32)
        if self.prunes:  # by magnitude
            model = self.untrained
        if self.quantises:
            model = with_some_ranges(self.layout, model)
        rounds = max(1, self.experiment.run.rounds)
        return rehearsed(self.strategy, self.layout, model, rounds)

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
            concurrency=self.strategy.concurrency,
            max_staleness=self.strategy.max_staleness,
        )

    @property
    def _known(self) -> tuple[Instruction, Instruction]:
        """What the Programs are made for."""
        return self.instruction, self.training

    @property
    def _kept_vectors(self) -> int:
        """The most that a device holds beside the model."""
        return max(kept_vectors(asked, self.layout) for asked in self._known)

    @property
    def reserved(self) -> Sgd:
        """What the Programs are compiled with: for the first round, for the first that trains, and
        what else may come."""
        wanted = *(asked.sgd for asked in self._known), self.strategy.reserve
        return Sgd(*(max(getattr(sgd, f.name) for sgd in wanted) for f in fields(Sgd)))

    @cached_property
    def profiles(self) -> tuple[Profile, ...]:
        """The boards of the fleet, each with its Program for the strategy's rounds.

        Raises StrategyError where these can do nothing with what it asks.
        """
        fitted = tuple(self._fit_rounds(name) for name in self.experiment.fleet.profiles)
        for t, asked in ((0, self.training), *self.outlook.growths):
            self._check(fitted, Round(t, self.experiment.run.rounds), asked)
        return fitted

    def _fit_rounds(self, name: str) -> Profile:
        """The board with its Program, which must also be of use to the rounds."""
        fitted = self.fit(name)
        if fitted.reasons:
            return fitted
        return replace(fitted, reasons=tuple(self._hindrances(name, fitted.needed)))

    def _hindrances(self, name: str, program: Program) -> Iterator[str]:
        """Why a Program that fits the board would do nothing for a round."""
        if self.training.kind == TRAIN and not program.sent_ranges(self.training):
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
        """What visits with so many samples cost a board of that name in the first round that
        trains."""
        visit = self.visit_bytes(program, self.training)
        return visit_cost(
            BoardColumns.of([self.experiment.profile(name)]),
            macs=self.training.macs(counts, program.footprint),
            download_bytes=visit.down,
            upload_bytes=visit.up,
            samples=self.training.used(counts, program.batch)[1],
            sample_period_s=self.experiment.data.sample_period,
        )

    def visit_bytes(self, program: Program, asked: Instruction) -> VisitBytes:
        """What a visit of such a round carries, to a device that does not hold its mask."""
        own = asked.of(program.density)
        mask = self.mask_of(own)
        back = returned(program, asked)
        measures, count = measured(program, asked), 0
        if asked.kind == TRAIN and not asked.sends_gradient:
            count = grid_count(self.layout, weights_of(program, asked), back)
        nbytes = self.model_bytes(program, asked)
        return visit_bytes(own, self.layout.size, back, measures, mask, nbytes, count)

    def model_bytes(self, program: Program, asked: Instruction) -> int:
        """Of the model as it travels to such a round."""
        if weights := weights_of(program, asked):
            return int8_bytes(self.layout, weights)
        mask = self.mask_of(asked.of(program.density))
        return FLOAT_BYTES * (mask.count if mask else self.layout.size)

    def mask_of(self, own: Instruction) -> Mask | None:
        """The mask of an instruction for one Program (`Instruction.of`), if it has one."""
        return None if own.mask is None else remembered(own.mask, self.layout)

    def check(self, round: Round, asked: Instruction) -> None:
        """StrategyError if a Program of the fleet cannot carry out what a round asks."""
        if asked != self.training:  # the Programs are made for it
            self._check(self.profiles, round, asked)

    def _check(self, profiles: Iterable[Profile], round: Round, asked: Instruction) -> None:
        for program in (p.program for p in profiles if p.program):
            for flaw in flaws(program, asked):
                raise StrategyError(
                    f"{type(self.strategy).__name__}.ask in round {round.t:,} of {round.T:,} {flaw}"
                )

    def budget(self, name: str) -> Budget:
        """That of a profile; a plan that it leaves open has been found."""
        return found_budget(self, name)

    def options(self, budget: Budget) -> dict[str, Any]:
        """What a Program for the rounds is compiled with, within its budget."""
        return {
            "loss": self.loss,
            "batch": budget.batch,
            "plan": budget.plan,
            "sgd": self.reserved,
            "reserve": budget.reserve_bytes,
            "density": budget.density,
            "patches": budget.patches,
            "dtype": budget.dtype,
            "head": budget.head,
            "quantisable": self.quantises,
            "bucket": calls.bucket(self.strategy, self.layout),
            "dense_base": self.outlook.selects,
            "kept_vectors": self._kept_vectors,
        }

    def fit(self, name: str, batch: int = 0, sgd: Sgd | None = None) -> Profile:
        """The board of that name, with its Program for the rounds; or with ``sgd``, and maybe
        another batch, for an evaluation."""
        budget = self.budget(name)
        options = self.options(budget)
        if sgd:
            options |= {"sgd": sgd, "bucket": 0, "dense_base": False, "kept_vectors": 0}
        if batch:
            options["batch"] = batch
        try:
            program = compile(self.net, ram=budget.ram_bytes, flash=budget.flash_bytes, **options)
        except BudgetError as error:
            return Profile(name, cast("Program", error.program), (f"{name}: {error}",))
        card = self.experiment.profile(name).card()
        return Profile(name, program, misfits(program.footprint, card))

    @cached_property
    def initial(self) -> Float32:
        """The model before the first round: dense, trained already if there is [pretrain], and
        calibrated for int8 if there are public samples."""
        seed, said, model = self.experiment.seed, self.experiment.pretrain, self.untrained
        public = cast("Partition", self.task)
        if said:
            model = pretrained(self.net, self.loss, public, said, model, seed)
        if not self.quantises or not getattr(public, "public", 0):
            return model
        return with_public_ranges(self.net, self.loss, model, public.public_samples(seed))

    @cached_property
    def gate(self) -> Gate | None:
        """What judges a model before it is published, if anything does."""
        factor, public = self.experiment.run.gate, cast("Partition", self.task)
        if not factor:
            return None
        return Gate.of(self.net, self.loss, public.public_samples(self.experiment.seed), factor)

    @cached_property
    def counts(self) -> dict[str, Int64]:
        """How many samples each device has, by part; columns."""
        devices = np.arange(self.experiment.fleet.devices)
        support, query = self.task.counts(self.experiment.seed, devices).T
        return {SUPPORT: support, QUERY: query}


def _facts(experiment: Experiment, net: Compilable) -> FleetFacts:
    """What a strategy may ask of the Programs, before there are any."""
    graph = net.graph(1)
    tracked = [op.inputs[1:] for op in graph.ops if op.kind == "tracked_normalize"]
    names = tuple(name for pair in tracked for name in pair if name)
    prunable, densities = sparsity.prunable(graph), experiment.densities
    devices = experiment.fleet.devices
    training = devices - experiment.held_out
    return FleetFacts(prunable, densities, names, graph.layout, experiment.seed, devices, training)


def _check_fit(experiment: Experiment, net: Compilable, task: Task) -> None:
    graph = net.graph(1)
    takes, gives = graph.tensors[graph.input].size, graph.tensors[graph.output].size
    if (takes, gives) != (task.features, task.outputs):
        raise ExperimentError(
            f"the model {experiment.model.build} takes {takes} features and gives {gives}; the "
            f"data {experiment.data.source} have {task.features} features and need {task.outputs} "
            "outputs"
        )
