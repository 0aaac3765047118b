"""Rewrites of a training graph by which values are kept shorter, or in fewer bytes.

`masked`: a value that is kept for the sign pattern of an activation is kept as one bit an element.
`pooled_slopes`: the slope of an activation is taken of its maxima, which are fewer.
`buffered`: where a layer's data gradient needs the weights as they were, the gradient of the
weights is made before it, in a buffer, so that the layer's input is gone before its gradient comes.
`run_again`: a value is not kept but computed again just before the backward op that reads it.
Merged weights are never kept: an op that runs again merges its own.
Results stay the same: an op that runs again reads the same operands, and parameters as they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from fedtiny.engine.ir import F32, I8, Graph, Op, Scalars, Tensor, fresh
from fedtiny.engine.ops import BACKWARD, BUFFERED, FORWARD, MERGE, TABLE, TRACK, UPDATE, produce

_SLOPES = ("relu_dx", "relu6_dx", "leaky_relu_dx")
_TOP = {"relu6_dx": 6.0}
"""Where a slope ends; the others have none."""


def makers(graph: Graph) -> dict[str, Op]:
    """The op behind each value that could be made again, but for merged weights."""
    made = (op for op in graph.ops if TABLE[op.kind].role in (FORWARD, TRACK) and op.kind != MERGE)
    return {name: op for op in made for name in op.outputs}


# ---- masks -----------------------------------------------------------------------------------


def maskable(graph: Graph) -> dict[str, Op]:
    """The backward op that needs no more of a value than its sign pattern."""
    remade = makers(graph)
    backward = graph.ops[graph.n_forward :]
    return {op.inputs[1]: op for op in backward if op.kind in _SLOPES and op.inputs[1] in remade}


def masked(graph: Graph, values: Iterable[str]) -> Graph:
    """The graph in which these values leave masks for the gradients of their activations."""
    tensors, instead = dict(graph.tensors), dict[Op, tuple[Op, ...]]()
    behind, slopes = makers(graph), maskable(graph)
    for y in values:
        maker, slope, mask = behind[y], slopes[y], fresh(f"{y}.mask", tensors)
        instead[maker], tensors[mask] = _masking(maker, slope, mask, tensors)
        inputs, attributes = (slope.inputs[0], mask), slope.attributes or Scalars()
        instead[slope] = (Op("mask_dx", inputs, slope.outputs, attributes=attributes),)
    n_forward = sum(len(instead.get(op, (op,))) for op in graph.ops[: graph.n_forward])
    ops = tuple(new for op in graph.ops for new in instead.get(op, (op,)))
    return replace(graph, ops=ops, tensors=tensors, n_forward=n_forward)


def _masking(
    maker: Op, slope: Op, mask: str, tensors: Mapping[str, Tensor]
) -> tuple[tuple[Op, ...], Tensor]:
    """The op that makes a value, with its mask: an activation makes it by itself."""
    y = maker.outputs[0]
    if tensors[y].dtype == I8:
        top = Scalars(value=_TOP.get(slope.kind, 0.0))
        op, (made,) = produce("mask8", (y,), (mask,), tensors, top)
        return (maker, op), made
    op, (_, made) = produce(maker.kind, maker.inputs, (y, mask), tensors, maker.attributes)
    return (op,), made


# ---- slopes of what is pooled ----------------------------------------------------------------


def pooled_slopes(graph: Graph) -> Graph:
    """The graph in which the slope of an activation is taken where its maxima are, before they are
    handed back: a window's gradient goes to the value that it made."""
    tensors, instead = dict(graph.tensors), dict[Op, Op]()
    pools = {op.outputs[1]: op for op in graph.ops if op.kind == "max_pool8"}
    readers = Counter(name for op in graph.ops for name in op.inputs)
    unpooled = {op.outputs[0]: op for op in graph.ops if op.kind == "max_pool_dx"}
    for slope in (op for op in graph.ops if op.kind in _SLOPES and op.inputs[0] in unpooled):
        back = unpooled[slope.inputs[0]]
        pool = pools.get(back.inputs[1])
        if not pool or pool.inputs[0] != slope.inputs[1] or readers[back.outputs[0]] > 1:
            continue
        between = back.outputs[0]
        tensors[between] = replace(tensors[back.inputs[0]], name=between)
        inputs = (back.inputs[0], pool.outputs[0])
        instead[back] = replace(slope, inputs=inputs, outputs=(between,))
        instead[slope] = replace(back, inputs=(between, back.inputs[1]), outputs=slope.outputs)
    return replace(graph, ops=tuple(instead.get(op, op) for op in graph.ops), tensors=tensors)


# ---- gradients in buffers --------------------------------------------------------------------


def bufferable(graph: Graph) -> dict[str, tuple[Op, Op]]:
    """The update of each parameter, and the data gradient that must read it before, where a buffer
    is smaller than the operand that it lets go. An update that waits for the norm of all gradients
    waits for more than that."""
    reader = {n: op for op in graph.ops if TABLE[op.kind].role == BACKWARD for n in op.inputs}
    tensors = graph.tensors
    return {
        op.parameter: (op, reader[op.parameter]) for op in graph.ops
        if TABLE[op.kind].role == UPDATE and len(op.inputs) == 3 and op.inputs[0]
        and _gradient_kind(op) in TABLE and op.parameter in reader
        and _sum_bytes(tensors[op.parameter]) < tensors[op.inputs[0]].nbytes
    }  # fmt: skip


def _sum_bytes(parameter: Tensor) -> int:
    """Of a buffer for its gradient."""
    return replace(parameter, dtype=F32).nbytes


def _gradient_kind(update: Op) -> str:
    return update.kind.replace("_update", "_gradient")


def buffered(graph: Graph, parameters: Iterable[str]) -> Graph:
    """The graph in which the gradients of these parameters are made before the data gradients that
    read them, and so is that of the bias beside them."""
    tensors, found = dict(graph.tensors), bufferable(graph)
    before, instead = dict[Op, list[Op]](), dict[Op, list[Op]]()
    for name in parameters:
        update, reader = found[name]
        biases = [op for op in _biases(graph, update.inputs[1]) if op not in instead]
        buffer = fresh(f"g.{name}", tensors)
        zero, (tensors[buffer],) = produce("zero", (), (buffer,), tensors, like=tensors[name].shape)
        inputs = (*update.inputs[:2], buffer)
        gradient = replace(update, kind=_gradient_kind(update), inputs=inputs)
        late = Op(f"{BUFFERED}_update", ("", buffer, name), (), name)
        before.setdefault(reader, []).extend((zero, gradient, *biases))
        instead.update({update: [late], **{bias: [] for bias in biases}})
    ops = (new for op in graph.ops for new in (*before.get(op, ()), *instead.get(op, (op,))))
    return replace(graph, ops=tuple(ops), tensors=tensors)


def _biases(graph: Graph, dy: str) -> Iterator[Op]:
    return (op for op in graph.ops if op.kind == "bias_update" and op.inputs[1] == dy)


# ---- values made again -----------------------------------------------------------------------


def run_again(graph: Graph, values: Collection[str], behind: int) -> Graph:
    """The graph in which the ops that make these values run again for what reads them behind op
    ``behind`` and behind the loss."""
    start = max(behind, graph.n_forward) + 1
    made = [op for op in graph.ops[:start] if op.outputs and op.outputs[0] in values]
    again = {name: op for op in made for name in op.outputs}
    overlaid = (op for op in graph.ops[:start] if op.kind == MERGE)
    merges = {op.outputs[0]: op for op in overlaid if op.inputs[1] in graph.overlays}
    writing = _Writing(again, merges, dict(graph.tensors), list(graph.ops[:start]))
    as_it_is = again.keys().isdisjoint
    for op in graph.ops[start:]:
        writing.ops.append(op if as_it_is(op.inputs) else writing.renamed(op))
    return replace(graph, ops=tuple(writing.ops), tensors=writing.tensors)


@dataclass
class _Writing:
    """The ops as far as they are written; those that are to run again, and the merges of what they
    read, by the values they make."""

    makers: dict[str, Op]
    merges: dict[str, Op]
    tensors: dict[str, Tensor]
    ops: list[Op]
    names: dict[str, str] = field(default_factory=dict)

    def renamed(self, op: Op) -> Op:
        """The op that reads what runs again; what did not yet is written first."""
        inputs = tuple(map(self._read, op.inputs))
        return Op(op.kind, inputs, op.outputs, op.parameter, op.attributes)

    def _read(self, name: str) -> str:
        maker = self.makers.get(name)
        if maker and name not in self.names:
            inputs = tuple(self._merged(self._read(operand)) for operand in maker.inputs)
            again = _unmoving(replace(maker, inputs=inputs))
            for old in maker.outputs:
                self.names[old] = self._copy(old)
            outputs = tuple(self.names[old] for old in maker.outputs)
            self.ops.append(replace(again, outputs=outputs))
        return self.names.get(name, name)

    def _merged(self, name: str) -> str:
        """The operand of an op that runs again: a weight is merged for it alone."""
        merge = self.merges.get(name)
        if not merge:
            return name
        copy = self._copy(name)
        self.ops.append(replace(merge, outputs=(copy,)))
        return copy

    def _copy(self, name: str) -> str:
        """A new tensor like this one."""
        copy = fresh(f"{name}~", self.tensors)
        self.tensors[copy] = replace(self.tensors[name], name=copy)
        return copy


def _unmoving(op: Op) -> Op:
    """The op without its running statistics, which a step moves once; it makes the same values."""
    if TABLE[op.kind].role != TRACK:
        return op
    assert isinstance(op.attributes, Scalars)
    scalars = replace(op.attributes, number=0)
    return replace(op, kind="batch_normalize", inputs=op.inputs[:1], attributes=scalars)
