"""Pooling. The codes of a max-pooling say which tap of each window is the largest."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fedtiny.engine.ir import Window
from fedtiny.engine.kernels.sums import Array, pack, unpack
from fedtiny.engine.kernels.window import as_image, taps


def codes_of(codes: Array, shape: Iterable[int], window: Window) -> Array:
    """The codes of the outputs of that shape."""
    return unpack(codes, window.code_bits, shape)


def max_pool(x: Array, y: Array, codes: Array, window: Window) -> None:
    """The largest tap of each window (a NaN counts as larger), and which it is."""
    x, out = as_image(x), as_image(y)
    largest, code = np.zeros(out.shape, y.dtype), np.full(out.shape, -1)
    for tap in taps(window.kernel, window, x, out):
        z, m, taken = x[tap.inputs], largest[tap.outputs], code[tap.outputs]
        better = (taken < 0) | (z > m) | np.isnan(z)
        m[:] = np.where(better, z, m)
        taken[better] = tap.index[0] * window.kernel[1] + tap.index[1]
    out[:] = largest
    codes[:] = pack(code.reshape(len(code), -1), window.code_bits)


def max_pool_dx(dy: Array, codes: Array, dx: Array, window: Window) -> None:
    """dx[q of the code of p] += dy[p], over p: for one q, its taps from the last to the first."""
    dy, out = as_image(dy), as_image(dx)
    code, total = codes_of(codes, dy.shape, window), np.zeros(out.shape, dx.dtype)
    for tap in reversed(list(taps(window.kernel, window, out, dy))):
        chosen = code[tap.outputs] == tap.index[0] * window.kernel[1] + tap.index[1]
        place = total[tap.inputs]
        place[:] = np.where(chosen, place + dy[tap.outputs], place)
    out[:] = total


def avg_pool(x: Array, y: Array, window: Window) -> None:
    """The sum of the taps inside, over the number of all taps."""
    x, out = as_image(x), as_image(y)
    total = np.zeros(out.shape, y.dtype)
    for tap in taps(window.kernel, window, x, out):
        total[tap.outputs] += x[tap.inputs]
    out[:] = total / y.dtype.type(window.kernel[0] * window.kernel[1])


def avg_pool_dx(dy: Array, dx: Array, window: Window) -> None:
    """The sum of dy[p] over the windows p that hold q, over the number of taps."""
    dy, out = as_image(dy), as_image(dx)
    total = np.zeros(out.shape, dx.dtype)
    for tap in reversed(list(taps(window.kernel, window, out, dy))):
        total[tap.inputs] += dy[tap.outputs]
    out[:] = total / dx.dtype.type(window.kernel[0] * window.kernel[1])
