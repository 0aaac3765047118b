"""The gate: a model that does worse on the public samples is not published."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedtiny.engine.zoo import mlp
from fedtiny.errors import ExperimentError
from fedtiny.experiment import Experiment
from fedtiny.experiment.gate import BATCH, Gate
from fedtiny.experiment.workload import Workload
from fedtiny.simulator.run import simulate
from tests.simulator.experiments import PRUNED

if TYPE_CHECKING:
    from fedtiny.tensors import Float32

NET = mlp((1, 2))
X = np.linspace(-1, 1, BATCH + 3, dtype=np.float32)[:, None]
SAMPLES = X, (X[:, 0] > 0).astype(np.int32)


def model(weight: float) -> Float32:
    """Logits (0, weight * x): the larger the weight, the surer of the right class."""
    layout = NET.graph(1).layout
    shape, size = layout["linear1.weight"].shape, layout["linear1.bias"].size
    weights = np.zeros(shape, np.float32)
    weights[0, 1] = weight
    return layout.flatten({"linear1.weight": weights, "linear1.bias": np.zeros(size, np.float32)})


def loss(weight: float) -> float:
    """Cross-entropy of these logits, in float64."""
    logit = weight * X[:, 0].astype(float)
    return float(np.mean(np.logaddexp(0, logit) - SAMPLES[1] * logit))


def gate(factor: float) -> Gate:
    return Gate.of(NET, "cross_entropy", SAMPLES, factor)


def test_a_model_is_held_back_when_its_loss_is_too_many_times_that_before() -> None:
    before, after = model(0.0), model(-1.0)
    ratio = loss(-1.0) / loss(0.0)
    assert loss(0.0) == pytest.approx(math.log(2))
    assert 1.4 < ratio < 1.5
    assert gate(ratio * 1.001)(before, after) is None
    held = gate(ratio * 0.999)(before, after)
    assert held == pytest.approx({"before": loss(0.0), "after": loss(-1.0)}, rel=1e-5)


def test_a_better_model_is_published() -> None:
    assert gate(1.0)(model(0.0), model(2.0)) is None


def test_a_model_without_a_finite_loss_is_held_back_however_patient_the_gate() -> None:
    held = gate(1e30)(model(0.0), model(np.inf))
    assert held == {"before": pytest.approx(math.log(2)), "after": None}


def test_what_was_judged_before_changes_no_answer() -> None:
    models = [model(w) for w in (0.0, 1.0, -1.0)]
    judge = gate(1.1)
    for before, after in product(models, models):
        assert judge(before, after) == gate(1.1)(before, after)


# ---- in an experiment ------------------------------------------------------------------------

TABLES: dict[str, Any] = {
    "seed": 4,
    "model": {"build": "mlp", "widths": [64, 16, 10]},
    "data": {"source": "label-skew-digits", "concentration": 100.0, "public": 150},
    "device": {"ram": "256KiB", "batch": 10},
    "strategy": {"name": "fedavg", "cohort": 5, "beta": 0.1, "steps": 8},
    "fleet": {"devices": 24, "held_out": 4, "threads": 1},
    "run": {"rounds": 60, "gate": 1.0},
    "attack": {"kind": "sign-flip", "share": 0.15, "scale": 6.0},
    "evaluate": {"shift": {"lr": 0.01}},
}
PUBLIC_NONE = {"source": "label-skew-digits"}
LOCAL_HEAD = {"build": "tests.simulator.experiments:personal_mlp"}


def test_a_gated_round_changes_nothing_and_says_so() -> None:
    """Three of twenty devices lie: about half of the rounds have none in their cohort."""
    result = simulate(TABLES)
    rounds = [row for row in result.history if row["kind"] == "round"]
    held = [row for row in rounds if "gated" in row]
    assert 20 < len(held) < 50
    assert all(row["gated"]["after"] > row["gated"]["before"] for row in held)
    versions = [row["version"] for row in rounds]
    assert np.diff([0, *versions]).tolist() == ["gated" not in row for row in rounds]
    ungated = simulate(TABLES | {"run": {"rounds": 60}})
    with_gate, without = (
        each.evaluations("shift")[-1]["accuracy_before"] for each in (result, ungated)
    )
    assert with_gate > 0.8
    assert without < 0.4


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": PUBLIC_NONE}, r"run.gate needs samples that no device owns, .* data.public"),
        ({"model": LOCAL_HEAD}, r"run.gate = 1 judges .* never sees linear2.weight, linear2.bias"),
    ],
)
def test_what_nobody_can_judge_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ExperimentError, match=told):
        Workload.of(Experiment.of(TABLES | changes))


def test_a_fleet_that_prunes_has_no_gate() -> None:
    with pytest.raises(ExperimentError, match=r"devices have 10% of them; take the gate out"):
        Workload.of(Experiment.of(PRUNED).override("run.gate=1.1"))


def test_without_a_factor_there_is_no_gate() -> None:
    assert Workload.of(Experiment.of(TABLES).override("run.gate=0")).gate is None
