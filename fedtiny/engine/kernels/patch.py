"""A part of an image: read, and put over that of another.

They move values and never look at them, so that they serve every element type.
"""

from __future__ import annotations

from fedtiny.engine.ir import Region
from fedtiny.engine.kernels.sums import Array


def crop(x: Array, y: Array, region: Region) -> None:
    """y = the region of x."""
    y[:] = x[region.slices]


def paste(base: Array | None, patch: Array | None, y: Array, region: Region) -> None:
    """y = the base with the patch in the region; zeros stand for either."""
    y[:] = 0 if base is None else base
    y[region.slices] = 0 if patch is None else patch
