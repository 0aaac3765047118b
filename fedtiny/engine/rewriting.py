"""Rewrites of a training graph by which values are kept shorter, or in fewer bytes.

`masked`: an activation's output that is kept for its sign pattern is kept as one bit an element.
`buffered`: where a layer's data gradient needs the weights as they were, the gradient of the
weights is made before it, in a buffer, so that the layer's input is gone before its gradient comes.
`run_again`: a value is not kept but computed again just before the backward op that reads it.
Results stay the same: an op that runs again reads the same operands, and parameters as they were.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

from fedtiny.engine.ir import Graph, Op, Scalars, Tensor, fresh
from fedtiny.engine.ops import BACKWARD, BUFFERED, FORWARD, TABLE, TRACK, UPDATE, produce

_MASKABLE = ("relu", "relu6", "leaky_relu")


def makers(graph: Graph) -> dict[str, Op]:
    """The op behind each value that could be made again."""
    roles = (FORWARD, TRACK)
    return {n: op for op in graph.ops if TABLE[op.kind].role in roles for n in op.outputs}


# ---- masks -----------------------------------------------------------------------------------


def maskable(graph: Graph) -> dict[str, Op]:
    """The backward op that needs no more of an activation's output than its sign pattern."""
    found, behind = {}, makers(graph)
    for op in graph.ops[graph.n_forward :]:
        maker = behind.get(op.inputs[1]) if op.inputs[1:] else None
        if maker and maker.kind in _MASKABLE and op.kind == f"{maker.kind}_dx":
            found[op.inputs[1]] = op
    return found


def masked(graph: Graph, values: Iterable[str]) -> Graph:
    """The graph in which the activations of these outputs make masks for their gradients."""
    tensors, instead = dict(graph.tensors), dict[Op, Op]()
    behind, slopes = makers(graph), maskable(graph)
    for y in values:
        maker, slope, mask = behind[y], slopes[y], fresh(f"{y}.mask", tensors)
        again, made = produce(maker.kind, maker.inputs, (y, mask), tensors, maker.attributes)
        instead[maker], tensors[mask] = again, made[1]
        inputs, attributes = (slope.inputs[0], mask), slope.attributes or Scalars()
        instead[slope] = Op("mask_dx", inputs, slope.outputs, attributes=attributes)
    ops = tuple(instead.get(op, op) for op in graph.ops)
    return replace(graph, ops=ops, tensors=tensors)


# ---- gradients in buffers --------------------------------------------------------------------


def bufferable(graph: Graph) -> dict[str, tuple[Op, Op]]:
    """The update of each parameter, and the data gradient that must read it before, where a buffer
    is smaller than the operand that it lets go. An update that waits for the norm of all gradients
    waits for more than that."""
    reader = {n: op for op in graph.ops if TABLE[op.kind].role == BACKWARD for n in op.inputs}
    size = {name: tensor.size for name, tensor in graph.tensors.items()}
    return {
        op.parameter: (op, reader[op.parameter]) for op in graph.ops
        if TABLE[op.kind].role == UPDATE and len(op.inputs) == 3 and op.inputs[0]
        and _gradient_kind(op) in TABLE and op.parameter in reader
        and size[op.parameter] < size[op.inputs[0]]
    }  # fmt: skip


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
    writing = _Writing(again, dict(graph.tensors), list(graph.ops[:start]))
    as_it_is = again.keys().isdisjoint
    for op in graph.ops[start:]:
        writing.ops.append(op if as_it_is(op.inputs) else writing.renamed(op))
    return replace(graph, ops=tuple(writing.ops), tensors=writing.tensors)


@dataclass
class _Writing:
    """The ops as far as they are written; those that are to run again, by the values they make."""

    makers: dict[str, Op]
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
            again = _unmoving(self.renamed(maker))
            for old in maker.outputs:
                new = self.names[old] = fresh(f"{old}~", self.tensors)
                self.tensors[new] = replace(self.tensors[old], name=new)
            outputs = tuple(self.names[old] for old in maker.outputs)
            self.ops.append(replace(again, outputs=outputs))
        return self.names.get(name, name)


def _unmoving(op: Op) -> Op:
    """The op without its running statistics, which a step moves once; it makes the same values."""
    if TABLE[op.kind].role != TRACK:
        return op
    assert isinstance(op.attributes, Scalars)
    scalars = replace(op.attributes, number=0)
    return replace(op, kind="batch_normalize", inputs=op.inputs[:1], attributes=scalars)
