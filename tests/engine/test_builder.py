"""Nets as they are written down."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.engine.builder import Net, Value
from fedtiny.engine.compile import compile
from fedtiny.engine.ir import Window
from fedtiny.errors import GraphError


def window(net: Net) -> Window:
    attributes = net.graph(1).ops[-1].attributes
    assert isinstance(attributes, Window)
    return attributes


def parameters(net: Net) -> dict[str, tuple[tuple[int, ...], str]]:
    return {p.name: (p.shape, p.group) for p in net.graph(1).layout.parameters}


def test_a_convolution_over_an_image_has_these_parameters() -> None:
    net = Net((9, 8, 4))
    y = net.conv(net.input, 6, (3, 2), stride=2, padding=(1, 0), groups=2, name="c")
    assert y == Value("c", (5, 4, 6))
    assert window(net) == Window((2, 2), (1, 0, 1, 0), 2)
    assert parameters(net) == {"c.weight": ((3, 2, 2, 6), "shared"), "c.bias": ((6,), "shared")}
    assert net.graph(1).initial["c.bias"] == ("uniform", 12**-0.5)


def test_a_convolution_along_a_sequence_has_one_axis() -> None:
    net = Net((9, 4))
    assert net.conv(net.input, 6, 3, stride=2, padding=1, bias=False).shape == (5, 6)
    assert window(net) == Window((1, 2), (0, 1, 0, 1), 1)
    assert parameters(net) == {"conv1.weight": ((3, 4, 6), "shared")}


@given(st.integers(1, 20), st.integers(1, 7), st.integers(1, 4))
def test_same_padding_keeps_the_extent_over_the_stride(size: int, kernel: int, stride: int) -> None:
    net = Net((size, 1))
    y = net.conv(net.input, 1, kernel, stride, padding="same")
    left, right = window(net).padding[1::2]
    assert y.shape[0] == -(-size // stride)
    assert right - left in (0, 1)


def test_a_pooling_steps_by_its_kernel() -> None:
    net = Net((7, 6, 3))
    assert net.max_pool(net.input, (2, 3)).shape == (3, 2, 3)
    assert net.avg_pool(net.input, 2, stride=1).shape == (6, 5, 3)
    assert net.global_avg_pool(net.input).shape == (3,)


def test_running_statistics_are_frozen_and_start_as_the_identity() -> None:
    net = Net(3, group="head")
    net.batch_norm(net.input, name="n")
    net.group_norm(net.input, 3)
    assert {name: group for name, (_, group) in parameters(net).items()} == {
        "n.running_mean": "frozen", "n.running_var": "frozen", "n.weight": "head",
        "n.bias": "head", "group_norm1.weight": "head", "group_norm1.bias": "head",
    }  # fmt: skip
    net.linear(net.input, 1)
    program = compile(net, loss="mse", ram="64KiB")
    state = program.layout.unflatten(program.initial(3))
    last = ("running_mean", "running_var", "weight", "bias")
    assert [state[f"n.{name}"][0] for name in last] == [0, 1, 1, 0]


def test_tracked_statistics_have_a_group_of_their_own() -> None:
    net = Net((2, 3), group="head")
    net.batch_norm(net.input, tracked=True, momentum=0.25, name="n")
    assert {name: group for name, (_, group) in parameters(net).items()} == {
        "n.running_mean": "statistics", "n.running_var": "statistics", "n.weight": "head",
        "n.bias": "head",
    }  # fmt: skip
    net.linear(net.input, 1)
    program = compile(net, loss="mse", ram="64KiB")
    assert program.tracked == ("n.running_mean", "n.running_var")
    assert program.statistics_floats == 6
    state = program.layout.unflatten(program.initial(3))
    assert [state[f"n.{name}"][0] for name in ("running_mean", "running_var")] == [0, 1]


@pytest.mark.parametrize("momentum", [0.0, 0.0005, 1.001, -0.1, 0.1234])
def test_a_momentum_is_a_number_of_thousandths(momentum: float) -> None:
    net = Net((2, 3))
    with pytest.raises(GraphError, match=rf"momentum of {momentum} .* from 0.001 to 1"):
        net.batch_norm(net.input, tracked=True, momentum=momentum)


def test_a_layer_named_twice_is_one_layer() -> None:
    net = Net(4)
    first = net.linear(net.input, 4, name="fc")
    second = net.linear(first, 4, name="fc")
    assert (first.name, second.name) == ("fc", "fc#2")
    assert list(parameters(net)) == ["fc.weight", "fc.bias"]
    with pytest.raises(GraphError, match=r"two layers named 'fc', with fc.weight of the shapes"):
        net.linear(second, 5, name="fc")


def test_a_layer_without_a_name_never_meets_one_with_its_name() -> None:
    net = Net(4)
    net.linear(net.input, 4, name="linear1")
    net.linear(net.input, 4)
    assert len(parameters(net)) == 4


def test_a_layer_may_be_called_like_a_tensor_of_the_loss() -> None:
    net = Net(4)
    net.linear(net.linear(net.input, 4, name="loss"), 4, name="label")
    assert compile(net, loss="mse", ram="64KiB").forward_names == ("loss#2", "label#2")


def test_a_net_starts_from_the_values_that_it_is_given() -> None:
    net = Net(2)
    net.linear(net.input, 3, name="fc")
    net.start["fc.weight"] = np.arange(6, dtype=np.float32).reshape(3, 2).T
    program = compile(net, loss="mse", ram="64KiB")
    state = program.layout.unflatten(program.initial(1))
    np.testing.assert_array_equal(state["fc.weight"], [[0, 2, 4], [1, 3, 5]])
    assert abs(state["fc.bias"]).max() <= 2**-0.5
    net.start["fc.bias"] = np.zeros(2, np.float32)
    with pytest.raises(GraphError, match=r"start\['fc.bias'\] has the shape \(2,\)"):
        net.graph(1)


def test_what_does_not_fit_is_refused() -> None:
    net = Net((6, 5, 2))
    with pytest.raises(GraphError, match="padding 'valid' is neither a number"):
        net.conv(net.input, 2, 3, padding="valid")
    with pytest.raises(GraphError, match=r"\(2, 2\) is no \(height, width\) of a window"):
        Net((6, 2)).max_pool(Net((6, 2)).input, (2, 2))
    with pytest.raises(GraphError, match="'relu9' is not a value of this net"):
        net.relu(Value("relu9", (2,)))
    with pytest.raises(GraphError, match="add joins 6 x 5 x 2 and 6 x 5 x 1 features"):
        net.add(net.input, net.conv(net.input, 1, 1))
