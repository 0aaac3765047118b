"""No training: the baseline that shows what adaptation alone can do.

The model stays at its initial values. Its rounds only measure, so that a run of it has the same
shape as any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedtiny.strategies.base import Round, Strategy
from fedtiny.values import EVALUATE, Instruction

if TYPE_CHECKING:
    from fedtiny.strategies.base import State


@dataclass(frozen=True, kw_only=True)
class NoTraining(Strategy):
    """Asks devices how the initial model does, and changes nothing."""

    def ask(self, round: Round, state: State) -> Instruction:
        """Measure, without a phase, so nothing trains."""
        return Instruction(kind=EVALUATE)
