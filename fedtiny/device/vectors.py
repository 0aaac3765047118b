"""Sums of vectors: the same bits with NumPy and without it."""

from __future__ import annotations

from array import array
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from fedtiny.tensors import float_view, floats, has_numpy

if TYPE_CHECKING:
    from fedtiny.layout import Ranges
    from fedtiny.tensors import Buffer


def combined(*terms: tuple[float, Buffer]) -> memoryview[float]:
    """The sum of multiples of vectors: added up from the left in float64, rounded once."""
    views = [(factor, float_view(values)) for factor, values in terms]
    if has_numpy():
        import numpy as np

        rows = (factor * np.asarray(view, np.float64) for factor, view in views)
        return float_view(reduce(add, rows).astype(np.float32))
    columns = zip(*([factor * v for v in view] for factor, view in views), strict=True)
    return float_view(array("f", (reduce(add, column) for column in columns)))


def copied(values: memoryview[float]) -> memoryview[float]:
    """A copy that may be changed."""
    return float_view(bytearray(values))


def taken(values: memoryview[float], ranges: Ranges) -> bytes:
    """The bytes of these ranges, one behind the other."""
    return b"".join(bytes(values[start:stop]) for start, stop in ranges)


def restricted(values: memoryview[float], ranges: Ranges) -> memoryview[float]:
    """The same within the ranges, and 0 elsewhere."""
    made = float_view(bytearray(values.nbytes))
    for start, stop in ranges:
        made[start:stop] = floats(values[start:stop])
    return made
