"""FedPer: the first layers are learned together, the last ones stay on each device.

M. G. Arivazhagan et al., "Federated Learning with Personalization Layers", 2019, algorithms 1 and
2: a device trains its base layers W_B and its personalisation layers W_P at once, and sends W_B;
``W_B = sum_k (n_k / n) W_B,k``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedtiny.strategies.base import Averaging, last_layers, require

if TYPE_CHECKING:
    from fedtiny.layout import Layout


@dataclass(frozen=True, kw_only=True)
class FedPer(Averaging):
    """FedAvg with the last layers on the devices.

    Attributes:
        layers: How many of them.
    """

    layers: int = 1

    def __post_init__(self) -> None:
        Averaging.__post_init__(self)
        require(self, "layers", self.layers >= 1, "at least 1 (0 would be fedavg)")

    def local(self, layout: Layout) -> tuple[str, ...]:
        """The parameters of the last layers."""
        return last_layers(layout, self.layers)
