"""FedOpt: an optimiser on the server, with the mean delta as its (pseudo-)gradient.

S. J. Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2 (FedAdam), and
T.-M. H. Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", 2019 (FedAvgM). Any averaging strategy takes another optimiser the same way: by
overriding `server`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.strategies.base import Averaging, Round, ServerOptimizer, ServerSgd, require

if TYPE_CHECKING:
    from fedtiny.strategies.base import State
    from fedtiny.tensors import Float32, Float64


@dataclass(frozen=True, slots=True)
class ServerAdam:
    """``m = b1 m + (1 - b1) Delta; v = b2 v + (1 - b2) Delta^2; x = x + lr m / (sqrt(v) + tau)``.

    As in algorithm 2 there is no bias correction; v starts at ``tau^2``.
    """

    lr: float
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3

    def start(self, x: Float32) -> State:
        """Both moments."""
        return {"m": np.zeros(x.size), "v": np.full(x.size, self.tau**2)}

    def step(self, x: Float32, Delta: Float64, state: State) -> tuple[Float32, State]:
        """One step; float64 inside, float32 out."""
        m = self.beta_1 * state["m"] + (1.0 - self.beta_1) * Delta
        v = self.beta_2 * state["v"] + (1.0 - self.beta_2) * (Delta * Delta)
        x_next = x + self.lr * (m / (np.sqrt(v) + self.tau))
        return x_next.astype(np.float32), {"m": m, "v": v}


@dataclass(frozen=True, kw_only=True)
class FedAvgM(Averaging):
    """FedAvg with momentum on the server."""

    server_lr: float = 1.0
    server_momentum: float = 0.9

    def __post_init__(self) -> None:
        Averaging.__post_init__(self)
        require(self, "server_lr", self.server_lr > 0, "a positive learning rate")
        require(self, "server_momentum", 0 <= self.server_momentum < 1, "in [0, 1)")

    def server(self, round: Round) -> ServerOptimizer:
        """Gradient descent with momentum."""
        return ServerSgd(self.server_lr, self.server_momentum)


@dataclass(frozen=True, kw_only=True)
class FedAdam(Averaging):
    """FedAvg with Adam on the server; ``tau`` is how adaptive it is (smaller: more)."""

    server_lr: float = 0.01
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        Averaging.__post_init__(self)
        require(self, "server_lr", self.server_lr > 0, "a positive learning rate")
        require(self, "beta_1", 0 <= self.beta_1 < 1, "in [0, 1)")
        require(self, "beta_2", 0 <= self.beta_2 < 1, "in [0, 1)")
        require(self, "tau", self.tau > 0, "positive")

    def server(self, round: Round) -> ServerOptimizer:
        """Adam, as in algorithm 2."""
        return ServerAdam(self.server_lr, self.beta_1, self.beta_2, self.tau)
