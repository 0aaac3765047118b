"""Ditto: beside the shared model each device trains one of its own, held near it.

T. Li, S. Hu, A. Beirami, V. Smith, "Ditto: Fair and Robust Federated Learning Through
Personalization", ICML 2021, algorithm 1: the shared w is that of FedAvg; with each of its visits
device k goes on with its own v_k, by steps ``v_k = v_k - beta * (grad F_k(v_k) + mu (v_k - w))``
(the paper's lambda is ``mu`` here). It predicts with v_k.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedtiny.strategies.base import Averaging, Round, require

if TYPE_CHECKING:
    from fedtiny.strategies.base import State
    from fedtiny.values import Instruction


@dataclass(frozen=True, kw_only=True)
class Ditto(Averaging):
    """FedAvg, and a model of its own on each device.

    Attributes:
        mu: How strongly that is held near the shared model; 0: not at all.
    """

    mu: float = 0.1

    def __post_init__(self) -> None:
        Averaging.__post_init__(self)
        require(self, "mu", self.mu >= 0, "0 or positive")

    def ask(self, round: Round, state: State) -> Instruction:
        """Train the shared model, then the device's own for as many steps."""
        asked = super().ask(round, state)
        near = replace(self.sgd, prox=self.mu)
        return replace(asked, own=tuple(replace(phase, sgd=near) for phase in asked.phases))
