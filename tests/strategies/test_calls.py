from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fedtiny.errors import StrategyError
from fedtiny.strategies import calls
from fedtiny.strategies.base import Round
from fedtiny.strategies.fedavg import FedAvg
from tests.harness.toys import INITIAL, LAYOUT, Run
from tests.strategies.own import Failing


def test_a_strategy_that_raises_is_named_with_its_round_and_nothing_is_lost() -> None:
    run = Run(Failing(cohort=4, beta=0.1, bad_round=1))
    run.round()
    with pytest.raises(StrategyError, match=r"Failing.finish failed in round 1 of 3: ZeroDiv.*bug"):
        run.round()
    run.strategy = FedAvg(cohort=4, beta=0.1)  # repaired
    run.restart()
    assert run.coordinator.rounds.round == 2
    undisturbed = Run(FedAvg(cohort=4, beta=0.1))
    assert run.finish().tobytes() == undisturbed.finish().tobytes()


@dataclass(frozen=True, kw_only=True)
class Returning(FedAvg):
    """Returns what a test tells it to."""

    answer: Any = None

    def start(self, *_: Any) -> Any:
        return self.answer

    def ask(self, *_: Any) -> Any:
        return self.answer

    def weight(self, *_: Any) -> Any:
        return self.answer

    def finish(self, *_: Any) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (None, r"Returning.finish in round 2 of 5 must give a pair"),
        ((INITIAL[:3], {}), r"a model of float32 \(6,\), not float32 \(3,\)"),
        ((INITIAL.astype(float), {}), r"not float64 \(6,\)"),
        ((np.array([np.nan, np.inf, 0, 0, 0, 0], np.float32), {}), "2 of 6 values are not"),
        ((INITIAL, None), "a mapping, not NoneType"),
        ((INITIAL, {"m": np.zeros(3, np.float32)}), "'m' is float32"),
        ((INITIAL, {"rng": object()}), "'rng' is object"),
    ],
)
def test_what_finish_returns_is_checked(answer: object, match: str) -> None:
    with pytest.raises(StrategyError, match=match):
        calls.finish(Returning(answer=answer), Round(2, 5), INITIAL, [], {})


def test_what_the_other_methods_return_is_checked() -> None:
    strategy = Returning(answer=[1.0, 2.0])
    with pytest.raises(StrategyError, match="before round 0 must give a mapping, not list"):
        calls.start(strategy, LAYOUT, INITIAL)
    with pytest.raises(StrategyError, match="ask in round 0 of 5 must give an Instruction"):
        calls.ask(strategy, Round(0, 5), {})
    with pytest.raises(StrategyError, match="must give 3 weights, not 2"):
        calls.weight(strategy, Round(0, 5), np.ones(3))
