"""Columns of random numbers: `fedtiny.rng` for many devices at once, with the same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedtiny import elementary
from fedtiny.rng import Purpose

if TYPE_CHECKING:
    import numpy.typing as npt

    Float32 = npt.NDArray[np.float32]
    UInt32 = npt.NDArray[np.uint32]
    Integers = npt.NDArray[np.integer[Any]]

_u = np.uint32
_u64 = np.uint64
_M0, _M1 = _u64(0xD2511F53), _u64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_CHUNK = 1 << 14  # blocks at a time: the temporaries stay in the cache


def _philox(c0: UInt32, c1: UInt32, c2: UInt32, c3: UInt32, run: int) -> tuple[UInt32, ...]:
    key0, key1 = run & 0xFFFFFFFF, run >> 32
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0 = (p1 >> _u64(32)).astype(_u) ^ c1 ^ _u(key0)
        c2 = (p0 >> _u64(32)).astype(_u) ^ c3 ^ _u(key1)
        c1, c3 = p1.astype(_u), p0.astype(_u)
        key0, key1 = (key0 + _W0) & 0xFFFFFFFF, (key1 + _W1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def _blocks(run: int, round: int, device: UInt32, purpose: int, index: UInt32) -> UInt32:
    """uint32 [len(device), 4]: block ``index[i]`` of ``device[i]``."""
    out = np.empty((len(device), 4), _u)
    for at in range(0, len(device), _CHUNK):
        part = slice(at, at + _CHUNK)
        shape = len(out[part])
        columns = np.full(shape, round, _u), np.full(shape, purpose, _u)
        for k, column in enumerate(_philox(index[part], device[part], *columns, run)):
            out[part, k] = column
    return out


def words(run: int, round: int, device: Integers, purpose: int, count: int) -> UInt32:
    """The first ``count`` words of each device's stream: uint32 [len(device), count]."""
    blocks = (count + 3) // 4
    devices = np.repeat(np.asarray(device, _u), blocks)
    index = np.tile(np.arange(blocks, dtype=_u), len(device))
    drawn = _blocks(run, round, devices, purpose, index)
    return drawn.reshape(len(device), 4 * blocks)[:, :count]


def uniform(words: UInt32, low: float = 0.0, high: float = 1.0) -> Float32:
    """Uniform float32 in [low, high), one for each word."""
    span = np.float32(high) - np.float32(low)
    return np.float32(low) + span * ((words >> _u(8)).astype(np.float32) * np.float32(2.0**-24))


def above_zero(words: UInt32) -> Float32:
    """Uniform float32 in (0, 1], one for each word."""
    return ((words >> _u(8)) + _u(1)).astype(np.float32) * np.float32(2.0**-24)


def normal(words: UInt32) -> Float32:
    """Standard normal float32, one for each word; the last axis is even (Box and Muller)."""
    first, second = words[..., 0::2], words[..., 1::2]
    radius = np.sqrt(np.float32(-2.0) * elementary.log(above_zero(first)))
    angle = np.float32(6.2831855) * uniform(second)
    out = np.empty(words.shape, np.float32)
    out[..., 0::2] = radius * elementary.cos(angle)
    out[..., 1::2] = radius * elementary.sin(angle)
    return out


def below(words: UInt32, n: int | Integers) -> UInt32:
    """An integer in [0, n) for each word; n may be an array."""
    return (words * np.asarray(n, _u64) >> _u64(32)).astype(_u)


def epoch_keys(run: int, round: int, device: Integers, epoch: int) -> UInt32:
    """The keys of `shuffle` for one epoch of each device's visit: uint32 [len(device), 4]."""
    devices = np.asarray(device, _u)
    return _blocks(run, round, devices, Purpose.SHUFFLE, np.full(len(devices), epoch, _u))


def _mix(x: UInt32) -> UInt32:
    x = (x ^ (x >> _u(16))) * _u(0x85EBCA6B)
    x = (x ^ (x >> _u(13))) * _u(0xC2B2AE35)
    return x ^ (x >> _u(16))


def shuffle(at: Integers, n: Integers | int, key: UInt32) -> UInt32:
    """`rng.shuffle` of each position; ``at``, ``n`` and ``key[..., 4]`` are broadcast."""
    shape = np.broadcast_shapes(np.shape(at), np.shape(n), key.shape[:-1])
    half = np.ceil(np.log2(np.maximum(n, 1).astype(np.float64)) / 2).astype(_u)
    out, size, half = (np.array(np.broadcast_to(np.asarray(a, _u), shape)).ravel()
                       for a in (at, n, half))  # fmt: skip
    keys = np.broadcast_to(key, (*shape, 4)).reshape(-1, 4).T
    walking = np.arange(out.size)
    while walking.size:
        h, value = half[walking], out[walking]
        mask = (_u(1) << h) - _u(1)
        left, right = value >> h, value & mask
        for k in range(4):
            left, right = right, left ^ (_mix(right ^ keys[k][walking]) & mask)
        out[walking] = value = (left << h) | right
        walking = walking[value >= size[walking]]
    return out.reshape(shape)


def lowest(run: int, round: int, device: Integers, count: int) -> npt.NDArray[np.uint32]:
    """The ``count`` devices with the smallest SELECT words, ascending by (word, index)."""
    devices = np.asarray(device, _u)
    drawn = words(run, round, devices, Purpose.SELECT, 1)[:, 0]
    rank = (drawn.astype(_u64) << _u64(32)) | devices
    if count < len(rank):
        rank = np.partition(rank, count)[:count]
    return np.sort(rank).astype(_u)
