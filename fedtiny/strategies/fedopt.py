"""FedOpt: an optimiser on the server, with the mean delta as its (pseudo-)gradient.

S. J. Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2 (FedAdagrad, FedAdam,
FedYogi): ``m = b1 m + (1 - b1) Delta; x = x + lr m / (sqrt(v) + tau)``, with v starting at tau^2
and no correction of its bias. T.-M. H. Hsu et al., "Measuring the Effects of Non-Identical Data
Distribution for Federated Visual Classification", 2019 (FedAvgM). Any averaging strategy takes
another optimiser the same way: by overriding `server`.
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
class ServerAdagrad:
    """``v = v + Delta^2``."""

    lr: float
    beta_1: float = 0.9
    tau: float = 1e-3

    def start(self, x: Float32) -> State:
        """Both moments."""
        return {"m": np.zeros(x.size), "v": np.full(x.size, self.tau**2)}

    def step(self, x: Float32, Delta: Float64, state: State) -> tuple[Float32, State]:
        """One step; float64 inside, float32 out."""
        m = self.beta_1 * state["m"] + (1.0 - self.beta_1) * Delta
        v = self.second_moment(np.asarray(state["v"]), Delta * Delta)
        x_next = x + self.lr * (m / (np.sqrt(v) + self.tau))
        return x_next.astype(np.float32), {"m": m, "v": v}

    def second_moment(self, v: Float64, squares: Float64) -> Float64:
        """The next v."""
        return v + squares


@dataclass(frozen=True, slots=True)
class ServerAdam(ServerAdagrad):
    """``v = b2 v + (1 - b2) Delta^2``."""

    beta_2: float = 0.99

    def second_moment(self, v: Float64, squares: Float64) -> Float64:
        """An average that forgets."""
        return self.beta_2 * v + (1.0 - self.beta_2) * squares


@dataclass(frozen=True, slots=True)
class ServerYogi(ServerAdam):
    """``v = v - (1 - b2) Delta^2 sign(v - Delta^2)``."""

    def second_moment(self, v: Float64, squares: Float64) -> Float64:
        """As Adam's, but it shrinks by no more than it could grow."""
        return v - (1.0 - self.beta_2) * squares * np.sign(v - squares)


@dataclass(frozen=True, kw_only=True)
class FedAvgM(Averaging):
    """FedAvg with momentum on the server.

    Attributes:
        server_lr: Learning rate on the server.
        server_momentum: The share of the last step that the next one keeps.
    """

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
class FedAdagrad(Averaging):
    """FedAvg with Adagrad on the server.

    Attributes:
        server_lr: Learning rate on the server.
        beta_1: The share of the mean delta that the next round keeps.
        tau: How adaptive it is; the smaller, the more.
    """

    server_lr: float = 0.01
    beta_1: float = 0.9
    tau: float = 1e-3

    def __post_init__(self) -> None:
        Averaging.__post_init__(self)
        require(self, "server_lr", self.server_lr > 0, "a positive learning rate")
        require(self, "beta_1", 0 <= self.beta_1 < 1, "in [0, 1)")
        require(self, "tau", self.tau > 0, "positive")

    def server(self, round: Round) -> ServerOptimizer:
        """Adagrad, as in algorithm 2."""
        return ServerAdagrad(self.server_lr, self.beta_1, self.tau)


@dataclass(frozen=True, kw_only=True)
class FedAdam(FedAdagrad):
    """FedAvg with Adam on the server.

    Attributes:
        beta_2: The share of the mean square of the deltas that the next round keeps.
    """

    beta_2: float = 0.99

    def __post_init__(self) -> None:
        FedAdagrad.__post_init__(self)
        require(self, "beta_2", 0 <= self.beta_2 < 1, "in [0, 1)")

    def server(self, round: Round) -> ServerOptimizer:
        """Adam, as in algorithm 2."""
        return ServerAdam(self.server_lr, self.beta_1, self.tau, self.beta_2)


@dataclass(frozen=True, kw_only=True)
class FedYogi(FedAdam):
    """FedAvg with Yogi on the server."""

    def server(self, round: Round) -> ServerOptimizer:
        """Yogi, as in algorithm 2."""
        return ServerYogi(self.server_lr, self.beta_1, self.tau, self.beta_2)
