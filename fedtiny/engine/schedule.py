"""The order of the ops that keeps the fewest bytes alive.

Where a graph branches (residual connections, concatenations, the updates beside the backward walk),
its ops may run in many orders. A dynamic program over the sets of ops done keeps the least peak of
each set; where a level holds more than `WIDTH` sets, the best ones stay. So the search is exact for
a few branches at a time, and its time is that of the program order times the width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fedtiny.engine.ir import Graph, Op, Tensor
from fedtiny.engine.liveness import lifetimes, live_bytes, mutated, verify_updates
from fedtiny.engine.ops import TABLE

WIDTH = 32


def schedule(graph: Graph) -> Graph:
    """The graph with a lower peak of its forward or of its backward ops; else as it is.

    Forward ops stay before the loss, and the loss before the backward ops. What an op reads stays
    the same: a parameter's update comes after every op that reads its old value, and sums of
    gradients and of norms keep their order.
    """
    behind_loss = min(graph.n_forward + 1, len(graph.ops))
    for start, stop in ((0, graph.n_forward), (behind_loss, len(graph.ops))):
        segment, peak = _segment(graph, start, stop), max(live_bytes(graph)[start:stop], default=0)
        ops = [graph.ops[start + index] for index in _order_below(segment, peak)]
        graph = replace(graph, ops=(*graph.ops[:start], *ops, *graph.ops[stop:]))
    return verify_updates(graph)


# ---- what may follow what --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """An op as the search sees it. Sets of ops are the bits of integers.

    ``operands``: of every tensor that the op touches and that dies within the segment, the ops that
    touch it, its bytes, and whether the op's first output may take its place.
    """

    bit: int
    needs: int
    made_bytes: int
    operands: tuple[tuple[int, int, bool], ...]


@dataclass(frozen=True, slots=True)
class _Segment:
    """Ops that may change places among themselves, and the bytes that are alive before them."""

    steps: tuple[_Step, ...]
    start_bytes: int

    def ready(self, done: int) -> Iterator[_Step]:
        """The steps that may follow."""
        return (s for s in self.steps if not s.bit & done and not s.needs & ~done)


def _segment(graph: Graph, start: int, stop: int) -> _Segment:
    lives, ops = lifetimes(graph), graph.ops[start:stop]
    users: dict[str, int] = {}
    for index, op in enumerate(ops):
        for name in op.operands:
            if name in lives and lives[name][1] < stop:
                users[name] = users.get(name, 0) | 1 << index
    crossing = [name for name, (first, last) in lives.items() if first < start <= last]
    needs = _needs(ops)
    steps = [_step(op, index, needs[index], users, graph.tensors) for index, op in enumerate(ops)]
    return _Segment(tuple(steps), sum(graph.tensors[name].nbytes for name in crossing))


def _step(
    op: Op, index: int, needs: int, users: Mapping[str, int], tensors: Mapping[str, Tensor]
) -> _Step:
    made = [tensors[name].nbytes for name in op.outputs]
    in_place = {op.inputs[position] for position in TABLE[op.kind].in_place}
    operands = (
        (users[name], tensors[name].nbytes, name in in_place and tensors[name].nbytes == made[0])
        for name in dict.fromkeys(op.operands)
        if name in users
    )
    return _Step(1 << index, needs, sum(made), tuple(operands))


def _needs(ops: Sequence[Op]) -> list[int]:
    """The ops that each op must follow: who wrote what it reads, and who read what it writes."""
    found: list[int] = []
    writer: dict[str, int] = {}
    readers: dict[str, int] = {}
    for index, op in enumerate(ops):
        before, written = 0, mutated(op)
        for name in op.inputs:
            before |= writer.get(name, 0)
            readers[name] = readers.get(name, 0) | 1 << index
        if written:
            before |= readers[written] & ~(1 << index)
        for name in (*op.outputs, *filter(None, [written])):
            writer[name], readers[name] = 1 << index, 0
        found.append(before)
    return found


# ---- the search ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _State:
    """A set of ops done: the least peak that does them, and what is alive behind them."""

    done: int
    peak_bytes: int
    live_bytes: int
    path: tuple[_State, _Step] | None = None

    def after(self, step: _Step) -> _State:
        """The state behind one more step."""
        done = self.done | step.bit
        during, freed, shared = self.live_bytes + step.made_bytes, 0, 0
        for users, nbytes, in_place in step.operands:
            if not users & ~done:
                freed += nbytes
                shared = nbytes if in_place else shared
        peak_bytes = max(self.peak_bytes, during - shared)
        return _State(done, peak_bytes, during - freed, (self, step))

    @property
    def order(self) -> list[int]:
        """The indices of the ops done."""
        steps: list[int] = []
        state = self
        while state.path:
            state, step = state.path
            steps.append(step.bit.bit_length() - 1)
        return steps[::-1]


def _order_below(segment: _Segment, peak_bytes: int) -> Sequence[int]:
    """The order of the lowest peak found, if that is lower than ``peak_bytes``; else as it is."""
    level = [_State(0, segment.start_bytes, segment.start_bytes)]
    for _ in segment.steps:
        best: dict[int, _State] = {}
        for state in level:
            for new in _expanded(segment, state):
                known = best.get(new.done)
                if new.peak_bytes < (known.peak_bytes if known else peak_bytes):
                    best[new.done] = new
        level = sorted(best.values(), key=lambda s: (s.peak_bytes, s.live_bytes))[:WIDTH]
        if not level:
            return range(len(segment.steps))
    return level[0].order


def _expanded(segment: _Segment, state: _State) -> list[_State]:
    """The states one step on. A step that neither needs nor leaves more bytes is taken at once,
    since it can only help what comes after it."""
    found = [state.after(step) for step in segment.ready(state.done)]
    for new in found:
        if new.live_bytes <= state.live_bytes and new.peak_bytes == state.peak_bytes:
            return [new]
    return found
