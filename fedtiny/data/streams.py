"""Streams that drift: which samples a device meets one after the other, and what they become.

From ``begins`` on the new domain comes in: all at once where that is also where the drift ``ends``,
else with a probability that rises in a straight line from sample to sample until then. In the new
domain the inputs are changed, or the labels have another mix, or both.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from fedtiny import draws
from fedtiny.data.domains import Change, Room
from fedtiny.errors import DataError
from fedtiny.rng import Purpose

if TYPE_CHECKING:
    from fedtiny.data.tables import Samples
    from fedtiny.tensors import Bools, Float32, Float64, Int32, Int64, UInt32


class _Deciding(IntEnum):
    """What a stream of `Purpose.STREAM` decides; it stands where other streams have the round."""

    ORDER = 0
    TURN = 1
    NOISE = 2
    JUDGED_NOISE = 3


@dataclass(frozen=True, eq=False)
class Drawn:
    """One device's stream, and what it is judged on in either domain.

    ``weight`` is what each judged sample counts for in the new domain; they add up to 1.
    """

    stream: Samples
    is_new: Bools
    first: Samples
    new: Samples
    weight: Float64


@dataclass(frozen=True, slots=True)
class Stream:
    """How a stream is made of a device's samples.

    Attributes:
        samples: How many it has.
        begins: Samples before the first that may be of the new domain.
        ends: From this one on all are.
        change: What becomes of the inputs in the new domain.
        mix: One weight a class, of the new domain; empty: as the device's own samples are mixed.
        repeats: Whether samples come again once all of them, or all of a class, have come.
    """

    samples: int
    begins: int
    ends: int
    change: Change | None = None
    mix: tuple[float, ...] = ()
    repeats: bool = False

    def drawn(self, run: int, device: int, given: Samples, judged: Samples) -> Drawn:
        """The stream made of the samples ``given``. Raises DataError where they do not do."""
        (x, y), (judged_x, judged_y) = given, judged
        rows, is_new = self.rows(run, device, y)
        room = _Rooms(run, device, x.min(), x.max())
        met = x[rows]
        met[is_new] = self._changed(met, room.of(_Deciding.NOISE, met))[is_new]
        changed = self._changed(judged_x, room.of(_Deciding.JUDGED_NOISE, judged_x))
        weight = self._weights(device, judged_y)
        return Drawn((met, y[rows]), is_new, judged, (changed, judged_y), weight)

    def rows(self, run: int, device: int, y: Float32 | Int32) -> tuple[Int64, Bools]:
        """Which of the device's samples come, and which of these are of the new domain.

        Raises DataError where there are too few.
        """
        label = y.astype(np.int64) if self.mix else np.zeros(len(y), np.int64)
        order = np.argsort(_words(run, device, _Deciding.ORDER, len(y)), kind="stable")
        turn = _words(run, device, _Deciding.TURN, 2 * self.samples).reshape(2, -1)
        is_new = draws.uniform(turn[0]) < self._shares()
        wanted = label[order[np.arange(self.samples) % len(y)]]
        if self.mix:
            wanted = np.where(is_new, _classes(self.mix, turn[1]), wanted)
        self._check_supply(device, label, wanted)
        return _taken(order, label, wanted), is_new

    def _shares(self) -> Float64:
        """Of the new domain, sample by sample."""
        past = np.arange(self.samples) - self.begins + 1.0
        shares: Float64 = np.clip(past / (self.ends - self.begins + 1), 0.0, 1.0)
        return shares

    def _changed(self, x: Float32, room: Room) -> Float32:
        return self.change.apply(x, room) if self.change else x

    def _weights(self, device: int, y: Float32 | Int32) -> Float64:
        if not self.mix:
            return np.full(len(y), 1.0 / len(y))
        weight = np.asarray(self.mix)[y.astype(np.int64)] / np.bincount(y.astype(np.int64))[y]
        if not weight.any():
            raise DataError(
                f"device {device} is judged on no sample of a class that its stream drifts to; "
                "give it more, or another mix"
            )
        weights: Float64 = weight / weight.sum()
        return weights

    def _check_supply(self, device: int, label: Int64, wanted: Int64) -> None:
        classes = max(label.max(), wanted.max()) + 1
        has, needs = (np.bincount(each, minlength=classes) for each in (label, wanted))
        short = np.flatnonzero((needs > has) & ((has == 0) | (not self.repeats)))
        for c in short[:1]:
            of_class = f" of class {c}" if self.mix else ""
            remedy = "give it more" if self.repeats else "lower samples, or set repeats = true"
            different = "" if self.repeats else ", all different,"
            raise DataError(
                f"a stream of {self.samples:,} samples{different} takes {needs[c]:,}{of_class}; "
                f"device {device} has {has[c]:,}: {remedy}"
            )


@dataclass(frozen=True, slots=True)
class _Rooms:
    """What changes of one device's inputs may look at."""

    run: int
    device: int
    low: np.float32
    high: np.float32

    def of(self, noise: _Deciding, x: Float32) -> Room:
        return Room(self.low, self.high, lambda: self._normal(noise, x.size).reshape(x.shape))

    def _normal(self, noise: _Deciding, count: int) -> Float32:
        return draws.normal(_words(self.run, self.device, noise, count + count % 2))[:count]


def _words(run: int, device: int, deciding: _Deciding, count: int) -> UInt32:
    words: UInt32 = draws.words(run, deciding, np.array([device]), Purpose.STREAM, count)[0]
    return words


def _classes(mix: tuple[float, ...], words: UInt32) -> Int64:
    """A class for each word."""
    upper = np.cumsum(np.asarray(mix) / sum(mix))
    drawn = np.searchsorted(upper, draws.uniform(words).astype(np.float64), "right")
    classes: Int64 = np.minimum(drawn, np.flatnonzero(mix)[-1])
    return classes


def _taken(order: Int64, label: Int64, wanted: Int64) -> Int64:
    """The rows of the wanted classes: of each class one after the other, and around again."""
    size = np.bincount(label, minlength=int(wanted.max()) + 1)
    by_class = order[np.argsort(label[order], kind="stable")]
    first = np.cumsum(size) - size
    rows: Int64 = by_class[first[wanted] + _turns(wanted) % size[wanted]]
    return rows


def _turns(wanted: Int64) -> Int64:
    """How often each class was wanted before."""
    count = np.bincount(wanted)
    turns = np.empty(len(wanted), np.int64)
    up = np.arange(len(wanted)) - np.repeat(np.cumsum(count) - count, count)
    turns[np.argsort(wanted, kind="stable")] = up
    return turns
