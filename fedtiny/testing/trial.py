"""A small fleet of real devices, without a network: boards, a coordinator, a journal in memory.

Half of the boards train the whole model, the others all but its first layer; nobody trains the
frozen one. Every visit is that of a `Learner` on a Program of a few hundred bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny import references
from fedtiny.device.learner import Key, Learner
from fedtiny.engine.builder import Net
from fedtiny.errors import StrategyError
from fedtiny.experiment import Experiment
from fedtiny.experiment.workload import Workload
from fedtiny.layout import FROZEN
from fedtiny.rounds.coordinator import Coordinator
from fedtiny.rounds.journal import Journal, MemoryJournal
from fedtiny.strategies.pruned import Pruned
from fedtiny.strategies.table import build
from fedtiny.values import ACCEPTED, SUPPORT, Lease, Update

if TYPE_CHECKING:
    from fedtiny.data.tables import Samples
    from fedtiny.engine.program import Program
    from fedtiny.strategies.base import Strategy
    from fedtiny.tensors import Float32
    from fedtiny.values import Instruction

ROUNDS = 3
_PATIENCE = 4 * ROUNDS
"""Visits of the whole fleet after which a run that is not over never will be."""
_PARTIAL = "named:conv1.*,head.*"


def net() -> Net:
    """A frozen convolution, one with batch normalisation, and a ``head`` for three classes."""
    made = Net((4, 4, 1), group=FROZEN)
    value = made.conv(made.input, 2, 1, name="frozen", bias=False)
    made.group = "shared"
    value = made.relu(made.conv(value, 2, 3, padding=1, name="conv0"))
    value = made.conv(value, 2, 3, stride=2, padding=1, bias=False, name="conv1")
    value = made.relu(made.batch_norm(value, tracked=True, name="norm"))
    made.group = "head"
    made.linear(value, 3, name="head")
    return made


class Waves:
    """Pictures of waves in three classes; each device has a few of its own."""

    features, outputs, classes = 16, 3, 3

    def samples(self, run: int, round: int, device: int, part: str) -> Samples:
        """Two to four of them; those of a part stay the same."""
        count = 2 + device % 3
        label = (np.arange(count) + device) % self.classes
        phase = label + 0.1 * device + (0.5 if part == SUPPORT else 0.0)
        x = np.sin(np.arange(self.features) * (1 + label[:, None]) + phase[:, None])
        return x.astype(np.float32), label.astype(np.int32)


def tables(strategy: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment that fits the strategy: two devices more than its cohort."""
    made = build(strategy)
    prunes = isinstance(made, Pruned)
    whole: dict[str, Any] = {"density": 0.5} if prunes else {"plan": "all"}
    part: dict[str, Any] = {"density": 0.25} if prunes else {"plan": _PARTIAL}
    return {
        "seed": 7,
        "model": {"build": f"{__name__}:net"},
        "data": {"source": f"{__name__}:Waves"},
        "device": {
            "batch": 2,
            "whole": {"like": "pi-4", **whole},
            "part": {"like": "pi-4", **part},
        },
        "strategy": dict(strategy),
        "fleet": {
            "devices": made.cohort + 2,
            "held_out": 0,
            "profiles": {"whole": 0.5, "part": 0.5},
        },
        "run": {"rounds": ROUNDS, "minimum": made.cohort, "deadline": 3600},
    }


def workload(strategy: Mapping[str, Any]) -> Workload:
    """That of the experiment; the same one for the same strategy."""
    return _workload(*_key(strategy))


def _key(strategy: Mapping[str, Any]) -> tuple[str, object]:
    """Its text, and what it names: in a notebook a class is written more than once."""
    named = references.load(strategy["build"]) if "build" in strategy else None
    return json.dumps(strategy, sort_keys=True), named


@cache
def _workload(strategy: str, named: object) -> Workload:
    return Workload.of(Experiment.of(tables(json.loads(strategy))))


@cache
def _learner(program: Program) -> Learner:
    return Learner(program)


@dataclass
class Trial:
    """A run of one strategy in which nothing goes wrong unless a law makes it."""

    spec: Mapping[str, Any]
    journal: Journal = field(default_factory=MemoryJournal)
    now: float = 0.0
    kept: dict[int, dict[str, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.work = workload(self.spec)
        self.devices = self.work.experiment.fleet.devices
        self.rules = self.work.rules(self.work.experiment.seed)
        self.restart()

    @property
    def strategy(self) -> Strategy:
        """What is tried."""
        return self.work.strategy

    @cached_property
    def programs(self) -> Sequence[Program]:
        """Those that boards can run; a strategy may leave some nothing to train."""
        made = [profile.program for profile in self.work.profiles if profile.program]
        if not made:
            raise StrategyError("; ".join(self.work.profiles[0].reasons))
        return made

    @property
    def model(self) -> Float32:
        """The model as it is now."""
        return self.coordinator.model

    @property
    def over(self) -> bool:
        """Whether all rounds are done."""
        return self.coordinator.rounds.phase == "done"

    def restart(self) -> None:
        """A new coordinator and strategy on the same journal: what a crash leaves behind."""
        self.coordinator = Coordinator(
            self.rules, replace(self.strategy), self.work.layout, self.work.initial, self.journal,
            self.devices, self.now,
        )  # fmt: skip

    def visits(self) -> list[Update]:
        """Every device asks for work; what those that get some will send."""
        made = []
        for device in range(self.devices):
            answer = self.coordinator.check_in(self.now, device)
            if not isinstance(answer, float):
                made.append(self._visit(*answer))
        return made

    def _visit(self, lease: Lease, asked: Instruction) -> Update:
        device, seed = lease.device, self.work.experiment.seed
        learner = _learner(self.programs[device % len(self.programs)])
        task = self.work.task
        done = learner.visit(
            asked, self.coordinator.fetch(lease.version),
            lambda part: learner.samples(*task.samples(seed, lease.round, device, part)),
            Key(seed, lease.round, device), self.kept.get(device, {}),
        )  # fmt: skip
        self._finished[lease.id] = done.kept
        return Update(
            lease.id, device, lease.round, lease.version, done.samples, done.values, done.ranges,
            done.measures, done.mask, done.places, done.quantised,
        )  # fmt: skip

    @cached_property
    def _finished(self) -> dict[int, Mapping[str, bytes]]:
        """What visits have left on their devices, until their updates are accepted."""
        return {}

    def submit(self, *updates: Update) -> None:
        """Hand updates in, together; what a visit left is kept once its update counts."""
        self.now += 1.0
        receipts = self.coordinator.submit(self.now, updates)
        accepted = {receipt.lease for receipt in receipts if receipt.status == ACCEPTED}
        for update in updates:
            if update.lease in accepted:
                left = self._finished[update.lease]
                self.kept[update.device] = {**self.kept.get(update.device, {}), **left}

    def round(self, arrange: Callable[[list[Update]], Sequence[Update]] = list) -> None:
        """What the whole fleet gives now; the updates arrive one by one, as arranged."""
        for update in arrange(self.visits()):
            self.submit(update)

    def each(self, turn: Callable[[Trial], None]) -> Float32:
        """Turns until the run is over; the model then."""
        for _ in range(_PATIENCE):
            if self.over:
                return self.model
            turn(self)
        raise AssertionError(
            f"after {_PATIENCE} visits of each device round {self.coordinator.rounds.round} of "
            f"{ROUNDS} is still open"
        )

    def finish(self) -> Float32:
        """All the rounds that are left; the model after them."""
        return self.each(Trial.round)


def undisturbed(strategy: Mapping[str, Any]) -> Float32:
    """The model of a run in which nothing goes wrong; made once."""
    return _undisturbed(*_key(strategy))


@cache
def _undisturbed(strategy: str, named: object) -> Float32:
    return Trial(json.loads(strategy)).finish()
