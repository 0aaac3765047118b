"""A fleet of toy devices in plain NumPy, and whole runs of a coordinator over them.

Device d wants the model to be its own target c_d: its loss is |w - c_d|^2 / 2 on every sample, so
one step of gradient descent is ``w -= lr * (w - c_d)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.layout import Layout, Parameter, Ranges, merge_ranges
from fedtiny.rounds.coordinator import Coordinator
from fedtiny.rounds.journal import Journal, MemoryJournal
from fedtiny.rounds.rules import Rules
from fedtiny.strategies.base import FleetFacts, Strategy
from fedtiny.values import CALIBRATE, EVALUATE, TRAIN, Instruction, Lease, Update
from tests.harness.pruned_toys import PrunedToy, prunes

if TYPE_CHECKING:
    from fedtiny.tensors import Float32

LAYOUT = Layout.of([Parameter("fc.weight", (2, 2)), Parameter("fc.bias", (2,))])
INITIAL: Float32 = np.array([0.5, -0.25, 1.0, 2.0, -1.5, 0.125], np.float32)
WHOLE: Ranges = ((0, LAYOUT.size),)
FLEET = FleetFacts(prunable=("fc.weight",), densities=(0.25, 0.5), layout=LAYOUT)
"""What a strategy that prunes gets to know; the others do not ask."""

Trained = Mapping[int, Ranges]
"""Which coordinates a device trains; those that are not named train everything."""


def target(device: int) -> Float32:
    return np.sin(np.arange(1, 7) * (device + 1)).astype(np.float32)


def samples(device: int) -> int:
    return 1 + device % 3


def loss(model: Float32, device: int) -> float:
    return float(np.sum((model - target(device)) ** 2) / 2)


def theta(instruction: Instruction, model: Float32, device: int) -> Float32:
    """The model after the phases of a visit."""
    w = model.copy()
    for phase in instruction.phases:
        for _ in range(phase.steps or samples(device)):
            gradient = w - target(device) + np.float32(phase.sgd.prox) * (w - model)
            w = (w - np.float32(phase.lr) * gradient).astype(np.float32)
    return w


def visit(lease: Lease, instruction: Instruction, model: Float32, ranges: Ranges = WHOLE) -> Update:
    """What the device of the lease sends back."""
    d = lease.device
    if prunes(instruction):
        return PrunedToy(FLEET, d).visit(lease, instruction, model, ranges)
    ids = (lease.id, d, lease.round, lease.version, samples(d))
    if instruction.kind == TRAIN:
        w = theta(instruction, model, d)
        sent = np.concatenate([w[start:stop] for start, stop in ranges])
        measures = {"loss_sum": loss(model, d), "count": 1.0}
        return Update(*ids, sent.tobytes(), merge_ranges(ranges), measures)
    if instruction.kind == EVALUATE:
        n = samples(d)
        return Update(*ids, measures={"loss_sum": n * loss(model, d), "count": float(n)})
    if instruction.kind == CALIBRATE:
        c = target(d).astype(float)
        return Update(*ids, measures={
            "x.count": float(c.size), "x.sum": c.sum(), "x.sum_squares": (c * c).sum(),
            "x.min": c.min(), "x.max": c.max(),
        })  # fmt: skip
    vectors = [c for c in instruction.candidates if isinstance(c, bytes)]
    scores = {f"loss_sum.{i}": loss(np.frombuffer(c, np.float32), d) for i, c in enumerate(vectors)}
    return Update(*ids, measures={**scores, "count": 1.0})


@dataclass
class Run:
    """A run over toy devices in which nothing goes wrong unless a test makes it."""

    strategy: Strategy
    rounds: int = 3
    devices: int = 6
    trained: Trained = field(default_factory=dict)
    minimum: int = 0
    journal: Journal | None = None
    now: float = 0.0

    def __post_init__(self) -> None:
        self.journal = self.journal or MemoryJournal()
        self.strategy = self.strategy.fitted(FLEET)
        minimum = self.minimum or self.strategy.cohort
        self.rules = Rules(self.rounds, self.strategy.cohort, 10.0, minimum, seed=7)
        self.restart()

    def restart(self) -> None:
        """A new coordinator on the same journal: what a crash leaves behind."""
        assert self.journal is not None
        self.coordinator = Coordinator(
            self.rules, self.strategy, LAYOUT, INITIAL, self.journal, self.devices, self.now
        )

    def updates(self) -> list[Update]:
        """Every device checks in; what those with a lease will send."""
        made = []
        for device in range(self.devices):
            answer = self.coordinator.check_in(self.now, device)
            if not isinstance(answer, float):
                lease, instruction = answer
                model = np.frombuffer(self.coordinator.fetch(lease.version), np.float32)
                ranges = self.trained.get(device, WHOLE)
                made.append(visit(lease, instruction, model, ranges))
        return made

    def round(self, arrange: Callable[[list[Update]], Sequence[Update]] = list) -> None:
        """One round; the updates arrive one by one, as arranged."""
        for update in arrange(self.updates()):
            self.now += 1.0
            self.coordinator.submit(self.now, [update])

    def finish(self) -> Float32:
        """All the rounds that are left; the model after them."""
        while self.coordinator.rounds.phase != "done":
            self.round()
        return self.coordinator.model
