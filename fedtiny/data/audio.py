"""From sound to log-mel energies or MFCC: canonical float32, many frames at once.

`engine/runtime/ft_audio.c` is the other text of the same functions, one frame at a time, with the
same bits: each operation here is one ufunc, and every sum goes on in ascending order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedtiny import elementary
from fedtiny.errors import ExperimentError

if TYPE_CHECKING:
    from fedtiny.tensors import Float32, Int64

MOST_WINDOW, MOST_MELS = 8192, 256
_f = np.float32
_TWO_PI, _LEAST_ENERGY = _f(6.2831855), _f(1e-6)
_CHUNK = 1024  # frames at a time: the temporaries stay in the cache


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What is made of one frame of sound; ``ft_audio``.

    Attributes:
        rate_hz: Samples in a second.
        window: Samples of a frame.
        mels: Triangles, even on the mel scale.
        coefficients: Of the DCT; 0: the log-mel energies themselves.
        low_hz: Where the first triangle begins.
        high_hz: Where the last one ends.
    """

    rate_hz: int
    window: int
    mels: int
    coefficients: int
    low_hz: float
    high_hz: float

    def __post_init__(self) -> None:
        if not 2 <= self.window <= MOST_WINDOW or not 1 <= self.mels <= MOST_MELS:
            raise ExperimentError(
                f"a window of {self.window:,} samples and mels = {self.mels}: the window must be "
                f"2 to {MOST_WINDOW:,} samples, and mels 1 to {MOST_MELS}"
            )
        if not 0 <= self.coefficients <= self.mels:
            raise ExperimentError(
                f"coefficients = {self.coefficients} must be at most mels = {self.mels}"
            )
        if not 0.0 <= self.low_hz < self.high_hz <= self.rate_hz / 2:
            raise ExperimentError(
                f"low_hz = {self.low_hz:g} and high_hz = {self.high_hz:g} must ascend within 0 and "
                f"{self.rate_hz / 2:g}, half the sample rate"
            )
        _check_triangles(_tables(self).position, self)

    @property
    def transform(self) -> int:
        """Points of the Fourier transform: the next power of two."""
        return max(4, 1 << (self.window - 1).bit_length())

    @property
    def width(self) -> int:
        """Floats of one frame."""
        return self.coefficients or self.mels

    def frames(self, samples: Float32) -> Float32:
        """float32 [n, width] of n frames of ``window`` samples in [-1, 1]."""
        out = np.empty((len(samples), self.width), _f)
        for at in range(0, len(samples), _CHUNK):
            out[at : at + _CHUNK] = _frames(self, samples[at : at + _CHUNK]).T
        return out


class _Tables(NamedTuple):
    hann: Float32
    cosine: Float32
    sine: Float32
    position: Float32
    dct: Float32


def _angle(part: Int64, whole: int) -> Float32:
    return part.astype(_f) * (_TWO_PI / _f(whole))


def _logarithm(x: Float32 | np.float32) -> Float32:
    y: Float32 = elementary.log(x)
    return y


def _mel(hz: Float32 | np.float32) -> Float32:
    return _logarithm(_f(1.0) + hz / _f(700.0))


@lru_cache(maxsize=8)
def _tables(s: Spectrum) -> _Tables:
    bins = np.arange(s.transform // 2 + 1)
    angle = _angle(bins, s.transform)
    low, high = _mel(_f(s.low_hz)), _mel(_f(s.high_hz))
    spacing_hz = _f(s.rate_hz) / _f(s.transform)
    position = (_mel(bins.astype(_f) * spacing_hz) - low) / (high - low) * _f(s.mels + 1)
    coefficient, m = np.arange(s.coefficients)[:, None], np.arange(s.mels)
    scale = np.sqrt(np.where(coefficient > 0, _f(2.0), _f(1.0)) / _f(s.mels))
    turn = coefficient * (2 * m + 1) % (4 * s.mels)
    return _Tables(
        hann=_f(0.5) - _f(0.5) * elementary.cos(_angle(np.arange(s.window), s.window)),
        cosine=elementary.cos(angle),
        sine=elementary.sin(angle),
        position=position,
        dct=scale * elementary.cos(_angle(turn, 4 * s.mels)),
    )


def _check_triangles(position: Float32, s: Spectrum) -> None:
    """A triangle that holds no bin would say nothing, whatever is heard."""
    for m in range(s.mels):
        if not ((position > m) & (position < m + 2)).any():
            raise ExperimentError(
                f"mels = {s.mels}: triangle {m} holds no frequency of the {s.transform}-point "
                f"transform at {s.rate_hz:,} Hz; lower mels, raise low_hz, or lengthen the window"
            )


def _frames(s: Spectrum, samples: Float32) -> Float32:
    """[width, n]: frames stand last, so that every step is one ufunc over all of them."""
    tables = _tables(s)
    energy = np.zeros((s.mels, len(samples)), _f)
    powers = _powers(tables, *_transformed(tables, s.transform // 2, samples.T))
    for bin_power, at in zip(powers, tables.position.tolist(), strict=True):
        for m, weight in _triangles(at, s.mels):
            energy[m] += weight * bin_power
    energy = _logarithm(energy + _LEAST_ENERGY)
    if not s.coefficients:
        return energy
    out = np.zeros((s.coefficients, len(samples)), _f)
    for column, row in zip(tables.dct.T, energy, strict=True):
        out += column[:, None] * row
    return out


def _triangles(at: float, mels: int) -> Iterator[tuple[int, np.float32]]:
    """The one or two triangles that a bin at this position counts in, and its weights there."""
    if not 0.0 < at < mels + 1:
        return
    b = int(at)
    rise = _f(at) - _f(b)
    if b < mels:
        yield b, rise
    if b > 0:
        yield b - 1, _f(1.0) - rise


def _transformed(tables: _Tables, half: int, samples: Float32) -> tuple[Float32, Float32]:
    """The transform of even samples + i odd samples, each weighted: two arrays [half, n]."""
    padded = np.zeros((2 * half, samples.shape[1]), _f)
    np.multiply(samples, tables.hann[:, None], out=padded[: len(samples)])
    order = _bit_reversed(half)
    re, im = padded[0::2][order], padded[1::2][order]
    span = 1
    while span < half:
        c, s = (t[: half : half // span][:, None] for t in (tables.cosine, tables.sine))
        re0, re1 = re.reshape(-1, 2, span, re.shape[1]).swapaxes(0, 1)
        im0, im1 = im.reshape(-1, 2, span, im.shape[1]).swapaxes(0, 1)
        turned_re, turned_im = c * re1 + s * im1, c * im1 - s * re1
        np.subtract(re0, turned_re, out=re1)
        np.subtract(im0, turned_im, out=im1)
        re0 += turned_re
        im0 += turned_im
        span *= 2
    return re, im


def _bit_reversed(count: int) -> Int64:
    order = np.zeros(1, np.int64)
    while len(order) < count:
        order = np.concatenate([2 * order, 2 * order + 1])
    return order


def _powers(tables: _Tables, re: Float32, im: Float32) -> Float32:
    """The power of each bin of the real transform: [half + 1, n]."""
    k = np.arange(len(re) + 1)
    a, b = k % len(re), -k % len(re)
    c, s = tables.cosine[:, None], tables.sine[:, None]
    even_re, even_im = _f(0.5) * (re[a] + re[b]), _f(0.5) * (im[a] - im[b])
    odd_re, odd_im = _f(0.5) * (im[a] + im[b]), _f(0.5) * (re[b] - re[a])
    x, y = even_re + (c * odd_re + s * odd_im), even_im + (c * odd_im - s * odd_re)
    power: Float32 = x * x + y * y
    return power
