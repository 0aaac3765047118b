"""FedDST: devices readjust their own masks, and the server averages what each has kept.

S. Bibikar et al., "Federated Dynamic Sparse Training: Computing Less, Communicating Less, Yet
Learning Better", AAAI 2022, algorithm 1. The mask is random at first, with layer densities by
Erdos-Renyi-Kernel. In a readjusting round each device trains, prunes the smallest of its live
weights, grows as many with the largest gradients, trains on, and returns values with its mask. The
server takes the mean of each coordinate over the devices that have it, then prunes each layer by
magnitude to its number of weights.

What differs: a device readjusts in the middle of a visit that is twice as long, where the paper
chooses the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.fold import Total, covered
from fedtiny.masks import Mask
from fedtiny.strategies.base import Averaging, Round
from fedtiny.strategies.pruned import Adjusting, largest_of, part

if TYPE_CHECKING:
    from fedtiny.strategies.base import State
    from fedtiny.tensors import Bools, Float32
    from fedtiny.values import Instruction


@dataclass(frozen=True, kw_only=True)
class FedDST(Adjusting):
    """Averaging over masks that the devices move themselves."""

    blocks: str = "all"

    def first(self, model: Float32) -> Mask:
        """A random pool, drawn by the seed of the run."""
        densest = self.counts(self.facts.densities[-1], {})
        return Mask.draw(self.facts.layout, densest, self.facts.seed)

    def ask(self, round: Round, state: State) -> Instruction:
        """Train; in a readjusting round, readjust and train once more."""
        trains = Averaging.ask(self, round, state)
        grow = tuple(self.scheduled(round, state).items())
        return replace(trains, phases=trains.phases * 2, grow=grow) if grow else trains

    def adjusted(
        self,
        round: Round,
        model: Float32,
        total: Total,
        state: State,
        scheduled: Mapping[str, int],
    ) -> tuple[Float32, Bools, State]:
        """The sparse mean, pruned to the number of weights that each layer has.

        A live coordinate that nobody has sent is kept only where places are left.
        """
        stepped, optimiser = Averaging.finish(self, round, model, total, state)
        sent = np.zeros(model.size, bool)
        for coverage in total.weights:
            sent[covered(coverage)] = True
        live, sizes = self.pool(state).bools.copy(), np.where(sent, np.abs(stepped), -0.5)
        for own in (part(self.facts.layout[name]) for name in scheduled):
            count = int(np.count_nonzero(live[own]))
            live[own] = largest_of((sent | live)[own], sizes[own], count)
        return stepped, live, {**state, **optimiser}
