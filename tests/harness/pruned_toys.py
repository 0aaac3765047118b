"""What a toy device does that prunes, in plain NumPy; and rounds of a fleet of them.

As in `toys`, device d wants the model to be its own target c_d. Device d is of class d modulo the
number of classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny.layout import Layout, Parameter, Ranges
from fedtiny.masks import Mask
from fedtiny.pruning import candidate_counts, largest
from fedtiny.rounds.content import OpenRound
from fedtiny.rounds.measures import Measures
from fedtiny.strategies import calls
from fedtiny.strategies.base import FleetFacts, Round
from fedtiny.strategies.pruned import Pruned
from fedtiny.values import CALIBRATE, SCORE, VALUES, VOTES, Instruction, Lease, Phase, Update

if TYPE_CHECKING:
    from fedtiny.strategies.base import State
    from fedtiny.tensors import Bools, Float32, Float64

LAYOUT = Layout.of(
    [
        Parameter("conv.weight", (3, 3, 2, 4)),  # 72 weights
        Parameter("bn.mean", (4,), "statistics"),
        Parameter("bn.var", (4,), "statistics"),
        Parameter("hidden.weight", (12, 8)),  # 96
        Parameter("hidden.bias", (8,)),
        Parameter("head.weight", (8, 5)),  # 40
    ]
)
PRUNABLE = ("conv.weight", "hidden.weight", "head.weight")
WEIGHTS = 208
DENSE = LAYOUT.size - WEIGHTS
FLEET = FleetFacts(PRUNABLE, (0.1, 0.3), ("bn.mean", "bn.var"), LAYOUT, seed=5)
MODEL: Float32 = np.random.default_rng(3).standard_normal(LAYOUT.size).astype(np.float32)
DEVICES = tuple(range(6))


def target(device: int, size: int) -> Float32:
    return np.sin(np.arange(1, size + 1) * (device + 1)).astype(np.float32)


def samples(device: int) -> int:
    return 1 + device % 3


def prunes(instruction: Instruction) -> bool:
    """Whether an instruction is one for pruned Programs."""
    return bool(instruction.masks) or any(isinstance(c, int) for c in instruction.candidates)


@dataclass(frozen=True)
class PrunedToy:
    """A device of a fleet that prunes."""

    fleet: FleetFacts
    device: int

    @property
    def density(self) -> float:
        return self.fleet.densities[self.device % len(self.fleet.densities)]

    @property
    def target(self) -> Float32:
        return target(self.device, self.fleet.layout.size)

    def visit(
        self, lease: Lease, instruction: Instruction, model: Float32, ranges: Ranges
    ) -> Update:
        """What the device sends back."""
        sent = Update(lease.id, self.device, lease.round, lease.version, samples(self.device))
        if instruction.kind == CALIBRATE:
            rows = [self.statistics(seed) for seed in instruction.candidates]
            values = np.array(rows, np.float32)
            return replace(sent, values=values.tobytes(), ranges=((0, values.size),))
        if instruction.kind == SCORE:
            losses = {
                f"loss_sum.{at}": samples(self.device) * self.loss(self.candidate(seed, model))
                for at, seed in enumerate(instruction.candidates)
            }
            return replace(sent, measures={**losses, "count": float(samples(self.device))})
        blob = instruction.of(self.density).mask
        assert blob is not None
        mask = Mask.read(blob, self.fleet.layout)
        fields = self.grown(instruction, model, mask) or self.trained(
            instruction, model, mask, ranges
        )
        return replace(sent, **fields)

    def statistics(self, seed: Any) -> Float32:
        """First and second moments that only this device and this candidate have."""
        size = sum(self.fleet.layout[name].size for name in self.fleet.tracked)
        row = np.cos(np.arange(1, size + 1) * (seed + 2) * (self.device + 1))
        moments: Float32 = np.abs(row).astype(np.float32)
        return moments

    def candidate(self, seed: Any, model: Float32) -> Float32:
        counts = candidate_counts(self.fleet.layout, self.fleet.prunable, self.density, seed)
        return np.where(largest(model, self.fleet.layout, counts).bools, model, 0).astype("f4")

    def loss(self, w: Float32) -> float:
        return float(np.sum((w - self.target) ** 2) / 2)

    def grown(self, instruction: Instruction, model: Float32, mask: Mask) -> dict[str, Any] | None:
        """The largest gradients among the dead coordinates, or their places."""
        if not instruction.grow or instruction.returns == VALUES:
            return None
        places = self.largest_gradients(instruction, np.where(mask.bools, model, 0), mask.bools)
        gradient = (np.where(mask.bools, model, 0) - self.target)[places].astype(np.float32)
        values = np.ones_like(gradient) if instruction.returns == VOTES else gradient
        whole = ((0, self.fleet.layout.size),)
        return {
            "values": values.tobytes(),
            "places": places.astype("u4").tobytes(),
            "ranges": whole,
        }

    def largest_gradients(self, instruction: Instruction, w: Any, live: Bools) -> Any:
        size, found = np.abs(w - self.target), []
        for name, most in instruction.grow:
            layer = self.fleet.layout[name]
            dead = [i for i in range(layer.offset, layer.offset + layer.size) if not live[i]]
            found += sorted(dead, key=lambda i: -size[i])[:most]
        return np.array(sorted(found), np.int64)

    def trained(
        self, instruction: Instruction, model: Float32, mask: Mask, ranges: Ranges
    ) -> dict[str, Any]:
        """The values after the phases; with a growth, under a mask of the device's own."""
        w, live = np.where(mask.bools, model, 0).astype(np.float32), mask.bools.copy()
        for at, phase in enumerate(instruction.phases):
            if instruction.grow and at == len(instruction.phases) - 1:
                self.exchange(instruction, w, live)
            self.descend(w, live, phase)
        own = Mask.of(live)
        sent = w[own.coordinates(ranges)]
        measures = {"loss_sum": self.loss(w), "count": 1.0}
        return {"values": sent.tobytes(), "ranges": ranges, "mask": own, "measures": measures}

    def descend(self, w: Float32, live: Bools, phase: Phase) -> None:
        for _ in range(phase.steps or samples(self.device)):
            w[live] -= np.float32(phase.lr) * (w - self.target)[live]

    def exchange(self, instruction: Instruction, w: Float32, live: Bools) -> None:
        places = self.largest_gradients(instruction, w, live)
        for name, _ in instruction.grow:
            layer = self.fleet.layout[name]
            own = range(layer.offset, layer.offset + layer.size)
            smallest = sorted((i for i in own if live[i]), key=lambda i: (abs(w[i]), -i))
            for i in smallest[: sum(place in own for place in places)]:
                live[i], w[i] = False, 0
        live[places], w[places] = True, 0


@dataclass(frozen=True, eq=False)
class Played:
    """One round that was played: what was asked and sent, and what came before and after it."""

    strategy: Pruned
    t: int
    asked: Instruction
    updates: Sequence[Update]
    before: tuple[Float32, State]
    after: tuple[Float32, State]

    @property
    def live(self) -> tuple[Bools, Bools]:
        """The live coordinates of the pool before and after."""
        before, after = (self.strategy.pool(state).bools for _, state in (self.before, self.after))
        return before, after

    def mean(self, rows: Sequence[Float64]) -> Float64:
        """The mean of a row each update, weighted by samples."""
        n = np.array([update.samples for update in self.updates], float)
        mean: Float64 = n / n.sum() @ np.array(rows)
        return mean

    def averaged(self) -> Float64:
        """The mean of each coordinate over those who sent it, by samples; NaN if nobody did."""
        rows = self.sent()
        n = np.array([update.samples for update in self.updates], float)[:, None]
        weights = np.where(np.isnan(rows), 0.0, n).sum(axis=0)
        with np.errstate(invalid="ignore"):
            mean: Float64 = (np.nan_to_num(rows) * n).sum(axis=0) / weights
        return mean

    def sent(self) -> Float64:
        """A row an update: what it sent, as a vector; NaN where it sent nothing."""
        rows = np.full((len(self.updates), LAYOUT.size), np.nan)
        for row, update in zip(rows, self.updates, strict=True):
            values = np.frombuffer(bytes(update.values), np.float32)
            if update.places is not None:
                row[np.frombuffer(update.places, np.uint32)] = values
            elif update.mask is not None:
                row[update.mask.bools] = values
        return rows


def play(
    strategy: Pruned, T: int, devices: Sequence[int] = DEVICES, model: Float32 = MODEL
) -> Iterator[Played]:
    """T rounds in which these devices take part."""
    state = calls.start(strategy, LAYOUT, model)
    for t in range(T):
        open_round = OpenRound.of(strategy, Round(t, T), LAYOUT, model, state)
        updates = [
            PrunedToy(strategy.facts, d).visit(
                Lease(d, d, t, t, 1.0), open_round.instruction, model, ((0, LAYOUT.size),)
            )
            for d in devices
        ]
        part, reasons = open_round.add_all(open_round.nothing, updates)
        assert not any(reasons)
        measures = Measures()
        for update in updates:
            measures = measures.merge(Measures.of(update.measures))
        end = open_round.conclude([part], measures, failed=False)
        yield Played(
            strategy, t, open_round.instruction, updates, (model, state), (end.model, end.state)
        )
        model, state = end.model, end.state
