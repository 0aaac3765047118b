"""The graph that the passes work on: named tensors, and ops in the order of their execution.

Every tensor but the input, the label and the parameters is produced by exactly one op, before it
is used. An op may also *mutate* some of its operands: updates write their parameter, clipping
accumulates into a scalar. What an op kind means stands in the table of `fedtiny.engine.ops`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fedtiny.errors import GraphError
from fedtiny.values import Layout

if TYPE_CHECKING:
    from fedtiny.tensors import Float32

F32, I32 = "f32", "i32"
INPUT, LABEL, PARAMETER, ARENA, LIVE = "input", "label", "parameter", "arena", "live"
"""Homes. ``live`` is that of a pruned parameter: only its live values are stored, in the pool."""
ELEMENT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Tensor:
    """Shape, element type and home of one tensor; its number of elements, and their bytes at
    float32 or int32. ``shape[0]`` is the batch, except for parameters and scalars."""

    name: str
    shape: tuple[int, ...]
    dtype: str = F32
    home: str = ARENA
    size: int = field(init=False, repr=False, compare=False)
    nbytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # The passes ask for these millions of times.
        object.__setattr__(self, "size", math.prod(self.shape))
        object.__setattr__(self, "nbytes", self.size * ELEMENT_BYTES)


@dataclass(frozen=True, slots=True)
class Window:
    """How a window slides: stride (height, width), padding (top, left, bottom, right), groups of a
    convolution, and the kernel (height, width) of a pooling: of one that stands alone, or of one
    that is fused to a convolution, whose own kernel is its weight's."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 0
    kernel: tuple[int, int] = (0, 0)

    @property
    def words(self) -> tuple[int, ...]:
        """As an image holds it."""
        return (*self.stride, *self.padding, self.groups, *self.kernel)

    @classmethod
    def of(cls, words: Sequence[int]) -> Window:
        """From an image."""
        sh, sw, top, left, bottom, right, groups, kh, kw = words[:9]
        return cls((sh, sw), (top, left, bottom, right), groups, (kh, kw))

    @property
    def taps(self) -> int:
        """Of the pooling."""
        return self.kernel[0] * self.kernel[1]

    @property
    def code_bits(self) -> int:
        """Bits of the number of one of these taps."""
        return 2 if self.taps <= 4 else 4 if self.taps <= 16 else 8


@dataclass(frozen=True, slots=True)
class Scalars:
    """A number (groups of a normalisation, first channel of a slice) and a float (eps, slope)
    rounded to float32."""

    number: int = 0
    value: float = 0.0

    def __post_init__(self) -> None:
        (rounded,) = struct.unpack("<f", struct.pack("<f", self.value))
        object.__setattr__(self, "value", rounded)

    @property
    def words(self) -> tuple[int, ...]:
        """As an image holds them: the float as the halves of its float32."""
        return (self.number, *struct.unpack("<2H", struct.pack("<f", self.value)))

    @classmethod
    def of(cls, words: Sequence[int]) -> Scalars:
        """From an image."""
        (value,) = struct.unpack("<f", struct.pack("<2H", *words[1:3]))
        return cls(words[0], value)


Attributes = Window | Scalars | None
Initial = tuple[str, float]
"""What a parameter starts from: ("uniform", bound) or ("constant", value)."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. ``inputs`` and ``outputs`` name tensors; "" is an absent operand. An op that
    serves one ``parameter`` (its update, its norm) runs only in phases that train its group."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    parameter: str = ""
    attributes: Attributes = None

    @property
    def operands(self) -> tuple[str, ...]:
        """Inputs, then outputs: the order in which a kernel takes them."""
        return self.inputs + self.outputs


@dataclass(frozen=True)
class Graph:
    """A program before it is placed in memory. ``n_forward`` ops compute ``output`` from ``input``;
    ``label`` and ``loss`` are "" until a loss is added. ``initial`` says what each parameter starts
    from, unless ``start`` holds its values."""

    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    layout: Layout
    input: str
    output: str
    label: str = ""
    loss: str = ""
    n_forward: int = 0
    initial: Mapping[str, Initial] = field(default_factory=dict)
    start: Mapping[str, Float32] = field(default_factory=dict, compare=False)

    @property
    def batch(self) -> int:
        """Samples per step."""
        return self.tensors[self.input].shape[0]

    def extended(self, tensors: Iterable[Tensor], ops: Iterable[Op]) -> Graph:
        """This graph with more tensors and ops behind the ones it has."""
        table = {**self.tensors, **{t.name: t for t in tensors}}
        return replace(self, tensors=table, ops=self.ops + tuple(ops))


def fresh(name: str, known: Collection[str]) -> str:
    """The name, with as many primes as make it a new one."""
    while name in known:
        name += "'"
    return name


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
