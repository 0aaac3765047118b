"""FedNCM and FedRidge: one round, exact, and what is forgotten is subtracted."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedtiny.device.learner import Key, Learner
from fedtiny.engine.builder import Net
from fedtiny.errors import StrategyError
from fedtiny.experiment import Experiment
from fedtiny.experiment.workload import Workload
from fedtiny.layout import Layout, Parameter
from fedtiny.rounds.content import OpenRound
from fedtiny.rounds.measures import Measures
from fedtiny.simulator.run import simulate
from fedtiny.strategies.base import FleetFacts, Round
from fedtiny.strategies.fedncm import UNSEEN, FedNCM
from fedtiny.strategies.fedridge import FedRidge, eliminated
from fedtiny.values import SUPPORT, Update

if TYPE_CHECKING:
    from fedtiny.fold import Total
    from fedtiny.tensors import Float32, Float64

DEVICES, SEED = 12, 3
NAMES = ("fedncm", "fedridge")


def tables(name: str) -> dict[str, Any]:
    return {
        "seed": SEED,
        "model": {"build": "digits_mlp"},
        "data": {"source": "label-skew-digits", "concentration": 0.3},
        "device": {"batch": 8},
        "strategy": {"name": name, "cohort": DEVICES},
        "fleet": {"devices": DEVICES + 4, "held_out": 4, "profiles": {"pi-4": 1.0}, "threads": 1},
        "run": {"rounds": 1},
        "evaluate": {"as-it-is": {"lr": 0.01}},
    }


@cache
def workload(name: str) -> Workload:
    return Workload.of(Experiment.of(tables(name)))


def opened(work: Workload, t: int = 0) -> OpenRound:
    state = work.strategy.start(work.layout, work.initial)
    return OpenRound.of(work.strategy, Round(t, 1), work.layout, work.initial, state)


@cache
def updates(name: str) -> list[Update]:
    """What each device sends."""
    work = workload(name)
    learner, asked, made = Learner(work.profiles[0].needed), opened(work).instruction, []
    for device in range(DEVICES):
        samples = learner.samples(*work.task.samples(SEED, 0, device, SUPPORT))
        done = learner.visit(asked, work.initial, lambda _, own=samples: own, Key())  # type: ignore[misc]
        made.append(Update(device, device, 0, 0, done.samples, done.values, done.ranges))
    return made


def total(name: str, devices: list[int]) -> Total:
    """What the round has folded of these devices, one by one."""
    round = opened(workload(name))
    part = round.nothing
    for device in devices:
        part = round.add(part, updates(name)[device])
    assert part is not None
    assert not isinstance(part, tuple)
    return part


def model_of(name: str, folded: Total) -> Float32:
    return opened(workload(name)).conclude([folded], Measures(), failed=False).model


def pooled(name: str) -> tuple[Float64, Float64, Float32, Float32]:
    """The features and one-hot classes of all devices' samples; the weights and bias of a model
    whose last layer is what the round makes of them."""
    work = workload(name)
    given = [work.task.samples(SEED, 0, device, SUPPORT) for device in range(DEVICES)]
    x, y = (np.concatenate(columns) for columns in zip(*given, strict=True))
    initial = work.layout.unflatten(work.initial)
    hidden = np.maximum(x.astype(float) @ initial["linear1.weight"] + initial["linear1.bias"], 0)
    made = work.layout.unflatten(model_of(name, total(name, list(range(DEVICES)))))
    return hidden, np.eye(10)[y], made["linear2.weight"], made["linear2.bias"]


def test_fedncm_is_the_nearest_class_mean_of_all_samples() -> None:
    f, y, weight, bias = pooled("fedncm")
    mu = (y.T @ f) / y.sum(axis=0)[:, None]
    np.testing.assert_allclose(weight, mu.T, rtol=1e-5, atol=1e-6)
    nearest = ((f[:, None] - mu) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == (f @ weight + bias).argmax(axis=1)).mean() > 0.999


def test_fedridge_is_the_ridge_regression_on_all_samples() -> None:
    f, y, weight, bias = pooled("fedridge")
    g = np.hstack([f, np.ones((len(f), 1))])
    held = np.diag([1.0] * f.shape[1] + [0.0])
    W = np.linalg.solve(g.T @ g + held, g.T @ y)
    np.testing.assert_allclose(np.vstack([weight, bias]), W, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_device_that_is_forgotten_has_never_been_there(name: str) -> None:
    everybody, others = list(range(DEVICES)), [d for d in range(DEVICES) if d != 5]
    forgotten = total(name, everybody).without(total(name, [5]))
    assert forgotten == total(name, others)
    assert model_of(name, forgotten).tobytes() == model_of(name, total(name, others)).tobytes()
    assert model_of(name, forgotten).tobytes() != model_of(name, total(name, everybody)).tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_only_the_last_layer_changes(name: str) -> None:
    work, made = workload(name), model_of(name, total(name, [0, 1, 2, 3]))
    changed = {p.name for p in work.layout.parameters
               if (made != work.initial)[p.offset : p.offset + p.size].any()}  # fmt: skip
    assert changed == {"linear2.weight", "linear2.bias"}


@pytest.mark.parametrize("name", NAMES)
def test_further_rounds_add_the_sums_of_other_devices(name: str) -> None:
    first, second = total(name, [0, 1, 2]), total(name, [3, 4])
    once = opened(workload(name)).conclude([first], Measures(), failed=False)
    work = workload(name)
    again = OpenRound.of(work.strategy, Round(1, 2), work.layout, once.model, once.state)
    after = again.conclude([second], Measures(), failed=False)
    together = model_of(name, first.merge(second))
    np.testing.assert_allclose(after.model, together, rtol=1e-6)


def test_a_class_that_nobody_has_is_never_the_nearest() -> None:
    weight, bias = FedNCM().solved(np.array([2.0, 4.0, 0.0, 0.0, 2.0, 0.0]), 2, 2)
    assert weight.tolist() == [[1, 0], [2, 0]]
    assert bias.tolist() == [-2.5, UNSEEN]


def test_elimination_solves() -> None:
    draw = np.random.default_rng(1)
    A = draw.normal(size=(9, 7))
    A, B = A.T @ A, draw.normal(size=(7, 3))
    np.testing.assert_allclose(A @ eliminated(A, B), B, atol=1e-9)


def test_a_model_must_end_with_a_linear_layer() -> None:
    layout = Layout.of([Parameter("head.weight", (2, 2)), Parameter("gn.weight", (2,)),
                        Parameter("gn.bias", (2,))])  # fmt: skip
    with pytest.raises(StrategyError, match=r"must be linear.* gn\.weight, gn\.bias"):
        FedRidge().fitted(FleetFacts(layout=layout))


def soft() -> Net:
    """Digits with probabilities as outputs."""
    net = Net(64)
    net.softmax(net.linear(net.input, 10))
    return net


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model={build='tests.strategies.test_closed_form:soft'}"], "does not end with a linear"),
        (["device.density=0.5", "model.hidden=64"], "features of pruned Programs"),
    ],
)
def test_what_shows_no_features_is_refused(settings: list[str], message: str) -> None:
    work = Workload.of(Experiment.of(tables("fedncm")).override(*settings))
    with pytest.raises(StrategyError, match=message):
        _ = work.profiles


@pytest.mark.parametrize("name", NAMES)
def test_one_round_of_a_fleet_learns_the_digits(name: str) -> None:
    experiment = Experiment.of(tables(name))
    run = simulate(experiment)
    found = run.evaluations("as-it-is")
    assert found[0]["accuracy_before"] < 0.3
    assert found[-1]["accuracy_before"] > 0.75
    folded = total(name, list(range(DEVICES)))
    assert run.model.tobytes() == model_of(name, folded).tobytes()
