"""Element by element: activations, sums and copies. And softmax, which is one over channels."""

from __future__ import annotations

import numpy as np

from fedtiny import elementary
from fedtiny.engine.ir import Scalars
from fedtiny.engine.kernels.loss import exponentials
from fedtiny.engine.kernels.sums import Array, lane_sum, pack, unpack


def _mask(bits: Array, mask: Array | None) -> None:
    if mask is not None:
        mask[:] = pack(bits.reshape(len(bits), -1), 1)


def relu(x: Array, y: Array, mask: Array | None) -> None:
    """y = max(x, 0); NaN passes."""
    y[:] = np.where(x <= 0, x.dtype.type(0), x)
    _mask(y > 0, mask)


def relu6(x: Array, y: Array, mask: Array | None) -> None:
    """y = min(max(x, 0), 6); NaN passes."""
    zero, six = x.dtype.type(0), x.dtype.type(6)
    y[:] = np.where(x <= 0, zero, np.where(x >= 6, six, x))
    _mask((y > 0) & (y < 6), mask)


def leaky_relu(x: Array, y: Array, mask: Array | None, slope: Scalars) -> None:
    """y = x where x > 0, else slope * x."""
    y[:] = np.where(x > 0, x, x.dtype.type(slope.value) * x)
    _mask(y > 0, mask)


def tanh(x: Array, y: Array) -> None:
    """y = tanh(x)."""
    y[:] = elementary.tanh(x)


def sigmoid(x: Array, y: Array) -> None:
    """y = 1 / (1 + exp(-x))."""
    y[:] = elementary.sigmoid(x)


def hardswish(x: Array, y: Array) -> None:
    """y = x * relu6(x + 3) / 6."""
    clamped = np.empty_like(x)
    relu6(x + x.dtype.type(3), clamped, None)
    y[:] = (x * clamped) / x.dtype.type(6)


def add(a: Array, b: Array, y: Array) -> None:
    """y = a + b."""
    y[:] = a + b


def softmax(z: Array, y: Array) -> None:
    """y = exp(z) / sum(exp(z)) over the channels."""
    _, q, s = exponentials(z)
    y[:] = q / s[..., None]


def concat(a: Array, b: Array, y: Array) -> None:
    """The channels of a, then those of b."""
    y[:] = np.concatenate([a, b], axis=-1)


def reshape(x: Array, y: Array) -> None:
    """The same elements in another shape."""
    y[:] = x.reshape(y.shape)


# ---- backward --------------------------------------------------------------------------------


def relu_dx(dy: Array, y: Array, dx: Array) -> None:
    """dx = dy where y > 0."""
    dx[:] = np.where(y > 0, dy, dy.dtype.type(0))


def relu6_dx(dy: Array, y: Array, dx: Array) -> None:
    """dx = dy where 0 < y < 6."""
    dx[:] = np.where((y > 0) & (y < 6), dy, dy.dtype.type(0))


def leaky_relu_dx(dy: Array, y: Array, dx: Array, slope: Scalars) -> None:
    """dx = dy where y > 0, else slope * dy."""
    dx[:] = np.where(y > 0, dy, dy.dtype.type(slope.value) * dy)


def mask_dx(dy: Array, mask: Array, dx: Array, slope: Scalars) -> None:
    """dx = dy where the mask has a bit, else slope * dy."""
    zero = dy.dtype.type(0)
    off = dy.dtype.type(slope.value) * dy if slope.value else zero
    dx[:] = np.where(unpack(mask, 1, dy.shape) == 1, dy, off)


def tanh_dx(dy: Array, y: Array, dx: Array) -> None:
    """dx = dy (1 - y^2)."""
    dx[:] = dy * (y.dtype.type(1) - y * y)


def sigmoid_dx(dy: Array, y: Array, dx: Array) -> None:
    """dx = dy y (1 - y)."""
    dx[:] = dy * (y * (y.dtype.type(1) - y))


def hardswish_dx(dy: Array, x: Array, dx: Array) -> None:
    """dx = dy times 0 below -3, 1 above 3, and x / 3 + 1 / 2 between."""
    one = x.dtype.type
    between = dy * (x / one(3) + one(0.5))
    dx[:] = np.where(x <= -3, one(0), np.where(x >= 3, dy, between))


def softmax_dx(dy: Array, y: Array, dx: Array) -> None:
    """dx = y (dy - sum(dy y))."""
    dx[:] = y * (dy - lane_sum(dy * y)[..., None])


def slice_channels(dy: Array, dx: Array, first: Scalars) -> None:
    """The channels of one part of a concatenation."""
    dx[:] = dy[..., first.number : first.number + dx.shape[-1]]
