"""Where every tensor stands in the arena, decided before anything runs.

`plan_memory` decides: an output takes the place of an operand that dies in its op where the op
allows it; the buffers that result are packed by first fit in several orders, and the smallest arena
wins. `check_memory` trusts nothing of that: it derives the lives of the tensors again, proves that
no two tensors that are alive together overlap, and computes the lower bound of any plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedtiny.engine.ir import ARENA, Graph, Op
from fedtiny.engine.ops import TABLE
from fedtiny.errors import GraphError


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Byte offsets of the arena tensors, and the size of the arena."""

    offsets: Mapping[str, int]
    arena_bytes: int


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Tensors that share one place, one after the other. Alive in ops [first, last]."""

    names: tuple[str, ...]
    nbytes: int
    first: int
    last: int


def lifetimes(graph: Graph) -> dict[str, tuple[int, int]]:
    """First and last op of each arena tensor. The loss outlives the step; the output outlives the
    forward ops, since a prediction is read there."""
    lives: dict[str, tuple[int, int]] = {}
    for index, op in enumerate(graph.ops):
        for name in filter(None, op.operands):
            if graph.tensors[name].home == ARENA:
                lives[name] = (lives.get(name, (index, index))[0], index)
    keep = {graph.output: graph.n_forward, graph.loss: len(graph.ops)}
    return {n: (a, max(b, keep.get(n, b))) for n, (a, b) in lives.items()}


def plan_memory(graph: Graph) -> MemoryPlan:
    """The smallest arena that a few good orders of first fit find."""
    buffers = _merge_in_place(graph)
    orders: list[Callable[[_Buffer], tuple[int, ...]]] = [
        lambda b: (-b.nbytes, b.first),
        lambda b: (-b.nbytes * (b.last - b.first + 1), b.first),
        lambda b: (b.first - b.last, -b.nbytes),
        lambda b: (b.first, -b.nbytes),
    ]
    return min((_first_fit(sorted(buffers, key=o)) for o in orders), key=lambda p: p.arena_bytes)


def in_place_operand(graph: Graph, index: int, dies: Callable[[str], int]) -> str:
    """The operand whose place the first output of an op may take: it is an arena tensor of the same
    size that dies in this op; else ""."""
    op = graph.ops[index]
    if not op.outputs:
        return ""
    size = graph.tensors[op.outputs[0]].nbytes
    for position in TABLE[op.kind].in_place:
        name = op.inputs[position]
        tensor = graph.tensors[name]
        if tensor.home == ARENA and tensor.nbytes == size and dies(name) == index:
            return name
    return ""


def _merge_in_place(graph: Graph) -> list[_Buffer]:
    lives = lifetimes(graph)
    owner: dict[str, str] = {}
    for index, op in enumerate(graph.ops):
        for name in op.outputs:
            owner[name] = name
        taken = in_place_operand(graph, index, lambda n: lives[n][1])
        if taken:
            owner[op.outputs[0]] = owner[taken]
    groups: dict[str, list[str]] = {}
    for name, head in owner.items():
        groups.setdefault(head, []).append(name)
    return [
        _Buffer(
            tuple(names),
            graph.tensors[head].nbytes,
            min(lives[n][0] for n in names),
            max(lives[n][1] for n in names),
        )
        for head, names in groups.items()
    ]


def _first_fit(buffers: list[_Buffer]) -> MemoryPlan:
    placed: list[tuple[int, _Buffer]] = []
    for buffer in buffers:
        offset = 0
        for start, other in sorted(placed, key=lambda p: p[0]):
            apart = other.last < buffer.first or buffer.last < other.first
            if not apart and start < offset + buffer.nbytes and offset < start + other.nbytes:
                offset = start + other.nbytes
        placed.append((offset, buffer))
    offsets = {name: offset for offset, buffer in placed for name in buffer.names}
    return MemoryPlan(offsets, max((o + b.nbytes for o, b in placed), default=0))


# ---- the independent checker -----------------------------------------------------------------


def check_memory(graph: Graph, plan: MemoryPlan) -> int:
    """Prove the plan; return ``lower_bound_bytes``: the largest sum of bytes that are alive in one
    op, counting an output that may take a dying operand's place only once.

    Raises GraphError naming the two tensors that overlap, or the one that leaves the arena.
    """
    lower_bound, last = 0, _last_uses(graph)
    alive: list[str] = []
    for index, op in enumerate(graph.ops):
        alive = [n for n in alive if last[n] >= index] + list(op.outputs)
        for name in alive:
            end = plan.offsets[name] + graph.tensors[name].nbytes
            if end > plan.arena_bytes or plan.offsets[name] % 4:
                raise GraphError(f"{name} ends at byte {end} of an arena of {plan.arena_bytes}")
        shared = in_place_operand(graph, index, last.__getitem__)
        _check_apart(graph, plan, op, alive, shared)
        bytes_alive = sum(graph.tensors[n].nbytes for n in alive)
        lower_bound = max(lower_bound, bytes_alive - (graph.tensors[shared].nbytes if shared else 0))
    return lower_bound


def _last_uses(graph: Graph) -> dict[str, int]:
    """The last op that touches each tensor: found from the end, unlike `lifetimes`."""
    last = {graph.loss: len(graph.ops), graph.output: graph.n_forward}
    for index in reversed(range(len(graph.ops))):
        for name in graph.ops[index].operands:
            last[name] = max(last.get(name, index), index)
    return last


def _check_apart(graph: Graph, plan: MemoryPlan, op: Op, alive: list[str], shared: str) -> None:
    spans = sorted((plan.offsets[n], plan.offsets[n] + graph.tensors[n].nbytes, n) for n in alive)
    for (_, stop, left), (start, _, right) in zip(spans, spans[1:], strict=False):
        allowed = shared and {left, right} == {shared, op.outputs[0]}
        if start < stop and not allowed:
            raise GraphError(f"{left} and {right} overlap at byte {start} in op {op.kind}")
