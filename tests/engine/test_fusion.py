"""Poolings move before activations and into convolutions; what is computed stays the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine.builder import Net, Value
from fedtiny.engine.fusion import fuse
from fedtiny.engine.ir import Graph
from fedtiny.engine.liveness import live_bytes
from tests.engine.nets import image_nets
from tests.engine.passes import results, same_bits, training_graph


@st.composite
def pooled_nets(draw: st.DrawFn) -> Net:
    """Convolutions, activations and max-poolings in any order, over images of up to 9 x 9."""
    net = Net((draw(st.integers(2, 9)), draw(st.integers(2, 9)), draw(st.integers(1, 3))))
    value = net.input
    for _ in range(draw(st.integers(2, 7))):
        value = draw(st.sampled_from([_conv, _activation, _pool, _pool, _residual]))(
            draw, net, value
        )
    net.linear(value, draw(st.integers(2, 4)))
    return net


def _conv(draw: st.DrawFn, net: Net, x: Value) -> Value:
    return net.conv(x, draw(st.integers(1, 6)), draw(st.integers(1, 3)), padding="same")


def _activation(draw: st.DrawFn, net: Net, x: Value) -> Value:
    kind = draw(st.sampled_from(["relu", "relu6", "leaky_relu", "tanh"]))
    activated: Value = getattr(net, kind)(x)
    return activated


def _residual(draw: st.DrawFn, net: Net, x: Value) -> Value:
    return net.add(net.relu(x), x)


def _pool(draw: st.DrawFn, net: Net, x: Value) -> Value:
    kernel = draw(st.integers(1, min(*x.shape[:2], 3)))
    return net.max_pool(x, kernel, draw(st.integers(1, 3)), draw(st.integers(0, kernel - 1)))


def kinds(graph: Graph) -> list[str]:
    return [op.kind for op in graph.ops]


@settings(max_examples=150)
@given(st.one_of(pooled_nets(), image_nets()), st.integers(1, 2))
def test_fusion_changes_no_bit_but_the_order_of_one_sum(net: Net, batch: int) -> None:
    """The order is that of the pooled places, where a fused convolution sends no gradient on."""
    plain, fused = (training_graph(g) for g in (net.graph(batch), fuse(net.graph(batch))))
    found, expected = results(fused), results(plain)
    if "conv_pool_update" in kinds(fused):
        assert found[0][0] == expected[0][0]
        wide, exact = (results(graph, dtype=np.float64) for graph in (fused, plain))
        np.testing.assert_allclose(wide[1], exact[1], rtol=1e-9, atol=1e-12)
    else:
        assert same_bits(found, expected)


@settings(max_examples=150)
@given(st.one_of(pooled_nets(), image_nets()), st.integers(1, 2), st.booleans())
def test_fusion_never_raises_the_peak(net: Net, batch: int, clip: bool) -> None:
    plain, fused = (
        training_graph(graph, clip=clip) for graph in (net.graph(batch), fuse(net.graph(batch)))
    )
    assert max(live_bytes(fused)) <= max(live_bytes(plain))


def test_a_convolution_its_activation_and_its_pooling_never_store_the_large_image() -> None:
    net = Net((8, 8, 1))
    value = net.max_pool(net.relu(net.conv(net.input, 4, 3, padding=1)), 2)
    net.linear(net.relu6(net.max_pool(net.leaky_relu(net.conv(value, 4, 3)), 2)), 3)
    graph = fuse(net.graph(1))
    assert kinds(graph) == ["conv_pool", "relu", "conv_pool", "leaky_relu", "relu6", "linear"]
    assert not {(1, 8, 8, 4), (1, 2, 2, 4)} & {t.shape for t in graph.tensors.values()}
    # Forward, the most is alive in the second convolution: 4 x 4 x 4 floats in, 4 floats and a
    # word of codes out. Nobody needs the first one's codes before the backward ops.
    assert max(live_bytes(graph)) == 4 * (4 * 4 * 4 + 4 + 1)


def test_an_activation_moves_behind_all_its_poolings() -> None:
    net = Net((9, 9, 2))
    value = net.relu(net.tanh(net.input))
    net.linear(net.max_pool(net.max_pool(value, 3, 1), 2), 2)
    assert kinds(fuse(net.graph(1))) == ["tanh", "max_pool", "max_pool", "relu", "linear"]


def used_twice(net: Net) -> None:
    value = net.relu(net.conv(net.input, 2, 1))
    net.linear(net.concat(net.max_pool(value, 1), value), 2)


def not_monotone(net: Net) -> None:
    net.linear(net.max_pool(net.hardswish(net.conv(net.input, 2, 1)), 2), 2)


def overlapping_slopes(net: Net) -> None:
    net.linear(net.max_pool(net.leaky_relu(net.conv(net.input, 2, 1)), 3, 2), 2)


def growing(net: Net) -> None:
    net.linear(net.max_pool(net.relu(net.tanh(net.input)), 2, 1, 1), 2)


def padded(net: Net) -> None:
    net.linear(net.max_pool(net.conv(net.input, 2, 1), 2, 2, 1), 2)


@pytest.mark.parametrize("build", [used_twice, not_monotone, overlapping_slopes, growing, padded])
def test_what_would_change_a_result_or_need_more_is_left_alone(build: object) -> None:
    net = Net((6, 6, 2))
    build(net)  # type: ignore[operator]
    assert fuse(net.graph(1)) == net.graph(1)


def test_the_output_of_a_net_may_be_pooled() -> None:
    net = Net((4, 4, 1))
    net.max_pool(net.relu(net.input), 2)
    graph = fuse(net.graph(1))
    assert kinds(graph) == ["max_pool", "relu"]
    assert graph.output == graph.ops[-1].outputs[0]
    assert graph.tensors[graph.output].shape == (1, 2, 2, 1)
