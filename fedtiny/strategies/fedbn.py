"""FedBN: every device keeps its normalisations to itself.

X. Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", ICLR
2021, algorithm 1: FedAvg over all parameters but those of the normalisation layers, with their
running statistics. Devices whose samples look unlike others' still share all other layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedtiny.errors import StrategyError
from fedtiny.layout import FROZEN
from fedtiny.strategies.base import Averaging

if TYPE_CHECKING:
    from fedtiny.layout import Layout, Parameter


@dataclass(frozen=True, kw_only=True)
class FedBN(Averaging):
    """FedAvg with the parameters of normalisations on the devices."""

    def local(self, layout: Layout) -> tuple[str, ...]:
        """What belongs to a normalisation, but for what never changes."""
        layers = [layer for layer in layout.layers().values() if _normalises(layer)]
        if not layers:
            raise StrategyError(
                "FedBN: the model has no normalisation to keep on the devices; take a model with "
                "one, or fedavg"
            )
        return tuple(p.name for layer in layers for p in layer if p.group != FROZEN)


def _normalises(layer: tuple[Parameter, ...]) -> bool:
    """Whether it scales channels: all others have weights with an input and an output."""
    return any(p.name.endswith("weight") and len(p.shape) == 1 for p in layer)
