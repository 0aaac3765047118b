from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedtiny.errors import StrategyError
from fedtiny.fold import Total
from fedtiny.strategies import calls
from fedtiny.strategies.base import Round, State
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.fedbuff import FedBuff
from fedtiny.values import EVALUATE, GRADIENT, Instruction, Phase, Transform, Update
from tests.harness.toys import LAYOUT

TURN = Round(0, 9)
MODEL = np.array([1.0, -2.0], np.float32)


def test_the_server_steps_along_the_mean_of_the_buffer_weighted_by_staleness() -> None:
    strategy = FedBuff(cohort=3, server_lr=0.5)
    deltas, staleness = np.array([[1.0, 0.0], [0.0, 2.0], [4.0, 4.0]]), np.array([0.0, 3.0, 8.0])
    weights = calls.weight(strategy, TURN, np.array([5.0, 50.0, 500.0]), staleness)
    total = Total.zero(2, strategy.fold_rule)
    for delta, weight in zip(deltas, weights, strict=True):
        values = (MODEL + delta).astype(np.float32).tobytes()
        total = total.add(Update(0, 0, 0, 0, 1, values, ((0, 2),)), MODEL, float(weight))
    model, _ = strategy.finish(TURN, MODEL, total, strategy.start(None, MODEL))  # type: ignore[arg-type]
    plain = np.average(deltas, axis=0, weights=[1, 1 / 2, 1 / 3])  # 1 / sqrt(1 + tau)
    np.testing.assert_allclose(model, MODEL + 0.5 * plain, rtol=1e-6)


def test_work_that_is_not_late_is_not_discounted() -> None:
    strategy, samples = FedBuff(cohort=2), np.array([1.0, 7.0])
    assert calls.weight(strategy, TURN, samples).tolist() == [1.0, 1.0]
    assert calls.weight(strategy, TURN, samples, np.zeros(2)).tolist() == [1.0, 1.0]


def test_it_says_that_it_is_asynchronous_and_others_that_they_are_not() -> None:
    buff, plain = FedBuff(concurrency=7, max_staleness=3), FedAvg()
    assert (buff.asynchronous, buff.concurrency, buff.max_staleness) == (True, 7, 3)
    assert (plain.asynchronous, plain.concurrency, plain.max_staleness) == (False, 0, 0)
    assert plain.discount(np.array([0.0, 9.0])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("field", "value"), [("concurrency", 0), ("max_staleness", -1), ("server_lr", 0.0)]
)
def test_fields_that_make_no_sense_are_named(field: str, value: float) -> None:
    with pytest.raises(StrategyError, match=f"FedBuff: {field} = {value}"):
        FedBuff(**{field: value})  # type: ignore[arg-type]


def test_rounds_that_end_while_devices_work_can_only_train() -> None:
    class Measuring(FedBuff):
        def ask(self, round: Round, state: State) -> Instruction:
            return Instruction(kind=EVALUATE)

    with pytest.raises(StrategyError, match=r"Measuring.ask in round 0 of 9 must give the kind"):
        calls.ask(Measuring(cohort=2), TURN, {}, LAYOUT)


@pytest.mark.parametrize(
    ("change", "told"),
    [({"returns": GRADIENT}, r"\('values', \[\], .* not \('gradient', "),
     ({"transforms": (Transform("topk", 0.1),)}, r"not \('values', \['topk:0.1'\]"),
     ({"phases": (Phase(0.1, 3, groups=("shared",)),)}, r"not .* \[\('shared',\)\]")],
)  # fmt: skip
def test_rounds_whose_work_counts_in_each_other_ask_for_the_same(
    change: dict[str, object], told: str
) -> None:
    class Changing(FedBuff):
        def ask(self, round: Round, state: State) -> Instruction:
            asked = super().ask(round, state)
            return replace(asked, **change) if round.t == 3 else asked  # type: ignore[arg-type]

    strategy = Changing(cohort=2)
    for t in (0, 2):
        calls.ask(strategy, Round(t, 9), {}, LAYOUT)
    with pytest.raises(StrategyError, match=f"Changing.ask in round 3 of 9 must give .*{told}"):
        calls.ask(strategy, Round(3, 9), {}, LAYOUT)


def test_a_discount_of_the_wrong_shape_is_told_with_its_round() -> None:
    class Wrong(FedBuff):
        def discount(self, staleness: np.ndarray) -> np.ndarray:
            return np.ones(1)

    with pytest.raises(StrategyError, match=r"Wrong.discount in round 0 of 9 must give 2 weights"):
        calls.weight(Wrong(cohort=2), TURN, np.ones(2), np.array([0.0, 1.0]))
