"""Few-shot and label-skew tasks on scikit-learn's handwritten digits.

The last ``held_out`` of the ``devices`` never train; what they are judged on, training never saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedtiny import draws, elementary
from fedtiny.data.tables import RowTable, Tabled, even_starts
from fedtiny.errors import DataError, ExperimentError
from fedtiny.rng import Purpose

if TYPE_CHECKING:
    from fedtiny.tensors import Bools, Float32, Int32, Int64, UInt32

DIGIT_CLASSES, DIGIT_PIXELS = 10, 64
_ORDER_WORDS = 12  # those that order the classes, in whole blocks of four


class _Digits(NamedTuple):
    """1,797 images of 8 x 8 pixels in [0, 1] and their classes."""

    x: Float32
    label: Int32
    counts: Int64


@cache
def _digits() -> _Digits:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the digits come with scikit-learn, which is not installed; "
            "pip install 'fedtiny[simulate]'"
        ) from error
    x, label = load_digits(return_X_y=True)
    pixels = np.ascontiguousarray(x / 16.0, np.float32)
    pixels.flags.writeable = False
    return _Digits(pixels, label.astype(np.int32), np.bincount(label))


@lru_cache(maxsize=8)
def _digits_by_class(run: int) -> UInt32:
    """The rows of each class in turn, in an order of this run's own."""
    label = _digits().label
    word = draws.words(run, 1, np.arange(len(label)), Purpose.SPLIT, 1)[:, 0]
    return np.lexsort((word, label)).astype(np.uint32)


def _ordered(words: UInt32, allowed: Bools) -> Int64:
    """For each line of words the columns in a drawn order, those allowed first."""
    last = (~allowed).astype(np.uint64) << np.uint64(32)
    order: Int64 = np.argsort(words + last, axis=1, kind="stable")
    return order


class _Pool(NamedTuple):
    """The samples that one kind of device draws from: ``size[c]`` from ``start[c]`` on."""

    start: Int64
    size: Int64
    classes: Bools


@dataclass(frozen=True, slots=True)
class FewShotDigits(Tabled):
    """Few-shot classification: in each round each device meets a new episode.

    An episode is ``ways`` classes in a private order (which numbers its labels), with ``shots``
    support and ``queries`` query samples of each, all different. The classes come from the
    device's own ``pool`` of classes. If there are held-out devices, they draw from the share
    ``held_out_samples`` of each class, which training devices never see, and with
    ``held_out_classes`` from that many classes that training devices never see either.
    """

    devices: int
    held_out: int = 0
    ways: int = 5
    shots: int = 5
    queries: int = 10
    pool: int = DIGIT_CLASSES
    held_out_samples: float = 0.25
    held_out_classes: int = 0

    features = DIGIT_PIXELS

    @property
    def outputs(self) -> int:
        """One logit a way."""
        return self.ways

    @property
    def classes(self) -> int:
        """Labels are positions in the episode."""
        return self.ways

    def __post_init__(self) -> None:
        if not 0.0 < self.held_out_samples < 1.0:
            raise ExperimentError(
                f"held_out_samples = {self.held_out_samples} must lie between 0 and 1"
            )
        least = min(self.ways, self.shots, self.queries, self.pool - self.ways + 1)
        if least < 1 or not 0 <= self.held_out_classes < DIGIT_CLASSES:
            raise ExperimentError(
                f"ways = {self.ways}, shots = {self.shots}, queries = {self.queries}, "
                f"pool = {self.pool}, held_out_classes = {self.held_out_classes}: each must be 1 "
                f"or more (held_out_classes 0 to {DIGIT_CLASSES - 1}), and ways at most pool"
            )
        for name, pool in zip(("training", "held-out"), self._pools(0), strict=True):
            if name == "training" or self.held_out:
                self._check_pool(name, int(pool.classes.sum()), int(pool.size[pool.classes].min()))

    def _check_pool(self, name: str, classes: int, samples: int) -> None:
        if self.ways > classes:
            raise ExperimentError(
                f"{self.ways} ways of {classes} classes for {name} devices; lower ways"
                + (" or held_out_classes" if self.held_out_classes else "")
            )
        if self.shots + self.queries > samples:
            raise DataError(
                f"{self.shots} shots and {self.queries} queries need "
                f"{self.shots + self.queries} samples of a class; {name} devices have {samples}: "
                "lower shots or queries, or change held_out_samples"
            )

    def _pools(self, run: int) -> tuple[_Pool, _Pool]:
        """Of training devices, and of held-out ones; sizes do not depend on the run."""
        counts = _digits().counts
        start = np.cumsum(counts) - counts
        share = self.held_out_samples if self.held_out else 0.0
        kept = (counts * (1.0 - share)).astype(np.int64)
        held = np.zeros(DIGIT_CLASSES, bool)
        order = np.argsort(draws.words(run, 2, np.arange(DIGIT_CLASSES), Purpose.SPLIT, 1)[:, 0])
        held[order[: self.held_out_classes]] = True
        return (
            _Pool(start, kept, ~held),
            _Pool(start + kept, counts - kept, held if held.any() else ~held),
        )

    def counts(self, run: int, devices: Sequence[int] | Int64) -> Int64:
        """Support and query samples of each device: [devices, 2]."""
        of_one = np.array([self.ways * self.shots, self.ways * self.queries])
        return np.tile(of_one, (len(devices), 1))

    def table(self, run: int, round: int, devices: Sequence[int] | Int64) -> RowTable:
        """The episodes of a cohort; samples take turns by class, as in a stream."""
        device = np.asarray(devices)
        pools = self._pools(run)
        kind = (device >= self.devices - self.held_out).astype(np.int64)
        of_device = draws.words(run, 0, device, Purpose.TASK, DIGIT_CLASSES)
        allowed = np.stack([pool.classes for pool in pools])[kind]
        own = np.zeros_like(allowed)
        np.put_along_axis(own, _ordered(of_device, allowed)[:, : self.pool], True, axis=1)
        words = draws.words(run, round, device, Purpose.EPISODE, _ORDER_WORDS + 4 * self.ways)
        chosen = _ordered(words[:, :DIGIT_CLASSES], own & allowed)[:, : self.ways]
        keys = words[:, _ORDER_WORDS:].reshape(len(device), 1, self.ways, 4)
        line = kind[:, None], chosen
        start = np.stack([pool.start for pool in pools])[line][:, None]
        size = np.stack([pool.size for pool in pools])[line][:, None]
        draw = np.arange(self.shots + self.queries)[None, :, None]
        rows = _digits_by_class(run)[start + draws.shuffle(draw, size, keys)]
        labels = np.broadcast_to(np.arange(self.ways, dtype=np.int32), rows.shape)
        starts = even_starts(len(device), self.ways * self.shots, self.ways * self.queries)
        return RowTable(_digits().x, None, labels.ravel(), rows.ravel(), starts)

    native = table


class _Partition(NamedTuple):
    """Which rows each device owns: ``rows[starts[2d] : starts[2d + 1]]`` are d's support."""

    rows: UInt32
    starts: Int64


@dataclass(frozen=True, slots=True)
class LabelSkewDigits(Tabled):
    """All digits dealt out once; each class goes to the devices in shares from a Dirichlet.

    The smaller the ``concentration``, the fewer classes a device sees (Hsu et al. 2019, Yurochkin
    et al. 2019). A device keeps its samples for the whole run, the ``query_share`` of them as its
    query; one with nothing at all is possible. ``held_out`` devices own their samples likewise.
    """

    devices: int
    held_out: int = 0
    concentration: float = 0.5
    query_share: float = 0.25

    features = DIGIT_PIXELS
    outputs = DIGIT_CLASSES
    classes = DIGIT_CLASSES

    def __post_init__(self) -> None:
        if self.devices < 1 or not 0.01 <= self.concentration <= 1e4:
            raise ExperimentError(
                f"devices = {self.devices} must be 1 or more, and "
                f"concentration = {self.concentration} in [0.01, 10000]"
            )
        if not 0.0 <= self.query_share < 1.0:
            raise ExperimentError(f"query_share = {self.query_share} must be in [0, 1)")

    def counts(self, run: int, devices: Sequence[int] | Int64) -> Int64:
        """Support and query samples of each device: [devices, 2]."""
        dealt = np.diff(_partition(self, run).starts).reshape(-1, 2)
        counts: Int64 = dealt[np.asarray(devices)]
        return counts

    def table(self, run: int, round: int, devices: Sequence[int] | Int64) -> RowTable:
        """The samples of a cohort; the same in every round."""
        dealt, device = _partition(self, run), np.asarray(devices)
        counts = self.counts(run, device).ravel()
        starts = np.cumsum([0, *counts])
        first = dealt.starts[:-1].reshape(-1, 2)[device].ravel()
        rows = dealt.rows[np.arange(starts[-1]) + np.repeat(first - starts[:-1], counts)]
        x, label, _ = _digits()
        return RowTable(x, None, label[rows], rows, starts.astype(np.uint32))

    native = table


@lru_cache(maxsize=8)
def _partition(task: LabelSkewDigits, run: int) -> _Partition:
    """Deals out every class, then cuts each device's samples into support and query."""
    digits, rows = _digits(), _digits_by_class(run)
    share = _gamma(task.concentration, run, task.devices).astype(np.float64)
    cuts = np.cumsum(share, axis=0)
    cuts = np.floor(cuts / cuts[-1] * digits.counts).astype(np.int64)
    cuts[-1] = digits.counts
    dealt = np.diff(cuts, axis=0, prepend=0)
    owner = np.concatenate(
        [np.repeat(np.arange(task.devices), dealt[:, c]) for c in range(DIGIT_CLASSES)]
    )
    word = draws.words(run, 1, rows, Purpose.SPLIT, 2)[:, 1]
    order = np.lexsort((word, owner))
    total = dealt.sum(axis=1)
    query = np.floor(total * task.query_share).astype(np.int64)
    starts = np.cumsum([0, *np.stack([total - query, query], axis=1).ravel()])
    return _Partition(rows[order], starts)


_TRIES = 8


def _gamma(shape: float, run: int, devices: int) -> Float32:
    """Gamma variates [devices, classes] (Marsaglia and Tsang 2000, with their step for shapes < 1).

    Canonical float32 arithmetic, so every host deals alike. A try fails once in twenty times at
    most; after 8 failures the mode is taken.
    """
    words = draws.words(run, 0, np.arange(devices), Purpose.SPLIT, DIGIT_CLASSES * _TRIES * 4)
    four = words.reshape(devices, DIGIT_CLASSES, _TRIES, 4)
    x = draws.normal(four[..., :2])[..., 0]
    log_u = elementary.log(draws.above_zero(four[..., 2]))
    d = np.float32(shape + 1.0 - 1.0 / 3.0)
    root = np.float32(1.0) + x / np.sqrt(np.float32(9.0) * d)
    v = root * root * root
    limit = (
        np.float32(0.5) * x * x + d - d * v + d * elementary.log(np.maximum(v, np.float32(1e-30)))
    )
    accepted = (v > 0) & (log_u < limit)
    first = np.argmax(accepted, axis=2)[..., None]
    tried = np.take_along_axis(np.where(accepted, v, np.float32(1.0)), first, axis=2)[..., 0]
    boost = elementary.log(draws.above_zero(four[:, :, 0, 3])) / np.float32(shape)
    variates: Float32 = np.maximum(d * tried * elementary.exp(boost), np.float32(1e-30))
    return variates
