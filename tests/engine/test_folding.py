"""A folded net has no normalisation, and predicts what the net predicted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine.builder import Net, Value
from fedtiny.engine.compile import Compilable, build
from fedtiny.engine.folding import folded
from fedtiny.engine.reference import ReferenceExecutor
from fedtiny.engine.zoo import ds_cnn, mobilenet_v2
from fedtiny.errors import CompileError
from fedtiny.layout import Layout
from tests.engine.nets import Array

Draw = st.DrawFn


@st.composite
def normalised_nets(draw: Draw) -> Net:
    """Layers with and without bias, each with a normalisation by stored statistics or none."""
    net = Net((draw(st.integers(2, 6)), draw(st.integers(2, 6)), draw(st.integers(1, 3))))
    value = net.input
    for _ in range(draw(st.integers(1, 3))):
        width = draw(st.integers(1, 5))
        inner = _normalised(
            draw, net, net.conv(value, width, 3, padding=1, bias=draw(st.booleans()))
        )
        inner = net.relu6(inner) if draw(st.booleans()) else inner
        value = net.add(inner, value) if inner.shape == value.shape else inner
    value = _normalised(draw, net, net.linear(value, draw(st.integers(2, 4)), bias=False))
    return net


def _normalised(draw: Draw, net: Net, x: Value) -> Value:
    how = draw(st.sampled_from(["none", "frozen", "tracked"]))
    return x if how == "none" else net.batch_norm(x, tracked=how == "tracked")


def some_vector(layout: Layout, seed: int) -> Array:
    """Weights of any sign; statistics and gains as of a trained net."""
    rng = np.random.default_rng(seed)
    made = [
        rng.uniform(0.5, 2, p.size) if p.name.endswith("_var") else rng.normal(0, 0.5, p.size)
        for p in layout.parameters
    ]  # fmt: skip
    return np.concatenate(made).astype(np.float32)


def prediction(net: Compilable, vector: Array, x: Array) -> Array:
    program = build(net, loss="mse", batch=len(x)).program
    executor = ReferenceExecutor(program.image)
    executor.load(vector)
    return np.array(executor.predict(x))


@settings(max_examples=25, deadline=None)
@given(normalised_nets(), st.integers(0, 2**32 - 1))
def test_a_folded_net_predicts_what_the_net_predicts(net: Net, seed: int) -> None:
    vector = some_vector(net.graph(1).layout, seed)
    x = np.random.default_rng(seed).normal(size=(3, *net.sample_shape)).astype(np.float32)
    without, values = folded(net, vector)
    expected, found = prediction(net, vector, x), prediction(without, values, x)
    assert np.abs(found - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def test_the_folded_net_is_that_of_the_zoo_without_norms() -> None:
    for make in (ds_cnn, mobilenet_v2):
        net, plain = make(norm="tracked"), make(norm="none")
        without, vector = folded(net, some_vector(net.graph(1).layout, 0))
        assert without.graph(2).layout == plain.graph(2).layout
        assert without.graph(2).ops == plain.graph(2).ops
        assert vector.size == plain.graph(1).layout.size


def test_a_program_of_the_folded_net_starts_from_the_folded_vector() -> None:
    net = ds_cnn(norm="frozen")
    without, vector = folded(net, some_vector(net.graph(1).layout, 1))
    program = build(without, loss="cross_entropy").program
    assert bytes(program.initial(0)) == vector.tobytes()


def test_one_channel_by_hand() -> None:
    net = Net((1, 1, 1))
    net.batch_norm(net.conv(net.input, 1, 1, bias=False, name="c"), eps=0.25, name="n")
    net.linear(net.global_avg_pool(Value("n", (1, 1, 1))), 1, name="head")
    layout = net.graph(1).layout
    assert [p.name for p in layout.parameters][:5] == [
        "c.weight", "n.running_mean", "n.running_var", "n.weight", "n.bias",
    ]  # fmt: skip
    without, vector = folded(net, np.array([3, 2, 3.75, 4, 5, 1, 0], np.float32))
    # 4 / sqrt(3.75 + 0.25) = 2; weight 3 * 2, bias (0 - 2) * 2 + 5
    assert [p.name for p in without.graph(1).layout.parameters][:2] == ["c.weight", "c.bias"]
    assert vector.tolist() == [6, 1, 1, 0]


def refused(net: Net) -> str:
    with pytest.raises(CompileError) as error:
        folded(net, np.zeros(net.graph(1).layout.size, np.float32))
    return str(error.value)


def test_statistics_that_are_measured_cannot_be_folded() -> None:
    net = Net((2, 2, 4))
    net.group_norm(net.conv(net.input, 4, 1), 2, name="gn")
    assert "gn.normal normalises by the statistics of each sample" in refused(net)
    net = Net((2, 2, 4))
    net.batch_norm(net.conv(net.input, 4, 1), frozen=False, name="bn")
    assert "bn.normal normalises by the statistics of the batch" in refused(net)


def test_a_normalisation_behind_no_layer_is_refused() -> None:
    net = Net((2, 2, 4))
    net.linear(net.batch_norm(net.relu(net.conv(net.input, 4, 1)), name="bn"), 2)
    assert "bn.normal normalises relu1" in refused(net)
    net = Net((2, 2, 4))
    x = net.conv(net.input, 4, 1, name="c")
    net.linear(net.add(net.batch_norm(x, name="bn"), x), 2)
    assert "bn.normal normalises c, which is no convolution or linear layer that it alone" in (
        refused(net)
    )


def test_a_layer_that_is_used_twice_is_refused() -> None:
    net = Net((2, 2, 4))
    for name in ("a", "b"):
        net.batch_norm(net.conv(net.input, 4, 1, bias=False, name="twice"), name=name)
    net.linear(net.add(Value("a", (2, 2, 4)), Value("b", (2, 2, 4))), 2)
    assert "several layers use twice.weight" in refused(net)
