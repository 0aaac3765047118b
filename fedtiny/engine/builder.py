"""Graphs without torch: a net is written as calls, each giving a value to use in the next.

net = Net(inputs=1)
h = net.tanh(net.linear(net.input, 32))
h = net.add(h, net.tanh(net.linear(h, 32)))
net.linear(h, 1)                                  # the last value is the output
"""

from __future__ import annotations

from dataclasses import dataclass

from fedtiny.engine.ir import INPUT, PARAMETER, Graph, Op, Tensor, verify
from fedtiny.engine.ops import produce
from fedtiny.errors import GraphError
from fedtiny.values import Layout, Parameter


@dataclass(frozen=True, slots=True)
class Value:
    """The result of a call, to be given to the next."""

    name: str


@dataclass(frozen=True, slots=True)
class _Call:
    kind: str
    inputs: tuple[str, ...]
    output: str


class Net:
    """A net under construction. Its batch is chosen when it is compiled.

    Args:
        inputs: Features of one sample.
        group: The group of parameters made from here on ("shared", "local", "frozen", or a name of
            your own, such as "head", that the phases of a strategy can train apart).
    """

    def __init__(self, inputs: int, group: str = "shared") -> None:
        self.sample_shape = (inputs,)
        self.input = Value("input")
        self.group = group
        self._calls: list[_Call] = []
        self._parameters: list[Parameter] = []
        self._fan_in: dict[str, int] = {}
        self._widths = {"input": inputs}

    def linear(self, x: Value, features: int, bias: bool = True, name: str = "") -> Value:
        """x @ weight[in, features] + bias[features]."""
        name = name or self._fresh("linear")
        width = self._width(x)
        weight = self._parameter(f"{name}.weight", (width, features), width)
        names = (weight, self._parameter(f"{name}.bias", (features,), width) if bias else "")
        return self._call("linear", (x.name, *names), name, features)

    def bias(self, x: Value, name: str = "") -> Value:
        """x + bias over the last axis."""
        name = name or self._fresh("bias")
        width = self._width(x)
        return self._call(
            "bias", (x.name, self._parameter(f"{name}.bias", (width,), width)), name, width
        )

    def relu(self, x: Value) -> Value:
        """max(x, 0)."""
        return self._elementwise("relu", x)

    def tanh(self, x: Value) -> Value:
        """tanh(x)."""
        return self._elementwise("tanh", x)

    def sigmoid(self, x: Value) -> Value:
        """1 / (1 + exp(-x))."""
        return self._elementwise("sigmoid", x)

    def add(self, a: Value, b: Value) -> Value:
        """a + b: a residual connection."""
        if self._width(a) != self._width(b):
            raise GraphError(f"add joins {self._width(a)} and {self._width(b)} features")
        return self._call("add", (a.name, b.name), self._fresh("add"), self._width(a))

    def graph(self, batch: int) -> Graph:
        """The forward graph at a batch size."""
        if not self._calls:
            raise GraphError("the net has no layers; call net.linear(net.input, ...) first")
        layout = Layout.of(self._parameters)
        tensors = {"input": Tensor("input", (batch, *self.sample_shape), home=INPUT)}
        tensors |= {p.name: Tensor(p.name, p.shape, home=PARAMETER) for p in layout.parameters}
        ops: list[Op] = []
        for call in self._calls:
            op, made = produce(call.kind, call.inputs, (call.output,), tensors)
            ops.append(op)
            tensors[call.output] = made[0]
        output = self._calls[-1].output
        return verify(
            Graph(tensors, tuple(ops), layout, "input", output,
                  n_forward=len(ops), fan_in=dict(self._fan_in))
        )  # fmt: skip

    def _width(self, value: Value) -> int:
        if value.name not in self._widths:
            raise GraphError(f"{value.name!r} is not a value of this net")
        return self._widths[value.name]

    def _parameter(self, name: str, shape: tuple[int, ...], fan_in: int) -> str:
        self._parameters.append(Parameter(name, shape, self.group))
        self._fan_in[name] = fan_in
        return name

    def _fresh(self, kind: str) -> str:
        return f"{kind}{sum(c.kind == kind for c in self._calls) + 1}"

    def _elementwise(self, kind: str, x: Value) -> Value:
        return self._call(kind, (x.name,), self._fresh(kind), self._width(x))

    def _call(self, kind: str, inputs: tuple[str, ...], output: str, width: int) -> Value:
        if output in self._widths:
            raise GraphError(f"there are two layers named {output!r}; give one another name")
        self._calls.append(_Call(kind, inputs, output))
        self._widths[output] = width
        return Value(output)
