"""Per-FedAvg: FedAvg of what is good after one step of adaptation.

A. Fallah, A. Mokhtari, A. Ozdaglar, "Personalized Federated Learning with Theoretical Guarantees: A
Model-Agnostic Meta-Learning Approach", NeurIPS 2020, algorithm 1, with the first-order gradient
(section 5): each local step of device i takes two batches D and D' and goes
``w = w - beta * grad f_i(w - alpha * grad f_i(w, D), D')``; the server takes the mean of the w.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedtiny.strategies.base import Averaging, Round, require

if TYPE_CHECKING:
    from fedtiny.strategies.base import State
    from fedtiny.tensors import Float64
    from fedtiny.values import Instruction


@dataclass(frozen=True, kw_only=True)
class PerFedAvg(Averaging):
    """FedAvg whose steps look one step ahead; all devices count the same.

    Attributes:
        alpha: The learning rate of the step ahead: that with which devices are to adapt.
    """

    alpha: float = 0.01

    weight_cap: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        Averaging.__post_init__(self)
        require(self, "alpha", self.alpha > 0, "a positive learning rate (0 would be fedavg)")
        require(self, "momentum", self.momentum == 0, "0: each step begins at rest")

    def weight(self, samples: Float64) -> Float64:
        """Devices are equal, whatever their number of samples."""
        return np.ones_like(samples)

    def ask(self, round: Round, state: State) -> Instruction:
        """Train with the gradients one step ahead."""
        asked = super().ask(round, state)
        return replace(asked, phases=tuple(replace(p, ahead=self.alpha) for p in asked.phases))
