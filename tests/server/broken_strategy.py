"""Strategies that fail until they are repaired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedtiny.strategies.base import Averaging, Round
from fedtiny.values import Instruction

if TYPE_CHECKING:
    from fedtiny.strategies.base import State


@dataclass(frozen=True, kw_only=True)
class Broken(Averaging):
    """Asks like FedAvg, and then fails."""

    repaired: ClassVar[bool] = False

    def finish(self, *arguments: Any) -> Any:
        if not self.repaired:
            raise ArithmeticError("there is no mean")
        return super().finish(*arguments)


@dataclass(frozen=True, kw_only=True)
class AsksOnce(Averaging):
    """Has nothing to ask after its first round."""

    repaired: ClassVar[bool] = False

    def ask(self, round: Round, state: State) -> Instruction:
        if round.t and not self.repaired:
            raise ArithmeticError("there is nothing to ask")
        return super().ask(round, state)
