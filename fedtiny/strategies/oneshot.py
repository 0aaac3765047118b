"""One-shot magnitude pruning: the baseline whose mask is made once and never moves.

S. Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015:
the weights of the smallest magnitude go. Here that is done once, to the model before the first
round; then FedAvg trains what is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedtiny import pruning
from fedtiny.strategies.base import require
from fedtiny.strategies.pruned import Pruned

if TYPE_CHECKING:
    from fedtiny.strategies.base import State

DEALT = {"erk": pruning.erk_counts, "uniform": pruning.uniform_counts}


@dataclass(frozen=True, kw_only=True)
class OneShot(Pruned):
    """FedAvg of the largest weights of the initial model.

    Attributes:
        layers_by: How they are dealt out to the layers: "erk", or "uniform", the same density in
            each.
    """

    layers_by: str = "erk"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "layers_by", self.layers_by in DEALT, f"one of {', '.join(DEALT)}")

    def counts(self, density: float, state: State) -> Mapping[str, int]:
        """How many weights of each layer live in devices of this density."""
        return DEALT[self.layers_by](self.facts.layout, self.facts.prunable, density)
