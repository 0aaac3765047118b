"""Which rewrites lower the peak of a training graph.

All masks and buffers are tried at once. Then a greedy search looks at the first op of the highest
peak, tries to make again later what lies idle there, by one, two, three ... ops, and takes what
lowers the peak most, until nothing does. In the end the rewrites that the peak does not need are
given up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import accumulate
from typing import TypeVar

from fedtiny.engine.ir import Graph, Op
from fedtiny.engine.liveness import lifetimes, live_bytes, verify_updates
from fedtiny.engine.ops import TABLE, macs
from fedtiny.engine.rewriting import bufferable, buffered, makers, maskable, masked, run_again
from fedtiny.engine.sharing import shared
from fedtiny.errors import CompileError

MINIMISE = ("ram", "time")
DEPTH = 12
"""So many ops in a row are tried at once: two blocks of a residual net."""
LEAST_GAIN = 0.02
"""The share of the peak for which something is made again; less is not worth the time."""
BREADTH = 8
"""So many idle values, from the largest on, are tried before the best found is taken."""

_Item = TypeVar("_Item")
_Identity = tuple[str, ...]
"""The outputs of an op, or role and parameter of one that has none: what no rewrite changes."""


def spare(graph: Graph, minimise: str = "ram") -> Graph:
    """The training graph with a lower peak, or as it is.

    Args:
        graph: A training graph.
        minimise: ``ram``: whatever lowers the peak by a fiftieth; ``time``: make nothing twice.
    """
    if minimise not in MINIMISE:
        raise CompileError(f"minimise must be one of {list(MINIMISE)}; got {minimise!r}")
    plan = _Plan(graph, tuple(maskable(graph)), tuple(bufferable(graph)))
    if minimise == "ram":
        again = replace(plan, steps=_greedy(plan.base))
        plan = again if again.peak_bytes <= (1 - LEAST_GAIN) * plan.peak_bytes else plan
    plan = _thinned(plan)
    plan = replace(plan, steps=_lightened(plan.base, plan.steps))
    return (
        verify_updates(shared(plan.result)) if plan.peak_bytes < max(live_bytes(graph)) else graph
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """Values that are made again behind an op: behind the first of these that is there, since the
    step that made another may be given up."""

    values: frozenset[str]
    behind: tuple[_Identity, ...]

    def applied(self, graph: Graph) -> Graph:
        """The graph rewritten."""
        ops = list(map(_identity, graph.ops))
        behind = next(op for op in self.behind if op in ops)
        return run_again(graph, self.values, ops.index(behind))


@dataclass(frozen=True, slots=True)
class _Plan:
    """The rewrites of a graph, in their order."""

    graph: Graph
    masks: tuple[str, ...]
    buffers: tuple[str, ...]
    steps: tuple[_Step, ...] = ()

    @property
    def base(self) -> Graph:
        """The graph before the first step."""
        return buffered(masked(self.graph, self.masks), self.buffers)

    @property
    def result(self) -> Graph:
        """The graph behind the last step."""
        return reduce(lambda graph, step: step.applied(graph), self.steps, self.base)

    @property
    def peak_bytes(self) -> int:
        """The peak of the result."""
        return _peak_bytes(self.base, self.steps)


def _identity(op: Op) -> _Identity:
    return op.outputs or (TABLE[op.kind].role, op.parameter)


def _peak_bytes(graph: Graph, steps: Sequence[_Step]) -> int:
    """The peak behind these steps."""
    return max(live_bytes(reduce(lambda before, step: step.applied(before), steps, graph)))


# ---- making values again ---------------------------------------------------------------------


def _greedy(graph: Graph) -> tuple[_Step, ...]:
    """Steps of which each lowers the peak, or the number of ops that reach it."""
    steps: list[_Step] = []
    while found := _best_step(graph):
        step, graph = found
        steps.append(step)
    return tuple(steps)


def _best_step(graph: Graph) -> tuple[_Step, Graph] | None:
    """What lowers the peak most; of equals, what costs the fewest multiply-adds."""
    alive = live_bytes(graph)
    at = alive.index(max(alive))
    idle = _idle(graph, at)
    best, found = (*_figure(graph), 0), None
    for tried, value in enumerate(idle, 1):
        for ops in _chains(graph, value):
            freed = sum(idle.get(name, 0) for op in ops for name in op.outputs)
            if alive[at] - freed > best[0]:
                continue
            values = frozenset(op.outputs[0] for op in ops)
            new = run_again(graph, values, at)
            figure = (*_figure(new), sum(macs(op, graph.tensors) for op in ops))
            if figure < best:
                best, found = figure, (_Step(values, tuple(map(_identity, graph.ops[at::-1]))), new)
        if found and tried % BREADTH == 0:
            break
    return found


def _figure(graph: Graph) -> tuple[int, int]:
    """The peak, and how many ops reach it."""
    alive = live_bytes(graph)
    return max(alive), alive.count(max(alive))


def _idle(graph: Graph, at: int) -> dict[str, int]:
    """The values that an op does not touch and that only backward ops read after it, and their
    bytes; the largest first."""
    later = {n for op in graph.ops[at : graph.n_forward + 1] for n in op.inputs}
    touched, remade = later.union(graph.ops[at].operands), makers(graph)
    waiting = {
        name: graph.tensors[name].nbytes for name, (first, last) in lifetimes(graph).items()
        if first < at < last and name in remade and name not in touched
    }  # fmt: skip
    return dict(sorted(waiting.items(), key=lambda item: -item[1]))


def _chains(graph: Graph, value: str) -> Iterator[Collection[Op]]:
    """The one, two, three ... ops up to this value."""
    remade, ops, values = makers(graph), dict[str, Op](), {value}
    for _ in range(DEPTH):
        more = {op.outputs[0]: op for name in values if (op := remade.get(name))}
        if not more.keys() - ops.keys():
            return
        ops |= more
        yield ops.values()
        values = {name for op in more.values() for name in op.inputs}


# ---- giving up what is not needed ------------------------------------------------------------


def _thinned(plan: _Plan) -> _Plan:
    """The plan without the buffers and masks that its peak does not need."""
    most = plan.peak_bytes
    buffers = _needed(plan.buffers, lambda few: replace(plan, buffers=few).peak_bytes <= most)
    thin = replace(plan, buffers=buffers)
    masks = _needed(thin.masks, lambda few: replace(thin, masks=few).peak_bytes <= most)
    return replace(thin, masks=masks)


def _lightened(graph: Graph, steps: Sequence[_Step]) -> tuple[_Step, ...]:
    """The steps without the values that the peak does not need: from the last step on, since what
    stands before it need not be made anew."""
    peak_bytes = _peak_bytes(graph, steps)
    graphs = list(accumulate(steps, lambda before, step: step.applied(before), initial=graph))
    kept: tuple[_Step, ...] = ()
    for step, before in zip(reversed(steps), reversed(graphs[:-1]), strict=True):
        values = _needed_values(before, step, kept, peak_bytes)
        kept = (_Step(frozenset(values), step.behind), *kept) if values else kept
    return kept


def _needed_values(
    graph: Graph, step: _Step, behind: Sequence[_Step], peak_bytes: int
) -> tuple[str, ...]:
    """Of a step that others stand behind; the most costly ones are given up first. A mask that was
    given up is there no more."""
    remade = makers(graph)
    cost = {n: macs(remade[n], graph.tensors) for n in step.values.intersection(remade)}

    def suffices(values: tuple[str, ...]) -> bool:
        fewer = replace(step, values=frozenset(values))
        return _peak_bytes(graph, (fewer, *behind)) <= peak_bytes

    return _needed(tuple(sorted(cost, key=lambda name: (-cost[name], name))), suffices)


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
