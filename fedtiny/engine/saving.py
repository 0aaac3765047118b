"""Which rewrites lower the peak of a training graph.

All masks and buffers are tried at once. Then a greedy search looks at the first op of the highest
peak, tries to make again later what lies idle there, by one, two, three ... ops, and takes what
lowers the peak most, until nothing does. In the end the rewrites that the peak does not need are
given up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from fedtiny.engine.ir import Graph, Op, verify
from fedtiny.engine.liveness import lifetimes, live_bytes
from fedtiny.engine.ops import TABLE, macs
from fedtiny.engine.rewriting import bufferable, buffered, makers, maskable, masked, run_again
from fedtiny.errors import CompileError, GraphError

MINIMISE = ("ram", "time")
DEPTH = 12
"""So many ops in a row are tried at once: two blocks of a residual net."""
BREADTH = 8
"""So many idle values, from the largest on, are tried before the best found is taken."""

_Item = TypeVar("_Item")
_Identity = tuple[str, str, tuple[str, ...]]


def spare(graph: Graph, minimise: str = "ram") -> Graph:
    """The training graph with a lower peak, or as it is.

    Args:
        graph: A training graph.
        minimise: ``ram``: whatever lowers the peak; ``time``: make nothing twice.
    """
    if minimise not in MINIMISE:
        raise CompileError(f"minimise must be one of {list(MINIMISE)}; got {minimise!r}")
    rewrites = _Rewrites(tuple(maskable(graph)), tuple(bufferable(graph)))
    sparing = rewrites.applied(graph)
    while minimise == "ram" and (found := _best_again(sparing)):
        again, sparing = found
        rewrites = replace(rewrites, again=(*rewrites.again, again))
    return verify(_pruned(graph, rewrites).applied(graph))


@dataclass(frozen=True, slots=True)
class _Again:
    """Values that are made again behind an op, known by its role, parameter and outputs."""

    values: frozenset[str]
    behind: _Identity


@dataclass(frozen=True, slots=True)
class _Rewrites:
    """What is done to a graph, in this order."""

    masked: tuple[str, ...]
    buffered: tuple[str, ...]
    again: tuple[_Again, ...] = ()

    def applied(self, graph: Graph) -> Graph:
        """The graph rewritten. Raises GraphError if a step needs one that is left out."""
        graph = buffered(masked(graph, self.masked), self.buffered)
        for step in self.again:
            places = [i for i, op in enumerate(graph.ops) if _identity(op) == step.behind]
            if not places:
                raise GraphError(f"there is no op {step.behind}")
            graph = run_again(graph, step.values, places[0])
        return graph


def _identity(op: Op) -> _Identity:
    return TABLE[op.kind].role, op.parameter, op.outputs


# ---- making values again ---------------------------------------------------------------------


def _best_again(graph: Graph) -> tuple[_Again, Graph] | None:
    """What lowers the peak most, or else the number of ops that reach it; None if nothing does.
    Of equals, what costs the fewest multiply-adds."""
    alive = live_bytes(graph)
    at = alive.index(max(alive))
    best, found = (*_figure(graph), 0), None
    for tried, value in enumerate(_idle(graph, at), 1):
        for values, cost in _chains(graph, value):
            if not (new := _tried(graph, values, at)):
                continue
            figure = (*_figure(new), cost)
            if figure < best:
                best, found = figure, (_Again(values, _identity(graph.ops[at])), new)
        if found and tried % BREADTH == 0:
            break
    return found


def _tried(graph: Graph, values: frozenset[str], at: int) -> Graph | None:
    try:
        return run_again(graph, values, at)
    except GraphError:
        return None


def _figure(graph: Graph) -> tuple[int, int]:
    """The peak, and how many ops reach it."""
    alive = live_bytes(graph)
    return max(alive), alive.count(max(alive))


def _idle(graph: Graph, at: int) -> list[str]:
    """The values that an op does not touch and that only backward ops read after it; the largest
    first."""
    later = {n for op in graph.ops[at : graph.n_forward + 1] for n in op.inputs}
    touched, remade = later.union(graph.ops[at].operands), makers(graph)
    waiting = (
        name for name, (first, last) in lifetimes(graph).items()
        if first < at < last and name in remade and name not in touched
    )  # fmt: skip
    return sorted(waiting, key=lambda name: -graph.tensors[name].size)


def _chains(graph: Graph, value: str) -> Iterator[tuple[frozenset[str], int]]:
    """The values of the one, two, three ... ops up to this value, and the cost of those ops."""
    remade, ops, values = makers(graph), dict[str, Op](), {value}
    for _ in range(DEPTH):
        more = {op.outputs[0]: op for name in values if (op := remade.get(name))}
        if not more.keys() - ops.keys():
            return
        ops |= more
        yield frozenset(ops), sum(macs(op, graph.tensors) for op in ops.values())
        values = {name for op in more.values() for name in op.inputs}


# ---- giving up what is not needed ------------------------------------------------------------


def _pruned(graph: Graph, rewrites: _Rewrites) -> _Rewrites:
    peak_bytes, _ = _figure(rewrites.applied(graph))

    def suffices(fewer: _Rewrites) -> bool:
        try:
            return _figure(fewer.applied(graph))[0] <= peak_bytes
        except GraphError:
            return False

    again = _needed(rewrites.again, lambda a: suffices(replace(rewrites, again=a)))
    rewrites = replace(rewrites, again=again)
    buffers = _needed(rewrites.buffered, lambda b: suffices(replace(rewrites, buffered=b)))
    rewrites = replace(rewrites, buffered=buffers)
    masks = _needed(rewrites.masked, lambda m: suffices(replace(rewrites, masked=m)))
    return replace(rewrites, masked=masks)


def _needed(
    items: tuple[_Item, ...], suffices: Callable[[tuple[_Item, ...]], bool]
) -> tuple[_Item, ...]:
    """Fewer items that suffice: runs of them are left out, first long ones, then short ones."""
    length = len(items)
    while length:
        start = 0
        while start < len(items):
            fewer = items[:start] + items[start + length :]
            if suffices(fewer):
                items = fewer
            else:
                start += length
        length //= 2
    return items
