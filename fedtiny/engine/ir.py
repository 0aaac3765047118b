"""The graph that the passes work on: named tensors, and ops in the order of their execution.

Every tensor but the input, the label and the parameters is produced by exactly one op, before it
is used. An op may also *mutate* some of its operands: updates write their parameter, clipping
accumulates into a scalar. What an op kind means stands in the table of `fedtiny.engine.ops`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fedtiny.errors import GraphError
from fedtiny.values import Layout

F32, I32 = "f32", "i32"
INPUT, LABEL, PARAMETER, ARENA = "input", "label", "parameter", "arena"
ELEMENT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Tensor:
    """Shape, element type and home of one tensor. ``shape[0]`` is the batch, except for parameters
    and scalars."""

    name: str
    shape: tuple[int, ...]
    dtype: str = F32
    home: str = ARENA

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes at float32 or int32."""
        return self.size * ELEMENT_BYTES


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. ``inputs`` and ``outputs`` name tensors; "" is an absent operand. An op that
    serves one ``parameter`` (its update, its norm) runs only in phases that train its group."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    parameter: str = ""

    @property
    def operands(self) -> tuple[str, ...]:
        """Inputs, then outputs: the order in which a kernel takes them."""
        return self.inputs + self.outputs


@dataclass(frozen=True)
class Graph:
    """A program before it is placed in memory. ``n_forward`` ops compute ``output`` from ``input``;
    ``label`` and ``loss`` are "" until a loss is added."""

    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    layout: Layout
    input: str
    output: str
    label: str = ""
    loss: str = ""
    n_forward: int = 0
    fan_in: Mapping[str, int] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Samples per step."""
        return self.tensors[self.input].shape[0]

    def extended(self, tensors: Iterable[Tensor], ops: Iterable[Op]) -> Graph:
        """This graph with more tensors and ops behind the ones it has."""
        table = {**self.tensors, **{t.name: t for t in tensors}}
        return replace(self, tensors=table, ops=self.ops + tuple(ops))


def verify(graph: Graph) -> Graph:
    """The graph itself, if it is well-formed; else GraphError naming the op."""
    known = {n for n, t in graph.tensors.items() if t.home != ARENA}
    for index, op in enumerate(graph.ops):
        where = f"op {index} ({op.kind} -> {', '.join(op.outputs) or 'nothing'})"
        for name in filter(None, op.inputs):
            if name not in graph.tensors:
                raise GraphError(f"{where} reads {name!r}, which the graph does not declare")
            if name not in known:
                raise GraphError(f"{where} reads {name!r} before it is produced")
        for name in op.outputs:
            if name not in graph.tensors or name in known:
                raise GraphError(
                    f"{where} produces {name!r}, which is undeclared or exists already"
                )
            known.add(name)
    _verify_sizes(graph)
    return graph


def _verify_sizes(graph: Graph) -> None:
    for tensor in graph.tensors.values():
        if not 1 <= len(tensor.shape) <= 4 or min(tensor.shape) < 1:
            raise GraphError(f"{tensor.name} has shape {tensor.shape}; 1 to 4 axes of 1 or more")
    for parameter in graph.layout.parameters:
        if graph.tensors[parameter.name].shape != parameter.shape:
            raise GraphError(f"{parameter.name} differs in shape from the layout")
