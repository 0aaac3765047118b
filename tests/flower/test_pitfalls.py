"""What has hurt others who drove strategies of Flower's by themselves: each of it once.

Numbers as in the notes on Flower's seams. `grid.py` knows them; these tests tell when a new flwr
has changed what it relies on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from flwr.app import Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedtiny import simulate
from fedtiny.errors import StrategyError
from fedtiny.flower.driving import Spec
from fedtiny.flower.grid import claim_process, reply
from fedtiny.layout import Layout, Parameter
from fedtiny.masks import Mask
from fedtiny.strategies import calls
from fedtiny.strategies.base import FleetFacts, Round
from fedtiny.values import Update
from tests.flower.conftest import Make
from tests.harness.toys import FLEET, INITIAL, LAYOUT, WHOLE, Run

if TYPE_CHECKING:
    from fedtiny.tensors import Float32


def update(device: int, model: Float32, **told: float) -> Update:
    return Update(device, device, 0, 0, 1, model.tobytes(), WHOLE, dict(told))


def finish(make: Make, name: str, updates: list[Update], **arguments: object) -> Float32:
    strategy = make(name, arguments, cohort=len(updates)).fitted(FLEET)
    state = calls.start(strategy, LAYOUT, INITIAL)
    model, _ = calls.finish(strategy, Round(0, 1), INITIAL, updates, state)
    return model


@pytest.fixture
def no_identity() -> Iterator[None]:
    """This process has none, and what claims it is undone."""
    from flwr.serverapp.strategy import strategy_utils

    before = TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id
    sleep = strategy_utils.sleep  # type: ignore[attr-defined]
    for name in ("_run_id", "_node_id", "_task_id"):
        setattr(TaskIdentity, name, None)
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before
    vars(strategy_utils)["sleep"] = sleep


@pytest.mark.usefixtures("no_identity")
def test_1_a_message_needs_an_identity_of_its_process() -> None:
    with pytest.raises(RuntimeError, match="is not set"):
        Message(RecordDict(), 1, MessageType.TRAIN)
    claim_process()
    assert Message(RecordDict(), 1, MessageType.TRAIN).metadata.dst_node_id == 1


@pytest.mark.usefixtures("no_identity")
def test_2_a_message_has_no_id_until_a_grid_gives_it_one() -> None:
    claim_process()
    sent = [Message(RecordDict(), node, MessageType.TRAIN) for node in (1, 2)]
    assert [message.metadata.message_id for message in sent] == ["", ""]
    answers = [reply(message, at, RecordDict()) for at, message in enumerate(sent)]
    assert len({answer.metadata.reply_to_message_id for answer in answers} - {""}) == 2
    assert [answer.metadata.src_node_id for answer in answers] == [1, 2]


def test_3_a_run_goes_on_where_flowers_own_start_would_begin_again(make: Make) -> None:
    strategy = make("FedAdam", {"eta": 0.1}).fitted(FLEET)
    run = Run(strategy, rounds=4)
    run.round()
    run.round()
    run.restart()  # the moments m and v are in the state
    assert run.coordinator.rounds.round == 2
    assert run.finish().tobytes() == Run(strategy, rounds=4).finish().tobytes()


def test_4_a_device_that_measures_something_else_ends_no_round(make: Make) -> None:
    moved = [(INITIAL + step).astype(np.float32) for step in (1, 2, 3)]
    alike = [update(d, m, loss_sum=1.0, steps=1.0) for d, m in enumerate(moved)]
    odd = replace(alike[1], measures={"temperature": 20.0})
    expected = finish(make, "FedAvg", alike)
    assert finish(make, "FedAvg", [alike[0], odd, alike[2]]).tobytes() == expected.tobytes()


def test_5_masked_updates_are_dense_float32_and_so_is_the_model(make: Make) -> None:
    mask = Mask.of(np.array([True, False, True, True, False, True]))
    values = (INITIAL[mask.bools] + 1).astype(np.float32)
    sparse = Update(0, 0, 0, 0, 1, values.tobytes(), WHOLE, mask=mask)
    model = finish(make, "FedAdam", [sparse, replace(sparse, lease=1, device=1)])
    assert model.dtype == np.float32
    np.testing.assert_array_equal(model == INITIAL, ~mask.bools)


def test_5_small_numbers_for_a_few_coordinates_average_as_what_they_stand_for() -> None:
    models = []
    for strategy in ({"build": "flwr.serverapp.strategy:FedAvg"}, {"name": "fedavg"}):
        sent = {"cohort": 3, "beta": 0.02, "transforms": ["topk:0.2", "int8"]}
        result = simulate({
            "seed": 7, "model": {"build": "sine_mlp"}, "data": {"source": "sine"},
            "strategy": strategy | sent, "fleet": {"devices": 6, "held_out": 0},
            "run": {"rounds": 3},
        })  # fmt: skip
        models.append(result.model)
    assert models[0].dtype == np.float32
    np.testing.assert_allclose(models[0], models[1], rtol=0, atol=1e-6)


def test_6_a_strategy_that_uses_its_replies_up_leaves_the_updates_alone(make: Make) -> None:
    updates = [update(d, (INITIAL + d).astype(np.float32)) for d in range(3)]
    before = [bytes(each.values) for each in updates]
    twice = [finish(make, "FedMedian", updates).tobytes() for _ in range(2)]
    assert twice[0] == twice[1] == (INITIAL + 1).astype(np.float32).tobytes()
    assert [bytes(each.values) for each in updates] == before


def test_7_a_round_that_it_skips_leaves_the_model_as_it_is(make: Make) -> None:
    # Bulyan takes 4 f + 3 = 7 updates against one attacker.
    updates = [update(d, (INITIAL + d).astype(np.float32)) for d in range(4)]
    assert finish(make, "Bulyan", updates, num_malicious_nodes=1).tobytes() == INITIAL.tobytes()


def test_8_a_strategy_that_would_wait_for_more_devices_says_so_at_once(make: Make) -> None:
    lonely = make("FedAvg", cohort=1).fitted(FLEET)  # min_train_nodes is 2
    state = calls.start(lonely, LAYOUT, INITIAL)
    with pytest.raises(StrategyError, match=r"more devices than the cohort.*min_train_nodes"):
        calls.ask(lonely, Round(0, 1), state, LAYOUT)
    few = {"min_train_nodes": 1, "min_available_nodes": 1}
    assert Run(make("FedAvg", few, cohort=1)).finish().tobytes() != INITIAL.tobytes()


def test_8_a_strategy_that_asks_some_of_its_cohort_is_told_to_ask_all(make: Make) -> None:
    choosy = make("FedAvg", {"fraction_train": 0.5}).fitted(FLEET)
    state = calls.start(choosy, LAYOUT, INITIAL)
    with pytest.raises(StrategyError, match=r"asks 2 of 4 devices.*fraction_train = 1"):
        calls.ask(choosy, Round(0, 1), state, LAYOUT)


def test_8_what_it_draws_follows_the_round_and_moves_no_generator_of_ours(make: Make) -> None:
    random.seed(3)
    before = random.getstate()
    a, b = (Run(make("tests.flower.theirs:Remembering")) for _ in range(2))
    a.finish()
    b.finish()
    assert random.getstate() == before
    kept = [np.asarray(run.coordinator.strategy_state["flower"]) for run in (a, b)]
    np.testing.assert_array_equal(kept[0], kept[1])  # among it what `random` gave in each round


def test_9_a_cohort_that_does_not_fit_into_memory_is_refused_with_the_figures(make: Make) -> None:
    large = FleetFacts(layout=Layout.of([Parameter("w", (2**20,))]))
    with pytest.raises(StrategyError, match=r"cohort = 2,000 .*4,194,304 B are 8,388,608,000 B"):
        make("FedAvg", cohort=2000).fitted(large)
    make("FedAvg", cohort=1000).fitted(large)


@pytest.mark.usefixtures("no_identity")
def test_the_strategies_still_take_what_we_make_of_them() -> None:
    """Without a process between: a change of flwr shows here, with its own traceback."""
    from fedtiny.flower import driving

    claim_process()
    spec = Spec("flwr.serverapp.strategy:FedAvg", {})
    arrays = {"w": np.zeros(3, np.float32)}
    turn = {
        "spec": vars(spec), "snapshot": driving.begin(vars(spec)), "number": 1, "seed": 0,
        "arrays": arrays, "nodes": [4, 9],
    }  # fmt: skip
    rows = np.array([[1, 2, 3], [3, 2, 1]], np.float32)
    done = driving.aggregate(turn, rows, [1, 3], [0.5, 0.25])
    np.testing.assert_allclose(done["arrays"]["w"], [2.5, 2.0, 1.5])
    assert done["metrics"] == {"train_loss": pytest.approx(0.3125)}
