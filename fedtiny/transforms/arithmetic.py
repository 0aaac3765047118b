"""What transforms are made of, in two forms that give the same bits: `arrays` and `plain`.

Vectors are of float32. Every result is computed in float64 and rounded once; sums are added up in
an order that both forms share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from fedtiny.tensors import has_numpy

if TYPE_CHECKING:
    from fedtiny.layout import Ranges
    from fedtiny.masks import Mask
    from fedtiny.rng import Purpose
    from fedtiny.tensors import Buffer

Vector = Any
"""float32 in a row: an array of NumPy, or of the module array."""
Positions = Any
"""Whole numbers, ascending: an array of NumPy, or a list."""
Words = Any
"""Words of the generator: an array of NumPy, or a list."""


class Place(Protocol):
    """Where in a run a visit stands: what its randomness comes from."""

    @property
    def run(self) -> int:
        """The seed of the run."""

    @property
    def round(self) -> int:
        """The round."""

    @property
    def device(self) -> int:
        """The index of the device."""


class Arithmetic(Protocol):
    """One of the two forms."""

    def vector(self, values: Buffer) -> Vector:
        """A view of the float32 values."""

    def difference(self, a: Buffer, b: Buffer) -> Vector:
        """``a - b``."""

    def added(self, a: Vector, b: Vector) -> Vector:
        """``a + b``."""

    def scaled(self, values: Vector, factor: float) -> Vector:
        """``factor * values``."""

    def noised(self, values: Vector, sigma: float, words: Words) -> Vector:
        """Each value with a normal number of this deviation; an even number of words."""

    def norm(self, values: Vector) -> float:
        """The Euclidean norm, added up as `fedtiny.fold` does it: in eight lanes and a tree."""

    def largest(self, values: Vector, count: int) -> Positions:
        """Where the largest magnitudes stand; of equal ones the first."""

    def covered(self, ranges: Ranges, mask: Mask | None) -> Positions:
        """The coordinates within the ranges that are live in the mask, if there is one."""

    def found(self, wanted: Positions, among: Positions) -> Positions:
        """Where the wanted ones stand among others, all of which are there."""

    def taken(self, values: Vector, at: Positions) -> Vector:
        """The values there."""

    def replaced(self, values: Vector, at: Positions, new: Vector) -> Vector:
        """A copy with other values there."""

    def uint32(self, numbers: Positions, at: Positions) -> bytes:
        """The numbers there, as uint32."""

    def words(self, place: Place, purpose: Purpose, count: int) -> Words:
        """The first words of a stream of the device."""

    def block_maxima(self, values: Vector, block: int) -> Sequence[float]:
        """The largest magnitude of each ``block`` values in a row."""

    def block_squares(self, values: Vector, block: int) -> Sequence[float]:
        """The sum of the squares of each block."""

    def block_magnitudes(self, values: Vector, block: int) -> Sequence[float]:
        """The sum of the magnitudes of each block."""

    def rounded(self, values: Vector, scales: Vector, block: int, most: int, words: Words) -> bytes:
        """``values / scale`` as int8, up or down at random, so that on average nothing changes."""

    def unrounded(self, q: bytes, scales: Vector, block: int) -> bytes:
        """``scale * q`` of int8."""

    def signs(self, values: Vector) -> bytes:
        """A bit a value, the first one the lowest: 1 unless it is negative."""

    def unsigned(self, q: bytes, scales: Vector, block: int, count: int) -> bytes:
        """The scale where the bit is 1, less the scale where it is 0."""


def arithmetic() -> Arithmetic:
    """That of NumPy, where it is installed."""
    if has_numpy():
        from fedtiny.transforms import arrays

        return arrays
    from fedtiny.transforms import plain

    return plain
