"""What every strategy can do. A new one gets all of it for one row of the table."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import numpy as np
import pytest

from fedtiny.rounds.journal import replay
from fedtiny.strategies.base import Strategy
from fedtiny.strategies.none import NoTraining
from fedtiny.strategies.pruned import Adjusting
from fedtiny.strategies.table import TABLE, build
from fedtiny.values import Ranges, Update
from tests.harness.toys import FLEET, INITIAL, LAYOUT, Run

STRATEGIES: Mapping[str, Mapping[str, object]] = {
    "fedavg": {"name": "fedavg", "cohort": 4, "beta": 0.1},
    "fedprox": {"name": "fedprox", "cohort": 4, "beta": 0.1, "mu": 0.5, "steps": 3},
    "fedavgm": {"name": "fedavgm", "cohort": 4, "beta": 0.1, "server_momentum": 0.5},
    "fedadam": {"name": "fedadam", "cohort": 4, "beta": 0.1, "server_lr": 0.05},
    "reptile": {"name": "reptile", "cohort": 4, "beta": 0.1, "steps": 4},
    "tinyreptile": {"name": "tinyreptile", "beta": 0.1},
    "tinyreptile of four": {"name": "tinyreptile", "beta": 0.1, "cohort": 4, "anneal": "cosine"},
    "median": {"name": "median", "cohort": 4, "beta": 0.1},
    "oneshot": {"name": "oneshot", "cohort": 4, "beta": 0.1},
    "fedtiny": {"name": "fedtiny", "cohort": 4, "beta": 0.1, "every": 2, "stop": 6},
    "fedrts": {"name": "fedrts", "cohort": 4, "beta": 0.1, "every": 2, "stop": 6},
    "feddst": {"name": "feddst", "cohort": 4, "beta": 0.1, "every": 2, "stop": 6},
    "sap": {"name": "sap", "cohort": 4, "beta": 0.1, "every": 2},
    "joint": {"name": "joint", "cohort": 4, "beta": 0.1},
    "none": {"name": "none", "cohort": 4},
    "a user's": {"build": "tests.strategies.own:SignAveraging", "cohort": 4},
    "a user's optimiser": {"build": "tests.strategies.own:AnnealedAdam", "cohort": 4},
}

# Nobody trains coordinate 5; device 1 trains 0 and 1 only.
PARTIAL: Mapping[int, Ranges] = dict.fromkeys(range(6), ((0, 2), (3, 5))) | {1: ((0, 2),)}


@pytest.fixture(params=STRATEGIES)
def strategy(request: pytest.FixtureRequest) -> Strategy:
    return build(STRATEGIES[request.param]).fitted(FLEET)


def trains(strategy: Strategy) -> bool:
    return not isinstance(strategy, NoTraining)


def test_every_strategy_that_ships_is_under_test() -> None:
    assert {spec.get("name") for spec in STRATEGIES.values()} >= set(TABLE)


def test_a_run_trains_a_finite_model(strategy: Strategy) -> None:
    model = Run(strategy).finish()
    assert np.isfinite(model).all()
    assert (model.tobytes() != INITIAL.tobytes()) == trains(strategy)


def test_the_order_of_arrival_changes_no_bit(strategy: Strategy) -> None:
    def backwards(updates: list[Update]) -> list[Update]:
        return updates[::-1]

    a, b = Run(strategy, trained=PARTIAL), Run(strategy, trained=PARTIAL)
    while a.coordinator.rounds.phase != "done":
        a.round()
        b.round(backwards)
    assert a.coordinator.model.tobytes() == b.coordinator.model.tobytes()


def test_a_crash_after_every_update_changes_no_bit(strategy: Strategy) -> None:
    crashing = Run(strategy)
    while crashing.coordinator.rounds.phase != "done":
        for update in crashing.updates():
            crashing.restart()
            crashing.coordinator.submit(crashing.now, [update])
            crashing.restart()
    assert crashing.coordinator.model.tobytes() == Run(strategy).finish().tobytes()


def test_replay_rebuilds_every_model(strategy: Strategy) -> None:
    run = Run(strategy)
    seen = [run.coordinator.model.tobytes()]
    while run.coordinator.rounds.phase != "done":
        run.round()
        seen.append(run.coordinator.model.tobytes())
    assert run.journal is not None
    rebuilt = replay(run.journal, run.rounds, strategy, LAYOUT, INITIAL)
    assert [model.tobytes() for model, _ in rebuilt] == seen


def test_what_nobody_trains_stays_as_it_is(strategy: Strategy) -> None:
    model = Run(strategy, trained=PARTIAL).finish()
    assert model[5] == INITIAL[5]
    assert model[2] in ({INITIAL[2], 0.0} if isinstance(strategy, Adjusting) else {INITIAL[2]})
    assert (model[0] != INITIAL[0]) == trains(strategy)


def test_the_state_survives_json_and_npz(strategy: Strategy) -> None:
    state = Run(strategy).coordinator.strategy_state
    arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    numbers = {name: value for name, value in state.items() if name not in arrays}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    file.seek(0)
    restored = dict(np.load(file, allow_pickle=False)) | json.loads(json.dumps(numbers))
    assert restored.keys() == state.keys()
    for name, value in state.items():
        assert np.array_equal(restored[name], value)


def test_finishing_leaves_its_arguments_alone(strategy: Strategy) -> None:
    run = Run(strategy, rounds=2)
    model, state = run.coordinator.model, run.coordinator.strategy_state
    before = model.copy(), {name: np.copy(value) for name, value in state.items()}
    run.round()
    assert np.array_equal(model, before[0])
    assert all(np.array_equal(state[name], value) for name, value in before[1].items())


@pytest.mark.parametrize("spec", STRATEGIES.values(), ids=STRATEGIES)
def test_a_strategy_is_a_value(spec: Mapping[str, object]) -> None:
    assert len({build(spec), build(spec)}) == 1
