"""One canonical arithmetic: the native runtime and the reference give the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine import native
from fedtiny.engine.builder import Net, Value
from fedtiny.engine.compile import compile
from fedtiny.engine.native import NativeExecutor
from fedtiny.engine.program import Executor, Hyper, Program
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.engine.zoo import mlp
from fedtiny.errors import DataError, ImageError
from fedtiny.values import Sgd
from tests.engine.nets import image_nets, nets, samples, trained

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


# ---- nets over images, in every build -----------------------------------------------------------

IMAGE_LOSSES = st.sampled_from(["mse", "cross_entropy", "soft_cross_entropy", "weighted"])


@contextmanager
def loaded(runtime: Path) -> Iterator[None]:
    """Executors made inside run on this library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDTINY_RUNTIME", str(runtime))
        native.library.cache_clear()
        yield
    native.library.cache_clear()


def compiled(net: Net, loss: str, batch: int, rule: Sgd) -> Program:
    """With "weighted", the cross-entropy weighs class k by k + 0.5."""
    weights = None
    if loss == "weighted":
        graph = net.graph(1)
        classes = graph.tensors[graph.output].shape[-1]
        loss, weights = "cross_entropy", [k + 0.5 for k in range(classes)]
    return compile(net, loss=loss, ram="16MiB", flash="16MiB", batch=batch, sgd=rule,
                   class_weights=weights)  # fmt: skip


def everything(executor: Executor, program: Program, hyper: Hyper, valid: int) -> list[bytes]:
    """What three steps leave, and what can be asked for afterwards, with the bits of its floats."""
    losses, vector = trained(executor, program, [hyper] * 3)
    x, y = samples(program, 3)
    moments = [(m.count, m.sum, m.sum_squares, m.min, m.max) for m in executor.calibrate(x, valid)]
    asked = [*executor.evaluate(x, y, valid), *(value for row in moments for value in row)]
    prediction = np.asarray(executor.predict(x), np.float32)
    return [np.array(losses).tobytes(), vector.tobytes(), np.array(asked).tobytes(),
            prediction.tobytes()]  # fmt: skip


@settings(max_examples=150)
@given(image_nets(), IMAGE_LOSSES, st.integers(2, 4), RULES, st.integers(1, 2))
def test_nets_over_images_give_the_same_bits_in_every_build(
    runtimes: dict[str, Path], net: Net, loss: str, batch: int, rule: Sgd, valid: int
) -> None:
    program = compiled(net, loss, batch, rule)
    hyper = Hyper(0.05, rule.momentum, rule.weight_decay, rule.clip, rule.prox)
    expected = everything(ReferenceExecutor(program.image), program, hyper, valid)
    for name, runtime in runtimes.items():
        with loaded(runtime):
            found = everything(NativeExecutor(program.image), program, hyper, valid)
        assert found == expected, name


def pooled(net: Net, x: Value) -> Value:
    return net.max_pool(net.conv(x, 5, 3, padding=1), 2)


def normalised(net: Net, x: Value) -> Value:
    return net.avg_pool(net.group_norm(net.conv(x, 6, 2), 3), 2)


def activated(net: Net, x: Value) -> Value:
    return net.softmax(net.hardswish(net.leaky_relu(net.relu6(net.batch_norm(x)))))


@pytest.mark.parametrize("layers", [pooled, normalised, activated])
@pytest.mark.parametrize("extreme", [np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-45, -0.0])
def test_an_extreme_pixel_gives_the_same_bits_in_every_build(
    runtimes: dict[str, Path], layers: Callable[[Net, Value], Value], extreme: float
) -> None:
    net = Net((4, 4, 2))
    net.linear(layers(net, net.input), 3)
    program = compiled(net, "cross_entropy", 2, Sgd())
    x, y = samples(program)
    x[0, 1, 2, 1] = extreme
    vectors = []
    executors: list[Executor] = [ReferenceExecutor(program.image)]
    for runtime in runtimes.values():
        with loaded(runtime):
            executors.append(NativeExecutor(program.image))
    for executor in executors:
        executor.load(program.initial(2))
        executor.step(x, y, Hyper(0.1))
        vectors.append(np.frombuffer(executor.store(), np.float32))
    for vector in vectors[1:]:
        np.testing.assert_array_equal(vector, vectors[0])  # NaN equals NaN here


# ---- what else may be asked --------------------------------------------------------------------


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
