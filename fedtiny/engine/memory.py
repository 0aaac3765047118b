"""Where every tensor stands in the arena, decided before anything runs.

`plan_memory` decides: an output takes the place of an operand that dies in its op where the op
allows it; the buffers that result are packed by first fit in several orders, and what sticks out
above the peak of what is alive together is settled below it by a search. `check_memory` trusts
nothing of that: it derives the lives of the tensors and the places that may be handed over again,
proves that no two tensors that are alive together overlap, and computes the lower bound of any
plan.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fedtiny import rng
from fedtiny.engine.ir import ALIGNMENT, Graph, Op
from fedtiny.engine.liveness import lifetimes, replaced
from fedtiny.engine.ops import TABLE
from fedtiny.errors import GraphError

SEARCH, MOVES = 16_000_000, 3_000
"""Pairs of buffers that the search may compare from one order on, and the most moves of it."""


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


def plan_memory(graph: Graph, search: bool = True) -> MemoryPlan:
    """The smallest arena that a few good orders of first fit, and a search from each, find; without
    the search it takes a few percent more bytes, and a fraction of the time."""
    buffers = _merge_in_place(graph)
    orders: list[Callable[[_Buffer], tuple[int, ...]]] = [
        lambda b: (-b.nbytes, b.first),
        lambda b: (-b.nbytes * (b.last - b.first + 1), b.first),
        lambda b: (b.first - b.last, -b.nbytes),
        lambda b: (b.first, -b.nbytes),
    ]
    packings = [_first_fit(sorted(buffers, key=order)) for order in orders]
    packings.sort(key=lambda packing: packing.nbytes)
    best, peak = packings[0], max(sum(b.nbytes for b in alive) for alive in _together(buffers))
    for packing in packings:
        if search and best.nbytes > peak:
            settled = _Shelf.of(packing, peak).settled()
            best = min(best, settled, key=lambda packing: packing.nbytes)
    return MemoryPlan({name: o for o, b in best.placed for name in b.names}, best.nbytes)


def _together(buffers: Sequence[_Buffer]) -> Iterator[list[_Buffer]]:
    """The buffers that are alive in one op, for each in which one is born."""
    for at in {buffer.first for buffer in buffers}:
        yield [buffer for buffer in buffers if buffer.first <= at <= buffer.last]


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


def _first_fit(order: Sequence[_Buffer], placed: Sequence[tuple[int, _Buffer]] = ()) -> _Packing:
    """Each buffer at the lowest offset that is free as long as it lives, beside what is placed."""
    found = list(placed)
    upwards = sorted((at, at + b.nbytes, b.first, b.last) for at, b in placed)
    for buffer in order:
        nbytes, first, last = buffer.nbytes, buffer.first, buffer.last
        offset = 0
        for start, stop, born, dead in upwards:
            if start >= offset + nbytes:
                break
            if stop > offset and born <= last and first <= dead:
                offset = stop
        found.append((offset, buffer))
        insort(upwards, (offset, offset + nbytes, first, last))
    return _Packing(tuple(found), max(stop for _, stop, _, _ in upwards))


# ---- the search ------------------------------------------------------------------------------


@dataclass
class _Shelf:
    """Buffers below a height. One that finds no place there takes that of others, which then wait:
    the smallest, and of these the ones that have seldom had to."""

    height: int
    buffers: Sequence[_Buffer]
    rivals: Sequence[Sequence[int]]
    places: list[int | None]
    waiting: list[int]
    evictions: list[int]
    compared: int = 0

    @classmethod
    def of(cls, packing: _Packing, height: int) -> _Shelf:
        """That of a packing; what sticks out waits."""
        buffers = [buffer for _, buffer in packing.placed]
        tops = [at + buffer.nbytes for at, buffer in packing.placed]
        waiting = [i for i, top in enumerate(tops) if top > height]
        below = zip(packing.placed, tops, strict=True)
        places = [at if top <= height else None for (at, _), top in below]
        return cls(height, buffers, _rivals(buffers), places, waiting, [1] * len(buffers))

    def settled(self) -> _Packing:
        """All buffers: those that still wait where the fewest bytes did so stand above."""
        best, least = self._beside(), self._waiting_bytes
        for move in range(MOVES):
            if not self.waiting or self.compared > SEARCH:
                break
            self._move(rng.philox((move, 0, 0, 0), (0, 0)))
            if self._waiting_bytes < least:
                best, least = self._beside(), self._waiting_bytes
        placed, waiting = best
        return _first_fit(waiting, placed)

    @property
    def _waiting_bytes(self) -> int:
        return sum(self.buffers[i].nbytes for i in self.waiting)

    def _beside(self) -> tuple[list[tuple[int, _Buffer]], list[_Buffer]]:
        """What is placed, and what waits, the largest first."""
        both = zip(self.places, self.buffers, strict=True)
        placed = [(place, buffer) for place, buffer in both if place is not None]
        waiting = sorted((self.buffers[i] for i in self.waiting), key=lambda b: -b.nbytes)
        return placed, waiting

    def _move(self, words: Sequence[int]) -> None:
        """Place one that waits."""
        own = self.waiting.pop(words[0] % len(self.waiting))
        nbytes = self.buffers[own].nbytes
        spans = [
            (place, place + self.buffers[i].nbytes, i)
            for i in self.rivals[own]
            if (place := self.places[i]) is not None
        ]
        at = self._cheapest(nbytes, spans, words[1])
        for start, stop, i in spans:
            if start < at + nbytes and at < stop:
                self.places[i] = None
                self.waiting.append(i)
                self.evictions[i] += 1
        self.places[own] = at

    def _cheapest(self, nbytes: int, spans: Sequence[tuple[int, int, int]], salt: int) -> int:
        """The place beside another, or at an end, that evicts the least; up to a third more is as
        good, which leads out of circles."""
        highest = self.height - nbytes
        ends = {0, highest, *(stop for _, stop, _ in spans), *(s - nbytes for s, _, _ in spans)}
        costs = [
            (start, stop, self.buffers[i].nbytes * self.evictions[i]) for start, stop, i in spans
        ]
        self.compared += len(ends) * len(spans)
        found: list[tuple[float, int]] = []
        for at in sorted(end for end in ends if 0 <= end <= highest):
            top = at + nbytes
            cost = sum(cost for start, stop, cost in costs if start < top and at < stop)
            noise = (at + 4) * (salt | 1) >> 16 & 0xFF
            found.append((cost * (1 + noise / 768), at))
        return min(found)[1]


def _rivals(buffers: Sequence[_Buffer]) -> list[list[int]]:
    """Of each buffer those that are alive together with it."""
    return [
        [j for j, b in enumerate(buffers) if i != j and b.first <= a.last and a.first <= b.last]
        for i, a in enumerate(buffers)
    ]


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
    if start % ALIGNMENT:
        raise GraphError(f"{name} starts at byte {start}, which is no multiple of {ALIGNMENT}")


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
