"""Masks: which coordinates of a pruned model are live. The same bits with NumPy and without.

A mask travels as a blob, in the shortest of three forms. The numbers are `fedtiny.varints`::

    0  size  bits                         a bit a coordinate, the first in the lowest bit
    1  size  runs                         how many are dead, how many live, how many dead, ...
    2  size  seed (8 B)  parameter, k ... drawn by `Mask.draw`; parameters by their place
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import chain
from typing import TYPE_CHECKING

from fedtiny import rng, varints
from fedtiny.errors import DataError, WireError
from fedtiny.tensors import has_numpy

if TYPE_CHECKING:
    from fedtiny.layout import Layout, Parameter, Ranges
    from fedtiny.tensors import Bools, Int64

BITMAP, RUNS, SEED = range(3)
_SEED_BYTES = 8


@dataclass(frozen=True, slots=True)
class Drawn:
    """How a mask was drawn: the seed, and (place of the parameter, live coordinates) pairs."""

    seed: int
    counts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Mask:
    """Which of ``size`` coordinates of the averaged vector are live.

    Coordinate i is bit i % 8 of byte i // 8 of ``bits``; bits that stand for nothing are 0.
    """

    size: int
    bits: bytes = field(repr=False)
    drawn: Drawn | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.bits) != _bytes_of(self.size) or (
            self.size % 8 and self.bits[-1] >> self.size % 8
        ):
            raise DataError(
                f"{len(self.bits):,} B are not the bits of {self.size:,} coordinates; give "
                f"{_bytes_of(self.size):,} B whose last bits are 0"
            )

    @classmethod
    def of(cls, live: Bools) -> Mask:
        """The mask of a NumPy array with one bool a coordinate."""
        import numpy as np

        return cls(live.size, np.packbits(live, bitorder="little").tobytes())

    @classmethod
    def keeping(cls, layout: Layout, places: Mapping[str, Sequence[int] | Int64]) -> Mask:
        """Live at these flat positions of the named parameters, and everywhere in the others."""
        parameters = [(layout[name], at) for name, at in places.items()]
        return cls(layout.size, (_kept_fast if has_numpy() else _kept)(layout.size, parameters))

    @classmethod
    def draw(cls, layout: Layout, counts: Mapping[str, int], seed: int) -> Mask:
        """So many coordinates of each named parameter, drawn; all coordinates of the others.

        Those of a parameter are the first positions of the `rng.shuffle` whose key is the block 0
        of the stream (seed, 0, place of the parameter in the layout, MASK).
        """
        ordinals = {p.name: at for at, p in enumerate(layout.parameters)}
        places = {
            name: drawn_places(
                rng.block(seed, 0, ordinals[name], rng.Purpose.MASK, 0), layout[name].size, count
            )
            for name, count in counts.items()
        }
        pairs = sorted((ordinals[name], count) for name, count in counts.items())
        return cls(layout.size, cls.keeping(layout, places).bits, Drawn(seed, tuple(pairs)))

    @classmethod
    def read(cls, blob: bytes, layout: Layout) -> Mask:
        """The inverse of `blob`; raises WireError for what is no mask of this layout.

        What it allocates follows from the layout, never from the blob.
        """
        head = bytes([blob[0]]) + varints.write([layout.size]) if blob else b""
        if not blob or not blob.startswith(head) or blob[0] not in _READERS:
            raise WireError("mask", f"the blob is no mask of {layout.size:,} coordinates")
        return _READERS[blob[0]](blob[len(head) :], layout)

    # ---- which are live

    @cached_property
    def count(self) -> int:
        """How many coordinates are live."""
        return int.from_bytes(self.bits, "little").bit_count()

    @cached_property
    def bools(self) -> Bools:
        """One bool a coordinate."""
        import numpy as np

        found = np.frombuffer(self.bits, np.uint8)
        return np.unpackbits(found, count=self.size, bitorder="little").view(np.bool_)

    def counts(self, layout: Layout) -> tuple[int, ...]:
        """The live coordinates of each parameter, in the order of the layout."""
        return tuple(self.length(((p.offset, p.offset + p.size),)) for p in layout.parameters)

    def length(self, ranges: Ranges) -> int:
        """How many coordinates within the ranges are live."""
        return sum(_count(self.bits, start, stop) for start, stop in ranges)

    def coordinates(self, ranges: Ranges) -> Int64:
        """The live coordinates within the ranges, ascending; a list where NumPy is absent."""
        if ranges not in self._found:
            self._found.clear()
            self._found[ranges] = self._coordinates(ranges)
        return self._found[ranges]

    @cached_property
    def _found(self) -> dict[Ranges, Int64]:
        """The last answer of `coordinates`: many updates of a round have the same ranges."""
        return {}

    def _coordinates(self, ranges: Ranges) -> Int64:
        if not has_numpy():
            return [i for pair in ranges for i in _live(self.bits, *pair)]  # type: ignore[return-value]
        import numpy as np

        live = [start + np.flatnonzero(self.bools[start:stop]) for start, stop in ranges]
        return np.concatenate([np.arange(0), *live])

    def moved(self, dead: Iterable[int], live: Iterable[int]) -> Mask:
        """This mask, after some coordinates have died and others have come to life."""
        bits = bytearray(self.bits)
        for i in dead:
            bits[i >> 3] &= ~(1 << (i & 7))
        for i in live:
            bits[i >> 3] |= 1 << (i & 7)
        return Mask(self.size, bytes(bits))

    # ---- as bytes

    @cached_property
    def blob(self) -> bytes:
        """The mask in the shortest of its forms; of two that are as short, the first."""
        bodies = {BITMAP: self.bits, RUNS: self._runs, SEED: self._seed}
        known = {form: body for form, body in bodies.items() if body is not None}
        form = min(known, key=lambda form: len(known[form]))
        return bytes([form]) + varints.write([self.size]) + known[form]

    @property
    def _runs(self) -> bytes | None:
        """None where there are more runs than the bitmap has bytes."""
        whole = int.from_bytes(self.bits, "little")
        if (whole ^ whole >> 1).bit_count() > len(self.bits):
            return None
        return varints.write((_run_lengths_fast if has_numpy() else _run_lengths)(self))

    @property
    def _seed(self) -> bytes | None:
        if self.drawn is None:
            return None
        pairs = [number for pair in self.drawn.counts for number in pair]
        return self.drawn.seed.to_bytes(_SEED_BYTES, "little") + varints.write(pairs)


@lru_cache(maxsize=16)
def remembered(blob: bytes, layout: Layout) -> Mask:
    """`Mask.read`, once for every round in which the mask stays."""
    return Mask.read(blob, layout)


def _bytes_of(size: int) -> int:
    return (size + 7) // 8


# ---- bits ------------------------------------------------------------------------------------


def _count(bits: bytes, start: int, stop: int) -> int:
    """Live coordinates in [start, stop)."""
    first = start >> 3
    within = int.from_bytes(bits[first : _bytes_of(stop)], "little") >> (start & 7)
    return (within & ((1 << stop - start) - 1)).bit_count()


def _live(bits: bytes, start: int, stop: int) -> Iterator[int]:
    """The live coordinates in [start, stop)."""
    for at in range(start >> 3, _bytes_of(stop)):
        byte = bits[at]
        while byte:
            i = 8 * at + (byte & -byte).bit_length() - 1
            byte &= byte - 1
            if start <= i < stop:
                yield i


def _fill(bits: bytearray, start: int, stop: int, live: bool) -> None:
    """Make all of [start, stop) live or dead: whole bytes at once, and the edges by the bit."""
    first, last = _bytes_of(start), stop >> 3
    edges: Iterable[int] = range(start, stop)
    if first < last:
        bits[first:last] = (b"\xff" if live else b"\x00") * (last - first)
        edges = chain(range(start, 8 * first), range(8 * last, stop))
    for i in edges:
        bits[i >> 3] = bits[i >> 3] & ~(1 << (i & 7)) | live << (i & 7)


_Kept = Sequence[tuple["Parameter", "Sequence[int] | Int64"]]


def _kept(size: int, parameters: _Kept) -> bytes:
    bits = bytearray(_bytes_of(size))
    _fill(bits, 0, size, True)
    for parameter, places in parameters:
        _fill(bits, parameter.offset, parameter.offset + parameter.size, False)
        for place in places:
            bits[parameter.offset + place >> 3] |= 1 << (parameter.offset + place & 7)
    return bytes(bits)


def _kept_fast(size: int, parameters: _Kept) -> bytes:
    import numpy as np

    live = np.ones(size, bool)
    for parameter, places in parameters:
        own = live[parameter.offset : parameter.offset + parameter.size]
        own[:] = False
        own[np.asarray(places, np.int64)] = True
    return np.packbits(live, bitorder="little").tobytes()


def drawn_places(key: rng.Words4, size: int, count: int) -> Sequence[int] | Int64:
    """So many of ``size`` places: the first positions of `rng.shuffle`, in no order."""
    if not has_numpy():
        return [rng.shuffle(at, size, key) for at in range(count)]
    import numpy as np

    from fedtiny import draws

    return draws.shuffle(np.arange(count), size, np.array(key, np.uint32)).astype(np.int64)


# ---- runs ------------------------------------------------------------------------------------


def _run_lengths(mask: Mask) -> list[int]:
    """Of dead and live coordinates in turn; the first one, of dead ones, may be empty."""
    # A 1 above the last coordinate keeps the zeros there; the first coordinate comes first.
    text = bin(int.from_bytes(mask.bits, "little") | 1 << mask.size)[:2:-1]
    return [0] * text.startswith("1") + [len(run) for run in re.findall("0+|1+", text)]


def _run_lengths_fast(mask: Mask) -> Int64:
    import numpy as np

    live = mask.bools
    edges = np.flatnonzero(live[1:] != live[:-1]) + 1
    first = [0, 0] if live[0] else [0]
    return np.diff(np.concatenate([first, edges, [mask.size]]))


def _filled(size: int, runs: Sequence[int] | Int64) -> bytes:
    bits, at = bytearray(_bytes_of(size)), 0
    for index, run in enumerate(runs):
        _require((run > 0 or not index) and at + run <= size, _NOT_RUNS)
        if index % 2:
            _fill(bits, at, at + run, True)
        at += run
    _require(at == size, _NOT_RUNS)
    return bytes(bits)


def _filled_fast(size: int, runs: Sequence[int] | Int64) -> bytes:
    import numpy as np

    lengths = np.asarray(runs)
    _require(bool(lengths[1:].all() and lengths.sum() == size), _NOT_RUNS)
    live = np.repeat(np.arange(lengths.size) % 2 == 1, lengths)
    return np.packbits(live, bitorder="little").tobytes()


# ---- reading ---------------------------------------------------------------------------------

_NOT_RUNS = "has runs that are empty, or do not add up to its coordinates"


def _require(holds: bool, flaw: str) -> None:
    if not holds:
        raise WireError("mask", f"the mask {flaw}")


def _read_bitmap(body: bytes, layout: Layout) -> Mask:
    size = layout.size
    _require(len(body) == _bytes_of(size), f"has {len(body):,} B for {size:,} coordinates")
    _require(not size % 8 or not body[-1] >> size % 8, "has bits behind its last coordinate")
    return Mask(size, body)


def _read_runs(body: bytes, layout: Layout) -> Mask:
    _require(len(body) <= _bytes_of(layout.size), "is longer than one bit a coordinate")
    runs = varints.read(body)
    return Mask(layout.size, (_filled_fast if has_numpy() else _filled)(layout.size, runs))


def _read_seed(body: bytes, layout: Layout) -> Mask:
    parameters, seed = layout.parameters, body[:_SEED_BYTES]
    most = _SEED_BYTES + 2 * varints.MOST_BYTES * len(parameters)
    _require(_SEED_BYTES <= len(body) <= most, "has a seed of no such layout")
    numbers = [int(number) for number in varints.read(body[_SEED_BYTES:])]
    ordinals, counts = numbers[::2], numbers[1::2]
    _require(len(ordinals) == len(counts), "has a parameter without a count")
    _require(ordinals == sorted(set(ordinals)), "has parameters out of order")
    _require(all(at < len(parameters) for at in ordinals), "has a parameter too many")
    drawn = {parameters[at].name: count for at, count in zip(ordinals, counts, strict=True)}
    _require(all(k <= layout[name].size for name, k in drawn.items()), "has too many live")
    return Mask.draw(layout, drawn, int.from_bytes(seed, "little"))


_READERS: Mapping[int, Callable[[bytes, Layout], Mask]] = {
    BITMAP: _read_bitmap,
    RUNS: _read_runs,
    SEED: _read_seed,
}
