"""Forward operations on int8: whole numbers, exactly, and one rounding for each output.

In float64 an `Int8` holds real numbers on the same scale, and nothing is rounded: what is left is
the arithmetic of the float operations, and saturation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedtiny.engine.ir import Scalars, Window
from fedtiny.engine.kernels import pool
from fedtiny.engine.kernels.sums import Array, pack
from fedtiny.engine.kernels.window import as_image, as_kernel, taps
from fedtiny.quantised import NEAR, clamped

BIAS_LIMIT = 2.0**30


@dataclass(frozen=True, slots=True, eq=False)
class Int8:
    """The int8 values q of a tensor, with what they stand for: ``(q - zero) * scale``.

    Of an activation the scale is a number, of a weight one step for each output channel, and the
    zero is 0.
    """

    values: Array
    scale: Any
    zero: Any

    @property
    def units(self) -> Array:
        """q - zero: int64, or float64."""
        if self.values.dtype == np.int8:
            return self.values.astype(np.int64) - int(self.zero)
        return np.asarray(self.values - self.zero)

    @property
    def real(self) -> Array:
        """What they stand for: float32, or float64; exact."""
        return np.asarray(self.units.astype(self.scale.dtype) * self.scale)

    def settle(self, units: Array) -> None:
        """Take the values nearest to so many units of the scale, halves to even."""
        near = clamped(units, -NEAR, NEAR)
        whole = np.rint(near) if self.values.dtype == np.int8 else near
        self.values[:] = np.clip(whole + self.zero, -128, 127).reshape(self.values.shape)


def conv8(x: Int8, w: Int8, b: Array | None, y: Int8, window: Window) -> None:
    """acc[p,o] = b[o] + (x[q,i] - zero) * w[tap,i,o]; a linear layer reads a single pixel."""
    kernel, image = as_kernel(w.units), x.units
    image = image.reshape(len(image), 1, 1, -1) if w.values.ndim == 2 else as_image(image)
    units = x.scale * w.scale
    acc = np.zeros(as_image(y.values).shape, image.dtype) + _bias(b, units, image)
    xs, ws, ys = (t.reshape(*t.shape[:-1], window.groups, -1) for t in (image, kernel, acc))
    for tap in taps(kernel.shape, window, image, acc):
        ys[tap.outputs] += np.einsum("bhwgi,igo->bhwgo", xs[tap.inputs], ws[tap.index])
    y.settle(acc.astype(units.dtype) * (units / y.scale))


def _bias(b: Array | None, units: Array, image: Array) -> Array:
    """In units of the accumulator."""
    if b is None:
        return np.zeros(1, image.dtype)
    within = clamped(b / units, -BIAS_LIMIT, BIAS_LIMIT)
    return np.rint(within).astype(np.int64) if image.dtype == np.int64 else within


def add8(a: Int8, b: Int8, y: Int8) -> None:
    """y = a + b."""
    first, second = (t.units.astype(y.scale.dtype) * (t.scale / y.scale) for t in (a, b))
    y.settle(first + second)


def avg_pool8(x: Int8, y: Int8, window: Window) -> None:
    """The sum of the taps inside, over the number of all taps."""
    image = as_image(x.units)
    total = np.zeros(as_image(y.values).shape, image.dtype)
    for tap in taps(window.kernel, window, image, total):
        total[tap.outputs] += image[tap.inputs]
    one = y.scale.dtype.type
    y.settle(total.astype(one) * (x.scale / (y.scale * one(window.taps))))


def max_pool8(x: Int8, y: Int8, codes: Array, window: Window) -> None:
    """The largest tap of each window, and which it is; both have one scale."""
    pool.max_pool(x.values, y.values, codes, window)


def mask8(y: Int8, mask: Array, top: Scalars) -> None:
    """Bits: where y > 0, and below the top if there is one."""
    real = y.real
    bits = (real > 0) & (real < top.value) if top.value else real > 0
    mask[:] = pack(bits.reshape(len(bits), -1), 1)
