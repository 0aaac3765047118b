from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fedtiny.errors import StrategyError
from fedtiny.strategies import calls
from fedtiny.strategies.base import Round
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.values import Instruction, Phase
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
        calls.ask(strategy, Round(0, 5), {}, LAYOUT)
    with pytest.raises(StrategyError, match="must give 3 weights, not 2"):
        calls.weight(strategy, Round(0, 5), np.ones(3))


ONE = (Phase(0.1),)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        (Instruction("trian", ONE), "kind = 'trian'; it must be one of train, evaluate"),
        (Instruction(phases=ONE, returns="delta"), "returns = 'delta'"),
        (Instruction("calibrate", part="test"), "part = 'test'"),
        (Instruction(), r"phases = \(\)"),
        (Instruction("score"), r"candidates = \(\)"),
        (Instruction(phases=(*ONE, Phase(float("nan")))), r"phases\[1\].lr = nan"),
        (Instruction(phases=(Phase(-1.0),)), r"phases\[0\].lr = -1.0"),
        (Instruction(phases=(Phase(0.1, -2),)), r"phases\[0\].steps = -2"),
        (Instruction(phases=(Phase(0.1, part="all"),)), r"phases\[0\].part = 'all'"),
        (
            Instruction(phases=(Phase(0.1, groups=("head",)),)),
            r"phases\[0\].groups = .*the model has shared",
        ),
        (Instruction(phases=(Phase(0.1, corrected=True),)), "correction = None"),
        (Instruction(phases=ONE, correction=bytes(8)), "correction has 8 B; the model has 24 B"),
        (Instruction("score", candidates=(3, bytes(4))), r"candidates\[1\] has 4 B"),
    ],
)
def test_an_instruction_that_no_device_could_carry_out_names_its_field(
    asked: Instruction, match: str
) -> None:
    with pytest.raises(StrategyError, match=rf"Returning.ask in round 2 of 5: {match}"):
        calls.ask(Returning(answer=asked), Round(2, 5), {}, LAYOUT)


@pytest.mark.parametrize(
    ("weight", "remedy"),
    [(0.0, "return a positive number"), (float("nan"), "return a positive number"),
     (1e9, "return less, or raise weight_cap")],
)  # fmt: skip
def test_a_weight_that_cannot_be_folded_names_the_strategy_and_the_round(
    weight: float, remedy: str
) -> None:
    with pytest.raises(StrategyError, match=rf"Returning.weight in round 2 of 5: .*{remedy}"):
        calls.weight(Returning(answer=[weight]), Round(2, 5), np.ones(1))


@dataclass(frozen=True, kw_only=True)
class Ruled(FedAvg):
    """Its fold rule is what a test says; an exception is raised."""

    rule: Any = None

    @property
    def fold_rule(self) -> Any:
        if isinstance(self.rule, Exception):
            raise self.rule
        return self.rule


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        (KeyError("cap"), r"fold_rule failed in round 0 of 3: KeyError: 'cap'"),
        (None, r"fold_rule in round 0 of 3 must give a FoldRule, not NoneType"),
    ],
)
def test_a_fold_rule_that_fails_names_the_strategy_and_the_round(rule: object, match: str) -> None:
    strategy = Ruled(cohort=3, beta=0.1, rule=rule)
    with pytest.raises(StrategyError, match=rf"Ruled\.{match}"):
        calls.weight(strategy, Round(0, 3), np.ones(1))
    run = Run(strategy)
    with pytest.raises(StrategyError, match=rf"Ruled\.{match}"):
        run.round()
