"""Weights of which only live ones are stored: the pass that prunes, and the pool that holds them.

Which weights are live is run-time data, a mask. What a Program fixes is the capacity of the pool,
which its layers share, and how the pool is indexed: by the gaps between live weights or by a
bitmap, whichever takes fewer bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from fedtiny import pruning
from fedtiny.engine.image import BITMAP, GAPS, NO_POOL
from fedtiny.engine.ir import LIVE, Graph, Op, Window
from fedtiny.engine.ops import SPARSE
from fedtiny.errors import CompileError, ExperimentError
from fedtiny.layout import UNSENT, Layout

ESCAPE = 0xFFFF
"""A gap that stands for so many dead weights and no live one."""
MAX_WIDTH = 1 << 15
"""Of a sparse layer: outputs and taps together, so that a host finds room to work in."""
PLACE_BYTES = 8
"""A coordinate and a gradient, in the bucket of a growth."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The live weights of a Program.

    Attributes:
        counts: The weights of each pruned parameter, live and dead, in the order of the layout.
        capacity: How many live at most.
        bucket: How many dead ones a growth may name.
        shares: How much of each pruned parameter is expected to live.
    """

    counts: tuple[int, ...] = ()
    capacity: int = 0
    bucket: int = 0
    shares: Mapping[str, Fraction] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, density: float, bucket: int) -> Pool:
        """That of a pruned graph; a bucket larger than what is dead is cut."""
        if density == 1:
            return NO_WEIGHTS
        layout, tensors = graph.layout, graph.tensors
        names = [p.name for p in layout.parameters if tensors[p.name].home == LIVE]
        counts = tuple(layout[name].size for name in names)
        capacity = int(density * sum(counts))
        shares = _expected_shares(layout, names, density)
        return cls(counts, capacity, min(bucket, sum(counts) - capacity), shares)

    @property
    def form(self) -> int:
        """How it is indexed."""
        if not self.counts:
            return NO_POOL
        return GAPS if self._gap_words <= self._bitmap_words else BITMAP

    @property
    def index_words(self) -> int:
        """Of four bytes: where each parameter's values start, and which weights they are."""
        if not self.counts:
            return 0
        return len(self.counts) + 1 + min(self._gap_words, self._bitmap_words)

    @property
    def words(self) -> int:
        """Of four bytes, in all."""
        return self.capacity + self.index_words

    def macs(self, op: Op, dense: int) -> int:
        """Of an op whose dense twin has that many, at the share of its weight that should live."""
        weight = next(filter(self.shares.__contains__, op.operands), "")
        return math.ceil(dense * self.shares[weight]) if weight else dense

    @property
    def _gap_words(self) -> int:
        gaps = self.capacity + sum(count // ESCAPE for count in self.counts)
        return len(self.counts) + 1 + (gaps + 1) // 2

    @property
    def _bitmap_words(self) -> int:
        return sum(-(-count // 32) for count in self.counts)


NO_WEIGHTS = Pool()


def _expected_shares(layout: Layout, names: Sequence[str], density: float) -> dict[str, Fraction]:
    """As strategies begin: dealt out by ERK, or evenly where that would empty a layer."""
    try:
        counts = pruning.erk_counts(layout, names, density)
    except ExperimentError:
        total = sum(layout[name].size for name in names)
        return dict.fromkeys(names, Fraction(int(density * total), total))
    return {name: Fraction(counts[name], layout[name].size) for name in names}


# ---- the pass --------------------------------------------------------------------------------


def prunable(graph: Graph) -> tuple[str, ...]:
    """The parameters that can be pruned, in the order of the layout: those that one op alone uses,
    as the weight of a linear layer or of a convolution without groups, and that are sent."""
    uses = Counter(name for op in graph.ops for name in op.inputs)
    weights = {op.inputs[1] for op in graph.ops if _is_layer(op)}
    return tuple(
        p.name for p in graph.layout.parameters
        if p.name in weights and uses[p.name] == 1 and p.group not in UNSENT
    )  # fmt: skip


def _is_layer(op: Op) -> bool:
    grouped = isinstance(op.attributes, Window) and op.attributes.groups != 1
    return op.kind in ("linear", "conv") and not grouped


def prune(graph: Graph, density: float) -> Graph:
    """The forward graph with sparse layers for its prunable ones.

    Raises CompileError for a density outside (0, 1], for one that leaves a layer no weight, and for
    a graph without prunable layers.
    """
    if not 0 < density <= 1:
        raise CompileError(f"the density must be above 0 and at most 1; got {density}")
    if density == 1:
        return graph
    names = prunable(graph)
    _check_capacity(graph, names, density)
    _check_widths(graph, names)
    pruned = {name: replace(graph.tensors[name], home=LIVE) for name in names}
    ops = tuple(_sparse(op) if pruned.keys() & op.inputs else op for op in graph.ops)
    return replace(graph, tensors={**graph.tensors, **pruned}, ops=ops)


def _sparse(op: Op) -> Op:
    return replace(op, kind=SPARSE, attributes=op.attributes or Window(groups=1))


def _check_capacity(graph: Graph, names: tuple[str, ...], density: float) -> None:
    if not names:
        raise CompileError(
            f"a density of {density} prunes nothing: no parameter is the weight of exactly one "
            "linear layer or convolution without groups; compile with density=1"
        )
    total = sum(graph.tensors[name].size for name in names)
    if int(density * total) < len(names):
        raise CompileError(
            f"a density of {density} keeps {int(density * total)} of {total:,} weights, fewer than "
            f"one for each of {len(names)} layers; raise it to {len(names) / total:.3g} or more"
        )


def _check_widths(graph: Graph, names: tuple[str, ...]) -> None:
    for name in names:
        *taps, _, outputs = graph.tensors[name].shape
        if outputs + math.prod(taps) > MAX_WIDTH:
            raise CompileError(
                f"{name} has {outputs:,} outputs and {math.prod(taps)} taps; a sparse layer has at "
                f"most {MAX_WIDTH:,} together: split it, or compile with density=1"
            )
