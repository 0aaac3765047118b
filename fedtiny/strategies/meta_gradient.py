"""What first-order meta-learning by gradients shares: FOMAML, and ANIL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedtiny.strategies.base import MetaAveraging, Round, ServerOptimizer, ServerSgd
from fedtiny.values import GRADIENT, QUERY, SUPPORT, Instruction, Phase, Sgd

if TYPE_CHECKING:
    from fedtiny.strategies.base import State


@dataclass(frozen=True, kw_only=True)
class MetaGradient(MetaAveraging):
    """A device sends one gradient: that of a batch of its query, where adaptation has led.

    So the Programs' batch is also how many samples of the query count.
    """

    cohort: int = 5
    steps: int = 5
    alpha: float = 0.1

    @property
    def adapted(self) -> tuple[str, ...]:
        """The groups of parameters that adaptation trains; empty: all."""
        return ()

    def ask(self, round: Round, state: State) -> Instruction:
        """Adapt on the support, then return the gradient on the query."""
        adapt = Phase(self.beta, self.steps, SUPPORT, self.adapted, self.shuffle, self.sgd)
        judge = Phase(self.beta, 1, QUERY, sgd=Sgd(clip=self.clip))
        return Instruction(phases=(adapt, judge), returns=GRADIENT)

    def server(self, round: Round) -> ServerOptimizer:
        """One step of size alpha_t against the mean gradient."""
        return ServerSgd(-self.alpha_at(round))
