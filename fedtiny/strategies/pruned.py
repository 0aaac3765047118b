"""What strategies that prune share: one pool of live weights, and a mask for each device class.

The pool is what the densest devices hold. The mask of a sparser class is the part of the pool with
the largest weights: masks are nested by density, and a coordinate is averaged over the devices
whose mask has it. The other coordinates of the model are 0 from the first trained round on. Masks
change only when the pool moves, so each travels once per change; the state holds their blobs.

What growth costs a sparser class: every device is asked for as many places as the pool exchanges,
and has a bucket for them. Some that are dead in a sparser class live in the pool already. The
server ignores those, so part of the answer is lost. A round of growth that fails is not made up
for: the pool stays until the next one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from fedtiny import elementary, pruning
from fedtiny.errors import StrategyError
from fedtiny.fold import Total
from fedtiny.layout import Layout, Parameter
from fedtiny.masks import Mask, remembered
from fedtiny.strategies.base import Averaging, Fitted, FleetFacts, Round, require
from fedtiny.values import GRADIENT, Instruction, Phase

if TYPE_CHECKING:
    from fedtiny.strategies.base import Contribution, State
    from fedtiny.tensors import Bools, Float32, Float64
    from fedtiny.values import Masks

BLOCKS = ("backward", "all")


@dataclass(frozen=True, kw_only=True)
class Pruned(Fitted, Averaging):
    """Averaging of pruned models: at first the largest weights live, dealt out by ERK.

    The devices of its fleet have densities below 1. `fitted` says which, and what can be pruned.
    """

    def fitted(self, fleet: FleetFacts) -> Self:
        """The same for these Programs; each of them must be pruned."""
        name = type(self).__name__
        if not fleet.prunable:
            raise StrategyError(
                f"{name}: the model has nothing to prune: no linear layer or ungrouped convolution "
                "with a weight of its own"
            )
        if fleet.densities[-1] >= 1:
            raise StrategyError(
                f"{name}: a device has density 1, and a pool that holds everything prunes nothing; "
                "set density below 1 in [device] and in each [device.profile]"
            )
        return super().fitted(fleet)

    @property
    def layers(self) -> tuple[Parameter, ...]:
        """The parameters that are pruned."""
        return tuple(self.facts.layout[name] for name in self.facts.prunable)

    def counts(self, density: float, state: State) -> Mapping[str, int]:
        """How many weights of each layer live in devices of this density."""
        return pruning.erk_counts(self.facts.layout, self.facts.prunable, density)

    def first(self, model: Float32) -> Mask:
        """The pool before the first round."""
        densest = self.counts(self.facts.densities[-1], {})
        return pruning.largest(model, self.facts.layout, densest)

    def start(self, layout: Layout, model: Float32) -> State:
        """The first masks, and the state of the server's optimiser."""
        return {**super().start(layout, model), **self.masked(self.first(model), model, {}, 0)}

    def masks(self, state: State) -> Masks:
        """The mask of each class, as the state has it."""
        return tuple((density, _blob(state, density)) for density in self.facts.densities)

    def pool(self, state: State) -> Mask:
        """The live coordinates of the densest class, which are those of the model."""
        return remembered(_blob(state, self.facts.densities[-1]), self.facts.layout)

    def masked(self, pool: Mask, model: Float32, state: State, t: int) -> State:
        """The state after the pool has moved in round ``t``: the masks of all classes are new."""
        masks, sizes = {self.facts.densities[-1]: pool}, np.abs(model)
        for wider, density in pairwise(reversed(self.facts.densities)):
            masks[density] = self._nested(masks[wider], sizes, self.counts(density, state))
        blobs = {_key(d): np.frombuffer(mask.blob, np.uint8) for d, mask in masks.items()}
        return {**state, **blobs, "moved": float(t)}

    def _nested(self, pool: Mask, sizes: Float32, counts: Mapping[str, int]) -> Mask:
        """The largest weights of the pool: so many of each layer, or all that it has there."""
        live = pool.bools.copy()
        for layer in self.layers:
            own = part(layer)
            count = min(counts[layer.name], int(np.count_nonzero(live[own])))
            live[own] = largest_of(live[own], sizes[own], count)
        return Mask.of(live)

    def finish(
        self, round: Round, model: Float32, contribution: Contribution, state: State
    ) -> tuple[Float32, State]:
        """One step of the server's optimiser along the mean delta; dead coordinates are 0."""
        stepped, optimiser = super().finish(round, model, contribution, state)
        return alive(stepped, self.pool(state).bools), {**state, **optimiser}

    def telemetry(self, round: Round, model: Float32, state: State) -> Mapping[str, float]:
        """Density and PQ index of each layer, when the pool has moved and every tenth of a run."""
        if state["moved"] != round.t and not _ends_a_tenth(round):
            return {}
        return dict(self._figures(model, self.pool(state).bools))

    def _figures(self, model: Float32, live: Bools) -> Iterator[tuple[str, float]]:
        for layer in self.layers:
            own = part(layer)
            values = model[own][live[own]]
            yield f"density.{layer.layer}", len(values) / layer.size
            yield f"pq.{layer.layer}", pruning.pq_index(values)


@dataclass(frozen=True, kw_only=True)
class Adjusting(Pruned):
    """Pruned averaging whose pool moves, layer by layer.

    In a round of its own each device sends what it knows of dead coordinates (``returns``), and
    ``alpha / 2 (1 + cos(pi t / stop))`` of the live weights of each scheduled layer are exchanged,
    at least one.

    Attributes:
        alpha: The share of a layer that is exchanged at first; it falls to 0 on a cosine.
        every: Rounds between two exchanges.
        stop: The round after which the pool stays; 0: half of the run.
        blocks: "backward" schedules one layer at a time, from the last to the first and around
            again; "all" schedules every layer.
    """

    alpha: float = 0.2
    every: int = 10
    stop: int = 0
    blocks: str = "backward"

    returns: ClassVar[str] = GRADIENT

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "alpha", 0 < self.alpha <= 1, "a share in (0, 1]")
        require(self, "every", self.every >= 2, "at least 2: a pool that moves must also train")
        require(self, "stop", self.stop >= 0, "0 (half of the run) or a round")
        require(self, "blocks", self.blocks in BLOCKS, f"one of {', '.join(BLOCKS)}")

    @property
    def first_counts(self) -> tuple[Mapping[str, int], ...]:
        """How many weights of each layer may live in the pool before it first moves."""
        return (self.counts(self.facts.densities[-1], {}),)

    def bucket(self, layout: Layout) -> int:
        """The places of one growth at the first, largest share."""
        together = sum if self.blocks == "all" else max
        return max(
            together(_share_of(count, self.alpha) for count in counts.values())
            for counts in self.first_counts
        )

    def scheduled(self, round: Round, state: State) -> dict[str, int]:
        """How many weights of which layers this round exchanges; none in a round that trains."""
        stop = self.stop or round.T // 2
        if round.t == 0 or round.t % self.every or round.t > stop:
            return {}
        share, pool = _falling(self.alpha, round.t / stop), self.pool(state)
        places: dict[str, int] = {}
        for layer in self.layers:
            live = pool.length(self.facts.layout.ranges([layer.name]))
            if live < layer.size:
                places[layer.name] = min(_share_of(live, share), layer.size - live)
        return self._in_turn(places, round.t // self.every - 1)

    def _in_turn(self, places: dict[str, int], turn: int) -> dict[str, int]:
        """Those of the layers that are scheduled in adjustment number ``turn``."""
        if self.blocks == "all" or not places:
            return places
        name = list(reversed(places))[turn % len(places)]
        return {name: places[name]}

    def ask(self, round: Round, state: State) -> Instruction:
        """Train; or find the largest gradients of one batch among the dead coordinates."""
        grow = tuple(self.scheduled(round, state).items())
        if not grow:
            return super().ask(round, state)
        still = Phase(lr=0.0, steps=1, shuffle=True)
        return Instruction(phases=(still,), returns=self.returns, grow=grow)

    def finish(
        self, round: Round, model: Float32, contribution: Contribution, state: State
    ) -> tuple[Float32, State]:
        """The averaged model; or after an adjustment the model of the pool that has moved."""
        scheduled = self.scheduled(round, state)
        if not scheduled:
            return super().finish(round, model, contribution, state)
        assert isinstance(contribution, Total)
        model = alive(model, self.pool(state).bools)  # what grows starts at 0
        model, live, state = self.adjusted(round, model, contribution, state, scheduled)
        model = alive(model, live)
        return model, self.masked(Mask.of(live), model, state, round.t)

    def adjusted(
        self,
        round: Round,
        model: Float32,
        total: Total,
        state: State,
        scheduled: Mapping[str, int],
    ) -> tuple[Float32, Bools, State]:
        """The model, its live coordinates and the state after the adjustment of a round."""
        raise NotImplementedError


def part(layer: Parameter) -> slice:
    """Where a layer stands in the averaged vector."""
    return slice(layer.offset, layer.offset + layer.size)


def alive(model: Float32, live: Bools) -> Float32:
    """The model with 0 in its dead coordinates."""
    return np.where(live, model, np.float32(0.0))


def largest_of(live: Bools, sizes: Float32 | Float64, count: int) -> Bools:
    """Those ``count`` of the live coordinates with the largest sizes; of equal ones the first."""
    return pruning.top(np.where(live, sizes, -np.inf), count)


def _ends_a_tenth(round: Round) -> bool:
    """Whether one more tenth of the run is over after the round, as it is after the last."""
    return 10 * round.t // round.T < 10 * (round.t + 1) // round.T


def _falling(alpha: float, passed: float) -> float:
    """``alpha / 2 (1 + cos(pi passed))``, by our own cosine: the same bits on every host."""
    cosine = min(1.0, float(elementary.cos(np.float32(np.pi * passed))))
    return alpha / 2.0 * (1.0 + cosine)


def _share_of(count: int, share: float) -> int:
    return max(1, math.floor(share * count + 0.5))


def _key(density: float) -> str:
    return f"mask.{density}"


def _blob(state: State, density: float) -> bytes:
    return np.asarray(state[_key(density)], np.uint8).tobytes()
