"""Convolutions and linear layers of which only the live weights are stored and used.

What a dead weight would add is left out, in the order of ascending coordinates. A linear layer is a
convolution over one pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedtiny.engine.ir import Window
from fedtiny.engine.kernels.conv import conv_gradient
from fedtiny.engine.kernels.sums import LANES, Array, lane_sum, tree8
from fedtiny.engine.kernels.window import as_image, as_kernel


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """A pruned parameter: its live values, and their flat positions in the dense one, ascending."""

    values: Array
    places: Array
    shape: tuple[int, ...]

    @property
    def kernel(self) -> Array:
        """[kh,kw,I,O] of the values, with zeros for the dead ones; a copy."""
        flat = np.zeros(int(np.prod(self.shape)), self.values.dtype)
        flat[self.places] = self.values
        return as_kernel(flat.reshape(self.shape))

    @property
    def mask(self) -> Array:
        """[kh,kw,I,O]: which are live."""
        flat = np.zeros(int(np.prod(self.shape)), bool)
        flat[self.places] = True
        return as_kernel(flat.reshape(self.shape))

    def image(self, x: Array) -> Array:
        """What the layer reads, as an image: of a linear layer a single pixel."""
        return x.reshape(len(x), 1, 1, -1) if len(self.shape) == 2 else as_image(x)


def _padded(x: Array, window: Window) -> Array:
    """A copy with +0 around it."""
    top, left, bottom, right = window.padding
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))


def _taps(padded: Array, y: Array, w: Live, window: Window) -> Iterator[tuple[Any, Array]]:
    """Each tap (ky, kx), and the view of what the outputs read by it."""
    (sh, sw), (oh, ow) = window.stride, y.shape[1:3]
    for ky, kx in np.ndindex(w.mask.shape[:2]):
        yield (ky, kx), padded[:, ky : ky + oh * sh : sh, kx : kx + ow * sw : sw]


def sparse_conv(x: Array, w: Live, b: Array | None, y: Array, window: Window) -> None:
    """y[p,o] = b[o] + x[q,i] * w[tap,i,o], over the live (tap, i); x is +0 outside the image."""
    out, kernel, mask = as_image(y), w.kernel, w.mask
    total = np.zeros(out.shape, y.dtype) if b is None else np.broadcast_to(b, out.shape).copy()
    for tap, read in _taps(_padded(w.image(x), window), out, w, window):
        for i in np.flatnonzero(mask[tap].any(axis=1)):
            live = mask[tap][i]
            total[..., live] += read[..., i, None] * kernel[tap][i, live]
    out[:] = total


def sparse_conv_dx(dy: Array, w: Live, dx: Array, window: Window) -> None:
    """dx[q,i] = w[tap,i,o] * dy[p,o], over the live (tap, o) by which a p reads q."""
    ds, out, kernel, mask = as_image(dy), w.image(dx), w.kernel, w.mask
    total = _padded(np.zeros(out.shape, dx.dtype), window)
    for tap, place in _taps(total, ds, w, window):
        for o in np.flatnonzero(mask[tap].any(axis=0)):
            live = mask[tap][:, o]
            place[..., live] += kernel[tap][live, o] * ds[..., o, None]
    top, left, _, _ = window.padding
    dx[:] = total[:, top:, left:][:, : out.shape[1], : out.shape[2]].reshape(dx.shape)


def sparse_conv_gradient(x: Array, dy: Array, w: Live, window: Window) -> Array:
    """Of the live weights: lane (sample mod 8) gathers x[q,i] * dy[p,o] over the positions of eight
    samples, then of the next eight; x is +0 outside the image."""
    ds, g = as_image(dy), np.zeros(w.mask.shape, dy.dtype)
    columns = _by_eights(ds)
    for tap, read in _taps(_padded(w.image(x), window), ds, w, window):
        lanes = np.zeros((LANES, *g.shape[2:]), dy.dtype)
        for row, column in zip(_by_eights(read), columns, strict=True):
            lanes += row[:, :, None] * column[:, None, :]
        g[tap] = tree8(np.moveaxis(lanes, 0, -1))
    return g.reshape(-1)[w.places]


def _by_eights(x: Array) -> Array:
    """[rows, 8, channels]: a row holds one position of eight samples; of missing samples zeros."""
    padded = np.concatenate([x, np.zeros((-len(x) % LANES, *x.shape[1:]), x.dtype)])
    groups = padded.reshape(-1, LANES, x.shape[1] * x.shape[2], x.shape[3])
    return groups.swapaxes(1, 2).reshape(-1, LANES, x.shape[3])


def dense_gradient(x: Array, dy: Array, w: Live, window: Window) -> Array:
    """Of all weights, in the order of a dense convolution: what a growth looks at."""
    dense = np.zeros(w.mask.shape, dy.dtype)
    return conv_gradient(w.image(x), as_image(dy), dense, window).reshape(-1)


def norm_of_live(gradient: Callable[..., Array]) -> Callable[..., Array]:
    """The squared norm of that gradient: live value i goes to lane i mod 8."""

    def squared(*operands: Any) -> Array:
        g = gradient(*operands)
        return lane_sum(g * g)

    return squared
