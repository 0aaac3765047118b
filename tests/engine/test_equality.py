"""One canonical arithmetic: the native runtime and the reference give the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine.builder import Net
from fedtiny.engine.compile import compile
from fedtiny.engine.native import NativeExecutor
from fedtiny.engine.program import Hyper, Program
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.engine.zoo import mlp
from fedtiny.errors import DataError, ImageError
from fedtiny.values import Sgd
from tests.engine.nets import nets, samples, trained

LOSSES = st.sampled_from(["mse", "cross_entropy"])
RULES = st.builds(
    Sgd,
    momentum=st.sampled_from([0.0, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.01]),
    clip=st.sampled_from([0.0, 0.05]),
    prox=st.sampled_from([0.0, 0.3]),
)


def both(program: Program) -> tuple[NativeExecutor, ReferenceExecutor]:
    return NativeExecutor(program.image), ReferenceExecutor(program.image)


@settings(max_examples=150)
@given(
    nets(widths=20), LOSSES, st.integers(1, 11), RULES, st.sampled_from(["all", "last:1", "biases"])
)
def test_training_gives_the_same_bits(
    net: Net, loss: str, batch: int, rule: Sgd, plan: str
) -> None:
    if plan == "biases" and not any(
        p.name.endswith("bias") for p in net.graph(1).layout.parameters
    ):
        plan = "all"
    program = compile(net, loss=loss, ram="1MiB", batch=batch, sgd=rule, plan=plan)
    hyper = Hyper(0.05, rule.momentum, rule.weight_decay, rule.clip, rule.prox)
    (losses, vector), (expected_losses, expected) = (
        trained(executor, program, [hyper] * 4) for executor in both(program)
    )
    np.testing.assert_array_equal(vector.view(np.uint32), expected.view(np.uint32))
    np.testing.assert_array_equal(losses, expected_losses)


@settings(max_examples=60)
@given(nets(widths=20), LOSSES, st.integers(1, 11), st.data())
def test_everything_but_training_gives_the_same_bits(
    net: Net, loss: str, batch: int, data: st.DataObject
) -> None:
    program = compile(net, loss=loss, ram="1MiB", batch=batch)
    x, y = samples(program, 3)
    valid = data.draw(st.integers(1, batch))
    native, reference = both(program)
    for executor in (native, reference):
        executor.load(program.initial(2))
    assert native.predict(x).tolist() == reference.predict(x).tolist()
    assert native.evaluate(x, y, valid) == reference.evaluate(x, y, valid)
    for found, expected in zip(
        native.calibrate(x, valid), reference.calibrate(x, valid), strict=True
    ):
        for name in ("count", "sum", "sum_squares", "min", "max"):
            assert getattr(found, name) == getattr(expected, name)


def test_a_gradient_and_a_correction_give_the_same_bits() -> None:
    program = compile(mlp((9, 13, 4), "tanh"), loss="cross_entropy", ram="1MiB", batch=3,
                      sgd=Sgd(momentum=0.9, correction=True))  # fmt: skip
    correction = np.linspace(-1, 1, program.layout.size, dtype=np.float32)
    gradients = []
    for executor in both(program):
        executor.load(program.initial(2))
        executor.load_correction(correction)
        executor.step(*samples(program), Hyper(0.1, momentum=0.9, correction=True))
        executor.clear_momentum()
        executor.step(*samples(program, 1), Hyper(0.0))
        gradients.append(bytes(executor.store_gradient()))
    assert gradients[0] == gradients[1]


@pytest.mark.parametrize("extreme", [np.inf, -np.inf, np.nan, 3e38, 1e-45])
def test_extreme_inputs_give_the_same_bits(extreme: float) -> None:
    for activation in ("relu", "tanh", "sigmoid"):
        program = compile(mlp((2, 9, 3), activation), loss="cross_entropy", ram="1MiB")
        x, y = np.array([[extreme, 1]], np.float32), np.array([1], np.int32)
        vectors = []
        for executor in both(program):
            executor.load(program.initial(2))
            executor.step(x, y, Hyper(0.1))
            vectors.append(np.frombuffer(executor.store(), np.float32))
        np.testing.assert_array_equal(vectors[0], vectors[1])  # NaN equals NaN here


@pytest.mark.parametrize("kind", [NativeExecutor, ReferenceExecutor])
def test_bad_samples_are_refused_with_numbers(
    kind: type[NativeExecutor] | type[ReferenceExecutor],
) -> None:
    program = compile(mlp((2, 9, 3)), loss="cross_entropy", ram="1MiB")
    executor = kind(program.image)
    executor.load(program.initial(2))
    before = bytes(executor.store())
    x, y = np.zeros((1, 2), np.float32), np.zeros(1, np.int32)
    with pytest.raises(DataError, match=r"label 3 .*3 classes"):
        executor.step(x, y + 3, Hyper(0.1))
    with pytest.raises(DataError, match=r"label -1"):
        executor.evaluate(x, y - 1, 1)
    with pytest.raises(DataError, match=r"\b5\b"):
        executor.step(np.zeros(5, np.float32), y, Hyper(0.1))
    with pytest.raises(DataError):
        executor.load(np.zeros(3, np.float32))
    with pytest.raises(ImageError, match="momentum"):
        executor.step(x, y, Hyper(0.1, momentum=0.5))
    assert bytes(executor.store()) == before
