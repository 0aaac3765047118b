"""FedProx: FedAvg whose devices are held near the model that they started from.

T. Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, equation 2: device k
minimises ``F_k(w) + mu / 2 * |w - w_t|^2``, for as many steps as it manages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedtiny.strategies.base import Averaging, require
from fedtiny.values import Sgd


@dataclass(frozen=True, kw_only=True)
class FedProx(Averaging):
    """FedAvg with a proximal term of strength ``mu`` on the device."""

    mu: float = 0.1

    def __post_init__(self) -> None:
        Averaging.__post_init__(self)
        require(self, "mu", self.mu > 0, "positive (0 would be fedavg)")

    @property
    def sgd(self) -> Sgd:
        """Gradient descent with the gradient of the proximal term, ``mu * (w - w_t)``."""
        return replace(super().sgd, prox=self.mu)
