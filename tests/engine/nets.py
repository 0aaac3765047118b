"""Random nets and samples for property tests, and a driver for any executor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from fedtiny.engine.builder import Net, Value
from fedtiny.engine.program import Executor, Hyper, Program

Array = npt.NDArray[Any]
ACTIVATIONS = ("relu", "tanh", "sigmoid")


@st.composite
def nets(draw: st.DrawFn, widths: int = 12) -> Net:
    """Chains of linear, bias and activation layers, with residual connections where they fit."""
    net = Net(draw(st.integers(1, widths)))
    value = net.input
    earlier: dict[int, Value] = {}
    for layer in range(draw(st.integers(1, 4))):
        width = draw(st.integers(1, widths))
        net.group = draw(st.sampled_from(["shared", "head"]))
        value = net.linear(value, width, bias=draw(st.booleans()))
        if draw(st.booleans()):
            value = net.bias(value)
        if draw(st.booleans()):
            value = getattr(net, draw(st.sampled_from(ACTIVATIONS)))(value)
        if width in earlier and draw(st.booleans()):
            value = net.add(value, earlier[width])
        elif layer and draw(st.booleans()):
            value = net.add(value, value)
        earlier[width] = value
    return net


def samples(program: Program, seed: int = 0) -> tuple[Array, Array]:
    """One batch: x, and targets or labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(program.batch, *program.sample_shape)).astype(np.float32)
    if program.loss == "mse":
        return x, rng.normal(size=(program.batch, *program.output_shape)).astype(np.float32)
    return x, rng.integers(0, program.output_shape[0], program.batch).astype(np.int32)


def trained(executor: Executor, program: Program, hypers: Sequence[Hyper]) -> tuple[Array, Array]:
    """The losses and the vector (float32) after one step a hyper, from seed 1."""
    executor.load(program.initial(1))
    losses = [executor.step(*samples(program, i), hyper) for i, hyper in enumerate(hypers)]
    return np.array(losses), np.frombuffer(executor.store(), np.float32)
