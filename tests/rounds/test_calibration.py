"""Rounds that calibrate: who is heard, what the model gets, and what cannot be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedtiny.errors import StrategyError
from fedtiny.layout import FROZEN, Layout, Parameter
from fedtiny.rounds import calibration
from fedtiny.rounds.content import OpenRound
from fedtiny.rounds.coordinator import Coordinator
from fedtiny.rounds.journal import MemoryJournal, replay
from fedtiny.rounds.measures import Measures
from fedtiny.rounds.rules import Rules
from fedtiny.strategies.base import Round
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.fedbuff import FedBuff
from fedtiny.values import ACCEPTED, CALIBRATE, RANGES, TRAIN, WIDER, Update

LAYOUT = Layout.of(
    [
        Parameter("fc.weight", (2, 2)),
        Parameter("x.range", (2,), FROZEN),
        Parameter("relu.range", (2,), FROZEN),
    ]
)
START = np.array([1, 2, 3, 4, 0, 0, 0, 0], np.float32)
TURN = Round(0, 3)
STRATEGY = FedAvg(cohort=2)


def opened() -> OpenRound:
    return OpenRound.of(STRATEGY, TURN, LAYOUT, START, {})


def update(*ranges: float, samples: int = 1) -> Update:
    values = np.array(ranges, np.float32).tobytes()
    return Update(0, 1, 0, 0, samples, values, ((0, len(ranges)),) if ranges else ())


def concluded(*updates: Update) -> np.ndarray:
    round = opened()
    part, reasons = round.add_all(round.nothing, updates)
    assert reasons == [""] * len(updates)
    return round.conclude([part], Measures(), failed=False).model


def test_a_model_without_a_range_is_calibrated_before_the_strategy_is_asked() -> None:
    asked = opened().instruction
    assert (asked.kind, asked.returns, asked.floats(LAYOUT)) == (CALIBRATE, RANGES, 4)
    for lo, hi, due in (
        (0, 1, TRAIN),
        (-1, 0, TRAIN),
        (0, 0, CALIBRATE),
        (0, 2.0**-101, CALIBRATE),
    ):
        model = START.copy()
        model[4:] = 0, 1, lo, hi
        assert OpenRound.of(STRATEGY, TURN, LAYOUT, model, {}).instruction.kind == due


def test_the_ranges_are_the_means_of_the_devices_by_their_samples() -> None:
    model = concluded(update(0, 1, -2, 4), update(-1, 2, -1, 0, samples=3))
    assert model.tolist() == [1, 2, 3, 4, -0.75, 1.75, -1.25, 1]


def test_a_device_of_int8_is_heard_and_changes_nothing() -> None:
    heard = update(0, 1, -2, 4)
    np.testing.assert_array_equal(concluded(heard, update()), concluded(heard))
    assert opened().conclude([opened().nothing], Measures(), failed=False).changed is False


def test_an_activation_that_never_changes_is_an_error_that_names_it() -> None:
    with pytest.raises(StrategyError, match="relu is 0 on all samples of 1 devices"):
        concluded(update(0, 1, 0, 0))


def test_ranges_that_are_no_numbers_are_refused() -> None:
    round = opened()
    for wrong in (update(0, np.nan, 0, 1), update(0, 2.0**21, 0, 1), update(0, 1, samples=0)):
        _, reasons = round.add_all(round.nothing, [wrong])
        assert reasons[0]


def test_rounds_that_overlap_cannot_calibrate() -> None:
    with pytest.raises(StrategyError, match="FedBuff lets rounds overlap"):
        calibration.instruction(FedBuff(cohort=2), RANGES, ())


def test_a_restart_and_a_replay_know_the_calibrated_model() -> None:
    journal, rules = MemoryJournal(), Rules(rounds=2, cohort=2, deadline_s=60.0, minimum=2)
    run = Coordinator(rules, STRATEGY, LAYOUT, START, journal, 2)
    for device, ranges in enumerate(((0, 1, -2, 4), ())):
        work = run.check_in(1.0, device)
        assert isinstance(work, tuple)
        (receipt,) = run.submit(2.0, [replace(update(*ranges), lease=work[0].id, device=device)])
        assert receipt.status == ACCEPTED
    again = Coordinator(rules, STRATEGY, LAYOUT, START, journal, 2)
    *_, (model, _) = replay(journal, 2, STRATEGY, LAYOUT, START)
    assert run.model.tolist() == [1, 2, 3, 4, 0, 1, -2, 4]
    np.testing.assert_array_equal(again.model, run.model)
    np.testing.assert_array_equal(model, run.model)
    assert again.open.instruction.kind == TRAIN


def test_ranges_are_observed_anew_behind_2_4_8_rounds() -> None:
    model = np.array([1, 2, 3, 4, 0, 1, -2, 4], np.float32)
    asked = [OpenRound.of(STRATEGY, Round(t, 20), LAYOUT, model, {}).instruction for t in range(20)]
    assert [t for t, each in enumerate(asked) if each.returns == WIDER] == [2, 4, 8, 16]
    assert calibration.due(LAYOUT, model, FedBuff(cohort=2), Round(4, 20)) == ""
    assert calibration.due(Layout(LAYOUT.parameters[:1]), model, STRATEGY, Round(4, 20)) == ""


def test_an_activation_that_dies_in_training_keeps_its_range() -> None:
    model = np.array([1, 2, 3, 4, 0, 1, -2, 4], np.float32)
    round = OpenRound.of(STRATEGY, Round(4, 20), LAYOUT, model, {})
    part = round.add(round.nothing, update(0, 3, 0, 0))
    assert round.conclude([part], Measures(), failed=False).model.tolist()[4:] == [0, 3, -2, 4]
