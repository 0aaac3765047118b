"""Whole numbers in as few bytes as they need: seven bits a byte, the low ones first.

With NumPy and without, the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from fedtiny.errors import WireError
from fedtiny.tensors import has_numpy, raw

if TYPE_CHECKING:
    from fedtiny.tensors import Buffer, Int64

MOST_BYTES = 5
"""Of one number: numbers up to 2^35 can be read, whatever the message says."""


def write(numbers: Sequence[int] | Int64) -> bytes:
    """The numbers, none of them negative, one behind the other."""
    return _write_fast(numbers) if has_numpy() else b"".join(map(_bytes, numbers))


def _bytes(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _write_fast(numbers: Sequence[int] | Int64) -> bytes:
    import numpy as np

    left = np.asarray(numbers, np.int64)
    width = _widths(left)
    at = np.cumsum(width) - width
    out = np.empty(int(width.sum()), np.uint8)
    while left.size:
        more = left > 0x7F
        out[at] = (left & 0x7F) | (more << 7)
        left, at = left[more] >> 7, at[more] + 1
    return out.tobytes()


def nbytes(numbers: Sequence[int] | Int64) -> int:
    """The length of `write`."""
    if not has_numpy():
        return sum(max(1, (number.bit_length() + 6) // 7) for number in numbers)
    import numpy as np

    return int(_widths(np.asarray(numbers, np.int64)).sum())


def _widths(numbers: Int64) -> Int64:
    width = (numbers >= 0).astype(numbers.dtype)
    for bits in range(7, 7 * MOST_BYTES, 7):
        width += numbers >= 1 << bits
    return width


def read(data: Buffer) -> list[int] | Int64:
    """The inverse of `write`: a NumPy array, or a list where NumPy is absent.

    Raises WireError for what `write` would not have written.
    """
    return _read_fast(data) if has_numpy() else list(_numbers(raw(data)))


def _numbers(data: Iterable[int]) -> Iterator[int]:
    number, shift = 0, 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte & 0x80:
            _require(shift < 7 * MOST_BYTES)
            continue
        _require(byte > 0 or shift == 7)
        yield number
        number, shift = 0, 0
    _require(shift == 0)


def _read_fast(data: Buffer) -> Int64:
    import numpy as np

    found = np.frombuffer(raw(data), np.uint8)
    ends = np.flatnonzero(found < 0x80)
    _require((ends[-1] + 1 if ends.size else 0) == found.size)
    starts = np.roll(ends + 1, 1)
    starts[:1] = 0
    width = ends - starts + 1
    _require(bool((width <= MOST_BYTES).all() and ((width == 1) | (found[ends] > 0)).all()))
    numbers = np.zeros(ends.size, np.int64)
    for place in range(int(width.max(initial=0))):
        has = width > place
        numbers[has] |= (found[starts[has] + place].astype(np.int64) & 0x7F) << 7 * place
    return numbers


def _require(holds: bool) -> None:
    if not holds:
        raise WireError("varint", "a number is cut off, too long, or not in its shortest form")
