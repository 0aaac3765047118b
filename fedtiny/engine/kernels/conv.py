"""Convolutions: image [B,H,W,I], kernel [kh,kw,I/groups,O]."""

from __future__ import annotations

import numpy as np

from fedtiny.engine.ir import Window
from fedtiny.engine.kernels.pool import codes_of, max_pool
from fedtiny.engine.kernels.sums import LANES, Array, add_lanes, row_sum, tree8
from fedtiny.engine.kernels.window import as_image, as_kernel, taps


def _split(x: Array, groups: int) -> Array:
    """The last axis as [groups, channels of a group]."""
    return x.reshape(*x.shape[:-1], groups, -1)


def conv(x: Array, w: Array, b: Array | None, y: Array, window: Window) -> None:
    """y[p,o] = b[o] + x[q,i] * w[tap,i,o], over taps, then the channels of o's group."""
    x, out, w = as_image(x), as_image(y), as_kernel(w)
    total = np.zeros(out.shape, y.dtype) if b is None else np.broadcast_to(b, out.shape).copy()
    xs, ws, ys = (_split(t, window.groups) for t in (x, w, total))
    for tap in taps(w.shape, window, x, out):
        for i in range(w.shape[2]):
            ys[tap.outputs] += xs[tap.inputs][..., i, None] * ws[tap.index][i]
    out[:] = total


def conv_dx(dy: Array, w: Array, dx: Array, window: Window) -> None:
    """dx[q,i]: lane o mod 8 gathers w[tap,i,o] * dy[p,o] over taps, then o of i's group."""
    dy, out, w = as_image(dy), as_image(dx), as_kernel(w)
    ds, ws = _split(dy, window.groups), _split(w, window.groups)
    lanes = np.zeros((*_split(out, window.groups).shape, LANES), dx.dtype)
    for tap in taps(w.shape, window, out, dy):
        turned = ws[tap.index].swapaxes(0, 1)
        add_lanes(lanes[tap.inputs], turned * ds[tap.outputs][..., None, :])
    out[:] = tree8(lanes).reshape(out.shape)


def conv_gradient(x: Array, dy: Array, w: Array, window: Window) -> Array:
    """g[tap,i,o] = x[q,i] * dy[p,o], summed over p in order."""
    x, dy, kernel = as_image(x), as_image(dy), as_kernel(w)
    xs, ds = _split(x, window.groups), _split(dy, window.groups)
    g = np.zeros(kernel.shape, dy.dtype)
    for tap in taps(kernel.shape, window, x, dy):
        rows, columns = (t.reshape(-1, *t.shape[3:]) for t in (xs[tap.inputs], ds[tap.outputs]))
        summed = row_sum(rows[:, :, :, None] * columns[:, :, None, :])
        g[tap.index] = summed.swapaxes(0, 1).reshape(kernel.shape[2:])
    return g.reshape(w.shape)


# ---- a convolution whose output is pooled at once --------------------------------------------


def _extent(x: int, kernel: int, pads: int, stride: int) -> int:
    return (x + pads - kernel) // stride + 1


def conv_pool(x: Array, w: Array, b: Array | None, y: Array, codes: Array, window: Window) -> None:
    """The convolution, then its max-pooling with stride = kernel."""
    image, kernel = as_image(x), as_kernel(w)
    top, left, bottom, right = window.padding
    height = _extent(image.shape[1], kernel.shape[0], top + bottom, window.stride[0])
    width = _extent(image.shape[2], kernel.shape[1], left + right, window.stride[1])
    inner = np.zeros((len(x), height, width, kernel.shape[3]), y.dtype)
    conv(x, w, b, inner, window)
    max_pool(inner, as_image(y), codes, Window(window.kernel, kernel=window.kernel))


def conv_pool_gradient(x: Array, dy: Array, w: Array, codes: Array, window: Window) -> Array:
    """g[tap,i,o] = x[q,i] * dy[p,o], over pooled p in order, q as read from the largest."""
    image, dy, kernel = as_image(x), as_image(dy), as_kernel(w)
    code, (ph, pw) = codes_of(codes, dy.shape, window), window.kernel
    batch, py, px, channel = np.indices(dy.shape)
    oy, ox = py * ph + code // pw, px * pw + code % pw
    g, depth = np.zeros(kernel.shape, dy.dtype), kernel.shape[2]
    group = channel // (kernel.shape[3] // window.groups)
    for ky, kx in np.ndindex(kernel.shape[:2]):
        qy = oy * window.stride[0] - window.padding[0] + ky
        qx = ox * window.stride[1] - window.padding[1] + kx
        inside = (qy >= 0) & (qy < image.shape[1]) & (qx >= 0) & (qx < image.shape[2])
        at = batch, np.where(inside, qy, 0), np.where(inside, qx, 0)
        for i in range(depth):
            terms = image[(*at, group * depth + i)] * dy
            g[ky, kx, i] = _sum_inside(terms, inside)
    return g.reshape(w.shape)


def _sum_inside(terms: Array, inside: Array) -> Array:
    """Sequential sum, channel by channel, of the terms that are inside."""
    rows, kept = (t.reshape(-1, t.shape[-1]) for t in (terms, inside))
    total = np.zeros(rows.shape[1], rows.dtype)
    for row, keep in zip(rows, kept, strict=True):
        total = np.where(keep, total + row, total)
    return total
