"""A device's side of masks: where live values stand, and which of them are exchanged. No NumPy."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from fedtiny.layout import merge_ranges
from fedtiny.tensors import floats

if TYPE_CHECKING:
    from fedtiny.engine.program import Program
    from fedtiny.layout import Layout, Ranges
    from fedtiny.masks import Mask


def compact_ranges(mask: Mask, layout: Layout, ranges: Ranges) -> Ranges:
    """Where the live values of whole parameters stand among all live values."""
    ends = list(accumulate(mask.counts(layout), initial=0))
    named = [any(a <= p.offset < b for a, b in ranges) for p in layout.parameters]
    return merge_ranges(pair for pair, own in zip(pairwise(ends), named, strict=True) if own)


def live_values(values: memoryview[float], mask: Mask, ranges: Ranges) -> bytes:
    """Those of the live coordinates within the ranges, ascending."""
    return array("f", [values[at] for at in mask.coordinates(ranges)]).tobytes()


def exchanged(
    mask: Mask,
    layout: Layout,
    prunable: Sequence[str],
    values: memoryview[float],
    grown: Sequence[int],
) -> Mask:
    """The mask with these coordinates, and in each layer without as many live ones of the smallest
    magnitude; of two alike the lower coordinate stays. ``values`` are those of the live ones."""
    dead: list[int] = []
    for parameter in map(layout.__getitem__, prunable):
        own = (parameter.offset, parameter.offset + parameter.size)
        wanted = bisect_left(grown, own[1]) - bisect_left(grown, own[0])
        if wanted:
            live = [-int(at) for at in mask.coordinates((own,))]
            first = mask.length(((0, own[0]),))
            sizes = map(abs, values[first : first + len(live)])
            ranked = sorted(zip(sizes, live, strict=True))
            dead += [-at for _, at in ranked[:wanted]]
    return mask.moved(dead, grown)


def carried(values: memoryview[float], before: Mask, after: Mask) -> memoryview[float]:
    """The live values under another mask: what both have stays, and what is new is 0."""
    whole = ((0, before.size),)
    kept = dict(zip(map(int, before.coordinates(whole)), values, strict=True))
    return floats([kept.get(int(at), 0.0) for at in after.coordinates(whole)])


def tracked_elements(program: Program) -> list[int]:
    """For each sum that `Executor.observe` gives: how many elements of a batch it adds up."""
    tables = program.tables
    means = set(tables.tracked[::2])
    ops = [op for op in tables.forward if means.intersection(op.tensors[1:2])]
    shapes = [tables.tensors[op.tensors[0]].shape for op in ops]
    return [math.prod(shape[:-1]) for shape in shapes for _ in range(2 * shape[-1])]
