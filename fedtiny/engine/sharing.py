"""What was made again is kept for its next reader, where the peak allows.

`spare` makes values again behind one op after the other, so some of them several times. A copy goes
where an equal value, made before it, can wait instead; and a mask is made of that value at once, so
that a bit an element waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fedtiny.engine.ir import Graph, Op
from fedtiny.engine.liveness import live_bytes
from fedtiny.engine.ops import FORWARD, MERGE, TABLE

_MASK = "mask8"


def shared(graph: Graph) -> Graph:
    """The graph with fewer ops behind its loss, or as it is; its peak is no higher."""
    peak_bytes, index = max(live_bytes(graph)), len(graph.ops)
    while (index := min(index, len(graph.ops)) - 1) > graph.n_forward:
        fewer = (found for found in _without(graph, index) if max(live_bytes(found)) <= peak_bytes)
        graph = next(fewer, graph)
    return graph


def _without(graph: Graph, index: int) -> Iterator[Graph]:
    """The graphs with an equal value instead of what this op makes, or reads."""
    op, roots = graph.ops[index], _roots(graph)
    if not _is_made(op) or op.kind == MERGE:
        return
    if (equal := _before(graph, op.outputs[0], index, roots)) is not None:
        names = dict(zip(op.outputs, graph.ops[equal].outputs, strict=True))
        yield _swept(graph, (*graph.ops[:index], *_renamed(graph.ops[index + 1 :], names)))
    if op.kind == _MASK and (equal := _before_last(graph, op.inputs[0], roots)) is not None:
        early = replace(op, inputs=graph.ops[equal].outputs[:1])
        ops = (*graph.ops[: equal + 1], early, *graph.ops[equal + 1 : index])
        moved = replace(graph, n_forward=graph.n_forward + (equal < graph.n_forward))
        yield _swept(moved, (*ops, *graph.ops[index + 1 :]))


def _is_made(op: Op) -> bool:
    return TABLE[op.kind].role == FORWARD and bool(op.outputs)


def _roots(graph: Graph) -> dict[str, str]:
    """Of each value the first one that is equal: no op reads a parameter behind its update, so the
    same op of equal operands makes the same."""
    roots: dict[str, str] = {}
    made: dict[object, Op] = {}
    for op in filter(_is_made, graph.ops):
        operands = tuple(roots.get(name, name) for name in op.inputs)
        first = made.setdefault((op.kind, operands, op.attributes, len(op.outputs)), op)
        roots |= zip(op.outputs, first.outputs, strict=True)
    return roots


def _before(graph: Graph, value: str, index: int, roots: dict[str, str]) -> int | None:
    """The last op before this one that makes an equal value."""
    root = roots.get(value)
    equals = (i for i, op in enumerate(graph.ops[:index]) if op.outputs and root)
    return max((i for i in equals if roots.get(graph.ops[i].outputs[0]) == root), default=None)


def _before_last(graph: Graph, value: str, roots: dict[str, str]) -> int | None:
    """The same before the op that makes the value itself."""
    maker = next(i for i, op in enumerate(graph.ops) if value in op.outputs)
    return _before(graph, value, maker, roots)


def _renamed(ops: tuple[Op, ...], names: dict[str, str]) -> Iterator[Op]:
    return (replace(op, inputs=tuple(names.get(n, n) for n in op.inputs)) for op in ops)


def _swept(graph: Graph, ops: tuple[Op, ...]) -> Graph:
    """The graph of these ops, but for copies that nothing reads."""
    read: set[str] = set()
    kept: list[Op] = []
    for index, op in reversed(tuple(enumerate(ops))):
        if index < graph.n_forward or not _is_made(op) or read.intersection(op.outputs):
            kept.append(op)
            read.update(op.inputs)
    used = {name for op in kept for name in op.operands}
    tensors = {n: t for n, t in graph.tensors.items() if t.home != "arena" or n in used}
    return replace(graph, ops=tuple(reversed(kept)), tensors=tensors)
