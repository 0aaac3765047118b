"""What a round makes of its updates: their bases, their fixed point, the gate, who is barred."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedtiny.errors import StrategyError
from fedtiny.fold import Total
from fedtiny.rounds.content import STATISTICS_BOUND, OpenRound
from fedtiny.rounds.coordinator import Coordinator
from fedtiny.rounds.journal import MemoryJournal, replay
from fedtiny.rounds.measures import Measures
from fedtiny.rounds.rules import Rules
from fedtiny.strategies.base import Round, State, Strategy, deltas
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.fedbuff import FedBuff
from fedtiny.strategies.median import Median
from fedtiny.values import GRADIENT, SUMS, FeatureSums, Instruction, Phase, Transform, Update
from tests.harness.toys import INITIAL, LAYOUT, Run

if TYPE_CHECKING:
    from fedtiny.tensors import Float32, Int64

TURN = Round(0, 3)


def opened(strategy: Strategy, asked: Instruction, version: int = 0) -> OpenRound:
    older = {0: INITIAL - 1} if version else {}
    return OpenRound(strategy, TURN, LAYOUT, asked, INITIAL, {}, version, older)


def update(values: Float32, version: int = 0, samples: int = 2) -> Update:
    return Update(0, 1, 0, version, samples, values.tobytes(), ((0, values.size),))


def test_a_transformed_update_is_a_delta_already() -> None:
    asked = Instruction(phases=(Phase(0.1),), transforms=(Transform("clip", 1.0),))
    round = opened(FedAvg(cohort=2), asked)
    part = round.add(round.nothing, update(np.full(6, 0.25, np.float32)))
    assert isinstance(part, Total)
    assert part.mean().tolist() == [0.25] * 6
    assert round.base is None


def test_a_strategy_that_sees_every_update_gets_values_of_a_model_under_transforms_too() -> None:
    chain = (Transform("topk", 0.3), Transform("int8"))
    round = opened(Median(cohort=2), Instruction(phases=(Phase(0.1),), transforms=chain))
    whole = update(np.full(6, 0.25, np.float32))
    some = replace(
        update(np.array([0.5, -2.0], np.float32)),
        ranges=((0, 6),), places=np.array([1, 4], np.uint32).tobytes(),
    )  # fmt: skip
    part = round.add(round.add(round.nothing, whole), some)
    assert isinstance(part, tuple)
    moved = np.array([[0.25] * 6, [0, 0.5, 0, 0, -2.0, 0]])
    np.testing.assert_allclose(deltas(part, INITIAL), moved, atol=1e-6)
    gradient = opened(Median(cohort=2), replace(round.instruction, returns=GRADIENT))
    assert gradient.add(gradient.nothing, whole) == (whole,)


def test_sums_are_added_up_as_they_are_with_the_bound_of_statistics() -> None:
    asked = Instruction(kind=SUMS, sums=FeatureSums("fc.weight"))
    round = opened(FedAvg(cohort=2), asked)
    sums = np.arange(LAYOUT["fc.weight"].shape[1] * 3, dtype=np.float32) * 1000
    part = round.nothing
    for samples in (1, 9):
        part = round.add(part, update(sums, samples=samples))
    assert isinstance(part, Total)
    assert round.rule.bound == STATISTICS_BOUND
    assert (2 * part.mean()).tolist() == (
        2 * sums
    ).tolist()  # of two devices, alike whatever their samples


def test_updates_of_different_versions_are_added_together_as_one_by_one() -> None:
    strategy = FedBuff(cohort=4, concurrency=4, max_staleness=9)
    round = opened(strategy, Instruction(phases=(Phase(0.1),)), version=3)
    draws = np.random.default_rng(1)
    updates = [update(draws.normal(size=6).astype(np.float32), version) for version in (3, 0, 3, 0)]
    together, reasons = round.add_all(round.nothing, updates)
    one_by_one = round.nothing
    for each in updates:
        one_by_one = round.add(one_by_one, each)
    assert together == one_by_one
    assert reasons == [""] * 4
    bases = {3: INITIAL, 0: INITIAL - 1}
    moved = [np.frombuffer(bytes(u.values), np.float32) - bases[u.version] for u in updates]
    expected = np.average(moved, axis=0, weights=[1, 0.5, 1, 0.5])  # 1 / sqrt(1 + 3)
    assert isinstance(together, Total)
    np.testing.assert_allclose(together.mean(), expected, atol=1e-5)


# --- the gate


def worse(before: Float32, after: Float32) -> Mapping[str, float | None] | None:
    """Holds back models whose first value has grown."""
    if after[0] <= before[0]:
        return None
    return {"before": float(before[0]), "after": float(after[0])}


def test_a_model_that_the_gate_holds_back_changes_nothing() -> None:
    asked = Instruction(phases=(Phase(0.1),))
    for change, changed in ((0.5, False), (-0.5, True)):
        round = opened(FedAvg(cohort=1), asked)
        part = round.add(round.nothing, update(INITIAL + np.float32(change)))
        done = round.conclude([part], Measures(), failed=False, gate=worse)
        assert done.changed == changed
        assert (done.model is INITIAL) != changed
        assert done.gated == (None if changed else {"before": 0.5, "after": 1.0})


def test_a_gated_round_is_committed_without_a_new_version_and_replayed() -> None:
    strategy = FedAvg(cohort=2, beta=0.1)
    run = Run(strategy, rounds=3)
    told: list[object] = []
    run.coordinator.gate = lambda before, after: {"before": 1.0, "after": None}
    run.coordinator.on_commit = lambda published, _: told.append(published.gated)
    run.round()
    run.coordinator.gate = None
    run.finish()
    assert told == [{"before": 1.0, "after": None}, None, None]
    assert run.journal is not None
    assert [c.version for c in run.journal.commits()] == [0, 1, 2]
    assert [c.leases.size for c in run.journal.commits()] == [2, 2, 2]
    models = [m for m, _ in replay(run.journal, 3, strategy, LAYOUT, INITIAL)]
    assert models[1].tobytes() == INITIAL.tobytes()
    assert models[-1].tobytes() == run.coordinator.model.tobytes()


# --- who is barred


@dataclass(frozen=True, kw_only=True)
class Barring(FedAvg):
    """Bars these devices from every round."""

    out: tuple[int, ...] = ()

    def barred(self, state: State) -> Int64:
        return np.array(self.out, np.int64)


def coordinator(*out: int) -> Coordinator:
    rules = Rules(3, 2, 10.0, 2)
    return Coordinator(rules, Barring(cohort=2, out=out), LAYOUT, INITIAL, MemoryJournal(), 4)


def test_a_round_knows_whom_it_must_not_ask() -> None:
    assert coordinator(3, 1, 3).open.barred.tolist() == [1, 3]


def test_a_strategy_that_bars_too_many_is_told() -> None:
    with pytest.raises(StrategyError, match="3 of the 4 devices that train are barred, and each"):
        coordinator(0, 1, 2)


@pytest.mark.parametrize("out", [(-1,), (0.5,)])
def test_barred_devices_are_named_by_their_indices(out: tuple[int, ...]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wrong(FedAvg):
        def barred(self, state: State) -> Int64:
            return np.array(out)

    rules = Rules(3, 2, 10.0, 2)
    with pytest.raises(StrategyError, match=r"Wrong.barred in round 0 of 3 must give indices of"):
        Coordinator(rules, Wrong(cohort=2), LAYOUT, INITIAL, MemoryJournal(), 4)
