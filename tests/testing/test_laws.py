"""Each law finds out who breaks it, and says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from fedtiny.errors import RunError, StrategyError
from fedtiny.strategies.base import Contribution, Round, State
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.testing import LAWS, conformance, laws
from fedtiny.testing.trial import Trial, undisturbed

if TYPE_CHECKING:
    from fedtiny.tensors import Float32, Float64

Finished = tuple["Float32", State]


@dataclass(frozen=True, kw_only=True)
class Nameless(FedAvg):
    """Has something that is equal to nothing but itself."""

    memory: object = field(default_factory=object)


@dataclass(frozen=True, kw_only=True)
class Diverging(FedAvg):
    def finish(self, round: Round, model: Float32, total: Contribution, state: State) -> Finished:
        return np.full_like(model, np.nan), state


@dataclass(frozen=True, kw_only=True)
class Impatient(FedAvg):
    """The first who come count for more."""

    calls: ClassVar[Any] = count(1)

    def weight(self, samples: Float64) -> Float64:
        return np.full_like(samples, 1.0 / next(self.calls))


@dataclass(frozen=True, kw_only=True)
class Crowding(FedAvg):
    """An update counts for as many as it comes with."""

    def weight(self, samples: Float64) -> Float64:
        return np.full_like(samples, samples.size)


@dataclass(frozen=True, kw_only=True)
class Forgetful(FedAvg):
    """Remembers in itself how often it has finished."""

    def finish(self, round: Round, model: Float32, total: Contribution, state: State) -> Finished:
        times = 1 + vars(self).get("times", 0)
        object.__setattr__(self, "times", times)
        after, state = super().finish(round, model, total, state)
        return (model + (after - model) / times).astype(np.float32), state


@dataclass(frozen=True, kw_only=True)
class Moody(FedAvg):
    """No two times the same."""

    calls: ClassVar[Any] = count(1)

    def finish(self, round: Round, model: Float32, total: Contribution, state: State) -> Finished:
        after, state = super().finish(round, model, total, state)
        return (model + (after - model) / next(self.calls)).astype(np.float32), state


@dataclass(frozen=True, kw_only=True)
class Decaying(FedAvg):
    """Moves what nobody has trained."""

    def finish(self, round: Round, model: Float32, total: Contribution, state: State) -> Finished:
        after, state = super().finish(round, model, total, state)
        return (0.9 * after).astype(np.float32), state


@dataclass(frozen=True, kw_only=True)
class Undefined(FedAvg):
    def start(self, layout: object, model: Float32) -> State:
        return {"best": float("nan")}

    def finish(self, round: Round, model: Float32, total: Contribution, state: State) -> Finished:
        return super().finish(round, model, total, {})[0], state


@dataclass(frozen=True, kw_only=True)
class InPlace(FedAvg):
    def finish(self, round: Round, model: Float32, total: Contribution, state: State) -> Finished:
        after, state = super().finish(round, model, total, state)
        model[:] = after
        return after, state


@dataclass(frozen=True, kw_only=True)
class InPlaceState(FedAvg):
    def start(self, layout: object, model: Float32) -> State:
        return {"sum": np.zeros(1)}

    def finish(self, round: Round, model: Float32, total: Contribution, state: State) -> Finished:
        state["sum"][0] += 1.0  # type: ignore[index]
        return super().finish(round, model, total, {})[0], state


def spec(name: str) -> dict[str, object]:
    return {"build": f"{__name__}:{name}", "cohort": 3, "beta": 0.1}


OFFENCES = [
    ("Nameless", laws.it_is_a_value, "differ: make it a frozen"),
    ("Impatient", laws.the_order_of_arrival_changes_no_bit, r"order .* \(\d+ of \d+ values\)"),
    ("Crowding", laws.parts_that_are_merged_change_no_bit, "folded together make another model"),
    ("Forgetful", laws.a_crash_after_every_update_changes_no_bit, "in the State alone"),
    ("Decaying", laws.what_nobody_trains_stays_as_it_is, "nobody trained have moved"),
    ("Undefined", laws.the_state_can_be_stored, "'best' is lost"),
    ("InPlace", laws.finishing_leaves_its_arguments_alone, "wrote to the model"),
    ("InPlaceState", laws.finishing_leaves_its_arguments_alone, "wrote to the state's 'sum'"),
]


@pytest.mark.parametrize(("name", "law", "told"), OFFENCES, ids=[name for name, _, _ in OFFENCES])
def test_who_breaks_a_law_is_told_so(
    name: str, law: Callable[[Mapping[str, object]], None], told: str
) -> None:
    with pytest.raises(AssertionError, match=told):
        law(spec(name))


def test_a_model_that_is_not_finite_is_an_error_with_the_round() -> None:
    with pytest.raises(StrategyError, match=r"Diverging.finish in round 0 of 3 must give a finite"):
        laws.a_run_gives_a_finite_model(spec("Diverging"))


def test_a_strategy_whose_rounds_cannot_be_replayed_is_told_which() -> None:
    with pytest.raises(RunError, match="round 0 gives the model"):
        laws.replay_rebuilds_every_model(spec("Moody"))


def test_every_law_can_be_broken() -> None:
    broken = {law for _, law, _ in OFFENCES}
    broken |= {laws.a_run_gives_a_finite_model, laws.replay_rebuilds_every_model}
    assert broken == set(LAWS)


def test_conformance_is_a_test_for_each_law() -> None:
    test = conformance(spec("Moody"))
    (mark,) = test.pytestmark  # type: ignore[attr-defined]
    assert mark.name == "parametrize"
    assert mark.args == ("law", LAWS)
    with pytest.raises(RunError, match="round 0"):
        test(laws.replay_rebuilds_every_model)


def test_a_trial_has_devices_that_train_only_a_part() -> None:
    trial = Trial({"name": "fedavg", "cohort": 4})
    sent = {update.device: update.nbytes for update in trial.visits()}
    assert sorted(sent) == [0, 1, 2, 3]
    assert sent[1] == sent[3] < sent[0] == sent[2] < 4 * trial.work.layout.size


def test_a_strategy_that_was_written_anew_is_tried_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = undisturbed(spec("Forgetful")).tobytes()
    monkeypatch.setitem(globals(), "Forgetful", FedAvg)
    assert undisturbed(spec("Forgetful")).tobytes() != before


def test_a_run_that_never_ends_says_in_which_round_it_hangs() -> None:
    with pytest.raises(AssertionError, match="round 0 of 3 is still open"):
        Trial({"name": "fedavg", "cohort": 4}).each(lambda trial: None)
