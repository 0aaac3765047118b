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
from fedtiny.layout import Layout

if TYPE_CHECKING:
    from fedtiny.tensors import Float32

F32, I32, I8 = "f32", "i32", "i8"
INPUT, LABEL, PARAMETER, ARENA, LIVE = "input", "label", "parameter", "arena", "live"
FROZEN_HOME, CONST = "frozen", "const"
"""Homes. ``live`` is that of a pruned parameter: only its live values are stored, in the pool.
``frozen`` is that of what is written when a model is loaded, and never else; ``const`` that of what
the graph itself says."""
ALIGNMENT = 4
"""Of the places of tensors, in bytes."""
_ELEMENT_BYTES = {F32: 4, I32: 4, I8: 1}


@dataclass(frozen=True, slots=True)
class Tensor:
    """Shape, element type and home of one tensor; its number of elements, and their bytes in whole
    words. ``shape[0]`` is the batch, except for parameters and scalars. ``scale`` names the tensor
    that holds the scale and zero of an I8 activation, or the steps of an I8 weight."""

    name: str
    shape: tuple[int, ...]
    dtype: str = F32
    home: str = ARENA
    scale: str = ""
    size: int = field(init=False, repr=False, compare=False)
    nbytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # The passes ask for these millions of times.
        object.__setattr__(self, "size", math.prod(self.shape))
        nbytes = self.size * _ELEMENT_BYTES[self.dtype]
        object.__setattr__(self, "nbytes", -(-nbytes // ALIGNMENT) * ALIGNMENT)


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


@dataclass(frozen=True, slots=True)
class Region:
    """A part of an image [batch, height, width, channels]: all channels of some rows, columns."""

    top: int
    left: int
    height: int
    width: int

    @property
    def words(self) -> tuple[int, ...]:
        """As an image holds it."""
        return self.top, self.left, self.height, self.width

    @classmethod
    def of(cls, words: Sequence[int]) -> Region:
        """From an image."""
        return cls(*words[:4])

    @property
    def bottom(self) -> int:
        """The first row below it."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The first column behind it."""
        return self.left + self.width

    @property
    def rows(self) -> tuple[int, int]:
        """The first, and the first below."""
        return self.top, self.bottom

    @property
    def columns(self) -> tuple[int, int]:
        """The first, and the first behind."""
        return self.left, self.right

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Of batch, rows and columns."""
        return slice(None), slice(*self.rows), slice(*self.columns)


Attributes = Window | Scalars | Region | None
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


AXES = {"in": 1, "out": 2}
"""The axes of channels, and their numbers in an image."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """Channels of a parameter that train while the rest of it does not: a tensor of their own.

    Attributes:
        parameter: The whole one.
        axis: "in" (the last but one) or "out" (the last).
        index: The constant tensor that lists the channels, ascending.
    """

    parameter: str
    axis: str
    index: str


@dataclass(frozen=True)
class Graph:
    """A program before it is placed in memory. ``n_forward`` ops compute ``output`` from ``input``;
    ``label`` and ``loss`` are "" until a loss is added. ``initial`` says what each parameter starts
    from, unless ``start`` holds its values. ``constants`` holds the words of constant tensors;
    ``overlays`` says, by name, which tensors are channels of which parameter."""

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
    constants: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    overlays: Mapping[str, Overlay] = field(default_factory=dict)

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
