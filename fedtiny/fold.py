"""The exact fold: weighted deltas summed in int64 fixed point, the same bits in any order.

A term is ``rint(weight * (v - base) * 2^shift)``, each operation in float64, rounded to nearest
even: the arithmetic of ``ft_fold`` in the C runtime. Adding int64 is associative and commutative,
so the total of a cohort does not depend on who came first, nor on who added up which part of it.

**Why nothing can overflow.** Every admitted update has ``weight <= weight_cap`` and
``|v - base| <= bound``, and rounding is monotone, so ``|weight * (v - base)| <= M`` where M is the
float64 product ``weight_cap * bound``. Let ``limit = min(2^51 - 1, (2^62 - 1) // cohort)``, an
integer. ``shift`` is the largest integer with ``M * 2^shift <= limit``. Multiplying by a power of
two is exact and ``limit`` is an integer, so a term is at most ``limit < 2^51`` in magnitude, and at
most ``cohort`` of them sum to at most ``cohort * limit < 2^62``. A Total refuses update number
``cohort + 1``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from fedtiny.errors import UpdateError
from fedtiny.layout import Ranges, coordinates
from fedtiny.tensors import FLOAT_BYTES, raw
from fedtiny.values import Update

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedtiny.layout import Coverage
    from fedtiny.masks import Mask
    from fedtiny.tensors import Bools, Float32, Float64, Int64

_MOST_SLICES = 64
"""With more than so many, the places one by one are faster."""
TERM_LIMIT = 2**51 - 1
SUM_LIMIT = 2**62 - 1
WEIGHT_BITS = 20
"""Weights count in units of 2^-20: the denominators are integers too, and exact."""
WEIGHT_TOTAL_LIMIT = 2**42
"""``cohort * weight_cap`` stays below this, so that a denominator fits in int64."""
DEFAULT_BOUND = 1024.0
"""The largest change of a coordinate when the experiment names no ``update_clip``."""


_PIECE_BYTES = 1 << 18
"""Of the deltas that are looked at together: with their terms they stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class FoldRule:
    """The fixed point of one round, and what an update must keep to be folded.

    ``norm_bound`` limits the Euclidean norm of a delta; 0 means that only ``bound``, the limit of
    each coordinate, counts.
    """

    cohort: int
    weight_cap: float
    bound: float
    norm_bound: float
    shift: int

    @classmethod
    def for_round(
        cls,
        cohort: int,
        weight_cap: float,
        norm_bound: float = 0.0,
        default_bound: float = DEFAULT_BOUND,
    ) -> FoldRule:
        """The finest fixed point in which ``cohort`` updates cannot overflow.

        ``default_bound`` limits each coordinate where there is no ``norm_bound``.
        """
        bound = float(norm_bound) or default_bound
        if cohort < 1 or not 2.0**-WEIGHT_BITS <= weight_cap < WEIGHT_TOTAL_LIMIT / cohort:
            raise UpdateError(
                f"a cohort of {cohort:,} with weights up to {weight_cap:,} cannot be folded; "
                f"cohort * weight must stay below 2^42 and a weight reach 2^-{WEIGHT_BITS}"
            )
        if not 2.0**-100 <= bound <= 2.0**100:
            raise UpdateError(f"a norm bound of {norm_bound} is outside 2^-100 ... 2^100")
        limit = min(TERM_LIMIT, SUM_LIMIT // cohort)
        mantissa, exponent = math.frexp(weight_cap * bound)
        bits = limit.bit_length()
        fits = math.ldexp(mantissa, bits) <= limit
        return cls(cohort, weight_cap, bound, norm_bound, bits - exponent - (not fits))

    @property
    def scale(self) -> float:
        """``2^shift``."""
        return math.ldexp(1.0, self.shift)

    def weights(self, weights: npt.ArrayLike) -> Float64:
        """The weights as multiples of 2^-20, which is what they count for in the mean.

        Raises UpdateError when one of them rounds to 0, exceeds the cap, or is not a number.
        """
        asked = np.asarray(weights, np.float64)
        exact = np.rint(asked * 2.0**WEIGHT_BITS) * 2.0**-WEIGHT_BITS
        wrong = ~((exact > 0) & (asked <= self.weight_cap))
        if wrong.any():
            weight = asked[wrong].flat[0]
            less = "let weight() return less, or raise weight_cap"
            remedy = less if weight > self.weight_cap else "let weight() return a positive number"
            raise UpdateError(
                f"the weight {weight} is outside 2^-{WEIGHT_BITS} ... {self.weight_cap:,}; {remedy}"
            )
        return np.minimum(exact, self.weight_cap)

    def terms(self, delta: Float64, weight: float | Float64) -> Int64:
        """What one update adds to the sums, or a row each; ``weight`` is of `weights`."""
        return np.rint(weight * delta * self.scale).astype(np.int64)

    def admits(self, deltas: Float64) -> Bools:
        """Which rows `check` would let pass."""
        # Of a row that is not finite they are no number, or infinite.
        highest, lowest = deltas.max(axis=1, initial=0.0), deltas.min(axis=1, initial=0.0)
        good = np.asarray((highest <= self.bound) & (-lowest <= self.bound))
        if self.norm_bound:
            good[good] = _norms(deltas[good]) <= self.norm_bound
        return good

    def check(self, delta: Float64) -> None:
        """Raises UpdateError when the delta is not finite or moves further than it may."""
        not_finite = delta.size - np.count_nonzero(np.isfinite(delta))
        if not_finite:
            raise UpdateError(
                f"{not_finite:,} of {delta.size:,} values are not finite; lower the learning rate "
                "or clip the gradient"
            )
        moved = float(np.abs(delta).max(initial=0.0))
        if moved > self.bound:
            raise UpdateError(
                f"a coordinate moved by {moved:g}, the bound is {self.bound:g}; lower the learning "
                "rate, or set update_clip"
            )
        if self.norm_bound and (norm := float(_norms(delta[None])[0])) > self.norm_bound:
            raise UpdateError(
                f"the update has norm {norm:g}, update_clip is {self.norm_bound:g}; lower the "
                "learning rate, or raise update_clip"
            )


def weight_units(weights: npt.ArrayLike) -> int:
    """The sum of `FoldRule.weights`, counted in units of 2^-20."""
    return int(np.rint(np.asarray(weights, np.float64) * 2.0**WEIGHT_BITS).sum(dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Total:
    """What a round has folded so far. A value: `add` and `merge` return new ones.

    ``weights`` says how much weight (units of 2^-20) trained which coordinates: those that a
    device did not train leave the denominator of the mean.
    """

    rule: FoldRule
    sums: Int64
    weights: Mapping[Coverage, int]
    count: int

    @classmethod
    def zero(cls, size: int, rule: FoldRule) -> Total:
        """Nothing folded yet, of a vector of ``size`` floats."""
        return cls(rule, np.zeros(size, np.int64), {}, 0)

    @classmethod
    def from_sums(
        cls,
        rule: FoldRule,
        sums: Int64,
        ranges: Ranges,
        weights: npt.ArrayLike,
        mask: Mask | None = None,
    ) -> Total:
        """What C has folded: the sums of updates that trained the same, one weight each."""
        count = int(np.size(weights))
        _check_count(count, rule)
        return cls(rule, sums, {(ranges, mask): weight_units(weights)} if count else {}, count)

    def add(self, update: Update, base: Float32 | None, weight: float) -> Total:
        """This total and one more update.

        ``base`` is the model that the device started from; None says that the update is a
        gradient, which is folded as it is. Raises UpdateError, and then nothing has changed.
        """
        _check_count(self.count + 1, self.rule)
        weight = float(self.rule.weights(weight))
        at, delta = self._move(update, base)
        self.rule.check(delta)
        sums = self.sums.copy()
        sums[at] += self.rule.terms(delta, weight)
        weights = _added(self.weights, {update.coverage: weight_units(weight)})
        return Total(self.rule, sums, weights, self.count + 1)

    def add_all(
        self, updates: Sequence[Update], base: Float32 | None, weights: Float64
    ) -> tuple[Total, Bools]:
        """This total and those updates that `add` would take, bit for bit; and which they are.

        All of them trained the same, and have values for it.
        """
        _check_count(self.count + len(updates), self.rule)
        _check_coverage(updates[0].coverage, self.sums.size)
        at, width = _index(updates[0].coverage)
        start = np.zeros(width) if base is None else base[at].astype(np.float64)
        weights, sums, parts = self.rule.weights(weights), self.sums.copy(), []
        step = min(len(updates), max(1, _PIECE_BYTES // (start.nbytes or 1)))
        deltas, terms = np.empty((step, width)), np.empty((step, width), np.int64)
        for first in range(0, len(updates), step):
            piece = slice(first, first + step)
            rows = _rows(updates[piece], width)
            moved = np.subtract(rows, start, out=deltas[: len(rows)])
            good = self._admits(moved, at)
            admitted = moved if good.all() else moved[good]
            sums[at] += self._summed(admitted, weights[piece][good], terms)
            parts.append(good)
        taken = np.concatenate(parts)
        if not taken.any():
            return self, taken
        added = _added(self.weights, {updates[0].coverage: weight_units(weights[taken])})
        return Total(self.rule, sums, added, self.count + int(taken.sum())), taken

    def _admits(self, deltas: Float64, at: slice | Int64) -> Bools:
        """A norm is added up over the whole vector: its lanes go by the coordinate."""
        if self.rule.norm_bound and deltas.shape[1] < self.sums.size:
            whole = np.zeros((len(deltas), self.sums.size))
            whole[:, at] = deltas
            return self.rule.admits(whole)
        return self.rule.admits(deltas)

    def _summed(self, deltas: Float64, weights: Float64, terms: Int64) -> Int64:
        """The sum of `FoldRule.terms` of rows, which are lost; ``terms`` is room for them."""
        deltas *= (weights * self.rule.scale)[:, None]  # a power of two: the same bits
        found = np.rint(deltas, out=terms[: len(deltas)], casting="unsafe")
        return np.asarray(found.sum(axis=0))

    def _move(self, update: Update, base: Float32 | None) -> tuple[slice | Int64, Float64]:
        """What to add, and where: the part that was sent, if it is one.

        A norm is added up over the whole vector: its lanes go by the coordinate.
        """
        moves = _moves(update, base, self.sums.size)
        if len(moves) == 1 and not self.rule.norm_bound:
            return moves[0]
        return slice(None), _scattered(moves, self.sums.size)

    def merge(self, other: Total) -> Total:
        """The total of both; any order and any partition give the same bits."""
        self._check_like(other)
        _check_count(self.count + other.count, self.rule)
        weights = _added(self.weights, other.weights)
        return Total(self.rule, self.sums + other.sums, weights, self.count + other.count)

    def without(self, other: Total) -> Total:
        """This total as if the updates of ``other``, which are in it, had never been added: the
        same bits. Raises UpdateError if they cannot be."""
        self._check_like(other)
        weights = Counter(self.weights)
        weights.subtract(other.weights)
        if other.count > self.count or any(weight < 0 for weight in weights.values()):
            raise UpdateError(
                f"a total of {self.count:,} updates cannot lose {other.count:,} that are not in it"
            )
        return Total(self.rule, self.sums - other.sums, dict(+weights), self.count - other.count)

    def _check_like(self, other: Total) -> None:
        if self.rule != other.rule or self.sums.size != other.sums.size:
            raise UpdateError(
                f"a total of {self.sums.size:,} coordinates under {self.rule} cannot take one of "
                f"{other.sums.size:,} under {other.rule}; merge totals of one round only"
            )

    def weighted_sums(self) -> Float64:
        """The sum of ``weight * (v - base)`` of each coordinate."""
        return np.asarray(self.sums * math.ldexp(1.0, -self.rule.shift))

    def mean(self) -> Float64:
        """The weighted mean delta of each coordinate over those who trained it; 0 if nobody did."""
        units = np.zeros(self.sums.size, np.int64)
        for coverage, weight in self.weights.items():
            for part, _ in _parts(coverage):
                units[part] += weight
        mean = np.zeros(self.sums.size)
        np.divide(self.sums, units, out=mean, where=units > 0)
        mean *= math.ldexp(1.0, WEIGHT_BITS - self.rule.shift)
        return mean

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Total) and (
            (self.rule, self.weights, self.count) == (other.rule, other.weights, other.count)
            and np.array_equal(self.sums, other.sums)
        )

    __hash__ = None  # type: ignore[assignment]


def covered(coverage: Coverage) -> Int64:
    """The coordinates that a device trained, ascending."""
    ranges, mask = coverage
    return coordinates(ranges) if mask is None else mask.coordinates(ranges)


def delta_of(update: Update, base: Float32 | None, size: int) -> Float64:
    """``v - base`` in float64, a vector of ``size``: 0 where the device did not train.

    Raises UpdateError when what it trained and its values do not fit such a vector.
    """
    return _scattered(_moves(update, base, size), size)


def _moves(update: Update, base: Float32 | None, size: int) -> list[tuple[slice | Int64, Float64]]:
    """How to index what the update has values for, and by how much it moved."""
    _check_coverage(update.coverage, size)
    parts = _parts(update.coverage) if update.places is None else _places(update)
    expected = FLOAT_BYTES * sum(count for _, count in parts)
    if update.nbytes != expected:
        raise UpdateError(
            f"the update has {update.nbytes:,} bytes of values, its coordinates need {expected:,}"
        )
    values, at, moves = np.frombuffer(raw(update.values), np.float32), 0, []
    for part, count in parts:
        delta = values[at : at + count].astype(np.float64)
        if base is not None:
            delta -= base[part]
        moves.append((part, delta))
        at += count
    return moves


def _scattered(moves: Iterable[tuple[slice | Int64, Float64]], size: int) -> Float64:
    delta = np.zeros(size)
    for part, moved in moves:
        delta[part] = moved
    return delta


def _parts(coverage: Coverage) -> list[tuple[slice | Int64, int]]:
    """How to index what a device trained, and how much that is: by a few slices, or one by one."""
    ranges, mask = coverage
    if mask is None and len(ranges) <= _MOST_SLICES:
        return [(slice(start, stop), stop - start) for start, stop in ranges]
    places = covered(coverage)
    return [(places, places.size)]


def _index(coverage: Coverage) -> tuple[slice | Int64, int]:
    """The same in one."""
    parts = _parts(coverage)
    return parts[0] if len(parts) == 1 else (covered(coverage), sum(n for _, n in parts))


def _rows(updates: Sequence[Update], width: int) -> Float32:
    """Their values, a row each."""
    views = [raw(update.values) for update in updates]
    wrong = next((view.nbytes for view in views if view.nbytes != FLOAT_BYTES * width), None)
    if wrong is not None:
        raise UpdateError(
            f"the update has {wrong:,} bytes of values, its coordinates need "
            f"{FLOAT_BYTES * width:,}"
        )
    return np.frombuffer(b"".join(views), np.float32).reshape(len(views), width)


def _places(update: Update) -> list[tuple[slice | Int64, int]]:
    """How to index what a device sent of all that it trained."""
    found = raw(update.places or b"")
    if found.nbytes % np.dtype(np.uint32).itemsize:
        raise UpdateError(f"{found.nbytes:,} bytes of places are no whole number of uint32")
    places = np.frombuffer(found, np.uint32).astype(np.int64)
    if not _within(places, update.coverage).all() or (np.diff(places) <= 0).any():
        raise UpdateError(
            f"the {places.size:,} places are not ascending, each once, among the coordinates that "
            "the update covers"
        )
    return [(places, places.size)]


def _within(places: Int64, coverage: Coverage) -> Bools:
    """Which of the places a device trained."""
    ranges, mask = coverage
    inside: Bools = np.searchsorted(np.array(ranges).ravel(), places, side="right") % 2 == 1
    if mask is not None:
        inside[inside] = mask.bools[places[inside]]
    return inside


def _norms(deltas: Float64) -> Float64:
    """Of each row, added up as the C runtime does, in eight lanes and a tree: both refuse the same
    updates."""
    count, width = deltas.shape
    rows = width // 8 + 1
    squares = np.zeros((count, 8 * rows))
    np.multiply(deltas, deltas, out=squares[:, :width])
    lanes = np.add.accumulate(squares.reshape(count, rows, 8), axis=1)[:, -1]
    a, b, c, d, e, f, g, h = lanes.T
    return np.asarray(np.sqrt(((a + b) + (c + d)) + ((e + f) + (g + h))))


def _check_coverage(coverage: Coverage, size: int) -> None:
    ranges, mask = coverage
    edges = [-1, *(edge for pair in ranges for edge in pair), size + 1]
    ascending = all(a < b for a, b in pairwise(edges))
    if not ranges or not ascending:
        raise UpdateError(f"the ranges {ranges} are not ascending, apart and within 0 ... {size:,}")
    if mask is not None and mask.size != size:
        raise UpdateError(f"a mask of {mask.size:,} coordinates for a vector of {size:,}")


def _check_count(count: int, rule: FoldRule) -> None:
    if count > rule.cohort:
        raise UpdateError(
            f"{count:,} updates in a fold that was made for {rule.cohort:,}; more could overflow"
        )


def _added(a: Mapping[Coverage, int], b: Mapping[Coverage, int]) -> Mapping[Coverage, int]:
    return dict(Counter(a) + Counter(b))
