"""SAP: sparsity-informed adaptive pruning, whose density falls by itself and stops by itself.

E. Diao et al., "Pruning Deep Neural Networks from a Sparsity Perspective", ICLR 2023, algorithm 1,
layer by layer: of d live weights with PQ index I, those that matter number
``m = d (1 + eta)^(q / (p - q)) (1 - I)^(pq / (q - p))``, and it prunes the smallest
``d min(gamma (1 - m / d), beta)``. I falls towards 0 as weights become alike, and with it what is
pruned.

Here p = 1/2 and q = 1. What differs: it prunes between federated rounds, from the ERK mask of the
devices' capacity on, and the survivors keep their values, where the paper rewinds them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedtiny import pruning
from fedtiny.masks import Mask
from fedtiny.strategies.base import Round, require
from fedtiny.strategies.pruned import Pruned, alive, largest_of, part

if TYPE_CHECKING:
    from fedtiny.strategies.base import Contribution, State
    from fedtiny.tensors import Bools, Float32


@dataclass(frozen=True, kw_only=True)
class SAP(Pruned):
    """FedAvg whose pool shrinks as far as the PQ index says.

    Attributes:
        every: Rounds between two prunings.
        eta: Above 0 it prunes more than the index allows for.
        gamma: What the share that is pruned is multiplied by.
        most: The largest share of a layer that goes at once.
    """

    every: int = 10
    eta: float = 0.0
    gamma: float = 1.0
    most: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "every", self.every >= 1, "at least 1")
        require(self, "eta", self.eta >= 0, "0 or positive")
        require(self, "gamma", self.gamma > 0, "positive")
        require(self, "most", 0 < self.most < 1, "a share between 0 and 1")

    def finish(
        self, round: Round, model: Float32, contribution: Contribution, state: State
    ) -> tuple[Float32, State]:
        """The averaged model; every few rounds with fewer live weights."""
        model, state = super().finish(round, model, contribution, state)
        before = self.pool(state).bools
        live = self._shrunk(model, before) if (round.t + 1) % self.every == 0 else before
        if np.array_equal(live, before):
            return model, state
        model = alive(model, live)
        return model, self.masked(Mask.of(live), model, state, round.t)

    def _shrunk(self, model: Float32, before: Bools) -> Bools:
        live = before.copy()
        for own in map(part, self.layers):
            count = self.kept(model[own][live[own]])
            live[own] = largest_of(live[own], np.abs(model[own]), count)
        return live

    def kept(self, weights: Float32) -> int:
        """How many of a layer's live weights stay."""
        d = len(weights)
        index = pruning.pq_index(weights)
        m = math.ceil(d * (1.0 - index) / (1.0 + self.eta) ** 2)
        pruned = min(max(self.gamma * (1.0 - m / d), 0.0), self.most)
        return d - math.floor(d * pruned)
