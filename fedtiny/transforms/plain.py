"""The arithmetic of transforms without NumPy; `arithmetic.Arithmetic` says what each is."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from fedtiny import rng
from fedtiny.tensors import float_view, raw

if TYPE_CHECKING:
    from fedtiny.layout import Ranges
    from fedtiny.masks import Mask
    from fedtiny.tensors import Buffer
    from fedtiny.transforms.arithmetic import Place

_Floats = Sequence[float]


def vector(values: Buffer) -> _Floats:
    return float_view(values)


def difference(a: Buffer, b: Buffer) -> _Floats:
    return array("f", [x - y for x, y in zip(vector(a), vector(b), strict=True)])


def added(a: _Floats, b: _Floats) -> _Floats:
    return array("f", [x + y for x, y in zip(a, b, strict=True)])


def scaled(values: _Floats, factor: float) -> _Floats:
    return array("f", [factor * x for x in values])


def noised(values: _Floats, sigma: float, words: Sequence[int]) -> _Floats:
    normal = rng.normal(words)
    return array("f", [x + sigma * z for x, z in zip(values, normal, strict=False)])


def norm(values: _Floats) -> float:
    lanes = [0.0] * 8
    for at, x in enumerate(values):
        lanes[at & 7] += x * x
    a, b, c, d, e, f, g, h = lanes
    return math.sqrt(((a + b) + (c + d)) + ((e + f) + (g + h)))


def largest(values: _Floats, count: int) -> list[int]:
    # The sort is stable: of equal ones the first comes first.
    return sorted(sorted(range(len(values)), key=lambda at: -abs(values[at]))[:count])


def covered(ranges: Ranges, mask: Mask | None) -> list[int]:
    if mask is not None:
        return list(mask.coordinates(ranges))
    return [at for pair in ranges for at in range(*pair)]


def found(wanted: Sequence[int], among: Sequence[int]) -> list[int]:
    return [bisect_left(among, at) for at in wanted]


def taken(values: _Floats, at: Sequence[int]) -> _Floats:
    return array("f", [values[place] for place in at])


def replaced(values: _Floats, at: Sequence[int], new: _Floats) -> _Floats:
    changed = array("f", values)
    for place, value in zip(at, new, strict=True):
        changed[place] = value
    return changed


def uint32(numbers: Sequence[int], at: Sequence[int]) -> bytes:
    return array("I", [numbers[place] for place in at]).tobytes()


def words(place: Place, purpose: rng.Purpose, count: int) -> list[int]:
    return rng.words(place.run, place.round, place.device, purpose, count)


def block_maxima(values: _Floats, block: int) -> list[float]:
    return [max(map(abs, part)) for part in _blocks(values, block)]


def block_squares(values: _Floats, block: int) -> list[float]:
    return _block_sums(values, block, lambda x: x * x)


def block_magnitudes(values: _Floats, block: int) -> list[float]:
    return _block_sums(values, block, abs)


def _block_sums(values: _Floats, block: int, of: Callable[[float], float]) -> list[float]:
    # Not sum(), which since Python 3.12 corrects what addition rounds off.
    return [[*accumulate(map(of, part))][-1] for part in _blocks(values, block)]


def _blocks(values: _Floats, block: int) -> Iterator[_Floats]:
    return (values[at : at + block] for at in range(0, len(values), block))


def rounded(values: _Floats, scales: _Floats, block: int, most: int, words: Sequence[int]) -> bytes:
    steps = array("b")
    for at, (x, word) in enumerate(zip(values, words, strict=True)):
        scale = scales[at // block]
        exact = x / scale if scale else 0.0
        low = math.floor(exact)
        up = (word >> 8) * 2.0**-24 < exact - low
        steps.append(max(-most, min(most, low + up)))
    return steps.tobytes()


def unrounded(q: bytes, scales: _Floats, block: int) -> bytes:
    steps = raw(q).cast("b")
    return array("f", [scales[at // block] * step for at, step in enumerate(steps)]).tobytes()


def signs(values: _Floats) -> bytes:
    bits = bytearray((len(values) + 7) // 8)
    for at, x in enumerate(values):
        bits[at >> 3] |= (x >= 0) << (at & 7)
    return bytes(bits)


def unsigned(q: bytes, scales: _Floats, block: int, count: int) -> bytes:
    signs = (1 if q[at >> 3] >> (at & 7) & 1 else -1 for at in range(count))
    return array("f", [scales[at // block] * sign for at, sign in enumerate(signs)]).tobytes()
