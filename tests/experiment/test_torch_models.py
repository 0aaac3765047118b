"""Torch modules in an experiment: their own values, made under the experiment's seed, are the
initial model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedtiny import simulate
from fedtiny.engine.torch_frontend import to_vector
from fedtiny.errors import CompileError, ExperimentError
from fedtiny.experiment import Experiment
from fedtiny.experiment.workload import Workload

HERE = "tests.experiment.test_torch_models"
TABLES: dict[str, Any] = {
    "seed": 5,
    "model": {"build": f"{HERE}:digits_conv"},
    "data": {"source": "label-skew-digits"},
    "device": {"ram": "64KiB"},
    "strategy": {"name": "fedavg", "cohort": 4},
    "fleet": {"devices": 20, "held_out": 2, "threads": 1},
    "run": {"rounds": 2},
}


def digits_conv(channels: int = 4) -> tuple[nn.Module, Tensor]:
    layers = nn.Conv2d(1, channels, 3, stride=2), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(channels * 9, 10)), torch.zeros(1, 1, 8, 8)


def without_example() -> nn.Module:
    return digits_conv()[0]


def with_attribute() -> nn.Module:
    module, example = digits_conv()
    module.example_input = example
    return module


def workload(**changes: Any) -> Workload:
    return Workload.of(Experiment.of({**TABLES, **changes}))


def test_the_initial_model_is_the_modules_under_the_experiments_seed() -> None:
    work = workload()
    torch.manual_seed(5)
    expected = to_vector(digits_conv()[0], work.profiles[0].needed)
    np.testing.assert_array_equal(work.initial, expected)
    assert not np.array_equal(workload(seed=6).initial, expected)
    assert np.array_equal(workload(model={"build": f"{HERE}:with_attribute"}).initial, expected)


def test_a_torch_module_is_simulated() -> None:
    result = simulate(Experiment.of(TABLES))
    assert result.summary["rounds"] == 2
    assert result.summary["updates"] == 8
    again = simulate(Experiment.of(TABLES))
    np.testing.assert_array_equal(result.model, again.model)


def test_a_module_without_an_example_is_refused() -> None:
    experiment = Experiment.of({**TABLES, "model": {"build": f"{HERE}:without_example"}})
    with pytest.raises(CompileError, match="or an attribute example_input"):
        experiment.build_net()


def test_a_module_that_does_not_fit_the_data_is_refused() -> None:
    with pytest.raises(ExperimentError, match=r"takes 64 features and gives 10; .* have 1 feat"):
        workload(data={"source": "sine"})


def test_what_is_no_model_is_refused() -> None:
    experiment = Experiment.of({**TABLES, "model": {"build": "fractions:Fraction"}})
    with pytest.raises(CompileError, match=r"a Fraction is no model; give a fedtiny builder net"):
        experiment.build_net()
