"""Some channels of a tensor: read, and put over those of another.

They move values and never look at them, so that they serve every element type.
"""

from __future__ import annotations

from fedtiny.engine.ir import AXES, Scalars
from fedtiny.engine.kernels.sums import Array


def take(x: Array, channels: Array, y: Array) -> None:
    """y[.., j] = x[.., channels[j]]."""
    y[:] = x[..., channels]


def merge(w: Array, part: Array, channels: Array, y: Array, axis: Scalars) -> None:
    """y = w, with these channels from the part."""
    y[:] = w
    y[(..., channels, slice(None)) if axis.number == AXES["in"] else (..., channels)] = part
