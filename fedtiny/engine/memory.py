"""Where every tensor stands in the arena, decided before anything runs.

`plan_memory` decides: an output takes the place of an operand that dies in its op where the op
allows it; the buffers that result are packed by first fit in several orders, and the smallest arena
wins. `check_memory` trusts nothing of that: it derives the lives of the tensors and the places that
may be handed over again, proves that no two tensors that are alive together overlap, and computes
the lower bound of any plan.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fedtiny import rng
from fedtiny.engine.ir import ELEMENT_BYTES, Graph, Op
from fedtiny.engine.liveness import lifetimes, replaced
from fedtiny.engine.ops import TABLE
from fedtiny.errors import GraphError

SEARCH = 8_000_000
"""Pairs of buffers that the local search may compare."""


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


def plan_memory(graph: Graph) -> MemoryPlan:
    """The smallest arena that a few good orders of first fit, and small changes of them, find."""
    buffers = _merge_in_place(graph)
    orders: list[Callable[[_Buffer], tuple[int, ...]]] = [
        lambda b: (-b.nbytes, b.first),
        lambda b: (-b.nbytes * (b.last - b.first + 1), b.first),
        lambda b: (b.first - b.last, -b.nbytes),
        lambda b: (b.first, -b.nbytes),
    ]
    tried = [_first_fit(sorted(buffers, key=order)) for order in orders]
    return _improve(min(tried, key=lambda packing: packing.nbytes), buffers)


def _merge_in_place(graph: Graph) -> list[_Buffer]:
    lives = lifetimes(graph)
    owner: dict[str, str] = {}
    for index, op in enumerate(graph.ops):
        owner.update({name: name for name in op.outputs})
        taken = replaced(graph, index, lives)
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


@dataclass(frozen=True, slots=True)
class _Packing:
    """Buffers at their offsets, in the order in which they were placed, and the bytes in all."""

    placed: tuple[tuple[int, _Buffer], ...]
    nbytes: int


def _first_fit(order: Sequence[_Buffer]) -> _Packing:
    """Each buffer at the lowest offset that is free as long as it lives."""
    placed: list[tuple[int, _Buffer]] = []
    upwards: list[tuple[int, int, int, int]] = []
    for buffer in order:
        nbytes, first, last = buffer.nbytes, buffer.first, buffer.last
        offset = 0
        for start, stop, born, dead in upwards:
            if start >= offset + nbytes:
                break
            if stop > offset and born <= last and first <= dead:
                offset = stop
        placed.append((offset, buffer))
        insort(upwards, (offset, offset + nbytes, first, last))
    return _Packing(tuple(placed), max(stop for _, stop, _, _ in upwards))


def _improve(best: _Packing, buffers: Sequence[_Buffer]) -> MemoryPlan:
    """Local search: place the buffer that sticks out earlier, until the arena meets the peak of
    what is alive together or the moves are used up."""
    peak = max(sum(b.nbytes for b in buffers if b.first <= at <= b.last) for at in _births(buffers))
    for move in range(SEARCH // len(buffers) ** 2):
        if best.nbytes == peak:
            break
        order = [buffer for _, buffer in best.placed]
        out = max(range(len(order)), key=lambda i: best.placed[i][0] + order[i].nbytes)
        order.insert(rng.philox((move, 0, 0, 0), (0, 0))[0] % (out + 1), order.pop(out))
        if move % 2:  # a swap elsewhere leads out of a dead end
            i, j = (w % len(order) for w in rng.philox((move, 1, 0, 0), (0, 0))[:2])
            order[i], order[j] = order[j], order[i]
        best = min(_first_fit(order), best, key=lambda packing: packing.nbytes)
    return MemoryPlan({name: o for o, b in best.placed for name in b.names}, best.nbytes)


def _births(buffers: Sequence[_Buffer]) -> set[int]:
    return {buffer.first for buffer in buffers}


# ---- the independent checker -----------------------------------------------------------------


def check_memory(graph: Graph, plan: MemoryPlan) -> int:
    """Prove the plan; return ``lower_bound_bytes``: the largest sum of bytes that are alive in one
    op, counting an output that may take a dying operand's place only once.

    Raises GraphError naming the two tensors that overlap, the one that leaves the arena, or the one
    that is not aligned.
    """
    lower_bound, last = 0, _last_uses(graph)
    alive: list[str] = []
    for index, op in enumerate(graph.ops):
        alive = [n for n in alive if last[n] >= index] + list(op.outputs)
        for name in alive:
            _check_place(name, plan.offsets[name], graph.tensors[name].nbytes, plan.arena_bytes)
        replaceable = _replaceable(graph, op, {n for n in alive if last[n] == index})
        _check_apart(graph, plan, op, alive, replaceable)
        shared = max((graph.tensors[n].nbytes for n in replaceable), default=0)
        lower_bound = max(lower_bound, sum(graph.tensors[n].nbytes for n in alive) - shared)
    return lower_bound


def _last_uses(graph: Graph) -> dict[str, int]:
    """The last op that touches each tensor: found from the end, unlike `lifetimes`."""
    last = {graph.loss: len(graph.ops), graph.output: graph.n_forward}
    for index in reversed(range(len(graph.ops))):
        for name in graph.ops[index].operands:
            last[name] = max(last.get(name, index), index)
    return last


def _replaceable(graph: Graph, op: Op, dying: Collection[str]) -> set[str]:
    """The dying operands whose place the op's first output may take."""
    size = graph.tensors[op.outputs[0]].nbytes if op.outputs else 0
    allowed = {op.inputs[position] for position in TABLE[op.kind].in_place}
    return {name for name in allowed.intersection(dying) if graph.tensors[name].nbytes == size}


def _check_place(name: str, start: int, nbytes: int, arena_bytes: int) -> None:
    if start < 0 or start + nbytes > arena_bytes:
        raise GraphError(
            f"{name} lies in bytes {start} to {start + nbytes} of an arena of {arena_bytes}"
        )
    if start % ELEMENT_BYTES:
        raise GraphError(f"{name} starts at byte {start}, which is no multiple of {ELEMENT_BYTES}")


def _check_apart(
    graph: Graph, plan: MemoryPlan, op: Op, alive: list[str], replaceable: Collection[str]
) -> None:
    """An output may stand over what it replaces in the identical place only: half a step aside, it
    would be written over what is still to be read."""
    handed_over = [{name, op.outputs[0]} for name in replaceable]
    spans = sorted((plan.offsets[n], plan.offsets[n] + graph.tensors[n].nbytes, n) for n in alive)
    for (start, stop, left), (other, _, right) in pairwise(spans):
        allowed = start == other and {left, right} in handed_over
        if other < stop and not allowed:
            raise GraphError(f"{left} and {right} overlap at byte {other} in op {op.kind}")
