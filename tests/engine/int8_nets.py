"""Random small nets that int8 has all layers of, and ranges for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from fedtiny.engine.builder import Net, Value
from fedtiny.engine.program import Program
from tests.engine.nets import Array

Layer = Callable[[Value], Value]

PLANS = (
    "all", "biases", "last:2", "biases:1+last:1", "last:1+named:stem.weight{out=1/2}",
    "biases+named:stem.weight{in=1/2}",
)  # fmt: skip


@st.composite
def int8_nets(draw: st.DrawFn) -> Net:
    """A convolution, "stem", then others, sums, pools and linear layers, over images of up to 7 by
    7 pixels."""
    net = Net((draw(st.integers(2, 7)), draw(st.integers(2, 7)), draw(st.integers(1, 3))))
    value = net.conv(net.input, draw(st.integers(1, 6)), draw(st.integers(1, 3)), 1, "same",
                     bias=draw(st.booleans()), name="stem")  # fmt: skip
    for _ in range(draw(st.integers(0, 2))):
        value = draw(st.sampled_from(_BLOCKS))(draw, net, value)
    if draw(st.booleans()):
        value = net.relu(net.linear(value, draw(st.integers(1, 9))))
    net.linear(value, draw(st.integers(2, 5)))
    return net


def _conv(draw: st.DrawFn, net: Net, x: Value) -> Value:
    groups = draw(st.sampled_from([1, x.shape[-1]]))
    channels = groups * draw(st.integers(1, max(1, 6 // groups)))
    kernel, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    made = net.conv(x, channels, kernel, stride, "same", groups, draw(st.booleans()))
    activate: Layer = draw(st.sampled_from([net.relu, net.relu6, lambda value: value]))
    return activate(made)


def _residual(draw: st.DrawFn, net: Net, x: Value) -> Value:
    branch = net.conv(x, x.shape[-1], draw(st.integers(1, 3)), padding="same")
    activate: Layer = draw(st.sampled_from([net.relu, lambda value: value]))
    return activate(net.add(x, branch))


def _pool(draw: st.DrawFn, net: Net, x: Value) -> Value:
    pool = draw(st.sampled_from([net.max_pool, net.avg_pool]))
    return pool(x, min(2, *x.shape[:2]))


_BLOCKS = (_conv, _conv, _residual, _pool)


def ranged(program: Program, seed: int = 1, reach: float = 60.0) -> Array:
    """Initial values, and ranges as wide as that: from 0 on behind what clips there."""
    vector = np.array(program.initial(seed), np.float32)
    for p in program.layout.parameters:
        if p.name.endswith(".range"):
            low = 0.0 if p.name.startswith("relu") else -reach
            vector[p.offset : p.offset + p.size] = low, reach
    return vector
