"""Laws that deal out a labelled data set once, so that each device owns its samples.

Held-out devices get the test samples; where the data set has none, everything is dealt to all.
A device keeps its samples for the whole run, ``query_share`` of them as its query; one with
nothing at all is possible. ``public`` training samples, drawn, are nobody's: they are the
coordinator's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedtiny import draws, elementary
from fedtiny.data.labelled import NO_CLIENT, TEST, TRAINING, Dealing, Labelled
from fedtiny.data.pools import KINDS, check_share
from fedtiny.data.tables import RowTable, Tabled
from fedtiny.errors import DataError, ExperimentError
from fedtiny.rng import Purpose

if TYPE_CHECKING:
    from fedtiny.data.tables import Samples
    from fedtiny.tensors import Float32, Int64, UInt32

NOBODY = -1
_SUPPORT, _QUERY, _NEITHER = range(3)


@dataclass(frozen=True, slots=True)
class Partition(Tabled, ABC):
    """What the laws share: a law says whose each row is."""

    data: Labelled
    devices: int
    held_out: int = 0
    query_share: float = 0.25
    public: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.held_out <= self.devices or self.devices < 1:
            raise ExperimentError(
                f"devices = {self.devices} must be 1 or more, "
                f"and held_out = {self.held_out} at most as many"
            )
        check_share("query_share", self.query_share)
        training = int(self.data.counts(TRAINING).sum())
        if not 0 <= self.public < training:
            raise ExperimentError(
                f"public = {self.public} must be 0 or more, and fewer than the {training:,} "
                "training samples, of which the devices need some"
            )
        self._check()

    @property
    def features(self) -> int:
        """Floats of one sample."""
        return self.data.features

    @property
    def outputs(self) -> int:
        """One logit a class."""
        return self.data.classes

    @property
    def classes(self) -> int:
        """Those of the data set."""
        return self.data.classes

    def _check(self) -> None:
        """Raises for arguments of the law that are impossible."""

    @abstractmethod
    def _owners(self, run: int, rows: UInt32, devices: Int64) -> Int64:
        """The device of each row, or NOBODY; the rows come class by class."""

    def _arranged(self, run: int, rows: UInt32, owner: Int64) -> tuple[Int64, Int64]:
        """The part of each row, and its turn in the part: drawn."""
        word = draws.words(run, Dealing.ROWS, rows, Purpose.SPLIT, 2)[:, 1]
        position = _ranked(owner, word)
        return self._cut(position, owner), position

    def _cut(self, position: Int64, owner: Int64) -> Int64:
        """Part of each row: a device's last ``query_share`` of the positions are its query."""
        total = np.bincount(owner, minlength=self.devices)
        query = np.floor(total * self.query_share).astype(np.int64)
        return np.where(position < (total - query)[owner], _SUPPORT, _QUERY)

    def public_samples(self, run: int) -> Samples:
        """The samples that no device owns."""
        rows = self._public_rows(run)
        return self.data.x[rows], self.data.label[rows]

    def _public_rows(self, run: int) -> Int64:
        rows = np.flatnonzero(self.data.split == TRAINING)
        word = draws.words(run, Dealing.PUBLIC, rows, Purpose.SPLIT, 1)[:, 0]
        return rows[np.argsort(word, kind="stable")[: self.public]]

    def _owned(self, run: int) -> UInt32:
        """The rows that are dealt out, class by class."""
        rows = self.data.rows_by_class(run)
        if not self.public:
            return rows
        return rows[np.isin(rows, self._public_rows(run), invert=True)]

    def _shares(self) -> Iterator[tuple[int, Int64]]:
        """Each part of the data set that is dealt out, and the devices that it is dealt to."""
        device = np.arange(self.devices)
        trained = self.devices - (self.held_out if self.data.has_test else 0)
        yield TRAINING, device[:trained]
        if trained < self.devices:
            yield TEST, device[trained:]

    def counts(self, run: int, devices: Sequence[int] | Int64) -> Int64:
        """Support and query samples of each device: [devices, 2]."""
        dealt = np.diff(_dealt(self, run).starts).reshape(-1, 2)
        counts: Int64 = dealt[np.asarray(devices)]
        return counts

    def table(self, run: int, round: int, devices: Sequence[int] | Int64) -> RowTable:
        """The samples of a cohort; the same in every round."""
        dealt, device = _dealt(self, run), np.asarray(devices)
        counts = self.counts(run, device).ravel()
        starts = np.cumsum([0, *counts])
        first = dealt.starts[:-1].reshape(-1, 2)[device].ravel()
        rows = dealt.rows[np.arange(starts[-1]) + np.repeat(first - starts[:-1], counts)]
        return RowTable(self.data.x, None, self.data.label[rows], rows, starts.astype(np.uint32))

    native = table


class _Dealt(NamedTuple):
    """Which rows each device owns: ``rows[starts[2d] : starts[2d + 1]]`` are d's support."""

    rows: UInt32
    starts: Int64


@lru_cache(maxsize=8)
def _dealt(task: Partition, run: int) -> _Dealt:
    """Deals out every row, then cuts each device's samples into support and query."""
    by_class = task._owned(run)
    split = task.data.split[by_class]
    dealt = [(by_class[split == part], devices) for part, devices in task._shares()]
    owner = np.concatenate([task._owners(run, *share) for share in dealt])
    rows = np.concatenate([share for share, _ in dealt])[owner != NOBODY]
    owner = owner[owner != NOBODY]
    part, turn = task._arranged(run, rows, owner)
    kept = np.flatnonzero(part != _NEITHER)
    part, turn, owner = part[kept], turn[kept], owner[kept]
    counts = np.bincount(2 * owner + part, minlength=2 * task.devices)
    order = np.lexsort((turn, part, owner))
    return _Dealt(rows[kept][order], np.cumsum([0, *counts]))


def _ranked(group: Int64, *keys: Int64 | UInt32 | Float32) -> Int64:
    """The position of each row in its group, sorted by the keys (the last one first)."""
    order = np.lexsort((*keys, group))
    counts = np.bincount(group)
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank


def _spread(rank: Int64) -> UInt32:
    """Keys that order 0, 1, 2 ... such that the first few lie evenly among all of them.

    Multiples of the golden ratio modulo 1, in 32 bits: no gap is more than three times another.
    """
    return rank.astype(np.uint32) * np.uint32(0x9E3779B9)


def _cuts(share: Float32, counts: Int64 | int) -> Int64:
    """``counts`` things in these shares, down the first axis: how many each one gets."""
    cuts = np.cumsum(share.astype(np.float64), axis=0)
    cuts = np.floor(cuts / cuts[-1] * counts).astype(np.int64)
    cuts[-1] = counts
    dealt: Int64 = np.diff(cuts, axis=0, prepend=0)
    return dealt


# ---- laws ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LabelSkew(Partition):
    """Each class goes to the devices in shares from a Dirichlet.

    The smaller the ``concentration``, the fewer classes a device sees (Hsu et al. 2019, Yurochkin
    et al. 2019).
    """

    concentration: float = 0.5

    def _check(self) -> None:
        if not 0.01 <= self.concentration <= 1e4:
            raise ExperimentError(f"concentration = {self.concentration} must be in [0.01, 10000]")

    def _owners(self, run: int, rows: UInt32, devices: Int64) -> Int64:
        counts = np.bincount(self.data.label[rows], minlength=self.classes)
        dealt = _cuts(_gamma(self.concentration, run, devices, self.classes), counts)
        return np.repeat(np.tile(devices, self.classes), dealt.T.ravel())


@dataclass(frozen=True, slots=True)
class Shards(Partition):
    """Sorted by class and cut into equal shards, of which each device draws ``shards``.

    McMahan et al. 2017.
    """

    shards: int = 2

    def _check(self) -> None:
        if self.shards < 1:
            raise ExperimentError(f"shards = {self.shards} must be 1 or more")

    def _owners(self, run: int, rows: UInt32, devices: Int64) -> Int64:
        count = self.shards * len(devices)
        # One stream a device: the two shares of a data set are dealt independently.
        word = draws.words(run, Dealing.SHARDS, devices, Purpose.SPLIT, self.shards).ravel()
        place = np.empty(count, np.int64)
        place[np.argsort(word, kind="stable")] = np.arange(count)
        return devices[place[np.arange(len(rows)) * count // len(rows)] // self.shards]


@dataclass(frozen=True, slots=True)
class QuantitySkew(Partition):
    """Devices own shares exp(``sigma`` z) of all samples, z standard normal; they mix alike."""

    sigma: float = 1.0

    def _check(self) -> None:
        if not 0.0 <= self.sigma <= 5.0:
            raise ExperimentError(f"sigma = {self.sigma} must be in [0, 5]")

    def _owners(self, run: int, rows: UInt32, devices: Int64) -> Int64:
        normal = draws.normal(draws.words(run, Dealing.SIZES, devices, Purpose.SPLIT, 2))[:, 0]
        sizes = _cuts(elementary.exp(np.float32(self.sigma) * normal), len(rows))
        word = draws.words(run, Dealing.MIXING, rows, Purpose.SPLIT, 1)[:, 0]
        owner = np.empty(len(rows), np.int64)
        owner[np.argsort(word, kind="stable")] = np.repeat(devices, sizes)
        return owner


@dataclass(frozen=True, slots=True)
class Clients(Partition):
    """Each device is one natural client, drawn among those with ``least`` samples or more.

    The query has its share of each class, the last samples where they are in the order of time.
    Samples take turns by class, as in a stream; with ``support`` only so many of them are the
    support, as many of each class as there can be: the first ones, or those that lie evenly in the
    time before the query.
    Of overlapping samples the last one of a class before the query is left out, so that support
    and query share no raw sample.
    """

    least: int = 1
    support: int = 0

    def _check(self) -> None:
        if self.support < 0:
            raise ExperimentError(f"support = {self.support} must be 0, for all, or more")
        if self.public:
            raise ExperimentError(
                f"public = {self.public}, but clients own all of their samples; take the partition "
                "'label-skew', 'shards' or 'quantity-skew'"
            )
        for split, devices in self._shares():
            found = len(self._eligible(np.flatnonzero(self.data.split == split)))
            kind = f"{KINDS[split]} " if self.data.has_test and self.held_out else ""
            if found < len(devices):
                raise DataError(
                    f"{len(devices)} {kind}devices need as many clients with {self.least} samples "
                    f"or more; the data has {found}: lower devices, held_out or least"
                )

    def _eligible(self, rows: Int64 | UInt32) -> Int64:
        """The clients that have enough among these rows."""
        client, counts = np.unique(self.data.client[rows], return_counts=True)
        eligible: Int64 = client[(client != NO_CLIENT) & (counts >= self.least)].astype(np.int64)
        return eligible

    def _owners(self, run: int, rows: UInt32, devices: Int64) -> Int64:
        client = self._eligible(rows)
        word = draws.words(run, Dealing.CLIENTS, client, Purpose.SPLIT, 1)[:, 0]
        device = np.full(len(self.data.client) + 1, NOBODY)  # its last one is that of NO_CLIENT
        device[client[np.argsort(word, kind="stable")[: len(devices)]]] = devices
        return device[self.data.client[rows]]

    def _arranged(self, run: int, rows: UInt32, owner: Int64) -> tuple[Int64, Int64]:
        label = self.data.label[rows].astype(np.int64)
        word = draws.words(run, Dealing.ROWS, rows, Purpose.SPLIT, 2)[:, 1]
        cell = owner * self.classes + label
        rank = _ranked(cell, rows if self.data.overlapping else word)
        depth = (rank + 0.5) / np.bincount(cell)[cell]
        part = self._cut(_ranked(owner, label, depth), owner)
        if self.data.overlapping:
            before = np.bincount(cell, weights=part == _SUPPORT)[cell]
            borders = (rank == before - 1) & (before < np.bincount(cell)[cell])
            part = np.where(borders, _NEITHER, part)
        turn = rank * self.classes + label
        if self.support:
            keys = _spread(rank) if self.data.overlapping else rank
            chosen = _ranked(3 * cell + part, keys) * self.classes + label
            place = _ranked(3 * owner + part, chosen)
            part = np.where((part == _SUPPORT) & (place >= self.support), _NEITHER, part)
        return part, turn


# ---- gamma variates --------------------------------------------------------------------------

_TRIES = 8


def _gamma(shape: float, run: int, devices: Int64, classes: int) -> Float32:
    """Gamma variates [devices, classes] (Marsaglia and Tsang 2000, with their step for shapes < 1).

    Canonical float32 arithmetic, so every host deals alike. A try fails once in twenty times at
    most; after 8 failures the mode is taken.
    """
    words = draws.words(run, Dealing.SHARES, devices, Purpose.SPLIT, classes * _TRIES * 4)
    four = words.reshape(len(devices), classes, _TRIES, 4)
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
