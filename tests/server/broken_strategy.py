"""A strategy that cannot finish its rounds, until it is repaired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fedtiny.strategies.base import Averaging


@dataclass(frozen=True, kw_only=True)
class Broken(Averaging):
    """Asks like FedAvg, and then fails."""

    repaired: ClassVar[bool] = False

    def finish(self, *arguments: Any) -> Any:
        if not self.repaired:
            raise ArithmeticError("there is no mean")
        return super().finish(*arguments)
