"""When tensors are alive, and how many bytes that makes in each op.

The bytes of an op count what is alive while it runs. An output that may stand where one of the op's
operands dies is counted once: `fedtiny.engine.memory` gives it that place.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

from fedtiny.engine.ir import Graph, Op, verify
from fedtiny.engine.ops import GRADIENT, NORM, TABLE, UPDATE
from fedtiny.errors import GraphError

_IN_PLACE = {kind for kind, row in TABLE.items() if row.in_place}
_ACCUMULATED = 2
"""The operand that an update, a norm or a sum of gradients reads and writes."""


def lifetimes(graph: Graph) -> dict[str, tuple[int, int]]:
    """First and last op of each arena tensor. The loss outlives the step; the output outlives the
    forward ops, since a prediction is read there."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for index, op in enumerate(graph.ops):
        for name in op.inputs:
            last[name] = index
        for name in op.outputs:
            first[name] = last[name] = index
    for name, least in ((graph.output, graph.n_forward), (graph.loss, len(graph.ops))):
        if name in first:
            last[name] = max(last[name], least)
    return {name: (born, last[name]) for name, born in first.items()}


def replaced(graph: Graph, index: int, lives: Mapping[str, tuple[int, int]]) -> str:
    """The operand whose place the first output of an op may take: it is an arena tensor of the same
    size that dies in this op; else ""."""
    op = graph.ops[index]
    for position in TABLE[op.kind].in_place:
        name = op.inputs[position]
        dies = name in lives and lives[name][1] == index
        if dies and graph.tensors[name].nbytes == graph.tensors[op.outputs[0]].nbytes:
            return name
    return ""


def live_bytes(graph: Graph) -> list[int]:
    """The bytes of each op; see the module's docstring."""
    lives, tensors = lifetimes(graph), graph.tensors
    change = [0] * (len(graph.ops) + 2)  # the loss dies behind the last op
    for name, (first, last) in lives.items():
        nbytes = tensors[name].nbytes
        change[first] += nbytes
        change[last + 1] -= nbytes
    alive = list(accumulate(change[:-2]))
    for index, op in enumerate(graph.ops):
        if op.kind in _IN_PLACE and (name := replaced(graph, index, lives)):
            alive[index] -= tensors[name].nbytes
    return alive


def mutated(op: Op) -> str:
    """The operand that an op reads and writes: a parameter, or a sum of gradients or norms."""
    changes = TABLE[op.kind].role in (UPDATE, NORM, GRADIENT)
    return op.inputs[_ACCUMULATED] if changes else ""


def verify_updates(graph: Graph) -> Graph:
    """The graph itself, if no op reads a parameter behind its update; else GraphError."""
    updated: set[str] = set()
    for index, op in enumerate(verify(graph).ops):
        if stale := [name for name in op.inputs if name in updated]:
            raise GraphError(f"op {index} ({op.kind}) reads {stale[0]!r} behind its update")
        if TABLE[op.kind].role == UPDATE:
            updated.add(mutated(op))
    return graph
