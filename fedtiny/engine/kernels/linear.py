"""Linear layers, and biases of any layer."""

from __future__ import annotations

import numpy as np

from fedtiny.engine.kernels.sums import Array, in_rows, lane_sum, row_sum


def _flat(x: Array) -> Array:
    return x.reshape(len(x), -1)


def linear(x: Array, w: Array, b: Array | None, y: Array) -> None:
    """y[B,O] = x[B,I] @ w[I,O] + b[O]."""
    x = _flat(x)
    if w.shape[1] == 1:
        dot = lane_sum(x * w[:, 0])[:, None]
        y[:] = dot if b is None else dot + b
        return
    total = np.zeros(y.shape, y.dtype) if b is None else np.broadcast_to(b, y.shape).copy()
    for i in range(w.shape[0]):
        total += x[:, i : i + 1] * w[i]
    y[:] = total


def linear_dx(dy: Array, w: Array, dx: Array) -> None:
    """dx[B,I] = dy[B,O] @ w[I,O].T."""
    made = dy * w[:, 0] if w.shape[1] == 1 else lane_sum(w[None] * dy[:, None])
    dx[:] = made.reshape(dx.shape)


def linear_gradient(x: Array, dy: Array, _w: Array | None) -> Array:
    """g[I,O] = x.T @ dy, summed over the batch in order."""
    return row_sum(_flat(x)[:, :, None] * dy[:, None, :])


def bias(x: Array, b: Array, y: Array) -> None:
    """y = x + b over the last axis."""
    y[:] = x + b


def bias_gradient(_x: None, dy: Array, _b: Array | None) -> Array:
    """g[C] = dy summed over all axes but the last, in order."""
    return row_sum(in_rows(dy))
