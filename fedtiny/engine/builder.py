"""Graphs without torch: a net is written as calls, each giving a value to use in the next.

net = Net(inputs=1)
h = net.tanh(net.linear(net.input, 32))
h = net.add(h, net.tanh(net.linear(h, 32)))
net.linear(h, 1)                                  # the last value is the output

Images have their channels last. A layer that is named twice is the same layer used twice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.engine.ir import (
    INPUT,
    PARAMETER,
    Attributes,
    Graph,
    Initial,
    Op,
    Scalars,
    Tensor,
    Window,
    verify,
)  # fmt: skip
from fedtiny.engine.ops import produce
from fedtiny.errors import GraphError
from fedtiny.layout import FROZEN, Layout, Parameter

if TYPE_CHECKING:
    from fedtiny.tensors import Float32

Extent = int | tuple[int, int]
Padding = int | tuple[int, int] | tuple[int, int, int, int] | str
_RESERVED = ("label", "loss")
STATISTICS = "statistics"
"""The group of the running statistics of tracked normalisations."""
HE = math.sqrt(6)
"""The `Net.gain` for layers that a ReLU follows."""


@dataclass(frozen=True, slots=True)
class Value:
    """The result of a call, to be given to the next. ``shape`` is that of one sample."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Call:
    """What becomes an op at a batch size; ``shape`` is the first output's, of one sample."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Attributes
    shape: tuple[int, ...]


class Net:
    """A net under construction. Its batch is chosen when it is compiled.

    Args:
        inputs: Features of one sample, or its shape: (height, width, channels), (length, channels).
        group: The group of parameters made from here on ("shared", "local", "frozen", or a name of
            your own, such as "head", that the phases of a strategy can train apart).

    Attributes:
        start: Values, by parameter, that it starts from instead of random ones.
        gain: Of the random ones made from here on: uniform within gain / sqrt(fan-in). 1 as torch
            has it; HE keeps the variance through ReLUs (He et al. 2015).
    """

    def __init__(self, inputs: int | Sequence[int], group: str = "shared") -> None:
        self.sample_shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
        self.input = Value("input", self.sample_shape)
        self.group = group
        self.start: dict[str, Float32] = {}
        self.gain = 1.0
        self._calls: list[_Call] = []
        self._layers: Counter[str] = Counter()
        self._parameters: dict[str, Parameter] = {}
        self._initial: dict[str, Initial] = {}
        self._tensors = {"input": Tensor("input", (1, *self.sample_shape), home=INPUT)}

    # ---- layers ----

    def linear(self, x: Value, features: int, bias: bool = True, name: str = "") -> Value:
        """x @ weight[in, features] + bias[features], over x as one row of features."""
        name = self._layer("linear", name)
        width = math.prod(x.shape)
        weights = self._weights(name, (width, features), width, bias)
        return self._call("linear", (x,), name, weights=weights)

    def conv(
        self, x: Value, channels: int, kernel: Extent, stride: Extent = 1, padding: Padding = 0,
        groups: int = 1, bias: bool = True, name: str = "",
    ) -> Value:  # fmt: skip
        """A convolution over an image, or along a sequence (length, channels).

        Args:
            x: The image.
            channels: Channels of the result.
            kernel: Of all axes alike, or (height, width).
            stride: Likewise.
            padding: Zeros around the image: of all sides alike, (height, width), (top, left,
                bottom, right), or "same": as many outputs as inputs (over the stride, rounded up).
            groups: Groups of channels that see only each other; as many as channels: depthwise.
            bias: Whether to add bias[channels].
            name: Of the layer.
        """
        name = self._layer("conv", name)
        size, steps = _pair(x, kernel), _pair(x, stride)
        window = Window(steps, _sides(x, padding, size, steps), groups)
        depth = x.shape[-1] // max(1, groups)
        shape = (*size[3 - len(x.shape) :], depth, channels)
        weights = self._weights(name, shape, math.prod(shape[:-1]), bias)
        return self._call("conv", (x,), name, window, weights)

    def bias(self, x: Value, name: str = "") -> Value:
        """x + bias over the last axis."""
        name = self._layer("bias", name)
        bias = self._uniform(f"{name}.bias", x.shape[-1:], x.shape[-1])
        return self._call("bias", (x,), name, weights=(bias,))

    # ---- normalisations ----

    def group_norm(self, x: Value, groups: int, eps: float = 1e-5, name: str = "") -> Value:
        """Each group of a sample's channels to mean 0 and variance 1, then weight and bias."""
        name = self._layer("group_norm", name)
        normal = self._call(
            "group_normalize", (x,), f"{name}.normal", Scalars(groups, eps), aux="rstd"
        )
        return self._affine(normal, name)

    def batch_norm(
        self, x: Value, frozen: bool = True, tracked: bool = False, eps: float = 1e-5,
        momentum: float = 0.1, name: str = "",
    ) -> Value:  # fmt: skip
        """Each channel less a mean, over a standard deviation, then weight and bias.

        ``tracked``: by those of the batch in training, which moves running_mean and running_var by
        the momentum (in thousandths) towards them, and by the running ones elsewhere. Else
        ``frozen``: by the running ones, which never change; else by those of the batch at hand, in
        predictions too.
        """
        name = self._layer("batch_norm", name)
        scalars, running, aux = Scalars(value=eps), tuple[str, ...](), "rstd"
        if tracked:
            kind, scalars = "tracked_normalize", Scalars(_thousandths(momentum), eps)
            running = self._running(name, x.shape[-1:], STATISTICS)
        elif frozen:
            kind, aux = "frozen_normalize", ""
            running = self._running(name, x.shape[-1:], FROZEN)
        else:
            kind = "batch_normalize"
        normal = self._call(kind, (x,), f"{name}.normal", scalars, running, aux)
        return self._affine(normal, name)

    def _running(self, name: str, channels: tuple[int, ...], group: str) -> tuple[str, ...]:
        mean = self._constant(f"{name}.running_mean", channels, 0.0, group)
        return mean, self._constant(f"{name}.running_var", channels, 1.0, group)

    def _affine(self, x: Value, name: str) -> Value:
        weight = self._constant(f"{name}.weight", x.shape[-1:], 1.0, self.group)
        bias = self._constant(f"{name}.bias", x.shape[-1:], 0.0, self.group)
        return self._call("affine", (x,), name, weights=(weight, bias))

    # ---- pooling ----

    def max_pool(
        self, x: Value, kernel: Extent, stride: Extent | None = None, padding: Padding = 0
    ) -> Value:
        """The largest of each window. ``stride``: that of the kernel, if None."""
        window = _pooling(x, kernel, stride, padding)
        return self._call("max_pool", (x,), self._layer("max_pool"), window, aux="codes")

    def avg_pool(
        self, x: Value, kernel: Extent, stride: Extent | None = None, padding: Padding = 0
    ) -> Value:
        """The mean of each window, zeros of the padding included."""
        window = _pooling(x, kernel, stride, padding)
        return self._call("avg_pool", (x,), self._layer("avg_pool"), window)

    def global_avg_pool(self, x: Value) -> Value:
        """The mean of each channel."""
        height, width = (1, 1, *x.shape[:-1])[-2:]
        pooled = self.avg_pool(x, (height, width))
        return self.reshape(pooled, x.shape[-1:])

    # ---- without parameters ----

    def relu(self, x: Value) -> Value:
        """max(x, 0)."""
        return self._elementwise("relu", x)

    def relu6(self, x: Value) -> Value:
        """min(max(x, 0), 6)."""
        return self._elementwise("relu6", x)

    def leaky_relu(self, x: Value, slope: float = 0.01) -> Value:
        """x, times the slope where x is negative."""
        return self._elementwise("leaky_relu", x, Scalars(value=slope))

    def hardswish(self, x: Value) -> Value:
        """x * relu6(x + 3) / 6."""
        return self._elementwise("hardswish", x)

    def tanh(self, x: Value) -> Value:
        """tanh(x)."""
        return self._elementwise("tanh", x)

    def sigmoid(self, x: Value) -> Value:
        """1 / (1 + exp(-x))."""
        return self._elementwise("sigmoid", x)

    def softmax(self, x: Value) -> Value:
        """exp(x) / sum(exp(x)) over the channels."""
        return self._elementwise("softmax", x)

    def add(self, a: Value, b: Value) -> Value:
        """a + b: a residual connection."""
        if a.shape != b.shape:
            left, right = (" x ".join(map(str, value.shape)) for value in (a, b))
            raise GraphError(f"add joins {left} and {right} features")
        return self._call("add", (a, b), self._layer("add"))

    def concat(self, a: Value, b: Value) -> Value:
        """The channels of a, then those of b."""
        return self._call("concat", (a, b), self._layer("concat"))

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """The same elements, in stored order, as a sample of another shape."""
        return self._call("reshape", (x,), self._layer("reshape"), shape=tuple(shape))

    # ---- the graph ----

    def graph(self, batch: int) -> Graph:
        """The forward graph at a batch size."""
        if not self._calls:
            raise GraphError("the net has no layers; call net.linear(net.input, ...) first")
        layout = Layout.of(self._parameters.values())
        tensors = {"input": Tensor("input", (batch, *self.sample_shape), home=INPUT)}
        tensors |= {p.name: Tensor(p.name, p.shape, home=PARAMETER) for p in layout.parameters}
        ops: list[Op] = []
        for call in self._calls:
            op, made = produce(call.kind, call.inputs, call.outputs, tensors, call.attributes,
                               (batch, *call.shape))  # fmt: skip
            ops.append(op)
            tensors |= {tensor.name: tensor for tensor in made}
        output = self._calls[-1].outputs[0]
        return verify(
            Graph(tensors, tuple(ops), layout, "input", output, n_forward=len(ops),
                  initial=dict(self._initial), start=self._checked_start())
        )  # fmt: skip

    def _checked_start(self) -> dict[str, Float32]:
        start: dict[str, Float32] = {}
        for name, values in self.start.items():
            wanted = self._parameters[name].shape if name in self._parameters else None
            if np.shape(values) != wanted:
                raise GraphError(
                    f"start[{name!r}] has the shape {np.shape(values)}; the parameter has {wanted}"
                )
            start[name] = np.ascontiguousarray(values, np.float32)
        return start

    # ---- names and parameters ----

    def _layer(self, kind: str, name: str = "") -> str:
        """The name, or one that no layer has."""
        if name:
            return name
        self._layers[kind] += 1
        fresh = f"{kind}{self._layers[kind]}"
        return self._layer(kind) if fresh in self._tensors else fresh

    def _weights(
        self, name: str, shape: tuple[int, ...], fan_in: int, bias: bool
    ) -> tuple[str, str]:
        weight = self._uniform(f"{name}.weight", shape, fan_in)
        return weight, self._uniform(f"{name}.bias", shape[-1:], fan_in) if bias else ""

    def _uniform(self, name: str, shape: tuple[int, ...], fan_in: int) -> str:
        bound = self.gain * fan_in**-0.5
        return self._parameter(Parameter(name, shape, self.group), ("uniform", bound))

    def _constant(self, name: str, shape: tuple[int, ...], value: float, group: str) -> str:
        return self._parameter(Parameter(name, shape, group), ("constant", value))

    def _parameter(self, made: Parameter, initial: Initial) -> str:
        known = self._parameters.setdefault(made.name, made)
        if known.shape != made.shape:
            raise GraphError(
                f"there are two layers named {made.layer!r}, with {made.name} of the shapes "
                f"{known.shape} and {made.shape}; give one another name"
            )
        self._initial.setdefault(made.name, initial)
        self._tensors[made.name] = Tensor(made.name, made.shape, home=PARAMETER)
        return made.name

    # ---- calls ----

    def _elementwise(self, kind: str, x: Value, attributes: Attributes = None) -> Value:
        return self._call(kind, (x,), self._layer(kind), attributes)

    def _call(
        self, kind: str, values: tuple[Value, ...], name: str, attributes: Attributes = None,
        weights: tuple[str, ...] = (), aux: str = "", shape: tuple[int, ...] = (),
    ) -> Value:  # fmt: skip
        """Note a call; ``aux`` names the second output of an op that has one."""
        for value in values:
            if value.name not in self._tensors:
                raise GraphError(f"{value.name!r} is not a value of this net")
        name = self._free(name)
        inputs = (*(value.name for value in values), *weights)
        outputs = (name, f"{name}.{aux}") if aux else (name,)
        _, made = produce(kind, inputs, outputs, self._tensors, attributes, (1, *shape))
        self._tensors |= {tensor.name: tensor for tensor in made}
        self._calls.append(_Call(kind, inputs, outputs, attributes, shape))
        return Value(name, made[0].shape[1:])

    def _free(self, name: str) -> str:
        """The name, or for the second use of a layer one that says so."""
        uses = 1
        free = name
        while free in self._tensors or free in _RESERVED:
            uses += 1
            free = f"{name}#{uses}"
        return free


def _thousandths(momentum: float) -> int:
    """As an image holds it."""
    number = round(1000 * momentum)
    if not math.isclose(number, 1000 * momentum) or not 0 < number <= 1000:
        raise GraphError(
            f"a momentum of {momentum} is no number of thousandths from 0.001 to 1; round it"
        )
    return number


# ---- windows ---------------------------------------------------------------------------------


def _pooling(x: Value, kernel: Extent, stride: Extent | None, padding: Padding) -> Window:
    size = _pair(x, kernel)
    steps = size if stride is None else _pair(x, stride)
    return Window(steps, _sides(x, padding, size, steps), kernel=size)


def _pair(x: Value, extent: Extent) -> tuple[int, int]:
    """(height, width); a sequence has the height 1."""
    is_image = len(x.shape) == 3
    if isinstance(extent, int):
        return (extent, extent) if is_image else (1, extent)
    if len(extent) != 2 or not (is_image or extent[0] == 1):
        raise GraphError(f"{extent} is no (height, width) of a window over {x.name} {x.shape}")
    return extent


def _sides(
    x: Value, padding: Padding, kernel: tuple[int, int], stride: tuple[int, int]
) -> tuple[int, int, int, int]:
    """(top, left, bottom, right)."""
    if padding == "same":
        sizes = (1, 1, *x.shape[:-1])[-2:]
        wanted = [(-(-n // s) - 1) * s + k for n, s, k in zip(sizes, stride, kernel, strict=True)]
        height, width = (max(0, w - n) for w, n in zip(wanted, sizes, strict=True))
        return height // 2, width // 2, height - height // 2, width - width // 2
    if isinstance(padding, int):
        padding = _pair(x, padding) if len(x.shape) == 3 else (0, padding)
    if isinstance(padding, str) or len(padding) not in (2, 4):
        raise GraphError(
            f"padding {padding!r} is neither a number, (height, width), (top, left, bottom, right) "
            "nor 'same'"
        )
    return padding if len(padding) == 4 else (*padding, *padding)
