"""N-way K-shot episodes over any labelled data set: in each round each device meets a new one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedtiny import draws
from fedtiny.data.labelled import Dealing, Labelled
from fedtiny.data.pools import KINDS, Pools, class_pools
from fedtiny.data.tables import RowTable, Tabled
from fedtiny.errors import DataError, ExperimentError
from fedtiny.rng import Purpose

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedtiny.tensors import Int64, UInt32


@dataclass(frozen=True, slots=True)
class Episodes(Tabled):
    """Few-shot classification (Vinyals et al. 2016).

    An episode is ``ways`` classes in a private order (which numbers its labels), with ``shots``
    support and ``queries`` query samples of each, all different. The classes are drawn from the
    device's own ``pool`` of them (None: from all), with ``within_superclass`` all of one
    superclass, such as an alphabet. Held-out devices draw from the test samples, and so from the
    classes that those have; where there are none, from the share ``held_out_samples`` of each
    class. With ``held_out_classes`` that many classes are theirs alone. Their episodes may be
    smaller: ``held_out_ways`` and ``held_out_shots`` (None: as those of the others).
    """

    data: Labelled
    devices: int
    held_out: int = 0
    ways: int = 5
    shots: int = 5
    queries: int = 10
    held_out_ways: int | None = None
    held_out_shots: int | None = None
    pool: int | None = None
    held_out_samples: float = 0.25
    held_out_classes: int = 0
    within_superclass: bool = False

    @property
    def features(self) -> int:
        """Floats of one sample."""
        return self.data.features

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
        pool = self.data.classes if self.pool is None else self.pool
        ways, shots = (sizes[1] for sizes in (self.ways_by_kind, self.shots_by_kind))
        least = min(ways, shots, self.queries, pool - self.ways + 1)
        larger = ways > self.ways or shots > self.shots
        if least < 1 or larger or not 0 <= self.held_out_classes < self.data.classes:
            raise ExperimentError(
                f"ways = {self.ways}, shots = {self.shots}, queries = {self.queries}, "
                f"pool = {pool}, held_out_ways = {ways}, held_out_shots = {shots}, "
                f"held_out_classes = {self.held_out_classes}: each must be 1 or more "
                f"(held_out_classes 0 to {self.data.classes - 1}), ways at most pool, and those of "
                "held-out devices at most those of the others"
            )
        if self.within_superclass and self.data.superclass is None:
            raise ExperimentError("within_superclass = true, but the data has no superclasses")
        _supply(self, 0)

    @property
    def ways_by_kind(self) -> tuple[int, int]:
        """Of training devices, and of held-out ones."""
        return self.ways, self.ways if self.held_out_ways is None else self.held_out_ways

    @property
    def shots_by_kind(self) -> tuple[int, int]:
        """Likewise."""
        return self.shots, self.shots if self.held_out_shots is None else self.held_out_shots

    def _kind(self, devices: Sequence[int] | Int64) -> Int64:
        """0 for training devices, 1 for held-out ones."""
        return (np.asarray(devices) >= self.devices - self.held_out).astype(np.int64)

    def counts(self, run: int, devices: Sequence[int] | Int64) -> Int64:
        """Support and query samples of each device: [devices, 2]."""
        ways, shots = np.array([self.ways_by_kind, self.shots_by_kind])[:, self._kind(devices)]
        return np.stack([ways * shots, ways * self.queries], axis=1)

    def table(self, run: int, round: int, devices: Sequence[int] | Int64) -> RowTable:
        """The episodes of a cohort; samples take turns by class, as in a stream."""
        device, kind = np.asarray(devices), self._kind(devices)
        pools, families = _supply(self, run)
        words = draws.words(run, round, device, Purpose.EPISODE, 8 + 4 * self.ways)
        family = families.first[kind] + draws.below(words[:, 0], families.number[kind])
        chosen = self._chosen(run, device, families, family, words[:, None, 4:8])
        line = kind[:, None], chosen
        start, size = pools.start[line][:, None], pools.size[line][:, None]
        keys = words[:, 8:].reshape(len(device), 1, self.ways, 4)
        draw = np.arange(self.shots + self.queries)[None, :, None]
        rows = self.data.rows_by_class(run)[start + draws.shuffle(draw, size, keys)]
        way = np.broadcast_to(np.arange(self.ways, dtype=np.int32), rows.shape)
        ways, shots = np.array([self.ways_by_kind, self.shots_by_kind])[:, kind, None, None]
        asked = (way < ways) & ((draw < shots) | (draw >= self.shots))
        starts = np.cumsum([0, *self.counts(run, device).ravel()]).astype(np.uint32)
        return RowTable(self.data.x, None, way[asked], rows[asked], starts)

    native = table

    def _chosen(
        self, run: int, device: Int64, families: _Families, family: Int64, key: UInt32
    ) -> Int64:
        """The classes of each device's episode: [devices, ways]."""
        size = families.size[family][:, None]
        pool = size if self.pool is None else np.minimum(size, self.pool)
        of_pool = draws.shuffle(np.arange(self.ways)[None], pool, key)
        own = draws.words(run, 0, device, Purpose.TASK, 4)[:, None]
        place = families.start[family][:, None] + draws.shuffle(of_pool, size, own)
        chosen: Int64 = families.classes[place]
        return chosen


class _Families(NamedTuple):
    """The sets of classes that an episode may be drawn from.

    Family f is ``size[f]`` of ``classes`` from ``start[f]`` on; devices of kind k draw from
    ``number[k]`` families from ``first[k]`` on.
    """

    classes: Int64
    start: Int64
    size: Int64
    first: Int64
    number: Int64


@lru_cache(maxsize=8)
def _supply(task: Episodes, run: int) -> tuple[Pools, _Families]:
    """What both kinds of devices draw from; training devices draw from all if none is held out."""
    pools = class_pools(task.data, task.held_out_samples if task.held_out else 0.0)
    allowed = pools.size > 0
    if task.held_out_classes:
        held = _held_out_classes(task, run)
        allowed &= np.stack([~held, held])
    members = [
        _families(task, kind, pools, allowed[kind]) for kind in range(1 + bool(task.held_out))
    ]
    count = np.array([*map(len, members), 0][:2])
    size = np.array([len(family) for kind in members for family in kind])
    classes = np.concatenate([family for kind in members for family in kind])
    return pools, _Families(classes, np.cumsum(size) - size, size, np.array([0, count[0]]), count)


def _held_out_classes(task: Episodes, run: int) -> npt.NDArray[np.bool_]:
    index = np.arange(task.data.classes)
    word = draws.words(run, Dealing.HELD_OUT_CLASSES, index, Purpose.SPLIT, 1)[:, 0]
    held = np.zeros(len(index), bool)
    held[np.argsort(word, kind="stable")[: task.held_out_classes]] = True
    return held


def _families(
    task: Episodes, kind: int, pools: Pools, allowed: npt.NDArray[np.bool_]
) -> list[Int64]:
    """The families of one kind of devices, those with fewer classes than ways left out."""
    classes = np.flatnonzero(allowed)
    families = [classes]
    if task.within_superclass and task.data.superclass is not None:
        superclass = task.data.superclass[classes]
        families = [classes[superclass == one] for one in np.unique(superclass)]
    ways, most = task.ways_by_kind[kind], max(map(len, families), default=0)
    if ways > most:
        where = "one superclass" if task.within_superclass else f"{KINDS[kind]} devices"
        raise ExperimentError(
            f"{ways} ways of {most} classes for {where}; lower ways"
            + (" or held_out_classes" if task.held_out_classes else "")
        )
    samples = int(pools.size[kind, classes].min())
    if task.shots + task.queries > samples:
        raise DataError(
            f"{task.shots} shots and {task.queries} queries need {task.shots + task.queries} "
            f"samples of a class; {KINDS[kind]} devices have {samples}: lower shots or queries, "
            "or change held_out_samples"
        )
    return [family for family in families if len(family) >= ways]
