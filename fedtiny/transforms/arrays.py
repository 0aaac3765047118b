"""The arithmetic of transforms with NumPy; `arithmetic.Arithmetic` says what each is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fedtiny import draws
from fedtiny.layout import coordinates
from fedtiny.pruning import top
from fedtiny.tensors import raw

if TYPE_CHECKING:
    from fedtiny.layout import Ranges
    from fedtiny.masks import Mask
    from fedtiny.rng import Purpose
    from fedtiny.tensors import Buffer, Float32, Float64, Int8, Int64, UInt32
    from fedtiny.transforms.arithmetic import Place


def vector(values: Buffer) -> Float32:
    return np.frombuffer(raw(values), np.float32)


def difference(a: Buffer, b: Buffer) -> Float32:
    return vector(a) - vector(b)


def added(a: Float32, b: Float32) -> Float32:
    return a + b


def scaled(values: Float32, factor: float) -> Float32:
    return (np.float64(factor) * values.astype(np.float64)).astype(np.float32)


def noised(values: Float32, sigma: float, words: UInt32) -> Float32:
    noise = sigma * draws.normal(words).astype(np.float64)[: values.size]
    return (values.astype(np.float64) + noise).astype(np.float32)


def norm(values: Float32) -> float:
    lanes = np.zeros((values.size // 8 + 1, 8))
    lanes.flat[: values.size] = _squares(values)
    a, b, c, d, e, f, g, h = np.add.accumulate(lanes)[-1].tolist()
    return math.sqrt(((a + b) + (c + d)) + ((e + f) + (g + h)))


def largest(values: Float32, count: int) -> Int64:
    return np.flatnonzero(top(np.abs(values), count))


def covered(ranges: Ranges, mask: Mask | None) -> Int64:
    return coordinates(ranges) if mask is None else mask.coordinates(ranges)


def found(wanted: Int64, among: Int64) -> Int64:
    return np.searchsorted(among, wanted)


def taken(values: Float32, at: Int64) -> Float32:
    return values[at]


def replaced(values: Float32, at: Int64, new: Float32) -> Float32:
    changed = values.copy()
    changed[at] = new
    return changed


def uint32(numbers: Int64, at: Int64) -> bytes:
    return numbers[at].astype(np.uint32).tobytes()


def words(place: Place, purpose: Purpose, count: int) -> UInt32:
    (found,) = draws.words(place.run, place.round, np.array([place.device]), purpose, count)
    return np.asarray(found)


def block_maxima(values: Float32, block: int) -> list[float]:
    return list(_blocks(np.abs(values.astype(np.float64)), block).max(axis=1))


def block_squares(values: Float32, block: int) -> list[float]:
    return _block_sums(_squares(values), block)


def block_magnitudes(values: Float32, block: int) -> list[float]:
    return _block_sums(np.abs(values.astype(np.float64)), block)


def _squares(values: Float32) -> Float64:
    wide = values.astype(np.float64)
    return wide * wide


def _block_sums(numbers: Float64, block: int) -> list[float]:
    return list(np.add.accumulate(_blocks(numbers, block), axis=1)[:, -1])  # one after the other


def _blocks(numbers: Float64, block: int) -> Float64:
    """A row a block; 0 where the last one has ended."""
    rows = np.zeros((-(-numbers.size // block), block))
    rows.flat[: numbers.size] = numbers
    return rows


def rounded(values: Float32, scales: Float32, block: int, most: int, words: UInt32) -> bytes:
    each = _each(scales, block, values.size).astype(np.float64)
    exact = np.divide(values, each, out=np.zeros(values.size), where=each > 0)
    low = np.floor(exact)
    up = (words >> np.uint32(8)) * 2.0**-24 < exact - low
    steps: Int8 = np.clip(low + up, -most, most).astype(np.int8)
    return steps.tobytes()


def unrounded(q: bytes, scales: Float32, block: int) -> bytes:
    steps = np.frombuffer(raw(q), np.int8)
    with np.errstate(over="ignore"):
        values = np.multiply(_each(scales, block, steps.size), steps)
    return bytes(values)


def signs(values: Float32) -> bytes:
    return np.packbits(values >= 0, bitorder="little").tobytes()


def unsigned(q: bytes, scales: Float32, block: int, count: int) -> bytes:
    bits = np.unpackbits(np.frombuffer(raw(q), np.uint8), count=count, bitorder="little")
    each = _each(scales, block, count)
    return np.where(bits > 0, each, -each).tobytes()


def _each(scales: Float32, block: int, count: int) -> Float32:
    # Not np.repeat: a block may claim to be as long as four billion.
    return np.asarray(scales)[np.arange(count) // block]
