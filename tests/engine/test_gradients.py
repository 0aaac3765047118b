"""The reference executor in float64, against finite differences and plain NumPy backpropagation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile
from fedtiny.engine.program import Hyper, Program
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.engine.zoo import mlp
from fedtiny.values import Sgd
from tests.engine.nets import Array, nets, samples


def gradient(program: Program, vector: Array, x: Array, y: Array) -> Array:
    """By one step with lr = 0 and no momentum: the momentum slot then holds the gradient."""
    executor = ReferenceExecutor(program.image, np.float64)
    executor.load(vector)
    executor.step(x, y, Hyper(0.0))
    return np.frombuffer(executor.store_gradient(), np.float64)


def loss(program: Program, vector: Array, x: Array, y: Array) -> float:
    executor = ReferenceExecutor(program.image, np.float64)
    executor.load(vector)
    return executor.step(x, y, Hyper(0.0))


@settings(max_examples=60)
@given(nets(widths=5), st.sampled_from(["mse", "cross_entropy"]), st.integers(1, 4))
def test_the_gradient_is_that_of_finite_differences(net: Net, kind: str, batch: int) -> None:
    program = compile(net, loss=kind, ram="1MiB", batch=batch, sgd=Sgd(momentum=0.9))
    x, y = samples(program)
    vector = np.asarray(program.initial(1), np.float64) + 0.01
    found = gradient(program, vector, x, y)
    h = 1e-5
    for i in range(len(vector)):
        step = np.zeros_like(vector)
        step[i] = h
        ahead, here, behind = (loss(program, vector + s, x, y) for s in (step, 0 * step, -step))
        kink = abs((ahead - here) - (here - behind)) > 1e-3 * h  # a relu switches within h
        if not kink:
            assert found[i] == pytest.approx((ahead - behind) / (2 * h), rel=1e-6, abs=1e-8)


def test_a_linear_net_has_the_closed_form_gradient() -> None:
    net = Net(3)
    net.linear(net.input, 2)
    program = compile(net, loss="mse", ram="64KiB", batch=5, sgd=Sgd(momentum=0.9))
    x, y = samples(program)
    state = program.layout.unflatten(np.asarray(program.initial(1)))
    error = x.astype(np.float64) @ state["linear1.weight"] + state["linear1.bias"] - y
    expected = np.concatenate([(x.T @ error).ravel(), error.sum(0)]) * 2 / error.size
    vector = np.asarray(program.initial(1), np.float64)
    assert gradient(program, vector, x, y) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_a_layer_used_twice_gets_the_sum_of_both_gradients(clip: float) -> None:
    gradients = []
    for names in (("fc", "fc"), ("fc", "again")):
        net = Net(3)
        value = net.input
        for name in names:
            value = net.tanh(net.linear(value, 3, name=name))
            net.start[f"{name}.weight"] = np.eye(3, dtype=np.float32)
            net.start[f"{name}.bias"] = np.ones(3, np.float32)
        program = compile(net, loss="mse", ram="64KiB", batch=2, sgd=Sgd(0.9, clip=clip))
        executor = ReferenceExecutor(program.image, np.float64)
        executor.load(program.initial(1))
        executor.step(*samples(program), Hyper(0.0, clip=clip))
        gradients.append(np.frombuffer(executor.store_gradient(), np.float64))
    both = gradients[1].reshape(2, -1).sum(0)
    if clip:
        both *= clip / np.linalg.norm(both)
    assert gradients[0] == pytest.approx(both, rel=1e-12)


def plain_step(state: dict[str, Array], x: Array, y: Array, rule: Sgd, lr: float,
               base: dict[str, Array], velocity: dict[str, Array]) -> float:  # fmt: skip
    """Backpropagation of a 3-layer tanh net with MSE as a page of NumPy."""
    w1, b1, w2, b2, w3, b3 = state.values()
    h1 = np.tanh(x @ w1 + b1)
    h2 = np.tanh(h1 @ w2 + b2)
    e = h2 @ w3 + b3 - y
    do = 2 * e / e.size
    d2 = (do @ w3.T) * (1 - h2**2)
    d1 = (d2 @ w2.T) * (1 - h1**2)
    grads = [x.T @ d1, d1.sum(0), h1.T @ d2, d2.sum(0), h2.T @ do, do.sum(0)]
    norm = np.sqrt(sum((g**2).sum() for g in grads))
    scale = min(1.0, rule.clip / norm) if rule.clip else 1.0
    for (name, w), g in zip(state.items(), grads, strict=True):
        g = scale * g + rule.weight_decay * w + rule.prox * (w - base[name])
        velocity[name] = rule.momentum * velocity[name] + g
        state[name] = w - lr * velocity[name]
    return float((e**2).mean())


@pytest.mark.parametrize(
    "rule",
    [
        Sgd(),
        Sgd(momentum=0.9),
        Sgd(weight_decay=0.1),
        Sgd(clip=0.05),
        Sgd(prox=0.5),
        Sgd(momentum=0.5, weight_decay=0.01, clip=0.1, prox=0.2),
    ],
    ids=str,
)
def test_twenty_steps_equal_plain_numpy_backpropagation(rule: Sgd) -> None:
    program = compile(mlp((2, 7, 5, 3), "tanh"), loss="mse", ram="64KiB", batch=4, sgd=rule)
    executor = ReferenceExecutor(program.image, np.float64)
    vector = np.asarray(program.initial(1), np.float64)
    executor.load(vector)
    state = {n: a.astype(np.float64) for n, a in program.layout.unflatten(vector).items()}
    base, velocity = dict(state), {n: np.zeros_like(a) for n, a in state.items()}
    hyper = Hyper(0.1, rule.momentum, rule.weight_decay, rule.clip, rule.prox)
    for step in range(20):
        x, y = samples(program, step)
        expected = plain_step(state, x.astype(np.float64), y, rule, 0.1, base, velocity)
        assert executor.step(x, y, hyper) == pytest.approx(expected, rel=1e-6)
    flat = np.concatenate([a.ravel() for a in state.values()])
    assert np.frombuffer(executor.store(), np.float64) == pytest.approx(flat, rel=1e-6, abs=1e-9)


def test_a_linear_correction_is_added_to_the_gradient() -> None:
    rule = Sgd(momentum=0.9, correction=True)
    program = compile(mlp((2, 3, 1)), loss="mse", ram="64KiB", sgd=rule)
    vector = np.asarray(program.initial(1), np.float64)
    x, y = samples(program)
    correction = np.arange(len(vector)) / 10
    plain = gradient(program, vector, x, y)
    executor = ReferenceExecutor(program.image, np.float64)
    executor.load(vector)
    executor.load_correction(correction)
    executor.step(x, y, Hyper(0.0, correction=True))
    corrected = np.frombuffer(executor.store_gradient(), np.float64)
    assert corrected == pytest.approx(plain + correction, rel=1e-12)
