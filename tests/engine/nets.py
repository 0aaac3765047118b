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


# ---- nets over images and sequences ----------------------------------------------------------

PLAIN = ("relu", "relu6", "leaky_relu", "hardswish", "tanh", "sigmoid", "softmax")
MAX_CHANNELS = 20
Draw = st.DrawFn


@st.composite
def image_nets(draw: Draw, side: int = 11) -> Net:
    """Chains of everything that the builder has, over small images and sequences."""
    axes = draw(st.integers(1, 2))
    extents = [draw(st.integers(1, side)) for _ in range(axes)]
    net = Net((*extents, draw(st.integers(1, 4))))
    value = net.input
    for _ in range(draw(st.integers(1, 4))):
        net.group = draw(st.sampled_from(["shared", "shared", "head", "frozen"]))
        value = draw(st.sampled_from(BLOCKS))(draw, net, value)
    net.group = "shared"
    if draw(st.booleans()):
        value = net.global_avg_pool(value)
    net.linear(value, draw(st.integers(1, 5)), bias=draw(st.booleans()))
    return net


def _conv(draw: Draw, net: Net, x: Value) -> Value:
    groups = draw(st.sampled_from([n for n in range(1, x.shape[-1] + 1) if x.shape[-1] % n == 0]))
    channels = groups * draw(st.integers(1, max(1, MAX_CHANNELS // groups)))
    kernel, stride, padding = _window(draw, x, 5)
    bias = draw(st.booleans())
    if draw(st.booleans()):
        return net.conv(x, channels, kernel, stride, padding, groups, bias)
    return net.conv(x, channels, kernel, stride, "same", groups, bias)


def _window(
    draw: Draw, x: Value, largest: int
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]:
    """Kernel, stride and pads that fit."""
    sizes = (1, *x.shape[:-1])[-2:]
    kernel = tuple(draw(st.integers(1, min(n, largest))) for n in sizes)
    stride = tuple(draw(st.integers(1, 3 if n > 1 else 1)) for n in sizes)
    pads = tuple(draw(st.integers(0, k - 1)) for k in (*kernel, *kernel))
    return kernel, stride, pads  # type: ignore[return-value]


def _pool(draw: Draw, net: Net, x: Value) -> Value:
    pool = draw(st.sampled_from([net.max_pool, net.avg_pool]))
    return pool(x, *_window(draw, x, 3))


def _whole_pool(draw: Draw, net: Net, x: Value) -> Value:
    """As it stands behind most convolutions: stride = kernel, no padding."""
    sizes = (1, *x.shape[:-1])[-2:]
    kernel = tuple(draw(st.integers(1, min(n, 3))) for n in sizes)
    activated = _activation(draw, net, _conv(draw, net, x)) if draw(st.booleans()) else x
    if activated.shape[:-1] != x.shape[:-1]:
        return activated
    return net.max_pool(activated, kernel)  # type: ignore[arg-type]


def _activation(draw: Draw, net: Net, x: Value) -> Value:
    activated: Value = getattr(net, draw(st.sampled_from(PLAIN)))(x)
    return activated


def _norm(draw: Draw, net: Net, x: Value) -> Value:
    channels, places = x.shape[-1], int(np.prod(x.shape[:-1]))
    kinds = ["frozen", "batch", "tracked", "group"] if places > 1 else ["frozen"]
    kind = draw(st.sampled_from(kinds))
    if kind != "group":
        return net.batch_norm(x, frozen=kind == "frozen", tracked=kind == "tracked")
    groups = draw(st.sampled_from([n for n in range(1, channels + 1) if channels % n == 0]))
    return net.group_norm(x, groups)


def _residual(draw: Draw, net: Net, x: Value) -> Value:
    kernel = tuple(draw(st.integers(1, 3)) for _ in x.shape[:-1])
    branch = net.conv(x, x.shape[-1], (1, *kernel)[-2:], padding="same")  # type: ignore[arg-type]
    return net.add(x, _activation(draw, net, branch))


def _concat(draw: Draw, net: Net, x: Value) -> Value:
    other = draw(st.sampled_from([x, net.input, net.conv(x, draw(st.integers(1, 4)), 1)]))
    if other.shape[:-1] != x.shape[:-1] or other.shape[-1] + x.shape[-1] > MAX_CHANNELS:
        return net.bias(x)
    return net.concat(x, other)


def _shared(draw: Draw, net: Net, x: Value) -> Value:
    """One convolution and one norm, used twice."""
    name = f"twice{len(x.name)}{x.name}"
    for _ in range(2):
        x = net.conv(x, x.shape[-1], 1, bias=draw(st.booleans()), name=name)
        x = _activation(draw, net, net.batch_norm(x, name=f"{name}.norm"))
    return x


def _reshape(draw: Draw, net: Net, x: Value) -> Value:
    *extents, channels = x.shape
    turned = net.reshape(x, (*reversed(extents), channels))
    return turned if len(extents) == 1 else net.reshape(turned, (int(np.prod(extents)), channels))


BLOCKS = (_conv, _conv, _pool, _whole_pool, _activation, _norm, _residual, _concat, _shared,
          _reshape)  # fmt: skip


# ---- running them ----------------------------------------------------------------------------


def samples(program: Program, seed: int = 0) -> tuple[Array, Array]:
    """One batch: x, and targets or labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(program.batch, *program.sample_shape)).astype(np.float32)
    if program.loss == "mse":
        return x, rng.normal(size=(program.batch, *program.output_shape)).astype(np.float32)
    if program.loss == "soft_cross_entropy":
        return x, rng.dirichlet(np.ones(program.output_shape), program.batch).astype(np.float32)
    return x, rng.integers(0, program.output_shape[0], program.batch).astype(np.int32)


def trained(executor: Executor, program: Program, hypers: Sequence[Hyper]) -> tuple[Array, Array]:
    """The losses and the vector (float32) after one step a hyper, from seed 1."""
    executor.load(program.initial(1))
    losses = [executor.step(*samples(program, i), hyper) for i, hyper in enumerate(hypers)]
    return np.array(losses), np.frombuffer(executor.store(), np.float32)


def drawn_live(program: Program, seed: int = 0, share: float = 1.0) -> Array:
    """One bool a coordinate: of the weights that can be pruned that share of the capacity."""
    layout = program.layout
    prunable = np.concatenate([np.arange(*layout.ranges([name])[0]) for name in program.prunable])
    count = int(share * program.capacity)
    live = np.ones(layout.size, bool)
    live[prunable] = False
    live[np.random.default_rng(seed).choice(prunable, count, replace=False)] = True
    return live


def bits_of(live: Array) -> bytes:
    """As a runtime takes a mask."""
    return np.packbits(live, bitorder="little").tobytes()
