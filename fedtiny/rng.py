"""The one source of randomness, in plain Python; `engine/runtime/ft_rng.h` is its twin in C.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11).
A stream of 32-bit words is named by (run, round, device, purpose), and any word of it can be had
without the ones before it: word w is word w mod 4 of block w / 4, whose counter is
(block, device, round, purpose) under the 64-bit key ``run``. `fedtiny.draws` gives whole columns.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from enum import IntEnum

Words4 = tuple[int, int, int, int]

_LOW = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


class Purpose(IntEnum):
    """What a stream is for; the numbers are those of ``ft_purpose`` in C."""

    INIT = 1
    SELECT = 2
    SHUFFLE = 3
    TASK = 4
    SUPPORT = 5
    QUERY = 6
    SPLIT = 7
    AVAILABILITY = 8
    DROPOUT = 9
    CONTACT = 10
    PROFILE = 11
    BACKOFF = 12
    EPISODE = 13
    MASK = 14
    ROUNDING = 15
    NOISE = 16
    SUBSET = 17
    ATTACK = 18
    WEIGHT = 19
    STREAM = 20


def philox(counter: Words4, key: tuple[int, int]) -> Words4:
    """The block of four words at this counter."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1 = p1 >> 32 ^ c1 ^ k0, p1 & _LOW
        c2, c3 = p0 >> 32 ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


def block(run: int, round: int, device: int, purpose: int, index: int) -> Words4:
    """Words 4 index .. 4 index + 3 of a stream."""
    return philox((index, device, round, purpose), (run & _LOW, run >> 32))


def words(run: int, round: int, device: int, purpose: int, count: int) -> list[int]:
    """The first ``count`` words of a stream."""
    blocks = (block(run, round, device, purpose, i) for i in range((count + 3) // 4))
    return [word for four in blocks for word in four][:count]


def rounding_purpose(step: int) -> int:
    """What the words are for by which the int8 weights of one step of a visit are rounded."""
    return (Purpose.WEIGHT + (step << 8)) & _LOW


def _float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def uniform(word: int, low: float = 0.0, high: float = 1.0) -> float:
    """low + (high - low) * u in float32 arithmetic, where u in [0, 1) is a multiple of 2^-24."""
    low, high = _float32(low), _float32(high)
    return _float32(low + _float32(_float32(high - low) * ((word >> 8) * 2.0**-24)))


def below(word: int, n: int) -> int:
    """An integer in [0, n)."""
    return word * n >> 32


def normal(words: Sequence[int]) -> list[float]:
    """`draws.normal`: standard normal float32, one for each of an even number of words."""
    drawn: list[float] = []
    for first, second in zip(words[::2], words[1::2], strict=True):
        radius = _float32(math.sqrt(_float32(-2.0 * _log((first >> 8) + 1))))
        angle = _float32(_float32(6.2831855) * uniform(second))
        drawn += (_float32(radius * _sine(angle, quarter)) for quarter in (1, 0))
    return drawn


def _log(numerator: int) -> float:
    """`elementary.log` of a multiple of 2^-24 in (0, 1], step by step."""
    bits = _bits(numerator * 2.0**-24) + (0x3F800000 - 0x3F3504F3)
    e = (bits >> 23) - 127.0
    z = _float32(_of_bits((bits & 0x7FFFFF) + 0x3F3504F3) - 1.0)
    p = _polynomial(
        *(z, 7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1),
        *(1.4249322787e-1, -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
    )
    zz = _float32(z * z)
    y = _float32(_times(p, z, zz) + _times(e, -2.12194440e-4))
    y = _float32(y - _float32(zz * 0.5))
    return _float32(_float32(z + y) + _times(e, 0.693359375))


def _sine(x: float, quarter: int) -> float:
    """`elementary.sin` of x + quarter * pi / 2, x in [0, 2 pi], step by step."""
    shifted = _float32(_times(x, 0.636619772) + 12582912.0)
    j, turn = _float32(shifted - 12582912.0), _bits(shifted) + quarter
    r = x
    for part in (1.5703125, 4.83751297e-4, 7.54978995e-8):
        r = _float32(r - _times(j, part))
    z = _float32(r * r)
    if turn & 1:
        c = _polynomial(z, 2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
        c = _float32(_times(c, _float32(z * z)) - _float32(z * 0.5))
        y = _float32(c + 1.0)
    else:
        s = _polynomial(z, -1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
        y = _float32(_times(s, z, r) + r)
    return -y if turn & 2 else y


def _polynomial(x: float, *coefficients: float) -> float:
    """Horner's rule, the highest power first."""
    p = 0.0
    for coefficient in coefficients:
        p = _float32(_float32(p * x) + _float32(coefficient))
    return p


def _times(first: float, *others: float) -> float:
    """The product in float32, from left to right."""
    product = first
    for other in others:
        product = _float32(product * _float32(other))
    return product


def _bits(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def _of_bits(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def epoch_key(run: int, round: int, device: int, epoch: int) -> Words4:
    """The key of `shuffle` for one epoch of a visit."""
    return block(run, round, device, Purpose.SHUFFLE, epoch)


def _mix(x: int) -> int:
    """Finalizer of MurmurHash3: every bit of the result depends on every bit of x."""
    x = (x ^ x >> 16) * 0x85EBCA6B & _LOW
    x = (x ^ x >> 13) * 0xC2B2AE35 & _LOW
    return x ^ x >> 16


def shuffle(at: int, n: int, key: Words4) -> int:
    """Position ``at`` of a permutation of [0, n), at < n, without a table.

    Four Feistel rounds over the smallest power of 4 that holds n, walked along its cycle until the
    result is below n.
    """
    half = ((n - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = at >> half, at & mask
        for word in key:
            left, right = right, left ^ _mix(right ^ word) & mask
        at = left << half | right
        if at < n:
            return at
