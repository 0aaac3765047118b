"""FedBuff: asynchronous averaging through a buffer.

J. Nguyen, K. Malik, H. Zhan, A. Yousefpour, M. Rabbat, M. Malek and D. Huba, "Federated Learning
with Buffered Asynchronous Aggregation", AISTATS 2022, algorithm 1. ``concurrency`` devices train at
any time, each from the model that was there when it began. As soon as K updates have come (here
``cohort``), ``x = x + eta_g * Delta``, with Delta their mean weighted by ``1 / sqrt(1 + tau_i)``,
where tau_i models came between that of device i and x (section 5). The weights here sum to 1; the
paper divides by K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedtiny.strategies.base import Averaging, Round, ServerOptimizer, ServerSgd, require

if TYPE_CHECKING:
    from fedtiny.tensors import Float64


@dataclass(frozen=True, kw_only=True)
class FedBuff(Averaging):
    """Local gradient descent; the server steps whenever its buffer is full.

    Attributes:
        concurrency: Devices that work at once.
        max_staleness: Versions that an update may be late; an older one is refused.
        server_lr: The step along the mean of the buffer.
    """

    concurrency: int = 30
    max_staleness: int = 100
    server_lr: float = 1.0

    weight_cap: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        Averaging.__post_init__(self)
        require(self, "concurrency", self.concurrency >= 1, "at least 1 device at a time")
        require(self, "max_staleness", self.max_staleness >= 0, "0 or a number of versions")
        require(self, "server_lr", self.server_lr > 0, "a positive step size")

    def weight(self, samples: Float64) -> Float64:
        """Every update counts the same, whatever its number of samples."""
        return np.ones_like(samples)

    def discount(self, staleness: Float64) -> Float64:
        """``1 / sqrt(1 + tau)``."""
        return 1.0 / np.sqrt(1.0 + staleness)

    def server(self, round: Round) -> ServerOptimizer:
        """One step of size eta_g along the mean delta."""
        return ServerSgd(self.server_lr)
