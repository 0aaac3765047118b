"""The numbers of int8: scales, the ranges of activations, the steps of weights, values on the grid.

float32 at every step; ``engine/runtime/ft_int8.h`` is the twin in C, and
``tests/vectors/int8.json`` holds both to the same bits. A scale has at most 16 significant bits, so
that it times an int8, less any zero, is exact. The functions need NumPy; to import them does not.
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, Any, Protocol

from fedtiny.tensors import floats, vector

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from fedtiny.layout import Parameter
    from fedtiny.tensors import Buffer, Float32, Int8, Vector

    Array = npt.NDArray[Any]

LEAST = 2.0**-100
"""An extent, or a largest weight, below this is none."""
NO_SCALE = 2.0**-7
"""The scale of what has no extent."""
NEAR = 1024.0
"""Quotients are clamped to this before they are rounded: it is far outside of int8."""
_UNITS, _LARGEST, _STEPS = 255.0, 96.0, 127.0
"""Of a range; of the largest weight when it is loaded, which can then grow by a third; of any."""


class HoldsInt8(Protocol):
    """A Program, as far as it is about what a device holds as int8."""

    @property
    def int8_parameters(self) -> Sequence[Parameter]:
        """The weights."""

    @property
    def range_parameters(self) -> Sequence[Parameter]:
        """The ranges of activations: (lo, hi) each."""


def clamped(v: Array, low: float, high: float) -> Array:
    """v within [low, high]; NaN gives low."""
    import numpy as np

    kind = v.dtype.type
    v = np.where(v > kind(low), v, kind(low))
    return np.where(v < kind(high), v, kind(high))


def scale16(x: Any) -> Float32:
    """x > 0, rounded up to 16 significant bits."""
    import numpy as np

    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0xFF)) & np.uint32(0xFFFFFF00)).view(np.float32)


# ---- activations -----------------------------------------------------------------------------


def extent(lo: float, hi: float) -> float:
    """How far a range reaches together with 0, in float32; of NaN counts the 0 alone."""
    (reach,) = array("f", [(hi if hi > 0 else 0.0) - (lo if lo < 0 else 0.0)])
    return reach


def range_of(lo: float, hi: float) -> tuple[float, float]:
    """(scale, zero) such that int8 holds lo, hi and exactly 0: x is (q - zero) * scale."""
    import numpy as np

    reach = np.float32(extent(lo, hi))
    if not LEAST <= reach < math.inf:
        return NO_SCALE, 0.0
    scale = scale16(reach / np.float32(_UNITS))
    zero = np.rint(np.float32(-128) - np.float32(lo if lo < 0 else 0.0) / scale)
    return float(scale), float(clamped(zero, -128, 127))


def ends_of(scale: Any, zero: Any) -> tuple[Any, Any]:
    """(lo, hi): the least and the greatest value that int8 holds."""
    return (-128 - zero) * scale, (127 - zero) * scale


# ---- weights ---------------------------------------------------------------------------------


def steps(weight: Float32) -> Float32:
    """One step for each output channel of W[..., O], by which its largest weight is about 96; of
    a channel of zeros that of the largest channel."""
    import numpy as np

    rows = abs(np.asarray(weight, np.float32)).reshape(-1, np.shape(weight)[-1])
    largest = np.fmax.reduce(rows, axis=0, initial=np.float32(0))
    most = np.fmax.reduce(largest)
    own, others = (scale16(of / np.float32(_LARGEST)) for of in (largest, most))
    return np.where(_is_some(largest), own, np.where(_is_some(most), others, np.float32(NO_SCALE)))


def _is_some(largest: Array) -> Array:
    return (largest >= LEAST) & (largest < math.inf)


def quantise_weight(weight: Float32, step: Float32) -> Int8:
    """The nearest int8 of weights, halves to even."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        units = np.asarray(weight, np.float32) / step
    return np.rint(clamped(units, -_STEPS, _STEPS)).astype(np.int8)


# ---- models ----------------------------------------------------------------------------------


def held(program: HoldsInt8, values: Buffer) -> Vector:
    """What a device holds after it has loaded this averaged vector: int8 on their grid."""
    import numpy as np

    made = np.array(floats(values), np.float32)
    for p in program.int8_parameters:
        place = made[p.offset : p.offset + p.size].reshape(p.shape)
        step = steps(place)
        place[:] = quantise_weight(place, step) * step
    for p in program.range_parameters:
        place = made[p.offset : p.offset + p.size]
        place[:] = ends_of(*map(np.float32, range_of(*map(float, place))))
    return vector(made)
