"""FedRep: each device first fits a head of its own to the shared features, then these to the head.

L. Collins et al., "Exploiting Shared Representations for Personalized Federated Learning", ICML
2021, algorithm 1: in a visit tau steps on the head, ``h_i = h_i - beta grad_h f_i(h_i, phi)``, with
the representation phi as it was sent; then steps on phi with that head. The server averages phi;
the heads stay where they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedtiny.strategies.base import Averaging, Fitted, last_layers, require, split_groups

if TYPE_CHECKING:
    from fedtiny.layout import Layout
    from fedtiny.strategies.base import Round, State
    from fedtiny.values import Instruction


@dataclass(frozen=True, kw_only=True)
class FedRep(Fitted, Averaging):
    """FedAvg of the first layers, which train when the device's own last ones have.

    Attributes:
        layers: The last layers that stay on the devices.
        head_steps: Batches that they train on; 0: one pass over the support. ``steps`` are those
            of the shared layers.
    """

    layers: int = 1
    head_steps: int = 0

    def __post_init__(self) -> None:
        Averaging.__post_init__(self)
        require(self, "layers", self.layers >= 1, "at least 1 (0 would be fedavg)")
        require(self, "head_steps", self.head_steps >= 0, "0 or positive")

    def local(self, layout: Layout) -> tuple[str, ...]:
        """The parameters of the last layers."""
        return last_layers(layout, self.layers)

    def ask(self, round: Round, state: State) -> Instruction:
        """Train what stays, then what is sent."""
        asked = super().ask(round, state)
        (phase,) = asked.phases
        stay, go = split_groups(self.facts.layout)
        head = replace(phase, groups=stay, steps=self.head_steps)
        return replace(asked, phases=(head, replace(phase, groups=go)))
