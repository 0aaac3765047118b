"""SCAFFOLD: control variates take the drift of each device out of its steps.

S. P. Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML
2020, algorithm 1, option II. Device i takes K steps ``y = y - beta * (g_i(y) - c_i + c)`` from x,
and then ``c_i = c_i - c + (x - y) / (K beta)``. Over the devices S of a round, of N in all:
``x = x + eta / |S| * sum (y_i - x)``, and ``c = c + 1 / N * sum (change of c_i)``. The changes
follow from the y_i, ``-c + (x - y_i) / (K beta)``, so that a device sends no more than in FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedtiny.fold import WEIGHT_BITS, Total, covered
from fedtiny.strategies.base import (
    Averaging,
    Fitted,
    Round,
    ServerOptimizer,
    ServerSgd,
    require,
)

if TYPE_CHECKING:
    from fedtiny.layout import Layout
    from fedtiny.strategies.base import Contribution, State
    from fedtiny.tensors import Float32, Float64
    from fedtiny.values import Instruction


@dataclass(frozen=True, kw_only=True)
class Scaffold(Fitted, Averaging):
    """FedAvg with control variates: one on the server, and one that each device keeps.

    Attributes:
        steps: Batches that a visit trains on (K): all devices take as many.
        server_lr: The step of the server along the mean delta (eta).
    """

    steps: int = 10
    server_lr: float = 1.0

    weight_cap: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        Averaging.__post_init__(self)
        require(self, "steps", self.steps >= 1, "at least 1: all devices take as many")
        require(self, "momentum", self.momentum == 0, "0: the steps tell the gradients")
        require(self, "server_lr", self.server_lr > 0, "a positive step size")

    def weight(self, samples: Float64) -> Float64:
        """Devices are equal, whatever their number of samples."""
        return np.ones_like(samples)

    def server(self, round: Round) -> ServerOptimizer:
        """Gradient descent."""
        return ServerSgd(self.server_lr)

    def start(self, layout: Layout, model: Float32) -> State:
        """The control variate c."""
        return {"c": np.zeros(layout.size)}

    def ask(self, round: Round, state: State) -> Instruction:
        """Train with the correction ``c - c_i``."""
        asked, c = super().ask(round, state), np.asarray(state["c"], np.float32)
        phases = tuple(replace(phase, corrected=True) for phase in asked.phases)
        return replace(asked, phases=phases, correction=c.tobytes(), control=True)

    def finish(
        self, round: Round, model: Float32, contribution: Contribution, state: State
    ) -> tuple[Float32, State]:
        """The next x and c."""
        assert isinstance(contribution, Total)
        c, delta = np.asarray(state["c"]), contribution.mean()
        change = -c - delta / (self.steps * self.beta)
        share = _trained(contribution) / self.facts.training
        x, _ = self.server(round).step(model, delta, {})
        return x, {"c": c + share * change}


def _trained(total: Total) -> Float64:
    """How many devices trained each coordinate: they weigh 1 each."""
    counts = np.zeros(total.sums.size)
    for coverage, units in total.weights.items():
        counts[covered(coverage)] += units * 2.0**-WEIGHT_BITS
    return counts
