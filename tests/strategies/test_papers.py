"""Each strategy against a few plain lines of its paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.fold import Total
from fedtiny.strategies.base import Round, Strategy, trimmed_mean
from fedtiny.strategies.fedavg import FedAvg
from fedtiny.strategies.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from fedtiny.strategies.fedprox import FedProx
from fedtiny.strategies.joint import Joint
from fedtiny.strategies.median import Median
from fedtiny.strategies.none import NoTraining
from fedtiny.strategies.reptile import Reptile
from fedtiny.strategies.tinyreptile import TinyReptile
from fedtiny.values import EVALUATE, Lease, Update
from tests.harness.toys import INITIAL, LAYOUT, WHOLE, samples, target, theta, visit

if TYPE_CHECKING:
    from fedtiny.tensors import Float32, Float64

T = 4
DEVICES = (0, 1, 2)


def trained(strategy: Strategy, model: Float32) -> list[Update]:
    instruction = strategy.ask(Round(0, T), strategy.start(LAYOUT, model))
    return [visit(Lease(d, d, 0, 0, 1.0), instruction, model) for d in DEVICES]


def thetas(updates: list[Update]) -> Float64:
    return np.array([np.frombuffer(bytes(u.values), np.float32) for u in updates], float)


def rounds(strategy: Strategy) -> list[Float32]:
    """The models of T rounds in which every device takes part."""
    model, state, models = INITIAL, strategy.start(LAYOUT, INITIAL), []
    for t in range(T):
        updates = trained(strategy, model)
        contribution: Total | list[Update] = updates
        if strategy.needs == "sum":
            contribution = Total.zero(LAYOUT.size, strategy.fold_rule)
            for update in updates:
                weight = float(strategy.weight(np.array(float(update.samples))))
                contribution = contribution.add(update, model, weight)
        model, state = strategy.finish(Round(t, T), model, contribution, state)
        models.append(model)
    return models


def check(strategy: Strategy, server: Callable[[int, Float64, Float64], Float64]) -> None:
    """The models are those of ``x = server(t, x, thetas)``; the fold rounds to about 2^-30."""
    x = INITIAL
    for t, model in enumerate(rounds(strategy)):
        x = server(t, x.astype(float), thetas(trained(strategy, x))).astype(np.float32)
        np.testing.assert_allclose(model, x, rtol=2e-6, atol=1e-7)


n = np.array([samples(d) for d in DEVICES])


def by_samples(rows: Float64) -> Float64:
    mean: Float64 = (n / n.sum()) @ rows
    return mean


def test_fedavg_takes_the_mean_weighted_by_samples() -> None:
    assert n.tolist() == [1, 2, 3]
    check(FedAvg(beta=0.1), lambda t, x, theta: by_samples(theta))


def test_fedavg_stops_counting_samples_at_its_cap() -> None:
    assert FedAvg().weight(np.array([5.0, 1e6])).tolist() == [5.0, 65536.0]


def test_fedprox_is_fedavg_with_a_pull_towards_the_start() -> None:
    fedprox = FedProx(beta=0.1, mu=0.5, steps=3)
    check(fedprox, lambda t, x, theta: by_samples(theta))
    w = INITIAL.astype(float)
    for _ in range(3):
        w = w - 0.1 * (w - target(1) + 0.5 * (w - INITIAL))
    asked = fedprox.ask(Round(0, T), {})
    np.testing.assert_allclose(theta(asked, INITIAL, 1), w, rtol=1e-5)


def test_fedavgm_keeps_a_velocity() -> None:
    v = np.zeros(6)

    def server(t: int, x: Float64, theta: Float64) -> Float64:
        nonlocal v
        v = 0.9 * v + by_samples(theta - x)
        return x + 0.5 * v

    check(FedAvgM(beta=0.1, server_lr=0.5, server_momentum=0.9), server)


def test_fedadam_is_algorithm_2_of_reddi() -> None:
    m, v = np.zeros(6), np.full(6, 1e-3**2)

    def server(t: int, x: Float64, theta: Float64) -> Float64:
        nonlocal m, v
        Delta = by_samples(theta - x)
        m = 0.9 * m + 0.1 * Delta
        v = 0.99 * v + 0.01 * Delta**2
        return x + 0.01 * m / (np.sqrt(v) + 1e-3)

    check(FedAdam(beta=0.1), server)


def test_fedadagrad_adds_the_squares_up() -> None:
    m, v = np.zeros(6), np.full(6, 0.05**2)

    def server(t: int, x: Float64, theta: Float64) -> Float64:
        nonlocal m, v
        Delta = by_samples(theta - x)
        m = 0.8 * m + 0.2 * Delta
        v = v + Delta**2
        x_next: Float64 = x + 0.1 * m / (np.sqrt(v) + 0.05)
        return x_next

    check(FedAdagrad(beta=0.1, server_lr=0.1, beta_1=0.8, tau=0.05), server)


def test_fedyogi_moves_v_by_no_more_than_the_square_of_the_delta() -> None:
    m, v = np.zeros(6), np.full(6, 0.5**2)  # above some squares and below others

    def server(t: int, x: Float64, theta: Float64) -> Float64:
        nonlocal m, v
        Delta = by_samples(theta - x)
        m = 0.9 * m + 0.1 * Delta
        v = v - 0.3 * Delta**2 * np.sign(v - Delta**2)
        x_next: Float64 = x + 0.01 * m / (np.sqrt(v) + 0.5)
        return x_next

    check(FedYogi(beta=0.9, beta_2=0.7, tau=0.5), server)


@pytest.mark.parametrize(
    ("anneal", "share"),
    [
        ("linear", lambda t: 1 - t / T),
        ("cosine", lambda t: (1 + math.cos(math.pi * t / T)) / 2),
        ("none", lambda t: 1.0),
    ],
)
@pytest.mark.parametrize("strategy", [Reptile, TinyReptile])
def test_reptile_steps_towards_the_plain_mean_of_the_adapted(
    strategy: type[Reptile] | type[TinyReptile], anneal: str, share: Callable[[int], float]
) -> None:
    def server(t: int, phi: Float64, theta: Float64) -> Float64:
        mean: Float64 = np.mean(theta - phi, axis=0)
        return phi + 0.7 * share(t) * mean

    check(strategy(cohort=3, alpha=0.7, beta=0.1, anneal=anneal), server)


def test_tinyreptile_streams_each_sample_once_to_one_device_a_round() -> None:
    strategy = TinyReptile()
    (phase,) = strategy.ask(Round(0, T), {}).phases
    assert (strategy.cohort, phase.steps, phase.shuffle, phase.lr) == (1, 0, False, 0.02)


def test_joint_is_fedsgd() -> None:

    def server(t: int, x: Float64, theta: Float64) -> Float64:
        gradients = np.array([x - target(d) for d in DEVICES])
        return x - 0.1 * by_samples(gradients)

    check(Joint(beta=0.1), server)


def test_none_only_measures() -> None:
    asked = NoTraining().ask(Round(0, T), {})
    assert (asked.kind, asked.phases) == (EVALUATE, ())


def test_the_median_ignores_one_liar() -> None:
    check(Median(beta=0.1), lambda t, x, theta: np.median(theta, axis=0))
    lie = Update(9, 9, 0, 0, 1, np.full(6, 900, np.float32).tobytes(), WHOLE)
    strategy = Median(beta=0.1)
    honest = trained(strategy, INITIAL)
    model, _ = strategy.finish(Round(0, T), INITIAL, [*honest, lie], {})
    assert (model <= thetas(honest).max(axis=0) + 1e-6).all()


def test_a_trimmed_mean_leaves_out_the_extremes_of_those_who_trained_a_coordinate() -> None:
    nan = np.nan
    rows = np.array([[0, 9, nan], [1, 1, nan], [2, nan, nan], [3, 2, nan], [94, nan, nan]])
    # of five one at each end: (1 + 2 + 3) / 3; of three none: 12 / 3; nobody: 0
    assert trimmed_mean(rows, 0.2).tolist() == [2, 4, 0]
    assert trimmed_mean(rows, 0.5).tolist() == [2, 2, 0]


@given(st.lists(st.lists(st.floats(-9, 9), min_size=3, max_size=3), min_size=1, max_size=8))
def test_half_of_everyone_trimmed_is_the_median(rows: list[list[float]]) -> None:
    np.testing.assert_array_equal(trimmed_mean(np.array(rows), 0.5), np.median(rows, axis=0))


def test_the_median_is_over_those_who_trained_a_coordinate() -> None:
    def sent(value: float, *ranges: tuple[int, int]) -> Update:
        count = sum(stop - start for start, stop in ranges)
        return Update(0, 0, 0, 0, 1, np.full(count, value, np.float32).tobytes(), ranges)

    zero = np.zeros(6, np.float32)
    updates = [sent(1, (0, 2)), sent(3, (0, 1)), sent(8, (0, 1), (4, 5))]
    model, _ = Median().finish(Round(0, T), zero, updates, {})
    assert model.tolist() == [3, 1, 0, 0, 8, 0]
