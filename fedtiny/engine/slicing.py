"""Channels of parameters that train while the rest of them does not: the pass that gives them
tensors of their own.

The whole parameter stays as it was loaded. Beside it stands an overlay, dense, with the channels
that train. A `merge` makes the weight of both just before it is used; what the gradient of the
overlay reads is taken from the layer's input on the way forth, and from its output's gradient on
the way back, so that it is the gradient of an ordinary, narrower layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedtiny.engine.ir import (
    ARENA,
    AXES,
    CONST,
    I32,
    LIVE,
    PARAMETER,
    Attributes,
    Graph,
    Op,
    Overlay,
    Scalars,
    Tensor,
    Window,
    fresh,
    verify,
)  # fmt: skip
from fedtiny.engine.ops import MERGE, TABLE, produce
from fedtiny.engine.shapes import Shape
from fedtiny.errors import CompileError
from fedtiny.update_plan import IN, WHOLE, Part

Chosen = tuple[int, ...] | None
"""Some channels of a tensor, or all."""


@dataclass(frozen=True, slots=True)
class Reads:
    """What the gradient of some channels of a parameter reads of its op."""

    x: Chosen = None
    dy: Chosen = None
    attributes: Attributes = None


def reads(family: str, attributes: Attributes, weight: Tensor, part: Part) -> Reads:
    """Of the part of a parameter whose gradient a family of ops makes."""
    if family == "bias":
        return Reads(dy=part.indices)
    if family == "affine":
        return Reads(part.indices, part.indices)
    if isinstance(attributes, Window) and attributes.groups > 1:
        return _of_groups(attributes, weight, part)
    if part.axis == IN:
        return Reads(x=part.indices, attributes=attributes)
    return Reads(dy=part.indices, attributes=attributes)


def _of_groups(window: Window, weight: Tensor, part: Part) -> Reads:
    """Of a convolution whose outputs see the inputs of their own group alone."""
    *_, inputs, outputs = weight.shape
    if part.axis == IN:
        raise CompileError(
            f"{weight.name} has {window.groups} groups, each with inputs of its own: narrow it "
            "along 'out', or train it whole"
        )
    chosen = Counter(channel // (outputs // window.groups) for channel in part.indices)
    if len(set(chosen.values())) > 1:
        raise CompileError(
            f"{weight.name} has {window.groups} groups of {outputs // window.groups} outputs, and "
            f"the plan trains {', '.join(f'{n} of group {g}' for g, n in chosen.items())}: train "
            "as many of each group that has any, or train it whole"
        )
    x = tuple(group * inputs + i for group in chosen for i in range(inputs))
    every = len(chosen) == window.groups
    return Reads(None if every else x, part.indices, replace(window, groups=len(chosen)))


# ---- the pass --------------------------------------------------------------------------------


def with_overlays(graph: Graph, parts: Mapping[str, Part]) -> Graph:
    """The forward graph in which the narrowed parts are overlays.

    Raises CompileError for what has no channels that train alone.
    """
    narrowed = {name: part for name, part in parts.items() if part != WHOLE}
    if not narrowed:
        return graph
    writing = _Writing(narrowed, dict(graph.tensors), dict(graph.constants), dict(graph.overlays))
    for op in graph.ops:
        writing.write(op)
    if others := narrowed.keys() - {o.parameter for o in writing.overlays.values()}:
        raise CompileError(
            f"{min(others)} is no weight, gain or bias of a layer, so that none of its channels "
            "train alone: name it whole, or leave it out of the plan"
        )
    made = replace(
        graph, tensors=writing.tensors, ops=tuple(writing.ops), n_forward=len(writing.ops),
        constants=writing.constants, overlays=writing.overlays,
    )  # fmt: skip
    return verify(made)


def trained_tensors(graph: Graph, parts: Mapping[str, Part]) -> tuple[str, ...]:
    """What trains of each part: the parameter, or its overlay."""
    overlays = {overlay.parameter: name for name, overlay in graph.overlays.items()}
    return tuple(overlays.get(name, name) for name in parts)


@dataclass
class _Writing:
    """The forward graph as far as it is written."""

    parts: Mapping[str, Part]
    tensors: dict[str, Tensor]
    constants: dict[str, tuple[int, ...]]
    overlays: dict[str, Overlay]
    ops: list[Op] = field(default_factory=list)
    taken: set[tuple[str, str]] = field(default_factory=set)

    def write(self, op: Op) -> None:
        """The op, behind the merges of its parameters and what is taken of its input."""
        rule = TABLE[op.kind].gradient
        for position, (family, _) in (rule.parameters if rule else {}).items():
            if op.inputs[position] in self.parts:
                op = self._narrowed(op, position, family)
        self.ops.append(op)

    def _narrowed(self, op: Op, position: int, family: str) -> Op:
        name = op.inputs[position]
        part, weight = self.parts[name], self.tensors[name]
        if weight.home == LIVE:
            raise CompileError(
                f"{name} is pruned, and its live weights train whatever their channels are: leave "
                "its channels out of the plan, or compile with density=1"
            )
        overlay, index = self._overlay(weight, part)
        axis = Scalars(number=AXES[part.axis])
        merged = self._emit(MERGE, (name, overlay, index), f"{name}.merged", axis)
        if family == "linear" and part.axis == IN:
            op = self._flat(op)
        self._take(op.inputs[0], reads(family, op.attributes, weight, part).x)
        return replace(op, inputs=(*op.inputs[:position], merged, *op.inputs[position + 1 :]))

    def _overlay(self, weight: Tensor, part: Part) -> tuple[str, str]:
        """The overlay of a parameter, which all its ops share, and the list of its channels."""
        name, index = f"{weight.name}[{part.axis}]", self._index(part.indices)
        axis = len(weight.shape) - (2 if part.axis == IN else 1)
        shape = (*weight.shape[:axis], len(part.indices), *weight.shape[axis + 1 :])
        self.tensors[name] = Tensor(name, shape, weight.dtype, PARAMETER)
        self.overlays[name] = Overlay(weight.name, part.axis, index)
        return name, index

    def _index(self, channels: tuple[int, ...]) -> str:
        """The constant tensor of a list, which all that take or merge these channels share."""
        known = {values: name for name, values in self.constants.items()}
        if channels not in known:
            name = known[channels] = fresh(f"channels{len(self.constants)}", self.tensors)
            self.tensors[name] = Tensor(name, (len(channels),), I32, CONST)
            self.constants[name] = channels
        return known[channels]

    def _flat(self, op: Op) -> Op:
        """A linear layer over rows, whose inputs can be counted along their last axis."""
        x, rows = self.tensors[op.inputs[0]], self.tensors[op.inputs[1]].shape[0]
        if x.shape[-1] == rows:
            return op
        flat = self._emit("reshape", (x.name,), f"{x.name}.flat", like=(x.shape[0], rows))
        return replace(op, inputs=(flat, *op.inputs[1:]))

    def _take(self, x: str, channels: Chosen) -> None:
        """Keep no more of an op's input than its gradient reads. The samples are kept anyway."""
        if channels is None:
            return
        index = self._index(channels)
        if self.tensors[x].home == ARENA and (x, index) not in self.taken:
            self.taken.add((x, index))
            self._emit("take", (x, index), f"{x}.taken")

    def _emit(
        self, kind: str, inputs: tuple[str, ...], name: str, attributes: Attributes = None,
        like: Shape = (),
    ) -> str:  # fmt: skip
        name = fresh(name, self.tensors)
        op, (self.tensors[name],) = produce(kind, inputs, (name,), self.tensors, attributes, like)
        self.ops.append(op)
        return name
