"""What every strategy keeps. A new one gets all of it for one row of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from fedtiny.strategies.table import TABLE
from fedtiny.testing import LAWS
from fedtiny.testing.trial import Trial, undisturbed

Spec = Mapping[str, object]

STRATEGIES: Mapping[str, Spec] = {
    "fedavg": {"name": "fedavg", "cohort": 4, "beta": 0.1},
    "fedprox": {"name": "fedprox", "cohort": 4, "beta": 0.1, "mu": 0.5, "steps": 3},
    "fedavgm": {"name": "fedavgm", "cohort": 4, "beta": 0.1, "server_momentum": 0.5},
    "fedadam": {"name": "fedadam", "cohort": 4, "beta": 0.1, "server_lr": 0.05},
    "fedbuff": {"name": "fedbuff", "cohort": 4, "beta": 0.1, "concurrency": 4},
    "fedadagrad": {"name": "fedadagrad", "cohort": 4, "beta": 0.1, "server_lr": 0.05},
    "fedyogi": {"name": "fedyogi", "cohort": 4, "beta": 0.1, "server_lr": 0.05},
    "fednova": {"name": "fednova", "cohort": 4, "beta": 0.1, "momentum": 0.5},
    "fedbn": {"name": "fedbn", "cohort": 4, "beta": 0.1},
    "fedper": {"name": "fedper", "cohort": 4, "beta": 0.1},
    "fedrep": {"name": "fedrep", "cohort": 4, "beta": 0.1, "head_steps": 2},
    "fedncm": {"name": "fedncm", "cohort": 4},
    "fedridge": {"name": "fedridge", "cohort": 4},
    "reptile": {"name": "reptile", "cohort": 4, "beta": 0.1, "steps": 4},
    "tinyreptile": {"name": "tinyreptile", "beta": 0.1},
    "tinymetafed": {"name": "tinymetafed", "beta": 0.1, "upload": 0.25, "alpha": 1.0},
    "tinyreptile of four": {"name": "tinyreptile", "beta": 0.1, "cohort": 4, "anneal": "cosine"},
    "norm-bound": {"name": "norm-bound", "cohort": 4, "beta": 0.1, "bound": 0.5},
    "median": {"name": "median", "cohort": 4, "beta": 0.1},
    "median with quarantine": {"name": "median", "cohort": 4, "beta": 0.1, "quarantine": 2},
    "trimmed-mean": {"name": "trimmed-mean", "cohort": 4, "beta": 0.1, "share": 0.25},
    "krum": {"name": "krum", "cohort": 5, "beta": 0.1, "byzantine": 1},
    "multikrum": {"name": "multikrum", "cohort": 5, "beta": 0.1, "byzantine": 1, "quarantine": 1},
    "geometric-median": {"name": "geometric-median", "cohort": 4, "beta": 0.1},
    "oneshot": {"name": "oneshot", "cohort": 4, "beta": 0.1},
    "fedtiny": {"name": "fedtiny", "cohort": 4, "beta": 0.1, "every": 2, "stop": 6},
    "fedrts": {"name": "fedrts", "cohort": 4, "beta": 0.1, "every": 2, "stop": 6},
    "feddst": {"name": "feddst", "cohort": 4, "beta": 0.1, "every": 2, "stop": 6},
    "sap": {"name": "sap", "cohort": 4, "beta": 0.1, "every": 2},
    "fomaml": {"name": "fomaml", "cohort": 4, "beta": 0.1, "steps": 2},
    "anil": {"name": "anil", "cohort": 4, "beta": 0.1, "steps": 2},
    "perfedavg": {"name": "perfedavg", "cohort": 4, "beta": 0.1, "alpha": 0.05},
    "scaffold": {"name": "scaffold", "cohort": 4, "beta": 0.1, "steps": 2},
    "ditto": {"name": "ditto", "cohort": 4, "beta": 0.1},
    "joint": {"name": "joint", "cohort": 4, "beta": 0.1},
    "none": {"name": "none", "cohort": 4},
    "a user's": {"build": "tests.strategies.own:SignAveraging", "cohort": 4},
    "a user's optimiser": {"build": "tests.strategies.own:AnnealedAdam", "cohort": 4},
}


def test_every_strategy_that_ships_is_under_test() -> None:
    assert {spec.get("name") for spec in STRATEGIES.values()} >= set(TABLE)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("spec", STRATEGIES.values(), ids=STRATEGIES)
def test_every_strategy_keeps_the_law(spec: Spec, law: Callable[[Spec], None]) -> None:
    law(spec)


@pytest.mark.parametrize("spec", STRATEGIES.values(), ids=STRATEGIES)
def test_all_that_train_move_the_model(spec: Spec) -> None:
    before = Trial(spec).model.tobytes()
    assert (undisturbed(spec).tobytes() != before) == (spec.get("name") != "none")
