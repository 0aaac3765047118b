"""Strategies as a user would write them, found by ``build = "module:object"``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fedtiny import Strategy
from fedtiny.strategies.base import Averaging, Contribution, Round, State
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.fedopt import ServerAdam

if TYPE_CHECKING:
    from fedtiny.strategies.base import ServerOptimizer
    from fedtiny.tensors import Float32


@dataclass(frozen=True, kw_only=True)
class SignAveraging(Averaging):
    """Every coordinate moves by ``step`` in the direction in which most weight pulls."""

    step: float = 0.01

    def finish(
        self, round: Round, model: Float32, contribution: Contribution, state: State
    ) -> tuple[Float32, State]:
        direction = np.sign(contribution.mean())  # type: ignore[union-attr]
        return (model + self.step * direction).astype(np.float32), state


@dataclass(frozen=True, kw_only=True)
class AnnealedAdam(Averaging):
    """Another optimiser on the server, annealed."""

    def server(self, round: Round) -> ServerOptimizer:
        return ServerAdam(0.1 * round.left)


@dataclass(frozen=True, kw_only=True)
class Failing(FedAvg):
    """Raises in round ``bad_round``."""

    bad_round: int = 1

    def finish(
        self, round: Round, model: Float32, contribution: Contribution, state: State
    ) -> tuple[Float32, State]:
        if round.t == self.bad_round:
            raise ZeroDivisionError("a bug of the user's")
        return super().finish(round, model, contribution, state)


FAULTS: Mapping[str, Callable[[Float32], Any]] = {
    "wrong shape": lambda model: (model[:-1], {}),
    "wrong type": lambda model: (model.astype(np.float64), {}),
    "not finite": lambda model: (np.full_like(model, np.nan), {}),
    "nothing": lambda model: None,
    "a state that cannot be stored": lambda model: (model, {"rng": object()}),
    "raises": lambda model: 1 / 0,
}


@dataclass(frozen=True, kw_only=True)
class Faulty(FedAvg):
    """FedAvg, with a fault in its second round until it is ``repaired``."""

    fault: str = "raises"

    repaired: ClassVar[bool] = False

    def finish(self, round: Round, model: Float32, *rest: Any) -> Any:
        if round.t == 1 and not self.repaired:
            return FAULTS[self.fault](model)
        return super().finish(round, model, *rest)


def gentle(cohort: int = 2) -> Strategy:
    return FedAvg(cohort=cohort, beta=0.001)


ready_made = FedAvg(cohort=3)
not_a_strategy = "fedavg"


def gives_nothing() -> None:
    return None
